"""How long the files of cgroups take to read, and which are too slow to be read each time."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

SLOW_READ_S: Final = 0.05  # of one cgroup's file
SLOW_FILE_S: Final = 2.0  # of one file type in all cgroups
BOUNDS_S: Final = (0.0001, 0.001, 0.01, SLOW_READ_S, 0.1, 1.0)
_LONGEST_PAUSE: Final = 64


class Reads(NamedTuple):
    """How often a file was read, in all and within each of BOUNDS_S; and for how long in all, ns."""

    number: int = 0
    within: tuple[int, ...] = (0,) * len(BOUNDS_S)
    total_ns: int = 0


class Pace:
    """Judges the files of a reader. `backoffs`: how often a file was too slow, so that it is left out of the next 2, 4, 8..
    readings. `reads`: see Reads.

    Time in which this thread was ready and had no CPU is the node's fault, and no file's.
    """

    def __init__(self, delay_s: Callable[[], float] | None = None) -> None:
        """`delay_s` tells for how long in all this thread has waited for a CPU."""
        self.backoffs: dict[str, int] = {}
        self.reads: dict[str, Reads] = {}
        self._delay_s = delay_s or _read_delay_s
        self._delayed = 0.0
        self._pauses: dict[str, tuple[int, int]] = {}  # readings left to wait, readings of this pause

    def begin(self) -> None:
        """A reading of all files begins."""
        self._delayed = self._delay_s()

    def is_paused(self, name: str) -> bool:
        """Tell whether a file is left out of this reading; to be asked once."""
        left, length = self._pauses.get(name, (0, 0))
        if left:
            self._pauses[name] = (left - 1, length)
        return left > 0

    def took(self, name: str, number: int, seconds: float, slow: Sequence[float] = ()) -> None:
        """A file was read `number` times, for so long in all; `slow` has the times above the least of BOUNDS_S."""
        before = self.reads.get(name) or Reads()
        within = tuple(
            count + number - sum(each > bound for each in slow) for count, bound in zip(before.within, BOUNDS_S, strict=True)
        )
        self.reads[name] = Reads(before.number + number, within, before.total_ns + round(seconds * 1e9))
        if self._is_slow(max(slow, default=0.0), seconds):
            pause = min(self._pauses.get(name, (0, 1))[1] * 2, _LONGEST_PAUSE)
            self._pauses[name] = (pause, pause)
            self.backoffs[name] = self.backoffs.get(name, 0) + 1
        else:
            self._pauses.pop(name, None)

    def _is_slow(self, slowest: float, seconds: float) -> bool:
        if slowest <= SLOW_READ_S and seconds <= SLOW_FILE_S:
            return False
        delayed, self._delayed = self._delayed, self._delay_s()
        late = self._delayed - delayed  # since then: some of it may have been another file's
        return slowest - late > SLOW_READ_S or seconds - late > SLOW_FILE_S


def _read_delay_s() -> float:
    """Source: Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat; 0 where the kernel keeps none."""
    try:
        descriptor = os.open("/proc/thread-self/schedstat", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return 0.0
    try:
        return int(os.read(descriptor, 128).split()[1]) / 1e9
    finally:
        os.close(descriptor)
