"""Bytes of cgroup files to stats, limits to bytes: exact numbers, None for what is not told, inf for no limit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsagent.cgroups import v1, v2
from nsagent.cgroups.limits import (
    HugetlbMax,
    IoMax,
    Limits,
    Setting,
    bfq_weight,
    format_cpus,
    parse_cpus,
    shares_of_weight,
    weight_of_shares,
)
from nsagent.cgroups.stats import CpuStats, IoDevice, PidsStats
from nsagent.errors import UnsupportedError, UsageError

ALL = frozenset({"cpu", "cpuacct", "memory", "io", "blkio", "pids", "cpuset"})


def test_v2_cpu_without_its_controller_has_times_only() -> None:
    assert v2.cpu({"cpu.stat": b"usage_usec 10\nuser_usec 7\nsystem_usec 3\nnice_usec 0\n"}) == CpuStats(10_000, 7_000, 3_000)


def test_v2_cpu() -> None:
    text = (
        b"usage_usec 9\nuser_usec 5\nsystem_usec 4\nnr_periods 3\nnr_throttled 2\nthrottled_usec 8\nnr_bursts 1\nburst_usec 6\n"
    )
    files = {"cpu.stat": text, "cpu.max": b"150000 100000\n", "cpu.weight": b"100\n"}
    assert v2.cpu(files) == CpuStats(9000, 5000, 4000, 3, 2, 8000, 1, 6000, 1.5, 100, 100_000_000)
    assert v2.parse_cpu_max(b"max 100000\n") == math.inf
    assert v2.parse_cpu_max(b"") is v2.parse_cpu_max(b"5 0") is None
    assert v2.cpu({}) is None


def test_v1_cpu() -> None:
    files = {
        "cpuacct.usage": b"123456789\n",
        "cpuacct.usage_user": b"100\n",
        "cpuacct.usage_sys": b"20\n",
        "cpu.stat": b"nr_periods 3\nnr_throttled 2\nthrottled_time 8\nnr_bursts 1\nburst_time 6\n",
        "cpu.cfs_quota_us": b"-1\n",
        "cpu.cfs_period_us": b"100000\n",
        "cpu.shares": b"1024\n",
    }
    assert v1.cpu(files) == CpuStats(123456789, 100, 20, 3, 2, 8, 1, 6, math.inf, 100, 100_000_000, 1024)
    limited = v1.cpu(files | {"cpu.cfs_quota_us": b"25000\n"})
    assert limited is not None
    assert limited.limit_cores == 0.25
    assert v1.cpu({"cpuacct.usage": b"5\n"}) == CpuStats(5)
    assert v1.cpu({}) is None


def test_v2_memory_of_the_root_has_no_usage_and_no_limit() -> None:
    stats = v2.memory({"memory.stat": b"anon 5\ninactive_file 2\npgfault 9\npgmajfault 4\n"})
    assert stats is not None
    assert (stats.usage_bytes, stats.working_set_bytes, stats.limit_bytes, stats.events) == (None, None, None, {})
    assert (stats.minor_faults, stats.major_faults, stats.detail) == (5, 4, {"anon": 5, "inactive_file": 2})
    assert v2.memory({}) is None


def test_v2_memory() -> None:
    stats = v2.memory(
        {
            "memory.current": b"100\n",
            "memory.max": b"max\n",
            "memory.low": b"0\n",
            "memory.swap.max": b"0\n",
            "memory.stat": b"inactive_file 130\npgsteal 6\npgscan 8\nworkingset_refault_anon 1\nworkingset_refault_file 2\nx y\n",
            "memory.events": b"low 0\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\nnew_one 6\n",
        }
    )
    assert stats is not None
    assert stats.working_set_bytes == 0  # never negative
    assert (stats.limit_bytes, stats.low_bytes, stats.high_bytes, stats.swap_limit_bytes) == (math.inf, 0, None, 0)
    assert (stats.scanned_pages, stats.reclaimed_pages, stats.refaults_anon, stats.refaults_file) == (8, 6, 1, 2)
    assert stats.events == {"low": 0, "high": 1, "max": 2, "oom": 3, "oom_kill": 4, "oom_group_kill": 5}


def test_v1_memory() -> None:
    files = {
        "memory.usage_in_bytes": b"1000\n",
        "memory.limit_in_bytes": b"4096\n",
        "memory.soft_limit_in_bytes": b"9223372036854771712\n",
        "memory.memsw.usage_in_bytes": b"1300\n",
        "memory.memsw.limit_in_bytes": b"8192\n",
        "memory.failcnt": b"0\n",
        "memory.memsw.failcnt": b"7\n",
        "memory.oom_control": b"oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
        "memory.stat": b"rss 1\ntotal_rss 5\ntotal_inactive_file 400\ntotal_pgfault 9\ntotal_pgmajfault 9\n"
        b"hierarchical_memory_limit 2048\ntotal_swap 290\n",
    }
    stats = v1.memory(files)
    assert stats is not None
    assert (stats.usage_bytes, stats.peak_bytes, stats.working_set_bytes) == (1000, None, 600)
    assert (stats.limit_bytes, stats.high_bytes, stats.effective_limit_bytes) == (4096, math.inf, 2048)
    assert (stats.swap_usage_bytes, stats.swap_limit_bytes) == (290, 4096)
    assert (stats.minor_faults, stats.major_faults) == (0, 9)
    assert stats.events == {"max": 7, "oom_kill": 2}  # of both limits
    assert stats.detail == {"anon": 5, "inactive_file": 400}
    without = v1.memory({key: text for key, text in files.items() if "memsw" not in key and key != "memory.stat"})
    assert without is not None
    assert (without.swap_usage_bytes, without.swap_limit_bytes, without.effective_limit_bytes) == (None, None, None)


@pytest.mark.parametrize("name", ["v1", "hybrid"])
def test_half_of_memory_stat_says_all_that_is_parsed(name: str) -> None:
    text = (
        Path(__file__).parent.parent.joinpath(f"fixtures/cgroups/{name}/sys/fs/cgroup/memory/jobs/one/memory.stat").read_bytes()
    )
    half = v1.with_descendants(text)
    assert len(half) < 0.7 * len(text)
    assert v1.with_descendants(half) == half
    usage = {"memory.usage_in_bytes": b"9000\n"}
    assert v1.memory({**usage, "memory.stat": half}) == v1.memory({**usage, "memory.stat": text})


@pytest.mark.parametrize("text", [b"9223372036854771712", b"9223372036854710272"])  # pages of 4 and of 64 KiB
def test_v1_greatest_limit_is_none(text: bytes) -> None:
    assert v1.parse_bytes_limit(text) == math.inf


def test_v2_io() -> None:
    text = b"8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6 cost.usage=7\n8:16\n8:32 cost.wait=3\n"
    stats = v2.io({"io.stat": text})
    assert stats is not None
    assert stats.devices == {"8:0": IoDevice(1, 2, 5, 3, 4, 6)}
    empty = v2.io({"io.stat": b""})
    assert empty is not None
    assert empty.devices == {}
    assert v2.io({}) is None


def test_v1_io_that_counts_nothing_is_absent() -> None:
    sizes, numbers = v1.FILES["blkio"]
    zeros = {
        sizes: b"8:0 Read 0\n8:0 Write 0\n8:0 Discard 0\n8:0 Total 0\nTotal 0\n",
        numbers: b"8:0 Read 0\n8:0 Write 0\nTotal 0\n",
    }
    assert v1.io({sizes: b"Total 0\n", numbers: b"Total 0\n"}) is None
    assert v1.io(zeros) is None
    counted = v1.io(zeros, lambda device: device == "8:0")
    assert counted is not None
    assert counted.devices == {"8:0": IoDevice(0, 0, 0, 0, 0, None)}
    one = v1.io({sizes: b"8:0 Read 4096\n8:0 Write 0\n8:16 Read 0\nTotal 4096\n", numbers: b"8:0 Read 1\n8:0 Write 0\n"})
    assert one is not None
    assert one.devices == {"8:0": IoDevice(4096, 0, None, 1, 0, None)}


@pytest.mark.parametrize("module", [v1, v2])
def test_pids(module: object) -> None:
    files = {"pids.current": b"3\n", "pids.max": b"max\n", "pids.events": b"max 4\n"}
    assert module.pids(files) == PidsStats(3, math.inf, None, 4)  # type: ignore[attr-defined]
    assert module.pids({"pids.max": b"7\n"}) is None  # type: ignore[attr-defined]


@given(st.binary(max_size=200))
def test_nothing_a_file_holds_raises(text: bytes) -> None:
    v2.parse_flat(text), v2.parse_number(text), v2.parse_limit(text), v2.parse_cpu_max(text), v2.parse_io_stat(text)
    v1.parse_blkio(text), v1.parse_bytes_limit(text)
    names = [name for files in (*v1.FILES.values(), *v2.FILES.values()) for name in files]
    for make in (v1.cpu, v1.memory, v1.io, v1.pids, v2.cpu, v2.memory, v2.io, v2.pids):
        make(dict.fromkeys(names, text))


def written(settings: list[Setting]) -> list[tuple[str, str]]:
    return [(setting.file, setting.value) for setting in settings]


LIMITS = Limits(
    cpus=1.5, memory_bytes=10_000, pids=7, io_max=(IoMax("8:0", rbps=5, wiops=6),), cpuset="2,0,1", cpu_weight=50, io_weight=100
)


def test_v2_settings() -> None:
    settings = v2.settings(LIMITS, ALL, bfq=True)
    assert written(settings) == [
        ("cpu.max", "150000 100000"),
        ("cpu.weight", "50"),
        ("memory.max", "10000"),
        ("memory.swap.max", "0"),
        ("pids.max", "7"),
        ("cpuset.cpus", "0-2"),
        ("io.max", "8:0 rbps=5 wbps=max riops=max wiops=6"),
        ("io.bfq.weight", "default 100"),
    ]
    assert settings[2].expect == "8192"  # whole pages
    assert settings[5].read_file == "cpuset.cpus.effective"  # cpuset.cpus takes what cannot be had
    assert v2.settings(Limits(io_weight=300), ALL, iocost=True)[0].file == "io.weight"
    assert v2.settings(LIMITS, frozenset({"hugetlb"})) == []


def test_hugetlb_settings() -> None:
    limits = Limits(hugetlb=(HugetlbMax(2 << 20, 5 << 20), HugetlbMax(1 << 30, 0), HugetlbMax(64 << 10, 1 << 20)))
    v2_files = written(v2.settings(limits, frozenset({"hugetlb"})))
    assert v2_files[:4] == [
        ("hugetlb.2MB.rsvd.max", str(5 << 20)),
        ("hugetlb.2MB.max", str(5 << 20)),
        ("hugetlb.1GB.rsvd.max", "0"),
        ("hugetlb.1GB.max", "0"),
    ]
    assert v2_files[4:] == [("hugetlb.64KB.rsvd.max", str(1 << 20)), ("hugetlb.64KB.max", str(1 << 20))]
    settings = v1.settings(limits, frozenset({"hugetlb"}))
    assert [setting.file for setting in settings[:2]] == ["hugetlb.2MB.rsvd.limit_in_bytes", "hugetlb.2MB.limit_in_bytes"]
    assert [setting.optional for setting in settings[:2]] == [True, False]
    assert {setting.expect for setting in settings[:2]} == {str(4 << 20)}  # whole pages
    assert v1.settings(limits, ALL - {"hugetlb"}) == v2.settings(limits, ALL - {"hugetlb"}) == []


def test_v1_settings() -> None:
    assert written(v1.settings(LIMITS, ALL, bfq=True)) == [
        ("cpu.cfs_period_us", "100000"),
        ("cpu.cfs_quota_us", "150000"),
        ("cpu.shares", "512"),
        ("memory.memsw.limit_in_bytes", "-1"),
        ("memory.limit_in_bytes", "10000"),
        ("memory.memsw.limit_in_bytes", "12288"),
        ("pids.max", "7"),
        ("cpuset.cpus", "0-2"),
        ("blkio.throttle.read_bps_device", "8:0 5"),
        ("blkio.throttle.write_iops_device", "8:0 6"),
        ("blkio.bfq.weight", "100"),
    ]
    swap = v1.settings(Limits(memory_bytes=8192, swap_bytes=4096), ALL)
    assert written(swap)[-1] == ("memory.memsw.limit_in_bytes", "16384")
    assert not swap[-1].optional  # asked for swap: a kernel that does not count it cannot do this


@pytest.mark.parametrize("module", [v1, v2])
def test_io_weight_that_nothing_obeys_is_refused(module: object) -> None:
    with pytest.raises(UnsupportedError, match="--io-weight"):
        module.settings(Limits(io_weight=100), ALL)  # type: ignore[attr-defined]


@pytest.mark.parametrize(("weight", "shares"), [(1, 10), (50, 512), (100, 1024), (10_000, 102_400)])
def test_weight_and_shares(weight: int, shares: int) -> None:
    assert shares_of_weight(weight) == shares
    assert weight_of_shares(shares) == weight


@given(st.integers(1, 10_000))
def test_weight_survives_v1(weight: int) -> None:
    assert weight_of_shares(shares_of_weight(weight)) == weight
    assert 1 <= bfq_weight(weight) <= 1000


@given(st.frozensets(st.integers(0, 4096)))
def test_cpu_lists(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus) + "\n") == cpus


@pytest.mark.parametrize(
    "limits",
    [
        Limits(cpus=0.001),
        Limits(cpus=math.nan),
        Limits(cpus=math.inf),
        Limits(cpu_weight=0),
        Limits(io_weight=10_001),
        Limits(memory_bytes=0),
        Limits(memory_bytes=2**63),
        Limits(swap_bytes=1),
        Limits(pids=0),
        Limits(cpuset=""),
        Limits(cpuset="2-1"),
        Limits(cpuset="a"),
        Limits(io_max=(IoMax("sda", rbps=1),)),
        Limits(io_max=(IoMax("8:0", rbps=0),)),
        Limits(hugetlb=(HugetlbMax(2 << 20, -1),)),
        Limits(hugetlb=(HugetlbMax(2 << 20, 0), HugetlbMax(2 << 20, 1 << 20))),
    ],
)
def test_impossible_limits(limits: Limits) -> None:
    with pytest.raises(UsageError):
        limits.check()


def test_no_limits_are_false() -> None:
    assert not Limits()
    assert Limits(cpus=1)
    assert Limits(io_max=(IoMax("8:0"),))
