"""cgroup v2's files: their bytes to stats, limits to their bytes. No other module knows their names (v1: nsagent.cgroups.v1).

Source: Documentation/admin-guide/cgroup-v2.rst. The parse functions are pure; a number that is not there is None.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping
from typing import Final

from nsagent.cgroups.limits import (
    PERIOD_USEC,
    UNLIMITED,
    IoMax,
    Limits,
    Setting,
    bfq_weight,
    format_cpus,
    parse_cpus,
    quota_usec,
)
from nsagent.cgroups.stats import CpuStats, IoDevice, IoStats, MemoryStats, PidsStats
from nsagent.errors import UnsupportedError

# By controller; read one file of all cgroups before the next file (see nsagent.cgroups.reader).
FILES: Final[Mapping[str, tuple[str, ...]]] = {
    "cpu": ("cpu.stat", "cpu.max", "cpu.weight"),
    "memory": (
        "memory.current",
        "memory.peak",
        "memory.max",
        "memory.high",
        "memory.low",
        "memory.min",
        "memory.swap.current",
        "memory.swap.max",
        "memory.zswap.current",
        "memory.events",
        "memory.stat",
    ),
    "io": ("io.stat",),
    "pids": ("pids.current", "pids.max", "pids.peak", "pids.events"),
    "cpuset": ("cpuset.cpus.effective", "cpuset.mems.effective"),
    "rdma": ("rdma.current", "rdma.max"),
    "misc": ("misc.current", "misc.max", "misc.events"),
    "pressure": ("cpu.pressure", "memory.pressure", "io.pressure", "irq.pressure"),
    "state": ("cgroup.events", "cgroup.stat"),
    "hugetlb": (),  # by the sizes there are: nsagent.cgroups.parts.hugetlb_files
}

# What only a write(2) in the cgroup's directory changes.
SETTINGS: Final = frozenset(
    {"cpu.max", "cpu.weight", "memory.max", "memory.high", "memory.low", "memory.min", "memory.swap.max", "pids.max", "misc.max"}
)

# There without a controller too; cpu.stat then with the times alone.
EVERYWHERE: Final = frozenset({"cpu.stat", *FILES["pressure"], *FILES["state"]})

DETAIL: Final = (
    "anon",
    "file",
    "shmem",
    "kernel",
    "kernel_stack",
    "pagetables",
    "percpu",
    "sock",
    "vmalloc",
    "slab_reclaimable",
    "slab_unreclaimable",
    "file_mapped",
    "file_dirty",
    "file_writeback",
    "swapcached",
    "anon_thp",
    "file_thp",
    "shmem_thp",
    "inactive_anon",
    "active_anon",
    "inactive_file",
    "active_file",
    "unevictable",
)
_EVENTS: Final = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")

Files = Mapping[str, bytes]


@functools.lru_cache(maxsize=64)
def _decoded(keys: tuple[bytes, ...]) -> tuple[str, ...]:
    """Decode the keys of a file, which are the same at each reading of it."""
    return tuple(key.decode("ascii", "replace") for key in keys)


def without_full(pressure: bytes) -> bytes:
    """Return the system's cpu.pressure without its `full`: undefined there, and always 0 (Documentation/accounting/psi.rst)."""
    return pressure.partition(b"full ")[0]


def parse_flat(text: bytes | None) -> dict[str, int]:
    """Parse a flat keyed file, ``KEY VALUE`` a line; what is not of that form is left out."""
    if not text:
        return {}
    words = text.split()
    if text.count(b"\n") * 2 == len(words) == text.count(b" ") * 2 and all(map(bytes.isdigit, words[1::2])):
        return dict(zip(_decoded(tuple(words[::2])), map(int, words[1::2]), strict=True))
    found = {}
    for line in text.splitlines():
        key, _, value = line.partition(b" ")
        if value.isdigit():
            found[key.decode("ascii", "replace")] = int(value)
    return found


def parse_number(text: bytes | None) -> int | None:
    """Parse a file of one decimal number; None for anything else."""
    word = (text or b"").strip()
    return int(word) if word.isdigit() else None


@functools.lru_cache(256)
def shared(number: int | None) -> int | None:
    """Return the number: the same object, where most cgroups have the same."""
    return number


def parse_limit(text: bytes | None) -> float | None:
    """Parse a file of one number or ``max``, which is inf."""
    return math.inf if text is not None and text.strip() == b"max" else parse_number(text)


def parse_cpu_max(text: bytes | None) -> float | None:
    """Parse cpu.max, ``QUOTA|max PERIOD``, into CPUs."""
    quota, _, period = (text or b"").strip().partition(b" ")
    if quota == b"max":
        return math.inf
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def parse_io_stat(text: bytes) -> dict[str, IoDevice]:
    """Parse io.stat, a nested keyed file. Devices without numbers, which old kernels list, are left out."""
    devices = {}
    for line in text.splitlines():
        device, _, rest = line.decode("ascii", "replace").partition(" ")
        pairs = rest.split()
        values = dict(pair.split("=", 1) for pair in pairs if "=" in pair)
        numbers = {key: int(value) for key, value in values.items() if value.isdigit()}
        if "rbytes" in numbers:
            get = numbers.get
            devices[device] = IoDevice(get("rbytes"), get("wbytes"), get("dbytes"), get("rios"), get("wios"), get("dios"))
    return devices


def _usec(value: int | None) -> int | None:
    return None if value is None else value * 1000


def cpu(files: Files) -> CpuStats | None:
    """Make CpuStats. cpu.stat's times are there without the controller too, on a hybrid host's v2 tree as well."""
    if "cpu.stat" not in files:
        return None
    get = parse_flat(files["cpu.stat"]).get
    return CpuStats(
        usage_ns=_usec(get("usage_usec")),
        user_ns=_usec(get("user_usec")),
        system_ns=_usec(get("system_usec")),
        periods=get("nr_periods"),
        throttled_periods=get("nr_throttled"),
        throttled_ns=_usec(get("throttled_usec")),
        bursts=get("nr_bursts"),
        burst_ns=_usec(get("burst_usec")),
        limit_cores=parse_cpu_max(files.get("cpu.max")),
        weight=parse_number(files.get("cpu.weight")),
        period_ns=shared(_usec(parse_number(files.get("cpu.max", b"").partition(b" ")[2]))),
    )


def memory(files: Files) -> MemoryStats | None:
    """Make MemoryStats; `effective_limit_bytes` is for the reader, which sees the ancestors. The root has memory.stat only."""
    if "memory.stat" not in files and "memory.current" not in files:
        return None
    stat = parse_flat(files.get("memory.stat"))
    usage, inactive = parse_number(files.get("memory.current")), stat.get("inactive_file")
    faults, major = stat.get("pgfault"), stat.get("pgmajfault")
    return MemoryStats(
        usage_bytes=usage,
        peak_bytes=parse_number(files.get("memory.peak")),
        working_set_bytes=None if usage is None or inactive is None else max(usage - inactive, 0),
        limit_bytes=parse_limit(files.get("memory.max")),
        high_bytes=parse_limit(files.get("memory.high")),
        low_bytes=parse_limit(files.get("memory.low")),
        min_bytes=parse_limit(files.get("memory.min")),
        swap_usage_bytes=parse_number(files.get("memory.swap.current")),
        swap_limit_bytes=parse_limit(files.get("memory.swap.max")),
        zswap_usage_bytes=parse_number(files.get("memory.zswap.current")),
        minor_faults=None if faults is None or major is None else max(faults - major, 0),
        major_faults=major,
        refaults_anon=stat.get("workingset_refault_anon"),
        refaults_file=stat.get("workingset_refault_file"),
        scanned_pages=stat.get("pgscan"),
        reclaimed_pages=stat.get("pgsteal"),
        detail={name: stat[name] for name in DETAIL if name in stat},
        events=_events(files.get("memory.events")),
    )


@functools.lru_cache(maxsize=256)
def _events(text: bytes | None) -> Mapping[str, int]:
    """Return the events; most cgroups have the same."""
    events = parse_flat(text)
    return {name: events[name] for name in _EVENTS if name in events}


def io(files: Files) -> IoStats | None:
    """Make IoStats; no device is listed before its first IO."""
    return IoStats(parse_io_stat(files["io.stat"])) if "io.stat" in files else None


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


def settings(limits: Limits, controllers: frozenset[str], *, bfq: bool = False, iocost: bool = False) -> list[Setting]:
    """Return the writes that set those of `limits` whose controllers are in `controllers`.

    `bfq`: some disk uses that scheduler; `iocost`: io.cost.qos enables some disk. Without either nothing
    obeys an IO weight. Raises UnsupportedError, UsageError.
    """
    make, plan = Setting.make, []
    if "cpu" in controllers and limits.cpus is not None:
        plan.append(make("--cpus", "cpu.max", f"{quota_usec(limits.cpus)} {PERIOD_USEC}"))
    if "cpu" in controllers and limits.cpu_weight is not None:
        plan.append(make("--cpu-weight", "cpu.weight", str(limits.cpu_weight)))
    if "memory" in controllers and limits.memory_bytes is not None:
        page = os.sysconf("SC_PAGE_SIZE")
        swap = limits.swap_bytes or 0
        optional = not swap  # a kernel without swap accounting cannot refuse swap, and this is no reason to refuse the job
        plan.append(make("--memory", "memory.max", str(limits.memory_bytes), expect=str(limits.memory_bytes // page * page)))
        if swap == UNLIMITED:
            plan.append(make("--memory-swap", "memory.swap.max", "max", optional=True))
        else:
            plan.append(make("--memory", "memory.swap.max", str(swap), expect=str(swap // page * page), optional=optional))
    if "memory" in controllers and limits.memory_high_bytes is not None:
        high = limits.memory_high_bytes // os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PAGE_SIZE")
        plan.append(make("--memory-high", "memory.high", str(limits.memory_high_bytes), expect=str(high)))
    if "pids" in controllers and limits.pids is not None:
        plan.append(make("--pids", "pids.max", str(limits.pids)))
    if "cpuset" in controllers and limits.cpuset is not None:
        cpus = format_cpus(parse_cpus(limits.cpuset))
        plan.append(make("--cpuset", "cpuset.cpus", cpus, read_file="cpuset.cpus.effective"))
    if "io" in controllers:
        plan += [make("--io-max", "io.max", line, expect=line) for line in map(_io_max, limits.io_max)]
        if limits.io_weight is not None:
            plan.append(_io_weight(limits.io_weight, bfq=bfq, iocost=iocost))
    if "hugetlb" in controllers:
        for size in limits.hugetlb:
            plan += size.settings("max", "rsvd.max")
    return plan


def _io_max(limit: IoMax) -> str:
    words = (f"{key}={'max' if v is None else v}" for key in ("rbps", "wbps", "riops", "wiops") for v in [getattr(limit, key)])
    return f"{limit.device} {' '.join(words)}"


def _io_weight(weight: int, *, bfq: bool, iocost: bool) -> Setting:
    if iocost:
        return Setting.make("--io-weight", "io.weight", f"default {weight}")
    if bfq:
        value = f"default {bfq_weight(weight)}"
        return Setting.make("--io-weight", "io.bfq.weight", value)
    raise UnsupportedError(
        "--io-weight",
        "no disk has the bfq scheduler or io.cost enabled, so nothing would obey it",
        hint="echo bfq > /sys/block/DISK/queue/scheduler",
    )
