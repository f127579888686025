"""The fast lane against the kernel's files: each number it stands for, in every hierarchy that is mounted."""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from nsagent.cgroups import core
from nsagent.cgroups.layout import Hierarchy, read_layout
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.tree import Tree
from nsagent.kernel import lane
from nsagent.kernel.attach import Attached
from nsagent.kernel.btf import STRUCT, Btf
from tests.support import remove_cgroups, require, unique_name, wait_for

pytestmark = pytest.mark.kernel
# v1: what makes files differ from their defaults. v2's have other names, and only those that exist are written.
SETTINGS = {
    "cpu.shares": "512",
    "cpu.cfs_period_us": "50000",
    "cpu.cfs_quota_us": "10000",
    "cpu.max": "10000 50000",
    "memory.limit_in_bytes": "64M",
    "memory.soft_limit_in_bytes": "32M",
    "memory.max": "64M",
    "memory.high": "48M",
    "memory.low": "8M",
    "memory.min": "4M",
    "memory.swap.max": "0",
    "pids.max": "20",
}

# Lines that are no metric: cpu.stat's on v1 with schedstats, memory.events' of 7.x.
UNUSED = ("wait_sum", "sock_throttled", "nr_subsys", "nr_dying_subsys")


@pytest.fixture
def walker(attached: Attached) -> Iterator[lane.CgroupLane]:
    found = attached.lane()
    if found is None:
        pytest.skip("this kernel has no bpf_iter/cgroup")
    yield found
    found.close()


@pytest.fixture
def groups() -> Iterator[dict[Hierarchy, Path]]:
    """A cgroup `a` below one of ours in each hierarchy, and in it a process that has used all it is asked about."""
    name, layout = unique_name("lane"), read_layout()
    found = {}
    try:
        for hierarchy in layout.hierarchies:
            top = Path(hierarchy.mountpoint) / name
            top.mkdir()
            enable(top.parent)
            enable(top)
            (top / "a").mkdir()
            for group in (top, top / "a"):
                for file in ("cpuset.cpus", "cpuset.mems"):
                    if hierarchy.version == 1 and (group / file).exists():
                        (group / file).write_text((group.parent / file).read_text())
            for file, value in SETTINGS.items():
                if (top / "a" / file).exists():
                    (top / "a" / file).write_text(value)
            found[hierarchy] = top / "a"
        script = (
            "for p in $P; do echo $$ > $p/cgroup.procs; done; i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done; "
            "echo done; exec sleep 100"
        )
        environment = os.environ | {"P": " ".join(map(str, found.values()))}
        process = subprocess.Popen(["sh", "-c", script], env=environment, stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"done\n"
        wait_for(lambda: "sleep" in Path(f"/proc/{process.pid}/comm").read_text())
        process.send_signal(signal.SIGSTOP)  # nothing moves any more
        yield found
        process.kill()
        process.wait()
    finally:
        remove_cgroups(name)


def ids_of(walk: lane.Walk) -> list[int]:
    return memoryview(walk.ids).cast("Q").tolist()


def core_of(walker: lane.CgroupLane, group: Path, hierarchy: Hierarchy) -> lane.Core:
    walk = walker.read(hierarchy.mountpoint)
    return walk.decode(ids_of(walk).index(group.stat().st_ino))


def enable(group: Path) -> None:
    for controller in ("cpu", "memory", "pids"):
        with contextlib.suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def numbers(name: str, text: bytes) -> dict[str, str]:
    """Return what a file says, as far as the lane has it: v1's oom_control and cpu.stat have more lines."""
    pairs = {}
    for line in text.decode().splitlines():
        key, _, value = line.rpartition(" ")
        if name.endswith(".pressure"):
            key = key.split()[0]  # the averages are none of ours
        if not key.startswith(UNUSED) and (name != "memory.oom_control" or key == "oom_kill"):
            pairs[key] = value
    return pairs


def test_each_number_is_the_files(walker: lane.CgroupLane, groups: dict[Hierarchy, Path]) -> None:
    compared = set()
    for hierarchy, group in groups.items():

        def differences(hierarchy: Hierarchy = hierarchy, group: Path = group) -> list[str]:
            contents = core.files_of(core_of(walker, group, hierarchy), hierarchy.version)
            wrong = []
            for name, text in contents.items():
                if not (group / name).exists():
                    continue  # a kernel that counts it and shows no file
                compared.add(name)
                if numbers(name, text) != numbers(name, (group / name).read_bytes()):
                    wrong.append(f"{group / name}: {text!r}, {(group / name).read_bytes()!r}")
            return wrong

        wait_for(lambda: not differences(), what=f"the lane to agree with {differences()}")
    wanted = {"pids.current", "pids.max"}
    others = ("cgroup.events", "cgroup.stat", "freezer.state", "cpuset.effective_cpus", "cpuset.mems.effective")
    wanted |= {name for name in others if any((group / name).exists() for group in groups.values())}
    assert compared >= wanted, compared
    assert len(compared) >= 12, compared


def test_a_reader_finds_the_same_with_and_without(walker: lane.CgroupLane, groups: dict[Hierarchy, Path]) -> None:
    tree = Tree(read_layout())
    tree.scan()
    readers = Reader(tree.layout), Reader(tree.layout, lane=walker)
    mine = {path for path in tree.cgroups if any(path == f"/{group.parent.name}/a" for group in groups.values())}
    assert mine

    def equal() -> bool:
        files, walked = ({path: stats for path, stats in reader.read_all(tree).items() if path in mine} for reader in readers)
        assert files.keys() == walked.keys() == mine
        return files == walked

    wait_for(equal, what="both to say the same")

    def unchanged() -> bool:
        last = readers[1].read_all(tree)
        return all(last[path] is stats for path, stats in readers[1].read_all(tree).items() if path in mine)

    wait_for(unchanged, what="what did not change to be the same object")


def test_all_of_a_hierarchy_are_in_one_walk(walker: lane.CgroupLane, groups: dict[Hierarchy, Path]) -> None:
    for hierarchy, group in groups.items():
        many = [group / f"{number}" for number in range(300)]
        for path in many:
            path.mkdir()
        ids = ids_of(walker.read(hierarchy.mountpoint))
        mine = [Path(path).stat().st_ino for path, _, _ in os.walk(group.parent)]
        assert len(mine) == 302
        assert sorted(set(ids) & set(mine)) == sorted(mine)
        assert len(ids) == len(set(ids))
        for path in many:
            path.rmdir()


def says(file: Path, word: str) -> bool:
    return file.read_text().strip() == word


def is_frozen(walker: lane.CgroupLane, group: Path, hierarchy: Hierarchy, frozen: bool) -> bool:
    return core_of(walker, group, hierarchy).frozen is frozen


def test_frozen_and_thawed_are_seen(walker: lane.CgroupLane, groups: dict[Hierarchy, Path]) -> None:
    seen = 0
    for hierarchy, group in groups.items():
        for file, words in (("freezer.state", ("FROZEN", "THAWED")), ("cgroup.freeze", ("1", "0"))):
            if not (group / file).exists():
                continue
            for word, frozen in zip(words, (True, False), strict=True):
                (group / file).write_text(word)
                if file == "freezer.state":  # what freezes is not frozen: the lane says nothing before somebody has looked
                    wait_for(partial(says, group / file, word))
                wait_for(partial(is_frozen, walker, group, hierarchy, frozen))
                seen += 1
    require(seen, "no freezer here")


def test_pressure_is_never_older_than_the_files(walker: lane.CgroupLane, groups: dict[Hierarchy, Path]) -> None:
    """While two tasks fight for a CPU, and after: the lane's total lies between those of a read before and of one after."""
    hierarchy = next(iter(h for h in groups if h.version == 2), None)
    require(hierarchy is not None and (groups[hierarchy] / "cpu.pressure").exists(), "the kernel keeps no pressure of cgroups")
    assert hierarchy is not None
    group = groups[hierarchy]

    def total() -> int:
        text = (group / "cpu.pressure").read_bytes()
        return int(text.split(b"total=")[1].split()[0])

    def told() -> int | None:
        for name, some, _ in core_of(walker, group, hierarchy).pressure_ns:
            if name == "cpu" and some is not None:
                return some // 1000
        return None

    assert wait_for(lambda: told() is not None) or told() == total()
    first, script = total(), "echo $$ > $P/cgroup.procs; (while :; do :; done) & exec sh -c 'while :; do :; done'"
    cpu = min(os.sched_getaffinity(0))
    busy = subprocess.Popen(
        ["taskset", "-c", str(cpu), "sh", "-c", script], env=os.environ | {"P": str(group)}, start_new_session=True
    )
    try:
        wait_for(lambda: total() > first + 50_000)
        answers = collections.Counter[bool]()
        for _ in range(200):
            before, found, after = total(), told(), total()
            answers[found is not None] += 1
            assert found is None or before <= found <= after
        assert answers[False] > 0, "a CPU that two tasks want is always one to be asked"
    finally:
        os.killpg(busy.pid, signal.SIGKILL)
        busy.wait()
    wait_for(lambda: told() == total(), what="the end of what was killed")
    assert total() > first


def has_fingerprints() -> bool:
    btf = Btf(Path("/sys/kernel/btf/vmlinux").read_bytes())
    stats = btf.ids.get((STRUCT, "memcg_vmstats"))
    return stats is not None and btf.member(stats, "stats_updates") is not None


def test_equal_fingerprints_are_equal_bytes(walker: lane.CgroupLane, groups: dict[Hierarchy, Path]) -> None:
    """Of memory.stat, while a process takes memory in steps and idles in between."""
    hierarchy = next((h for h, group in groups.items() if h.version == 1 and (group / "memory.stat").exists()), None)
    require(hierarchy is not None and has_fingerprints(), "no memory controller of v1, or one that flushes for all at once (6.1)")
    assert hierarchy is not None
    group = groups[hierarchy].parent / "stat"
    group.mkdir()
    code = "import sys; kept = []\nfor line in sys.stdin: kept.append(bytearray(b'x' * (1 << 20))); print(flush=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    (group / "cgroup.procs").write_text(str(process.pid))

    def look() -> tuple[int | None, bytes, int | None]:
        before = core_of(walker, group, hierarchy).memory_stat
        text = (group / "memory.stat").read_bytes()
        return before, text, core_of(walker, group, hierarchy).memory_stat

    try:
        wait_for(lambda: look()[0] is not None)
        texts: dict[int, bytes] = {}
        agreed = 0

        def agree() -> bool:
            nonlocal agreed
            before, text, after = look()
            if before is not None and before == after:
                agreed += texts.get(before) == text
                assert texts.setdefault(before, text) == text
            return agreed >= 5 * steps

        for steps in range(1, 13):  # noqa: B007
            process.stdin.write(b"more\n")
            process.stdin.flush()
            process.stdout.readline()
            wait_for(agree, what="moments in which nothing moves")
            wait_for(lambda: core_of(walker, group, hierarchy).memory_stat not in {None, *list(texts)[:-1]})
        assert len(texts) >= 4, "the positive control: memory.stat moved"
        assert len(set(texts.values())) == len(texts)
    finally:
        process.kill()
        process.wait()
        wait_for(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


def test_a_limit_above_is_another_fingerprint_on_v1(walker: lane.CgroupLane, groups: dict[Hierarchy, Path]) -> None:
    hierarchy = next((h for h, group in groups.items() if (group / "memory.limit_in_bytes").exists()), None)
    require(hierarchy is not None and has_fingerprints(), "no memory controller of v1, or one that flushes for all at once (6.1)")
    assert hierarchy is not None
    group = groups[hierarchy]
    wait_for(lambda: core_of(walker, group, hierarchy).memory_stat is not None)
    before = core_of(walker, group, hierarchy).memory_stat
    (group.parent / "memory.limit_in_bytes").write_text("32M")
    assert b"hierarchical_memory_limit 33554432" in (group / "memory.stat").read_bytes()
    wait_for(lambda: core_of(walker, group, hierarchy).memory_stat not in (None, before))


def test_a_reader_with_a_lane_sees_each_change_of_memory_stat(walker: lane.CgroupLane, groups: dict[Hierarchy, Path]) -> None:
    tree = Tree(read_layout(), watched=True)
    reader, name = Reader(tree.layout, lane=walker), f"/{next(iter(groups.values())).parent.name}/a"
    hierarchy = tree.layout.of("memory")
    require(hierarchy is not None, "no memory controller")
    assert hierarchy is not None
    directory = hierarchy.directory(name)
    try:
        code = "import sys; kept = []\nfor line in sys.stdin: kept.append(bytearray(b'x' * (1 << 21))); print(flush=True)"
        process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert process.stdin is not None
        assert process.stdout is not None
        Path(f"{directory}/cgroup.procs").write_text(str(process.pid))
        try:
            for _ in range(8):
                process.stdin.write(b"more\n")
                process.stdin.flush()
                process.stdout.readline()

                def equal() -> bool:
                    tree.scan()
                    memory = reader.read_all(tree)[name].memory
                    text = Path(f"{directory}/memory.stat").read_text()
                    assert memory is not None
                    flat = dict(line.split() for line in text.splitlines())
                    return memory.detail["anon"] == int(flat.get("total_rss", flat.get("anon", "")))

                wait_for(equal)
        finally:
            process.kill()
            process.wait()
    finally:
        reader.close()
        tree.close()
