"""Where an event comes from: the path of its cgroup, the job or container that this path shows, the program of its process.

The kernel side has numbers, which mean something only while the things live: so they are looked up as events come.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from typing import Final

from nsagent import namespaces
from nsagent.cgroups.layout import Layout
from nsagent.cgroups.paths import Paths
from nsagent.errors import NsagentError
from nsagent.events import Origin, SyscallEvent
from nsagent.namespaces import NamespaceKind

_FIRST_PID: Final = 0xEFFFFFFC  # include/linux/proc_ns.h, PROC_PID_INIT_INO
_FIRST_USER: Final = 0xEFFFFFFD  # PROC_USER_INIT_INO
_USER: Final = list(NamespaceKind).index(NamespaceKind.USER)

# A job's cgroup: nsagent.jobs.new_id.
_JOB: Final = re.compile(r"/nsagent/([A-Za-z0-9_.-]+-[0-9a-f]{8})(?=/|$)")
# .../docker/ID, .../kubepods/.../podUID/ID; docker-ID.scope, cri-containerd-ID.scope, crio-ID.scope, libpod-ID.scope,
# nerdctl-ID.scope; kubepods-podUID.slice:cri-containerd:ID. conmon is who watches a container, and no part of it.
_CONTAINER: Final = re.compile(r"[/:](?:(?!\w+-conmon-)[a-z][a-z-]*-)?([0-9a-f]{64})(?:\.scope)?(?=/|$)")


def job_of(path: str) -> str:
    """Return the id of the innermost job that a cgroup is of, or lies in; empty for none."""
    return next(reversed(_JOB.findall(path)), "")


def container_of(path: str) -> str:
    """Return the id, 64 hexadecimal digits, of the innermost container; empty for none."""
    return next(reversed(_CONTAINER.findall(path)), "")


class Origins:
    """Looks up where events come from. Safe from any thread; 1 us an event whose cgroup is known, 15 us more for the program.

    `path_of` is asked where the kernel does not answer.
    """

    def __init__(self, layout: Layout | None, path_of: Callable[[int], str | None] = lambda cgroup: None) -> None:
        self._paths = Paths(layout.accounting[1]) if layout else None
        self._path_of = path_of
        try:  # events have the host's pids: elsewhere they are others'
            self._reads_proc = namespaces.read_inums("self").get(NamespaceKind.PID) == _FIRST_PID
        except NsagentError:
            self._reads_proc = False

    def path_of(self, cgroup: int) -> str | None:
        """Return the path of an accounting cgroup by its id; None where it ended before anybody asked."""
        return (self._paths.find(cgroup) if self._paths else None) or self._path_of(cgroup)

    def locate(self, event: SyscallEvent) -> SyscallEvent:
        """Return the event with its origin."""
        path = self.path_of(event.cgroup_id) or ""
        exe = _exe(event) if self._reads_proc and event.notable else ""
        inside = None
        if exe and (event.after[_USER] & 0xFFFFFFFF) not in (0, _FIRST_USER):  # 0: not known
            inside = _uid_inside(event.tid, event.uid)
        return dataclasses.replace(event, origin=Origin(path, job_of(path), container_of(path), exe, inside))


def _uid_inside(tid: int, uid: int) -> int | None:
    """Map a host uid into the user namespace of a process by its uid_map, user_namespaces(7); None where it is not in it."""
    try:
        with open(f"/proc/{tid}/uid_map", encoding="ascii") as file:
            for line in file:
                inside, outside, count = map(int, line.split())
                if outside <= uid < outside + count:
                    return uid - outside + inside
    except (OSError, ValueError):
        pass  # it ended: the event goes without
    return None


def _exe(event: SyscallEvent) -> str:
    """Return the program of the caller, unless its name says that it has executed another one since, or it is another process."""
    try:
        exe = os.readlink(f"/proc/{event.tid}/exe")
        with open(f"/proc/{event.tid}/comm", "rb", buffering=0) as file:  # after exe: an exec between the two shows
            comm = file.read(64).removesuffix(b"\n")
    except OSError:  # it ended, it has none (a kernel thread), or hidepid
        return ""
    return exe if comm == event.comm.encode("utf-8", "surrogateescape") else ""
