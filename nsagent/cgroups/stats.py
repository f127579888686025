"""What one cgroup has used and may use, in one form for cgroup v1 and v2.

Every field: None means that this kernel, hierarchy or cgroup does not report it, never zero; a limit of ``math.inf``
means that there is none. Counters are since the creation of the cgroup and include its descendants, living and dead,
except where a field says otherwise. Time is ns, sizes are bytes. Tuples, because thousands are made and compared in a scrape;
a part that did not change since the last reading is the same object.
Sources: Documentation/admin-guide/cgroup-v2.rst; Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

_NONE: Final[Mapping[Any, Any]] = MappingProxyType({})


class CpuStats(NamedTuple):
    """CPU time and its limits. Sources: v2 cpu.stat, cpu.max, cpu.weight; v1 cpuacct.usage*, cpu.stat, cfs_*, shares.

    Periods are those of the bandwidth limit; they stand still without one. `weight` is on v2's scale (1 to 10000, 100 by
    default); v1's shares are converted as the kernel does, and are in `shares`, which v2 has not. v1 samples `user_ns` and
    `system_ns` by tick: their sum is not exactly `usage_ns`.
    """

    usage_ns: int | None = None
    user_ns: int | None = None
    system_ns: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None
    bursts: int | None = None
    burst_ns: int | None = None
    limit_cores: float | None = None
    weight: int | None = None
    period_ns: int | None = None
    shares: int | None = None


class MemoryStats(NamedTuple):
    """Memory charged, its limits and its events.

    `working_set_bytes` is the usage without inactive file pages, as kubelet counts it. `high_bytes` is memory.high on
    v2 and the soft limit on v1. `effective_limit_bytes` is the least limit of this cgroup and its ancestors. `swap_*`: v1 keeps
    memory plus swap; here it is the difference. `detail` has the type names of docs/metrics.md; its values overlap.
    `events` may have low, high, max, oom, oom_kill, oom_group_kill; on v1 only max and oom_kill, of this cgroup alone.
    """

    usage_bytes: int | None = None
    peak_bytes: int | None = None
    working_set_bytes: int | None = None
    limit_bytes: float | None = None
    high_bytes: float | None = None
    low_bytes: float | None = None
    min_bytes: float | None = None
    effective_limit_bytes: float | None = None
    swap_usage_bytes: int | None = None
    swap_limit_bytes: float | None = None
    zswap_usage_bytes: int | None = None
    minor_faults: int | None = None
    major_faults: int | None = None
    refaults_anon: int | None = None
    refaults_file: int | None = None
    scanned_pages: int | None = None
    reclaimed_pages: int | None = None
    detail: Mapping[str, int] = _NONE
    events: Mapping[str, int] = _NONE


class IoDevice(NamedTuple):
    """What was transferred from and to one block device. v1 does not count buffered writeback."""

    read_bytes: int | None = None
    write_bytes: int | None = None
    discard_bytes: int | None = None
    reads: int | None = None
    writes: int | None = None
    discards: int | None = None


class IoStats(NamedTuple):
    """IO by device: its number, ``major:minor``; a Reader's by name (nsagent.cgroups.devices).

    Sources: v2 io.stat; v1 blkio.throttle.io_*_recursive (falls when a child is removed).
    """

    devices: Mapping[str, IoDevice] = _NONE


class PidsStats(NamedTuple):
    """Tasks (threads count) and forks refused (`limit_hits`). Source: pids.current, .max, .peak (since 6.1), .events."""

    current: int | None = None
    limit: float | None = None
    peak: int | None = None
    limit_hits: int | None = None


class CpusetStats(NamedTuple):
    """How many CPUs and memory nodes the tasks may use. Sources: v2 cpuset.*.effective; v1 cpuset.effective_*."""

    cpus: int | None = None
    mems: int | None = None


class Pressure(NamedTuple):
    """Time in which some task, and in which every task that was not idle, waited for a resource."""

    waiting_ns: int | None = None
    stalled_ns: int | None = None


class PressureStats(NamedTuple):
    """Pressure by resource: cpu, memory, io, irq. Source: v2 *.pressure, also of a hybrid host's v2 tree."""

    resources: Mapping[str, Pressure] = _NONE


class HugetlbSize(NamedTuple):
    """Huge pages of one size. `failures`: charges refused by the limit."""

    usage_bytes: int | None = None
    limit_bytes: float | None = None
    failures: int | None = None


class HugetlbStats(NamedTuple):
    """Huge pages by size, as the files spell it: 2MB, 1GB. Sources: hugetlb.SIZE.*."""

    sizes: Mapping[str, HugetlbSize] = _NONE


class Countable(NamedTuple):
    """Something that is counted against a limit."""

    usage: int | None = None
    limit: float | None = None


class RdmaStats(NamedTuple):
    """RDMA by (device, object): handle and object (hca_handle, hca_object). Sources: rdma.current, rdma.max."""

    objects: Mapping[tuple[str, str], Countable] = _NONE


class MiscStats(NamedTuple):
    """Scarce resources by name, such as sev. `events`: charges refused by the limit. Sources: misc.current, .max, .events."""

    resources: Mapping[str, Countable] = _NONE
    events: Mapping[str, int] = _NONE


class StateStats(NamedTuple):
    """What the cgroup is like now. Sources: v2 cgroup.events, cgroup.stat; v1 freezer.state."""

    frozen: bool | None = None
    populated: bool | None = None
    descendants: int | None = None
    dying_descendants: int | None = None


class CgroupStats(NamedTuple):
    """One reading of one cgroup; a part is None where its controller does not exist for this cgroup."""

    cpu: CpuStats | None = None
    memory: MemoryStats | None = None
    io: IoStats | None = None
    pids: PidsStats | None = None
    cpuset: CpusetStats | None = None
    pressure: PressureStats | None = None
    hugetlb: HugetlbStats | None = None
    rdma: RdmaStats | None = None
    misc: MiscStats | None = None
    state: StateStats | None = None
