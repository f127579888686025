"""One pass over all tasks with 100, 1,000 and 5,000 sleeping processes added to those of the host. nsagent: settle every
task in the kernel, copy the rows, group them by namespace and cgroup. psutil: name, CPU times, memory, IO and context
switches of each process, which says nothing about namespaces yet."""

from __future__ import annotations

import psutil

from bench.attached import programs
from bench.measure import Result, herd, interleaved
from nsagent.usage import KernelUsage

TITLE = "A pass over all tasks"
SIZES = (100, 1000, 5000)
ROUNDS = 15
FIELDS = ["name", "cpu_times", "memory_info", "io_counters", "num_ctx_switches"]


def psutil_pass() -> int:
    """Read of each process what nsagent accounts, as far as psutil has it."""
    return sum(1 for _ in psutil.process_iter(FIELDS))


def measure() -> Result:
    """Compare both at each size."""
    result = Result()
    with programs() as attached:
        usage = KernelUsage(attached)
        for size in SIZES:
            with herd(size):
                name = f"{size:,} processes"
                cases = {
                    f"settle, {name}": attached.settle,
                    f"settle and read, {name}": usage.read,
                    f"psutil, {name}": psutil_pass,
                }
                result.add(interleaved(cases, ROUNDS), "ms", f"psutil, {name}")
    return result
