"""What an agent costs a node that nobody looks at: its CPU, all threads and the kernel's work on their behalf, while a Prometheus
scrapes it every 15 s. 1,000 cgroups with a process each; the first minute begins when the last of them has been made, so that it
has the agent's first look at all of them. NSAGENT_BENCH_MINUTES=10 measures ten minutes in place of three. cAdvisor 0.60 took 4.1
CPU seconds a minute for them on such a machine with its defaults (1.5 between four scrapes, 0.64 each). Then 10,000 sleeping
processes in one cgroup: what they add to a scrape."""

from __future__ import annotations

import itertools
import os
import statistics
import time

from bench.agent import Agent, running_agent
from bench.bench_scrape import cgroups, raised_file_limit, scrape_gzip
from bench.measure import Result, elapsed, herd

TITLE = "Minutes of an agent"
INTERVAL_S = 15.0  # Prometheus' global default is a minute; most set 15 s
MINUTES = int(os.environ.get("NSAGENT_BENCH_MINUTES", "3"))
CADVISOR_MS = 4100.0
PROCESSES = 10_000
ROUNDS = 15


def minutes(agent: Agent) -> list[float]:
    """Scrape at the interval, for the first time at once; return the ms of CPU of each minute."""
    a_minute, marks = round(60 / INTERVAL_S), []
    start = time.monotonic()
    for number in range(a_minute * MINUTES + 1):
        time.sleep(max(0.0, start + number * INTERVAL_S - time.monotonic()))
        if number % a_minute == 0:
            marks.append(agent.cpu_ms())
        scrape_gzip(agent)
    return [after - before for before, after in itertools.pairwise(marks)]


def measure() -> Result:
    """Let time pass, then add processes."""
    result = Result()
    with raised_file_limit(), running_agent() as agent:
        with cgroups(1000):
            first, *later = minutes(agent)
            spent = {
                "CPU of the first minute": [first],
                "CPU of a later minute": later or [first],
                f"CPU a minute, mean of {MINUTES}": [statistics.mean([first, *later])],
            }
            result.add(spent | {"cAdvisor": [CADVISOR_MS]}, "ms", "cAdvisor")
            result.notes.append(f"Descriptors and maps of the agent pin {agent.kernel_mb():.1f} MB of the kernel.")
        times: dict[str, list[float]] = {"scrape, no process added": [], f"scrape, {PROCESSES:,} processes more": []}
        plain, crowded = times.values()
        for _ in range(2):  # in turns: a slow moment hits both
            agent.scrape()
            plain += [elapsed(agent.scrape) for _ in range(ROUNDS)]
            with herd(PROCESSES):
                agent.scrape()
                crowded += [elapsed(agent.scrape) for _ in range(ROUNDS)]
        result.add(times, "ms", "scrape, no process added")
    return result
