"""Bytes of hugetlb, rdma, misc, pressure, cpuset and state files to stats; events of fanotify to ids."""

from __future__ import annotations

import math
import struct

from nsagent.cgroups import parts
from nsagent.cgroups.changes import parse_events
from nsagent.cgroups.stats import Countable, CpusetStats, HugetlbSize, Pressure, StateStats


def test_hugetlb_of_both_versions() -> None:
    v2 = {"hugetlb.2MB.current": b"4096\n", "hugetlb.2MB.max": b"max\n", "hugetlb.2MB.events": b"max 3\n"}
    v1 = {"hugetlb.1GB.usage_in_bytes": b"7\n", "hugetlb.1GB.limit_in_bytes": b"8\n", "hugetlb.1GB.failcnt": b"9\n"}
    found = parts.hugetlb(v2 | v1)
    assert found is not None
    assert found.sizes == {"2MB": HugetlbSize(4096, math.inf, 3), "1GB": HugetlbSize(7, 8, 9)}
    assert parts.hugetlb({}) is None
    assert parts.hugetlb_files([*v2, "hugetlb.2MB.rsvd.current", "cgroup.procs"]) == tuple(sorted(v2))


def test_rdma_and_misc() -> None:
    rdma = parts.rdma(
        {"rdma.current": b"mlx4_0 hca_handle=2 hca_object=20\n", "rdma.max": b"mlx4_0 hca_handle=3 hca_object=max\n"}
    )
    assert rdma is not None
    assert rdma.objects == {("mlx4_0", "hca_handle"): Countable(2, 3), ("mlx4_0", "hca_object"): Countable(20, math.inf)}
    misc = parts.misc({"misc.current": b"sev 1\n", "misc.max": b"sev max\n", "misc.events": b"sev.max 4\n"})
    assert misc is not None
    assert (misc.resources, misc.events) == ({"sev": Countable(1, math.inf)}, {"sev": 4})
    assert parts.rdma({}) is None
    assert parts.misc({}) is None


def test_pressure_cpuset_and_state() -> None:
    line = b"some avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"
    found = parts.pressure({"cpu.pressure": line, "irq.pressure": line.replace(b"some", b"full"), "io.pressure": b""})
    assert found is not None
    assert found.resources == {"cpu": Pressure(5000, None), "irq": Pressure(None, 5000)}
    assert parts.cpuset({"cpuset.cpus.effective": b"0-2,5\n", "cpuset.mems.effective": b"\n"}) == CpusetStats(4, 0)
    assert parts.state({"freezer.state": b"FREEZING\n"}) == StateStats(frozen=False)
    files = {"freezer.state": b"FROZEN\n", "cgroup.events": b"populated 1\nfrozen 0\n"}
    assert parts.state(files | {"cgroup.stat": b"nr_descendants 2\nnr_dying_descendants 1\n"}) == StateStats(True, True, 2, 1)


def test_lost_events_are_told() -> None:
    overflow = struct.pack("=IBBHQii", 24, 3, 0, 24, 0x4000, -1, 0)
    assert parse_events(overflow) is None
    assert parse_events(b"") == {}
