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
from nsagent.cgroups.falls import Falls, Kept
from nsagent.cgroups.files import read
from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.pace import BOUNDS_S, Pace
from nsagent.cgroups.places import UNSETTLED, Budget, Place, Record
from nsagent.cgroups.sources import Source, find_sources, is_empty, stands_still
from nsagent.cgroups.stats import CgroupStats, IoStats, MemoryStats
from nsagent.cgroups.tree import Cgroup, Tree
from nsagent.cgroups.walks import STAT, Walks

_SURE_S: Final = 1.0  # no removal of a cgroup takes so long
_MOST_EQUAL: Final = 2048


class Reader:
    """Reads the cgroups of a layout; keeps descriptors, `close` closes them. For one thread at a time.

    `lane`, if any, makes most files needless; `unwalked` has the hierarchies where it failed, and why.
    `pace` has how long files took to read, and which were too slow; `falls` how often which counters fell.
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
        self.pace = Pace()
        self.falls = Falls()
        self._kept: dict[str, Kept] = {}  # by an earlier reader
        self._parents: set[str] = set()  # whose IO falls when a child is removed
        self._fallen: set[str] = set()  # of which something fell
        self._clock = clock
        self._sources = find_sources(layout, without)
        self._hierarchies: dict[Hierarchy, list[Source]] = {}
        for source in self._sources:
            self._hierarchies.setdefault(source.hierarchy, []).append(source)
        self._versions = {source.part: source.hierarchy.version for source in self._sources}
        self._absent: set[tuple[str, bool, str]] = set()  # hierarchy, is it the root, file
        self._lacking: dict[tuple[str, bool, str], tuple[Place, float]] = {}  # what lived and had no such file, and when
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
        self._equal: dict[Any, tuple[dict[str, bytes], Any]] = {}
        self._names = BlockNames(sysfs)

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
            place = Place(hierarchy, record, 0, budget)
            if hierarchy.directory(path) is None or not place.lives():
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
        self.pace.begin()
        self._learn_absent()
        self._touched = tree.take_touched()
        self._look_at_controllers()
        if self._names.look():
            for record in self._records.values():
                record.parse_again("io")
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
        self._settle_all()
        found = {path: record.stats for path, record in self._records.items() if record.wanted and any(record.files.values())}
        tree.remember(found)
        return found

    def _settle_all(self) -> None:
        """Bring the stats of all up to date that something changed of, or of the limit above them."""
        moved: set[str | None] = set()
        for path, record in self._records.items():  # parents first
            if record.changed or record.limit == UNSETTLED or (moved and Tree.parent(path) in moved):
                above = self._records.get(Tree.parent(path) or "")
                limit = self._settle(record, above.limit if above else None)
                if limit != record.limit:
                    record.limit = limit
                    moved.add(path)

    def keep(self) -> dict[str, Kept]:
        """Return, by path, what a reader that comes after this one is to be given by `go_on`.

        v1's blkio is the one that falls by itself, where a child is removed; the others where somebody writes 0.
        """
        kept = {}
        for path in self._parents | self._fallen:
            record = self._records.get(path)
            if record is None:
                continue
            io = record.stats.io
            devices = io.devices if io and (path in self._parents or "io" in record.lost) else {}
            if record.lost or devices:
                kept[path] = Kept(record.ids, {part: dict(losses) for part, losses in record.lost.items()}, devices)
        return kept

    def go_on(self, kept: Mapping[str, Kept]) -> None:
        """Let no counter fall below what an earlier reader showed. Before the first `read_all`."""
        self._kept = dict(kept)

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
            record = records[path] = old if old is not None and same else Record(path)
            record.ids, record.wanted = cgroup.ids, path in chosen
            kept = self._kept.pop(path, None)
            if kept is not None and kept.ids == cgroup.ids:
                record.lost = {part: dict(losses) for part, losses in kept.lost.items()}
                self._fallen.add(path)
                if kept.io and "io" in self._versions:
                    record.stats = record.stats._replace(io=IoStats(kept.io))
                    record.parse_again("io")  # what cannot be read is not shown
        self._records = records
        self._parents = {Tree.parent(path) or "/" for path in records} if self._versions.get("io") == 1 else set()
        self._fallen &= records.keys()
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
            if number is not None and path not in places and hierarchy.directory(path) is not None:
                places[path] = new = Place(hierarchy, record, number, self._budget)
                above = records.get(Tree.parent(path) or "")
                new.above = above.ids.get(key) if above else None

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
                place.told = False
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
        took = self._clock() - start
        self.pace.took("bpf_iter/cgroup", 1, took, [took])

    def _read_source(self, source: Source, served: Mapping[frozenset[str], list[Place]], *, keep: bool) -> None:
        """Read the files of a source in the places of its hierarchy, save for those that are served (the key)."""
        source.learn_files(place for places in served.values() for place in places if source.controller in place.controllers)
        for name in source.files:
            if keep and self.pace.is_paused(name):
                for place in self._places[source.hierarchy.key].values():
                    place.record.forget(source.part, name)
                continue
            everywhere = source.hierarchy.version == 2 and name in v2.EVERYWHERE
            self._read_file(
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

    def _read_file(self, source: Source, name: str, places: Iterable[Place], *, keep: bool) -> None:
        """Read one file of all those cgroups."""
        part, key, clock = source.part, source.hierarchy.key, self._clock
        absent = [(key, is_root, name) in self._absent for is_root in (False, True)]
        touched = self._touched.get(key) if keep else None
        halved = name == STAT and source.hierarchy.version == 1
        undefined = name == "cpu.pressure"
        start = last = clock()
        number, slow = 0, []
        for place in places:
            if place.gone or absent[place.is_root]:
                continue
            record = place.record
            files = record.files.get(part, {})
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
            number += 1
            if now - last > BOUNDS_S[0]:
                slow.append(now - last)
            last = now
            if text is not None:
                if halved:
                    text = v1.with_descendants(text)
                elif undefined and place.is_system:
                    text = v2.without_full(text)
                if files.get(name) != text:
                    record.put(part, name, self._walks.same(text))
                continue
            record.forget(part, name)
            if (key, place.is_root, name) in self._lacking:
                continue
            if not place.lives():
                self._drop(place)
            elif source.teaches and (name in v2.EVERYWHERE or source.controller in place.controllers):
                self._lacking[key, place.is_root, name] = place, now
        if number and keep:
            self.pace.took(name, number, clock() - start, slow)

    def _learn_absent(self) -> None:
        """A file that a cgroup lacks while it lives is asked for no more in any.

        A removal takes the controllers' files away before cgroup.procs, by which a cgroup is seen to live
        (kernel/cgroup/cgroup.c, cgroup_destroy_locked()): so what lacked one must still live when any removal is over.
        """
        now = self._clock()
        for key, (place, when) in list(self._lacking.items()):
            if place.gone or now - when >= _SURE_S:
                del self._lacking[key]
                if not place.gone and not place.has(key[2]) and place.lives():
                    self._absent.add(key)

    def _settle(self, record: Record, above: float | None, *, counting: bool = False) -> float | None:
        """Bring the record's stats up to date; return its effective limit, which bounds its children's. `above`: its parent's."""
        fresh: dict[str, Any] = {}
        for part in record.take_changed():
            old = getattr(record.stats, part)
            new = self._parse(part, record.files, old, counting=counting)
            if new != old or part in record.lost:
                new = self.falls.carry(record.lost, part, old, new, lambda: self._stands(record))
                if record.lost:
                    self._fallen.add(record.path)
            fresh[part] = new
        limit = above
        memory: MemoryStats | None = fresh.get("memory", record.stats.memory)
        if memory is not None and self._versions["memory"] == 2:
            limits = [each for each in (memory.limit_bytes, above) if each is not None]
            limit = min(limits) if limits else None
            if memory.effective_limit_bytes != limit:
                fresh["memory"] = memory._replace(effective_limit_bytes=limit)
        fresh = {part: new for part, new in fresh.items() if new != getattr(record.stats, part)}
        if fresh:
            record.stats = record.stats._replace(**fresh)
        return limit

    def _stands(self, record: Record) -> bool:
        """Tell whether none of a cgroup's directories was made anew under its path: what has no descriptor is read by path."""
        found = (places.get(record.path) for places in self._places.values())
        return all(place.stands() for place in found if place is not None and place.record is record)

    def _parse(self, part: str, found: dict[str, dict[str, bytes]], old: Any, *, counting: bool) -> Any:
        """Parse the files of a part among those `found`; those that are alike in many cgroups are the same from then on."""
        files = found.get(part, {})
        module = v1 if self._versions[part] == 1 else v2
        if part == "io":
            return self._names.rename(v2.io(files) if module is v2 else v1.io(files, self._counted(old, counting=counting)))
        if part in ("cpu", "memory"):
            return getattr(module, part)(files)
        key = (part, *files.items())  # of the rest there are many alike
        if key not in self._equal:
            if len(self._equal) >= _MOST_EQUAL:
                self._equal.clear()
            self._equal[key] = files, getattr(module if part == "pids" else parts, part)(files)
        found[part], stats = self._equal[key]
        return stats

    def _counted(self, old: IoStats | None, *, counting: bool) -> Callable[[str], bool]:
        """Return what tells of a device whether v1 counts its IO in a cgroup: what it has counted once does not become absent."""
        devices = old.devices if old else {}
        return lambda number: counting or self._names.name(number) in devices

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
