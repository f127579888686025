"""One unshare(2) of each kind, of all eight at once, and `unshare -u true`, which is also a fork, an exec and an exit: traced
calls that change something each time. Without the programs; with empty ones in their place, at the end of the call alone and at
both (the floor: what this kernel takes for a call to be seen at all); with the accounting programs; and with those that trace
too, while a thread of the agent's kind reads their ring buffer. The cases take turns, and another comes first in each round. Of
each, the quarter of the blocks that nothing disturbed: others on the node only ever slow down. The means are of the eight kinds,
geometric: each kind's ratio has the same weight, whatever its call takes."""

from __future__ import annotations

import contextlib
import operator
import subprocess
import sys
from collections.abc import Callable
from functools import partial, reduce
from statistics import geometric_mean, median

from bench.attached import empty_programs, programs, programs_of_others, reading, run_times, run_times_kept
from bench.measure import Result, elapsed, rotated
from nsagent.namespaces import NamespaceKind

TITLE = "Cost to those who change namespaces"
ROUNDS = 8
NONE = "no programs"
# Blocks, and calls in each: of user and pid a second one would be refused.
KINDS = {
    NamespaceKind.CGROUP: (30, 20),
    NamespaceKind.UTS: (30, 20),
    NamespaceKind.TIME: (30, 20),
    NamespaceKind.IPC: (30, 20),
    NamespaceKind.USER: (60, 1),
    NamespaceKind.PID: (60, 1),
    NamespaceKind.MNT: (30, 20),
    NamespaceKind.NET: (5, 10),
}

WHERE_IT_GOES = """\
`empty programs` is the kernel's own price for any two programs attached to the ends of a call, whatever they do: 0.36 to 0.40
µs, which of an unshare of uts, the cheapest (2.5 µs), is 1.15 × already. `empty program at the end` is that of one: 0.20 µs,
1.08 × (of a call that nobody else watches 155 ns, one at the entry 215, both 290; and 45 because the kernel takes its slow way
through every call). Tracing from the end alone could not say how long a call took, and would not bring uts to 1.10 × either: its
program runs for 0.39 µs without an event. So there is one at each end, and what nsagent itself takes is the difference between a
kind's last row and its `empty programs`.

Where that goes, found by leaving parts out, one at a time, in ns a call. 120 at the entry: task storage and the clock; no
namespace is read there, because those before a call are those after the last. 390 at the end: reading the namespaces,
comparing the task's counters. 700 for the event: 220 the argv, a copy from user memory; 210 four ancestors, two probe reads
of 25 ns each; 270 a record of 480 bytes that the reader's CPU had last. A namespace in which nothing was used has no row,
which saves 1,000; who had used something before the call (a fresh process has: user, pid, `unshare -u true`) pays them."""

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


def unshares(flags: int, blocks: int, calls: int) -> list[float]:
    """Return the times of unshare(2), in µs, each the mean of some in a row."""
    argv = [sys.executable, "-c", _LOOP, str(flags), str(blocks), str(calls)]
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
            unshares(NamespaceKind.UTS.flag, *KINDS[NamespaceKind.UTS])
            for name, (first, last) in zip(samples, zip(before, run_times(attached, "unshare"), strict=True), strict=True):
                samples[name].append((last.ns - first.ns) / (last.calls - first.calls))
    return samples


def measure() -> Result:
    """Go round the states, and in each through all cases."""
    result = Result()
    if others := programs_of_others():
        result.notes.append(
            f"**{others} programs of others watch unshare(2) here:** what `no programs` says is too much, each ratio too low."
        )
    states: dict[str, Callable[[], contextlib.AbstractContextManager[object]]] = {
        NONE: contextlib.nullcontext,
        "empty program at the end": partial(empty_programs, "exit"),
        "empty programs": partial(empty_programs, "enter", "exit"),
        "accounting": lambda: programs(trace=False),
        "accounting and tracing": lambda: reading(programs(trace=True)),
    }
    one_kind = {f"{kind} namespace": partial(unshares, kind.flag, *times) for kind, times in KINDS.items()}
    every_flag = reduce(operator.or_, (kind.flag for kind in KINDS))
    cases: dict[str, Callable[[], list[float]]] = dict(one_kind)
    cases |= {"all eight": partial(unshares, every_flag, 30, 1), "unshare -u true": commands}
    samples: dict[tuple[str, str], list[float]] = {(case, name): [] for case in cases for name in states}
    for number in range(ROUNDS):
        for name in rotated(list(states), number):
            with states[name]():
                for case, run in cases.items():
                    samples[case, name] += run()
    quick = {key: sorted(values)[: len(values) // 4] for key, values in samples.items()}
    for name in states:
        quick["mean of the kinds", name] = [geometric_mean(median(quick[kind, name]) for kind in one_kind)]
    for case in (*one_kind, "mean of the kinds", *(case for case in cases if case not in one_kind)):
        result.add({f"{case}, {name}": quick[case, name] for name in states}, "µs", f"{case}, {NONE}")
    result.add({f"uts namespace, {name}": sorted(values)[:5] for name, values in in_the_programs().items()}, "ns")
    result.notes.append(WHERE_IT_GOES)
    return result
