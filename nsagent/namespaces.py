"""Namespaces: their eight kinds, their identity, and how to read and enter them.

Sources: man 7 namespaces, man 2 ioctl_ns, fs/nsfs.c, include/linux/ns_common.h.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

from nsagent import libc


class NamespaceKind(enum.StrEnum):
    """The kinds, in the order every table of nsagent has them (alphabetical; `bpf/nsagent.h` has the same)."""

    CGROUP = "cgroup"
    IPC = "ipc"
    MNT = "mnt"
    NET = "net"
    PID = "pid"
    TIME = "time"
    USER = "user"
    UTS = "uts"

    @property
    def flag(self) -> int:
        """The CLONE_NEW* flag of this kind."""
        return CLONE_FLAGS[self]


CLONE_FLAGS: dict[NamespaceKind, int] = {
    NamespaceKind.CGROUP: libc.CLONE_NEWCGROUP,
    NamespaceKind.IPC: libc.CLONE_NEWIPC,
    NamespaceKind.MNT: libc.CLONE_NEWNS,
    NamespaceKind.NET: libc.CLONE_NEWNET,
    NamespaceKind.PID: libc.CLONE_NEWPID,
    NamespaceKind.TIME: libc.CLONE_NEWTIME,
    NamespaceKind.USER: libc.CLONE_NEWUSER,
    NamespaceKind.UTS: libc.CLONE_NEWUTS,
}

KINDS: tuple[NamespaceKind, ...] = tuple(NamespaceKind)


class NamespaceId(NamedTuple):
    """Which namespace: `inum` alone is reused at once, so `id` tells successive ones apart.

    `id` is the low 32 bits of the kernel's ns_common.ns_id where it has one, else a birth generation counted in BPF;
    0 is "the first seen under this inum". The kernel side packs both as ``id << 32 | inum``.
    """

    kind: NamespaceKind
    inum: int
    id: int
