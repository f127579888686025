"""What a cgroup may use, version-free, and the form in which v1 and v2 are told: a list of files to write."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from nsagent.cgroups.device_policy import DeviceRule
from nsagent.errors import UsageError

UNLIMITED: Final = -1  # of swap
PERIOD_USEC: Final = 100_000  # the kernel's default bandwidth period
_DEVICE: Final = re.compile(r"[0-9]+:[0-9]+")


class IoMax(NamedTuple):
    """Limits on one whole disk, ``major:minor``: bytes and operations a second; None is no limit."""

    device: str
    rbps: int | None = None
    wbps: int | None = None
    riops: int | None = None
    wiops: int | None = None


class HugetlbMax(NamedTuple):
    """A limit on huge pages of one size, in use and reserved; 0: none may be had. Bytes."""

    page_bytes: int
    limit_bytes: int

    @property
    def page(self) -> str:
        """The size as the kernel's files have it, such as 2MB. Source: mem_fmt() in mm/hugetlb_cgroup.c."""
        for power, unit in ((30, "GB"), (20, "MB")):
            if self.page_bytes >= 1 << power:
                return f"{self.page_bytes >> power}{unit}"
        return f"{self.page_bytes >> 10}KB"

    def settings(self, used: str, reserved: str) -> list[Setting]:
        """Return the writes, to files that end so. Without the second, of 5.7, too much is a SIGBUS, and no ENOMEM of mmap(2)."""
        expect = str(self.limit_bytes // self.page_bytes * self.page_bytes)
        return [
            Setting.make(
                "--hugetlb", f"hugetlb.{self.page}.{end}", str(self.limit_bytes), expect=expect, optional=end == reserved
            )
            for end in (reserved, used)
        ]


class Limits(NamedTuple):
    """What was asked for; None: not limited here.

    `cpus` in CPUs (0.5 is half of one). `memory_bytes` bounds memory; `swap_bytes` of swap may come on top, and is 0 unless
    it is given (on v1 one page: see nsagent.cgroups.v1); UNLIMITED: any. Above `memory_high_bytes` the kernel reclaims and slows
    down: v2 alone. `cpuset` is a list such as "0-2,5". `cpu_weight` and `io_weight` are
    v2's, 1 to 10000, 100 by default. `devices`: those that may be opened; None: all.
    """

    cpus: float | None = None
    memory_bytes: int | None = None
    swap_bytes: int | None = None
    memory_high_bytes: int | None = None
    pids: int | None = None
    io_max: tuple[IoMax, ...] = ()
    hugetlb: tuple[HugetlbMax, ...] = ()
    cpuset: str | None = None
    cpu_weight: int | None = None
    io_weight: int | None = None
    devices: tuple[DeviceRule, ...] | None = None

    def __bool__(self) -> bool:
        """Tell whether anything is limited."""
        return any(each not in (None, ()) for each in self)

    def check(self) -> None:
        """Raise UsageError for what no kernel could enforce."""
        if self.cpus is not None:
            quota_usec(self.cpus)
        for flag, weight in (("--cpu-weight", self.cpu_weight), ("--io-weight", self.io_weight)):
            if weight is not None and not 1 <= weight <= 10_000:
                raise UsageError(f"{flag} {weight}: not between 1 and 10000", hint="100 is what others have")
        if self.memory_bytes is not None and not 0 < self.memory_bytes < 2**63:
            raise UsageError(f"--memory {self.memory_bytes}: not a size a cgroup can have")
        if self.memory_high_bytes is not None and not 0 < self.memory_high_bytes < 2**63:
            raise UsageError(f"--memory-high {self.memory_high_bytes}: not a size a cgroup can have")
        if self.swap_bytes is not None and (self.memory_bytes is None or self.swap_bytes < UNLIMITED):
            raise UsageError("a limit of swap needs one of memory", hint="add --memory")
        if self.pids is not None and not 0 < self.pids <= 4_194_304:  # PID_MAX_LIMIT
            raise UsageError(f"--pids {self.pids}: not between 1 and 4194304")
        if self.cpuset is not None and not parse_cpus(self.cpuset):
            raise UsageError("--cpuset: empty", hint="such as 0-2,5")
        sizes = [each.page_bytes for each in self.hugetlb]
        if len(sizes) != len(set(sizes)) or any(each.limit_bytes < 0 for each in self.hugetlb):
            raise UsageError("--hugetlb: a size of pages has one limit, from 0 on", hint="such as 2MB=64M")
        for limit in self.io_max:
            numbers = (limit.rbps, limit.wbps, limit.riops, limit.wiops)
            if not _DEVICE.fullmatch(limit.device) or any(n is not None and n < 1 for n in numbers):
                raise UsageError(f"--io-max {limit.device}: not major:minor of a disk with rates from 1 on", hint="such as 8:0")


class Setting(NamedTuple):
    """One write: `value` to `file` of `controller`, because of `flag`. Afterwards a line of `read_file` is `expect`.

    `optional`: the file may be missing, for the limit holds without it.
    """

    flag: str
    controller: str
    file: str
    value: str
    expect: str
    read_file: str
    optional: bool = False

    @classmethod
    def make(
        cls, flag: str, file: str, value: str, *, expect: str | None = None, read_file: str = "", optional: bool = False
    ) -> Setting:
        """Make a setting whose controller is the file's first word and that reads back as it was written."""
        return cls(flag, file.partition(".")[0], file, value, value if expect is None else expect, read_file or file, optional)


def shares_of_weight(weight: int) -> int:
    """Return v1's cpu.shares of v2's weight. Source: sched_weight_from_cgroup() in include/linux/cgroup.h."""
    return (weight * 1024 + 50) // 100


def weight_of_shares(shares: int) -> int:
    """Return v2's weight of v1's cpu.shares. Source: sched_weight_to_cgroup() in include/linux/cgroup.h."""
    return min(max((shares * 100 + 512) // 1024, 1), 10_000)


def bfq_weight(weight: int) -> int:
    """Return BFQ's weight, 1 to 1000, of io.weight's, 1 to 10000; both 100 by default. Linear on each side of that."""
    return weight if weight <= 100 else 100 + (weight - 100) * 900 // 9900


def quota_usec(cpus: float) -> int:
    """Return the bandwidth quota of `cpus` in a period of PERIOD_USEC. Raises UsageError below the kernel's least, 1 ms."""
    if not 0.01 <= cpus <= 1_000_000:
        raise UsageError(f"--cpus {cpus:g}: the least the kernel can give is 0.01", hint="such as 0.5, or 2")
    return round(cpus * PERIOD_USEC)


def parse_cpus(text: str) -> frozenset[int]:
    """Parse a list of CPUs such as "0-2,5"; blanks at the ends are ignored. Raises UsageError."""
    cpus: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
            raise UsageError(f"--cpuset {text}: not a list of CPUs", hint="such as 0-2,5")
        cpus.update(range(int(first), int(last or first) + 1))
    return frozenset(cpus)


def format_cpus(cpus: frozenset[int]) -> str:
    """Format a list of CPUs as the kernel prints it."""
    parts: list[list[int]] = []
    for cpu in sorted(cpus):
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)
