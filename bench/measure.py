"""What the bench modules share: rows of results, interleaved rounds, and a herd of sleeping processes."""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from nsagent import libc

PREFIX = f"nsagent-bench-{os.getpid()}"  # of everything that a bench makes on the host


@dataclass(frozen=True)
class Row:
    """One measurement: the median of `rounds` values, and its ratio to the row named `baseline` of the same run."""

    name: str
    median: float
    unit: str
    rounds: int
    baseline: str | None = None
    ratio: float | None = None


@dataclass
class Result:
    """What one bench module found; `notes` say what was not measured, and why."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, samples: Mapping[str, Sequence[float]], unit: str, baseline: str | None = None) -> None:
        """Add a row for each series of samples, with its ratio to the series called `baseline`."""
        base = statistics.median(samples[baseline]) if baseline is not None else None
        for name, values in samples.items():
            median = statistics.median(values)
            ratio = median / base if base else None
            self.rows.append(Row(name, median, unit, len(values), baseline, ratio))


def elapsed(action: Callable[[], Any]) -> float:
    """Return how many milliseconds `action` takes."""
    start = time.perf_counter_ns()
    action()
    return (time.perf_counter_ns() - start) / 1e6


def interleaved(cases: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Time each case once per round, in turns, so that a slow moment of the machine hits all; one round to warm up."""
    samples: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(rounds + 1):
        for name, action in cases.items():
            value = elapsed(action)
            if number:
                samples[name].append(value)
    return samples


def rotated(names: Sequence[str], number: int) -> list[str]:
    """Return the names in the order of round `number`: another comes first in each, because the first looks cheap."""
    first = number % len(names)
    return [*names[first:], *names[:first]]


def run(argv: Sequence[str]) -> None:
    """Run a command to its end, its output thrown away; raise CalledProcessError if it fails."""
    subprocess.run(argv, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def fails(argv: Sequence[str]) -> str | None:
    """Run a command once; return None if it works, else the first line of why not."""
    try:
        done = subprocess.run(argv, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as exc:
        return str(exc)
    said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return said[0] if done.returncode else None


def _sleep_forever(count: int, ready: int) -> None:
    """Fork `count` processes that sleep until they are killed, tell `ready`, and sleep too."""
    for _ in range(count - 1):
        if os.fork() == 0:
            break
    else:
        os.write(ready, b".")
    while True:
        signal.pause()


@contextlib.contextmanager
def herd(count: int) -> Iterator[int]:
    """Have `count` sleeping processes in a process group of their own; yields the group; they are gone when it ends."""
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)  # orphans come to us, not to a PID 1 that takes its time
    reader, writer = os.pipe()
    leader = os.fork()
    if leader == 0:
        try:
            os.setpgid(0, 0)
            _sleep_forever(count, writer)
        finally:
            os._exit(1)
    os.close(writer)
    try:
        if os.read(reader, 1) != b".":
            raise RuntimeError(f"could not start {count} processes")
        yield leader
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(leader, signal.SIGKILL)
        with contextlib.suppress(ChildProcessError):
            while True:
                os.waitpid(-leader, 0)
