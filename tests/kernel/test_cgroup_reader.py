"""Reading the running kernel's cgroups: all of them, while they come and go, under whatever names."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nsagent.cgroups import v1
from nsagent.cgroups.files import read_once
from nsagent.cgroups.group import Group, Limits
from nsagent.cgroups.layout import Layout, read_layout
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.stats import CgroupStats
from nsagent.cgroups.tree import Tree
from nsagent.errors import AccessError, UnsupportedError
from tests import support

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module")
def layout() -> Layout:
    support.require_root()
    return read_layout()


@pytest.fixture
def make(layout: Layout, cgroup_name: str) -> Callable[[str], Path]:
    """Make a cgroup below one of this test's own in the accounting hierarchy; return its directory."""
    top = Path(layout.accounting[1].mountpoint) / cgroup_name
    top.mkdir()

    def below(name: str) -> Path:
        (top / name).mkdir()
        return top / name

    return below


def scanned(layout: Layout) -> Tree:
    tree = Tree(layout)
    tree.scan()
    return tree


def test_own_cgroup_is_where_this_process_is(layout: Layout) -> None:
    own = layout.own_cgroup()
    for hierarchy in layout.hierarchies:
        place = hierarchy.directory(own[hierarchy.key])
        assert place is not None
        assert os.getpid() in map(int, Path(place, "cgroup.procs").read_text().split())


def test_ids_are_the_directories_inodes(layout: Layout, make: Callable[[str], Path]) -> None:
    path = make("a")
    tree = scanned(layout)
    name = f"/{path.parent.name}/a"
    assert tree.path_of(path.stat().st_ino) == name
    assert tree.cgroups[name].ids == {layout.accounting[1].key: path.stat().st_ino}
    root = layout.accounting[1]
    assert tree.path_of(os.stat(root.mountpoint).st_ino) == "/"


def test_a_recreated_cgroup_has_a_new_id(layout: Layout, make: Callable[[str], Path]) -> None:
    path = make("a")
    tree = scanned(layout)
    name, old = f"/{path.parent.name}/a", path.stat().st_ino
    path.rmdir()
    path.mkdir()
    tree.scan()
    assert path.stat().st_ino != old
    assert (tree.path_of(old), tree.path_of(path.stat().st_ino)) == (None, name)


@pytest.mark.parametrize("name", ["a b", 'q"uo\\te', "\udcff\udce9", "tab\there", "\u2026", "x" * 255, "…{}=,"])
def test_hostile_names(layout: Layout, make: Callable[[str], Path], name: str) -> None:
    path = f"/{make(name).parent.name}/{name}"
    tree = scanned(layout)
    assert path in tree.cgroups
    stats = Reader(layout).read_all(tree)[path]
    assert stats == Reader(layout).read(path)
    assert stats.cpu is not None
    assert stats.cpu.usage_ns == 0


def test_whole_node_equals_the_files(layout: Layout, cgroup_name: str) -> None:
    group = Group.create(layout, f"{cgroup_name}/job")
    group.apply(Limits(pids=11, cpus=0.25))
    process = subprocess.Popen(["sleep", "1000"])
    try:
        group.attach(process.pid)
        tree, usage = scanned(layout), Path(layout.accounting[1].mountpoint, group.path, "cpuacct.usage")
        before = int(usage.read_text()) if usage.exists() else 0
        stats = Reader(layout).read_all(tree)
        job = stats[f"/{group.path}"]
        assert job.pids is not None
        assert (job.pids.current, job.pids.limit) == (1, 11)
        assert job.cpu is not None
        assert job.cpu.limit_cores == 0.25
        assert job.cpu.usage_ns is not None
        if usage.exists():  # `sleep` may still be starting
            assert before <= job.cpu.usage_ns <= int(usage.read_text())
        assert "/" in stats
        assert stats["/"].cpu is not None
        assert stats["/"].pids is None  # the root does not count its tasks
    finally:
        group.kill()
        process.wait()


def test_vanished_cgroup_is_none(layout: Layout, make: Callable[[str], Path]) -> None:
    path = make("a")
    reader, name = Reader(layout), f"/{path.parent.name}/a"
    tree = scanned(layout)
    directory = os.open(path, os.O_RDONLY)
    try:
        path.rmdir()
        assert read_once("cgroup.procs", directory) is None
    finally:
        os.close(directory)
    assert reader.read(name) == CgroupStats()
    assert name not in reader.read_all(tree)


def test_what_vanishes_in_mid_read_teaches_nothing_wrong(
    layout: Layout, make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory was opened, then the cgroup ended: its files are missing there, and nowhere else."""
    path, stays = make("a"), make("stays")
    top = f"/{path.parent.name}"
    reader, whole = Reader(layout), Reader(layout).read(f"{top}/stays")

    def ended(name: str, directory: int) -> bytes | None:
        if path.exists():
            path.rmdir()
        return read_once(name, directory)

    monkeypatch.setattr("nsagent.cgroups.places.read_once", ended)
    assert reader.read(f"{top}/a") == CgroupStats()
    assert not path.exists()
    assert reader.read(f"{top}/{stays.name}") == whole


def test_reading_while_cgroups_come_and_go(layout: Layout, make: Callable[[str], Path]) -> None:
    """A cgroup that stays is read whole each time, though of seven others one ends and begins all the time."""
    stays = f"/{make('stays').parent.name}/stays"
    place = Path(layout.accounting[1].mountpoint + stays).parent
    whole = Reader(layout).read(stays)
    stop = threading.Event()

    def churn() -> None:
        number = 0
        while not stop.is_set():
            path = place / f"c{number % 7}"
            if path.exists():
                path.rmdir()
            path.mkdir()
            number += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        tree, reader = Tree(layout), Reader(layout, lambda: 0.0)  # on whose clock no file is slow
        for _ in range(40):
            tree.scan()
            assert reader.read_all(tree)[stays] == whole
    finally:
        stop.set()
        thread.join()


def test_no_descriptor_is_left_open(layout: Layout) -> None:
    tree, reader = scanned(layout), Reader(layout)
    before = os.listdir("/proc/self/fd")
    reader.read_all(tree)
    reader.read("/")
    tree.scan()
    reader.close()
    assert os.listdir("/proc/self/fd") == before


def test_descriptors_of_removed_cgroups_are_closed(layout: Layout, make: Callable[[str], Path]) -> None:
    tree, reader = Tree(layout, watched=True), Reader(layout)
    try:
        paths = [make(f"c{number}") for number in range(20)]
        top = f"/{paths[0].parent.name}/"

        def wanted(path: str) -> bool:  # others come and go too
            return path.startswith(top)

        for path in paths:
            path.rmdir()
        tree.scan()
        for _ in range(2):  # descriptors are kept from the second reading on
            reader.read_all(tree, wanted)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            for path in paths:
                path.mkdir()
            tree.scan()
            reader.read_all(tree, wanted)
            assert len(os.listdir("/proc/self/fd")) >= before + 20
            for path in paths:
                path.rmdir()
            name = f"/{paths[0].parent.name}/c0"
            assert name not in reader.read_all(tree, wanted)  # noticed by the reads, before any scan
            assert len(os.listdir("/proc/self/fd")) == before
            tree.scan()
            assert name not in tree.cgroups
    finally:
        reader.close()
        tree.close()


def test_watched_tree_equals_a_walk(layout: Layout, make: Callable[[str], Path]) -> None:
    """Births, ends, a replacement within one directory (same link count), nested ones, in several hierarchies."""
    tree = Tree(layout, watched=True)
    try:
        if not tree.is_watched:
            support.require(condition=False, reason="fanotify on cgroup filesystems (6.7)")

        def settled() -> bool:
            before = tree.generation
            tree.scan()
            return tree.generation == before

        def equal() -> bool:
            tree.scan()
            return tree.cgroups == scanned(layout).cgroups

        tree.scan()
        support.wait_for(settled, what="a moment in which nobody makes cgroups")
        a = make("a")
        places = [Path(h.mountpoint, a.parent.name) for h in layout.hierarchies]
        others = [place for place in places if not place.exists()]
        b = a / "b"
        steps: list[tuple[list[Path], list[Path]]] = [  # to be removed, then to be made
            ([], [b, b / "c", b / "c/d"]),
            ([b / "c/d"], [b / "c/e"]),
            ([b / "c/e"], [b / "c/e"]),
            ([], others),
            ([b / "c/e", b / "c", b, *others], []),
        ]
        for ends, begins in steps:
            for path in ends:
                path.rmdir()
            for path in begins:
                path.mkdir()
            support.wait_for(equal, what="the same as a walk, in a moment in which nobody makes cgroups")
    finally:
        tree.close()


def test_what_lives_beside_a_birth_is_not_looked_at(
    layout: Layout, make: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, looked, number = Tree(layout, watched=True), list[str](), itertools.count()
    try:
        if not tree.is_watched:
            support.require(condition=False, reason="fanotify on cgroup filesystems (6.7)")
        siblings = [make(f"c{number}") for number in range(20)]
        top = f"/{siblings[0].parent.name}"
        tree.scan()
        stat = os.stat

        def counting(place: Any, **more: Any) -> os.stat_result:
            looked.append(str(place))
            return stat(place, **more)

        def seen_alone() -> bool:
            old, new = siblings.pop(), siblings[0].parent / f"new{next(number)}"
            siblings.append(new)
            tree.take_touched()
            looked.clear()
            old.rmdir()
            new.mkdir()
            tree.scan()
            if None in tree.take_touched().values():
                return False  # others did so much that the kernel has dropped events, and all was walked
            there = [path.name for path in (old, new, siblings[0]) if f"{top}/{path.name}" in tree.cgroups]
            assert there == [new.name, siblings[0].name]
            assert [place for place in looked if f"{top}/" in place] == [f"{new}/."]
            return True

        monkeypatch.setattr(os, "stat", counting)
        support.wait_for(seen_alone, what="a look at what has been told")
    finally:
        monkeypatch.undo()
        tree.close()


def test_settings_that_somebody_wrote_are_read_again(layout: Layout, cgroup_name: str) -> None:
    """The reader does not read a limit again that nobody wrote; so each write must be heard of."""
    group = Group.create(layout, f"{cgroup_name}/job")
    tree, reader = Tree(layout, watched=True), Reader(layout)
    try:
        for pids, memory, cpus in ((5, 1 << 24, 0.5), (6, 1 << 25, 0.25), (6, 1 << 25, 0.75), (7, 1 << 24, 0.75)):
            group.apply(Limits(pids=pids, memory_bytes=memory, cpus=cpus))
            for _ in range(2):
                tree.scan()
                stats = reader.read_all(tree)[f"/{group.path}"]
                once = Reader(layout).read(f"/{group.path}")
                assert stats.pids is not None
                assert stats.cpu is not None
                assert stats.memory is not None
                assert once.cpu is not None
                assert stats == once._replace(cpu=once.cpu._replace(periods=stats.cpu.periods))  # one passes after a write
                assert (stats.pids.limit, stats.memory.limit_bytes, stats.cpu.limit_cores) == (pids, memory, cpus)
        if layout.v2 is not None:
            child = Path(layout.v2.mountpoint, group.path, "child")
            for descendants in (1, 0):
                if descendants:
                    child.mkdir()
                else:
                    child.rmdir()
                tree.scan()
                state = reader.read_all(tree)[f"/{group.path}"].state
                assert state is not None
                assert state.descendants == descendants
    finally:
        reader.close()
        tree.close()
        group.remove()


def test_new_parts_equal_the_files(layout: Layout, cgroup_name: str) -> None:
    group = Group.create(layout, f"{cgroup_name}/job")
    try:
        stats = Reader(layout).read_all(scanned(layout))[f"/{group.path}"]
        assert stats.state is not None
        assert stats.state.frozen is False
        if layout.v2 is not None:
            place = Path(layout.v2.mountpoint, group.path)
            words = (place / "cgroup.stat").read_text().split()
            assert stats.state.descendants == int(words[words.index("nr_descendants") + 1]) == 0
            assert stats.state.populated is False
            names = {file.name.removesuffix(".pressure") for file in place.glob("*.pressure") if file.name != "cgroup.pressure"}
            readable = {name for name in names if os.access(f"/proc/pressure/{name}", os.R_OK)}
            assert set(stats.pressure.resources if stats.pressure else {}) == readable
        cpuset = layout.of("cpuset")
        if cpuset is not None and cpuset.version == 1:
            assert stats.cpuset is not None
            for file in ("cpuset.cpus", "cpuset.mems"):
                value = Path(cpuset.mountpoint, file).read_text()
                for path in (cgroup_name, group.path):
                    Path(cpuset.mountpoint, path, file).write_text(value)
            stats = Reader(layout).read(f"/{group.path}")
            assert stats.cpuset is not None
            assert (stats.cpuset.cpus, bool(stats.cpuset.mems)) == (os.cpu_count(), True)
        group.freeze()
        frozen = Reader(layout).read(f"/{group.path}")
        assert frozen.state is not None
        assert frozen.state.frozen is True
        group.thaw()
    finally:
        group.remove()


READ_A_MIB = """
import mmap, os, sys
os.readv(os.open(sys.argv[1], os.O_RDONLY | os.O_DIRECT), [mmap.mmap(-1, 1 << 20)])
"""


def enter(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.write(descriptor, b"0")


def test_a_counter_goes_on_where_the_kernel_has_it_fall(layout: Layout, cgroup_name: str, loop: str) -> None:
    """blkio of v1 loses what a child had; to cpuacct.usage anybody may write 0. What is read goes on, to the byte."""
    blkio, cpuacct = layout.of("blkio"), layout.of("cpuacct")
    if blkio is None or cpuacct is None:
        pytest.skip("blkio and cpuacct are no v1 controllers here")
    parent = Path(blkio.mountpoint, cgroup_name)
    tree, reader = Tree(layout), Reader(layout, lambda: 0.0)  # on whose clock no file is slow

    def read() -> CgroupStats:
        tree.scan()
        return reader.read_all(tree, f"/{cgroup_name}".__eq__)[f"/{cgroup_name}"]

    number = os.stat(loop).st_rdev
    device = f"{os.major(number)}:{os.minor(number)}"  # on a busy machine Python's own pages are read too, from another

    def kept_by_the_kernel() -> int:
        found = v1.parse_blkio((parent / v1.FILES["blkio"][0]).read_bytes())
        return found.get(device, {}).get("Read", 0)

    def falls() -> bool:  # not at once: what was removed goes when the last that holds it has let it go
        end = time.monotonic() + 60
        while kept_by_the_kernel() and time.monotonic() < end:
            time.sleep(0.05)
        return not kept_by_the_kernel()

    seen, raw = [], []
    for child in range(2):
        with Group.create(layout, f"{cgroup_name}/{child}") as group:
            argv = [sys.executable, "-I", "-S", "-c", READ_A_MIB, loop]
            subprocess.run(argv, check=True, preexec_fn=functools.partial(enter, group.attach_fds()))
            for gone in (False, True):
                if gone:
                    group.remove()
                    if not falls():
                        pytest.skip("this kernel keeps what a removed child had read")
                io = read().io
                assert io
                seen.append(io.devices[Path(loop).name].read_bytes)
                raw.append(kept_by_the_kernel())
    assert raw == [1 << 20, 0, 1 << 20, 0]
    assert seen == [1 << 20, 1 << 20, 2 << 20, 2 << 20]
    assert min(reader.falls.counts["io", field] for field in ("read_bytes", "reads")) >= 2
    kept = reader.keep()
    reader.close()
    reader = Reader(layout, lambda: 0.0)
    reader.go_on(kept)  # as the agent's does after a restart
    io = read().io
    assert io
    assert io.devices[Path(loop).name].read_bytes == 2 << 20

    usage = Path(cpuacct.mountpoint, cgroup_name, "cpuacct.usage")
    used = read().cpu
    assert used
    assert used.usage_ns
    usage.write_text("0\n")
    now = read().cpu
    assert now
    assert (now.usage_ns, int(usage.read_text())) == (used.usage_ns, 0)
    assert reader.falls.counts["cpu", "usage_ns"] == 1
    reader.close()


def test_an_ordinary_user_may_not_make_a_group_but_read_all(layout: Layout, cgroup_name: str) -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        try:
            Group.create(layout, f"{cgroup_name}/job")
            outcome = "made"
        except AccessError as error:
            outcome = f"refused: {error.hint}"
        stats = Reader(layout).read("/")
        os.write(write, f"{outcome}; {stats.cpu is not None}".encode())
        os._exit(0)
    os.close(write)
    os.waitpid(pid, 0)
    assert os.read(read, 4096).decode() == "refused: run as root, or in a delegated cgroup; True"
    os.close(read)
    assert not any(os.path.exists(f"{h.mountpoint}/{cgroup_name}") for h in layout.hierarchies)


def test_v2_enables_nothing_in_a_cgroup_that_holds_processes(layout: Layout, cgroup_name: str) -> None:
    if layout.mode != "v2":
        pytest.skip("memory and cpu are v1 controllers here")
    top = Path(layout.accounting[1].mountpoint) / cgroup_name
    top.mkdir()
    process = subprocess.Popen(["sleep", "1000"])
    try:
        (top / "cgroup.procs").write_text(str(process.pid))
        group = Group.create(layout, f"{cgroup_name}/job")
        assert set(group.missing) == {"cpu", "io", "memory", "pids"}
        with pytest.raises(UnsupportedError, match=r"--memory: .*holds processes"):
            group.apply(Limits(memory_bytes=1 << 24))
        assert (top / "cgroup.subtree_control").read_text().strip() == ""
        assert group.stats().memory is None
        group.attach(process.pid)  # not made threaded: processes may enter
        assert group.pids() == {process.pid}
        group.kill()
        group.remove()
    finally:
        process.kill()
        process.wait()


def test_group_is_light_to_import() -> None:
    code = "import sys, nsagent.cgroups.group; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/").stdout.split()
    assert not {"psutil", "click", "prometheus_client", "asyncio", "logging", "subprocess"} & set(loaded)


def test_a_throttled_descendant_is_not_in_the_counters_of_the_limit(layout: Layout, cgroup_name: str) -> None:
    """As the help of these families says: CPU time counts above, periods and throttling of a limit do not."""
    group = Group.create(layout, f"{cgroup_name}/job")
    busy = None
    try:
        group.apply(Limits(cpus=0.05))
        busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
        group.attach(busy.pid)
        reader = Reader(layout)

        def is_throttled() -> bool:
            cpu = reader.read(f"/{group.path}").cpu
            return bool(cpu and cpu.throttled_periods and cpu.throttled_ns)

        support.wait_for(is_throttled)
        below, above = reader.read(f"/{group.path}").cpu, reader.read(f"/{cgroup_name}").cpu
        assert below is not None
        assert above is not None
        assert (above.usage_ns or 0) >= (below.usage_ns or 0) > 0
        assert (above.periods or 0, above.throttled_periods or 0, above.throttled_ns or 0) == (0, 0, 0)
        reader.close()
    finally:
        if busy is not None:
            busy.kill()
            busy.wait()
        group.remove()
