"""New settings for an agent that runs: read and checked as a whole, then taken as far as they can be taken."""

from __future__ import annotations

import dataclasses
import logging
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from nsagent.errors import NsagentError
from nsagent.sample import Reload

log = logging.getLogger(__name__)

T = TypeVar("T")


class Reloader(Generic[T]):
    """Reads settings, a dataclass, anew. `reload` may be called from any thread."""

    def __init__(
        self,
        settings: T,
        read: Callable[[], T],
        live: Mapping[str, Callable[[Any], None]],
        flags: Mapping[str, str],
        prepare: Callable[[], Callable[[], None]] = lambda: lambda: None,
    ) -> None:
        """`read` returns settings or raises NsagentError; `live` has, by field, how a new value is taken; `flags` its
        name for people.

        `prepare` reads and checks what else belongs to it, and returns what takes it.
        """
        self._settings: Any = settings
        self._read = read
        self._live = live
        self._flags = flags
        self._prepare = prepare
        self._lock = threading.Lock()
        self.outcome = Reload(True, time.time_ns())  # what it started with was read, and was good

    def reload(self) -> str:
        """Take what changed; return a line about it. Raises NsagentError; what is no good changes nothing."""
        with self._lock:
            try:
                changed, left = self._take()
            except Exception as error:
                self.outcome = self.outcome._replace(success=False)
                log.error("event=reload_failed reason=%s", error, exc_info=not isinstance(error, NsagentError))
                raise
            self.outcome = Reload(True, time.time_ns())
        log.info("event=reloaded changed=%s", ",".join(changed) or "none")
        if left:
            log.warning("event=restart_needed settings=%s", ",".join(left))
        text = f"reloaded: {', '.join(changed) or 'nothing'} changed"
        return f"{text}; a restart is needed for {', '.join(left)}" if left else text

    def _take(self) -> tuple[list[str], list[str]]:
        new: Any = self._read()
        use = self._prepare()
        names = [f.name for f in dataclasses.fields(new) if getattr(new, f.name) != getattr(self._settings, f.name)]
        use()
        for name in names:
            if name in self._live:
                self._live[name](getattr(new, name))
                self._settings = dataclasses.replace(self._settings, **{name: getattr(new, name)})
        flags = {name: self._flags.get(name, name) for name in names}
        changed = sorted({flags[name] for name in names if name in self._live})
        return changed, sorted({flags[name] for name in names if name not in self._live})
