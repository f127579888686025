"""A real Prometheus scrapes a real agent while cgroups with hostile names come and go, 50 a second where the machine can.

A dozen scrapes here; ten minutes of them with `-m slow`.
"""

from __future__ import annotations

import collections
import contextlib
import math
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import prometheus
from tests.kernel.agents import running
from tests.support import cgroup_mounts, remove_cgroups, require_root, unique_name, wait_for

pytestmark = pytest.mark.e2e
A_SECOND = 50
ALIVE = 30  # at once: the newest ones
HOSTILE = ('quo"te', "back\\slash", "tab\tname", "one\\101", "\udcff\udcfe", "\udcff", "é", "x" * 255)


@contextlib.contextmanager
def churn(name: str) -> Iterator[list[int]]:
    """Make and remove cgroups below `name` until left; the list's one element counts them."""
    mounts = cgroup_mounts()
    made, stop = [0], threading.Event()
    for mount in mounts:
        (mount / name).mkdir()

    def work() -> None:
        alive: collections.deque[list[Path]] = collections.deque()
        while not stop.is_set():
            number = made[0]
            group = HOSTILE[number // 5 % len(HOSTILE)] if number % 5 == 0 else f"{number % 100}"
            alive.append([mount / name / group for mount in mounts])
            for top in alive[-1]:
                top.mkdir()
            made[0] += 1
            for top in alive.popleft() if len(alive) > ALIVE else ():
                top.rmdir()
            stop.wait(1 / A_SECOND)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield made
    finally:
        stop.set()
        thread.join()
        remove_cgroups(name)


def scrape_under_churn(world: list[str], directory: Path, scrapes: int, seconds: int = 0) -> None:
    name = unique_name("churn")
    with running(world) as agent, churn(name) as made, contextlib.ExitStack() as stack:
        began = time.monotonic()
        agent.get()
        interval_s = min(30, math.ceil(5 * (time.monotonic() - began)))  # a scrape takes as long as this machine needs
        server = stack.enter_context(prometheus.running(directory, agent.facts["listen"], interval_s))
        family = f'nsagent_cgroup_cpu_usage_seconds_total{{cgroup=~"/{name}/.*"}}'

        def enough() -> bool:
            done = server.query("sum_over_time(up[1h])")
            seen = server.query(f"count(count by (cgroup) (max_over_time({family}[1h])))")
            many = bool(done) and float(done[0]["value"][1]) >= scrapes and time.monotonic() - began >= seconds
            return many and bool(seen) and float(seen[0]["value"][1]) > len(HOSTILE) and made[0] > 10 * ALIVE

        wait_for(enough, 120 + seconds + 10 * scrapes * interval_s, "so many scrapes, and some of what came and went in them")
        assert server.failures() == []
        up, all_of = (server.query(f"{how}_over_time(up[1h])")[0]["value"][1] for how in ("sum", "count"))
        print(f"{up} of {all_of} scrapes, each {interval_s} s, of {made[0]} cgroups made: the rest took too long")
        for trouble in ("out_of_order", "duplicate_timestamp", "out_of_bounds"):
            assert server.own(f"prometheus_target_scrapes_sample_{trouble}_total") == 0
        assert prometheus.check_metrics(agent.get()) == ""


def test_scrapes_under_churn(world: list[str], tmp_path: Path) -> None:
    scrape_under_churn(world, tmp_path, 12)


@pytest.mark.slow
def test_scrapes_under_churn_for_ten_minutes(world: list[str], tmp_path: Path) -> None:
    scrape_under_churn(world, tmp_path, 40, seconds=600)


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()
