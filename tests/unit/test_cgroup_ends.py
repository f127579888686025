"""Ends of cgroups from records: v2's own CPU time and its children's, one made again, one that nobody told of."""

from __future__ import annotations

from pathlib import Path

from nsagent.cgroups.ends import Ends
from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.stats import CgroupStats, CpuStats
from nsagent.cgroups.tree import Cgroup
from nsagent.kernel.cgroups import CgroupRecord


class World:
    """A v2 host whose kernel says what a test appends to `told`."""

    def __init__(self, tmp_path: Path) -> None:
        (tmp_path / "self").mkdir()
        (tmp_path / "self/cgroup").write_text("0::/\n")
        self.told: list[CgroupRecord] = []
        layout = Layout((Hierarchy(2, "/sys/fs/cgroup", frozenset({"cpu", "memory", "pids"})),), str(tmp_path))
        self.ends = Ends(layout, self._read)

    def _read(self) -> list[CgroupRecord]:
        told, self.told = self.told, []
        return told

    def tell(self, path: str, number: int, parent: int = 1, cpu_ns: int | None = None, *, ended: bool = False) -> None:
        self.told.append(CgroupRecord(ended, 0, number, parent, path.count("/"), path, False, number, cpu_ns))

    def settle(self, **alive: int) -> dict[str, int | None]:
        """Take a sample in which these cgroups live; return the CPU time of what ended."""
        cgroups = {f"/{name}": Cgroup(f"/{name}", {"v2": number}) for name, number in alive.items()}
        found = {path: CgroupStats(CpuStats(usage_ns=7, user_ns=5)) for path in cgroups}
        return {path: end.cpu_ns for path, end in self.ends.settle(cgroups, found).items()}


def test_v2_adds_what_children_had_used(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.tell("/a", 2)
    world.tell("/a/b", 3, 2)
    world.tell("/a/b", 3, 2, 100, ended=True)
    world.tell("/a/b", 3, 2, 100, ended=True)  # by the programs of two versions
    world.tell("/a", 2, 1, 10, ended=True)
    assert world.settle() == {"/a/b": 100, "/a": 110}
    assert world.ends.final_reads() == {"complete": 2, "partial": 0, "late": 0}
    assert world.ends.born() == {2: ("/a", 1), 3: ("/a/b", 2)}
    assert world.ends.path_of(3) == "/a/b"


def test_one_whose_making_nobody_told_is_partial_and_keeps_the_higher(tmp_path: Path) -> None:
    world = World(tmp_path)
    assert world.settle(a=2) == {}
    world.tell("/a", 2, 1, 10, ended=True)
    (end,) = world.ends.settle({}, {}).values()
    assert not end.fresh
    assert end.over(CgroupStats(CpuStats(usage_ns=50, user_ns=5))).cpu == CpuStats(usage_ns=50, user_ns=5)
    assert world.ends.final_reads() == {"complete": 0, "partial": 1, "late": 0}


def test_one_made_again_is_another(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.settle(a=2)
    world.tell("/a", 2, 1, 10, ended=True)
    world.tell("/a", 3)
    world.tell("/a", 3, 1, 4, ended=True)
    (end,) = world.ends.settle({}, {}).values()
    assert end.fresh
    assert end.over(CgroupStats(CpuStats(usage_ns=50))).cpu == CpuStats(usage_ns=4)


def test_an_end_that_nobody_told_is_late(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.settle(a=2)
    assert world.settle() == {}
    assert world.settle() == {}
    assert world.ends.final_reads() == {"complete": 0, "partial": 0, "late": 1}
