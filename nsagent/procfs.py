"""Per-process files of /proc: pure parsers, and readers that take the /proc to read (`--path.procfs`).

Each reader raises VanishedError when the process ended, AccessError when it is another user's and the file asks for ptrace
access (io, ns, or everything under hidepid), and ParseError for text that is not what proc(5) says.
Sources: man 5 proc_pid_stat, proc_pid_status, proc_pid_io, proc_pid_cgroup; Documentation/scheduler/sched-stats.rst;
fs/proc/array.c.
"""

from __future__ import annotations

import errno
import os
from typing import NamedTuple

from nsagent.errors import AccessError, NsagentError, ParseError, VanishedError

TICKS_PER_SECOND: int = os.sysconf("SC_CLK_TCK")
NS_PER_TICK: int = 10**9 // TICKS_PER_SECOND

STATES = {
    "R": "running",
    "S": "sleeping",
    "D": "disk_sleep",
    "T": "stopped",
    "t": "stopped",  # by a tracer
    "Z": "zombie",
    "X": "zombie",  # dead, its parent does not wait: gone in a moment
    "I": "idle",
    "P": "idle",  # a parked kernel thread
}


class Stat(NamedTuple):
    """/proc/PID/stat: of the whole thread group; /proc/PID/task/TID/stat: of one thread.

    `state` and `io_delay_ticks` are of one task in both.
    """

    pid: int
    comm: str  # untrusted bytes, undecodable ones as surrogates
    state: str  # a key of STATES
    ppid: int
    minor_faults: int
    major_faults: int
    user_ticks: int
    system_ticks: int
    threads: int
    start_ticks: int  # since boot: with the pid, what identifies a process
    io_delay_ticks: int  # moves only with kernel.task_delayacct=1


class Status(NamedTuple):
    """/proc/PID/status: sizes of the whole process (None of a kernel thread or a zombie), switches of one task."""

    uid: int  # effective
    pids: tuple[int, ...]  # its pid in each PID namespace from that of this /proc inwards
    capabilities: int  # effective, bit N is capability N
    rss_anon_bytes: int | None
    rss_file_bytes: int | None
    rss_shmem_bytes: int | None
    swap_bytes: int | None
    pagetables_bytes: int | None
    voluntary_switches: int
    involuntary_switches: int


class Io(NamedTuple):
    """/proc/PID/io of the whole thread group, its dead threads included."""

    read_chars: int
    write_chars: int
    read_syscalls: int
    write_syscalls: int
    read_bytes: int
    write_bytes: int
    cancelled_write_bytes: int


class Membership(NamedTuple):
    """One line of /proc/PID/cgroup. Hierarchy 0 is the v2 tree and names no controllers; ``name=x`` is a v1 tree without any."""

    hierarchy: int
    controllers: tuple[str, ...]
    path: str  # below the root of the reader's cgroup namespace; ``/..`` leads out of it


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ESRCH):
            raise VanishedError(what) from exc
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise AccessError(f"{path} may not be read", capability="CAP_SYS_PTRACE") from exc
        raise NsagentError(f"{path}: {exc.strerror}") from exc


def parse_stat(text: bytes, path: str = "") -> Stat:
    """Parse a stat line. The name between its first ``(`` and last ``)`` may hold anything, blanks and brackets too."""
    head, opened, rest = text.partition(b" (")
    comm, closed, tail = rest.rpartition(b") ")
    words = tail.split()
    if not opened or not closed or len(words) < 40:
        raise ParseError("not a process's stat line", path=path)
    try:
        numbers = [int(words[at]) for at in (1, 7, 9, 11, 12, 17, 19, 39)]
        return Stat(int(head), os.fsdecode(comm), words[0].decode("ascii"), *numbers)
    except ValueError as exc:
        raise ParseError(f"not a process's stat line: {exc}", path=path) from exc


def parse_status(text: bytes, path: str = "") -> Status:
    """Parse a status file."""
    fields = dict(line.split(b":\t", 1) for line in text.splitlines() if b":\t" in line)

    def kilobytes(name: bytes) -> int | None:
        return int(fields[name].split()[0]) * 1024 if name in fields else None

    try:
        return Status(
            uid=int(fields[b"Uid"].split()[1]),
            pids=tuple(map(int, fields.get(b"NSpid", fields[b"Pid"]).split())),
            capabilities=int(fields[b"CapEff"], 16),
            rss_anon_bytes=kilobytes(b"RssAnon"),
            rss_file_bytes=kilobytes(b"RssFile"),
            rss_shmem_bytes=kilobytes(b"RssShmem"),
            swap_bytes=kilobytes(b"VmSwap"),
            pagetables_bytes=kilobytes(b"VmPTE"),
            voluntary_switches=int(fields[b"voluntary_ctxt_switches"]),
            involuntary_switches=int(fields[b"nonvoluntary_ctxt_switches"]),
        )
    except (KeyError, ValueError, IndexError) as exc:
        raise ParseError(f"not a process's status: {exc!r}", path=path) from exc


def parse_io(text: bytes, path: str = "") -> Io:
    """Parse an io file."""
    try:
        fields = dict(line.split(b": ", 1) for line in text.splitlines())
        names = (b"rchar", b"wchar", b"syscr", b"syscw", b"read_bytes", b"write_bytes", b"cancelled_write_bytes")
        return Io(*(int(fields[name]) for name in names))
    except (KeyError, ValueError) as exc:
        raise ParseError(f"not a process's io: {exc!r}", path=path) from exc


def parse_cgroup(text: bytes, path: str = "") -> tuple[Membership, ...]:
    """Parse a cgroup file. A path may hold colons; one that ends in `` (deleted)`` is of a cgroup that is gone."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            hierarchy, controllers, where = line.split(b":", 2)
            names = tuple(os.fsdecode(controllers).split(",")) if controllers else ()
            found.append(Membership(int(hierarchy), names, os.fsdecode(where)))
        except ValueError as exc:
            raise ParseError("not a line of a process's cgroup", path=path, line=number) from exc
    return tuple(found)


def parse_schedstat(text: bytes, path: str = "") -> tuple[int, int]:
    """Return (ns on a CPU, ns waiting for one) of one task; both 0 where the kernel keeps no sched_info."""
    try:
        run, wait, _slices = map(int, text.split())
    except ValueError as exc:
        raise ParseError("not a schedstat", path=path) from exc
    return run, wait


def _directory(pid: int | str, tid: int | None, procfs: str) -> str:
    return f"{procfs}/{pid}" if tid is None else f"{procfs}/{pid}/task/{tid}"


def read_stat(pid: int | str, procfs: str = "/proc", *, tid: int | None = None) -> Stat:
    """Read stat of a process, or of its thread `tid`."""
    path = f"{_directory(pid, tid, procfs)}/stat"
    return parse_stat(_read(path, f"process {pid}"), path)


def read_status(pid: int | str, procfs: str = "/proc", *, tid: int | None = None) -> Status:
    """Read status of a process, or of its thread `tid`."""
    path = f"{_directory(pid, tid, procfs)}/status"
    return parse_status(_read(path, f"process {pid}"), path)


def read_schedstat(pid: int | str, procfs: str = "/proc", *, tid: int | None = None) -> tuple[int, int]:
    """Read schedstat: of the thread group's leader alone, or of its thread `tid`."""
    path = f"{_directory(pid, tid, procfs)}/schedstat"
    return parse_schedstat(_read(path, f"process {pid}"), path)


def read_io(pid: int | str, procfs: str = "/proc") -> Io:
    """Read io of a process; asks for ptrace access."""
    path = f"{procfs}/{pid}/io"
    return parse_io(_read(path, f"process {pid}"), path)


def read_cgroup(pid: int | str, procfs: str = "/proc") -> tuple[Membership, ...]:
    """Read in which cgroups a process is, one a hierarchy."""
    path = f"{procfs}/{pid}/cgroup"
    return parse_cgroup(_read(path, f"process {pid}"), path)


def read_threads(pid: int | str, procfs: str = "/proc") -> list[int]:
    """Return the thread ids of a process."""
    try:
        return [int(name) for name in os.listdir(f"{procfs}/{pid}/task")]
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ESRCH):
            raise VanishedError(f"process {pid}") from exc
        raise AccessError(f"{procfs}/{pid}/task may not be read", capability="CAP_SYS_PTRACE") from exc


def read_uptime(procfs: str = "/proc") -> float:
    """Return the seconds since boot, on the clock of Stat.start_ticks (a time namespace shifts both)."""
    path = f"{procfs}/uptime"
    try:
        return float(_read(path, path).split()[0])
    except (ValueError, IndexError) as exc:
        raise ParseError("not an uptime", path=path) from exc


def read_sysctl(name: str, procfs: str = "/proc") -> str | None:
    """Return a sysctl such as ``kernel/task_delayacct``, stripped; None where this kernel has none or it may not be read."""
    try:
        with open(f"{procfs}/sys/{name}", encoding="utf-8", errors="surrogateescape") as file:
            return file.read().strip()
    except OSError:
        return None
