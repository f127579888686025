"""Which controllers the kernel knows, mounted or not, and where: what `lssubsys -am` of libcgroup told.

Sources: man 7 cgroups (/proc/cgroups, which need not list what v1 cannot mount); cgroup.controllers of the v2 root.
How many cgroups there are is counted: /proc/cgroups has those too that were removed and still are charged for something.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from nsagent.cgroups.files import read_text
from nsagent.cgroups.layout import Layout
from nsagent.cgroups.tree import walk

_V2_NAMES = {"blkio": "io"}


class Controller(NamedTuple):
    """`name` is that of the version it is mounted as. `version` and `mountpoint` are None and "" where it is mounted nowhere.

    `cgroups`: how many are there, the mount's own among them; None where it is mounted nowhere.
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
        cgroups = sum(1 for _ in walk(hierarchy))
        for name in sorted(hierarchy.controllers):
            enabled = known.pop(name if name in known else _v1_name(name), True)
            found.append(Controller(name, hierarchy.version, hierarchy.mountpoint, cgroups, enabled))
    return found + [Controller(name, None, "", None, enabled) for name, enabled in sorted(known.items())]


def _v1_name(name: str) -> str:
    return next((v1 for v1, v2 in _V2_NAMES.items() if v2 == name), name)


def _read_known(path: str) -> dict[str, bool]:
    """Return, by name, whether it is enabled; empty where there is no such file."""
    known: dict[str, bool] = {}
    if os.path.exists(path):
        for line in read_text(path).splitlines():
            words = line.split()
            if len(words) == 4 and not line.startswith("#"):
                known[words[0]] = words[3] == "1"
    return known
