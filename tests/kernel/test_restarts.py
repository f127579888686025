"""kill -9 of the agent under load, again and again: no counter falls, no pin is left, nothing is attached twice.

Twenty times here; NSAGENT_TEST_RESTARTS=500, or all of it with `-m slow`, is the long form.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.kernel import bpf, objects, pins
from tests.kernel.agents import CACHE, Agent, Samples, running
from tests.kernel.bpf_ids import attached_to
from tests.kernel.conftest import accounting
from tests.support import ROOT, nsagent_running, remove_cgroups, require_root, run_nsagent, wait_for

pytestmark = pytest.mark.kernel

# What an agent's process and what it counts of its own work: they begin with it.
_OWN = (
    "process_",
    "python_",
    "nsagent_file_backoffs_",
    "nsagent_cgroups_skipped_",
    "nsagent_series_dropped_",
    "nsagent_counter_regressions_",
)
# Few namespaces: each has some thirty series for --retain, and a scrape is parsed here by pure Python.
LOAD = """
import os, time
from nsagent.libc import *
for number in range(10**9):
    if not os.fork():
        if number % 50 == 0:
            unshare(CLONE_NEWUTS)
        if number % 50 == 25:  # a finding
            host = os.open("/proc/self/ns/mnt", os.O_RDONLY)
            unshare(CLONE_NEWNS)
            setns(host, CLONE_NEWNS)
        os._exit(0)
    os.wait()
    time.sleep(0.01)
"""


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


@pytest.fixture
def load(cgroup_name: str) -> Iterator[Path]:
    """A cgroup in which something forks and unshares all the time."""
    place = accounting()[1] / cgroup_name
    place.mkdir()
    process = subprocess.Popen([sys.executable, "-c", LOAD], cwd=ROOT)
    (place / "cgroup.procs").write_text(str(process.pid))
    yield place
    process.kill()
    process.wait()
    remove_cgroups(cgroup_name)


# Others' tests on this node make cgroups anew under the names of those they had.
_OF_OTHERS = re.compile(rf"/nsagent-(?!test-{os.getpid()}-)")


def counters(samples: Samples) -> Samples:
    return {
        (name, labels): value
        for (name, labels), value in samples.items()
        if name.endswith("_total") and not name.startswith(_OWN) and not any(_OF_OTHERS.match(label) for _, label in labels)
    }


def assert_none_fell(before: Samples, after: Samples) -> None:
    """A series that is gone has ended for longer than --retain; one that is there has not fallen."""
    fell = {key: (value, after[key]) for key, value in before.items() if key in after and after[key] < value}
    assert not fell, f"{len(fell)} of {len(before)} counters fell: {list(fell.items())[:5]}"


def assert_clean(pin_dir: Path) -> None:
    """What is pinned is one set, each of its links once."""
    names = {path.name for path in pin_dir.iterdir()}
    assert names <= {"owner", os.path.basename(pins.live_dir(str(pin_dir)))}
    loaded = objects.adopt(str(pin_dir))
    assert loaded is not None
    try:
        expected = []
        for link in loaded.links.values():
            program = bpf.prog_get_fd_by_id(bpf.link_info(link).prog_id)
            expected.append(bpf.prog_info(program).name)
            os.close(program)
        used = [
            loaded.maps[name].fd for name in ("tasks", "cgroup_scratch", "oom_kills")
        ]  # each that is attached uses one of them
        wait_for(
            lambda: sorted(name for fd in used for name in attached_to(fd)) == sorted(expected),
            what="one link for each that is pinned",
        )
    finally:
        loaded.close()


def restarts(world: list[str], pin_dir: Path, times: int) -> None:
    last: Samples = {}
    for number in range(times):
        with running(world) as agent:
            first = counters(agent.scrape())
            assert first
            assert_none_fell(last, first)
            if number % 2:
                time.sleep(random.uniform(0, 0.1))
            last = counters(agent.scrape())
            assert_none_fell(first, last)
            agent.kill()
        assert_clean(pin_dir)


def test_restarts_under_load(world: list[str], pin_dir: Path, load: Path) -> None:
    restarts(world, pin_dir, int(os.environ.get("NSAGENT_TEST_RESTARTS", "20")))


@pytest.mark.slow
def test_five_hundred_restarts_under_load(world: list[str], pin_dir: Path, load: Path) -> None:
    restarts(world, pin_dir, 500)


def test_killed_while_it_starts(world: list[str], pin_dir: Path, load: Path) -> None:
    """At any moment of a start; what it leaves the next one ends or goes on with."""
    with running(world) as agent:
        before = counters(agent.scrape())
        agent.kill()
    for number in range(15):
        with nsagent_running("agent", "--listen", "127.0.0.1:0", "--cache-dir", CACHE, *world) as process:
            time.sleep(number * 0.04)
            process.send_signal(signal.SIGKILL)
    with running(world) as agent:
        assert_none_fell(before, counters(agent.scrape()))
        agent.kill()
    assert_clean(pin_dir)


def test_an_upgraded_agent_goes_on(world: list[str], pin_dir: Path, load: Path, tmp_path: Path) -> None:
    """The same agent from a tree whose programs differ by a comment; then back, without tracing, and with it."""
    tree = tmp_path / "tree"
    for name in ("nsagent", "bpf"):
        shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (tree / "bpf" / "account.c").open("a") as file:
        file.write("/* the next version */\n")
    with running(world) as agent:
        last = counters(agent.scrape())
        agent.stop()
    environment = os.environ | {"PYTHONPATH": str(tree)}
    argv = [sys.executable, "-c", "from nsagent.cli import main; main()", "agent", "--listen", "127.0.0.1:0",
            "--cache-dir", CACHE, *world]  # fmt: skip
    with subprocess.Popen(
        argv, env=environment, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL
    ) as process:
        upgraded = Agent(process, Path(world[1]))
        samples = counters(upgraded.scrape())
        assert samples.keys() >= {key for key in last if key[0] == "nsagent_syscalls_total"}
        assert_none_fell(last, samples)
        log = upgraded.stop()
        assert re.search(r"carried_maps=[1-9]", log), log
    assert_clean(pin_dir)
    for flags in (["--no-trace"], []):
        with running(world, *flags) as agent:
            now = counters(agent.scrape())
            assert_none_fell(samples, now)
            samples |= now
            agent.stop()
        assert_clean(pin_dir)
    assert {key for key in last if key[0] == "nsagent_syscalls_total"} <= now.keys()


def test_of_two_agents_one_says_who_holds_the_node(world: list[str], pin_dir: Path, tmp_path: Path) -> None:
    with running(world) as agent:
        own = ["--state-dir", str(tmp_path / "b"), "--pin-dir", str(pin_dir)]
        other_state = run_nsagent("agent", "--listen", "127.0.0.1:0", "--cache-dir", CACHE, *own)
        assert other_state.returncode == 125
        assert f"process {agent.process.pid} " in other_state.stderr
        same = run_nsagent("agent", "--listen", "127.0.0.1:0", "--cache-dir", CACHE, *world)
        assert same.returncode == 125
        assert str(agent.process.pid) in same.stderr
        assert counters(agent.scrape())
        agent.stop()
    assert_clean(pin_dir)


def test_of_two_agents_started_at_once_one_runs(world: list[str], pin_dir: Path) -> None:
    argv = ["agent", "--listen", "127.0.0.1:0", "--cache-dir", CACHE, *world]
    with nsagent_running(*argv) as one, nsagent_running(*argv) as two:
        wait_for(lambda: one.poll() is not None or two.poll() is not None, what="one of them to end")
        loser, winner = (one, two) if one.poll() is not None else (two, one)
        assert loser.stderr is not None
        assert f"process {winner.pid}" in loser.stderr.read()
        assert loser.returncode == 125
        agent = Agent(winner, Path(world[1]))
        assert counters(agent.scrape())
        agent.stop()
    assert_clean(pin_dir)
