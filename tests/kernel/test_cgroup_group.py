"""A cgroup of our own on the running kernel: made, limited, entered, read, frozen, killed and removed."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsagent.cgroups import ending
from nsagent.cgroups.group import Group, IoMax, Limits
from nsagent.cgroups.layout import Hierarchy, Layout, read_layout
from nsagent.errors import NsagentError, UnsupportedError, UsageError
from nsagent.launch.clone import clone3
from tests import support

pytestmark = pytest.mark.kernel
MIB = 1 << 20

# A fork bomb: every process forks for ever and never waits; what the pids limit refuses it tries again.
BOMB = """
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def layout() -> Layout:
    support.require_root()
    return read_layout()


@pytest.fixture
def group(layout: Layout, cgroup_name: str) -> Group:
    return Group.create(layout, f"{cgroup_name}/job")


@pytest.fixture
def start(group: Group) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a Python program inside the group, in every hierarchy, as the launcher does but for clone3."""
    running: list[subprocess.Popen[str]] = []

    def begin(code: str, *args: str) -> subprocess.Popen[str]:
        fds = group.attach_fds()
        v2 = [f"{place}/cgroup.procs" for hierarchy, place in group.places.items() if hierarchy.version == 2]
        fds += [os.open(path, os.O_WRONLY) for path in v2]
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", code, *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            preexec_fn=lambda: [os.write(fd, b"0") for fd in fds],  # noqa: PLW1509 - this test has one thread
        )
        for fd in fds[len(fds) - len(v2) :]:
            os.close(fd)
        running.append(process)
        return process

    yield begin
    for process in running:
        process.kill()
        process.communicate()


def files(group: Group, controller: str) -> Path:
    """The group's directory in the hierarchy of a controller."""
    hierarchy = group.layout.of(controller)
    support.require(hierarchy is not None, f"the {controller} controller is not mounted")
    assert hierarchy is not None
    return Path(group.places[hierarchy])


def test_made_in_every_hierarchy_and_removed_from_all(layout: Layout, group: Group) -> None:
    assert set(group.places) == {hierarchy for hierarchy in layout.hierarchies if hierarchy.writable}
    assert group.missing == {}
    assert all(os.path.isdir(place) for place in group.places.values())
    assert set(Group.open(layout, group.path).places) == set(group.places)
    group.remove()
    assert not any(os.path.exists(place) for place in group.places.values())
    assert Group.open(layout, group.path).places == {}
    group.remove()  # what is gone is removed


def test_one_that_exists_is_refused_and_left_alone(layout: Layout, group: Group) -> None:
    with pytest.raises(NsagentError, match="exists already"):
        Group.create(layout, group.path)
    assert all(os.path.isdir(place) for place in group.places.values())


def test_nothing_is_left_where_one_hierarchy_refuses(layout: Layout, cgroup_name: str) -> None:
    last = layout.hierarchies[-1]
    os.makedirs(f"{last.mountpoint}/{cgroup_name}/job")
    with pytest.raises(NsagentError):
        Group.create(layout, f"{cgroup_name}/job")
    others = [h for h in layout.hierarchies if h is not last]
    assert not any(os.path.exists(f"{h.mountpoint}/{cgroup_name}/job") for h in others)


@pytest.mark.parametrize("path", ["", "/", "..", "a/../b", "a//b", "/a", "a\nb"])
def test_paths_that_are_none(layout: Layout, path: str) -> None:
    with pytest.raises(UsageError):
        Group.create(layout, path)
    with pytest.raises(UsageError):
        Group.open(layout, path)


def test_a_name_that_is_not_utf8(layout: Layout, cgroup_name: str) -> None:
    group = Group.create(layout, f"{cgroup_name}/\udcff\udce9 \u2026")
    assert os.path.isdir(os.fsencode(next(iter(group.places.values()))))
    assert group.stats().pids is not None
    group.remove()


def test_limits_stand_in_the_kernel(group: Group) -> None:
    group.apply(Limits(cpus=1.5, memory_bytes=64 * MIB + 1, pids=9, cpuset="0", cpu_weight=37))
    stats = group.stats()
    assert stats.cpu and stats.memory and stats.pids  # noqa: PT018 - none is missing
    assert (stats.cpu.limit_cores, stats.cpu.weight) == (1.5, 37)
    assert stats.memory.limit_bytes == stats.memory.effective_limit_bytes == 64 * MIB
    assert stats.memory.swap_limit_bytes in (0, os.sysconf("SC_PAGE_SIZE"), None)  # v2, v1, no accounting of swap
    assert stats.pids.limit == 9
    assert (files(group, "cpuset") / "cpuset.cpus").read_text() == "0\n"
    group.apply(Limits(memory_bytes=128 * MIB))  # up, and down
    group.apply(Limits(memory_bytes=32 * MIB))
    memory = group.stats().memory
    assert memory is not None
    assert memory.limit_bytes == 32 * MIB


def disk() -> str:
    for line in Path("/proc/partitions").read_text().splitlines()[2:]:
        major, minor, _, name = line.split()
        if Path(f"/sys/block/{name}").is_dir():
            return f"{major}:{minor}"
    pytest.skip("this machine has no disk")


def test_io_limit_is_read_back(group: Group) -> None:
    device = disk()
    group.apply(Limits(io_max=(IoMax(device, rbps=5 * MIB, wiops=100),)))
    place = files(group, "io")
    if (place / "io.max").exists():
        assert (place / "io.max").read_text() == f"{device} rbps={5 * MIB} wbps=max riops=max wiops=100\n"
    else:
        assert f"{device} {5 * MIB}\n" in (place / "blkio.throttle.read_bps_device").read_text()
        assert (place / "blkio.throttle.write_iops_device").read_text() == f"{device} 100\n"


@pytest.mark.parametrize(
    ("limits", "flag"),
    [
        (Limits(io_max=(IoMax("4095:4095", rbps=1),)), "--io-max"),
        (Limits(cpuset="100000"), "--cpuset"),
        (Limits(pids=4_194_304 + 1), "--pids"),
    ],
)
def test_what_the_kernel_refuses_names_the_flag(group: Group, limits: Limits, flag: str) -> None:
    with pytest.raises((UsageError, UnsupportedError), match=flag):
        group.apply(limits)


def test_missing_controller_names_flag_and_controller(layout: Layout, cgroup_name: str) -> None:
    less = Layout(tuple(h for h in layout.hierarchies if not h.controllers & {"memory"} and h.version == 1))
    if not less.hierarchies:
        less = Layout(tuple(Hierarchy(2, h.mountpoint, h.controllers - {"memory"}) for h in layout.hierarchies if h.version == 2))
    group = Group.create(less, f"{cgroup_name}/job")
    with pytest.raises(UnsupportedError, match="--memory: the memory controller is in no mounted hierarchy") as error:
        group.apply(Limits(memory_bytes=MIB))
    assert "--memory" in error.value.hint
    memory = group.stats().memory
    assert memory is None


def test_read_only_hierarchies(layout: Layout, cgroup_name: str) -> None:
    frozen = Layout(tuple(Hierarchy(h.version, h.mountpoint, h.controllers, h.name, writable=False) for h in layout.hierarchies))
    with pytest.raises(UnsupportedError, match="read-only") as error:
        Group.create(frozen, f"{cgroup_name}/job")
    assert "remount" in error.value.hint


def test_child_is_in_before_its_first_instruction(group: Group) -> None:
    """clone3 into the v2 directory, then `tasks` of each v1 hierarchy: the child ends up in every cgroup."""
    fds, v2 = group.attach_fds(), group.v2_fd
    read, write = os.pipe()
    pid, pidfd = clone3(0, v2)
    if pid == 0:
        for fd in fds:
            os.write(fd, b"0")
        os.write(write, Path("/proc/self/cgroup").read_bytes())
        signal.pause()
    lines = os.read(read, 65536).decode().splitlines()
    try:
        mounted = {key: path for _, key, path in (line.split(":", 2) for line in lines)}
        for hierarchy in group.places:
            key = "" if hierarchy.version == 2 else hierarchy.key
            assert mounted[key] == f"/{group.path}"
        assert group.pids() == {pid}
        stats = group.stats()
        assert stats.pids is not None
        assert stats.pids.current == 1
    finally:
        group.kill()
        os.waitpid(pid, 0)
        for fd in (pidfd, read, write):
            os.close(fd)
    group.remove()


def test_stats_of_a_known_load(group: Group, start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    """Burn 200 ms, touch 20 MiB, have 5 tasks at once."""
    group.apply(Limits(pids=5))
    process = start(
        "import os, time\n"
        "block = bytearray(20 << 20)\n"
        "for at in range(0, len(block), 4096): block[at] = 1\n"
        "children = []\n"
        "for _ in range(4):\n"
        "    pid = os.fork()\n"
        "    if not pid: time.sleep(1000)\n"
        "    children.append(pid)\n"
        "for _ in range(3):\n"
        "    try: os.fork()\n"
        "    except BlockingIOError: pass\n"
        "while time.process_time_ns() < 200_000_000: pass\n"
        "print('up', flush=True); input()\n"
        "for pid in children: os.kill(pid, 9); os.waitpid(pid, 0)\n"
        "print('down', flush=True); input()\n"
    )
    assert process.stdout
    assert process.stdin
    assert process.stdout.readline() == "up\n"
    stats = group.stats()
    assert stats.pids
    assert (stats.pids.current, stats.pids.limit, stats.pids.limit_hits) == (5, 5, 3)
    assert stats.pids.peak in (5, None)  # None before 6.1
    assert len(group.pids()) == 5
    process.stdin.write("\n")
    process.stdin.flush()
    assert process.stdout.readline() == "down\n"
    stats = group.stats()
    assert stats.cpu
    assert stats.memory
    assert stats.pids
    assert (stats.pids.current, stats.pids.limit_hits) == (1, 3)
    # No less than the process saw itself, and not what no such load can use.
    assert stats.cpu.usage_ns is not None
    assert 200_000_000 <= stats.cpu.usage_ns < 20_000_000_000
    if stats.memory.peak_bytes is not None:  # v2 before 5.19 has none
        assert 20 * MIB <= stats.memory.peak_bytes < 80 * MIB
    assert stats.memory.detail["anon"] >= 20 * MIB
    assert stats.memory.minor_faults is not None
    assert stats.memory.minor_faults >= 20 * MIB // 4096 // 16  # huge pages may take many at once
    group.kill()
    process.wait()
    final = group.stats()
    usage = files(group, "cpuacct" if group.layout.mode != "v2" else "cpu") / "cpuacct.usage"
    assert final.cpu
    if usage.exists():
        assert final.cpu.usage_ns == int(usage.read_text())


def test_direct_io_is_counted_to_the_byte(group: Group, start: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    target = tmp_path / "file"
    program = (
        "import mmap, os, sys\n"
        "try: fd = os.open(sys.argv[1], os.O_CREAT | os.O_RDWR | os.O_DIRECT)\n"
        "except OSError: print('no'); sys.exit()\n"
        "block = mmap.mmap(-1, 1 << 20)\n"
        "for _ in range(4): os.write(fd, block)\n"
        "os.lseek(fd, 0, 0)\n"
        "for _ in range(2): os.readv(fd, [block])\n"
        "print('yes')\n"
    )
    out, _ = start(program, str(target)).communicate()
    if out != "yes\n":
        pytest.skip("the temporary directory's filesystem has no direct IO")
    device = os.stat(target).st_dev
    if os.major(device) == 0:
        pytest.skip("the temporary directory is on no block device")
    io = group.stats().io
    assert io
    written = sum(each.write_bytes or 0 for each in io.devices.values())
    read = sum(each.read_bytes or 0 for each in io.devices.values())
    assert 4 * MIB <= written < 5 * MIB  # and a few of the filesystem's own blocks
    assert 2 * MIB <= read < 3 * MIB


def test_io_goes_by_the_name_of_its_device(loop: str, group: Group, start: Callable[..., subprocess.Popen[str]]) -> None:
    program = (
        "import mmap, os, sys\nfd = os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT)\nos.readv(fd, [mmap.mmap(-1, 1 << 20)])\n"
    )
    assert start(program, loop).wait() == 0
    io = group.stats().io
    assert io
    assert io.devices[Path(loop).name].read_bytes == MIB


def test_out_of_memory_is_an_event(group: Group, start: Callable[..., subprocess.Popen[str]]) -> None:
    group.apply(Limits(memory_bytes=24 * MIB))
    process = start("block = bytearray(200 << 20)\nfor at in range(0, len(block), 4096): block[at] = 1")
    assert process.wait() == -signal.SIGKILL
    memory = group.stats().memory
    assert memory
    assert memory.events["oom_kill"] == 1
    assert memory.events["max"] > 0
    assert memory.peak_bytes is None or memory.peak_bytes <= 24 * MIB


def test_frozen_stands_still_and_thawed_goes_on(group: Group, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("print('up', flush=True)\nwhile True: pass")
    assert process.stdout
    assert process.stdout.readline() == "up\n"

    def used() -> int:
        cpu = group.stats().cpu
        assert cpu
        assert cpu.usage_ns is not None
        return cpu.usage_ns

    def stands_still() -> bool:
        """This process runs for 50 ms; that one does not, but for its last step on the way to sleep."""
        before, ends = used(), time.process_time_ns() + 50_000_000
        while time.process_time_ns() < ends:
            pass
        return used() == before

    assert not stands_still()
    group.freeze()
    assert ending.is_frozen(group.places)
    assert stands_still() or stands_still()
    before = used()
    group.thaw()
    support.wait_for(lambda: used() > before, what="the process to go on")
    group.kill()
    assert process.wait() == -signal.SIGKILL


def test_kill_of_a_frozen_group(group: Group, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("print('up', flush=True)\nwhile True: pass")
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    group.freeze()
    group.kill()
    assert process.wait() == -signal.SIGKILL
    group.remove()


def without_cgroup_kill(group: Group) -> dict[Hierarchy, str]:
    """The group's v1 hierarchies only: how it is killed where the kernel has no cgroup.kill."""
    return {hierarchy: place for hierarchy, place in group.places.items() if hierarchy.version == 1}


@pytest.mark.parametrize("way", ["all", "v1"])
def test_fork_bomb_ends(group: Group, start: Callable[..., subprocess.Popen[str]], way: str) -> None:
    group.apply(Limits(pids=150))
    places = group.places if way == "all" else without_cgroup_kill(group)
    if not places:
        pytest.skip("no v1 hierarchy is mounted")
    nested = Path(next(iter(places.values()))) / "nested"
    nested.mkdir()
    process = start(BOMB)

    def hits() -> int:
        pids = group.stats().pids
        return (pids and pids.limit_hits) or 0

    support.wait_for(lambda: hits() > 100, what="the bomb to reach the limit of pids")
    moved = next(iter(group.pids() - {process.pid}))
    (nested / "cgroup.procs").write_text(str(moved))  # a descendant's processes end too
    ending.kill(places, 120)
    assert group.pids() == set()
    process.wait()
    group.remove()
    assert not any(os.path.exists(place) for place in group.places.values())


def test_after_kill_nothing_can_be_forked_there(group: Group, start: Callable[..., subprocess.Popen[str]]) -> None:
    group.kill()
    process = start(
        "import os\ntry: os.fork()\nexcept OSError as error: print(error.errno, flush=True)\n",
    )
    assert process.communicate()[0] == f"{errno.EAGAIN}\n"


def test_a_group_that_is_in_use_is_not_removed(group: Group, start: Callable[..., subprocess.Popen[str]]) -> None:
    process = start("print('up', flush=True); input()")
    assert process.stdout
    assert process.stdout.readline() == "up\n"
    with pytest.raises(NsagentError, match=f"processes \\[{process.pid}\\]"):
        group.remove(0.05)
    process.communicate("\n")
    group.remove()


def test_remove_waits_for_what_is_exiting(group: Group, start: Callable[..., subprocess.Popen[str]]) -> None:
    children = [start("input()") for _ in range(5)]
    for place in group.places.values():
        os.makedirs(f"{place}/a/b")
    for child in children:
        child.kill()
    group.remove()
    assert not any(os.path.exists(place) for place in group.places.values())
    for child in children:
        child.wait()


def test_attach_moves_a_running_process(group: Group) -> None:
    process = subprocess.Popen(["sleep", "1000"])
    try:
        group.attach(process.pid)
        assert group.pids() == {process.pid}
    finally:
        group.kill()
        process.wait()


def test_descriptors_are_closed_and_not_inherited(group: Group) -> None:
    before = set(os.listdir("/proc/self/fd"))
    fds = [*group.attach_fds(), *([group.v2_fd] if group.v2_fd is not None else [])]
    assert group.attach_fds() == fds[: len(group.attach_fds())]  # asked again, the same
    assert not any(os.get_inheritable(fd) for fd in fds)
    with group:
        pass
    assert set(os.listdir("/proc/self/fd")) == before
