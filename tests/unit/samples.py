"""Made-up samples for the tests of the metrics."""

from __future__ import annotations

import math

from nsagent.cgroups.stats import CgroupStats, CpuStats, IoDevice, IoStats, MemoryStats, PidsStats
from nsagent.events import SyscallCounts
from nsagent.history import Figures
from nsagent.identity import CgroupInfo
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.sample import GONE, Facts, MapFigures, NodeSample, Outcome
from nsagent.usage import NodeUsage, Usage
from nsagent.workloads import Workload, Workloads

PID_NS = NamespaceId(NamespaceKind.PID, 4026531836, 0)
NET_NS = NamespaceId(NamespaceKind.NET, 4026531840, 7)

FACTS = Facts(
    {"version": "1", "python": "3", "bcc": "0.31", "kernel": "6.18"},
    {"cgroup": "hybrid", "bpf": "off", "accounting": "approximate", "psi": "on", "delayacct": "off"},
    {"tracing": 'a "reason"\nwith a line and a \\', "storage": None},
)
STATS = CgroupStats(
    CpuStats(usage_ns=1_500_000_001, user_ns=0, limit_cores=0.5),
    MemoryStats(usage_bytes=4096, peak_bytes=8192, limit_bytes=math.inf, high_bytes=1 << 40, detail={"anon": 7}),
    IoStats({"8:0": IoDevice(read_bytes=5)}),
    PidsStats(current=3, limit=math.inf),
)


def node_usage(namespaces: dict[NamespaceId, Usage] | None = None, cgroups: dict[int, Usage] | None = None) -> NodeUsage:
    """Return a reading in which nothing has ended."""
    return NodeUsage(namespaces or {}, cgroups or {}, {}, exact=True, missing=frozenset(), contexts=0)


def full_sample() -> NodeSample:
    """Return a sample with something of everything."""
    return NodeSample(
        time_ns=1,
        facts=FACTS,
        cgroups={"/": STATS, "/a": CgroupStats()},
        cgroups_ended={"/gone": STATS},
        cgroups_created={"/": 10**18 + 1},
        cgroup_info={"/gone": CgroupInfo("7", unit='a "b".service', container="x\ny\\")},
        final_reads={"complete": 3, "partial": 0, "late": 1},
        cgroup_usage={"/": Usage(read_bytes=1 << 60)},
        namespaces={PID_NS: Usage(cpu_ns=10**17 + 1, threads=2, processes=1, running=2), NET_NS: Usage(threads=1)},
        namespaces_ended={NET_NS._replace(id=6): Usage(cpu_ns=5)},
        namespaces_gone={NamespaceKind.NET: dict.fromkeys(GONE, 10**17 + 3)},
        history=Figures({PID_NS: 10**18 + 1}, {NamespaceKind.NET: 6}, {(NamespaceKind.NET, "to_host"): 2}, 3, 0),
        has_usage=True,
        missing=frozenset({"io_delay_ns"}),
        syscalls=SyscallCounts({("unshare", "ok"): 23}, {("unshare", NamespaceKind.UTS, "ok"): 23}, 24, {"queue_full": 1}),
        findings={"to_host": 1, "orphan": 0},
        workloads=Workloads({'a "b"': Workload({"success": 2}, [1, *[0] * 9, 1], 10**14 + 1, 5, 6, 7, 8, 0, 1.5, 2.5, 9)}, 3),
        maps=(MapFigures("ids", 5, 10240, 4096), MapFigures("rows", None, 10240, 4096, 7), MapFigures("tasks", None, 0, None)),
        collectors={"usage": Outcome(True, 0.0015), "cgroups": Outcome(False, 1e-6)},
    )
