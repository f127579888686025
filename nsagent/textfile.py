"""An exposition as a file for node_exporter's textfile collector: for nodes where nothing may listen, or one scrape shall do."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterable
from typing import Final

log = logging.getLogger(__name__)

NAME: Final = "nsagent.prom"
_MODE: Final = 0o644  # node_exporter is another user


class Textfile:
    """Keeps <directory>/nsagent.prom. `make` returns what stands in it, in pieces; `write` is for one thread."""

    def __init__(self, directory: str, make: Callable[[], Iterable[bytes]]) -> None:
        self._path = os.path.join(directory, NAME)
        self._new = os.path.join(directory, f".{NAME}.new")  # the collector takes what ends in .prom
        self._make = make
        self._failure = ""

    def write(self) -> None:
        """Replace the file: a reader has the old or the new one, whole. A failure is logged once a cause: the agent goes on."""
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._new)
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            with open(os.open(self._new, flags, 0o600), "wb") as out:
                out.writelines(self._make())
                os.fchmod(out.fileno(), _MODE)
            os.replace(self._new, self._path)
            self._failure = ""
        except OSError as error:
            if (failure := error.strerror or str(error)) != self._failure:
                self._failure = failure
                log.warning("event=textfile_failed path=%s reason=%s", self._path, failure)
            with contextlib.suppress(OSError):
                os.unlink(self._new)

    def remove(self) -> None:
        """Remove it: figures of an agent that has ended would look like those of a node where nothing happens."""
        for path in (self._new, self._path):
            with contextlib.suppress(OSError):
                os.unlink(path)
