"""`nsagent trace` beside the tour: of a running agent's events, or of programs that are loaded for it alone."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import time
from collections.abc import Sequence
from typing import Final

_READY_S: Final = 600.0  # of compiling, verifying and loading; on a common machine it takes a second
_LATE_S: Final = 60.0


class Tracer:
    """Every line that `nsagent trace` has printed so far, and the search in them."""

    def __init__(self, argv: Sequence[str]) -> None:
        self._process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._out, self._err = self._process.stdout.fileno(), self._process.stderr.fileno()
        self._text = {self._out: b"", self._err: b""}

    def wait_ready(self) -> str:
        """Return "" as soon as it traces, or why it does not."""
        end = time.monotonic() + _READY_S
        while b"tracing" not in self._text[self._err].splitlines():
            if not self._read(self._err, end):
                error = re.search(rb"^error: (.*)", self._text[self._err], re.MULTILINE)
                return error[1].decode(errors="replace") if error else "nsagent trace did not begin"
        return ""

    def find(self, *patterns: str) -> str:
        """Return the line of the event that matches all, which may come late; "" where it does not come."""
        end = time.monotonic() + _LATE_S
        while True:
            for line in self._text[self._out].decode(errors="replace").splitlines():
                if all(re.search(pattern, line) for pattern in patterns):
                    return " ".join(line.split())
            if not self._read(self._out, end):
                return ""

    def _read(self, fd: int, end: float) -> bool:
        """Read what one of its pipes has to say until `end`; False where it says no more."""
        ready, _, _ = select.select([fd], [], [], max(end - time.monotonic(), 0))
        piece = os.read(fd, 1 << 16) if ready else b""
        self._text[fd] += piece
        return bool(piece)

    def close(self) -> None:
        """End it; its programs go with it."""
        self._process.send_signal(signal.SIGTERM)
        self._process.communicate()
