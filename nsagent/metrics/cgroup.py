"""Families of cgroups: what the kernel's own files say, and what the tasks' counters say, summed up the tree.

The label is the path below the root of the hierarchy. On a hybrid host a family comes from the hierarchy of its controller.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

from nsagent.cgroups.stats import CgroupStats
from nsagent.metrics.family import NS_PER_S, Each, Family, Number, Scope

_CG: Final = Scope.CGROUP


def _of(part: str, field: str, *, limit: bool = False) -> Callable[[CgroupStats], Number]:
    """Return a getter of one number; a limit of infinity is no limit, and no series."""

    def read(stats: CgroupStats) -> Number:
        found: Any = getattr(stats, part)
        value: Number = None if found is None else getattr(found, field)
        return None if limit and value == math.inf else value

    return read


def _counter(name: str, help_: str, source: str, part: str, field: str, *, scale: int = 1) -> Family:
    return Family(f"nsagent_cgroup_{name}", "counter", _CG, help_, source, parts=(((), _of(part, field)),), scale=scale)


def _gauge(name: str, help_: str, source: str, part: str, field: str, *, limit: bool = False, final: bool = False) -> Family:
    getter = _of(part, field, limit=limit)
    return Family(f"nsagent_cgroup_{name}", "gauge", _CG, help_, source, parts=(((), getter),), final=final)


def _split(name: str, label: str, help_: str, source: str, part: str, *, scale: int = 1, **fields: str) -> Family:
    parts = tuple(((value,), _of(part, field)) for value, field in fields.items())
    return Family(f"nsagent_cgroup_{name}", "counter", _CG, help_, source, (label,), parts, scale=scale)


def _memory_detail(stats: CgroupStats) -> Each:
    return (((kind,), value) for kind, value in stats.memory.detail.items()) if stats.memory else iter(())


def _memory_events(stats: CgroupStats) -> Each:
    return (((event,), value) for event, value in stats.memory.events.items()) if stats.memory else iter(())


def _devices(read: str, write: str, discard: str) -> Callable[[CgroupStats], Each]:
    def each(stats: CgroupStats) -> Each:
        for device, io in stats.io.devices.items() if stats.io else ():
            yield (device, "read"), getattr(io, read)
            yield (device, "write"), getattr(io, write)
            yield (device, "discard"), getattr(io, discard)

    return each


FAMILIES: Final[tuple[Family, ...]] = (
    _counter(
        "cpu_usage_seconds_total",
        "CPU time of the cgroup and its descendants, living and dead.",
        "v2 cpu.stat usage_usec; v1 cpuacct.usage",
        "cpu",
        "usage_ns",
        scale=NS_PER_S,
    ),
    _split(
        "cpu_seconds_total",
        "mode",
        "CPU time by mode; on v1 with the resolution of the clock tick where cpuacct.usage_user is missing.",
        "v2 cpu.stat; v1 cpuacct.usage_user, usage_sys, else cpuacct.stat",
        "cpu",
        scale=NS_PER_S,
        user="user_ns",
        system="system_ns",
    ),
    _counter(
        "cpu_periods_total",
        "Periods of the CPU bandwidth limit that have passed; they stand still without a limit.",
        "cpu.stat nr_periods",
        "cpu",
        "periods",
    ),
    _counter(
        "cpu_throttled_periods_total",
        "Periods in which the cgroup used up its CPU bandwidth and was stopped.",
        "cpu.stat nr_throttled",
        "cpu",
        "throttled_periods",
    ),
    _counter(
        "cpu_throttled_seconds_total",
        "Time the cgroup was stopped by its CPU bandwidth limit, summed over CPUs.",
        "v2 cpu.stat throttled_usec; v1 cpu.stat throttled_time",
        "cpu",
        "throttled_ns",
        scale=NS_PER_S,
    ),
    _counter(
        "cpu_bursts_total",
        "Periods in which the cgroup used saved-up bandwidth beyond its quota.",
        "cpu.stat nr_bursts, since 5.14",
        "cpu",
        "bursts",
    ),
    _counter(
        "cpu_burst_seconds_total",
        "CPU time used beyond the quota from saved-up bandwidth.",
        "v2 cpu.stat burst_usec; v1 cpu.stat burst_time, since 5.14",
        "cpu",
        "burst_ns",
        scale=NS_PER_S,
    ),
    _gauge(
        "cpu_limit_cores",
        "CPU bandwidth limit: quota by period, in CPUs; absent without a limit.",
        "v2 cpu.max; v1 cpu.cfs_quota_us, cpu.cfs_period_us",
        "cpu",
        "limit_cores",
        limit=True,
    ),
    _gauge(
        "cpu_weight",
        "Share of CPU time against siblings, on the scale of v2: 1 to 10000, 100 by default.",
        "v2 cpu.weight; v1 cpu.shares, converted as the kernel does",
        "cpu",
        "weight",
    ),
    _gauge(
        "memory_usage_bytes",
        "Memory charged to the cgroup and its descendants, page cache included.",
        "v2 memory.current; v1 memory.usage_in_bytes",
        "memory",
        "usage_bytes",
    ),
    _gauge(
        "memory_peak_bytes",
        "Most memory that was ever charged at once.",
        "v2 memory.peak, since 5.19; v1 memory.max_usage_in_bytes",
        "memory",
        "peak_bytes",
        final=True,
    ),
    _gauge(
        "memory_working_set_bytes",
        "Memory usage without inactive file pages, as kubelet counts it.",
        "v2 memory.current, memory.stat inactive_file; v1 memory.usage_in_bytes, memory.stat total_inactive_file",
        "memory",
        "working_set_bytes",
    ),
    _gauge(
        "memory_limit_bytes",
        "Hard memory limit; absent without one.",
        "v2 memory.max; v1 memory.limit_in_bytes",
        "memory",
        "limit_bytes",
        limit=True,
    ),
    _gauge(
        "memory_high_bytes",
        "Memory above which the cgroup is throttled and reclaimed (v2) or reclaimed first (v1's soft limit); absent without one.",
        "v2 memory.high; v1 memory.soft_limit_in_bytes",
        "memory",
        "high_bytes",
        limit=True,
    ),
    _gauge(
        "memory_low_bytes",
        "Memory that is reclaimed only when there is nothing else to reclaim.",
        "v2 memory.low",
        "memory",
        "low_bytes",
        limit=True,
    ),
    _gauge(
        "memory_min_bytes",
        "Memory that is never reclaimed.",
        "v2 memory.min",
        "memory",
        "min_bytes",
        limit=True,
    ),
    _gauge(
        "memory_effective_limit_bytes",
        "The least memory limit of the cgroup and its ancestors; absent where none has one.",
        "v2 memory.max of each; v1 memory.stat hierarchical_memory_limit",
        "memory",
        "effective_limit_bytes",
        limit=True,
    ),
    _gauge(
        "memory_swap_usage_bytes",
        "Swap used by the cgroup and its descendants.",
        "v2 memory.swap.current; v1 memory.memsw.usage_in_bytes less memory.usage_in_bytes",
        "memory",
        "swap_usage_bytes",
    ),
    _gauge(
        "memory_swap_limit_bytes",
        "Swap limit; absent without one.",
        "v2 memory.swap.max; v1 memory.memsw.limit_in_bytes less memory.limit_in_bytes",
        "memory",
        "swap_limit_bytes",
        limit=True,
    ),
    _gauge(
        "memory_zswap_usage_bytes",
        "Memory that holds compressed swapped pages.",
        "v2 memory.zswap.current, since 5.19",
        "memory",
        "zswap_usage_bytes",
    ),
    Family(
        "nsagent_cgroup_memory_bytes",
        "gauge",
        _CG,
        "Memory by type; types overlap, so never sum over them.",
        "memory.stat (v1: its total_ lines)",
        ("type",),
        each=_memory_detail,
    ),
    _split(
        "memory_page_faults_total",
        "type",
        "Page faults: minor ones needed no IO, major ones did.",
        "memory.stat pgfault, pgmajfault",
        "memory",
        minor="minor_faults",
        major="major_faults",
    ),
    _split(
        "memory_refaults_total",
        "type",
        "Pages that were evicted and soon needed again: memory is short.",
        "v2 memory.stat workingset_refault_anon, workingset_refault_file",
        "memory",
        anon="refaults_anon",
        file="refaults_file",
    ),
    _counter(
        "memory_scanned_pages_total",
        "Pages scanned for reclaim.",
        "v2 memory.stat pgscan",
        "memory",
        "scanned_pages",
    ),
    _counter(
        "memory_reclaimed_pages_total",
        "Pages reclaimed.",
        "v2 memory.stat pgsteal",
        "memory",
        "reclaimed_pages",
    ),
    Family(
        "nsagent_cgroup_memory_events_total",
        "counter",
        _CG,
        "How often a memory boundary was met, and processes killed for it; on v1 of this cgroup alone, without its descendants.",
        "v2 memory.events; v1 memory.failcnt (max), memory.oom_control (oom_kill)",
        ("event",),
        each=_memory_events,
    ),
    Family(
        "nsagent_cgroup_io_bytes_total",
        "counter",
        _CG,
        "Bytes transferred by device; v1 counts no buffered writeback, and from 6.12 on nothing at all (then absent) without a "
        "throttle rule.",
        "v2 io.stat; v1 blkio.throttle.io_service_bytes_recursive",
        ("device", "operation"),
        each=_devices("read_bytes", "write_bytes", "discard_bytes"),
    ),
    Family(
        "nsagent_cgroup_io_operations_total",
        "counter",
        _CG,
        "Requests by device; see nsagent_cgroup_io_bytes_total.",
        "v2 io.stat; v1 blkio.throttle.io_serviced_recursive",
        ("device", "operation"),
        each=_devices("reads", "writes", "discards"),
    ),
    Family(
        "nsagent_cgroup_storage_bytes_total",
        "counter",
        Scope.CGROUP_USAGE,
        "Bytes that tasks in the cgroup and its descendants caused to be read from or written to storage, since the load of the "
        "programs.",
        "BPF: task_struct ioac.read_bytes, write_bytes; /proc: io. Needs CONFIG_TASK_IO_ACCOUNTING",
        ("operation",),
        ((("read",), "read_bytes"), (("write",), "write_bytes")),
    ),
    _gauge(
        "pids",
        "Tasks in the cgroup and its descendants, threads counted.",
        "pids.current",
        "pids",
        "current",
    ),
    _gauge(
        "pids_limit",
        "Most tasks allowed; absent without a limit.",
        "pids.max",
        "pids",
        "limit",
        limit=True,
    ),
    _gauge(
        "pids_peak",
        "Most tasks there ever were at once.",
        "pids.peak, since 6.1",
        "pids",
        "peak",
        final=True,
    ),
    _counter(
        "pids_limit_hits_total",
        "Forks refused because of the limit.",
        "pids.events max",
        "pids",
        "limit_hits",
    ),
)
