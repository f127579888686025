"""An upgrade keeps what was counted: other programs, the same maps, nothing lost and nothing counted twice in between."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.errors import NsagentError
from nsagent.events import KernelEvents, SyscallEvent
from nsagent.kernel import abi, attach, bpf, build, mounts, objects, pins
from nsagent.usage import KernelUsage
from tests import support
from tests.kernel.bpf_ids import attached_to
from tests.kernel.conftest import AccountedCgroup, accounting, expect_ready, go_on

pytestmark = pytest.mark.kernel


class World:
    """A pin directory, and sources that can be changed."""

    def __init__(self, pin_dir: Path, cache_dir: str, sources: Path) -> None:
        self.pin_dir = str(pin_dir)
        self.cache_dir = cache_dir
        self.sources = sources

    def change(self, text: str) -> None:
        """Make the sources others, by a comment."""
        path = self.sources / "account.c"
        path.write_text(f"{path.read_text().partition('/* version')[0]}/* version {text} */\n")

    def attach(self, **options: object) -> attach.Attached:
        return attach.attach(self.pin_dir, self.cache_dir, subsystem=accounting()[0], **options)  # type: ignore[arg-type]


@pytest.fixture
def world(pin_dir: Path, cache_dir: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    mounts.mount_bpffs()
    mounts.mount_tracefs()
    copy = tmp_path / "bpf"
    shutil.copytree(build.source_dir(), copy)
    monkeypatch.setattr(build, "source_dir", lambda: str(copy))
    yield World(pin_dir, cache_dir, copy)
    pins.unload(str(pin_dir))


@pytest.fixture
def own_cgroup(cgroup_name: str) -> AccountedCgroup:
    """A cgroup without a reader: that is each test's."""
    path = accounting()[1] / cgroup_name
    path.mkdir()
    return AccountedCgroup(path, None)  # type: ignore[arg-type]


def names(loaded: attach.Attached) -> list[str]:
    """Return what must be attached: each link once, by its program's name as the kernel cuts it."""
    return sorted(bpf.prog_info(find(bpf.link_info(fd).prog_id)).name for fd in loaded._loaded.links.values())


def find(prog_id: int) -> int:
    fd = bpf.prog_get_fd_by_id(prog_id)
    OPENED.append(fd)
    return fd


OPENED: list[int] = []


@pytest.fixture(autouse=True)
def _close_found() -> Iterator[None]:
    yield
    while OPENED:
        os.close(OPENED.pop())


def assert_attached_once(one: attach.Attached) -> None:
    used = [one._maps[name].fd for name in ("tasks", "cgroup_scratch", "oom_kills")]  # one of them by each that is attached
    support.wait_for(
        lambda: sorted(name for fd in used for name in attached_to(fd)) == names(one), what="the old programs' detachment"
    )
    assert os.listdir(one._loaded.pin_dir) == [os.path.basename(pins.live_dir(one._loaded.pin_dir))]
    expected = len(one._loaded.maps) + 1 + len(one._loaded.programs) + len(one._loaded.links)
    assert len(os.listdir(pins.live_dir(one._loaded.pin_dir))) == expected


def test_counters_go_on_across_a_change_of_the_sources(world: World, own_cgroup: AccountedCgroup, load: str) -> None:
    first = world.attach()
    own_cgroup.reader = KernelUsage(first)
    own_cgroup.run([load, "forks", "100", "1000"]).communicate(timeout=120)
    before = own_cgroup.complete()
    calls = first.syscall_cells()
    assert before.processes_created == 100
    world.change("two")
    second = world.attach()
    assert (second.adopted, second.carried) == (False, True)
    assert second._loaded.object_key != first._loaded.object_key
    first.close()
    assert_attached_once(second)
    own_cgroup.reader = KernelUsage(second)
    assert own_cgroup.ours().cpu_ns == before.cpu_ns
    assert all(now >= then for now, then in zip(second.syscall_cells(), calls, strict=True))
    own_cgroup.run([load, "forks", "50", "1000"]).communicate(timeout=120)
    after = own_cgroup.complete()
    assert (after.processes_created, after.processes_exited) == (150, 152)
    missed = after.threads_exited - after.threads_freed
    assert missed or after.cpu_ns == own_cgroup.kernel_ns()
    second.close()


def test_nothing_is_counted_twice_or_missed_while_programs_swap(world: World, own_cgroup: AccountedCgroup, load: str) -> None:
    """Forks and unshares without a pause, under upgrades without a pause."""
    current = world.attach()
    events = KernelEvents(current)
    forks = own_cgroup.run([load, "forks", "4000", "100"])
    calls = own_cgroup.run([load, "unshares", "3000"])
    expect_ready(calls)
    go_on(calls)
    seen: list[SyscallEvent] = []
    for swaps, version in enumerate(itertools.cycle("ab"), 1):
        world.change(version)
        after = world.attach()
        current.close()
        current = after
        seen += events.read()  # the ring buffer went on, and so its position
        if forks.poll() is not None and swaps >= 6:
            break
    expect_ready(calls)
    seen += events.read()
    own_cgroup.reader = KernelUsage(current)
    go_on(calls)
    calls.communicate(timeout=120)
    support.wait_for(lambda: own_cgroup.ours().processes_exited >= 4000 + 2, what="the exits")
    used = own_cgroup.ours()
    assert used.processes_created == 4000
    assert used.processes_exited == 4000 + 2
    ours = [event for event in seen if event.pid == calls.pid]
    assert len(ours) + current.statistic("events_lost") >= 3000
    assert len(ours) <= 3000
    if not current.statistic("events_lost"):
        assert len(ours) == 3000
        for earlier, later in itertools.pairwise(ours):
            assert earlier.changes[0][2] == later.changes[0][1]
    assert used.threads_freed <= used.threads_exited
    assert_attached_once(current)
    events.close()
    current.close()


def test_tracing_comes_and_goes_and_loses_no_counter(world: World, own_cgroup: AccountedCgroup, load: str) -> None:
    created, unshared = 0, 0
    for trace in (False, True, False, True):
        one = world.attach(trace=trace)
        assert bool(one.traced_by) == trace
        assert_attached_once(one)
        own_cgroup.reader = KernelUsage(one)
        process = own_cgroup.run([load, "unshares", "20"])
        expect_ready(process)
        go_on(process)
        expect_ready(process)
        unshared += 20 if trace else 0
        go_on(process)
        process.communicate(timeout=120)
        own_cgroup.run([load, "forks", "10", "0"]).communicate(timeout=120)
        created += 10
        assert own_cgroup.complete().processes_created == created
        unseen = one.statistic("unseen")
        one.settle()
        assert trace or one.statistic("unseen") == unseen  # nobody claims to have missed what nobody looks for
        if trace:
            row = abi.SYSCALLS.index("unshare") * abi.RESULTS
            assert one.syscall_cells()[row] >= unshared
        one.close()
    reader = world.attach(trace=False, as_found=True)
    assert reader.adopted
    assert reader.traced_by
    reader.close()


def test_filters_of_an_agent_that_was_killed_are_gone(world: World) -> None:
    def config(one: attach.Attached) -> dict[str, int]:
        return {name: one._config(name) for name in ("all", "kinds", "failed", "pid", "cgroup", "rate")}

    one = world.attach()
    one.trace_all(True)
    one.filter_events(kinds=1, failed=1, pid=1, cgroup=1, rate=1)
    one.close()
    looked = world.attach(as_found=True)
    assert set(config(looked).values()) == {1}
    looked.close()
    adopted = world.attach(rate=7)
    assert adopted.adopted
    assert config(adopted) == {"all": 0, "kinds": 0, "failed": 0, "pid": 0, "cgroup": 0, "rate": 7}
    adopted.close()


def test_another_layout_begins_anew_and_says_so(world: World, caplog: pytest.LogCaptureFixture) -> None:
    world.attach(rows=1024).close()
    other = world.attach(rows=2048, trace=False)
    assert not other.carried
    assert "counters_restart" in caplog.text
    other.close()


def test_another_hierarchy_is_another_lineage(world: World) -> None:
    first = world.attach(trace=False)
    first.close()
    subsystem = None if accounting()[0] else "cpuacct"
    try:
        other = attach.attach(world.pin_dir, world.cache_dir, subsystem=subsystem, trace=False)
    except NsagentError as error:
        pytest.skip(f"this kernel charges no other hierarchy: {error}")
    assert not other.carried
    other.close()


def test_an_upgrade_that_fails_leaves_the_old_as_it_was(world: World, own_cgroup: AccountedCgroup, load: str) -> None:
    one = world.attach()
    own_cgroup.reader = KernelUsage(one)
    own_cgroup.run([load, "forks", "10", "0"]).communicate(timeout=120)
    descriptors = len(os.listdir("/proc/self/fd"))
    found, _ = attach.find_object(world.cache_dir, accounting()[0])
    broken = objects.Object(objects.ObjectKey("11" * 32, found.key.build_id), "", found.maps, found.programs, {})

    def fail(maps: objects.Maps) -> None:
        raise NsagentError("no")

    with pytest.raises(NsagentError, match="no"):
        objects.load(broken, world.pin_dir, groups={"account"}, carry_on=fail, lineage=f"cgroups of {accounting()[0]}")
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert_attached_once(one)
    own_cgroup.run([load, "forks", "10", "0"]).communicate(timeout=120)
    assert own_cgroup.complete().processes_created == 20
    one.close()


DYING = """
import os, signal, sys
from nsagent.kernel import attach, build, pins
build.source_dir = lambda: sys.argv[3]
publish = pins.publish
def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[4] == "before":
    pins.publish = die
else:
    pins.remove_dir = lambda path: die() if path.endswith("new") and os.path.isdir(path) else False
attach.attach(sys.argv[1], sys.argv[2], subsystem=sys.argv[5] or None)
"""


@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_in_the_middle_of_an_upgrade(world: World, own_cgroup: AccountedCgroup, load: str, moment: str) -> None:
    one = world.attach()
    own_cgroup.reader = KernelUsage(one)
    own_cgroup.run([load, "forks", "10", "0"]).communicate(timeout=120)
    one.close()
    world.change(f"killed {moment}")
    argv = [world.pin_dir, world.cache_dir, str(world.sources), moment, accounting()[0] or ""]
    died = subprocess.run([sys.executable, "-c", DYING, *argv], cwd=support.ROOT, check=False, capture_output=True, text=True)
    assert died.returncode == -9, died.stderr
    assert sorted(os.listdir(world.pin_dir)) == ["abi1", "new"]
    own = own_cgroup.run([load, "forks", "10", "0"])  # both sets run
    own.communicate(timeout=120)
    after = world.attach()
    assert_attached_once(after)
    own_cgroup.reader = KernelUsage(after)
    assert own_cgroup.complete().processes_created == 20
    after.close()


RACER = """
import json, sys
from nsagent.kernel import attach, build
build.source_dir = lambda: sys.argv[3]
print("ready", flush=True)
sys.stdin.readline()
one = attach.attach(sys.argv[1], sys.argv[2], subsystem=sys.argv[4] or None)
print(json.dumps({"adopted": one.adopted, "carried": one.carried, "ns": one._loaded.loaded_ns}))
"""


def test_of_four_racing_upgraders_one_upgrades(world: World, own_cgroup: AccountedCgroup, load: str) -> None:
    one = world.attach()
    own_cgroup.reader = KernelUsage(one)
    own_cgroup.run([load, "forks", "10", "0"]).communicate(timeout=120)
    one.close()
    world.change("raced")
    attach.find_object(world.cache_dir, accounting()[0])  # compiled once
    argv = [sys.executable, "-c", RACER, world.pin_dir, world.cache_dir, str(world.sources), accounting()[0] or ""]
    racers = [
        subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=support.ROOT) for _ in range(4)
    ]
    for racer in racers:
        expect_ready(racer)
    for racer in racers:
        go_on(racer)
    results = [json.loads(racer.communicate(timeout=120)[0]) for racer in racers]
    assert sorted(result["adopted"] for result in results) == [False, True, True, True]
    assert [result["carried"] for result in results].count(True) == 1
    assert len({result["ns"] for result in results}) == 1
    after = world.attach()
    assert after.adopted
    assert_attached_once(after)
    own_cgroup.reader = KernelUsage(after)
    assert own_cgroup.complete().processes_created == 10
    after.close()


def test_a_ring_buffer_of_another_size_is_made_anew_and_totals_stay(world: World, own_cgroup: AccountedCgroup, load: str) -> None:
    one = world.attach()
    own_cgroup.reader = KernelUsage(one)
    own_cgroup.run([load, "forks", "10", "0"]).communicate(timeout=120)
    one.close()
    world.change("with a smaller ring")
    other = world.attach(ring_bytes=1 << 16)
    assert other.carried
    assert other._maps["events"].max_entries == 1 << 16
    own_cgroup.reader = KernelUsage(other)
    assert own_cgroup.complete().processes_created == 10
    other.close()
