"""One unshare(2) of each kind that people use, a traced call that changes something each time, and `unshare -u true`, which is
also a fork, an exec and an exit. Without the programs; with empty ones in their place at the two ends of the call (the floor:
what this kernel takes for a call to be seen at all); with the accounting programs; and with those that trace too, while a
thread of the agent's kind reads their ring buffer. The cases take turns, and another comes first in each round. Of each, the
quarter of the blocks that nothing disturbed: others on the node only ever slow down."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable
from functools import partial

from bench.attached import empty_programs, programs, programs_of_others, reading, run_times, run_times_kept
from bench.measure import Result, elapsed, rotated
from nsagent.namespaces import NamespaceKind

TITLE = "Cost to those who change namespaces"
ROUNDS = 8
NONE = "no programs"
# Blocks, and calls in each: of user and pid a second one would be refused.
KINDS = {
    NamespaceKind.UTS: (30, 20),
    NamespaceKind.IPC: (30, 20),
    NamespaceKind.USER: (60, 1),
    NamespaceKind.PID: (60, 1),
    NamespaceKind.MNT: (30, 20),
    NamespaceKind.NET: (5, 10),
}

WHERE_IT_GOES = """\
`empty programs` is the kernel's own price for any two programs attached to the ends of a call, whatever they do: 0.36 to 0.40 µs,
which of an unshare of uts, the cheapest (2.5 µs), is 1.15 × already, so that no tracing of that call stays within 1.10 ×. What
nsagent itself takes is the difference between a kind's last row and its `empty programs`."""

# Prints the mean of each block of calls, in µs. A child a block; calls that change nothing warm it up.
_LOOP = """
import ctypes, gc, os, sys, time
gc.disable()
call, now = ctypes.CDLL(None).unshare, time.perf_counter_ns
flag, blocks, calls = map(int, sys.argv[1:])
flag = ctypes.c_int(flag)
def block():
    for _ in range(5):
        call(0)
    start = now()
    for _ in range(calls):
        failed = call(flag)
    end = now()
    if failed:
        os._exit(1)
    os.write(1, b'%f\\n' % ((end - start) / calls / 1000))
for _ in range(blocks):
    pid = os.fork()
    if not pid:
        block()
        os._exit(0)
    if os.waitpid(pid, 0)[1]:
        sys.exit(1)
"""


def unshares(kind: NamespaceKind) -> list[float]:
    """Return the times of unshare(2), in µs, each the mean of some in a row."""
    blocks, calls = KINDS[kind]
    argv = [sys.executable, "-c", _LOOP, str(kind.flag), str(blocks), str(calls)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.split()]


def commands() -> list[float]:
    """Return the times of `unshare -u true`, in µs."""
    return [elapsed(lambda: subprocess.run(["unshare", "-u", "true"], check=True)) * 1000 for _ in range(30)]


def in_the_programs() -> dict[str, list[float]]:
    """Return how long the two programs at the ends of an unshare(CLONE_NEWUTS) run, as the kernel counts it, in ns a call."""
    samples: dict[str, list[float]] = {"program at the entry": [], "program at the end": []}
    with run_times_kept(), reading(programs(trace=True)) as attached:
        for _ in range(20):
            before = run_times(attached, "unshare")
            unshares(NamespaceKind.UTS)
            for name, (first, last) in zip(samples, zip(before, run_times(attached, "unshare"), strict=True), strict=True):
                samples[name].append((last.ns - first.ns) / (last.calls - first.calls))
    return samples


def measure() -> Result:
    """Go round the four states, and in each through all cases."""
    result = Result()
    if others := programs_of_others():
        result.notes.append(
            f"**{others} programs of others watch unshare(2) here:** what `no programs` says is too much, each ratio too low."
        )
    states: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
        NONE: contextlib.nullcontext,
        "empty programs": empty_programs,
        "accounting": lambda: programs(trace=False),
        "accounting and tracing": lambda: reading(programs(trace=True)),
    }
    cases: dict[str, Callable[[], list[float]]] = {f"{kind} namespace": partial(unshares, kind) for kind in KINDS}
    cases["unshare -u true"] = commands
    samples: dict[str, dict[str, list[float]]] = {case: {f"{case}, {name}": [] for name in states} for case in cases}
    for number in range(ROUNDS):
        for name in rotated(list(states), number):
            with states[name]():
                for case, run in cases.items():
                    samples[case][f"{case}, {name}"] += run()
    for case, series in samples.items():
        quick = {name: sorted(values)[: len(values) // 4] for name, values in series.items()}
        result.add(quick, "µs", f"{case}, {NONE}")
    result.add({f"uts namespace, {name}": sorted(values)[:5] for name, values in in_the_programs().items()}, "ns")
    result.notes.append(WHERE_IT_GOES)
    return result
