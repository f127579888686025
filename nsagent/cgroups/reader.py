"""Read cgroups: one, or all of a tree in file-major order. Which file says what is known to v1, v2 and parts only.

One type of file is read across all cgroups before the next: cpu.stat and memory.stat each flush what the other needs,
and interleaved reading was measured 8 times slower. What has the bytes of last time is not parsed again: its part, and
where no part changed its CgroupStats, are the objects of last time.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final

from nsagent.cgroups import parts, v1, v2
from nsagent.cgroups.core import Lane
from nsagent.cgroups.devices import BlockNames
from nsagent.cgroups.files import read
from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.places import Budget, Place, Record
from nsagent.cgroups.sources import Source, find_sources, is_empty, stands_still
from nsagent.cgroups.stats import CgroupStats
from nsagent.cgroups.tree import Cgroup, Tree
from nsagent.cgroups.walks import STAT, Walks

SLOW_READ_S: Final = 0.05  # of one cgroup's file
SLOW_FILE_S: Final = 2.0  # of one file type in all cgroups
_LONGEST_PAUSE: Final = 64
_MOST_EQUAL: Final = 8192


class Reader:
    """Reads the cgroups of a layout; keeps descriptors, `close` closes them. For one thread at a time.

    `lane`, if any, makes most files needless; `unwalked` has the hierarchies where it failed, and why.
    `seconds`: how long each file took in the last `read_all`. `backoffs`: how often a file was too slow, so that it is left
    out of the next 2, 4, 8.. readings.
    """

    def __init__(
        self,
        layout: Layout,
        clock: Callable[[], float] = time.perf_counter,
        lane: Lane | None = None,
        without: Collection[str] = (),
        sysfs: str = "/sys",
    ) -> None:
        """`without`: see find_sources."""
        self.layout = layout
        self.lane = lane
        self.seconds: dict[str, float] = {}
        self.backoffs: dict[str, int] = {}
        self._clock = clock
        self._sources = find_sources(layout, without)
        self._hierarchies: dict[Hierarchy, list[Source]] = {}
        for source in self._sources:
            self._hierarchies.setdefault(source.hierarchy, []).append(source)
        self._versions = {source.part: source.hierarchy.version for source in self._sources}
        self._absent: set[tuple[str, bool, str]] = set()  # hierarchy, is it the root, file
        self._budget = Budget()
        self._records: dict[str, Record] = {}
        self._places: dict[str, dict[str, Place]] = {hierarchy.key: {} for hierarchy in self._hierarchies}
        self._generation = -1
        self._tree: Tree | None = None
        self._wanted: Callable[[str], bool] | None = None
        self._touched: Mapping[str, set[int] | None] = {}
        self._walks = Walks(self._hierarchies, self._absent)
        self.unwalked = self._walks.failures
        self._uncertain: list[Place] = []  # whose memory.stat was read in this reading
        self._served: dict[Hierarchy, dict[frozenset[str], list[Place]]] = {}  # places by the files that need not be read
        self._places_generation = 0
        self._equal: dict[Any, Any] = {}
        self._names = BlockNames(sysfs)
        self._pauses: dict[str, tuple[int, int]] = {}  # file: readings left to wait, readings of this pause

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors and forget what was read."""
        for places in getattr(self, "_places", {}).values():
            for place in places.values():
                place.close()
            places.clear()
        self._records = {}
        self._tree = None

    @property
    def kernel_memory_bytes(self) -> int:
        """Kernel memory that the kept descriptors pin, estimated."""
        return self._budget.kernel_memory_bytes

    def read(self, cgroup: Cgroup | str, *, counting: bool = False) -> CgroupStats:
        """Read one cgroup, by its path from the hierarchies' roots. `counting`: it has a blkio rule (nsagent.cgroups.v1.io).

        What ended or is not in a hierarchy has None there.
        """
        path = cgroup if isinstance(cgroup, str) else cgroup.path
        record, budget = Record(path), Budget()
        self._names.look()
        for hierarchy, sources in self._hierarchies.items():
            place = Place.open(hierarchy, record, 0, budget)
            if place is None:
                continue
            try:
                if hierarchy.version == 2:
                    place.look_at_controllers()
                for source in sources:
                    self._read_source(source, {place.served: [place]}, keep=False)
            finally:
                place.close()
        self._settle(record, self._least_limit_above(path), counting=counting)
        return record.stats

    def read_all(self, tree: Tree, wanted: Callable[[str], bool] | None = None) -> dict[str, CgroupStats]:
        """Read every cgroup that `tree` knows; one that ended meanwhile is left out. Gives `tree` the stats to remember.

        `wanted` chooses by path, and one that is equal must answer the same; ancestors are read too where limits are inherited.
        """
        self._follow(tree, wanted)
        self.seconds = {}
        self._touched = tree.take_touched()
        self._look_at_controllers()
        if self._names.look():
            for record in self._records.values():
                record.changed.add("io")
        if self.lane is not None:
            self._walk(self.lane)
        for hierarchy, sources in self._hierarchies.items():
            served = self._served.get(hierarchy)
            if served is None:
                served = self._served[hierarchy] = {}
                for place in self._places[hierarchy.key].values():
                    served.setdefault(place.served, []).append(place)
            for source in sources:
                self._read_source(source, served, keep=True)
        if self.lane is not None and self._uncertain:
            self._walks.confirm(self.lane, self._uncertain)
        self._uncertain.clear()
        found: dict[str, CgroupStats] = {}
        above: dict[str | None, float | None] = {}
        for path, record in self._records.items():
            above[path] = self._settle(record, above.get(Tree.parent(path)))
            if record.wanted and any(record.files.values()):
                found[path] = record.stats
        tree.remember(found)
        return found

    def _follow(self, tree: Tree, wanted: Callable[[str], bool] | None) -> None:
        """Open what is new in `tree`, close what is not in it any more."""
        if tree is self._tree and tree.generation == self._generation and wanted == self._wanted:
            return
        self._generation, self._tree, self._wanted = tree.generation, tree, wanted
        chosen = tree.cgroups.keys() if wanted is None else {path for path in tree.cgroups if wanted(path)}
        needed = set(chosen)
        if wanted is not None and self._versions.get("memory") == 2:
            for path in chosen:
                above = Tree.parent(path)
                while above is not None and above not in needed:
                    needed.add(above)
                    above = Tree.parent(above)
        records: dict[str, Record] = {}
        parents_first = sorted((path for path in tree.cgroups if path in needed), key=lambda path: (path != "/", path.count("/")))
        for path in parents_first:
            cgroup = tree.cgroups[path]
            old = self._records.get(path)
            same = old is not None and all(cgroup.ids.get(key, number) == number for key, number in old.ids.items())
            records[path] = old if old is not None and same else Record(path)
            records[path].ids, records[path].wanted = cgroup.ids, path in chosen
        self._records = records
        self._places_generation += 1
        self._served.clear()
        for hierarchy in self._hierarchies:
            self._follow_hierarchy(hierarchy, records)

    def _follow_hierarchy(self, hierarchy: Hierarchy, records: Mapping[str, Record]) -> None:
        key = hierarchy.key
        places = self._places[key]
        for path, place in list(places.items()):
            record = records.get(path)
            if place.record is not record or record.ids.get(key) != place.id:
                self._drop(place)
        for path, record in records.items():
            number = record.ids.get(key)
            if number is not None and path not in places:
                new = Place.open(hierarchy, record, number, self._budget)
                if new is not None:
                    above = records.get(Tree.parent(path) or "")
                    new.above = above.ids.get(key) if above else None
                    places[path] = new

    def _drop(self, place: Place) -> None:
        """Close a place; what its hierarchy told of the cgroup is told no more."""
        place.close()
        self._places_generation += 1
        self._served.pop(place.hierarchy, None)
        self._places[place.hierarchy.key].pop(place.record.path, None)
        for source in self._hierarchies[place.hierarchy]:
            for name in source.files:
                place.record.forget(source.part, name)

    def _look_at_controllers(self) -> None:
        """See which controllers each v2 cgroup has; files of one that it has lost are not there any more."""
        touched = self._touched.get("v2")
        for place in self._places.get("v2", {}).values():
            if place.look_at_controllers(touched):
                place.told = None
                self._places_generation += 1
                for source in self._hierarchies[place.hierarchy]:
                    if source.controller not in place.controllers:
                        for name in set(source.files) - v2.EVERYWHERE:
                            place.record.forget(source.part, name)

    def _walk(self, lane: Lane) -> None:
        start = self._clock()
        for hierarchy in self._hierarchies:
            if self._walks.take(lane, hierarchy, self._places[hierarchy.key], self._places_generation):
                self._served.pop(hierarchy, None)
        self.seconds["bpf_iter/cgroup"] = self._clock() - start

    def _read_source(self, source: Source, served: Mapping[frozenset[str], list[Place]], *, keep: bool) -> None:
        """Read the files of a source in the places of its hierarchy, save for those that are served (the key)."""
        source.learn_files(place for places in served.values() for place in places if source.controller in place.controllers)
        for name in source.files:
            if keep and self._is_paused(name):
                for place in self._places[source.hierarchy.key].values():
                    place.record.forget(source.part, name)
                continue
            everywhere = source.hierarchy.version == 2 and name in v2.EVERYWHERE
            start = self._clock()
            slowest = self._read_file(
                source,
                name,
                [
                    place
                    for without, places in served.items()
                    if name not in without
                    for place in places
                    if everywhere or source.controller in place.controllers
                ],
                keep=keep,
            )
            if keep:
                took = self._clock() - start
                self.seconds[name] = self.seconds.get(name, 0) + took
                self._judge(name, slowest, took)

    def _read_file(self, source: Source, name: str, places: Iterable[Place], *, keep: bool) -> float:
        """Read one file of all those cgroups; return the time of the slowest, s."""
        part, key, clock = source.part, source.hierarchy.key, self._clock
        absent = [(key, is_root, name) in self._absent for is_root in (False, True)]
        touched = self._touched.get(key) if keep else None
        last, slowest = clock(), 0.0
        for place in places:
            if place.gone or absent[place.is_root]:
                continue
            record = place.record
            files = record.files[part]
            if touched is not None and place.id not in touched and stands_still(name, files.get(name)):
                continue
            if name == STAT and keep:
                if name in files and place.stat is not None and place.stat == place.stat_read:
                    continue
                place.stat_read = None
                self._uncertain.append(place)
            elif is_empty(name, files):
                record.forget(part, name)
                continue
            text = place.read(name, keep=keep)
            now = clock()
            slowest = max(slowest, now - last)
            last = now
            if text is not None:
                if files.get(name) != text:
                    record.put(part, name, self._walks.same(text))
                continue
            record.forget(part, name)
            if not place.lives():
                self._drop(place)
            elif source.teaches and (name in v2.EVERYWHERE or source.controller in place.controllers):
                self._absent.add((key, place.is_root, name))
                absent[place.is_root] = True
        return slowest

    def _is_paused(self, name: str) -> bool:
        left, length = self._pauses.get(name, (0, 0))
        if left:
            self._pauses[name] = (left - 1, length)
        return left > 0

    def _judge(self, name: str, slowest: float, took: float) -> None:
        if slowest > SLOW_READ_S or took > SLOW_FILE_S:
            pause = min(self._pauses.get(name, (0, 1))[1] * 2, _LONGEST_PAUSE)
            self._pauses[name] = (pause, pause)
            self.backoffs[name] = self.backoffs.get(name, 0) + 1
        else:
            self._pauses.pop(name, None)

    def _settle(self, record: Record, above: float | None, *, counting: bool = False) -> float | None:
        """Bring the record's stats up to date; return its effective limit, which bounds its children's. `above`: its parent's."""
        fresh: dict[str, Any] = {}
        for part in record.changed:
            new = self._parse(part, record.files[part], counting=counting)
            if new != record.parsed.get(part):
                record.parsed[part] = new
                fresh[part] = new
        record.changed.clear()
        limit = above
        memory = record.parsed.get("memory")
        if memory is not None and self._versions["memory"] == 2:
            limits = [each for each in (memory.limit_bytes, above) if each is not None]
            limit = min(limits) if limits else None
            if "memory" in fresh or record.limit != limit:
                fresh["memory"] = memory._replace(effective_limit_bytes=limit)
        record.limit = limit
        if fresh:
            record.stats = record.stats._replace(**fresh)
        return limit

    def _parse(self, part: str, files: Mapping[str, bytes], *, counting: bool) -> Any:
        module = v1 if self._versions[part] == 1 else v2
        if part == "io":
            return self._names.rename(v1.io(files, counting=counting) if module is v1 else v2.io(files))
        if part in ("cpu", "memory"):
            return getattr(module, part)(files)
        key = (part, *files.items())  # of the rest there are many alike
        if key not in self._equal:
            if len(self._equal) >= _MOST_EQUAL:
                self._equal.clear()
            self._equal[key] = getattr(module if part == "pids" else parts, part)(files)
        return self._equal[key]

    def _least_limit_above(self, path: str) -> float | None:
        """Return the least limit of a v2 cgroup's ancestors, read now; None where none has one."""
        if self._versions.get("memory") != 2:
            return None
        hierarchy = next(source.hierarchy for source in self._sources if source.part == "memory")
        least, above = None, Tree.parent(path)
        while above is not None:
            directory = hierarchy.directory(above)
            limit = v2.parse_limit(read(f"{directory}/memory.max")) if directory is not None else None
            if limit is not None:
                least = min(limit, math.inf if least is None else least)
            above = Tree.parent(above)
        return least
