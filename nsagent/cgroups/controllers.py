"""Which controllers the kernel knows, mounted or not, and where: what `lssubsys -am` of libcgroup told.

Sources: man 7 cgroups (/proc/cgroups, which need not list what v1 cannot mount); cgroup.controllers of the v2 root.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from nsagent.cgroups.files import read_text
from nsagent.cgroups.layout import Layout

_V2_NAMES = {"blkio": "io"}


class Controller(NamedTuple):
    """`name` is that of the version it is mounted as. `version` and `mountpoint` are None and "" where it is mounted nowhere.

    `cgroups`: how many its hierarchy has, descendants of all mounts; None where the kernel does not say.
    `enabled`: not switched off at boot (cgroup_disable=).
    """

    name: str
    version: int | None
    mountpoint: str
    cgroups: int | None
    enabled: bool = True


def read_controllers(layout: Layout) -> list[Controller]:
    """Return every controller, those that are mounted first, hierarchy by hierarchy; never raises."""
    known = _read_known(f"{layout.procfs}/cgroups")
    found = []
    for hierarchy in layout.hierarchies:
        for name in sorted(hierarchy.controllers):
            cgroups, enabled = known.pop(name if name in known else _v1_name(name), (None, True))
            found.append(Controller(name, hierarchy.version, hierarchy.mountpoint, cgroups, enabled))
    return found + [Controller(name, None, "", None, enabled) for name, (_, enabled) in sorted(known.items())]


def _v1_name(name: str) -> str:
    return next((v1 for v1, v2 in _V2_NAMES.items() if v2 == name), name)


def _read_known(path: str) -> dict[str, tuple[int | None, bool]]:
    """Return, by name, the number of cgroups and whether it is enabled; empty where there is no such file."""
    known: dict[str, tuple[int | None, bool]] = {}
    if os.path.exists(path):
        for line in read_text(path).splitlines():
            words = line.split()
            if len(words) == 4 and not line.startswith("#") and words[2].isdigit():
                known[words[0]] = (int(words[2]), words[3] == "1")
    return known
