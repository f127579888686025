"""Namespaces: their eight kinds, their identity, and how to read, relate and enter them.

A namespace is identified by (kind, inum, id), see `NamespaceId`. Every path below /proc is taken from `procfs`, so that a
DaemonSet's /host/proc and recorded trees work; the pids are then those of that /proc's PID namespace.
`nsagent run` imports this module: it stays light.

Sources: man 7 namespaces, man 2 ioctl_ns, man 2 setns, fs/nsfs.c, kernel/nsproxy.c, include/linux/ns_common.h.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import fcntl
import os
import signal
import struct
from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

from nsagent import libc
from nsagent.errors import AccessError, NsagentError, UnsupportedError, UsageError, VanishedError


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


KIND_OF_FLAG: Final = {flag: kind for kind, flag in CLONE_FLAGS.items()}
_ALIASES: Final = {"mount": NamespaceKind.MNT, "network": NamespaceKind.NET}

# include/uapi/linux/nsfs.h: NSIO is 0xb7
_NS_GET_USERNS: Final = 0xB701  # Since Linux kernel commit 6786741dbf99 (in v4.9)
_NS_GET_PARENT: Final = 0xB702
_NS_GET_NSTYPE: Final = 0xB703  # Since Linux kernel commit e5ff5ce6e20e (in v4.11)
_NS_GET_ID: Final = 2 << 30 | 8 << 16 | 0xB7 << 8 | 13  # _IOR(NSIO, 13, __u64); 6.18 has it, 6.12 answers ENOTTY
FIRST_USER: Final = 0xEFFFFFFD  # include/uapi/linux/nsfs.h: USER_NS_INIT_INO, the same since v3.8

# The order of setns(2) where one call cannot take all: user first, whose capabilities the others ask for.
ENTER_ORDER: Final = (NamespaceKind.USER, *(k for k in KINDS if k not in ("user", "mnt")), NamespaceKind.MNT)


class Namespace(NamedTuple):
    """A namespace of this node: who is in it, and what else keeps it alive. See `list_all`."""

    id: NamespaceId
    members: tuple[int, ...]  # pids, ascending; empty where only `pins` hold it
    pins: tuple[str, ...]  # where it is bind-mounted, such as /run/netns/blue


def parse_kinds(text: str) -> frozenset[NamespaceKind]:
    """Parse ``pid,mnt``, ``all`` or ``none``; ``mount`` and ``network`` are other names of mnt and net.

    Raises:
        UsageError: a word that names no kind, an empty text, or ``none`` beside something else.
    """
    hint = f"the kinds are {', '.join(KINDS)}; or all, or none"
    words = [word.strip().lower() for word in text.split(",")]
    kinds: set[NamespaceKind] = set()
    for word in words:
        if word == "all":
            kinds.update(KINDS)
        elif word in _ALIASES:
            kinds.add(_ALIASES[word])
        elif word in CLONE_FLAGS:
            kinds.add(NamespaceKind(word))
        elif word != "none":
            raise UsageError(f"no namespace kind {word!r}" if word else f"a kind is missing in {text!r}", hint=hint)
        elif len(words) > 1:
            raise UsageError(f"'none' stands alone, not in {text!r}", hint=hint)
    return frozenset(kinds)


def _translate(exc: OSError, what: str) -> NsagentError:
    """Make one of nsagent's errors of what open, readlink or ioctl said about the namespace or process `what`."""
    if exc.errno in (errno.ENOENT, errno.ESRCH):
        return VanishedError(what)
    if exc.errno in (errno.EPERM, errno.EACCES):
        return AccessError(f"{what} may not be read: {os.strerror(exc.errno)}", capability="CAP_SYS_PTRACE")
    if exc.errno == errno.ENOTTY:
        return UnsupportedError(what, "not a namespace, or a kernel that cannot say what is asked")
    return NsagentError(f"{what}: {exc.strerror}")


def read_inums(
    pid: int | str, procfs: str = "/proc", *, for_children: bool = False, kinds: Collection[NamespaceKind] = KINDS
) -> dict[NamespaceKind, int]:
    """Return the inode number of each namespace of a process (or ``self``), by readlink: the cheapest look.

    `for_children`: pid and time are then those that the next child will be in (after unshare(2) they differ).
    A kind that this kernel lacks is absent, and so is all but pid and user of a zombie.

    Raises:
        VanishedError: the process ended.
        AccessError: another user's process (ptrace access mode READ_FSCREDS is asked for).
    """
    inums: dict[NamespaceKind, int] = {}
    directory = f"{procfs}/{pid}/ns"
    for kind in kinds:
        try:
            link = os.readlink(f"{directory}/{_entry(kind, for_children)}")
        except OSError as exc:
            if exc.errno == errno.ENOENT:
                continue
            raise _translate(exc, f"process {pid}") from exc
        inums[kind] = _link_inum(link)
    if not inums:
        raise VanishedError(f"process {pid}")
    return inums


def _entry(kind: NamespaceKind, for_children: bool) -> str:
    return f"{kind}_for_children" if for_children and kind in ("pid", "time") else kind


def _link_inum(link: str) -> int:
    return int(link[link.index("[") + 1 : -1])  # "pid:[4026531836]"


def _ns_id(fd: int) -> int:
    """Return the low 32 bits of ns_common.ns_id, or 0 where the kernel has none."""
    answer = bytearray(8)
    try:
        fcntl.ioctl(fd, _NS_GET_ID, answer)
    except OSError as exc:
        if exc.errno in (errno.ENOTTY, errno.EINVAL):
            return 0
        raise
    return int(struct.unpack("=Q", answer)[0]) & 0xFFFFFFFF


def kind_of(fd: int) -> NamespaceKind | None:
    """Return which kind of namespace a descriptor stands for; None where it is no namespace."""
    try:
        return KIND_OF_FLAG.get(fcntl.ioctl(fd, _NS_GET_NSTYPE))
    except OSError:
        return None


def identify(target: int | str) -> NamespaceId:
    """Return the identity of the namespace behind a descriptor or a path such as /proc/1/ns/net or /run/netns/blue.

    `id` is 0 where the kernel has no NS_GET_ID: it then does not tell successive namespaces under one inum apart.

    Raises:
        VanishedError: the process or the path is gone. AccessError: see `read_inums`.
        UnsupportedError: not a namespace.
    """
    what = target if isinstance(target, str) else f"descriptor {target}"
    try:
        if isinstance(target, int):
            kind = KIND_OF_FLAG[fcntl.ioctl(target, _NS_GET_NSTYPE)]
            return NamespaceId(kind, os.fstat(target).st_ino, _ns_id(target))
        fd = os.open(target, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return identify(fd)
        finally:
            os.close(fd)
    except OSError as exc:
        raise _translate(exc, what) from exc


def of_process(pid: int | str, procfs: str = "/proc", *, for_children: bool = False) -> dict[NamespaceKind, NamespaceId]:
    """Return the identity of each namespace of a process. Absent kinds and errors as in `read_inums`."""
    found: dict[NamespaceKind, NamespaceId] = {}
    for kind in read_inums(pid, procfs, for_children=for_children):
        try:
            found[kind] = identify(f"{procfs}/{pid}/ns/{_entry(kind, for_children)}")
        except VanishedError:
            if not os.path.isdir(f"{procfs}/{pid}/ns"):
                raise VanishedError(f"process {pid}") from None
    return found


def _related(fd: int, request: int) -> NamespaceId | None:
    try:
        relative = fcntl.ioctl(fd, request)
    except OSError as exc:
        # EPERM: the first one has no relative, or it lies outside of the caller's own; the kernel says no more
        if exc.errno == errno.EPERM:
            return None
        raise _translate(exc, f"descriptor {fd}") from exc
    try:
        return identify(relative)
    finally:
        os.close(relative)


def parent(fd: int) -> NamespaceId | None:
    """Return the parent of the pid or user namespace behind `fd`; None for the first one, or if the caller may not see it.

    Raises:
        UsageError: a kind without parents (the kernel's EINVAL).
    """
    kind = identify(fd).kind
    if kind not in ("pid", "user"):
        raise UsageError(f"{kind} namespaces have no parents", hint="only pid and user namespaces nest")
    return _related(fd, _NS_GET_PARENT)


def owner(fd: int) -> NamespaceId | None:
    """Return the user namespace that owns the one behind `fd` (of a user namespace: its parent); None as in `parent`."""
    return _related(fd, _NS_GET_USERNS)


def lineage(fd: int) -> tuple[int, ...]:
    """Return the inums of the pid or user namespace behind `fd` and of those above it, as far as the caller may see.

    Raises:
        UsageError: a kind without parents, or no namespace. NsagentError: no descriptor is left.
    """
    fds = [fd]
    try:
        while True:
            fds.append(fcntl.ioctl(fds[-1], _NS_GET_PARENT))
    except OSError as exc:
        if exc.errno in (errno.EINVAL, errno.ENOTTY):
            raise UsageError(f"descriptor {fd} has no parents", hint="only pid and user namespaces nest") from exc
        if exc.errno != errno.EPERM:  # that is: the first one, or one whose parent lies outside of the caller's own
            raise _translate(exc, f"descriptor {fd}") from exc
        return tuple(os.fstat(each).st_ino for each in fds)
    finally:
        for each in fds[1:]:
            os.close(each)


def enter(pid: int, kinds: Iterable[NamespaceKind], *, pidfd: int | None = None, procfs: str = "/proc") -> None:
    """Move the calling thread into those namespaces of a process; pid and time hold for its next children (time also for itself).

    One setns(2) on a pidfd takes all kinds or none, in the kernel's order; kernels before v5.8 refuse that, and one call a
    kind is made, user first. `pidfd` pins the process where the caller has one; `pid` must be the same process. The
    user namespace that one is in already is left out: the kernel refuses it.

    Raises:
        VanishedError: the process ended.
        AccessError: CAP_SYS_ADMIN is missing here or in the namespace's owner.
        UsageError: the caller has several threads or shares its file-system state (user, mnt and time refuse that).
        UnsupportedError: this kernel lacks the kind.
    """
    wanted = set(kinds)
    here, there = read_inums("self"), read_inums(pid, procfs)
    for kind in wanted - there.keys():
        raise UnsupportedError(f"{kind} namespace of process {pid}", "this kernel has none, or the process is a zombie")
    if here.get(NamespaceKind.USER) == there.get(NamespaceKind.USER):
        wanted.discard(NamespaceKind.USER)
    if not wanted:
        return
    try:
        target = os.pidfd_open(pid) if pidfd is None and procfs == "/proc" else pidfd
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise _translate(exc, f"process {pid}") from exc
        target = None
    try:
        if target is None or not _enter_pidfd(target, pid, wanted):
            _enter_each(pid, wanted, procfs, target)
    finally:
        if target is not None and target != pidfd:
            os.close(target)


def _enter_pidfd(pidfd: int, pid: int, kinds: set[NamespaceKind]) -> bool:
    """Join all at once; False where this kernel takes no pidfd (since Linux kernel commit 303cc571d107, in v5.8)."""
    try:
        libc.setns(pidfd, sum(kind.flag for kind in kinds))
    except OSError as exc:
        if exc.errno == errno.EINVAL:  # no pidfd here, or what the one by one calls will name
            return False
        raise _refused(exc, pid, kinds) from exc
    return True


def _enter_each(pid: int, kinds: set[NamespaceKind], procfs: str, pidfd: int | None) -> None:
    fds: dict[NamespaceKind, int] = {}
    try:
        for kind in ENTER_ORDER:  # opened before the first is joined: /proc may be another one after that
            if kind in kinds:
                try:
                    fds[kind] = os.open(f"{procfs}/{pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC)
                except OSError as exc:
                    raise _translate(exc, f"process {pid}") from exc
        if pidfd is not None:
            try:
                signal.pidfd_send_signal(pidfd, 0)  # it lives: what was opened is its, not that of a later one with its pid
            except OSError as exc:
                raise _translate(exc, f"process {pid}") from exc
        for kind, fd in fds.items():
            try:
                libc.setns(fd, kind.flag)
            except OSError as exc:
                raise _refused(exc, pid, {kind}) from exc
    finally:
        for fd in fds.values():
            os.close(fd)


def _refused(exc: OSError, pid: int, kinds: set[NamespaceKind]) -> NsagentError:
    what = f"cannot enter the {','.join(sorted(kinds))} namespace of process {pid}"
    if exc.errno == errno.ESRCH:
        return VanishedError(f"process {pid}")
    if exc.errno in (errno.EPERM, errno.EACCES):
        return AccessError(f"{what}: {os.strerror(exc.errno)}", capability="CAP_SYS_ADMIN")
    if exc.errno in (errno.EINVAL, errno.EUSERS):
        return UsageError(f"{what}: {exc.strerror}", hint="user, mnt and time are for a process with one thread")
    return NsagentError(f"{what}: {exc.strerror}")


def walk_pids(procfs: str = "/proc") -> Iterator[int]:
    """Yield the pids of a /proc, ascending."""
    try:
        names = os.listdir(procfs)
    except OSError as exc:
        raise _translate(exc, procfs) from exc
    yield from sorted(int(name) for name in names if name.isdecimal())


def read_pins(procfs: str = "/proc", readers: Iterable[int | str] = ("1", "self")) -> dict[tuple[NamespaceKind, int], list[str]]:
    """Return where namespaces are bind-mounted, by kind and inum, as those processes see it: process 1 and the caller.

    `ip netns` and container engines keep namespaces alive so; /run/netns is one such place.
    """
    pins: dict[tuple[NamespaceKind, int], list[str]] = {}
    lines: dict[bytes, None] = {}
    for reader in readers:
        with contextlib.suppress(OSError), open(f"{procfs}/{reader}/mountinfo", "rb") as file:
            lines.update(dict.fromkeys(file.read().splitlines()))
    for line in lines:
        left, _, right = line.partition(b" - ")
        fields = left.split(b" ")
        if not right.startswith(b"nsfs ") or len(fields) < 5:
            continue
        name, _, inum = os.fsdecode(fields[3]).partition(":[")
        if name in CLONE_FLAGS and inum[:-1].isdecimal():
            pins.setdefault((NamespaceKind(name), int(inum[:-1])), []).append(_unescape(fields[4]))
    return pins


def _unescape(field: bytes) -> str:
    for code in (b" ", b"\t", b"\n", b"\\"):  # proc_pid_mountinfo(5); the backslash last
        field = field.replace(b"\\%03o" % code[0], code)
    return os.fsdecode(field)


def list_all(procfs: str = "/proc") -> list[Namespace]:
    """Return every namespace that a readable process is in, or that is bind-mounted; ordered by kind and inum.

    Looks at processes, not at each of their threads, and does not see what only an open descriptor holds. Processes that
    end meanwhile or may not be read are left out.
    """
    members: dict[tuple[NamespaceKind, int], list[int]] = {}
    for pid in walk_pids(procfs):
        try:
            inums = read_inums(pid, procfs)
        except (VanishedError, AccessError):
            continue
        for key in inums.items():
            members.setdefault(key, []).append(pid)
    pins = read_pins(procfs)
    found = []
    for kind, inum in sorted(members.keys() | pins.keys()):
        pids, paths = members.get((kind, inum), []), pins.get((kind, inum), [])
        places = [f"{procfs}/{pid}/ns/{kind}" for pid in pids] + paths + [f"{procfs}/1/root{path}" for path in paths]
        found.append(Namespace(_identify_any(kind, inum, places), tuple(pids), tuple(paths)))
    return found


def _identify_any(kind: NamespaceKind, inum: int, places: list[str]) -> NamespaceId:
    """Ask the first place that is still there; a place that holds another namespace by now does not count."""
    for place in places:
        try:
            identity = identify(place)
        except NsagentError:
            continue
        if identity[:2] == (kind, inum):
            return identity
    return NamespaceId(kind, inum, 0)
