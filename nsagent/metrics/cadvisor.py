"""cAdvisor's names for what a sample has, with `--compat cadvisor`: what was made for them, as the Kubernetes mixin, goes on.

What a family means is cAdvisor's, where the kernel tells it; docs/cadvisor.md says what differs. 0 is "no limit", as there.
Source: github.com/google/cadvisor, lib/metrics/prometheus.go, prometheus_machine.go; lib/container/libcontainer/handler.go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from operator import attrgetter
from typing import Any, Final

from nsagent.cgroups.stats import CpuStats, IoStats, MemoryStats, PressureStats
from nsagent.metrics.family import NS_PER_S, Each, Family, Number, Scope, Values
from nsagent.nsfigures import Device
from nsagent.sample import Machine, NodeSample

_AS: Final = "as of nsagent_cgroup_"
_COUNTERS: Final = ("_total", "_failcnt")


def _row(
    part: str,
    name: str,
    help_: str,
    source: str,
    read: str | Callable[[Any], Number] | None = None,
    *,
    by: Callable[[Any], Mapping[Values, Number]] | None = None,
    labels: tuple[str, ...] = (),
    parts: tuple[tuple[tuple[str, ...], str], ...] = (),
    collector: str = "",
    final: bool = False,
) -> Family:
    """Return a family of one part of a Reading: `read` is a field of it, or a function of it."""
    return Family(
        f"container_{name}",
        "counter" if name.endswith(_COUNTERS) else "gauge",
        Scope.CONTAINER,
        help_,
        source,
        labels,
        (((), read),) if isinstance(read, str) else parts,
        by=_single(read) if callable(read) else by,
        scale=NS_PER_S if "_seconds" in name else 1,
        final=final,
        part=part,
        collector=collector,
    )


def _single(read: Callable[[Any], Number]) -> Callable[[Any], Mapping[Values, Number]]:
    def by(part: Any) -> Mapping[Values, Number]:
        return {} if (value := read(part)) is None else {(): value}

    return by


def _limited(field: str) -> Callable[[CpuStats], Number]:
    """Return a getter of what cAdvisor shows only of a cgroup with a CPU quota."""
    read = attrgetter(field)
    return lambda cpu: None if cpu.limit_cores in (None, math.inf) else read(cpu)


def _quota(cpu: CpuStats) -> Number:
    if cpu.limit_cores is None or cpu.limit_cores == math.inf or cpu.period_ns is None:
        return None
    return round(cpu.limit_cores * cpu.period_ns / 1000)


def _shares(cpu: CpuStats) -> Number:
    """v1's own, else those that belong to a weight of v2, as cAdvisor and runc convert them."""
    if cpu.shares is not None or cpu.weight is None:
        return cpu.shares
    return 2 + (cpu.weight - 1) * 262142 // 9999


def _or_zero(limit: float | None) -> Number:
    return 0 if limit == math.inf else limit


def _page_faults(memory: MemoryStats) -> Mapping[Values, Number]:
    minor, major = memory.minor_faults, memory.major_faults
    if minor is None or major is None:
        return {}
    counts = {"pgfault": minor + major, "pgmajfault": major}
    return {(kind, scope): n for kind, n in counts.items() for scope in ("container", "hierarchy")}  # as with cAdvisor on v2


def _devices(field: str) -> Callable[[IoStats], Mapping[Values, Number]]:
    read = attrgetter(field)

    def by(io: IoStats) -> Mapping[Values, Number]:
        return {f"/dev/{name}": number for name, device in io.devices.items() if (number := read(device)) is not None}

    return by


def _traffic(field: str) -> Callable[[Mapping[str, Device]], Mapping[Values, Number]]:
    at = Device._fields.index(field)
    return lambda devices: {name: device[at] for name, device in devices.items()}


def _network() -> Iterator[Family]:
    for direction in ("receive", "transmit"):
        for name, field in (("bytes", "bytes"), ("packets", "packets"), ("packets_dropped", "drops"), ("errors", "errors")):
            yield _row(
                "network",
                f"network_{direction}_{name}_total",
                f"As nsagent_namespace_network_{direction}_{field}_total, of the net namespace of the container's oldest "
                "process; a pod's is its sandbox's, the host's has id=/; without lo, veth, docker and nerdctl devices.",
                "/proc/PID/net/dev of a member",
                by=_traffic(f"{direction}_{field}"),
                labels=("interface",),
                collector="network",
            )


def _pressure() -> Iterator[Family]:
    for resource, word in (("cpu", "CPU"), ("memory", "memory"), ("io", "IO")):
        for kind, some in (("waiting", "at least one task"), ("stalled", "every task that was not idle")):
            yield _row(
                "pressure",
                f"pressure_{resource}_{kind}_seconds_total",
                f"Time in which {some} waited for {word}.",
                f"{_AS}pressure_{kind}_seconds_total with resource={resource}",
                _of_pressure(resource, f"{kind}_ns"),
                collector="pressure",
            )


def _of_pressure(resource: str, field: str) -> Callable[[PressureStats], Number]:
    read = attrgetter(field)
    return lambda pressure: read(pressure.resources[resource]) if resource in pressure.resources else None


def _memory_types() -> Iterator[Family]:
    for name, kind, help_ in (
        ("rss", "anon", "Anonymous memory, transparent huge pages included."),
        ("cache", "file", "Page cache, tmpfs and shared memory included."),
        ("mapped_file", "file_mapped", "Page cache that is mapped into processes."),
        ("total_active_file_bytes", "active_file", "Page cache on the active list."),
        ("total_inactive_file_bytes", "inactive_file", "Page cache on the inactive list: what the working set leaves out."),
    ):
        source = f"{_AS}memory_bytes with type={kind}"
        yield _row("memory", f"memory_{name}", help_, source, _type(kind), collector="memory-stat")


def _type(kind: str) -> Callable[[MemoryStats], Number]:
    return lambda memory: memory.detail.get(kind)


def _machine(name: str, help_: str, source: str, read: Callable[[Machine], int]) -> Family:
    def each(sample: NodeSample) -> Each:
        if machine := sample.facts.machine:
            yield machine.ids, read(machine)

    labels = ("boot_id", "machine_id", "system_uuid")
    return Family(f"machine_{name}", "gauge", Scope.NODE, help_, source, labels, each=each)


FAMILIES: Final[tuple[Family, ...]] = (
    _row(
        "cpu", "cpu_usage_seconds_total", "CPU time, with the label cpu=total.", f"{_AS}cpu_usage_seconds_total",
        labels=("cpu",), parts=((("total",), "usage_ns"),),
    ),
    _row("cpu", "cpu_user_seconds_total", "CPU time in user mode.", f"{_AS}cpu_seconds_total", "user_ns"),
    _row("cpu", "cpu_system_seconds_total", "CPU time in the kernel.", f"{_AS}cpu_seconds_total", "system_ns"),
    _row(
        "cpu", "cpu_cfs_periods_total", "Periods of the CPU quota that passed; absent without a quota.", "cpu.stat nr_periods",
        _limited("periods"),
    ),
    _row(
        "cpu", "cpu_cfs_throttled_periods_total", "Periods in which the quota was used up; absent without a quota.",
        "cpu.stat nr_throttled", _limited("throttled_periods"),
    ),
    _row(
        "cpu", "cpu_cfs_throttled_seconds_total", "Time the cgroup was stopped by its quota; absent without a quota.",
        f"{_AS}cpu_throttled_seconds_total", _limited("throttled_ns"),
    ),
    _row(
        "usage", "cpu_schedstat_runqueue_seconds_total",
        "Time tasks were runnable and waited for a CPU, since the load of the programs.", f"{_AS}run_queue_seconds_total",
        "run_queue_ns", collector="tasks",
    ),
    _row("memory", "memory_usage_bytes", "Memory charged, page cache included.", f"{_AS}memory_usage_bytes", "usage_bytes"),
    _row(
        "memory", "memory_working_set_bytes", "Memory usage less inactive file pages.", f"{_AS}memory_working_set_bytes",
        "working_set_bytes", collector="memory-stat",
    ),
    *_memory_types(),
    _row("memory", "memory_swap", "Swap in use.", f"{_AS}memory_swap_usage_bytes", "swap_usage_bytes"),
    _row(
        "memory", "memory_max_usage_bytes", "Most memory that was ever charged at once.", f"{_AS}memory_peak_bytes",
        "peak_bytes", final=True,
    ),
    _row(
        "memory", "memory_failcnt", "How often the memory limit was met.", "v2 memory.events max; v1 memory.failcnt",
        lambda memory: memory.events.get("max"),
    ),
    _row(
        "memory", "memory_kernel_usage", "Kernel memory.", "v2 memory.stat kernel, since 5.18; v1 memory.kmem.usage_in_bytes",
        _type("kernel"),
    ),
    _row(
        "memory", "memory_failures_total",
        "Page faults, all and those that needed IO (pgmajfault); both scopes include descendants.",
        "memory.stat pgfault, pgmajfault", by=_page_faults, labels=("failure_type", "scope"), collector="memory-stat",
    ),
    _row(
        "memory", "oom_events_total", "Processes that the OOM killer killed; on v1 of this cgroup alone.",
        f"{_AS}memory_events_total with event=oom_kill", lambda memory: memory.events.get("oom_kill"),
    ),
    *(
        _row(
            "io", f"fs_{name}", help_, f"{_AS}{source}; see there what v1 counts", by=_devices(field), labels=("device",),
            collector="io",
        )
        for name, help_, source, field in (
            ("reads_bytes_total", "Bytes read by device.", "io_bytes_total", "read_bytes"),
            ("reads_total", "Reads by device.", "io_operations_total", "reads"),
            ("writes_bytes_total", "Bytes written by device.", "io_bytes_total", "write_bytes"),
            ("writes_total", "Writes by device.", "io_operations_total", "writes"),
        )
    ),
    *_network(),
    *_pressure(),
    _row(
        "usage", "processes", "Processes in the cgroup and its descendants.", "BPF: the task iterator; /proc", "processes",
        collector="tasks",
    ),
    _row("pids", "threads", "Tasks in the cgroup and its descendants.", "pids.current", "current"),
    _row("pids", "threads_max", "Most tasks allowed, 0 without a limit.", "pids.max", lambda pids: _or_zero(pids.limit)),
    _row(
        "usage", "tasks_state", "Tasks in the cgroup and its descendants by state.", f"{_AS}tasks", labels=("state",),
        parts=(
            (("sleeping",), "sleeping"), (("running",), "running"), (("stopped",), "stopped"),
            (("uninterruptible",), "disk_sleep"),
        ),
        collector="tasks",
    ),
    _row(
        "cpu", "spec_cpu_period", "Period of the CPU quota, in microseconds.", "v2 cpu.max; v1 cpu.cfs_period_us",
        lambda cpu: None if cpu.period_ns is None else cpu.period_ns // 1000,
    ),
    _row(
        "cpu", "spec_cpu_quota", "CPU quota a period, in microseconds; absent without one.", "v2 cpu.max; v1 cpu.cfs_quota_us",
        _quota,
    ),
    _row("cpu", "spec_cpu_shares", "CPU shares, on v1's scale.", "v2 cpu.weight, converted as runc does; v1 cpu.shares", _shares),
    _row(
        "memory", "spec_memory_limit_bytes", "Memory limit, 0 without one.", "v2 memory.max; v1 memory.limit_in_bytes",
        lambda memory: _or_zero(memory.limit_bytes),
    ),
    _row(
        "memory", "spec_memory_swap_limit_bytes", "Swap limit, 0 without one; of swap alone, on v1 too.",
        f"{_AS}memory_swap_limit_bytes", lambda memory: _or_zero(memory.swap_limit_bytes),
    ),
    _row(
        "memory", "spec_memory_reservation_limit_bytes", "Memory that is kept from reclaim; v1's soft limit, 0 without one.",
        "v2 memory.min; v1 memory.soft_limit_in_bytes",
        lambda memory: _or_zero(memory.high_bytes if memory.min_bytes is None else memory.min_bytes),
    ),
    _row(
        "times", "start_time_seconds", "When the cgroup was made, since the epoch; absent where that was not seen.",
        "BPF: tracepoint cgroup:cgroup_mkdir", "created_ns",
    ),
    _row(
        "times", "last_seen", "When the cgroup was last there, seconds since the epoch: the time of the sample.",
        "CLOCK_REALTIME", lambda times: times.seen_ns // NS_PER_S,
    ),
    _machine("cpu_cores", "CPUs that are online.", "sysconf(3) _SC_NPROCESSORS_ONLN", lambda machine: machine.cpus),
    _machine("memory_bytes", "Memory of the machine.", "sysconf(3) _SC_PHYS_PAGES", lambda machine: machine.memory_bytes),
)  # fmt: skip
