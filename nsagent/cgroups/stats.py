"""What one cgroup has used and may use, in one form for cgroup v1 and v2.

Every field: None means that this kernel, hierarchy or cgroup does not report it, never zero; a limit of ``math.inf``
means that there is none. Counters are since the creation of the cgroup and include its descendants, living and dead,
except where a field says otherwise. Time is ns, sizes are bytes.
Sources: Documentation/admin-guide/cgroup-v2.rst; Documentation/admin-guide/cgroup-v1/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class CpuStats:
    """CPU time and its limits. Sources: v2 cpu.stat, cpu.max, cpu.weight; v1 cpuacct.usage*, cpu.stat, cfs_*, shares.

    Periods are those of the bandwidth limit; they stand still without one. `weight` is on v2's scale (1 to 10000, 100 by
    default); v1's shares are converted as the kernel does. v1 samples `user_ns` and `system_ns` by tick: their sum is not
    exactly `usage_ns`.
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


@dataclass(frozen=True, slots=True)
class MemoryStats:
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
    detail: Mapping[str, int] = field(default_factory=dict)
    events: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class IoDevice:
    """What was transferred from and to one block device. v1 does not count buffered writeback."""

    read_bytes: int | None = None
    write_bytes: int | None = None
    discard_bytes: int | None = None
    reads: int | None = None
    writes: int | None = None
    discards: int | None = None


@dataclass(frozen=True, slots=True)
class IoStats:
    """IO by device, ``major:minor``. Sources: v2 io.stat; v1 blkio.throttle.io_*_recursive (falls when a child is removed)."""

    devices: Mapping[str, IoDevice] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PidsStats:
    """Tasks (threads count) and forks refused (`limit_hits`). Source: pids.current, .max, .peak (since 6.1), .events."""

    current: int | None = None
    limit: float | None = None
    peak: int | None = None
    limit_hits: int | None = None


@dataclass(frozen=True, slots=True)
class CgroupStats:
    """One reading of one cgroup; a part is None where its controller does not exist for this cgroup."""

    cpu: CpuStats | None = None
    memory: MemoryStats | None = None
    io: IoStats | None = None
    pids: PidsStats | None = None
