"""What walks of the hierarchies (nsagent.cgroups.core.Lane) say of the places of a reader, put where file contents go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final

from nsagent.cgroups import core, v2
from nsagent.cgroups.core import Lane
from nsagent.cgroups.layout import Hierarchy
from nsagent.cgroups.places import Place
from nsagent.cgroups.sources import Source
from nsagent.errors import NsagentError

if TYPE_CHECKING:
    from nsagent.cgroups.core import Walk
    from nsagent.kernel.lane import Core

STAT: Final = "memory.stat"
_LONGEST_SAME: Final = 64  # bytes of a text that is worth looking for in another cgroup
_MOST_SAME: Final = 8192


class Walks:
    """Remembers which of the files that a walk stands for this kernel has at all. `failures`: hierarchies without walks, and why.

    `absent` is the reader's: (hierarchy, is it the root, file) of what no cgroup has.
    """

    def __init__(self, sources: Mapping[Hierarchy, list[Source]], absent: set[tuple[str, bool, str]]) -> None:
        self.failures: dict[str, str] = {}
        self._sources = {
            hierarchy: {name: source for source in found for name in source.files}
            for hierarchy, found in sources.items()
            if core.CONTROLLERS & {source.controller for source in found}
        }
        self._absent = absent
        self._present: set[tuple[str, str]] = set()
        self._served: dict[frozenset[str], frozenset[str]] = {}
        self._texts: dict[bytes, bytes] = {}
        self._last: dict[Hierarchy, tuple[bytes, bytes, int, list[Place | None]]] = {}

    def take(self, lane: Lane, hierarchy: Hierarchy, places: Mapping[str, Place], generation: int) -> bool:
        """Walk a hierarchy: what that says needs no file. A walk that fails is made up for by files.

        `generation` rises when places come or go. Tell whether any place may be served otherwise than after the last walk.
        """
        sources = self._sources.get(hierarchy)
        if sources is None:
            return False
        try:
            walk = lane.read(hierarchy.mountpoint)
        except NsagentError as error:
            self.failures[hierarchy.key] = str(error)
            self._last.pop(hierarchy, None)
            for place in places.values():
                place.leave()
            return True
        ids, digests, known, order = self._last.get(hierarchy, (b"", b"", -1, []))
        before: Sequence[int | None] = _words(digests)
        if ids != walk.ids or known != generation:
            order = self._order(walk, places)
            if ids != walk.ids:
                of = dict(zip(_words(ids), before, strict=True))
                before = [of.get(number) for number in _words(walk.ids)]
        elif digests == walk.digests:
            return False
        for index, (each, digest, old) in enumerate(zip(order, _words(walk.digests), before, strict=True)):
            if each is not None and (digest != old or not each.told):
                each.told = True
                self._take(walk.decode(index), each, sources)
        self._last[hierarchy] = (walk.ids, walk.digests, generation, order)
        return True

    @staticmethod
    def _order(walk: Walk, places: Mapping[str, Place]) -> list[Place | None]:
        """Return the places in the order of a walk; the root's files differ from its counters, and a place may not be met."""
        by_id = {place.id: place for place in places.values() if not place.is_root}
        order = [by_id.pop(number, None) for number in _words(walk.ids)]
        for place in by_id.values():
            place.leave()
        return order

    def _take(self, found: Core, place: Place, sources: Mapping[str, Source]) -> None:
        place.stat = found.memory_stat
        served = []
        for name, text in core.files_of(found, place.hierarchy.version).items():
            source = sources.get(name)
            if source is not None and self._has(place, source, name):
                served.append(name)
                place.record.put(source.part, name, self.same(text))
        key = frozenset(served)
        place.served = self._served.setdefault(key, key)

    def same(self, text: bytes) -> bytes:
        """Return an equal text that is kept already, if any: most cgroups have the limits and the zeros of others."""
        if len(text) > _LONGEST_SAME:
            return text
        if len(self._texts) >= _MOST_SAME:
            self._texts.clear()
        return self._texts.setdefault(text, text)

    def _has(self, place: Place, source: Source, name: str) -> bool:
        """Tell whether a cgroup has a file: the kernel counts also where it shows none, as without accounting of swap."""
        if source.controller not in place.controllers and not (place.hierarchy.version == 2 and name in v2.EVERYWHERE):
            return False
        key = place.hierarchy.key
        if (key, name) in self._present or not source.teaches:
            return True
        if (key, False, name) in self._absent:
            return False
        if place.has(name):
            self._present.add((key, name))
            return True
        if place.lives():
            self._absent.add((key, False, name))
        return False

    @staticmethod
    def confirm(lane: Lane, places: Sequence[Place]) -> None:
        """Note what memory.stat went by when it was read in these places of one hierarchy: that which it was before and after."""
        try:
            walk = lane.read(places[0].hierarchy.mountpoint)
        except NsagentError:
            return
        index = {number: at for at, number in enumerate(_words(walk.ids))}
        for place in places:
            at = index.get(place.id)
            after = walk.decode(at).memory_stat if at is not None else None
            place.stat_read = after if after == place.stat else None


def _words(text: bytes) -> memoryview:
    """Return the u64 in it."""
    return memoryview(text).cast("Q")
