"""One exposition for all who ask at the same time, and none of them waits longer than it can."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

Pieces = tuple[bytes, ...]


class Late(Exception):
    """It is not there in time."""


class _Call:
    """One call of `make`, and what came of it, for those who wait for it."""

    def __init__(self) -> None:
        self.done = threading.Event()
        self.waiting = 0
        self.result: Pieces | BaseException = ()


class Exposition:
    """Has `make` called in a thread of its own, one call at a time, so that who cannot wait for its end need not.

    Who asks during a call waits for the next one, and shares it with all who wait: a call that hangs costs one thread. What was
    made is the callers' alone: 25 MB on a big node.
    """

    def __init__(self, make: Callable[[], Pieces]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._next: _Call | None = None
        self._running = False

    def get(self, end: float | None) -> Pieces:
        """Return what was made after this call. Raises Late when `end` (monotonic clock) comes first, or what `make` raises."""
        with self._lock:
            call = self._next = self._next or _Call()
            call.waiting += 1
            if not self._running:
                threading.Thread(target=self._run, name="exposition", daemon=True).start()
                self._running = True
        if not call.done.wait(None if end is None else max(0.0, end - time.monotonic())):
            with self._lock:
                call.waiting -= 1
            raise Late
        if isinstance(call.result, BaseException):
            raise call.result
        return call.result

    def _run(self) -> None:
        while True:
            with self._lock:
                call, self._next = self._next, None
                if call is None or not call.waiting:  # all have given up
                    self._running = False
                    return
            try:
                call.result = self._make()
            except BaseException as error:
                call.result = error
            call.done.set()
            del call
