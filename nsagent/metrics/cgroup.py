"""Families of cgroups: what the kernel's own files say, and what the tasks' counters say, summed up the tree.

The label is the path below the root of the hierarchy. On a hybrid host a family comes from the hierarchy of its controller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from operator import attrgetter
from typing import Any, Final, Literal

from nsagent.cgroups.stats import IoStats
from nsagent.metrics.family import COLLECTORS, NS_PER_S, Family, Number, Scope, Values

_CG: Final = Scope.CGROUP


def _counter(name: str, help_: str, source: str, part: str, field: str, *, scale: int = 1) -> Family:
    return Family(f"nsagent_cgroup_{name}", "counter", _CG, help_, source, parts=(((), field),), scale=scale, part=part)


def _gauge(name: str, help_: str, source: str, part: str, field: str, *, limit: bool = False, final: bool = False) -> Family:
    parts = (((), field),)
    return Family(f"nsagent_cgroup_{name}", "gauge", _CG, help_, source, parts=parts, final=final, limit=limit, part=part)


def _split(name: str, label: str, help_: str, source: str, part: str, *, scale: int = 1, **fields: str) -> Family:
    parts = tuple(((value,), field) for value, field in fields.items())
    return Family(f"nsagent_cgroup_{name}", "counter", _CG, help_, source, (label,), parts, scale=scale, part=part)


def _kind(name: str) -> Literal["counter", "gauge"]:
    return "counter" if name.endswith("_total") else "gauge"


def _by(
    name: str, labels: tuple[str, ...], help_: str, source: str, place: str, *, limit: bool = False, scale: int = 1
) -> Family:
    """Return a family with a series for each key of a mapping: `place` is "part.mapping", then the field of its values."""
    part, mapping, *field = place.split(".")
    read: Callable[[Any], Number] = attrgetter(field[0] if field else "real")  # an int's is itself
    absent = (None, math.inf) if limit else (None,)

    def by(found: Any) -> Mapping[Values, Number]:
        return {key: number for key, value in getattr(found, mapping).items() if (number := read(value)) not in absent}

    return Family(
        f"nsagent_cgroup_{name}",
        _kind(name),
        _CG,
        help_,
        source,
        labels,
        by=by,
        shown=(field[0] if field else mapping,),
        scale=scale,
        part=part,
    )


def _devices(read: str, write: str, discard: str) -> Callable[[IoStats], Mapping[Values, Number]]:
    fields = {"read": attrgetter(read), "write": attrgetter(write), "discard": attrgetter(discard)}

    def by(stats: IoStats) -> Mapping[Values, Number]:
        return {
            (device, operation): number
            for device, io in stats.devices.items()
            for operation, read in fields.items()
            if (number := read(io)) is not None
        }

    return by


def _used(name: str, label: str, help_: str, source: str, **fields: str) -> Family:
    """Return a family of what tasks used, split by `label` where that is not empty."""
    parts = tuple(((value,) if label else (), field) for value, field in fields.items())
    scale = NS_PER_S if all(field.endswith("_ns") for field in fields.values()) else 1
    labels = (label,) if label else ()
    return Family(
        f"nsagent_cgroup_{name}",
        _kind(name),
        Scope.CGROUP_USAGE,
        help_,
        source,
        labels,
        parts,
        scale=scale,
    )


_FAMILIES: Final[tuple[Family, ...]] = (
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
        "Periods of the cgroup's own CPU bandwidth limit that have passed, without its descendants'; none without a limit.",
        "cpu.stat nr_periods",
        "cpu",
        "periods",
    ),
    _counter(
        "cpu_throttled_periods_total",
        "Periods in which the cgroup used up its own CPU bandwidth and was stopped; without its descendants'.",
        "cpu.stat nr_throttled",
        "cpu",
        "throttled_periods",
    ),
    _counter(
        "cpu_throttled_seconds_total",
        "Time the cgroup was stopped by its own CPU bandwidth limit, summed over CPUs; without its descendants'.",
        "v2 cpu.stat throttled_usec; v1 cpu.stat throttled_time",
        "cpu",
        "throttled_ns",
        scale=NS_PER_S,
    ),
    _counter(
        "cpu_bursts_total",
        "Periods in which the cgroup used saved-up bandwidth beyond its own quota; without its descendants'.",
        "cpu.stat nr_bursts, since 5.14",
        "cpu",
        "bursts",
    ),
    _counter(
        "cpu_burst_seconds_total",
        "CPU time used beyond the cgroup's own quota from saved-up bandwidth; without its descendants'.",
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
        by=attrgetter("detail"),
        shown=("detail",),
        part="memory",
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
        by=attrgetter("events"),
        shown=("events",),
        part="memory",
    ),
    Family(
        "nsagent_oom_kills_total",
        "counter",
        Scope.CGROUP_USAGE,
        "Processes that the OOM killer has killed since the load of the programs: memcg at the limit of a memory cgroup, unknown "
        "for what the kernel does not tell apart: the memory of the node, of a cpuset or a policy, a limit that was lowered.",
        "BPF: tracepoint oom:mark_victim, and the memory cgroup's count of oom_kill; absent without BPF",
        ("constraint",),
        ((("memcg",), "oom_kills_memcg"), (("unknown",), "oom_kills_unknown")),
    ),
    Family(
        "nsagent_cgroup_io_bytes_total",
        "counter",
        _CG,
        "Bytes transferred by device, such as vda or mapper/vg-root; v1 counts no buffered writeback, and from 6.12 on nothing "
        "at all (then absent) without a throttle rule.",
        "v2 io.stat; v1 blkio.throttle.io_service_bytes_recursive",
        ("device", "operation"),
        by=_devices("read_bytes", "write_bytes", "discard_bytes"),
        shown=("read_bytes", "write_bytes", "discard_bytes"),
        part="io",
    ),
    Family(
        "nsagent_cgroup_io_operations_total",
        "counter",
        _CG,
        "Requests by device; see nsagent_cgroup_io_bytes_total.",
        "v2 io.stat; v1 blkio.throttle.io_serviced_recursive",
        ("device", "operation"),
        by=_devices("reads", "writes", "discards"),
        shown=("reads", "writes", "discards"),
        part="io",
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
    _gauge(
        "cpuset_cpus",
        "CPUs the tasks may run on.",
        "v2 cpuset.cpus.effective; v1 cpuset.effective_cpus",
        "cpuset",
        "cpus",
    ),
    _gauge(
        "cpuset_mems",
        "Memory nodes the tasks may allocate from.",
        "v2 cpuset.mems.effective; v1 cpuset.effective_mems",
        "cpuset",
        "mems",
    ),
    _by(
        "pressure_waiting_seconds_total",
        ("resource",),
        "Time in which at least one task waited for a resource (cpu, memory, io).",
        "v2 cpu.pressure, memory.pressure, io.pressure: some. Needs CONFIG_PSI",
        "pressure.resources.waiting_ns",
        scale=NS_PER_S,
    ),
    _by(
        "pressure_stalled_seconds_total",
        ("resource",),
        "Time in which all tasks that were not idle waited for a resource (cpu, memory, io, irq). The system as a whole, the "
        "root, has none of cpu.",
        "v2 cpu.pressure, memory.pressure, io.pressure, irq.pressure (since 6.1): full. Needs CONFIG_PSI",
        "pressure.resources.stalled_ns",
        scale=NS_PER_S,
    ),
    _by(
        "hugetlb_usage_bytes",
        ("size",),
        "Huge pages in use by size.",
        "v2 hugetlb.SIZE.current; v1 hugetlb.SIZE.usage_in_bytes",
        "hugetlb.sizes.usage_bytes",
    ),
    _by(
        "hugetlb_limit_bytes",
        ("size",),
        "Most huge pages allowed; absent without a limit.",
        "v2 hugetlb.SIZE.max; v1 hugetlb.SIZE.limit_in_bytes",
        "hugetlb.sizes.limit_bytes",
        limit=True,
    ),
    _by(
        "hugetlb_failures_total",
        ("size",),
        "Huge pages refused because of the limit.",
        "v2 hugetlb.SIZE.events max; v1 hugetlb.SIZE.failcnt",
        "hugetlb.sizes.failures",
    ),
    _by("rdma_usage", ("device", "object"), "RDMA objects in use.", "rdma.current", "rdma.objects.usage"),
    _by(
        "rdma_limit",
        ("device", "object"),
        "Most RDMA objects allowed; absent without a limit.",
        "rdma.max",
        "rdma.objects.limit",
        limit=True,
    ),
    _by("misc_usage", ("resource",), "Scarce resources in use.", "misc.current", "misc.resources.usage"),
    _by(
        "misc_limit",
        ("resource",),
        "Most of a scarce resource allowed; absent without a limit.",
        "misc.max",
        "misc.resources.limit",
        limit=True,
    ),
    _by(
        "misc_events_total",
        ("resource",),
        "Times a scarce resource was refused because of the limit.",
        "misc.events",
        "misc.events",
    ),
    _gauge("frozen", "Whether the cgroup is frozen (1) or not (0).", "v2 cgroup.events; v1 freezer.state", "state", "frozen"),
    _gauge(
        "populated",
        "Whether there is a task in the cgroup or its descendants (1) or none (0).",
        "v2 cgroup.events",
        "state",
        "populated",
    ),
    _gauge("descendants", "Living cgroups below this one.", "v2 cgroup.stat nr_descendants", "state", "descendants"),
    _gauge(
        "dying_descendants",
        "Removed cgroups below this one that the kernel still keeps because something is charged to them.",
        "v2 cgroup.stat nr_dying_descendants",
        "state",
        "dying_descendants",
    ),
    _used(
        "run_queue_seconds_total",
        "",
        "Time tasks were runnable and waited for a CPU.",
        "BPF: sched_info.run_delay; /proc: schedstat. Needs CONFIG_SCHED_INFO",
        all="run_queue_ns",
    ),
    _used(
        "io_delay_seconds_total",
        "",
        "Time tasks waited for block IO to complete; absent unless the kernel accounts it (sysctl kernel.task_delayacct=1).",
        "BPF: delays.blkio_delay; /proc: stat delayacct_blkio_ticks",
        all="io_delay_ns",
    ),
    _used(
        "context_switches_total",
        "type",
        "Context switches: voluntary ones by tasks that had to wait, involuntary ones of tasks that could have gone on.",
        "BPF: task_struct nvcsw, nivcsw; /proc: status",
        voluntary="voluntary_switches",
        involuntary="involuntary_switches",
    ),
    _used(
        "tasks",
        "state",
        "Threads in the cgroup and its descendants, by state.",
        "BPF: task_struct __state, exit_state; /proc: stat",
        running="running",
        sleeping="sleeping",
        disk_sleep="disk_sleep",
        stopped="stopped",
        zombie="zombie",
        idle="idle",
    ),
)

_MEMORY_STAT: Final = frozenset(
    f"nsagent_cgroup_memory_{name}"
    for name in (
        "bytes",
        "working_set_bytes",
        "page_faults_total",
        "refaults_total",
        "scanned_pages_total",
        "reclaimed_pages_total",
    )
)


def _collector(family: Family) -> str:
    if family.scope is Scope.CGROUP_USAGE:
        return "tasks"
    if family.name in _MEMORY_STAT:
        return "memory-stat"
    return family.part if family.part in COLLECTORS else ""


FAMILIES: Final[tuple[Family, ...]] = tuple(replace(family, collector=_collector(family)) for family in _FAMILIES)
