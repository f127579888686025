"""The fast lane against the kernel's files: each number it stands for, in every hierarchy that is mounted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.cgroups import core
from nsagent.cgroups.layout import Hierarchy, read_layout
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.tree import Tree
from nsagent.kernel import abi, lane
from nsagent.kernel.attach import Attached
from tests.support import remove_cgroups, unique_name, wait_for

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
UNUSED = ("wait_sum", "sock_throttled")


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


def enable(group: Path) -> None:
    for controller in ("cpu", "memory", "pids"):
        with contextlib.suppress(OSError):
            (group / "cgroup.subtree_control").write_text(f"+{controller}")


def numbers(name: str, text: bytes) -> dict[str, str]:
    """Return what a file says, as far as the lane has it: v1's oom_control and cpu.stat have more lines."""
    pairs = {}
    for line in text.decode().splitlines():
        key, _, value = line.rpartition(" ")
        if key not in UNUSED and (name != "memory.oom_control" or key == "oom_kill"):
            pairs[key] = value
    return pairs


def test_each_number_is_the_files(walker: lane.CgroupLane, groups: dict[Hierarchy, Path]) -> None:
    compared = set()
    for hierarchy, group in groups.items():

        def differences(hierarchy: Hierarchy = hierarchy, group: Path = group) -> list[str]:
            record = walker.read(hierarchy.mountpoint)[group.stat().st_ino]
            contents = core.files_of(walker.decode(record), hierarchy.version)
            wrong = []
            for name, text in contents.items():
                if not (group / name).exists():
                    continue  # a kernel that counts it and shows no file
                compared.add(name)
                if numbers(name, text) != numbers(name, (group / name).read_bytes()):
                    wrong.append(f"{group / name}: {text!r}, {(group / name).read_bytes()!r}")
            return wrong

        wait_for(lambda: not differences(), 5, f"the lane to agree with {differences()}")
    wanted = {"pids.current", "pids.max"}
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

    wait_for(equal, 10, "both to say the same")

    def unchanged() -> bool:
        last = readers[1].read_all(tree)
        return all(last[path] is stats for path, stats in readers[1].read_all(tree).items() if path in mine)

    wait_for(unchanged, 10, "what did not change to be the same object")


def test_all_of_a_hierarchy_are_in_one_walk(walker: lane.CgroupLane, groups: dict[Hierarchy, Path]) -> None:
    for hierarchy, group in groups.items():
        many = [group / f"{number}" for number in range(300)]
        for path in many:
            path.mkdir()
        records = walker.read(hierarchy.mountpoint)
        parents = {abi.LANE.unpack(records[path.stat().st_ino])[1] for path in many}
        assert parents == {group.stat().st_ino}
        assert len(records) == sum(1 for _ in os.walk(hierarchy.mountpoint))
        for path in many:
            path.rmdir()
