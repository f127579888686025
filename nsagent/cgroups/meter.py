"""Two figures of one cgroup, read over and over through descriptors that are kept: CPU time and memory."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from nsagent.cgroups.files import open_file, read_kept
from nsagent.cgroups.layout import Hierarchy
from nsagent.cgroups.v2 import parse_flat, parse_number

# (controller, version, file), the best first. cpu.stat of v2 is there without its controller too.
_CPU: Final = (("cpuacct", 1, "cpuacct.usage"), ("", 2, "cpu.stat"))
_MEMORY: Final = (("memory", 1, "memory.usage_in_bytes"), ("memory", 2, "memory.current"))


class _File(NamedTuple):
    name: str
    fd: int


class Meter:
    """Reads a cgroup that exists; a figure that no hierarchy has is None. `close` it before the cgroup is removed."""

    def __init__(self, places: Mapping[Hierarchy, str]) -> None:
        self._cpu = _open(places, _CPU)
        self._memory = _open(places, _MEMORY)

    def cpu_ns(self) -> int | None:
        """Return the CPU time used so far, descendants included; it lags by up to a tick for what is running."""
        if self._cpu is None:
            return None
        text = read_kept(self._cpu.fd, self._cpu.name)
        if self._cpu.name == "cpuacct.usage":
            return parse_number(text)
        usec = parse_flat(text).get("usage_usec")
        return None if usec is None else usec * 1000

    def memory_bytes(self) -> int | None:
        """Return the memory charged now, file pages too."""
        return None if self._memory is None else parse_number(read_kept(self._memory.fd, self._memory.name))

    def close(self) -> None:
        """Close the descriptors."""
        for file in (self._cpu, self._memory):
            if file is not None:
                os.close(file.fd)
        self._cpu = self._memory = None


def _open(places: Mapping[Hierarchy, str], files: tuple[tuple[str, int, str], ...]) -> _File | None:
    for controller, version, name in files:
        for hierarchy, place in places.items():
            if hierarchy.version == version and (not controller or controller in hierarchy.controllers):
                fd = open_file(f"{place}/{name}", None)
                if fd is not None:
                    return _File(name, fd)
    return None
