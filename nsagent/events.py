"""Events: one traced call each, as the kernel wrote it, and how it reads to people and programs.

The truth about a change is the namespaces before and after, not the caller's arguments.
"""

from __future__ import annotations

import dataclasses
import errno
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from nsagent import libc
from nsagent.errors import UnsupportedError
from nsagent.kernel import abi
from nsagent.kernel.attach import Attached
from nsagent.kernel.ring import RingBuffer
from nsagent.namespaces import CLONE_FLAGS, KINDS, NamespaceId, NamespaceKind

SCHEMA = 1  # of a line of JSON, docs/events.md: higher when a field changes its meaning or goes, not when one is added

# include/uapi/linux/sched.h; the CLONE_NEW* ones come from nsagent.namespaces.
_OTHER_FLAGS = {
    0x00000100: "CLONE_VM",
    0x00000200: "CLONE_FS",
    0x00000400: "CLONE_FILES",
    0x00000800: "CLONE_SIGHAND",
    0x00001000: "CLONE_PIDFD",
    0x00002000: "CLONE_PTRACE",
    0x00004000: "CLONE_VFORK",
    0x00008000: "CLONE_PARENT",
    0x00010000: "CLONE_THREAD",
    0x00040000: "CLONE_SYSVSEM",
    0x00080000: "CLONE_SETTLS",
    0x00100000: "CLONE_PARENT_SETTID",
    0x00200000: "CLONE_CHILD_CLEARTID",
    0x00800000: "CLONE_UNTRACED",
    0x01000000: "CLONE_CHILD_SETTID",
    0x80000000: "CLONE_IO",
    0x100000000: "CLONE_CLEAR_SIGHAND",
    0x200000000: "CLONE_INTO_CGROUP",
}
_CSIGNAL = 0xFF  # clone keeps the exit signal here; CLONE_NEWTIME (0x80) shares it, so only unshare, setns, clone3 may name it


def flag_names(flags: int, syscall: str) -> list[str]:
    """Name the flags of a call; bits without a name come last, in hexadecimal."""
    new = {flag: f"CLONE_NEW{'NS' if kind is NamespaceKind.MNT else kind.upper()}" for kind, flag in CLONE_FLAGS.items()}
    if syscall in ("clone", "fork", "vfork"):
        flags &= ~_CSIGNAL
    names = []
    for flag, name in sorted((new | _OTHER_FLAGS).items()):
        if flags & flag:
            names.append(name)
            flags &= ~flag
    return names + ([hex(flags)] if flags & ~_CSIGNAL else [])


def unpack_id(kind: NamespaceKind, packed: int) -> NamespaceId:
    """Turn the kernel side's ``id << 32 | inum`` into a NamespaceId."""
    return NamespaceId(kind, packed & 0xFFFFFFFF, packed >> 32)


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a call came from, by names; empty is none, or not known.

    `cgroup` is the path of the accounting cgroup, `job` and `container` are the ids that this path shows. `exe` is the
    program of the calling process. `uid_inside` is its user in its own user namespace, None in the host's or unknown.
    """

    cgroup: str = ""
    job: str = ""
    container: str = ""
    exe: str = ""
    uid_inside: int | None = None


@dataclass(frozen=True, slots=True)
class SyscallEvent:
    """One clone, clone3, fork, vfork, unshare or setns.

    pid, tid, ppid and child_pid are host pids, uid is the host's. `before` and `after` have one packed id a kind; their
    pid and time entries are those for children, as unshare and setns change them. `retval` is the call's result, or a
    negative errno. `fd` and `target` (packed, 0 unknown) are of setns. `argv` is cut at 127 bytes, empty where the process's
    memory could not be read; `ancestors` are up to four (pid, comm), the parent first. `via` is `unseen` for a change no
    traced call explains; then `syscall` is `unseen` too, and the time is that of its discovery. `origin` is looked up by
    whoever reads the stream: `origins.Origins`.
    """

    time_ns: int  # CLOCK_REALTIME
    syscall: str
    pid: int
    tid: int
    ppid: int
    uid: int
    comm: str
    flags: int
    retval: int
    child_pid: int
    fd: int
    target: int
    latency_ns: int
    cgroup_id: int
    before: tuple[int, ...]
    after: tuple[int, ...]
    via: str = "syscall"
    argv: tuple[str, ...] = ()
    ancestors: tuple[tuple[int, str], ...] = ()
    origin: Origin = Origin()

    @property
    def changes(self) -> list[tuple[NamespaceKind, NamespaceId, NamespaceId]]:
        """Kind, namespace before, namespace after, for each kind that differs. Of a fork: the parent's and the child's."""
        return [
            (kind, unpack_id(kind, old), unpack_id(kind, new))
            for kind, old, new in zip(KINDS, self.before, self.after, strict=True)
            if old != new
        ]

    @property
    def kinds(self) -> frozenset[NamespaceKind]:
        """The kinds it changed, and those it asked for."""
        asked = {kind for kind, flag in CLONE_FLAGS.items() if self.flags & flag}
        if self.syscall in ("clone", "fork", "vfork"):
            asked.discard(NamespaceKind.TIME)
        return frozenset(asked | {kind for kind, _, _ in self.changes})

    @property
    def failed(self) -> bool:
        return self.retval < 0

    @property
    def notable(self) -> bool:
        """Shown without --all: it failed, or changed a namespace."""
        return self.failed or bool(self.changes)

    @property
    def priority(self) -> int:
        """syslog's LOG_INFO."""
        return 6

    @property
    def result(self) -> str:
        """`ok`, or the name of the errno."""
        return "ok" if self.retval >= 0 else errno.errorcode.get(-self.retval, str(-self.retval))

    def to_json(self) -> str:
        """One line of JSON: docs/events.md."""
        return json.dumps(self.document())

    def document(self) -> dict[str, Any]:
        """Return what `to_json` writes."""
        document: dict[str, Any] = {
            "schema": SCHEMA,
            "type": "syscall",
            "time": self.time_ns / 1e9,
            "syscall": self.syscall,
            "via": self.via,
            "result": self.result,
            "retval": self.retval,
            "flags": flag_names(self.flags, self.syscall),
            "pid": self.pid,
            "tid": self.tid,
            "ppid": self.ppid,
            "uid": self.uid,
            "comm": self.comm,
            "argv": list(self.argv),
            "ancestors": [{"pid": pid, "comm": comm} for pid, comm in self.ancestors],
            "latency_ns": self.latency_ns,
            "cgroup_id": self.cgroup_id,
            "changes": [{"kind": kind, "before": _json_id(old), "after": _json_id(new)} for kind, old, new in self.changes],
        }
        document |= {name: word for name, word in dataclasses.asdict(self.origin).items() if word not in ("", None)}
        if self.child_pid:
            document["child_pid"] = self.child_pid
        if self.syscall == "setns":
            document["fd"] = self.fd
            if self.target:
                document["target"] = {"inum": self.target & 0xFFFFFFFF, "id": self.target >> 32}
        return document

    def to_text(self) -> str:
        """One line for people: time, who, the call and its result, each namespace before and after, whose job or container."""
        flags = "|".join(flag_names(self.flags, self.syscall)) or "0"
        arguments = f"{self.fd}, {flags}" if self.syscall == "setns" else flags
        result = self.result if self.failed else str(self.child_pid or self.retval)
        moves = "  ".join(f"{kind} {old.inum}→{new.inum}" for kind, old, new in self.changes)
        stamp = clock_text(self.time_ns)
        line = f"{stamp} {printable(self.comm):<15} {self.pid:>7} {self.syscall}({arguments}) = {result}  {moves}".rstrip()
        if self.origin.container:
            return f"{line}  [container {self.origin.container[:12]}]"
        return f"{line}  [job {self.origin.job}]" if self.origin.job else line


def _json_id(namespace: NamespaceId) -> dict[str, int]:
    return {"inum": namespace.inum, "id": namespace.id}


def clock_text(time_ns: int) -> str:
    """Return the local time of day, to the millisecond."""
    return f"{time.strftime('%H:%M:%S', time.localtime(time_ns // 10**9))}.{time_ns % 10**9 // 10**6:03d}"


def printable(text: str) -> str:
    """Make control characters and undecodable bytes visible: a comm is whatever its process wrote."""
    return "".join(c if c.isprintable() else f"\\x{ord(c) & 0xFF:02x}" for c in text)


class Event(Protocol):
    """What the stream is made of: calls, and findings about them."""

    @property
    def kinds(self) -> frozenset[NamespaceKind]: ...
    @property
    def pid(self) -> int: ...
    @property
    def tid(self) -> int: ...
    @property
    def ancestors(self) -> tuple[tuple[int, str], ...]: ...
    @property
    def cgroup_id(self) -> int: ...
    @property
    def failed(self) -> bool: ...
    @property
    def notable(self) -> bool: ...
    @property
    def priority(self) -> int: ...

    def to_json(self) -> str: ...
    def to_text(self) -> str: ...


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events a reader wants; None asks for any.

    `pid` is a process and those below it, as far as an event's ancestors tell (four); `lies_below` decides by the id of the
    accounting cgroup.
    """

    kind: NamespaceKind | None = None
    pid: int | None = None
    failed: bool = False
    all: bool = False
    lies_below: Callable[[int], bool] | None = None  # a cgroups.subtree.Subtree

    def __call__(self, event: Event) -> bool:
        return (
            (self.kind is None or self.kind in event.kinds)
            and (self.pid is None or self.pid in (event.pid, event.tid) or self.pid in dict(event.ancestors))
            and (not self.failed or event.failed)
            and (self.all or event.notable)
            and (self.lies_below is None or self.lies_below(event.cgroup_id))
        )


@dataclass(frozen=True, slots=True)
class SyscallCounts:
    """Calls since the programs were loaded. Results are `ok` or an errno's name; `lost` has why events never came."""

    syscalls: dict[tuple[str, str], int]
    namespace_syscalls: dict[tuple[str, NamespaceKind, str], int]
    events: int
    lost: dict[str, int]


def decode(record: bytes | memoryview, boot_to_real_ns: int) -> SyscallEvent:
    """Decode one record of the ring buffer; `boot_to_real_ns` is CLOCK_REALTIME less CLOCK_BOOTTIME.

    Raises:
        struct.error: the record is not of the ABI's size.
    """
    words: tuple[Any, ...] = abi.EVENT.unpack(record)
    time_ns, latency, flags, result, cgroup = words[:5]
    target, argument, syscall, pid, tid, child, uid, length = words[21:29]
    ancestors = words[29 : 29 + abi.ANCESTORS]
    comm, *ancestor_comms, arguments = words[29 + abi.ANCESTORS :]
    seen = syscall < len(abi.SYSCALLS)
    return SyscallEvent(
        time_ns=time_ns + boot_to_real_ns,
        syscall=abi.SYSCALLS[syscall] if seen else "unseen",
        pid=pid,
        tid=tid,
        ppid=ancestors[0],
        uid=uid,
        comm=_text(comm),
        flags=flags,
        retval=result,
        child_pid=child,
        fd=argument,
        target=target,
        latency_ns=latency,
        cgroup_id=cgroup,
        before=words[5:13],
        after=words[13:21],
        via="syscall" if seen else "unseen",
        argv=tuple(_text(word) for word in arguments[:length].rstrip(b"\0").split(b"\0")) if length else (),
        ancestors=tuple((number, _text(name)) for number, name in zip(ancestors, ancestor_comms, strict=True) if number),
    )


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


class KernelEvents:
    """The stream of events and the counts of calls, from the BPF programs. One reader at a time."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached
        self._ring = attached.ring()

    def fileno(self) -> int:
        """Return a descriptor that polls readable while there are events. Raises UnsupportedError where none are traced."""
        return self._opened().fileno()

    def _opened(self) -> RingBuffer:
        if self._ring is None:
            raise UnsupportedError("tracing", "the programs were attached without it", hint="run the agent without --no-trace")
        return self._ring

    def read(self) -> list[SyscallEvent]:
        """Return the events there are, oldest first; does not wait."""
        offset = libc.boot_to_real_ns()
        return [decode(record, offset) for record in self._opened().read()]

    def trace_all(self, on: bool) -> None:
        """Have an event for every call, forks that change nothing included."""
        self._attached.trace_all(on)

    def counts(self) -> SyscallCounts:
        """Return the calls counted since the load."""
        cells = self._attached.syscall_cells()
        calls = {(abi.SYSCALLS[row], name): count for row, name, count in results(cells, abi.RESULTS)}
        by_kind = {
            (abi.SYSCALLS[row // len(KINDS)], KINDS[row % len(KINDS)], name): count
            for row, name, count in results(self._attached.namespace_syscall_cells(), abi.RESULTS)
        }
        lost = {
            "ringbuf_full": self._attached.statistic("events_lost"),
            "rate_limited": self._attached.statistic("events_limited"),
        }
        return SyscallCounts(calls, by_kind, self._attached.statistic("events"), lost)

    def close(self) -> None:
        """Unmap the ring buffer; its position stays in the kernel."""
        if self._ring is not None:
            self._ring.close()
            self._ring = None


def results(counts: list[int], width: int) -> Iterator[tuple[int, str, int]]:
    """Yield (row, result name, count) for each non-zero cell of a table of `width` results a row."""
    for index in itertools.compress(range(len(counts)), counts):  # of 12,288 cells some ten count anything
        number = index % width
        name = "ok" if number == 0 else "other" if number == width - 1 else errno.errorcode.get(number, str(number))
        yield index // width, name, counts[index]
