"""Whether what is exported adds up to what the kernel says the whole node used: the agent's check on itself, of CPU time.

The kernel keeps two records of it. A v1 root's cpuacct.usage is what the scheduler charged, to the nanosecond, and lags by a tick
for a task that runs, just as the tasks' own counters do. /proc/stat samples by tick and has the interrupts; it serves elsewhere.
Sources: kernel/sched/cpuacct.c; fs/proc/stat.c; man 5 proc_stat.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, TypeVar

from nsagent.errors import NsagentError, ParseError

_LEAST_NS: Final = 10**9  # under that, one tick on one CPU is some tenths of a per cent
_VAGUE: Final = 0.01  # of the growth: what the node may use while it is read
_TICK_NS: Final = 10**9 // os.sysconf("SC_CLK_TCK")

T = TypeVar("T")


def read_node_cpu_ns(cpuacct: str | None = None, procfs: str = "/proc") -> int:
    """Return the CPU time of the node since boot, idle and stolen time not in it.

    `cpuacct` is where a cpuacct hierarchy is mounted: used if what stands there is the hierarchy's root.
    """
    try:
        if cpuacct and os.path.exists(f"{cpuacct}/release_agent"):  # which only a root has
            with open(f"{cpuacct}/cpuacct.usage", "rb") as file:
                return int(file.read())
        with open(f"{procfs}/stat", "rb") as file:
            name, user, nice, system, _idle, _iowait, irq, softirq = file.readline().split()[:8]
    except OSError as error:
        raise NsagentError(f"{error.filename}: {error.strerror}") from error
    except ValueError as error:
        raise ParseError(f"not the node's CPU time: {error}", path=f"{procfs}/stat") from error
    if name != b"cpu":
        raise ParseError("not the node's CPU time", path=f"{procfs}/stat")
    return sum(map(int, (user, nice, system, irq, softirq))) * _TICK_NS


class Conservation:
    """Compares growth with growth, from sample to sample."""

    def __init__(self, read_ns: Callable[[], int]) -> None:
        self._read_ns = read_ns
        self._kernel_ns: float | None = None
        self._vague_ns = 0.0
        self._base: tuple[float, float, int] | None = None

    def around(self, read: Callable[[], T]) -> T:
        """Read something, and the kernel's figure before and after: as of the middle of the reading, it is their mean.

        It may be out by half of their difference: on a busy node somebody else may run for long in the middle.
        """
        before = self._ask()
        result = read()
        after = self._ask()
        self._kernel_ns = None
        if before is not None and after is not None:
            self._kernel_ns, self._vague_ns = (before + after) / 2, (after - before) / 2
        return result

    def _ask(self) -> int | None:
        try:
            return self._read_ns()
        except NsagentError:
            return None

    def error(self, shown_ns: int) -> float | None:
        """Return the growth of `shown_ns` by that of the kernel's figure as of the last `around`, less 1.

        None at first, where the kernel's is not to be read, and until so much CPU time has gone by since the last answer, a
        second at least, that how long the readings took makes no difference of more than a hundredth.
        """
        kernel_ns, base, vague_ns = self._kernel_ns, self._base, self._vague_ns
        if kernel_ns is None or base is None or kernel_ns < base[0]:
            self._base = None if kernel_ns is None else (kernel_ns, vague_ns, shown_ns)
            return None
        grown_ns = kernel_ns - base[0]
        if grown_ns < _LEAST_NS or vague_ns + base[1] > _VAGUE * grown_ns:
            return None
        self._base = (kernel_ns, vague_ns, shown_ns)
        return (shown_ns - base[2]) / grown_ns - 1
