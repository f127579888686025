"""What the fast lane (nsagent.kernel.lane) knows of a cgroup, as the contents of the files it makes needless.

So what parses files needs not know where their bytes came from, and the two are compared file by file. A record has what one
hierarchy's controllers hold; the root's files differ from its counters in many ways, and are read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, Protocol

from nsagent.cgroups.limits import format_cpus

if TYPE_CHECKING:
    from nsagent.kernel.lane import Core

Files = dict[str, bytes]
# That it has something of; state and pressure are there on v2 without one.
CONTROLLERS: Final = frozenset({"cpuacct", "cpu", "memory", "pids", "cpuset", "freezer", "blkio", "io", "state", "pressure"})
_EVENTS: Final = ("low", "high", "max", "oom", "oom_kill", "oom_group_kill")
_UNLIMITED_V1 = (1 << 63) - 1


class Walk(Protocol):
    """What a walk found: nsagent.kernel.lane.Walk."""

    @property
    def ids(self) -> bytes:
        """The kernfs ids, a u64 each."""
        ...

    @property
    def digests(self) -> bytes:
        """Of the rest of each record."""
        ...

    def decode(self, index: int) -> Core:
        """Decode a record."""
        ...


class Lane(Protocol):
    """What walks a hierarchy: nsagent.kernel.lane.CgroupLane."""

    def read(self, mountpoint: str) -> Walk:
        """Walk the cgroups of a hierarchy; what was found is gone with the next. Raises NsagentError."""
        ...


def files_of(core: Core, version: int) -> Files:
    """Return the contents of the files that `core` stands for in a hierarchy of v1 or v2."""
    return dict(_v2(core) if version == 2 else _v1(core))


def _number(value: float | None) -> bytes:
    return b"%d\n" % value if value is not None else b""


def _max(value: float | None) -> bytes:
    return b"max\n" if value == math.inf else _number(value)


def _pids(core: Core, refused: int | None) -> Iterator[tuple[str, bytes]]:
    if core.pids is None:
        return
    yield "pids.current", _number(core.pids)
    yield "pids.max", _max(core.pids_limit)
    if core.pids_peak is not None:
        yield "pids.peak", _number(core.pids_peak)
    if refused is not None:
        yield "pids.events", b"max %d\n" % refused


def _v1(core: Core) -> Iterator[tuple[str, bytes]]:
    if core.usage_ns is not None:
        yield "cpuacct.usage", _number(core.usage_ns)
        yield "cpuacct.usage_user", _number(core.user_ns)
        yield "cpuacct.usage_sys", _number(core.system_ns)
    if core.shares is not None:
        yield "cpu.shares", _number(core.shares)
    if core.quota_ns is not None:
        quota = -1 if core.quota_ns == math.inf else int(core.quota_ns) // 1000
        yield "cpu.cfs_quota_us", b"%d\n" % quota
        yield "cpu.cfs_period_us", _number((core.period_ns or 0) // 1000)
        text = b"nr_periods %d\nnr_throttled %d\nthrottled_time %d\n"
        stat = text % (core.periods, core.throttled_periods, core.throttled_ns)
        if core.bursts is not None:
            stat += b"nr_bursts %d\nburst_time %d\n" % (core.bursts, core.burst_ns or 0)
        yield "cpu.stat", stat
    if core.memory_bytes is not None:
        page = os.sysconf("SC_PAGE_SIZE")
        none = _UNLIMITED_V1 // page * page

        def limit(value: float | None) -> bytes:
            return b"%d\n" % none if value == math.inf else _number(value)

        yield "memory.usage_in_bytes", _number(core.memory_bytes)
        yield "memory.max_usage_in_bytes", _number(core.memory_peak_bytes)
        yield "memory.limit_in_bytes", limit(core.memory_limit_bytes)
        yield "memory.failcnt", _number(core.memory_failures)
        yield "memory.memsw.usage_in_bytes", _number(core.swap_bytes)
        yield "memory.memsw.limit_in_bytes", limit(core.swap_limit_bytes)
        yield "memory.memsw.failcnt", _number(core.swap_failures)
        yield "memory.oom_control", b"oom_kill %d\n" % core.memory_events[4]
        if core.kernel_bytes is not None:
            yield "memory.kmem.usage_in_bytes", _number(core.kernel_bytes)
        if core.soft_limit_bytes is not None:
            yield "memory.soft_limit_in_bytes", limit(core.soft_limit_bytes)
    yield from _pids(core, core.pids_refused_here)
    if core.frozen is not None:
        yield "freezer.state", b"FROZEN\n" if core.frozen else b"THAWED\n"
    if core.cpus is not None:
        yield "cpuset.effective_cpus", _list(core.cpus)
    if core.memory_nodes is not None:
        yield "cpuset.effective_mems", _list(core.memory_nodes)
    if core.no_io:
        yield "blkio.throttle.io_service_bytes_recursive", b"Total 0\n"
        yield "blkio.throttle.io_serviced_recursive", b"Total 0\n"


def _list(numbers: frozenset[int]) -> bytes:
    return format_cpus(numbers).encode() + b"\n"


def _v2(core: Core) -> Iterator[tuple[str, bytes]]:
    """cpu.stat is not among them: its times need a flush, and are scaled by what only the kernel remembers. Nor is cpu.weight."""
    if core.quota_ns is not None and core.period_ns is not None:
        quota = b"max" if core.quota_ns == math.inf else b"%d" % (int(core.quota_ns) // 1000)
        yield "cpu.max", b"%b %d\n" % (quota, core.period_ns // 1000)
    if core.memory_bytes is not None:
        yield "memory.current", _number(core.memory_bytes)
        yield "memory.peak", _number(core.memory_peak_bytes)
        yield "memory.max", _max(core.memory_limit_bytes)
        yield "memory.high", _max(core.memory_high_bytes)
        yield "memory.low", _max(core.memory_low_bytes)
        yield "memory.min", _max(core.memory_min_bytes)
        yield "memory.swap.current", _number(core.swap_bytes)
        yield "memory.swap.max", _max(core.swap_limit_bytes)
        yield "memory.events", b"".join(b"%b %d\n" % (k.encode(), v) for k, v in zip(_EVENTS, core.memory_events, strict=True))
    yield from _pids(core, core.pids_refused)
    if core.populated is not None and core.frozen is not None:
        yield "cgroup.events", b"populated %d\nfrozen %d\n" % (core.populated, core.frozen)
        yield (
            "cgroup.stat",
            b"nr_descendants %d\nnr_dying_descendants %d\n" % (core.descendants or 0, core.dying_descendants or 0),
        )
    if core.cpus is not None:
        yield "cpuset.cpus.effective", _list(core.cpus)
    if core.memory_nodes is not None:
        yield "cpuset.mems.effective", _list(core.memory_nodes)
    if core.no_io:
        yield "io.stat", b""
    for resource, some, full in core.pressure_ns:  # without the averages, which nothing here is made of
        waiting = b"some total=%d\n" % (some // 1000) if some is not None else b""
        yield f"{resource}.pressure", waiting + b"full total=%d\n" % (full // 1000)
