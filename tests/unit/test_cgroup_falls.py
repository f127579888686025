"""Counters that fall in a cgroup that lives on; and files that are really slow."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.cgroups import falls
from nsagent.cgroups.layout import Hierarchy, Layout, read_layout
from nsagent.cgroups.pace import BOUNDS_S, SLOW_READ_S, Pace, Reads
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.stats import CpuStats, HugetlbSize, HugetlbStats, IoDevice, IoStats, MemoryStats, MiscStats
from nsagent.cgroups.tree import Tree
from nsagent.metrics import agent, cgroup
from nsagent.metrics.encode import node_lines
from nsagent.metrics.family import Scope
from nsagent.sample import Facts, FileFigures, NodeSample
from tests.support import ROOT, wait_for


def test_the_counters_are_those_of_the_catalogue() -> None:
    families = [family for family in cgroup.FAMILIES if family.scope is Scope.CGROUP and family.type == "counter"]
    mappings = {part: fields or (name,) for part, (name, fields) in falls.MAPPINGS.items()}
    here = {(part, field) for table in (falls.COUNTERS, mappings) for part, fields in table.items() for field in fields}
    assert here == {(family.part, field) for family in families for field in family.fields}


def carry(falling: falls.Falls, lost: falls.Lost, part: str, readings: list[object]) -> list[object]:
    shown: list[object] = []
    for reading in readings:
        shown.append(falling.carry(lost, part, shown[-1] if shown else None, reading, lambda: True))
    return shown


def test_a_counter_goes_on_from_where_it_was() -> None:
    falling, lost = falls.Falls(), dict[str, dict[tuple[str, ...], int]]()
    raw = [(None, 5), (10, 6), (3, 7), (4, None), (0, 1), (9, 2)]
    shown = carry(falling, lost, "cpu", [CpuStats(usage, user_ns=user, weight=100 - at) for at, (usage, user) in enumerate(raw)])
    assert [(each.usage_ns, each.user_ns) for each in shown if isinstance(each, CpuStats)] == [
        (None, 5),
        (10, 6),
        (10, 7),
        (11, None),
        (11, 1),  # not reported in between: an ordinary reset, as the series had ended
        (20, 2),
    ]
    assert falling.counts == {("cpu", "usage_ns"): 2}


def test_each_number_of_a_mapping_is_a_counter_of_its_own() -> None:
    falling, lost = falls.Falls(), dict[str, dict[tuple[str, ...], int]]()
    first = IoStats({"vda": IoDevice(10, 20, None, 1, 2), "vdb": IoDevice(5)})
    second = IoStats({"vda": IoDevice(4, 21, None, 0, 2)})
    third = IoStats({"vda": IoDevice(5, 21, None, 1, 2), "vdb": IoDevice(6)})
    assert carry(falling, lost, "io", [first, second, None, third]) == [
        first,
        IoStats({"vda": IoDevice(10, 21, None, 1, 2)}),
        None,
        IoStats({"vda": IoDevice(11, 21, None, 2, 2), "vdb": IoDevice(6)}),
    ]
    memory = [MemoryStats(usage_bytes=9, events={"oom": 3, "max": 2}), MemoryStats(usage_bytes=1, events={"oom": 1, "max": 2})]
    assert carry(falling, lost, "memory", list(memory)) == [memory[0], memory[1]._replace(events={"oom": 3, "max": 2})]
    assert carry(falling, lost, "misc", [MiscStats({}, {"sev": 2}), MiscStats({}, {"sev": 0})])[1] == MiscStats({}, {"sev": 2})
    pages = [HugetlbStats({"2MB": HugetlbSize(usage, failures=failures)}) for usage, failures in ((7, 3), (5, 1))]
    assert carry(falling, lost, "hugetlb", list(pages))[1] == HugetlbStats({"2MB": HugetlbSize(5, failures=3)})
    assert falling.counts == {
        ("io", "read_bytes"): 1,
        ("io", "reads"): 1,
        ("memory", "events"): 1,
        ("misc", "events"): 1,
        ("hugetlb", "failures"): 1,
    }


class Host:
    """A v1 host of plain directories with blkio and cpuacct, and one cgroup."""

    def __init__(self, root: Path) -> None:
        self.place = root / "one"
        self.place.mkdir()
        (root / "cgroup.procs").touch()
        self.tree = Tree(Layout((Hierarchy(1, str(root), frozenset({"blkio", "cpuacct"})),)))
        self.reader = Reader(self.tree.layout, lambda: 0.0, sysfs=str(root / "none"))  # nothing is slow
        self.make()
        self.tree.scan()

    def make(self) -> None:
        self.place.mkdir(exist_ok=True)
        (self.place / "cgroup.procs").touch()
        self.write(100, 4096)

    def write(self, cpu_ns: int, read_bytes: int) -> None:
        for name, text in (
            ("cpuacct.usage", f"{cpu_ns}\n"),
            ("blkio.throttle.io_service_bytes_recursive", f"8:0 Read {read_bytes}\nTotal {read_bytes}\n"),
            ("blkio.throttle.io_serviced_recursive", "8:0 Read 0\nTotal 0\n"),
        ):
            (self.place / name).write_text(text)

    def read(self) -> tuple[int | None, int | None]:
        stats = self.reader.read_all(self.tree)["/one"]
        return stats.cpu and stats.cpu.usage_ns, stats.io.devices["8:0"].read_bytes if stats.io else None


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def test_a_reader_lets_no_counter_fall(host: Host) -> None:
    assert host.read() == (100, 4096)
    host.write(7, 0)  # a zero of v1's blkio is no number where nothing was counted before
    assert host.read() == (100, 4096)
    host.write(9, 512)
    assert host.read() == (102, 4608)
    host.write(102, 4608)  # what it shows already, and more than it had
    assert host.read() == (195, 8704)
    assert host.reader.falls.counts == {("cpu", "usage_ns"): 1, ("io", "read_bytes"): 1}


@pytest.mark.parametrize("by_path", [True, False])
def test_a_cgroup_made_anew_begins_anew(host: Host, monkeypatch: pytest.MonkeyPatch, by_path: bool) -> None:
    """Also before the tree knows: what is read by path is then another cgroup's."""
    if by_path:
        monkeypatch.setattr("resource.getrlimit", lambda _: (0, 0))
        host.reader = Reader(host.tree.layout, lambda: 0.0, sysfs="/none")
    assert host.read() == (100, 4096)
    host.place.rename(host.place.with_name("old"))
    host.make()
    host.write(5, 8192)
    if by_path:
        assert host.read() == (5, 8192)
    host.tree.scan()
    assert host.read() == (5, 8192)
    assert not host.reader.falls.counts


def successor(host: Host) -> None:
    """Have another reader go on, with what the first one would have written to a file."""
    kept = {path: json.loads(json.dumps(each.to_json())) for path, each in host.reader.keep().items()}
    host.reader = Reader(host.tree.layout, lambda: 0.0, sysfs="/none")
    host.reader.go_on({path: falls.Kept.from_json(each) for path, each in kept.items()})


def test_no_counter_falls_from_one_reader_to_the_next(host: Host) -> None:
    (host.place / "child").mkdir()
    host.tree.scan()
    assert host.read() == (100, 4096)
    successor(host)
    host.write(100, 1024)  # a child was removed in between
    assert host.read() == (100, 4096)
    host.write(30, 2048)
    assert host.read() == (100, 5120)
    (host.place / "child").rmdir()
    host.tree.scan()
    successor(host)
    host.write(40, 2050)
    assert host.read() == (110, 5122)
    successor(host)
    assert host.read() == (110, 5122)


def test_what_was_made_anew_between_two_readers_begins_anew(host: Host) -> None:
    (host.place / "child").mkdir()
    host.tree.scan()
    assert host.read() == (100, 4096)
    host.place.rename(host.place.with_name("old"))
    host.make()
    host.write(5, 8)
    host.tree.scan()
    successor(host)
    assert host.read() == (5, 8)


def test_what_the_next_reader_cannot_read_it_does_not_show(host: Host) -> None:
    (host.place / "child").mkdir()
    host.tree.scan()
    assert host.read() == (100, 4096)
    for file in host.place.glob("blkio*"):
        file.unlink()
    successor(host)
    assert host.read() == (100, None)


class Held:
    """A file that somebody has a lease on (fcntl(2)), so that its next open waits; and a clock on which only that takes time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def held(tmp_path: Path) -> Iterator[Held]:
    shutil.copytree(ROOT / "tests/fixtures/cgroups/v2", tmp_path / "v2")
    path = tmp_path / "v2/sys/fs/cgroup/jobs/one/memory.swap.current"
    file = Held(path)
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)
    descriptor = os.open(path, os.O_RDWR)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_WRLCK)

    def give_way() -> None:
        wait_for(lambda: fcntl.fcntl(descriptor, fcntl.F_GETLEASE) != fcntl.F_WRLCK, 60, "somebody to open it")
        file.now += 0.5
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)

    thread = threading.Thread(target=give_way)
    thread.start()
    yield file
    thread.join()
    os.close(descriptor)
    signal.signal(signal.SIGIO, before)


def test_a_slow_file_is_left_out_and_named(held: Held) -> None:
    root, name = held.path.parents[5], held.path.name
    tree = Tree(read_layout(f"{root}/proc", f"{root}/sys/fs/cgroup"))
    tree.scan()
    reader = Reader(tree.layout, held)
    reader.pace = Pace(lambda: 0.0)

    def swap() -> int | None:
        memory = reader.read_all(tree)["/jobs/one"].memory
        assert memory
        return memory.swap_usage_bytes

    assert swap() is not None
    assert reader.pace.backoffs == {name: 1}
    reads = reader.pace.reads[name]
    assert reads.number - reads.within[BOUNDS_S.index(SLOW_READ_S)] == 1
    assert reads.total_ns == 500_000_000
    assert [swap(), swap()] == [None, None]
    assert swap() is not None
    assert reader.pace.reads[name].number > reads.number


def test_waiting_for_a_cpu_is_no_fault_of_a_file() -> None:
    delay = 0.0
    pace = Pace(lambda: delay)
    pace.begin()
    delay = 9.0
    pace.took("a", 2, 9.1, [9.01, 0.09])
    assert not pace.backoffs
    pace.took("b", 1, 0.06, [0.06])  # and that was all of the waiting
    assert pace.backoffs == {"b": 1}


def test_the_kernel_tells_of_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    pace = Pace()
    pace.begin()
    assert pace._delayed >= 0
    monkeypatch.setattr("os.open", lambda *_: (_ for _ in ()).throw(OSError))
    pace.begin()
    assert pace._delayed == 0


def test_the_metrics_name_what_fell_and_what_is_slow() -> None:
    reads = {"memory.stat": Reads(3, (1, 1, 2, 2, 2, 3), 1_100_000_000)}
    figures = FileFigures(0, {}, reads=reads, falls={("io", "reads"): 2, ("io", "writes"): 1, ("cpu", "usage_ns"): 1})
    sample = NodeSample(0, Facts(), files=figures)
    lines = {family.name: list(node_lines(family, sample)) for family in agent.FAMILIES}
    assert lines["nsagent_counter_regressions_total"] == [
        'nsagent_counter_regressions_total{family="nsagent_cgroup_cpu_usage_seconds_total"} 1\n',
        'nsagent_counter_regressions_total{family="nsagent_cgroup_io_operations_total"} 3\n',
    ]
    name = "nsagent_file_read_seconds"
    buckets = {"0.0001": 1, "0.001": 1, "0.01": 2, "0.05": 2, "0.1": 2, "1": 3, "+Inf": 3}
    assert lines[name] == [
        *(f'{name}_bucket{{file="memory.stat",le="{bound}"}} {count}\n' for bound, count in buckets.items()),
        f'{name}_sum{{file="memory.stat"}} 1.100000000\n',
        f'{name}_count{{file="memory.stat"}} 3\n',
    ]
