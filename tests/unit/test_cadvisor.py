"""cAdvisor's names: whose a series is, and what its numbers mean."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from nsagent.cgroups.stats import CgroupStats, CpuStats, IoDevice, IoStats, MemoryStats, PidsStats, Pressure, PressureStats
from nsagent.history import About, Figures
from nsagent.identity import CgroupInfo
from nsagent.metrics import cadvisor, catalogue
from nsagent.metrics.containers import label
from nsagent.metrics.encode import Encoder
from nsagent.metrics.family import COMPAT, Container
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.nsfigures import Device, NamespaceFigures, NodeFigures
from nsagent.sample import Machine, NodeSample
from nsagent.usage import Usage
from tests.kernel.agents import Samples, get, parse
from tests.unit.samples import FACTS, full_sample

FAMILIES = catalogue.families(COMPAT)
ID, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4
UID = "1b3a5f0e-9d4c-4f7e-8a6b-2c1d0e9f8a7b"
POD = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID.replace('-', '_')}.slice"
MAIN = CgroupInfo("1", container_id=ID, container="main", pod_uid=UID, pod="web-0", pod_namespace="shop", image="nginx:1")
DOCKER = CgroupInfo("2", container_id=ID, container="web", image="nginx:1")


@pytest.mark.parametrize(
    ("path", "info", "labels"),
    [
        (f"{POD}/cri-containerd-{ID}.scope", MAIN, ("main", "nginx:1", ID, "shop", "web-0")),
        (f"/kubepods/burstable/pod{UID}/{ID}", MAIN, ("main", "nginx:1", ID, "shop", "web-0")),
        (f"{POD}/cri-containerd-{ID}.scope/below", MAIN, ("", "", "", "", "")),
        (f"{POD}/crio-conmon-{ID}.scope", MAIN._replace(container_id=""), ("", "", "", "", "")),
        (POD, MAIN._replace(container_id="", container="", image=""), ("", "", "", "shop", "web-0")),
        (f"/kubepods/pod{UID}", MAIN._replace(container_id="", container="", image=""), ("", "", "", "shop", "web-0")),
        (f"/docker/{ID}", DOCKER, ("", "nginx:1", "web", "", "")),
        (f"/system.slice/docker-{ID}.scope", DOCKER, ("", "nginx:1", "web", "", "")),
        (f"/system.slice/docker-{ID}.scope/init", DOCKER, ("", "", "", "", "")),
        (f"/docker/{ID}/docker/{OTHER}", DOCKER._replace(container_id=OTHER, container=""), ("", "nginx:1", OTHER, "", "")),
        ("/default/redis", CgroupInfo(container_id="redis"), ("", "", "redis", "", "")),
        ("/default/redis/is", CgroupInfo(container_id="redis"), ("", "", "", "", "")),
        ("/system.slice/nginx.service", CgroupInfo(unit="nginx.service", slice="system.slice"), ("", "", "", "", "")),
        ("/", CgroupInfo(), ("", "", "", "", "")),
    ],
)
def test_whose_a_cgroup_is(path: str, info: CgroupInfo, labels: tuple[str, ...]) -> None:
    container, image, name, namespace, pod = labels
    assert label(path, info) == Container(container, path, image, name, namespace, pod)


def encoded(sample: NodeSample) -> Samples:
    return parse(Encoder(FAMILIES).encode(sample))


def of(samples: Samples, family: str, /, **labels: str) -> dict[tuple[str, ...], float]:
    """Return the values of a family where `labels` match, by its other labels' values that are not cAdvisor's own six."""
    own = Container._fields
    found = {}
    for (series, pairs), value in samples.items():
        these = dict(pairs)
        if series == family and these.items() >= labels.items():
            found[tuple(these[key] for key in sorted(these) if key not in own)] = value
    return found


def one(stats: CgroupStats, name: str, **more: Any) -> dict[tuple[str, ...], float]:
    sample = NodeSample(10**18, FACTS, cgroups={f"/docker/{ID}": stats}, cgroup_info={f"/docker/{ID}": DOCKER}, **more)
    return of(encoded(sample), name, name="web", id=f"/docker/{ID}", image="nginx:1")


V2 = CgroupStats(
    CpuStats(2_500_000_000, 10**9, 10**9, 10, 4, 10**9, limit_cores=1.5, weight=100, period_ns=100_000_000),
    MemoryStats(
        usage_bytes=100, peak_bytes=200, working_set_bytes=60, limit_bytes=math.inf, min_bytes=7.0, high_bytes=math.inf,
        swap_usage_bytes=3, swap_limit_bytes=5.0, minor_faults=30, major_faults=2,
        detail={"anon": 11, "file": 22, "kernel": 33, "file_mapped": 44, "inactive_file": 40, "active_file": 55},
        events={"max": 9, "oom_kill": 1},
    ),
    IoStats({"sda": IoDevice(1, 2, 3, 4, 5, 6)}),
    PidsStats(3, math.inf),
    pressure=PressureStats({"cpu": Pressure(5 * 10**8, None)}),
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values"),
    {
        "cpu_usage_seconds_total": {("total",): 2.5},
        "cpu_cfs_periods_total": {(): 10},
        "cpu_cfs_throttled_periods_total": {(): 4},
        "cpu_cfs_throttled_seconds_total": {(): 1},
        "spec_cpu_quota": {(): 150_000},
        "spec_cpu_period": {(): 100_000},
        "spec_cpu_shares": {(): 2597},
        "memory_usage_bytes": {(): 100},
        "memory_working_set_bytes": {(): 60},
        "memory_rss": {(): 11},
        "memory_cache": {(): 22},
        "memory_kernel_usage": {(): 33},
        "memory_mapped_file": {(): 44},
        "memory_swap": {(): 3},
        "memory_failcnt_total": {(): 9},  # as prometheus_client has every counter
        "memory_failures_total": {
            ("pgfault", "container"): 32,
            ("pgmajfault", "container"): 2,
            ("pgfault", "hierarchy"): 32,
            ("pgmajfault", "hierarchy"): 2,
        },
        "oom_events_total": {(): 1},
        "fs_reads_bytes_total": {("/dev/sda",): 1},
        "fs_writes_total": {("/dev/sda",): 5},
        "threads": {(): 3},
        "threads_max": {(): 0},
        "spec_memory_limit_bytes": {(): 0},
        "spec_memory_swap_limit_bytes": {(): 5},
        "spec_memory_reservation_limit_bytes": {(): 7},
        "pressure_cpu_waiting_seconds_total": {(): 0.5},
        "pressure_cpu_stalled_seconds_total": {},
        "pressure_io_waiting_seconds_total": {},
        "last_seen": {(): 10**9},
    }.items(),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_numbers(name: str, values: dict[tuple[str, ...], float]) -> None:
    assert one(V2, f"container_{name}") == values


def test_v1s_own_settings() -> None:
    v1 = CgroupStats(CpuStats(shares=2, weight=1, limit_cores=math.inf, period_ns=100_000_000), MemoryStats(high_bytes=4096.0))
    assert one(v1, "container_spec_cpu_shares") == {(): 2}
    assert one(v1, "container_spec_cpu_quota") == {}
    assert one(v1, "container_cpu_cfs_periods_total") == {}
    assert one(v1, "container_spec_memory_reservation_limit_bytes") == {(): 4096}
    assert one(v1, "container_spec_memory_limit_bytes") == {}


def test_what_tasks_used() -> None:
    used = Usage(run_queue_ns=10**9, sleeping=2, disk_sleep=1, processes=3)
    found = {f"/docker/{ID}": used}
    assert one(V2, "container_tasks_state", cgroup_usage=found) == {
        ("sleeping",): 2, ("running",): 0, ("stopped",): 0, ("uninterruptible",): 1,
    }  # fmt: skip
    assert one(V2, "container_processes", cgroup_usage=found) == {(): 3}
    assert one(V2, "container_cpu_schedstat_runqueue_seconds_total", cgroup_usage=found) == {(): 1}


def test_names_that_come_later_make_other_series() -> None:
    path, encoder = f"/docker/{ID}", Encoder(FAMILIES)
    nameless = NodeSample(1, FACTS, cgroups={path: V2}, cgroup_info={path: DOCKER._replace(container="", image="")})
    assert of(parse(encoder.encode(nameless)), "container_memory_rss", name=ID, image="") == {(): 11}
    named = parse(encoder.encode(replace(nameless, time_ns=2, cgroup_info={path: DOCKER})))
    assert of(named, "container_memory_rss", name="web", image="nginx:1") == {(): 11}
    assert of(named, "container_memory_rss", name=ID) == {}


def test_what_ended_keeps_counters_and_peaks() -> None:
    path = f"/docker/{ID}"
    samples = encoded(NodeSample(1, FACTS, cgroups_ended={path: V2}, cgroup_info={path: DOCKER}))
    assert of(samples, "container_cpu_usage_seconds_total", name="web") == {("total",): 2.5}
    assert of(samples, "container_memory_max_usage_bytes", name="web") == {(): 200}
    assert of(samples, "container_memory_usage_bytes", name="web") == {}
    assert of(samples, "container_last_seen", name="web") == {}


def net(number: int) -> NamespaceId:
    return NamespaceId(NamespaceKind.NET, 4026531840 + number, number)


def devices(number: int) -> NamespaceFigures:
    device = Device(*(number + at for at in range(8)))
    return NamespaceFigures(dict.fromkeys(("eth0", "lo", "veth12", "docker0"), device))


def test_a_net_namespace_counts_once_and_for_its_container() -> None:
    """The host's for the root; a second one made inside the container, and one that is no container's, for nobody."""
    path = f"{POD}/cri-containerd-{ID}.scope"
    about = {
        net(1): About(root_pid="1", cgroup="/init.scope"),
        net(2): About(root_pid="70", cgroup=f"{path}/below"),
        net(3): About(root_pid="60", cgroup=path),  # its pid is lower: numbers have come round
        net(4): About(root_pid="50", cgroup="/system.slice/private.service"),
    }
    sample = NodeSample(
        1,
        FACTS,
        cgroups=dict.fromkeys(("/", path, f"{path}/below", "/system.slice/private.service"), V2),
        cgroup_info={path: MAIN, f"{path}/below": MAIN, "/system.slice/private.service": CgroupInfo(unit="private.service")},
        namespace_figures=NodeFigures({net(number): devices(100 * number) for number in range(1, 6)}),
        history=Figures({net(2): 5, net(3): 6}, about=about),
    )
    samples = encoded(sample)
    name = "container_network_receive_bytes_total"
    assert of(samples, name, id="/") == {("eth0",): 100}
    assert of(samples, name, pod="web-0", container="main", namespace="shop", id=path) == {("eth0",): 200}
    assert sum(series == name for series, _ in samples) == 2
    assert of(samples, "container_network_transmit_packets_dropped_total", id="/") == {("eth0",): 107}


def test_the_machine() -> None:
    sample = NodeSample(1, replace(FACTS, machine=Machine(2, 4096, ("boot", "", "board"))))
    assert get(encoded(sample), "machine_cpu_cores", boot_id="boot", machine_id="", system_uuid="board") == 2
    assert get(encoded(sample), "machine_memory_bytes", boot_id="boot", machine_id="", system_uuid="board") == 4096


def test_what_is_hidden_is_so_under_both_names() -> None:
    """A cgroup's series of both kinds count against --max-series, and go together."""
    sample = NodeSample(1, FACTS, cgroups={"/": V2, "/a": V2, "/a/b": V2}, cgroup_usage={"/a/b": Usage(processes=1)})
    series = encoded(sample)
    samples = parse(Encoder(FAMILIES, max_series=len(series) - 1).encode(sample))
    ids = {dict(labels).get("id") or dict(labels).get("cgroup") for _, labels in samples}
    assert ids & {"/", "/a", "/a/b"} == {"/", "/a"}
    hidden = sum(dict(labels).get("id") == "/a/b" or dict(labels).get("cgroup") == "/a/b" for _, labels in series)
    assert get(samples, "nsagent_series_dropped_total", reason="max_series") == hidden
    assert len(samples) == len(series) - hidden


def test_the_counter_without_total_in_openmetrics() -> None:
    sample = NodeSample(1, FACTS, cgroups={"/": V2})
    body = Encoder(FAMILIES).encode(sample, True).decode()
    families = {family.name: family for family in text_string_to_metric_families(body)}  # type: ignore[no-untyped-call]
    assert families["container_memory_failcnt"].type == "unknown"
    assert [each.value for each in families["container_memory_failcnt"].samples] == [9]
    assert b"# TYPE container_memory_failcnt counter" in Encoder(FAMILIES).encode(sample)


def test_without_the_flag_there_is_none_of_it() -> None:
    names = {family.name for family in cadvisor.FAMILIES}
    assert not names & {series for series, _ in parse(Encoder(catalogue.families()).encode(full_sample()))}
    assert names & {series for series, _ in encoded(full_sample())}
