"""The fast lane: what the controllers of one hierarchy hold of every cgroup, by one walk of bpf_iter/cgroup (bpf/lane.c).

Since Linux kernel commit d4ccaf58a847 ("bpf: Introduce cgroup iter") (in v6.1). A walk of 1,000 cgroups takes a millisecond.
"""

from __future__ import annotations

import functools
import math
import mmap
import os
import struct
from collections.abc import Mapping
from typing import Final, NamedTuple

from nsagent.errors import LoadError
from nsagent.kernel import abi, bpf
from nsagent.kernel.maps import Map, possible_cpus

_DESCENDANTS_PRE: Final = 2  # enum bpf_cgroup_iter_order: parents first
_ID: Final = struct.Struct("=Q")
_CPUACCT, _SHARES, _BANDWIDTH, _BURST, _MEMORY, _KMEM, _SOFT_LIMIT, _PIDS, _PIDS_PEAK, _PIDS_EVENTS = (1 << n for n in range(10))
_STATE, _FREEZER, _CPUSET, _NO_IO = (1 << n for n in range(10, 14))
_PRESSURES: Final = (("cpu", 1 << 14, 43), ("memory", 1 << 15, 45), ("io", 1 << 16, 47))  # and the first of two words
_IRQ_PRESSURE: Final = 1 << 17
_MEMORY_STAT: Final = 1 << 18
_WORD: Final = 64
_NO_QUOTA: Final = (1 << 64) - 1  # RUNTIME_INF
_PIDS_MAX: Final = 1 << 22  # PIDS_MAX is PID_MAX_LIMIT + 1: what lies above no limit can be
_SHARES_UNIT: Final = 10  # SCHED_FIXEDPOINT_SHIFT: scale_load_down()


class Core(NamedTuple):
    """A record in ns, bytes and counts; None where the hierarchy, the cgroup or the kernel has it not, inf where no limit is."""

    usage_ns: int | None = None
    user_ns: int | None = None
    system_ns: int | None = None
    shares: int | None = None
    quota_ns: float | None = None
    period_ns: int | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_ns: int | None = None
    bursts: int | None = None
    burst_ns: int | None = None
    memory_bytes: int | None = None
    memory_peak_bytes: int | None = None
    memory_limit_bytes: float | None = None
    memory_high_bytes: float | None = None
    memory_low_bytes: float | None = None
    memory_min_bytes: float | None = None
    memory_failures: int | None = None
    swap_bytes: int | None = None  # on v1 memory and swap
    swap_limit_bytes: float | None = None
    swap_failures: int | None = None
    memory_events: tuple[int, ...] = ()  # low, high, max, oom, oom_kill, oom_group_kill
    kernel_bytes: int | None = None
    soft_limit_bytes: float | None = None
    pids: int | None = None
    pids_limit: float | None = None
    pids_peak: int | None = None
    pids_refused: int | None = None
    pids_refused_here: int | None = None
    populated: bool | None = None
    frozen: bool | None = None
    descendants: int | None = None
    dying_descendants: int | None = None
    cpus: frozenset[int] | None = None
    memory_nodes: frozenset[int] | None = None
    no_io: bool = False  # no device has any; False tells nothing
    pressure_ns: tuple[tuple[str, int | None, int], ...] = ()  # resource, some, full; those that are up to date
    memory_stat: int | None = None  # of equal ones memory.stat has the same bytes


def decode(record: bytes, page: int) -> Core:
    """Decode a record; `page` is the bytes of a page."""
    w = abi.LANE.unpack(record)
    present = w[2]
    unlimited = ((1 << 63) - 1) // page  # PAGE_COUNTER_MAX

    def limit(pages: int) -> float:
        return math.inf if pages >= unlimited else pages * page

    cpuacct, shares, bandwidth = present & _CPUACCT, present & _SHARES, present & _BANDWIDTH
    memory, pids, burst = present & _MEMORY, present & _PIDS, present & _BURST
    return Core(
        w[3] if cpuacct else None,
        w[4] if cpuacct else None,
        w[5] if cpuacct else None,
        w[6] >> _SHARES_UNIT if shares else None,
        None if not bandwidth else math.inf if w[7] == _NO_QUOTA else w[7],
        w[8] if bandwidth else None,
        w[9] if bandwidth else None,
        w[10] if bandwidth else None,
        w[11] if bandwidth else None,
        w[12] if burst else None,
        w[13] if burst else None,
        w[14] * page if memory else None,
        w[15] * page if memory else None,
        limit(w[16]) if memory else None,
        limit(w[17]) if memory else None,
        limit(w[18]) if memory else None,
        limit(w[19]) if memory else None,
        w[20] if memory else None,
        w[21] * page if memory else None,
        limit(w[22]) if memory else None,
        w[23] if memory else None,
        w[24:30] if memory else (),
        w[30] * page if present & _KMEM else None,
        limit(w[31]) if present & _SOFT_LIMIT else None,
        w[32] if pids else None,
        None if not pids else math.inf if w[33] > _PIDS_MAX else w[33],
        w[34] if present & _PIDS_PEAK else None,
        w[35] if present & _PIDS_EVENTS else None,
        w[36] if present & _PIDS_EVENTS else None,
        w[37] == 1 if present & _STATE else None,
        w[38] == 1 if present & (_STATE | _FREEZER) else None,
        w[39] if present & _STATE else None,
        w[40] if present & _STATE else None,
        _bits(w[41]) if present & _CPUSET else None,
        _bits(w[42]) if present & _CPUSET else None,
        bool(present & _NO_IO),
        _pressures(w),
        w[50] if present & _MEMORY_STAT else None,
    )


@functools.lru_cache(maxsize=64)
def _bits(word: int) -> frozenset[int]:
    return frozenset(bit for bit in range(_WORD) if word >> bit & 1)


def _pressures(w: tuple[int, ...]) -> tuple[tuple[str, int | None, int], ...]:
    irq = [("irq", None, w[49])] if w[2] & _IRQ_PRESSURE else []
    return (*((name, w[at], w[at + 1]) for name, bit, at in _PRESSURES if w[2] & bit), *irq)


class Walk:
    """What a walk found, in its order; in the memory of the map, so until the next walk.

    `ids` are kernfs ids; a record has another digest as soon as anything but its id is another (but for chance, 2**-64). Both are
    a u64 each.
    """

    def __init__(self, memory: mmap.mmap, count: int, page: int, *, has_nodes: bool) -> None:
        step = abi.LANE.size // _ID.size
        with memoryview(memory) as whole, whole.cast("Q") as words:
            end = count * step
            self.ids, self.digests = words[:end:step].tobytes(), words[1:end:step].tobytes()
        self._memory, self._page, self._has_nodes = memory, page, has_nodes

    def decode(self, index: int) -> Core:
        """Decode the record of a place in the order."""
        at = index * abi.LANE.size
        core = decode(self._memory[at : at + abi.LANE.size], self._page)
        return core if self._has_nodes else core._replace(memory_nodes=None)


class CgroupLane:
    """Walks hierarchies with the program behind a descriptor, one at a time. Links are its own, and go with it."""

    def __init__(self, program: int, maps: Mapping[str, Map]) -> None:
        self._program = program
        self._records = maps["lane"]
        self._config = maps["config"]
        self._links: dict[str, int] = {}
        self._page = os.sysconf("SC_PAGE_SIZE")
        self._has_nodes = _memory_nodes() <= _WORD

    def read(self, mountpoint: str) -> Walk:
        """Walk the cgroups at and below a mountpoint.

        Raises LoadError: the kernel refuses, or there are more cgroups than the map holds.
        """
        next_record = struct.pack("=I", abi.CONFIG.index("lane"))
        self._config.update(next_record, bytes(8))
        try:
            link = self._links.get(mountpoint)
            if link is None:
                link = self._links[mountpoint] = self._attach(mountpoint)
            _walk(bpf.iter_create(link))
        except OSError as exc:
            raise LoadError(f"bpf_iter/cgroup of {mountpoint}: {exc.strerror}") from exc
        (count,) = _ID.unpack(self._config.lookup(next_record) or bytes(8))
        if count > self._records.max_entries:
            raise LoadError(f"{mountpoint} has {count} cgroups, and there is room for {self._records.max_entries}")
        return Walk(self._records.mmap(count), count, self._page, has_nodes=self._has_nodes)

    def _attach(self, mountpoint: str) -> int:
        directory = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            return bpf.link_create(self._program, bpf.TRACE_ITER, iter_info=struct.pack("=IIQ", _DESCENDANTS_PRE, directory, 0))
        finally:
            os.close(directory)

    def close(self) -> None:
        """Let go of the links."""
        for link in self._links.values():
            os.close(link)
        self._links.clear()


def _memory_nodes() -> int:
    try:
        return possible_cpus("/sys/devices/system/node/possible")
    except OSError:  # without NUMA
        return 1


def _walk(fd: int) -> None:
    try:
        os.read(fd, 1)  # it prints nothing: one read is the whole walk
    finally:
        os.close(fd)
