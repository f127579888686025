"""The tree of cgroups and the reading of it, on recorded hosts and on directories made here: no kernel is asked."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest

from nsagent.cgroups.layout import Hierarchy, Layout, read_layout
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.stats import CgroupStats, CpuStats, PidsStats
from nsagent.cgroups.tree import Cgroup, Tree, walk

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
    reader = Reader(host.tree.layout)
    asked: list[str] = []
    monkeypatch.setattr("nsagent.cgroups.reader.read_once", lambda name, directory: asked.append(name))
    monkeypatch.setattr("nsagent.cgroups.reader._controllers", lambda directory: frozenset())
    reader.read_all(host.tree)
    assert asked.count("pids.peak") == 2  # of the root, which lacks other files than the rest, and of one of the rest
    asked.clear()
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
    monkeypatch.setattr("nsagent.cgroups.reader._chunk_size", lambda: 16)
    for number in range(50):
        host.make(f"c{number}")
    host.tree.scan()
    stats = Reader(host.tree.layout).read_all(host.tree)
    assert sum(each.pids == PidsStats(3) for each in stats.values()) == 50


def test_bind_mount_keeps_the_path_of_the_hierarchy(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    hierarchy = Hierarchy(1, str(tmp_path), frozenset({"pids"}), "", "/docker/1")
    assert [path for path, _ in walk(hierarchy)] == ["/docker/1", "/docker/1/job"]


def test_mount_that_went_away_is_an_empty_tree(tmp_path: Path) -> None:
    assert list(walk(Hierarchy(1, f"{tmp_path}/gone", frozenset({"pids"})))) == []
