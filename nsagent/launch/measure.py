"""What the job is and has used: from /proc while the child is there, from wait4(2), and from its cgroup after that."""

from __future__ import annotations

import os
import resource
from collections.abc import Container

from nsagent import namespaces
from nsagent.cgroups.limits import Limits, parse_cpus
from nsagent.cgroups.stats import CgroupStats
from nsagent.launch.report import JobUsage, NamespaceRef
from nsagent.namespaces import NamespaceKind

_UNPLACED_NS = 50_000_000  # of CPU before a child is in its cgroup, with room for a slow machine


def read_namespaces(pid: int, joined: Container[NamespaceKind] = ()) -> dict[str, NamespaceRef]:
    """Return each namespace of `pid` by kind; `new` where it is neither the caller's own nor `joined`.

    Raises VanishedError if it ended.
    """
    ours = namespaces.read_inums("self")
    return {
        str(kind): NamespaceRef(found.inum, found.id or None, found.inum != ours.get(kind) and kind not in joined, kind in joined)
        for kind, found in namespaces.of_process(pid).items()
    }


def read_start_ticks(pid: int, procfs: str = "/proc") -> int | None:
    """Return the start time of `pid` in clock ticks since boot, which with the pid identifies it; None where it is gone."""
    try:
        fd = os.open(f"{procfs}/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(os.read(fd, 4096).rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return None
    finally:
        os.close(fd)


def read_task_io(pid: int, procfs: str = "/proc") -> tuple[int, int] | None:
    """Return the bytes `pid` and all it waited for have read from and written to storage, proc_pid_io(5); None if hidden.

    Of a zombie too, until it is waited for. A PID 1 has waited for every orphan of its namespace.
    """
    try:
        fd = os.open(f"{procfs}/{pid}/io", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fields = dict(line.split(b": ") for line in os.read(fd, 4096).splitlines())
        return int(fields[b"read_bytes"]), int(fields[b"write_bytes"])
    except (OSError, KeyError, ValueError):
        return None
    finally:
        os.close(fd)


def read_run_queue(pid: int, procfs: str = "/proc") -> int | None:
    """Return how long the first thread of `pid` was ready to run without a CPU, ns; None where the kernel does not say.

    Of a zombie too. Source: the second field of /proc/PID/schedstat, Documentation/scheduler/sched-stats.rst.
    """
    try:
        fd = os.open(f"{procfs}/{pid}/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return int(os.read(fd, 256).split()[1])
    except (OSError, IndexError, ValueError):
        return None
    finally:
        os.close(fd)


def usable_cpus(limits: Limits) -> float:
    """Return how many CPUs a job under `limits` can use at once: what its limit, its cpuset and our affinity leave."""
    count = float(len(os.sched_getaffinity(0)))
    if limits.cpuset is not None:
        count = len(parse_cpus(limits.cpuset))
    return count if limits.cpus is None else min(count, limits.cpus)


def waited_usage(rusage: resource.struct_rusage, io: tuple[int, int] | None, run_queue_ns: int | None) -> JobUsage:
    """Return what the kernel kept of CMD and of what it waited for. getrusage(2): microseconds, ru_maxrss in KiB.

    ru_maxrss outlives execve: a peak that is not above our own is that of our child before CMD, and says nothing of
    CMD.
    """
    user_ns, system_ns = round(rusage.ru_utime * 1e9), round(rusage.ru_stime * 1e9)
    own_peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    peak_bytes = rusage.ru_maxrss * 1024 if rusage.ru_maxrss > own_peak_kib else None
    return JobUsage(
        cpu_ns=user_ns + system_ns,
        user_ns=user_ns,
        system_ns=system_ns,
        cpu_source="wait",
        memory_peak_bytes=peak_bytes,
        memory_source=None if peak_bytes is None else "wait",
        max_rss_bytes=peak_bytes,
        io_read_bytes=io[0] if io else None,
        io_write_bytes=io[1] if io else None,
        io_source="tasks" if io else None,
        minor_faults=rusage.ru_minflt,
        major_faults=rusage.ru_majflt,
        voluntary_switches=rusage.ru_nvcsw,
        involuntary_switches=rusage.ru_nivcsw,
        run_queue_ns=run_queue_ns,
    )


def _split(total_ns: int, user: int | None, system: int | None, waited: JobUsage) -> tuple[int | None, int | None]:
    """Split the exact total as user to system stand in the cgroup, or, before its first tick, in what was waited for.

    v1 counts both by ticks, so they do not add up to its usage. The kernel does the same for a process and for v2:
    cputime_adjust() in kernel/sched/cputime.c.
    """
    for part, other in ((user, system), (waited.user_ns, waited.system_ns)):
        if part is not None and other is not None and part + other > 0:
            user_ns = total_ns * part // (part + other)
            return user_ns, total_ns - user_ns
    return None, None


def left_its_cgroup(waited: JobUsage, counted: JobUsage) -> bool:
    """Tell whether the cgroup counted less than was waited for, which is part of it: somebody moved to another cgroup.

    Between the clone and the placement up to some ms are the launcher's cgroup's; the tolerance is wider than that.
    """
    if waited.cpu_ns is None or counted.cpu_ns is None:
        return False
    return waited.cpu_ns > counted.cpu_ns + max(_UNPLACED_NS, counted.cpu_ns // 20)


def with_cgroup(usage: JobUsage, stats: CgroupStats) -> JobUsage:
    """Return `usage` with what the cgroup counted in the place of what was waited for: it misses no process.

    The cgroup's IO stands beside that of the tasks, by device, where it counts at all: v1 charges no buffered writes
    to it.
    """
    changes: dict[str, object] = {}
    if stats.cpu is not None and stats.cpu.usage_ns is not None:
        user_ns, system_ns = _split(stats.cpu.usage_ns, stats.cpu.user_ns, stats.cpu.system_ns, usage)
        changes |= {"cpu_ns": stats.cpu.usage_ns, "user_ns": user_ns, "system_ns": system_ns, "cpu_source": "cgroup"}
    if stats.cpu is not None:
        changes |= {
            "throttled_ns": stats.cpu.throttled_ns,
            "throttled_periods": stats.cpu.throttled_periods,
            "periods": stats.cpu.periods,
        }
    if stats.memory is not None:
        changes["oom_kills"] = stats.memory.events.get("oom_kill")
        if stats.memory.peak_bytes is not None:
            changes |= {"memory_peak_bytes": stats.memory.peak_bytes, "memory_source": "cgroup"}
    if stats.pids is not None:
        changes["pids_peak"] = stats.pids.peak
    if stats.io is not None:
        changes["io_devices"] = stats.io.devices
    if stats.pressure is not None:
        changes["pressure"] = stats.pressure.resources
    return usage._replace(**changes)  # type: ignore[arg-type]
