"""Block devices by name, in a tree as /sys has it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from nsagent.cgroups.devices import BlockNames
from nsagent.cgroups.layout import read_layout
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.stats import IoDevice, IoStats
from nsagent.cgroups.tree import Tree
from tests.support import ROOT


class Sysfs:
    """What a /sys says of block devices; each change counts as a uevent."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._events = 0
        (root / "kernel").mkdir(parents=True)

    def put(self, number: str, name: str, mapped: bytes | None = None) -> None:
        place = self.root / "dev/block" / number
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        major, minor = number.split(":")
        (place / "uevent").write_text(f"MAJOR={major}\nMINOR={minor}\nDEVNAME={name}\nDEVTYPE=disk\n")
        if mapped is not None:
            (place / "dm").mkdir()
            (place / "dm/name").write_bytes(mapped + b"\n")
        self.happened()

    def happened(self) -> None:
        self._events += 1
        (self.root / "kernel/uevent_seqnum").write_text(f"{self._events}\n")


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path / "sys")


def names(block: BlockNames, *numbers: str) -> list[str]:
    stats = block.rename(IoStats({number: IoDevice(read_bytes=at) for at, number in enumerate(numbers)}))
    assert stats is not None
    assert [device.read_bytes for device in stats.devices.values()] == list(range(len(numbers)))
    return list(stats.devices)


def test_names(sysfs: Sysfs) -> None:
    sysfs.put("254:0", "vda")
    sysfs.put("259:3", "nvme0n1p2")
    sysfs.put("104:0", "cciss/c0d0")  # a directory of sysfs has "!" in place of the slash
    sysfs.put("252:0", "dm-0", b"vg-root")
    sysfs.put("252:1", "dm-1", b"vda")  # anybody's choice: not the disk's
    sysfs.put("252:2", "dm-2", b"vda ")
    sysfs.put("252:3", "dm-3", b"\xff")
    found = names(BlockNames(str(sysfs.root)), "254:0", "259:3", "104:0", "252:0", "252:1", "252:2", "252:3", "9:9")
    assert found == [
        "vda",
        "nvme0n1p2",
        "cciss/c0d0",
        "mapper/vg-root",
        "mapper/vda",
        "mapper/vda ",
        "mapper/\udcff",
        "9:9",
    ]
    assert names(BlockNames(f"{sysfs.root}/none"), "254:0") == ["254:0"]
    assert BlockNames().rename(None) is None


def test_a_name_holds_until_a_device_changes(sysfs: Sysfs) -> None:
    sysfs.put("252:0", "dm-0", b"old")
    block = BlockNames(str(sysfs.root))
    block.look()
    assert names(block, "252:0", "252:1") == ["mapper/old", "252:1"]
    sysfs.happened()
    assert not block.look(), "some other device"
    sysfs.put("252:0", "dm-0", b"new")
    assert block.look()
    assert not block.look()
    sysfs.put("252:1", "dm-1", b"new")  # the names changed places, and are read between the two
    assert names(block, "252:0", "252:1") == ["mapper/new", "252:1"]
    assert block.look() is False, "two devices are never one"
    sysfs.put("252:0", "dm-0", b"other")
    assert block.look()
    assert names(block, "252:0", "252:1") == ["mapper/other", "mapper/new"]


@pytest.mark.parametrize("name", ["v1", "v2", "hybrid"])
def test_a_reader_has_names(name: str, sysfs: Sysfs) -> None:
    """Bytes that did not change have a new name all the same, in all cgroups at once."""
    fixture = ROOT / "tests/fixtures/cgroups" / name
    tree = Tree(read_layout(f"{fixture}/proc", f"{fixture}/sys/fs/cgroup"))
    tree.scan()
    reader = Reader(tree.layout, lambda: 0.0, sysfs=str(sysfs.root))

    def devices() -> dict[str, IoDevice]:
        io = reader.read_all(tree)["/jobs/one"].io
        assert io
        return dict(io.devices)

    ((number, device),) = devices().items()
    sysfs.put(number, "dm-0", b"vg-root")
    assert devices() == {"mapper/vg-root": device}
    once = reader.read("/jobs/one").io
    assert once
    assert once.devices == {"mapper/vg-root": device}
