"""posix_spawn, exec and wait of /bin/true without the programs, with the accounting programs, and with those that trace
too, in alternating blocks: what nsagent costs the processes of a node at birth, exec and exit. One unshare(CLONE_NEWUTS),
a traced call that changes something each time. And one getppid(2): what attaching to the six traced calls costs all other
system calls."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable

from bench.attached import programs
from bench.measure import Result, elapsed

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


def unshares() -> list[float]:
    """Return the times of unshare(CLONE_NEWUTS), in microseconds: the mean of each hundred, in a process of their own."""
    script = (
        "import time; from nsagent import libc\n"
        "for block in range(8):\n"
        "    start = time.perf_counter_ns()\n"
        "    for _ in range(100): libc.unshare(libc.CLONE_NEWUTS)\n"
        "    print((time.perf_counter_ns() - start) / 1e5)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def measure() -> Result:
    """Alternate blocks with and without the programs."""
    states: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
        NONE: contextlib.nullcontext,
        "accounting": lambda: programs(trace=False),
        "accounting and tracing": lambda: programs(trace=True),
    }
    times: dict[str, list[float]] = {f"spawn+exec+wait, {name}": [] for name in states}
    changes: dict[str, list[float]] = {f"unshare, {name}": [] for name in states}
    calls: dict[str, list[float]] = {f"getppid, {name}": [] for name in states}
    for _ in range(BLOCKS):
        for name, state in states.items():
            with state():
                times[f"spawn+exec+wait, {name}"] += spawns()
                changes[f"unshare, {name}"] += unshares()
                calls[f"getppid, {name}"] += [system_call_ns() for _ in range(5)]
    result = Result()
    result.add(times, "µs", f"spawn+exec+wait, {NONE}")
    result.add(changes, "µs", f"unshare, {NONE}")
    result.add(calls, "ns", f"getppid, {NONE}")
    return result
