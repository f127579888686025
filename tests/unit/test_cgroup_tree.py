"""The tree of cgroups and the reading of it, on recorded hosts and on directories made here: no kernel is asked."""

from __future__ import annotations

import errno
import math
import os
import shutil
from pathlib import Path

import pytest

from nsagent.cgroups import places
from nsagent.cgroups.layout import Hierarchy, Layout, read_layout
from nsagent.cgroups.pace import BOUNDS_S, Pace
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.stats import CgroupStats, CpuStats, PidsStats, Pressure
from nsagent.cgroups.tree import Cgroup, Tree, walk
from nsagent.errors import NsagentError

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "cgroups"


def recorded(name: str) -> Tree:
    tree = Tree(read_layout(f"{FIXTURES}/{name}/proc", f"{FIXTURES}/{name}/sys/fs/cgroup"))
    tree.scan()
    return tree


class Clock:
    """A clock that a test sets."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Host:
    """Two hierarchies made of plain directories: pids on v1, and a v2 tree."""

    def __init__(self, root: Path, retain: float = 120) -> None:
        self.clock = Clock()
        self.pids, self.v2 = root / "pids", root / "v2"
        for path in (self.pids, self.v2):
            path.mkdir()
            (path / "cgroup.procs").touch()
        layout = Layout((Hierarchy(1, str(self.pids), frozenset({"pids"})), Hierarchy(2, str(self.v2), frozenset({"memory"}))))
        self.tree = Tree(layout, retain, self.clock)

    def make(self, name: str) -> Path:
        path = self.pids / name
        path.mkdir(parents=True)
        (path / "pids.current").write_text("3\n")
        (path / "cgroup.procs").write_text("")
        return path


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.mark.parametrize("name", ["v1", "v2", "hybrid"])
def test_recorded_trees(name: str) -> None:
    tree = recorded(name)
    assert set(tree.cgroups) == {"/", "/jobs", "/jobs/one"}
    for path, cgroup in tree.cgroups.items():
        assert set(cgroup.ids) == {hierarchy.key for hierarchy in tree.layout.hierarchies}
        assert tree.path_of(cgroup.ids[tree.layout.accounting[1].key]) == path
    assert tree.path_of(1) is None
    assert [Tree.parent(path) for path in ("/jobs/one", "/jobs", "/")] == ["/jobs", "/", None]


@pytest.mark.parametrize("name", ["v1", "v2", "hybrid"])
def test_recorded_job(name: str) -> None:
    """The recorded job: half a CPU, 96 MiB, 7 tasks, weight 200; it touched 12 MiB, wrote 3 MiB and read 1 past the cache."""
    tree = recorded(name)
    stats = Reader(tree.layout).read_all(tree)["/jobs/one"]
    assert stats.cpu and stats.memory and stats.io and stats.pids  # noqa: PT018 - none of the four is missing
    assert (stats.cpu.limit_cores, stats.cpu.weight) == (0.5, 200)
    assert stats.cpu.usage_ns and stats.cpu.usage_ns >= 300_000_000  # noqa: PT018
    assert stats.cpu.throttled_ns
    assert stats.memory.limit_bytes == stats.memory.effective_limit_bytes == 96 << 20
    assert stats.memory.swap_limit_bytes in (0, 4096, None)
    assert stats.memory.usage_bytes and stats.memory.working_set_bytes  # noqa: PT018
    assert stats.memory.usage_bytes >= stats.memory.working_set_bytes >= 12 << 20
    assert stats.memory.detail["anon"] >= 12 << 20
    assert (stats.pids.current, stats.pids.limit, stats.pids.limit_hits) == (1, 7, 0)
    (device,) = stats.io.devices.values()
    assert device.write_bytes == 3 << 20
    assert device.read_bytes and 1 << 20 <= device.read_bytes < 2 << 20  # noqa: PT018 - and some of the disk's own blocks
    assert Reader(tree.layout).read("/jobs/one") == stats


def test_v2_effective_limit_is_an_ancestors(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "v2", tmp_path / "v2")
    for path, limit in (("jobs", "4096"), ("jobs/one", "max")):
        (tmp_path / "v2/sys/fs/cgroup" / path / "memory.max").write_text(f"{limit}\n")
    tree = Tree(read_layout(f"{tmp_path}/v2/proc", f"{tmp_path}/v2/sys/fs/cgroup"))
    tree.scan()
    reader = Reader(tree.layout)
    for stats in (reader.read_all(tree)["/jobs/one"], reader.read("/jobs/one")):
        assert stats.memory
        assert (stats.memory.limit_bytes, stats.memory.effective_limit_bytes) == (math.inf, 4096)


def test_v2_controller_that_is_off_here_is_absent_and_not_forgotten_elsewhere(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "v2", tmp_path / "v2")
    place = tmp_path / "v2/sys/fs/cgroup"
    (place / "jobs/cgroup.controllers").write_text("cpu\n")
    for file in (place / "jobs").glob("memory.*"):
        file.unlink()
    tree = Tree(read_layout(f"{tmp_path}/v2/proc", f"{tmp_path}/v2/sys/fs/cgroup"))
    tree.scan()
    stats = Reader(tree.layout).read_all(tree)
    assert stats["/jobs"].memory is None
    assert stats["/jobs"].pids is None
    assert stats["/jobs"].cpu is not None
    assert stats["/jobs/one"].memory is not None


def test_missing_files_are_asked_for_once(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a", "b"):
        host.make(name)
    host.tree.scan()
    reader = Reader(host.tree.layout, host.clock)
    asked: list[str] = []
    read = places.Place.read

    def noted(place: places.Place, name: str, *, keep: bool = False) -> bytes | None:
        asked.append(name)
        return read(place, name, keep=keep)

    monkeypatch.setattr(places.Place, "read", noted)
    reader.read_all(host.tree)
    assert asked.count("pids.peak") == 3
    asked.clear()
    host.clock.now += 2  # what lacked it lives on
    reader.read_all(host.tree)
    assert "pids.peak" not in asked


def test_union_by_path_with_an_id_a_hierarchy(host: Host) -> None:
    host.make("a/b")
    (host.v2 / "a").mkdir()
    (host.v2 / "c").mkdir()
    host.tree.scan()
    assert set(host.tree.cgroups) == {"/", "/a", "/a/b", "/c"}
    assert set(host.tree.cgroups["/a"].ids) == {"v2", "pids"}
    assert set(host.tree.cgroups["/c"].ids) == {"v2"}
    assert host.tree.cgroups["/a/b"] == Cgroup("/a/b", {"pids": (host.pids / "a/b").stat().st_ino})


def test_no_descriptor_left_is_told_and_ends_no_cgroup(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.make("a/b")
    host.tree.scan()

    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patched:
        patched.setattr(os, "scandir", none_left)
        with pytest.raises(NsagentError, match=r"^/: Too many open files$"):
            host.tree.scan()
    assert {"/a", "/a/b"} <= host.tree.cgroups.keys()
    host.make("a/c")
    host.tree.scan()
    assert {"/a", "/a/b", "/a/c"} <= host.tree.cgroups.keys()
    assert not host.tree.tombstones


def test_tombstone_keeps_the_last_stats_and_expires(host: Host) -> None:
    path = host.make("a")
    host.tree.scan()
    last = Reader(host.tree.layout).read_all(host.tree)
    assert last["/a"] == CgroupStats(pids=PidsStats(3))
    shutil.rmtree(path)
    host.clock.now = 10
    host.tree.scan()
    assert "/a" not in host.tree.cgroups
    assert host.tree.tombstones["/a"].stats == last["/a"]
    assert host.tree.tombstones["/a"].ended == 10
    host.clock.now = 130
    host.tree.scan()
    assert "/a" in host.tree.tombstones
    host.clock.now = 130.1
    host.tree.scan()
    assert host.tree.tombstones == {}


def test_a_cgroup_of_the_same_path_takes_the_place_of_the_tombstone(host: Host) -> None:
    path = host.make("a")
    host.tree.scan()
    Reader(host.tree.layout).read_all(host.tree)
    shutil.rmtree(path)
    host.tree.scan()
    host.make("a")
    host.tree.scan()
    assert host.tree.tombstones == {}
    assert "/a" in host.tree.cgroups


def test_recreated_between_two_scans_the_old_stats_are_not_its_own(host: Host) -> None:
    host.tree.add(Cgroup("/a", {"pids": 5}))
    host.tree.remember({"/a": CgroupStats(pids=PidsStats(9))})
    host.tree.add(Cgroup("/a", {"pids": 6}))
    assert (host.tree.path_of(5), host.tree.path_of(6)) == (None, None)  # pids is not the accounting hierarchy here
    host.tree.discard("/a")
    assert host.tree.tombstones == {}


def test_a_part_that_vanished_in_mid_read_is_remembered(host: Host) -> None:
    whole = CgroupStats(cpu=CpuStats(7), pids=PidsStats(3))
    host.tree.add(Cgroup("/a", {"pids": 5}))
    host.tree.remember({"/a": whole, "/unknown": whole})
    host.tree.remember({"/a": CgroupStats(cpu=CpuStats(8))})
    host.tree.discard("/a")
    host.tree.discard("/unknown")
    assert {path: stone.stats for path, stone in host.tree.tombstones.items()} == {
        "/a": CgroupStats(cpu=CpuStats(8), pids=PidsStats(3))
    }


def test_path_of_follows_recreation(tmp_path: Path) -> None:
    tree = Tree(Layout((Hierarchy(1, str(tmp_path), frozenset({"cpuacct"})),)))
    tree.add(Cgroup("/a", {"cpuacct": 5}))
    tree.add(Cgroup("/a", {"cpuacct": 6}))
    assert (tree.path_of(5), tree.path_of(6)) == (None, "/a")
    tree.discard("/a")
    assert tree.path_of(6) is None


def test_nothing_read_leaves_no_tombstone(host: Host) -> None:
    shutil.rmtree(host.make("a"))
    host.tree.scan()
    host.make("b")
    host.tree.scan()
    shutil.rmtree(host.pids / "b")
    host.tree.scan()
    assert host.tree.tombstones == {}


def test_hostile_names(host: Host) -> None:
    names = ["a b", 'q"uote\\', "\udcff\udce9", "…", "-"]
    for name in names:
        host.make(name)
    host.tree.scan()
    assert set(host.tree.cgroups) == {"/", *(f"/{name}" for name in names)}
    assert Reader(host.tree.layout).read("/\udcff\udce9") == CgroupStats(pids=PidsStats(3))


def test_more_cgroups_than_descriptors(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    before = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr("resource.getrlimit", lambda _: (16, 16))
    for number in range(50):
        host.make(f"c{number}")
    host.tree.scan()
    reader = Reader(host.tree.layout)
    for _ in range(2):
        stats = reader.read_all(host.tree)
        assert sum(each.pids == PidsStats(3) for each in stats.values()) == 50
    assert len(os.listdir("/proc/self/fd")) == before + 8 + 4  # a half for directories, a quarter for files
    assert reader.kernel_memory_bytes == 8 * 1024 + 4 * 5120
    reader.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert reader.kernel_memory_bytes == 0


def test_what_did_not_change_is_the_same_object(host: Host) -> None:
    a, b = host.make("a"), host.make("b")
    for path in (a, b):
        (path / "pids.max").write_text("7\n")
    host.tree.scan()
    reader = Reader(host.tree.layout)
    first = reader.read_all(host.tree)
    assert first["/a"].pids == PidsStats(3, 7)
    (b / "pids.current").write_text("4\n")
    second = reader.read_all(host.tree)
    assert second["/a"] is first["/a"]
    assert second["/b"].pids == PidsStats(4, 7)
    (a / "pids.max").unlink()  # what is not told any more is absent, not what it was
    reader.close()
    assert reader.read_all(host.tree)["/a"].pids == PidsStats(3)


def test_part_that_did_not_change_is_the_same_object(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "v2", tmp_path / "v2")
    tree = Tree(read_layout(f"{tmp_path}/v2/proc", f"{tmp_path}/v2/sys/fs/cgroup"))
    tree.scan()
    reader = Reader(tree.layout)
    first = reader.read_all(tree)["/jobs/one"]
    (tmp_path / "v2/sys/fs/cgroup/jobs/one/pids.current").write_text("5\n")
    second = reader.read_all(tree)["/jobs/one"]
    assert second.pids is not None
    assert second.pids.current == 5
    for part in set(CgroupStats._fields) - {"pids"}:
        assert getattr(second, part) is getattr(first, part)
    (tmp_path / "v2/sys/fs/cgroup/jobs/memory.max").write_text("4096\n")  # bounds the child, whose own files did not change
    third = reader.read_all(tree)["/jobs/one"]
    assert third.memory is not None
    assert third.memory.effective_limit_bytes == 4096


def test_recreated_cgroup_is_read_anew(host: Host) -> None:
    path = host.make("a")
    host.tree.scan()
    reader = Reader(host.tree.layout)
    assert reader.read_all(host.tree)["/a"].pids == PidsStats(3)
    path.rename(host.pids / "b")
    host.make("a")
    (path / "pids.current").write_text("9\n")
    host.tree.scan()
    assert {name: each.pids for name, each in reader.read_all(host.tree).items() if name != "/"} == {
        "/a": PidsStats(9),
        "/b": PidsStats(3),
    }


def test_recreated_before_its_first_reading_it_is_not_taken_for_the_one_that_was_found(host: Host) -> None:
    """Directories are opened when a file is read, and a path may lead to another cgroup by then."""
    old, reader = host.make("a"), Reader(host.tree.layout)
    host.tree.scan()
    old.rename(host.pids / "elsewhere")  # so that its number is not the new one's
    (host.make("a") / "pids.current").write_text("7\n")
    assert "/a" not in reader.read_all(host.tree)
    host.tree.scan()
    found = reader.read_all(host.tree)
    assert (found["/a"].pids, found["/elsewhere"].pids) == (PidsStats(current=7), PidsStats(current=3))


def test_files_that_are_alike_are_kept_once(host: Host) -> None:
    for name in "abc":
        host.make(name)
    reader = Reader(host.tree.layout)

    def read(*names: str) -> list[object]:
        host.tree.scan()
        reader.read_all(host.tree)
        return [reader._records[f"/{name}"].files["pids"] for name in names]

    a, b = read("a", "b")
    assert a is b
    (host.pids / "a" / "pids.current").write_text("4\n")
    a, b, c = read("a", "b", "c")
    assert (a, b) == ({"pids.current": b"4\n"}, {"pids.current": b"3\n"})
    assert b is c


def test_slow_file_is_left_out_longer_each_time(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    host.make("a")
    host.tree.scan()
    slow = {"pids.current": True}
    read = places.Place.read

    def timed(place: places.Place, name: str, *, keep: bool = False) -> bytes | None:
        host.clock.now += 0.06 if slow.get(name) else 0.002
        return read(place, name, keep=keep)

    monkeypatch.setattr(places.Place, "read", timed)
    reader = Reader(host.tree.layout, host.clock)
    reader.pace = Pace(lambda: 0.0)
    seen = []
    for number in range(16):
        slow["pids.current"] = number < 5
        host.clock.now += 2
        seen.append("/a" in reader.read_all(host.tree))
    # slow: left out twice; slow again: four times; then it is fast
    assert seen == [True, False, False, True, *[False] * 4, *[True] * 8]
    assert reader.pace.backoffs == {"pids.current": 2}
    reads = reader.pace.reads["pids.current"]
    slow_reads = 3  # that of the root, which has none, is not repeated
    fast = reads.number - slow_reads
    assert dict(zip(BOUNDS_S, reads.within, strict=True)) == {
        0.0001: 0, 0.001: 0, 0.01: fast, 0.05: fast, 0.1: reads.number, 1.0: reads.number
    }  # fmt: skip
    assert reads.total_ns == pytest.approx(slow_reads * 60_000_000 + fast * 2_000_000)


def test_only_what_is_wanted_is_read(host: Host) -> None:
    for name in ("a", "a/b", "c"):
        host.make(name)
    host.tree.scan()
    assert set(Reader(host.tree.layout).read_all(host.tree, lambda path: path in ("/a/b", "/c"))) == {"/a/b", "/c"}


def test_unwanted_ancestor_bounds_all_the_same(tmp_path: Path) -> None:
    shutil.copytree(FIXTURES / "v2", tmp_path / "v2")
    (tmp_path / "v2/sys/fs/cgroup/jobs/memory.max").write_text("4096\n")
    tree = Tree(read_layout(f"{tmp_path}/v2/proc", f"{tmp_path}/v2/sys/fs/cgroup"))
    tree.scan()
    (stats,) = Reader(tree.layout).read_all(tree, lambda path: path == "/jobs/one").values()
    assert stats.memory is not None
    assert stats.memory.effective_limit_bytes == 4096


def test_bind_mount_keeps_the_path_of_the_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    hierarchy = Hierarchy(1, str(tmp_path), frozenset({"pids"}), "", "/docker/1")
    assert [path for path, _ in walk(hierarchy)] == ["/docker/1", "/docker/1/job"]


def test_mount_that_went_away_is_an_empty_tree(tmp_path: Path) -> None:
    assert list(walk(Hierarchy(1, f"{tmp_path}/gone", frozenset({"pids"})))) == []


def test_a_path_is_one_string_in_all_hierarchies(tmp_path: Path) -> None:
    """Of 5,000 cgroups in ten hierarchies each copy of the paths is 4 MB."""
    for name in ("cpu", "pids"):
        (tmp_path / name / "jobs" / "one").mkdir(parents=True)
    cpu, pids = ([path for path, _ in walk(Hierarchy(1, f"{tmp_path}/{name}", frozenset({name})))] for name in ("cpu", "pids"))
    assert cpu == ["/", "/jobs", "/jobs/one"]
    assert all(path is other for path, other in zip(cpu, pids, strict=True))


@pytest.mark.parametrize(("has_type", "stalled"), [(False, None), (True, 0)])
def test_the_whole_system_has_no_stall_of_its_cpus(tmp_path: Path, has_type: bool, stalled: int | None) -> None:
    """The kernel leaves it undefined and prints 0; the root of a cgroup namespace is a cgroup like any other."""
    shutil.copytree(FIXTURES / "v2", tmp_path / "v2")
    root = tmp_path / "v2/sys/fs/cgroup"
    line = "some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
    zero = line.replace("some", "full").replace("7", "0")
    proc = tmp_path / "v2/proc/pressure"
    proc.mkdir(exist_ok=True)
    for name in ("cpu", "io"):
        (proc / name).write_text(line + zero)
        (root / f"{name}.pressure").write_text(line + zero)
        (root / f"jobs/one/{name}.pressure").write_text(line + zero)
    if has_type:
        (root / "cgroup.type").write_text("domain\n")
    tree = Tree(read_layout(f"{tmp_path}/v2/proc", str(root)))
    tree.scan()
    reader = Reader(tree.layout)
    found = {path: stats.pressure for path, stats in reader.read_all(tree).items()}
    assert found["/"] == reader.read("/").pressure
    reader.close()
    assert found["/"] is not None
    assert found["/jobs/one"] is not None
    assert found["/"].resources["cpu"] == Pressure(7000, stalled)
    assert found["/"].resources["io"] == Pressure(7000, 0)
    assert found["/jobs/one"].resources["cpu"] == Pressure(7000, 0)


def test_what_no_path_leads_to_is_known_and_not_shown(host: Host) -> None:
    """One of exactly PATH_MAX less what opens it is shown still; a name longer, and it is left out with what is below it."""
    room = os.pathconf("/", "PC_PATH_MAX") - len(f"{host.pids}/./") - 1
    place = host.pids
    while len(str(place)) + 256 < room:
        place /= "a" * 200
    place.mkdir(parents=True)
    last = place / ("b" * (len(f"{host.pids}/") + room - len(f"{place}/")))
    for _ in range(2):
        last.mkdir()
        parent = os.open(place, os.O_RDONLY)
        os.mkdir(last.name + "c", dir_fd=parent)
        beyond = os.open(last.name + "c", os.O_RDONLY, dir_fd=parent)
        os.mkdir("below", dir_fd=beyond)
        host.tree.scan()
        path = f"/{last.relative_to(host.pids)}"
        assert host.tree.too_long == {path + "c"}
        assert path in host.tree.cgroups
        assert path + "c" not in host.tree.cgroups
        Reader(host.tree.layout).read_all(host.tree)
        os.rmdir("below", dir_fd=beyond)
        os.rmdir(last.name + "c", dir_fd=parent)
        os.close(beyond)
        os.close(parent)
        last.rmdir()
        host.tree.scan()
        assert host.tree.too_long == set()
