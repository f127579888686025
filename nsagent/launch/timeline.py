"""CPU and memory of a job over time, for `--sample`: few numbers however long it runs."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from nsagent.cgroups.meter import Meter

MOST_POINTS: Final = 2000
_Point = tuple[int, int | None, int | None]


class Timeline(NamedTuple):
    """Readings of a job's cgroup at about every `interval_ns`, which may have become longer than what was asked for.

    `elapsed_ns` since the start of CMD, on the monotonic clock, when the reading was taken; the first is at its start.
    `cpu_ns` is the total so far, which begins with what it took to set the job up; `memory_bytes` what was charged then, or
    the most since the reading before where readings were merged. None where the kernel did not say.
    """

    interval_ns: int
    elapsed_ns: tuple[int, ...] = ()
    cpu_ns: tuple[int | None, ...] = ()
    memory_bytes: tuple[int | None, ...] = ()

    def cores(self) -> list[float | None]:
        """Return how many CPUs were busy from each reading to the next."""
        return [
            None if before is None or cpu is None or then >= now else (cpu - before) / (now - then)
            for (then, before), (now, cpu) in pairwise(zip(self.elapsed_ns, self.cpu_ns, strict=True))
        ]


class Recorder:
    """Takes a timeline, from `start_ns` on: make it while the job waits for its start.

    With MOST_POINTS readings after that, two become one each and the interval doubles. A reading less than half an interval
    after another becomes one with it: the kernel's total lags by up to a tick, which would be more CPUs than there are.
    The CPU time is a total, so of two readings the later one has all; of memory the larger is kept.
    """

    def __init__(self, meter: Meter, interval_ns: int, start_ns: int) -> None:
        self.interval_ns = interval_ns
        self._meter = meter
        self._start_ns = start_ns
        self._first = self._read(start_ns)
        self._points: list[_Point] = []

    def _read(self, now_ns: int) -> _Point:
        return now_ns - self._start_ns, self._meter.cpu_ns(), self._meter.memory_bytes()

    def take(self, now_ns: int) -> int:
        """Read now; return when to read again. Both on the monotonic clock, ns."""
        point = self._read(now_ns)
        if self._points and point[0] - self._points[-1][0] < self.interval_ns // 2:
            point = _merged(self._points.pop(), point)
        self._points.append(point)
        if len(self._points) >= MOST_POINTS:
            self._points = [_merged(*pair) for pair in zip(self._points[0::2], self._points[1::2], strict=True)]
            self.interval_ns *= 2
        return self._start_ns + (point[0] // self.interval_ns + 1) * self.interval_ns

    def timeline(self) -> Timeline:
        """Return what was read."""
        return Timeline(self.interval_ns, *zip(self._first, *self._points, strict=True))


def _merged(early: _Point, late: _Point) -> _Point:
    return late[0], late[1], most(early[2], late[2])


def most(*values: int | None) -> int | None:
    """Return the largest of those that are known."""
    return max((value for value in values if value is not None), default=None)


_BARS: Final = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None], width: int = 60) -> str:
    """Draw values from 0 to the largest, one character each or, of more than `width`, the largest of each group.

    What is not known is a blank.
    """
    if not values:
        return ""
    step = max(1, -(-len(values) // width))
    groups = [[v for v in values[at : at + step] if v is not None] for at in range(0, len(values), step)]
    peaks = [max(group) if group else None for group in groups]
    top = max((peak for peak in peaks if peak is not None), default=0) or 1
    return "".join(" " if peak is None else _BARS[min(7, int(max(peak, 0) / top * 8))] for peak in peaks)
