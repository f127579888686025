"""What the kernel itself reports of one namespace, read in the files of a member: traffic, sockets, mounts, offsets, depth.

A namespace is read at most once a `read`, through its oldest known member, which must be in it before and after. That costs
some 110 us a net namespace: so a reading takes `budget_s` and no more; whose last is the oldest come first, others keep theirs.
Nothing is kept open: a descriptor below /proc/PID/net would keep the namespace alive. Nothing is read that a container can put in
place of the kernel's: only this /proc, never a member's root.

Sources: man 5 proc_pid_net, proc_pid_mountinfo, proc_sys_user; man 7 time_namespaces; net/core/net-procfs.c; net/ipv4/proc.c;
net/netfilter/nf_conntrack_standalone.c; kernel/time/namespace.c.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping, Set
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from nsagent import namespaces
from nsagent.errors import NsagentError, ParseError, VanishedError
from nsagent.namespaces import KINDS, NamespaceId, NamespaceKind

BUDGET_S: Final = 0.010
PIDS_EVERY_S: Final = 15.0
KEPT_S: Final = 45.0  # how long a last reading stands in while no member is known: three rounds of looking for one
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})
READ: Final = frozenset({NamespaceKind.NET, NamespaceKind.MNT, NamespaceKind.PID, NamespaceKind.USER, NamespaceKind.TIME})


class Device(NamedTuple):
    """Traffic of a network device, in bytes and packets, since it was made."""

    receive_bytes: int
    receive_packets: int
    receive_errors: int
    receive_drops: int
    transmit_bytes: int
    transmit_packets: int
    transmit_errors: int
    transmit_drops: int


class NamespaceFigures(NamedTuple):
    """One reading of one namespace; a field that its kind does not have, or this kernel does not report, is None or empty.

    Device names are bytes of whoever made the device, undecodable ones as surrogates. `clock_offsets` are seconds by clock.
    """

    devices: Mapping[str, Device] = _NONE
    tcp_retransmitted_segments: int | None = None
    sockets: Mapping[str, int] = _NONE
    conntrack_entries: int | None = None
    mounts: int | None = None
    highest_pid: int | None = None
    userns_depth: int | None = None
    clock_offsets: Mapping[str, float] = _NONE


class NodeFigures(NamedTuple):
    """One reading. `limits`: how many namespaces of a kind the agent's user namespace may hold."""

    namespaces: Mapping[NamespaceId, NamespaceFigures] = MappingProxyType({})
    limits: Mapping[NamespaceKind, int] = MappingProxyType({})


def parse_devices(text: bytes) -> dict[str, Device]:
    """Parse /proc/PID/net/dev. A name may hold any byte but blanks, a slash and a colon."""
    found = {}
    for number, line in enumerate(text.split(b"\n")[2:-1], 3):  # not splitlines: it knows more line ends than the kernel
        name, _, rest = line.partition(b":")
        try:
            words = list(map(int, rest.split()))
            found[os.fsdecode(name.lstrip(b" "))] = Device(*words[:4], *words[8:12])
        except (ValueError, TypeError) as error:
            raise ParseError(f"not a device's line: {error}", path="net/dev", line=number) from error
    return found


def parse_retransmitted(text: bytes) -> int | None:
    """Parse /proc/PID/net/snmp for the TCP segments that were sent again, IPv4's and IPv6's."""
    names, values = [line.split() for line in text.splitlines() if line.startswith(b"Tcp:")] or ((), ())
    return next((int(value) for name, value in zip(names, values, strict=True) if name == b"RetransSegs"), None)


def parse_sockets(text: bytes) -> dict[str, int]:
    """Parse /proc/PID/net/sockstat or sockstat6: sockets in use by protocol (tcp, udp, raw; tcp6, ...), TIME-WAIT not counted."""
    found = {}
    for line in text.splitlines():
        protocol, _, rest = line.partition(b": inuse ")
        if rest and not protocol.startswith(b"FRAG"):  # those are packets that wait for the rest of them
            found[protocol.decode("ascii").lower()] = int(rest.split()[0])
    return found


def parse_conntrack(text: bytes) -> int | None:
    """Parse /proc/PID/net/stat/nf_conntrack: a line a CPU, each with the number of the whole namespace, in hexadecimal."""
    lines = text.splitlines()
    return int(lines[1].split()[0], 16) if len(lines) > 1 and lines[0].startswith(b"entries") else None


def parse_offsets(text: bytes) -> dict[str, float]:
    """Parse /proc/PID/timens_offsets: seconds (which may be below 0) and nanoseconds (which may not) by clock."""
    lines = (line.split() for line in text.decode("ascii").splitlines())
    return {clock: int(seconds) + int(nanoseconds) / 1e9 for clock, seconds, nanoseconds in lines}


class _Known(NamedTuple):
    """What was read of a namespace: through whom it was tried last and when, when that was of use, and each file's bytes with
    what they say."""

    pid: int
    tried_at: float
    read_at: float
    figures: NamespaceFigures | None
    files: dict[str, tuple[bytes, Any]]


_UNKNOWN: Final = _Known(0, float("-inf"), float("-inf"), None, {})


class NamespaceReader:
    """Reads the figures of namespaces. One `read` at a time."""

    def __init__(
        self,
        procfs: str = "/proc",
        *,
        budget_s: float = BUDGET_S,
        clock: Callable[[], float] = time.monotonic,
        kinds: frozenset[NamespaceKind] = READ,
    ) -> None:
        """`kinds`: of which kinds namespaces are read; the limits too, if of another than net."""
        self._kinds = kinds
        self._procfs = procfs
        self._budget_s = budget_s
        self._clock = clock
        self._known: dict[NamespaceId, _Known] = {}
        self._pids = _Pids(procfs)
        self._pids_at: float | None = None

    def read(self, members: Mapping[NamespaceId, int]) -> NodeFigures:
        """Return the figures of those namespaces, given a member's pid of each. What may not be read is absent.

        A namespace that is not in `members` is forgotten.
        """
        known = {namespace: self._known.get(namespace, _UNKNOWN) for namespace in members if namespace.kind in self._kinds}
        highest = self._highest_pids({namespace.inum for namespace in known if namespace.kind is NamespaceKind.PID})
        start = self._clock()
        for namespace in sorted(known, key=lambda namespace: known[namespace].tried_at):
            if (now := self._clock()) - start >= self._budget_s:
                break
            known[namespace] = self._renew(namespace, members[namespace], known[namespace], highest, now)
        self._known = known
        limits = self._limits() if self._kinds - {NamespaceKind.NET} else {}
        return NodeFigures({namespace: each.figures for namespace, each in known.items() if each.figures}, limits)

    def _renew(self, namespace: NamespaceId, pid: int, last: _Known, highest: Mapping[int, int], now: float) -> _Known:
        files = last.files or {}
        try:
            if pid != last.pid and namespaces.identify(f"{self._procfs}/{pid}/ns/{namespace.kind}").id not in (0, namespace.id):
                raise VanishedError(f"{namespace.kind} namespace {namespace.inum}")  # another has its number
            return _Known(pid, now, now, self._read_one(namespace, pid, highest, files), files)
        except (NsagentError, OSError, ValueError):
            kept = last.figures if now - last.read_at <= KEPT_S else None
            return last._replace(tried_at=now, figures=kept)

    def _read_one(
        self, namespace: NamespaceId, pid: int, highest: Mapping[int, int], files: dict[str, tuple[bytes, Any]]
    ) -> NamespaceFigures:
        self._check(namespace, pid, namespace.kind)

        def read(name: str, parse: Callable[[bytes], Any]) -> Any:
            try:
                text = _read(f"{self._procfs}/{pid}/{name}")
            except FileNotFoundError:  # no IPv6, no conntrack: or the process ended, which the check afterwards tells
                return None
            if (before := files.get(name)) is None or before[0] != text:
                before = files[name] = (text, parse(text))
            return before[1]

        match namespace.kind:
            case NamespaceKind.NET:
                sockets = (read("net/sockstat", parse_sockets) or {}) | (read("net/sockstat6", parse_sockets) or {})
                figures = NamespaceFigures(
                    devices=read("net/dev", parse_devices) or _NONE,
                    tcp_retransmitted_segments=read("net/snmp", parse_retransmitted),
                    sockets=sockets,
                    conntrack_entries=read("net/stat/nf_conntrack", parse_conntrack),
                )
            case NamespaceKind.MNT:
                mounts = _read(f"{self._procfs}/{pid}/mountinfo").count(b"\n")
                figures = NamespaceFigures(mounts=mounts or None)
            case NamespaceKind.PID:
                figures = NamespaceFigures(highest_pid=highest.get(namespace.inum))
            case NamespaceKind.TIME:
                # the file has the offsets of the namespace that the next child will be in
                if "offsets" not in files:
                    self._check(namespace, pid, "time_for_children")
                    offsets = _read(f"{self._procfs}/{pid}/timens_offsets")
                    self._check(namespace, pid, "time_for_children")
                    files["offsets"] = (b"", parse_offsets(offsets))  # fixed since its first task
                figures = NamespaceFigures(clock_offsets=files["offsets"][1])
            case _:
                if "depth" not in files:
                    files["depth"] = (b"", self._depth(namespace, pid))
                figures = NamespaceFigures(userns_depth=files["depth"][1])
        self._check(namespace, pid, namespace.kind)
        return figures

    def _check(self, namespace: NamespaceId, pid: int, entry: str) -> None:
        """Raise VanishedError where the process is not in the namespace. Costs 4 us."""
        if not os.readlink(f"{self._procfs}/{pid}/ns/{entry}").endswith(f":[{namespace.inum}]"):
            raise VanishedError(f"{namespace.kind} namespace {namespace.inum} of process {pid}")

    def _depth(self, namespace: NamespaceId, pid: int) -> int | None:
        line = _lineage(f"{self._procfs}/{pid}/ns/user")
        if line[0] != namespace.inum:
            raise VanishedError(f"user namespace {namespace.inum} of process {pid}")
        return len(line) - 1 if line[-1] == namespaces.FIRST_USER else None

    def _highest_pids(self, wanted: Set[int]) -> Mapping[int, int]:
        if wanted and (self._pids_at is None or self._clock() - self._pids_at >= PIDS_EVERY_S):
            self._pids.renew(wanted, self._clock, self._budget_s / 2)
            self._pids_at = self._clock()
        return self._pids.highest

    def _limits(self) -> dict[NamespaceKind, int]:
        found = {}
        for kind in KINDS:
            with contextlib.suppress(OSError, ValueError):
                found[kind] = int(_read(f"{self._procfs}/sys/user/max_{kind}_namespaces"))
        return found


class _Pids:
    """The largest process id in use in each PID namespace, as that namespace counts.

    The kernel tells nobody outside a namespace how far its numbers have come (ns_last_pid is the reader's own), so it is the
    processes that are asked; once each: their numbers are for life. A process is a pid and the inode of its directory, which
    a later process of that pid does not get. A process below has a number here too.
    """

    def __init__(self, procfs: str) -> None:
        self._procfs = procfs
        self._known: dict[tuple[str, int], tuple[tuple[int, int], ...]] = {}  # to inums, and the pid in each
        self.highest: dict[int, int] = {}  # by inum

    def renew(self, wanted: Set[int], clock: Callable[[], float], budget_s: float) -> None:
        """Look at all processes: some 1 us each, 15 more where it is new, 30 more where it is in a PID namespace of its own.

        Who is new is asked for `budget_s` at most, and not at all where only the reader's own namespace is wanted. Where not all
        were asked the next call goes on, and only the reader's own is known.
        """
        self.highest = {}
        try:
            own = os.stat(f"{self._procfs}/self/ns/pid").st_ino
            with os.scandir(self._procfs) as entries:
                found = [(entry.name, entry.inode()) for entry in entries if entry.name.isdecimal()]
        except OSError:
            return
        if not any(name == "1" for name, _ in found):  # hidepid: who knows what else is not shown
            return
        known: dict[tuple[str, int], tuple[tuple[int, int], ...]] = {}
        highest = {own: max(int(name) for name, _ in found)}
        alone = wanted <= {own}
        all_asked, end = not alone, clock() + budget_s
        try:
            for process in () if alone else found:
                places = self._known.get(process)
                if places is None:
                    if clock() >= end:
                        all_asked = False
                        continue
                    try:
                        places = self._ask(process[0], own)
                    except (NsagentError, FileNotFoundError, ProcessLookupError, ValueError, StopIteration):
                        continue  # it ended
                known[process] = places
                for inum, inside in places:
                    if inside > highest.get(inum, 0):
                        highest[inum] = inside
        except OSError:  # it may be in any of those below
            highest = {own: highest[own]}
        self._known, self.highest = known, highest if all_asked else {own: highest[own]}

    def _ask(self, pid: str, own: int) -> tuple[tuple[int, int], ...]:
        entry = f"{self._procfs}/{pid}/ns/pid"
        try:
            if os.readlink(entry) == f"pid:[{own}]":
                return ()  # the listing has it
        except PermissionError:  # another user's, or one with a capability that we lack: how deep it is, anybody may know
            if len(self._numbers(pid)) == 1:
                return ()
            raise
        return tuple(zip(_lineage(entry), reversed(self._numbers(pid)), strict=False))

    def _numbers(self, pid: str) -> list[int]:
        status = _read(f"{self._procfs}/{pid}/status")
        line = next(line for line in status.split(b"\n") if line.startswith(b"NSpid:"))
        return list(map(int, line.split()[1:]))


def _lineage(path: str) -> tuple[int, ...]:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return namespaces.lineage(fd)
    finally:
        os.close(fd)


def _read(path: str) -> bytes:
    """Read a file of /proc to its end. A process that is gone is FileNotFoundError, whichever step finds it so."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            text = os.read(fd, 1 << 16)
            while more := os.read(fd, 1 << 16):  # the kernel gives whole lines, a page or so at a time
                text += more
            return text
        finally:
            os.close(fd)
    except ProcessLookupError as error:
        raise FileNotFoundError(path) from error
