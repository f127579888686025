"""Cgroups that nobody had time to read: made, used and removed at once, their last values are in the next scrape, exactly."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from nsagent import libc
from nsagent.metrics.text import printable
from tests.kernel.agents import Samples, get, running
from tests.kernel.conftest import accounting
from tests.support import cgroup_mounts, remove_cgroups, wait_for

pytestmark = pytest.mark.kernel

MANY = 200
PAGE = os.sysconf("SC_PAGE_SIZE")


class Life(NamedTuple):
    """What the manager of a cgroup read just before it removed it; `most_ns`: what its parent gained until after the removal.

    v2 tells whole microseconds.
    """

    least_ns: int
    most_ns: int
    peak_bytes: int
    pids_peak: int | None


def hierarchies() -> dict[str, Path]:
    """Where cpuacct, memory and pids are on v1; {"": where the v2 tree is} where that has them."""
    found = {mount.name: mount for mount in cgroup_mounts()}
    wanted: dict[str, Path] = {name: found[name] for name in ("cpuacct", "memory", "pids") if name in found}
    return wanted if "cpuacct" in wanted else {"": accounting()[1]}


def read(directory: Path, name: str) -> int | None:
    try:
        words = (directory / name).read_text().split()
    except FileNotFoundError:
        return None
    return int(words[1]) * 1000 if name == "cpu.stat" else int(words[0])


def usage(places: dict[str, Path], path: str) -> int:
    v1 = "cpuacct" in places
    value = read(places["cpuacct" if v1 else ""] / path, "cpuacct.usage" if v1 else "cpu.stat")
    assert value is not None
    return value


def remove(directory: Path) -> None:
    """As a manager does: at once, and again while the last task is still on its way out."""

    def gone() -> bool:
        try:
            directory.rmdir()
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True

    wait_for(gone, what=f"the removal of {directory}")


def live(places: dict[str, Path], parent: str, name: str, pages: int) -> Life:
    """Make a cgroup, burn some ms in it, read what its files say, and remove it."""
    path = f"{parent}/{name}"
    before = usage(places, parent)
    for place in places.values():
        (place / path).mkdir()
    pid = os.fork()
    if not pid:
        with contextlib.suppress(BaseException):
            for place in places.values():
                (place / path / "cgroup.procs").write_text("0")
            memory = bytearray(pages * PAGE)
            for at in range(0, len(memory), PAGE):
                memory[at] = 1
            sum(range(20_000))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    memory_place = places.get("memory", places.get("")) or Path()
    peak = read(memory_place / path, "memory.max_usage_in_bytes" if "memory" in places else "memory.peak")
    pids_peak = read(places.get("pids", memory_place) / path, "pids.peak")
    used = usage(places, path)
    for place in places.values():
        remove(place / path)
    rounded = 0 if "cpuacct" in places else 999
    return Life(used, usage(places, parent) + rounded - before, peak or 0, pids_peak)


@pytest.fixture
def parent(cgroup_name: str) -> Iterator[str]:
    for place in hierarchies().values():
        (place / cgroup_name).mkdir()
        if (place / "cgroup.controllers").exists():
            for group in (place, place / cgroup_name):
                (group / "cgroup.subtree_control").write_text("+memory +pids")
    yield cgroup_name
    remove_cgroups(cgroup_name)


def ns(seconds: float | None) -> int:
    assert seconds is not None
    return round(seconds * 1e9)


def assert_exact(samples: Samples, lives: dict[str, Life]) -> None:
    wrong: list[Sequence[object]] = []
    for path, life in lives.items():
        label = printable(path)
        cpu = get(samples, "nsagent_cgroup_cpu_usage_seconds_total", cgroup=label)
        peak = get(samples, "nsagent_cgroup_memory_peak_bytes", cgroup=label)
        pids_peak = get(samples, "nsagent_cgroup_pids_peak", cgroup=label)
        if cpu is None or not life.least_ns <= ns(cpu) <= life.most_ns or peak != life.peak_bytes or pids_peak != life.pids_peak:
            wrong.append((path, cpu, peak, pids_peak, life))
    assert not wrong, f"{len(wrong)} of {len(lives)}: {wrong[:3]}"
    # Between the bounds are a process's last microseconds, after its parent has heard of its end; mostly there is nothing.
    assert sum(life.most_ns - life.least_ns for life in lives.values()) < 0.2 * sum(life.least_ns for life in lives.values())


def outcomes(samples: Samples) -> dict[str, float]:
    found = {name: get(samples, "nsagent_cgroup_final_reads_total", outcome=name) for name in ("complete", "partial", "late")}
    return {name: value for name, value in found.items() if value is not None}


def test_two_hundred_short_lives_are_all_in_the_next_scrape(world: list[str], parent: str) -> None:
    places = hierarchies()
    with running(world) as agent:
        before = agent.scrape()
        lives = {f"/{parent}/{n}": live(places, parent, str(n), 20 + n) for n in range(MANY)}
        after = agent.scrape()
        assert_exact(after, lives)
        ended = {name: value - outcomes(before)[name] for name, value in outcomes(after).items()}
        assert ended["complete"] >= MANY
        assert get(after, "nsagent_bpf_map_full_total", map="cgroup_events") == 0
        # By their own tasks' counters too: each forked nobody, so the storage series is what there is of every one.
        usage_of = {dict(labels)["cgroup"] for name, labels in after if name == "nsagent_cgroup_storage_bytes_total"}
        assert lives.keys() <= usage_of
        again = agent.scrape()
        assert_exact(again, lives)


def test_a_hostile_name_of_255_bytes(world: list[str], parent: str) -> None:
    name = os.fsdecode(bytes([0xFF, 0xC3, 0x5C] * 85))
    with running(world) as agent:
        agent.scrape()
        lives = {f"/{parent}/{name}": live(hierarchies(), parent, name, 50)}
        path = f"/{parent}/{name}"
        label = printable(path)
        after = agent.scrape()
        cpu = ns(get(after, "nsagent_cgroup_cpu_usage_seconds_total", cgroup=label))
        assert lives[path].least_ns <= cpu <= lives[path].most_ns
        assert get(after, "nsagent_cgroup_memory_peak_bytes", cgroup=label) == lives[path].peak_bytes


def test_what_ends_while_no_agent_runs_is_told_by_the_next(world: list[str], parent: str) -> None:
    with running(world) as agent:
        agent.scrape()
        agent.kill()
    lives = {f"/{parent}/{n}": live(hierarchies(), parent, str(n), 10) for n in range(5)}
    with running(world) as agent:
        assert agent.facts["bpf"] == "loaded"
        assert_exact(agent.scrape(), lives)


def test_when_a_living_cgroup_was_made(world: list[str], parent: str) -> None:
    name = "nsagent_cgroup_created_timestamp_seconds"
    with running(world) as agent:
        assert get(agent.scrape(), name, cgroup=f"/{parent}") is None  # made before anybody looked
        before = time.time()
        for place in hierarchies().values():
            (place / parent / "living").mkdir()
        after = time.time()
        made = get(agent.scrape(), name, cgroup=f"/{parent}/living")
        assert made is not None
        assert before - 0.1 <= made <= after + 0.1  # the kernel told it on another clock
        for place in hierarchies().values():
            (place / parent / "living").rmdir()
        assert get(agent.scrape(), name, cgroup=f"/{parent}/living") is None


def test_one_that_was_read_keeps_the_rest_of_its_last_reading(world: list[str], parent: str) -> None:
    places = hierarchies()
    path = f"/{parent}/read"
    with running(world) as agent:
        for place in places.values():
            (place / parent / "read").mkdir()
        assert get(agent.scrape(), "nsagent_cgroup_memory_events_total", cgroup=path, event="oom_kill") == 0
        pid = os.fork()
        if not pid:
            for place in places.values():
                (place / path[1:] / "cgroup.procs").write_text("0")
            sum(range(100_000))
            os._exit(0)
        os.waitpid(pid, 0)
        used = usage(places, path[1:])
        for place in places.values():
            remove(place / path[1:])
        after = agent.scrape()
        assert ns(get(after, "nsagent_cgroup_cpu_usage_seconds_total", cgroup=path)) >= used
        assert get(after, "nsagent_cgroup_memory_events_total", cgroup=path, event="oom_kill") == 0
        assert get(after, "nsagent_cgroup_cpu_seconds_total", cgroup=path, mode="user") is not None


def test_an_agent_in_a_cgroup_namespace_that_has_the_hosts_trees(world: list[str], parent: str) -> None:
    """As in a pod: a namespace of its own, and a mount of the host's /sys/fs/cgroup."""
    places, own = hierarchies(), f"{parent}-agent"

    def enter() -> None:
        for place in places.values():
            (place / own / "cgroup.procs").write_text("0")
        libc.unshare(libc.CLONE_NEWCGROUP)

    for place in places.values():
        (place / own).mkdir()
    try:
        with running(world, "--no-runtimes", preexec_fn=enter) as agent:
            assert os.readlink(f"/proc/{agent.process.pid}/ns/cgroup") != os.readlink("/proc/self/ns/cgroup")
            assert agent.status()["features"].get("cgroup_ends") is None
            agent.scrape()
            lives = {f"/{parent}/{n}": live(places, parent, str(n), 20 + n) for n in range(5)}
            assert_exact(agent.scrape(), lives)
    finally:
        remove_cgroups(own)
