"""Words of the command line to numbers: what is meant, and one clear line about what is not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsagent.cgroups.limits import HugetlbMax, IoMax
from nsagent.errors import UsageError
from nsagent.launch import joining, quantities


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("4096", 4096),
        ("1k", 1024),
        ("64K", 65536),
        ("64KB", 65536),
        ("64KiB", 65536),
        ("1.5G", 3 << 29),
        ("2T", 2 << 40),
        ("9007199254740993", 9007199254740993),  # beyond what a float holds
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert quantities.parse_bytes(text, "--memory") == size


@pytest.mark.parametrize("text", ["12Q", "", "-1", "0", "1 M M", "1e9", "٣M", "99999999P", "inf"])
def test_impossible_sizes(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        quantities.parse_bytes(text, "--memory")
    assert "--memory" in caught.value.message
    assert "\n" not in caught.value.message
    assert caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "ns"), [("1s", 10**9), ("2", 2 * 10**9), ("500ms", 5 * 10**8), ("0.5s", 5 * 10**8), ("1h30m", 5400 * 10**9)]
)
def test_times(text: str, ns: int) -> None:
    assert quantities.parse_duration(text, "--timeout") == ns


@pytest.mark.parametrize("text", ["", "0", "s", "1x", "-1s", "1s ", "1 s"])
def test_impossible_times(text: str) -> None:
    if text == "1s ":  # surrounding blanks are nothing
        assert quantities.parse_duration(text, "--timeout") == 10**9
        return
    with pytest.raises(UsageError):
        quantities.parse_duration(text, "--timeout")


def test_cpus() -> None:
    assert quantities.parse_cpus("0.5") == 0.5
    for text in ("0", "-1", "nan", "inf", "two", "0.001"):
        with pytest.raises(UsageError):
            quantities.parse_cpus(text)


def test_cpuset() -> None:
    assert quantities.parse_cpuset("0-1", "0-3\n") == "0-1"
    assert quantities.parse_cpuset("0,2-3", "0-3\n") == "0,2-3"
    for text in ("", "1-0", "a", "0-4", "0;1"):
        with pytest.raises(UsageError) as caught:
            quantities.parse_cpuset(text, "0-3\n")
        assert caught.value.hint


def test_io_max(tmp_path: Path) -> None:
    entry = tmp_path / "dev" / "block"
    disk = tmp_path / "devices" / "vda"
    (disk / "vda1").mkdir(parents=True)
    (disk / "dev").write_text("254:0\n")
    (disk / "vda1" / "partition").write_text("1\n")
    entry.mkdir(parents=True)
    (entry / "254:0").symlink_to(disk)
    (entry / "254:1").symlink_to(disk / "vda1")
    assert quantities.resolve_device("254:0", str(tmp_path)) == "254:0"
    assert quantities.resolve_device("254:1", str(tmp_path)) == "254:0"  # the kernel limits whole disks
    with pytest.raises(UsageError, match="not on a block device"):
        quantities.resolve_device("254:9", str(tmp_path))


@pytest.mark.parametrize("text", ["/dev/null", "rbps=1M", "8:0:", "8:0:speed=1", "8:0:rbps=1M,rbps=2M", "8:0:rbps=x"])
def test_impossible_io_max(text: str) -> None:
    with pytest.raises(UsageError):
        quantities.parse_io_max(text)


def test_hugetlb() -> None:
    assert quantities.parse_hugetlb("2MB=64M") == quantities.parse_hugetlb("2MiB=65536K") == HugetlbMax(2 << 20, 64 << 20)
    assert quantities.parse_hugetlb("1G=0").limit_bytes == 0
    for text in ("2MB", "=1M", "2MB=", "2MB=x", "x=1M", "0=1M", "2MB=-1"):
        with pytest.raises(UsageError):
            quantities.parse_hugetlb(text)


def test_io_max_of_a_real_disk() -> None:
    disks = sorted(os.listdir("/sys/dev/block")) if os.path.isdir("/sys/dev/block") else []
    if not disks:
        pytest.skip("this host has no block device")
    whole = next(d for d in disks if not os.path.exists(f"/sys/dev/block/{d}/partition"))
    assert quantities.parse_io_max(f"{whole}:rbps=1M,wiops=100") == IoMax(whole, rbps=1 << 20, wiops=100)


def test_clock_offsets() -> None:
    offsets = tuple(map(quantities.parse_clock_offset, ("boottime:7d", "monotonic:-1500ms")))
    assert offsets == (("boottime", 7 * 86400 * 10**9), ("monotonic", -1_500_000_000))
    assert joining.timens_offsets(offsets) == b"boottime 604800 0\nmonotonic -2 500000000\n"
    for text in ("boottime", "boottime:", "boottime:--1s", "realtime:1s"):
        with pytest.raises(UsageError):
            quantities.parse_clock_offset(text)
