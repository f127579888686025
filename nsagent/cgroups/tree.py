"""Every cgroup of the node: the union over the hierarchies by path, ids to paths, and the last stats of what ended.

`Tree.scan` looks for changes. Whatever learns of single births and ends sooner may call `add` and `discard`.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from nsagent.cgroups.changes import Changes
from nsagent.cgroups.files import GONE
from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.stats import CgroupStats
from nsagent.errors import NsagentError


class Cgroup(NamedTuple):
    """A cgroup: its path from the roots of its hierarchies, and its kernfs id in each it is in, by `Hierarchy.key`.

    The path begins with "/"; bytes that are no UTF-8 are surrogate escapes. An id is unique in its hierarchy, and the
    st_ino of the directory. The same path in two hierarchies is one Cgroup.
    """

    path: str
    ids: Mapping[str, int]


class Tombstone(NamedTuple):
    """What is kept of a cgroup that ended: its last stats, as read before the end, and when that was noticed (monotonic, s)."""

    cgroup: Cgroup
    stats: CgroupStats
    ended: float


class Tree:
    """All cgroups as of the last scan. `retain` is for how many seconds the stats of an ended one are kept."""

    def __init__(
        self, layout: Layout, retain: float = 120.0, clock: Callable[[], float] = time.monotonic, *, watched: bool = False
    ) -> None:
        """`watched`: let the kernel tell what changes, where it does; a descriptor a hierarchy, which `close` closes."""
        self.layout = layout
        self.retain = retain
        self.cgroups: dict[str, Cgroup] = {}
        self.tombstones: dict[str, Tombstone] = {}
        self._clock = clock
        self._last: dict[str, CgroupStats] = {}
        self._paths: dict[int, str] = {}
        self._accounting = layout.accounting[1].key
        self.generation = 0  # rises with each change of `cgroups`
        self._scanned = -1
        self._changes = {h.key: Changes.of(h) if watched else None for h in layout.hierarchies}
        self._touched: dict[str, set[int] | None] = dict.fromkeys(self._changes)
        self._ids: dict[str, dict[str, int]] = {}  # as of the last scan, by hierarchy, then path
        self._too_long: dict[str, frozenset[str]] = {}

    @property
    def is_watched(self) -> bool:
        """Tell whether the kernel tells of changes in all hierarchies, so that none is walked."""
        return all(self._changes.values())

    @property
    def too_long(self) -> frozenset[str]:
        """The paths of what the last scan met and left out, as no system call takes its path (PATH_MAX), each without what is
        below it."""
        return frozenset().union(*self._too_long.values())

    def close(self) -> None:
        """Close what watches the hierarchies; `scan` walks them again then."""
        for changes in self._changes.values():
            if changes is not None:
                changes.close()
        self._changes = dict.fromkeys(self._changes)
        self._touched = dict.fromkeys(self._changes)

    def scan(self) -> None:
        """Find what is new, what ended and what was recreated under its path.

        A watched hierarchy of which nothing was heard since the last scan is not looked at, and where something was heard only
        the directories that it was about are listed; any other is walked. Raises NsagentError for what says nothing about
        a cgroup, such as EMFILE; all is walked then the next time.
        """
        before, self._ids = self._ids, {}
        self._ids = {h.key: self._look(h, before.get(h.key)) for h in self.layout.hierarchies}
        if self._scanned == self.generation and all(self._ids[key] is before.get(key) for key in self._ids):
            self._expire()
            return
        ids: dict[str, dict[str, int]] = {}
        for key, found in self._ids.items():
            for path, number in found.items():
                ids.setdefault(path, {})[key] = number
        for path in [path for path in self.cgroups if path not in ids]:
            self.discard(path)
        for path, numbers in ids.items():
            known = self.cgroups.get(path)
            if known is None or known.ids != numbers:
                self.add(Cgroup(path, numbers))
        self._scanned = self.generation
        self._expire()

    def take_touched(self) -> dict[str, set[int] | None]:
        """Return by hierarchy the ids of the cgroups in which something was written, began or ended before the last scan and
        after the scan that the last call of this was about; None where that is not known."""
        touched = self._touched
        self._touched = {key: set() if changes is not None else None for key, changes in self._changes.items()}
        return touched

    def _look(self, hierarchy: Hierarchy, known: dict[str, int] | None) -> dict[str, int]:
        """Return the ids of a hierarchy by path: `known` itself if nothing changed."""
        changes = self._changes[hierarchy.key]
        heard = changes.read() if changes is not None else None
        touched = self._touched[hierarchy.key]
        self._touched[hierarchy.key] = None if heard is None or touched is None else touched | heard.keys()
        too_long: set[str] = set()
        if known is None or heard is None:
            found = dict(walk(hierarchy, too_long=too_long))
            self._too_long[hierarchy.key] = frozenset(too_long)
            return known if known == found else found
        if not any(heard.values()):
            return known
        paths = {number: path for path, number in known.items()}
        current = dict(known)
        too_long |= self._too_long[hierarchy.key]
        # A directory that is not known is below another of which something was heard.
        about = sorted(paths[number] for number, born in heard.items() if born and number in paths)
        children: dict[str, list[str]] = {path: [] for path in about}
        for path in known:
            if (above := self.parent(path)) in children:
                children[above].append(path)
        for path in about:
            if path in current:
                _look_into(hierarchy, path, [child for child in children[path] if child in current], current, too_long)
        self._too_long[hierarchy.key] = frozenset(too_long)
        return current

    def add(self, cgroup: Cgroup) -> None:
        """Take in a cgroup; one of the same path with another id ended, and what is remembered of it goes: a counter reset."""
        known = self.cgroups.get(cgroup.path)
        self.generation += 1
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
        self.generation += 1
        self._paths.pop(cgroup.ids.get(self._accounting, 0), None)
        stats = self._last.pop(path, None)
        if stats is not None and self.retain > 0:
            self.tombstones[path] = Tombstone(cgroup, stats, self._clock())

    def remember(self, stats: Mapping[str, CgroupStats]) -> None:
        """Keep the latest stats by path, for the tombstones; what could not be read this time stays as it was before.

        A cgroup may end between the reading of two of its files, and its last stats must not be the poorer for that.
        """
        if self.retain <= 0:
            return
        for path in stats.keys() & self.cgroups.keys():
            new, old = stats[path], self._last.get(path)
            if old is None or old is new:
                self._last[path] = new
            else:
                self._last[path] = CgroupStats._make(part or last for part, last in zip(new, old, strict=True))

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


def _look_into(hierarchy: Hierarchy, path: str, children: list[str], current: dict[str, int], too_long: set[str]) -> None:
    """Bring `current`, the ids of a hierarchy by path, up to date with what is in one directory, of which it has `children`.

    What is new there is walked; of what lies deeper in the others it is heard by itself.
    """
    try:
        found = dict(_list(path, hierarchy.directory(path) or hierarchy.mountpoint))
    except OSError as error:
        found = _nothing(error, path)
    gone = {child for child in children if found.get(child) != current[child]}
    below = tuple(f"{child}/" for child in gone)
    for other in [other for other in current if other in gone or other.startswith(below)] if gone else ():
        del current[other]
    too_long -= {other for other in too_long if Tree.parent(other) == path or other.startswith(below)}
    for child in [child for child in found if child not in current]:
        current.update(walk(hierarchy, child, too_long))


def _nothing(error: OSError, path: str) -> dict[str, int]:
    """Return what is in a directory that was removed meanwhile, or may not be read. Raises NsagentError, see `Tree.scan`."""
    if error.errno not in GONE:
        raise NsagentError(f"{path}: {error.strerror}") from error
    return {}


def _list(path: str, place: str) -> Iterator[tuple[str, int]]:
    """Yield (path, kernfs id) of the cgroups directly in a directory."""
    prefix = path.rstrip("/")
    with os.scandir(place) as entries:  # a path is one string, in however many hierarchies it is
        yield from ((sys.intern(f"{prefix}/{e.name}"), e.inode()) for e in entries if e.is_dir(follow_symlinks=False))


def walk(hierarchy: Hierarchy, top: str | None = None, too_long: set[str] | None = None) -> Iterator[tuple[str, int]]:
    """Yield (path, kernfs id) of every cgroup of a mounted hierarchy, or of `top` and below; parents first.

    What may not be read is left out; what has a path that no system call takes is added to `too_long`.

    A kernfs directory's link count is 2 plus its subdirectories: one without any is not listed, which would cost a
    readdir of all its files.
    """
    first = hierarchy.prefix or "/" if top is None else top
    pending = [(first, hierarchy.directory(first) or hierarchy.mountpoint)]
    while pending:
        path, place = pending.pop()
        try:
            status = os.stat(f"{place}/.")  # by which it is opened
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG and too_long is not None:
                too_long.add(path)
            _nothing(error, path)
            continue
        yield path, status.st_ino
        if status.st_nlink == 2:
            continue
        try:
            pending += [(child, place + child[len(path.rstrip("/")) :]) for child, _ in _list(path, place)]
        except OSError as error:
            _nothing(error, path)
