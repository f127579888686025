"""Every cgroup of the node: the union over the hierarchies by path, ids to paths, and the last stats of what ended.

`Tree.scan` walks all of it. Whatever learns of single births and ends sooner may call `add` and `discard`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.stats import CgroupStats


@dataclass(frozen=True, slots=True)
class Cgroup:
    """A cgroup: its path from the roots of its hierarchies, and its kernfs id in each it is in, by `Hierarchy.key`.

    The path begins with "/"; bytes that are no UTF-8 are surrogate escapes. An id is unique in its hierarchy, and the
    st_ino of the directory. The same path in two hierarchies is one Cgroup.
    """

    path: str
    ids: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is kept of a cgroup that ended: its last stats, as read before the end, and when that was noticed (monotonic, s)."""

    cgroup: Cgroup
    stats: CgroupStats
    ended: float


class Tree:
    """All cgroups as of the last scan. `retain` is for how many seconds the stats of an ended one are kept."""

    def __init__(self, layout: Layout, retain: float = 120.0, clock: Callable[[], float] = time.monotonic) -> None:
        self.layout = layout
        self.retain = retain
        self.cgroups: dict[str, Cgroup] = {}
        self.tombstones: dict[str, Tombstone] = {}
        self._clock = clock
        self._last: dict[str, CgroupStats] = {}
        self._paths: dict[int, str] = {}
        self._accounting = layout.accounting[1].key

    def scan(self) -> None:
        """Walk all hierarchies; find what is new, what ended and what was recreated under its path."""
        ids: dict[str, dict[str, int]] = {}
        for hierarchy in self.layout.hierarchies:
            for path, number in walk(hierarchy):
                ids.setdefault(path, {})[hierarchy.key] = number
        for path in [path for path in self.cgroups if path not in ids]:
            self.discard(path)
        for path, numbers in ids.items():
            known = self.cgroups.get(path)
            if known is None or known.ids != numbers:
                self.add(Cgroup(path, numbers))
        self._expire()

    def add(self, cgroup: Cgroup) -> None:
        """Take in a cgroup; one of the same path with another id ended, and what is remembered of it goes: a counter reset."""
        known = self.cgroups.get(cgroup.path)
        if known is not None:
            if any(cgroup.ids.get(key, number) != number for key, number in known.ids.items()):
                self._last.pop(cgroup.path, None)
            self._paths.pop(known.ids.get(self._accounting, 0), None)
        self.tombstones.pop(cgroup.path, None)
        self.cgroups[cgroup.path] = cgroup
        if self._accounting in cgroup.ids:
            self._paths[cgroup.ids[self._accounting]] = cgroup.path

    def discard(self, path: str) -> None:
        """Take out a cgroup that ended in all hierarchies; its last stats, if any were read, become a tombstone."""
        cgroup = self.cgroups.pop(path, None)
        if cgroup is None:
            return
        self._paths.pop(cgroup.ids.get(self._accounting, 0), None)
        stats = self._last.pop(path, None)
        if stats is not None and self.retain > 0:
            self.tombstones[path] = Tombstone(cgroup, stats, self._clock())

    def remember(self, stats: Mapping[str, CgroupStats]) -> None:
        """Keep the latest stats by path, for the tombstones; what could not be read this time stays as it was before.

        A cgroup may end between the reading of two of its files, and its last stats must not be the poorer for that.
        """
        for path in stats.keys() & self.cgroups.keys():
            new, old = stats[path], self._last.get(path, CgroupStats())
            self._last[path] = CgroupStats(new.cpu or old.cpu, new.memory or old.memory, new.io or old.io, new.pids or old.pids)

    def path_of(self, accounting_id: int) -> str | None:
        """Return the path of the cgroup with that id in the accounting hierarchy (`Layout.accounting`)."""
        return self._paths.get(accounting_id)

    @staticmethod
    def parent(path: str) -> str | None:
        """Return the path of the cgroup above, None for the root."""
        return None if path == "/" else path.rpartition("/")[0] or "/"

    def _expire(self) -> None:
        oldest = self._clock() - self.retain
        for path in [path for path, stone in self.tombstones.items() if stone.ended < oldest]:
            del self.tombstones[path]


def walk(hierarchy: Hierarchy) -> Iterator[tuple[str, int]]:
    """Yield (path, kernfs id) of every cgroup of a mounted hierarchy, parents first; what may not be read is left out.

    A kernfs directory's link count is 2 plus its subdirectories: one without any is not listed, which would cost a
    readdir of all its files.
    """
    pending = [(hierarchy.prefix or "/", hierarchy.mountpoint)]
    while pending:
        path, place = pending.pop()
        try:
            status = os.stat(place)
        except OSError:
            continue  # removed meanwhile
        yield path, status.st_ino
        if status.st_nlink == 2:
            continue
        prefix = "" if path == "/" else path
        try:
            with os.scandir(place) as entries:
                pending += [(f"{prefix}/{e.name}", e.path) for e in entries if e.is_dir(follow_symlinks=False)]
        except OSError:
            continue
