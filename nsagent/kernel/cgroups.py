"""The births and ends of cgroups as bpf/cgroup.c tells them, with the last values of what ended."""

from __future__ import annotations

import os
import threading
from typing import NamedTuple

from nsagent import libc
from nsagent.kernel import abi
from nsagent.kernel.maps import Map
from nsagent.kernel.ring import RingBuffer


class CgroupRecord(NamedTuple):
    """A cgroup was made in, or removed from, one hierarchy; the same record can come twice while programs are replaced.

    `hierarchy` is the number that /proc/PID/cgroup begins a line with (0: v2), `path` is from that hierarchy's root, cut off if
    `cut`. `time_ns` is CLOCK_REALTIME. What follows are the last values, None where this hierarchy or kernel has none: `cpu_ns`
    with descendants, living and dead, on v1, without on v2.
    """

    ended: bool
    hierarchy: int
    cgroup: int
    parent: int
    level: int
    path: str
    cut: bool
    time_ns: int
    cpu_ns: int | None = None
    memory_peak_bytes: int | None = None
    oom_kills: int | None = None
    pids_peak: int | None = None


def parse_record(data: bytes | memoryview, boot_ns: int = 0) -> CgroupRecord:
    """Read a struct nsagent_cgroup_record; `boot_ns` is the CLOCK_REALTIME of the boot."""
    time_ns, cgroup, parent, *values, kind, hierarchy, level, have, length, _ = abi.CGROUP.unpack_from(data)
    path = bytes(data[abi.CGROUP.size : abi.CGROUP.size + length]).rstrip(b"\0")
    known = (value if have >> bit & 1 else None for bit, value in enumerate(values))
    return CgroupRecord(
        abi.CGROUP_KINDS[kind] == "ended",
        hierarchy,
        cgroup,
        parent,
        level,
        os.fsdecode(path),
        not length or length == abi.PATH_BYTES,
        boot_ns + time_ns,
        *known,
    )


class CgroupRing:
    """Reads the ring buffer `cgroup_events`. Safe from any thread.

    The kernel wakes who polls `fileno` only when half of it is taken: whoever wants to know reads.
    """

    def __init__(self, ring: Map) -> None:
        self._ring = RingBuffer(ring)
        self._lock = threading.Lock()

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._ring.fileno()

    def read(self) -> list[CgroupRecord]:
        """Return what was told since the last call, in order."""
        with self._lock:
            records = self._ring.read()
        if not records:
            return []
        boot_ns = libc.boot_to_real_ns()
        return [parse_record(record, boot_ns) for record in records]

    def close(self) -> None:
        """Let go; what is not read stays for the next reader."""
        with self._lock:
            self._ring.close()
