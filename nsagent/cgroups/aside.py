"""Make room in a delegated cgroup of v2: what holds processes can pass no controller on to a job.

Source: "No Internal Process Constraint" and "Delegation" in Documentation/admin-guide/cgroup-v2.rst. As docker's image for docker
in docker does it, all processes move into a child; what is limited in the cgroup above holds for them as before.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from nsagent.cgroups.files import read_text, write
from nsagent.cgroups.layout import Layout

NAME: Final = "nsagent.aside"
_TRIES: Final = 100  # some fork meanwhile


def above(path: str) -> str:
    """Return the cgroup where jobs of a process in `path` go: that above, if this process stepped aside before."""
    return path.removesuffix(f"/{NAME}")


def step_aside(layout: Layout, path: str) -> None:
    """Move every process of the v2 cgroup `path`, which is our own and was delegated to us, into its child NAME.

    Nothing is done where we are not in it. Where another's process stays it stays busy.
    """
    v2 = layout.v2
    if v2 is None or not v2.controllers or not path or layout.own_cgroup().get(v2.key) != f"/{path}":
        return
    place = f"{v2.mountpoint}/{path}"
    with contextlib.suppress(OSError):
        os.makedirs(f"{place}/{NAME}", exist_ok=True)
        for _ in range(_TRIES):
            pids = read_text(f"{place}/cgroup.procs").split()
            if not pids:
                return
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    write(f"{place}/{NAME}/cgroup.procs", pid)
