"""The rounds that find what no event tells: a clone storm in the rows, a namespace that only a mount or a descriptor keeps."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from nsagent.errors import NsagentError
from nsagent.findings import ORPHAN_S, Finding, Findings
from nsagent.inventory import read_unattended
from nsagent.namespaces import NamespaceId

log = logging.getLogger(__name__)

ROUND_S: Final = 5.0  # two words of each row
_HELD_S: Final = ORPHAN_S / 10  # a look at every descriptor


def read_held(procfs: str = "/proc") -> dict[NamespaceId, tuple[str, ...]]:
    """Return the namespaces without a process, and what holds each: paths of mounts, processes with a descriptor."""
    held: dict[NamespaceId, tuple[str, ...]] = {}
    for seen in read_unattended(procfs):
        held[seen.id] = (*seen.mounts, *(f"process {pid} by descriptor {fd}" for pid, fd in seen.descriptors))
    return held


class Patrol:
    """Makes a round when `round` is called and it is time; `publish` takes what it found. `rows` is for Findings.of_rows."""

    def __init__(
        self,
        findings: Findings,
        publish: Callable[[Sequence[Finding]], None],
        rows: Callable[[], Iterable[tuple[int, int]]] | None,
        procfs: str = "/proc",
    ) -> None:
        self._findings = findings
        self._publish = publish
        self._rows = rows
        self._procfs = procfs
        self._next_held_s = time.monotonic()

    def round(self) -> None:
        """Look, unless a look would come too soon. A failure is logged: the next round may fare better."""
        now = time.monotonic()
        found: list[Finding] = []
        try:
            if self._rows:
                found += self._findings.of_rows(self._rows(), now)
            if "orphan" in self._findings.on and now >= self._next_held_s:
                self._next_held_s = now + _HELD_S
                found += self._findings.of_held(read_held(self._procfs), now)
        except (NsagentError, OSError) as error:
            log.warning("event=patrol_failed reason=%s", error)
        if found:
            self._publish(found)
