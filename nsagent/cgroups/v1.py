"""cgroup v1's files: their bytes to stats, limits to their bytes. No other module knows their names (v2: nsagent.cgroups.v2).

Source: Documentation/admin-guide/cgroup-v1/ (cpuacct, memory, blkio-controller, pids), Documentation/scheduler/sched-bwc.rst.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable, Mapping
from typing import Final

from nsagent.cgroups.device_policy import MKNOD
from nsagent.cgroups.limits import (
    PERIOD_USEC,
    UNLIMITED,
    Limits,
    Setting,
    bfq_weight,
    format_cpus,
    parse_cpus,
    quota_usec,
    shares_of_weight,
    weight_of_shares,
)
from nsagent.cgroups.stats import CpuStats, IoDevice, IoStats, MemoryStats, PidsStats
from nsagent.cgroups.v2 import Files, parse_flat, parse_limit, parse_number, shared
from nsagent.errors import UnsupportedError

FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "cpuacct": ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys"),
    "cpu": ("cpu.stat", "cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares"),
    "memory": (
        "memory.usage_in_bytes",
        "memory.max_usage_in_bytes",
        "memory.limit_in_bytes",
        "memory.soft_limit_in_bytes",
        "memory.memsw.usage_in_bytes",
        "memory.memsw.limit_in_bytes",
        "memory.kmem.usage_in_bytes",
        "memory.failcnt",
        "memory.memsw.failcnt",
        "memory.oom_control",
        "memory.stat",
    ),
    "blkio": ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"),
    "pids": ("pids.current", "pids.max", "pids.peak", "pids.events"),
    "cpuset": ("cpuset.effective_cpus", "cpuset.effective_mems"),
    "rdma": ("rdma.current", "rdma.max"),
    "misc": ("misc.current", "misc.max", "misc.events"),
    "freezer": ("freezer.state",),
    "hugetlb": (),  # by the sizes there are: nsagent.cgroups.parts.hugetlb_files
}

# What only a write(2) in the cgroup's directory changes.
SETTINGS: Final = frozenset(
    {"cpu.cfs_quota_us", "cpu.cfs_period_us", "cpu.shares", "memory.limit_in_bytes", "memory.soft_limit_in_bytes"}
    | {"memory.memsw.limit_in_bytes", "pids.max", "misc.max"}
)

# PAGE_COUNTER_MAX pages, in bytes: 2**63 less one page, of at most 64 KiB.
_UNLIMITED: Final = 2**63 - 65536
_DETAIL: Final = {
    "anon": "total_rss",
    "file": "total_cache",
    "shmem": "total_shmem",
    "file_mapped": "total_mapped_file",
    "file_dirty": "total_dirty",
    "file_writeback": "total_writeback",
    "swapcached": "total_swapcached",
    "anon_thp": "total_rss_huge",
    "inactive_anon": "total_inactive_anon",
    "active_anon": "total_active_anon",
    "inactive_file": "total_inactive_file",
    "active_file": "total_active_file",
    "unevictable": "total_unevictable",
}
# What makes blkio count: a rule on the device that no disk can reach. On 6.18 one counts all; on 6.1 each its direction.
COUNTING_FILES: Final = ("blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device")
COUNTING_BPS: Final = 1 << 40


def parse_bytes_limit(text: bytes | None) -> float | None:
    """Parse a limit of the memory controller; its greatest number is no limit: inf."""
    number = parse_number(text)
    return math.inf if number is not None and number >= _UNLIMITED else number


def parse_blkio(text: bytes | None) -> dict[str, dict[str, int]]:
    """Parse a blkio file, ``MAJOR:MINOR OPERATION NUMBER`` a line, into {device: {operation: number}}."""
    devices: dict[str, dict[str, int]] = {}
    for line in (text or b"").splitlines():
        words = line.decode("ascii", "replace").split()
        if len(words) == 3 and words[2].isdigit():
            devices.setdefault(words[0], {})[words[1]] = int(words[2])
    return devices


def with_descendants(stat: bytes) -> bytes:
    """Return what is parsed of memory.stat: it has all figures twice, and the first are without descendants."""
    return stat[max(stat.find(b"hierarchical_memory_limit "), 0) :]


def cpu(files: Files) -> CpuStats | None:
    """Make CpuStats of cpuacct's and cpu's files, of which either may be absent."""
    usage, stat = parse_number(files.get("cpuacct.usage")), parse_flat(files.get("cpu.stat"))
    if usage is None and not stat and "cpu.shares" not in files:
        return None
    user, system = parse_number(files.get("cpuacct.usage_user")), parse_number(files.get("cpuacct.usage_sys"))
    shares, period = parse_number(files.get("cpu.shares")), parse_number(files.get("cpu.cfs_period_us"))
    return CpuStats(
        usage_ns=usage,
        user_ns=user,
        system_ns=system,
        periods=stat.get("nr_periods"),
        throttled_periods=stat.get("nr_throttled"),
        throttled_ns=stat.get("throttled_time"),
        bursts=stat.get("nr_bursts"),
        burst_ns=stat.get("burst_time"),
        limit_cores=_cores(files.get("cpu.cfs_quota_us"), period),
        weight=None if shares is None else weight_of_shares(shares),
        period_ns=shared(None if period is None else period * 1000),
        shares=shared(shares),
    )


def _cores(quota: bytes | None, period: int | None) -> float | None:
    if quota is not None and quota.startswith(b"-"):
        return math.inf
    number = parse_number(quota)
    return number / period if number is not None and period else None


def memory(files: Files) -> MemoryStats | None:
    """Make MemoryStats.

    `max` counts the failures of both limits, memory's and that of memory plus swap: a charge fails by one of them.
    """
    usage = parse_number(files.get("memory.usage_in_bytes"))
    if usage is None:
        return None
    stat = parse_flat(files.get("memory.stat"))
    inactive = stat.get("total_inactive_file")
    faults, major = stat.get("total_pgfault"), stat.get("total_pgmajfault")
    limit, total_limit = (parse_bytes_limit(files.get(f"memory.{word}limit_in_bytes")) for word in ("", "memsw."))
    total = parse_number(files.get("memory.memsw.usage_in_bytes"))
    detail = {name: stat[key] for name, key in _DETAIL.items() if key in stat}
    kernel = parse_number(files.get("memory.kmem.usage_in_bytes"))
    if kernel is not None:
        detail["kernel"] = kernel
    return MemoryStats(
        usage_bytes=usage,
        peak_bytes=parse_number(files.get("memory.max_usage_in_bytes")),
        working_set_bytes=None if inactive is None else max(usage - inactive, 0),
        limit_bytes=limit,
        high_bytes=parse_bytes_limit(files.get("memory.soft_limit_in_bytes")),
        effective_limit_bytes=parse_bytes_limit(str(stat.get("hierarchical_memory_limit")).encode()),
        swap_usage_bytes=None if total is None else stat.get("total_swap", max(total - usage, 0)),
        swap_limit_bytes=_difference(total_limit, limit),
        minor_faults=None if faults is None or major is None else max(faults - major, 0),
        major_faults=major,
        refaults_anon=stat.get("total_workingset_refault_anon"),
        refaults_file=stat.get("total_workingset_refault_file"),
        detail=detail,
        events=_events(*map(files.get, ("memory.failcnt", "memory.memsw.failcnt", "memory.oom_control"))),
    )


def _difference(total: float | None, limit: float | None) -> float | None:
    if total is None or limit is None:
        return None
    return math.inf if total == math.inf else max(total - limit, 0)


@functools.lru_cache(maxsize=256)
def _events(failcnt: bytes | None, swap_failcnt: bytes | None, oom_control: bytes | None) -> Mapping[str, int]:
    """Return the events; most cgroups have the same."""
    events = {}
    failures = parse_number(failcnt)
    if failures is not None:
        events["max"] = failures + (parse_number(swap_failcnt) or 0)
    kills = parse_flat(oom_control).get("oom_kill")  # Since 4.13
    if kills is not None:
        events["oom_kill"] = kills
    return events


def io(files: Files, counted: Callable[[str], bool] = lambda _: False) -> IoStats | None:
    """Make IoStats, of the devices that are counted; None where there is none.

    Without a throttle rule kernels list nothing (6.12, 6.18) or zeros (6.1): such a zero is no measurement. `counted` tells of
    a device that there is a rule, or that it had other numbers, so that zeros are true.
    """
    sizes, numbers = (parse_blkio(files.get(name)) for name in FILES["blkio"])
    devices = {}
    for device, size in sizes.items():
        number = numbers.get(device, {})
        if any(size.values()) or any(number.values()) or counted(device):
            devices[device] = IoDevice(
                size.get("Read"),
                size.get("Write"),
                size.get("Discard"),
                number.get("Read"),
                number.get("Write"),
                number.get("Discard"),
            )
    return IoStats(devices) if devices else None


def pids(files: Files) -> PidsStats | None:
    """Make PidsStats; the root has none."""
    if "pids.current" not in files:
        return None
    return PidsStats(
        current=parse_number(files["pids.current"]),
        limit=parse_limit(files.get("pids.max")),
        peak=parse_number(files.get("pids.peak")),
        limit_hits=parse_flat(files.get("pids.events")).get("max"),
    )


def settings(limits: Limits, controllers: frozenset[str], *, bfq: bool = False) -> list[Setting]:
    """Return the writes that set those of `limits` whose controllers are in `controllers`; see nsagent.cgroups.v2.settings."""
    make, plan = Setting.make, []
    if "cpu" in controllers and limits.cpus is not None:
        plan.append(make("--cpus", "cpu.cfs_period_us", str(PERIOD_USEC)))
        plan.append(make("--cpus", "cpu.cfs_quota_us", str(quota_usec(limits.cpus))))
    if "cpu" in controllers and limits.cpu_weight is not None:
        plan.append(make("--cpu-weight", "cpu.shares", str(shares_of_weight(limits.cpu_weight))))
    if "memory" in controllers and limits.memory_bytes is not None:
        page = os.sysconf("SC_PAGE_SIZE")
        swap = limits.swap_bytes or 0
        total, optional = limits.memory_bytes // page * page + swap + page, swap in (0, UNLIMITED)
        # The kernel keeps limit <= memsw limit at every moment: lift the second, set the first, lower the second. One
        # page more than asked for: with equal limits memory.failcnt and memory.memsw.failcnt both stay 0 (6.18).
        plan += [
            make("--memory", "memory.memsw.limit_in_bytes", "-1", expect="", optional=optional),
            make("--memory", "memory.limit_in_bytes", str(limits.memory_bytes), expect=str(limits.memory_bytes // page * page)),
        ]
        if swap != UNLIMITED:
            plan.append(
                make("--memory", "memory.memsw.limit_in_bytes", str(total), expect=str(total // page * page), optional=optional)
            )
    if "memory" in controllers and limits.memory_high_bytes is not None:
        raise UnsupportedError(
            "--memory-high", "cgroup v1 has a hard limit alone", hint="--memory; or boot with the memory controller on cgroup v2"
        )
    if "pids" in controllers and limits.pids is not None:
        plan.append(make("--pids", "pids.max", str(limits.pids)))
    if "cpuset" in controllers and limits.cpuset is not None:
        plan.append(make("--cpuset", "cpuset.cpus", format_cpus(parse_cpus(limits.cpuset))))
    if "blkio" in controllers:
        for limit in limits.io_max:
            for word, value in (("read_bps", limit.rbps), ("write_bps", limit.wbps)):
                if value is not None:
                    plan.append(make("--io-max", f"blkio.throttle.{word}_device", f"{limit.device} {value}"))
            for word, value in (("read_iops", limit.riops), ("write_iops", limit.wiops)):
                if value is not None:
                    plan.append(make("--io-max", f"blkio.throttle.{word}_device", f"{limit.device} {value}"))
        if limits.io_weight is not None:
            if not bfq:
                raise UnsupportedError(
                    "--io-weight",
                    "no disk has the bfq scheduler, so nothing would obey it",
                    hint="echo bfq > /sys/block/DISK/queue/scheduler",
                )
            plan.append(make("--io-weight", "blkio.bfq.weight", str(bfq_weight(limits.io_weight))))
    if "hugetlb" in controllers:
        for size in limits.hugetlb:
            plan += size.settings("limit_in_bytes", "rsvd.limit_in_bytes")
    if "devices" in controllers and limits.devices is not None:
        plan.append(make("--device-policy", "devices.deny", "a", expect="", read_file="devices.list"))
        for rule in (*MKNOD, *map(str, limits.devices)):
            plan.append(make("--device-policy", "devices.allow", rule, read_file="devices.list"))
    return plan
