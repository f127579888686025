"""posix_spawn, exec and wait of /bin/true without the programs, with the accounting programs (`--no-trace`), and with those that
trace too: what nsagent costs the processes of a node at birth, exec and exit. And one getppid(2): what attaching to the six
traced calls costs all other system calls. The cases take turns, and another comes first in each round."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable

from bench.attached import programs
from bench.measure import Result, elapsed, rotated

TITLE = "Cost to the processes of the node"
BLOCKS = 6
SPAWNS = 400
CALLS = 50_000
NONE = "no programs"


def spawn() -> None:
    """Run /bin/true to its end."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitpid(pid, 0)


def spawns() -> list[float]:
    """Return the times of SPAWNS spawns, in microseconds."""
    for _ in range(50):
        spawn()
    return [elapsed(spawn) * 1000 for _ in range(SPAWNS)]


def system_call_ns() -> float:
    """Return the time of one getppid(2) as called from Python, in ns."""
    call = os.getppid
    start = time.perf_counter_ns()
    for _ in range(CALLS):
        call()
    return (time.perf_counter_ns() - start) / CALLS


def measure() -> Result:
    """Go round the states."""
    states: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
        NONE: contextlib.nullcontext,
        "accounting": lambda: programs(trace=False),
        "accounting and tracing": lambda: programs(trace=True),
    }
    times: dict[str, list[float]] = {f"spawn+exec+wait, {name}": [] for name in states}
    calls: dict[str, list[float]] = {f"getppid, {name}": [] for name in states}
    for number in range(BLOCKS):
        for name in rotated(list(states), number):
            with states[name]():
                times[f"spawn+exec+wait, {name}"] += spawns()
                calls[f"getppid, {name}"] += [system_call_ns() for _ in range(5)]
    result = Result()
    result.add(times, "µs", f"spawn+exec+wait, {NONE}")
    result.add(calls, "ns", f"getppid, {NONE}")
    return result
