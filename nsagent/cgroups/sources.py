"""Which files of which hierarchy feed which part of CgroupStats, on this host."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping
from typing import Final

from nsagent.cgroups import parts, v1, v2
from nsagent.cgroups.files import read
from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.places import Place

# A part, and v1's controllers for it; v2's has the part's name, save for what is there without a controller.
_PARTS: Final = {
    "cpu": ("cpuacct", "cpu"),
    "memory": ("memory",),
    "io": ("blkio",),
    "pids": ("pids",),
    "cpuset": ("cpuset",),
    "hugetlb": ("hugetlb",),
    "rdma": ("rdma",),
    "misc": ("misc",),
    "pressure": (),
    "state": ("freezer",),
}
_WITHOUT_CONTROLLER: Final = frozenset({"cpu", "pressure", "state"})

_MEMORY_STAT: Final = frozenset({"memory.stat", "memory.kmem.usage_in_bytes"})  # v1 has memory by type in both
_STANDING: Final = v1.SETTINGS | v2.SETTINGS | {"cgroup.stat"}


def is_empty(name: str, files: Mapping[str, bytes]) -> bool:
    """Tell by the other files of its part that a file is one without any number: of v1's two of blkio the second lists the
    devices of the first."""
    first, second = v1.FILES["blkio"]
    return name == second and files.get(first, b"").startswith(b"Total ")


def stands_still(name: str, text: bytes | None) -> bool:
    """Tell whether a file must be as it was read last where nobody wrote in its directory, and no child began or ended.

    cgroup.stat of a cgroup without descendants, living or dying, is such a file.
    """
    if text is None or name not in _STANDING:
        return False
    return name != "cgroup.stat" or (text.startswith(b"nr_descendants 0\n") and b"\nnr_dying_descendants 0\n" in text)


class Source:
    """The files of one controller that feed one part of CgroupStats.

    `teaches`: a file that a living cgroup lacks is one that this kernel lacks. Pressure can be off in single cgroups.
    """

    __slots__ = ("controller", "files", "hierarchy", "part")

    def __init__(self, hierarchy: Hierarchy, part: str, controller: str, files: tuple[str, ...]) -> None:
        self.hierarchy = hierarchy
        self.part = part
        self.controller = controller
        self.files = files

    @property
    def teaches(self) -> bool:
        """Tell whether what one cgroup lacks, all lack."""
        return self.part != "pressure"

    def learn_files(self, places: Iterable[Place]) -> None:
        """Find the sizes of huge pages there are files of; v2's root has none, so look into another cgroup."""
        if self.part == "hugetlb" and not self.files:
            place = next((place for place in places if self.hierarchy.version == 1 or not place.is_root), None)
            self.files = parts.hugetlb_files(place.list()) if place is not None else ()


def find_sources(layout: Layout, without: Collection[str] = ()) -> list[Source]:
    """Return what can be read here, `without` the parts of these names; "memory-stat" is the file that costs most of memory's."""
    found: list[Source] = []
    for part, controllers in _PARTS.items():
        if part in without:
            continue
        legacy = [
            Source(hierarchy, part, controller, v1.FILES[controller])
            for controller in controllers
            for hierarchy in layout.hierarchies
            if hierarchy.version == 1 and controller in hierarchy.controllers
        ]
        found += legacy
        has = layout.v2 is not None and (part in _WITHOUT_CONTROLLER or part in layout.v2.controllers)
        if layout.v2 is not None and has and (part == "state" or not legacy):
            files = v2.FILES[part]
            if part == "pressure":  # psi=0 and kernels without it have none; irq's needs IRQ_TIME_ACCOUNTING
                files = tuple(name for name in files if read(os.path.join(layout.procfs, "pressure", name.partition(".")[0])))
            if files or part == "hugetlb":
                found.append(Source(layout.v2, part, part, files))
    if "memory-stat" in without:
        for source in found:
            source.files = tuple(name for name in source.files if name not in _MEMORY_STAT)
    return found
