"""Read cgroups: one, or all of a tree in file-major order. Which file says what is known to v1 and v2 only.

One type of file is read across all cgroups before the next: cpu.stat and memory.stat each flush what the other needs,
and interleaved reading was measured 8 times slower. A directory descriptor a cgroup, openat, one read a file; a
descriptor of a file is not kept, as each pins 5 KB of kernel memory.
"""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from nsagent.cgroups import v1, v2
from nsagent.cgroups.files import GONE, read_once
from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.stats import CgroupStats
from nsagent.cgroups.tree import Cgroup, Tree
from nsagent.errors import NsagentError

_MOST_DIRECTORIES: Final = 4096

Raw = dict[str, dict[str, bytes]]  # part of CgroupStats: file: content


@dataclass(frozen=True, slots=True)
class _Source:
    """The files of one controller that feed one part of CgroupStats."""

    hierarchy: Hierarchy
    part: str
    controller: str
    files: Sequence[str]

    def lives_in(self, directory: int) -> bool:
        """Tell whether the cgroup still exists and has the controller, so that a file it lacks is one this kernel lacks."""
        try:
            os.stat("cgroup.procs", dir_fd=directory)  # a removed cgroup finds none of its files
        except OSError:
            return False
        return self.hierarchy.version == 1 or self.controller in _controllers(directory)


class Reader:
    """Reads the cgroups of a layout. Remembers which files this kernel does not have, so as not to ask again."""

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self._sources = _sources(layout)
        self._versions = {source.part: source.hierarchy.version for source in self._sources}
        self._absent: set[tuple[str, bool, str]] = set()  # hierarchy, is it the root, file

    def read(self, cgroup: Cgroup | str, *, counting: bool = False) -> CgroupStats:
        """Read one cgroup, by its path from the hierarchies' roots. `counting`: it has a blkio rule (nsagent.cgroups.v1.io).

        What ended or is not in a hierarchy has None there.
        """
        path = cgroup if isinstance(cgroup, str) else cgroup.path
        raw: dict[str, Raw] = {}
        for hierarchy, sources in self._by_hierarchy():
            self._read_chunk(hierarchy, sources, [path], raw)
        stats = self._parse(raw.get(path, {}), counting=counting)
        return self._with_effective_limit(path, stats)

    def read_all(self, tree: Tree) -> dict[str, CgroupStats]:
        """Read every cgroup that `tree` knows; one that ended meanwhile is left out. Gives `tree` the stats to remember."""
        raw: dict[str, Raw] = {}
        size = _chunk_size()
        for hierarchy, sources in self._by_hierarchy():
            paths = [path for path, cgroup in tree.cgroups.items() if hierarchy.key in cgroup.ids]
            for start in range(0, len(paths), size):
                self._read_chunk(hierarchy, sources, paths[start : start + size], raw)
        found: dict[str, CgroupStats] = {}
        for path in sorted(raw, key=lambda path: path.count("/") if path != "/" else 0):  # parents first
            found[path] = _bounded(self._parse(raw[path]), found.get(Tree.parent(path) or ""))
        tree.remember(found)
        return found

    def _by_hierarchy(self) -> Iterator[tuple[Hierarchy, list[_Source]]]:
        for hierarchy in dict.fromkeys(source.hierarchy for source in self._sources):
            yield hierarchy, [source for source in self._sources if source.hierarchy is hierarchy]

    def _read_chunk(self, hierarchy: Hierarchy, sources: Iterable[_Source], paths: Sequence[str], raw: dict[str, Raw]) -> None:
        directories = list(_open_all(hierarchy, paths))
        try:
            enabled = _enabled(hierarchy, directories)
            for source in sources:
                having = [each for each in directories if hierarchy.version == 1 or source.controller in enabled[each[0]]]
                for name in source.files:
                    everywhere = hierarchy.version == 2 and name in v2.EVERYWHERE
                    self._read_file(source, name, directories if everywhere else having, raw)
        finally:
            for _, directory in directories:
                os.close(directory)

    def _read_file(self, source: _Source, name: str, directories: Iterable[tuple[str, int]], raw: dict[str, Raw]) -> None:
        root = source.hierarchy.prefix or "/"
        absent = [(source.hierarchy.key, is_root, name) in self._absent for is_root in (False, True)]
        for path, directory in directories:
            if absent[path == root]:
                continue
            text = read_once(name, directory)
            if text is not None:
                raw.setdefault(path, {}).setdefault(source.part, {})[name] = text
            elif source.lives_in(directory):
                self._absent.add((source.hierarchy.key, path == root, name))
                absent[path == root] = True

    def _parse(self, raw: Raw, *, counting: bool = False) -> CgroupStats:
        part = raw.get
        return CgroupStats(
            cpu=(v1 if self._versions.get("cpu") == 1 else v2).cpu(part("cpu", {})),
            memory=(v1 if self._versions.get("memory") == 1 else v2).memory(part("memory", {})),
            io=v1.io(part("io", {}), counting=counting) if self._versions.get("io") == 1 else v2.io(part("io", {})),
            pids=(v1 if self._versions.get("pids") == 1 else v2).pids(part("pids", {})),
        )

    def _with_effective_limit(self, path: str, stats: CgroupStats) -> CgroupStats:
        """Bound a v2 cgroup's limit by those of its ancestors, which are read now."""
        hierarchy = self.layout.of("memory")
        if hierarchy is None or hierarchy.version == 1 or stats.memory is None:
            return stats
        least = stats.memory.limit_bytes
        above = Tree.parent(path)
        while above is not None:
            for _, directory in _open_all(hierarchy, [above]):
                try:
                    limit = v2.parse_limit(read_once("memory.max", directory))
                finally:
                    os.close(directory)
                if limit is not None:
                    least = min(limit, math.inf if least is None else least)
            above = Tree.parent(above)
        return stats._replace(memory=stats.memory._replace(effective_limit_bytes=least))


def _sources(layout: Layout) -> list[_Source]:
    """Return what can be read here."""
    found: list[_Source] = []
    for part, controllers in (("cpu", ("cpuacct", "cpu")), ("memory", ("memory",)), ("io", ("blkio",)), ("pids", ("pids",))):
        legacy = [
            _Source(hierarchy, part, controller, v1.FILES[controller])
            for controller in controllers
            for hierarchy in layout.hierarchies
            if hierarchy.version == 1 and controller in hierarchy.controllers
        ]
        found += legacy
        if not legacy and layout.v2 is not None and (part == "cpu" or part in layout.v2.controllers):
            found.append(_Source(layout.v2, part, part, v2.FILES[part]))
    return found


def _bounded(stats: CgroupStats, parent: CgroupStats | None) -> CgroupStats:
    """Fill a v2 cgroup's effective limit: its own, or its parent's if that is less."""
    memory = stats.memory
    if memory is None or memory.effective_limit_bytes is not None:
        return stats
    above = parent.memory.effective_limit_bytes if parent is not None and parent.memory is not None else None
    limits = [limit for limit in (memory.limit_bytes, above) if limit is not None]
    if not limits:
        return stats
    return stats._replace(memory=memory._replace(effective_limit_bytes=min(limits)))


def _open_all(hierarchy: Hierarchy, paths: Iterable[str]) -> Iterator[tuple[str, int]]:
    """Open the directories of those cgroups that (still) are in `hierarchy`."""
    for path in paths:
        place = hierarchy.directory(path)
        if place is None:
            continue
        try:
            yield path, os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno not in GONE:
                raise NsagentError(f"{place} cannot be opened: {exc.strerror}") from exc


def _controllers(directory: int) -> frozenset[str]:
    return frozenset(os.fsdecode(read_once("cgroup.controllers", directory) or b"").split())


def _enabled(hierarchy: Hierarchy, directories: Iterable[tuple[str, int]]) -> Mapping[str, frozenset[str]]:
    """Return the controllers of each v2 cgroup; v1 has all of a hierarchy's in every cgroup."""
    return {path: _controllers(fd) for path, fd in directories} if hierarchy.version == 2 else {}


def _chunk_size() -> int:
    """Return how many directories may be open at once: half of the descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_DIRECTORIES if soft == resource.RLIM_INFINITY else max(min(soft // 2, _MOST_DIRECTORIES), 16)
