"""What a walk of the hierarchies makes needless to read, with a lane that says what a test has it say."""

from __future__ import annotations

import shutil
import struct
from pathlib import Path

import pytest

from nsagent.cgroups import places
from nsagent.cgroups.layout import read_layout
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.stats import CgroupStats, Pressure, PressureStats, StateStats
from nsagent.cgroups.tree import Tree
from nsagent.errors import LoadError
from nsagent.kernel.lane import Core

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "cgroups"
CORE = Core(
    memory_bytes=4096, swap_bytes=0, memory_events=(0,) * 6, populated=True, frozen=True, descendants=0, dying_descendants=0
)


class Lane:
    """Says `cores` of the cgroups with those ids, or fails."""

    def __init__(self) -> None:
        self.cores: dict[int, Core] = {}
        self.works = True

    def read(self, mountpoint: str) -> Lane:
        if not self.works:
            raise LoadError(f"no walk of {mountpoint}")
        return self

    @property
    def ids(self) -> bytes:
        return struct.pack(f"={len(self.cores)}Q", *self.cores)

    @property
    def digests(self) -> bytes:
        return struct.pack(f"={len(self.cores)}q", *map(hash, self.cores.values()))

    def decode(self, index: int) -> Core:
        return list(self.cores.values())[index]


class Host:
    """The recorded v2 host, its cgroup /jobs/one, what was read of it, and a lane."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shutil.copytree(FIXTURES / "v2", root / "v2")
        self.one = root / "v2/sys/fs/cgroup/jobs/one"
        self.tree = Tree(read_layout(f"{root}/v2/proc", f"{root}/v2/sys/fs/cgroup"))
        self.tree.scan()
        self.lane = Lane()
        self.reader = Reader(self.tree.layout, lane=self.lane)
        self.asked: list[str] = []
        read = places.Place.read

        def noted(place: places.Place, name: str, *, keep: bool = False) -> bytes | None:
            if place.record.path == "/jobs/one":
                self.asked.append(name)
            return read(place, name, keep=keep)

        monkeypatch.setattr(places.Place, "read", noted)

    def say(self, core: Core) -> None:
        self.lane.cores = {self.tree.cgroups["/jobs/one"].ids["v2"]: core}

    def read(self) -> CgroupStats:
        self.asked.clear()
        return self.reader.read_all(self.tree)["/jobs/one"]


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(tmp_path, monkeypatch)


def test_a_file_that_the_kernel_does_not_show_is_served_to_nobody(host: Host) -> None:
    """memory.swap.* of a kernel that does not account for swap: the counter is there, and stays at 0."""
    for name in ("memory.swap.current", "memory.swap.max"):
        (host.one / name).unlink()
    host.say(CORE)
    stats = host.read()
    assert stats.memory is not None
    assert (stats.memory.usage_bytes, stats.memory.swap_usage_bytes) == (4096, None)


def test_what_is_served_is_not_read_and_a_walk_that_fails_is_made_up_for(host: Host) -> None:
    host.say(CORE)
    for path in (host.one, host.one.parent):
        (path / "cgroup.stat").write_text("nr_descendants 1\nnr_dying_descendants 0\n")
    assert host.read().state == StateStats(frozen=True, populated=True, descendants=0, dying_descendants=0)
    assert not {"cgroup.events", "cgroup.stat", "memory.current"} & set(host.asked)
    assert "memory.stat" in host.asked
    host.lane.works = False
    stats = host.read()
    assert {"cgroup.events", "cgroup.stat", "memory.current"} <= set(host.asked)
    assert stats == Reader(host.tree.layout).read("/jobs/one")
    assert list(host.reader.unwalked) == ["v2"]


def test_memory_stat_is_read_when_its_fingerprint_changes_or_is_unknown(host: Host) -> None:
    answers = []
    for fingerprint in (7, 7, 8, 8, None, None, 8, 8):
        host.say(CORE._replace(memory_stat=fingerprint))
        host.read()
        answers.append("memory.stat" in host.asked)
    assert answers == [True, False, True, False, True, True, True, False]


def test_memory_stat_that_moved_while_it_was_read_is_read_again(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    read = places.Place.read

    def moving(place: places.Place, name: str, *, keep: bool = False) -> bytes | None:
        if name == "memory.stat":
            host.say(CORE._replace(memory_stat=9))
        return read(place, name, keep=keep)

    monkeypatch.setattr(places.Place, "read", moving)
    answers = []
    for _ in range(3):
        host.say(CORE._replace(memory_stat=7))
        host.read()
        answers.append("memory.stat" in host.asked)
    assert answers == [True, True, True]


def test_pressure_is_read_where_the_totals_are_behind(host: Host) -> None:
    for name in ("cpu.pressure", "io.pressure"):
        (host.one / name).write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=7\n")
    proc = Path(host.tree.layout.procfs) / "pressure"
    proc.mkdir()
    for name in ("cpu", "io"):
        (proc / name).write_text("some total=0\n")
    host.reader = Reader(host.tree.layout, lane=host.lane)
    host.say(CORE._replace(pressure_ns=(("io", 5000, 4000),)))
    stats = host.read()
    assert stats.pressure == PressureStats({"cpu": Pressure(7000, None), "io": Pressure(5000, 4000)})
    assert "io.pressure" not in host.asked


def test_a_controller_that_goes_takes_what_was_served_along(host: Host) -> None:
    host.say(CORE)
    assert host.read().memory is not None
    (host.one / "cgroup.controllers").write_text("cpu\n")
    assert host.read().memory is None
    (host.one / "cgroup.controllers").write_text("cpu memory\n")
    assert host.read().memory is not None
