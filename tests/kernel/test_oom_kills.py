"""Real OOM kills, at the limit of a cgroup: each is counted once, in it and in those above it, and outlives the cgroup."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.kernel import build
from nsagent.kernel.attach import Attached, attach
from nsagent.usage import KernelUsage
from tests.kernel.agents import Samples, get, running
from tests.kernel.conftest import accounting
from tests.support import cgroup_mounts, remove_cgroups, require, wait_for

pytestmark = pytest.mark.kernel

NAME = "nsagent_oom_kills_total"
LIMIT = 32 << 20
# In a second thread, while a first one waits for memory too: a victim's threads meet the OOM killer again on their way out.
HOG = """
import sys, threading
for hierarchy in sys.argv[2:]:
    open(hierarchy + "/cgroup.procs", "w").write("0")
open("/proc/self/oom_score_adj", "w").write("0")
def hog():
    kept = []
    while True:
        kept.append(b"x" * (1 << 20))
for _ in range(int(sys.argv[1]) - 1):
    threading.Thread(target=hog).start()
hog()
"""


def hierarchies() -> dict[str, Path]:
    """Where the memory cgroups are ("memory"), and those that are accounted ("accounting"): on v2 the same."""
    v1 = {mount.name: mount for mount in cgroup_mounts()}
    return {"accounting": accounting()[1], "memory": v1.get("memory", accounting()[1])}


class Groups:
    """A cgroup and one below it, with a memory limit there, in each hierarchy that counts."""

    def __init__(self, name: str) -> None:
        self.path = f"/{name}"
        self._tops = {mount / name for mount in hierarchies().values()}
        self._memory = hierarchies()["memory"] / name
        for top in self._tops:
            top.mkdir()
        controllers = self._memory / "cgroup.subtree_control"
        if controllers.exists():
            (self._memory.parent / "cgroup.subtree_control").write_text("+memory")
            controllers.write_text("+memory")

    def make(self, child: str) -> str:
        """Make the one below; return its path."""
        for top in self._tops:
            (top / child).mkdir()
        for file, value in (("memory.limit_in_bytes", LIMIT), ("memory.max", LIMIT), ("memory.swap.max", 0)):
            if (self._memory / child / file).exists():
                (self._memory / child / file).write_text(str(value))
        return f"{self.path}/{child}"

    def kill(self, child: str, threads: int = 1) -> None:
        """Have a process there ask for more than there is; it must not end by itself."""
        argv = [sys.executable, "-c", HOG, str(threads), *(str(top / child) for top in self._tops)]
        done = subprocess.run(argv, check=False, capture_output=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done

    def kernel(self, child: str) -> int:
        """Return what the kernel has counted in the one below."""
        for file in ("memory.events", "memory.oom_control"):
            if (path := self._memory / child / file).exists():
                return int(dict(line.split() for line in path.read_text().splitlines())["oom_kill"])
        raise AssertionError("no memory controller")

    def remove(self, child: str) -> None:
        """Remove the one below."""
        for top in self._tops:
            wait_for(lambda top=top: not (top / child / "cgroup.procs").read_text(), what="the last process")  # type: ignore[misc]
            (top / child).rmdir()


@pytest.fixture
def groups(cgroup_name: str) -> Iterator[Groups]:
    memory = hierarchies()["memory"]
    v2 = memory / "cgroup.controllers"
    require(not v2.exists() or "memory" in v2.read_text().split(), "there is no memory controller")
    yield Groups(cgroup_name)
    remove_cgroups(cgroup_name)


def kills(samples: Samples, path: str) -> dict[str, float | None]:
    return {word: get(samples, NAME, cgroup=path, constraint=word) for word in ("memcg", "unknown")}


def in_its_row(attached: Attached, path: str) -> tuple[int, int]:
    """Return the kills, of the two constraints, of the one context there is in a cgroup: they are in the victim's row."""
    number = (accounting()[1] / path[1:]).stat().st_ino
    used = KernelUsage(attached).read().cgroups[number]
    assert sum(words[0] == number for words in attached.rows()) == 1
    return used.oom_kills_memcg, used.oom_kills_unknown


def test_kills_are_in_the_row_of_their_victims(attached: Attached, groups: Groups) -> None:
    path = groups.make("one")
    for threads in (1, 4, 1):
        groups.kill("one", threads)
    assert groups.kernel("one") == 3
    assert in_its_row(attached, path) == (3, 0)


def test_each_kill_is_counted_once_and_outlives_its_cgroup(world: list[str], groups: Groups) -> None:
    with running(world, "--retain", "1h") as agent:
        child = groups.make("one")
        before = agent.scrape()
        assert kills(before, child) == {"memcg": 0, "unknown": 0}
        for threads in (1, 1, 4):
            groups.kill("one", threads)
        assert groups.kernel("one") == 3
        after = agent.scrape()
        assert kills(after, child) == kills(after, groups.path) == {"memcg": 3, "unknown": 0}
        root = kills(before, "/")["memcg"]
        assert root is not None
        assert (kills(after, "/")["memcg"] or 0) >= root + 3
        groups.remove("one")
        ended = agent.scrape()
        assert kills(ended, child) == kills(ended, groups.path) == {"memcg": 3, "unknown": 0}


def test_what_ends_before_any_scrape_is_in_the_next(world: list[str], groups: Groups) -> None:
    with running(world) as agent:
        agent.scrape()
        for number in range(5):
            path = groups.make(str(number))
            groups.kill(str(number))
            groups.remove(str(number))
        after = agent.scrape()
        assert kills(after, path)["memcg"] == 1
        assert kills(after, groups.path)["memcg"] == 5


def test_a_cgroup_made_anew_begins_at_nothing_and_the_one_above_goes_on(world: list[str], groups: Groups) -> None:
    with running(world, "--retain", "0") as agent:
        path = groups.make("again")
        agent.scrape()
        groups.kill("again")
        groups.remove("again")
        groups.make("again")
        after = agent.scrape()
        assert kills(after, path)["memcg"] == 0
        assert kills(after, groups.path)["memcg"] == 1
        groups.kill("again")
        after = agent.scrape()
        assert kills(after, path)["memcg"] == 1
        assert kills(after, groups.path)["memcg"] == 2


def test_kills_while_no_agent_runs_are_counted_too(world: list[str], groups: Groups) -> None:
    path = groups.make("one")
    with running(world) as agent:
        agent.scrape()
        agent.kill()
    groups.kill("one")
    with running(world) as agent:
        assert kills(agent.scrape(), path)["memcg"] == 1


def test_what_was_killed_before_the_load_is_nobodys(world: list[str], groups: Groups) -> None:
    path = groups.make("one")
    groups.kill("one")
    with running(world) as agent:
        assert kills(agent.scrape(), path)["memcg"] == 0
        groups.kill("one")
        assert groups.kernel("one") == 2
        assert kills(agent.scrape(), path)["memcg"] == 1


def test_a_kernel_that_tells_a_pid_alone(groups: Groups, pin_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before v6.9: the task is looked up by its pid. Here that of the task that was told."""
    sources = build.read_sources()
    told = "u64 task = ctx[0];"
    assert told in sources["oom.c"]
    looked_up = "u64 task = task_of(READ(struct task_struct, ctx[0], pid));"
    monkeypatch.setattr(build, "read_sources", lambda: sources | {"oom.c": sources["oom.c"].replace(told, looked_up)})
    path = groups.make("one")
    attached = attach(str(pin_dir), str(tmp_path), subsystem=accounting()[0], trace=False)
    try:
        groups.kill("one")
        assert in_its_row(attached, path) == (1, 0)
    finally:
        attached.unload()


def test_without_bpf_they_are_absent(world: list[str], groups: Groups) -> None:
    with running(world, "--no-bpf") as agent:
        assert all(name != NAME for name, _ in agent.scrape())
