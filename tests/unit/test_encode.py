"""The exposition: what is written parses back, with prometheus_client's own parsers, to the same families and values."""

from __future__ import annotations

import math
import os
import re
import tracemalloc
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from nsagent.cgroups.stats import CgroupStats, CpuStats, IoDevice, IoStats, MemoryStats
from nsagent.metrics import catalogue, encode, text
from nsagent.metrics.encode import Encoder
from nsagent.metrics.family import Family, Scope
from nsagent.metrics.process import Process
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.sample import NodeSample
from nsagent.usage import Usage
from tests.unit.samples import FACTS, full_sample

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def parsed(body: bytes, openmetrics: bool = False) -> tuple[Samples, dict[str, tuple[str, str]]]:
    """Return the samples, and the type and help of each family by the name in the catalogue."""
    parse: Any = parse_openmetrics if openmetrics else parse_text
    samples: Samples = {}
    families = {}
    for family in parse(body.decode()):
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        families[family.name + suffix] = (family.type, family.documentation)
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"twice: {key}"
            samples[key] = sample.value
    return samples, families


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


@pytest.mark.parametrize("openmetrics", [False, True])
def test_a_full_sample(openmetrics: bool) -> None:
    body = Encoder(catalogue.FAMILIES, Process()).encode(full_sample(), openmetrics)
    samples, families = parsed(body, openmetrics)
    assert value(samples, "nsagent_cgroup_cpu_usage_seconds_total", cgroup="/") == 1.500000001
    assert value(samples, "nsagent_cgroup_cpu_seconds_total", cgroup="/", mode="user") == 0
    assert value(samples, "nsagent_cgroup_cpu_limit_cores", cgroup="/") == 0.5
    assert value(samples, "nsagent_cgroup_io_bytes_total", cgroup="/", device="8:0", operation="read") == 5
    assert value(samples, "nsagent_cgroup_storage_bytes_total", cgroup="/", operation="read") == 1 << 60
    pid = {"kind": "pid", "inum": "4026531836", "id": "0"}
    assert value(samples, "nsagent_namespace_threads", **pid, state="running") == 2
    assert value(samples, "nsagent_syscalls_total", syscall="unshare", result="ok") == 23
    assert value(samples, "nsagent_namespace_syscalls_total", syscall="unshare", kind="uts", result="ok") == 23
    assert value(samples, "nsagent_feature_info", feature="tracing", reason='a "reason"\\012with a line and a \\') == 1
    assert value(samples, "nsagent_feature_available", feature="storage") == 1
    assert value(samples, "nsagent_collector_success", collector="cgroups") == 0
    assert value(samples, "nsagent_namespaces", kind="pid") == 1
    assert any(name == "process_resident_memory_bytes" for name, _ in samples)
    assert value(samples, "nsagent_scrape_samples") == len(samples)
    for family in catalogue.FAMILIES:
        if family.name in families:
            kind = "gauge" if family.type == "info" and not openmetrics else family.type
            assert families[family.name] == (kind, family.help)
    assert body.endswith(b"# EOF\n") == openmetrics


def test_what_is_not_reported_is_absent() -> None:
    samples, families = parsed(Encoder(catalogue.FAMILIES).encode(full_sample()))
    names = {name for name, _ in samples}
    assert "nsagent_namespace_io_delay_seconds_total" not in names, "the source says it cannot report it"
    assert "nsagent_namespace_io_delay_seconds_total" not in families, "a family without samples has no header"
    assert "nsagent_cgroup_pids_limit" not in names, "no limit"
    assert "nsagent_cgroup_memory_limit_bytes" not in names, "no limit"
    assert not [labels for name, labels in samples if ("cgroup", "/a") in labels], "a cgroup without any controller"
    assert not [labels for _, labels in samples if ("operation", "discard") in labels]
    assert ("nsagent_bpf_map_entries", frozenset({("map", "tasks")})) not in samples
    empty, _ = parsed(Encoder(catalogue.FAMILIES).encode(NodeSample(1, FACTS)))
    assert {name for name, _ in empty if "namespace" in name or "cgroup" in name or "syscalls" in name} == set()


def test_of_what_ended_totals_and_peaks_are_left() -> None:
    samples, _ = parsed(Encoder(catalogue.FAMILIES).encode(full_sample()))
    gone = {name for name, labels in samples if ("cgroup", "/gone") in labels}
    assert "nsagent_cgroup_cpu_usage_seconds_total" in gone
    assert "nsagent_cgroup_memory_peak_bytes" in gone
    assert "nsagent_cgroup_memory_usage_bytes" not in gone
    ended = {name for name, labels in samples if ("id", "6") in labels}
    assert "nsagent_namespace_cpu_seconds_total" in ended
    assert "nsagent_namespace_processes" not in ended


def test_every_nanosecond_is_written() -> None:
    body = Encoder(catalogue.FAMILIES).encode(full_sample()).decode()
    assert 'nsagent_namespace_cpu_seconds_total{kind="pid",inum="4026531836",id="0"} 100000000.000000001\n' in body


def test_a_sample_is_encoded_once() -> None:
    calls: list[bool] = []

    def process(openmetrics: bool) -> bytes:
        calls.append(openmetrics)
        return b""

    encoder = Encoder(catalogue.FAMILIES, process)
    sample = full_sample()
    assert encoder.chunks(sample) is encoder.chunks(sample)
    assert encoder.encode(sample) == b"".join(encoder.chunks(sample))
    encoder.encode(sample, openmetrics=True)
    encoder.encode(full_sample())
    assert calls == [False, True, False]


# Names as the kernel has them: any bytes but NUL and newline; backslashes and digits often, as those are what could collide.
names = st.lists(st.one_of(st.binary(max_size=4), st.sampled_from([b"\\", b"\\377", b"377", b"\xff", b'"', b"\n", b"\\x2d"])))
paths = names.map(lambda parts: os.fsdecode(b"/" + b"".join(parts).replace(b"\0", b"")))


def unprintable(label: str) -> bytes:
    """Undo text.printable."""
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), label.encode())


@given(paths)
def test_names_are_printable_and_can_be_had_back(path: str) -> None:
    written = text.printable(path)
    assert not re.search(r"[\x00-\x1f\x7f\ud800-\udfff]", written)
    assert unprintable(written) == os.fsencode(path)


@pytest.mark.parametrize("name", ["/system.slice/dev-disk-by\\x2duuid.swap", "/käse", "/a b/ü\\n", "/docker/0123"])
def test_usual_names_stay_as_they_are(name: str) -> None:
    assert text.printable(name) == name


counters = st.integers(0, 2**64 - 1)
usages = st.tuples(counters, counters, st.integers(0, 9)).map(lambda n: Usage(cpu_ns=n[0], read_bytes=n[1], threads=n[2]))
cpus = st.tuples(st.none() | counters, st.none() | st.floats(0)).map(lambda n: CpuStats(usage_ns=n[0], limit_cores=n[1]))


@settings(max_examples=60, deadline=None)
@given(
    cgroups=st.dictionaries(paths, cpus, max_size=5),
    namespaces=st.dictionaries(
        st.builds(NamespaceId, st.sampled_from(NamespaceKind), st.integers(1, 2**32 - 1), st.integers(0, 2**32 - 1)),
        usages,
        max_size=5,
    ),
    openmetrics=st.booleans(),
)
def test_what_is_written_parses_to_the_same(
    cgroups: dict[str, CpuStats], namespaces: dict[NamespaceId, Usage], openmetrics: bool
) -> None:
    sample = NodeSample(
        1, FACTS, cgroups={path: CgroupStats(cpu) for path, cpu in cgroups.items()}, namespaces=namespaces, has_usage=True
    )
    found, _ = parsed(Encoder(catalogue.FAMILIES).encode(sample, openmetrics), openmetrics)
    expected: Samples = {}
    for family in catalogue.FAMILIES:
        if family.scope in (Scope.CGROUP, Scope.NAMESPACE):
            expected |= expectation(family, sample)
    for key, number in expected.items():
        assert float(found[key]) == number, key
    assert {key for key in found if "cgroup_" in key[0] or "namespace_" in key[0]} == expected.keys()


few = st.sampled_from(["/", "/a", "/a/b", '/"\\x\udcff', "/%d%%z", *(f"/{number}" for number in range(60))])
parts: dict[str, st.SearchStrategy[Any]] = {
    "cpu": st.none() | cpus,
    "memory": st.none()
    | st.integers(0, 3).map(lambda n: MemoryStats(usage_bytes=n, peak_bytes=n, detail={"anon": n} if n else {})),
    "io": st.none() | st.integers(0, 2).map(lambda n: IoStats({f"8:{i}": IoDevice(read_bytes=i) for i in range(n)})),
}
ids = st.builds(NamespaceId, st.just(NamespaceKind.PID), st.integers(1, 3), st.integers(0, 1))


@st.composite
def sequences(draw: st.DrawFn) -> list[NodeSample]:
    """Samples as they follow each other: parts that stay the same object, changes, removals, ends and returns, any order."""
    found: list[NodeSample] = []
    last: dict[str, CgroupStats] = {}
    for _ in range(draw(st.integers(2, 6))):
        now = {}
        for path in draw(st.lists(few, unique=True)):
            stats = last.get(path, CgroupStats())
            change: dict[str, Any] = {part: draw(parts[part]) for part in draw(st.sets(st.sampled_from(sorted(parts))))}
            now[path] = stats._replace(**change) if change else stats
        ended = {path: stats for path, stats in last.items() if path not in now and draw(st.booleans())}
        used, gone = draw(st.dictionaries(few, usages)), draw(st.dictionaries(few, usages))
        spaces, lost = draw(st.dictionaries(ids, usages)), draw(st.dictionaries(ids, usages))
        found.append(
            NodeSample(
                1,
                FACTS,
                cgroups=now,
                cgroups_ended=ended,
                cgroup_usage=used,
                cgroup_usage_ended={path: usage for path, usage in gone.items() if path not in used},
                namespaces=spaces,
                namespaces_ended={name: usage for name, usage in lost.items() if name not in spaces},
                missing=frozenset({"io_delay_ns"}) if draw(st.integers(0, 4)) == 0 else frozenset(),
                has_usage=True,
            )
        )
        last |= now
    return found


@settings(max_examples=80, deadline=None)
@given(sequences(), st.booleans())
def test_what_is_kept_of_the_last_sample_changes_nothing(samples: list[NodeSample], openmetrics: bool) -> None:
    encoder = Encoder(catalogue.FAMILIES)
    for sample in samples:
        assert encoder.encode(sample, openmetrics) == Encoder(catalogue.FAMILIES).encode(sample, openmetrics)


def test_only_what_changed_is_written_again() -> None:
    """Of the family and the rows whose numbers changed; what comes or goes costs its neighbours, and no others, their lines."""
    encoder = Encoder(catalogue.FAMILIES)
    stats = CgroupStats(CpuStats(usage_ns=1, user_ns=1), MemoryStats(usage_bytes=1))
    cgroups = {f"/{number}": stats for number in range(1000)}

    def lines(name: bytes) -> list[bytes]:
        chunks = encoder.chunks(NodeSample(1, FACTS, cgroups=dict(cgroups)))
        return [chunk for chunk in chunks if chunk.startswith(name + b"{")]

    usage, memory = lines(b"nsagent_cgroup_cpu_usage_seconds_total"), lines(b"nsagent_cgroup_memory_usage_bytes")
    assert len(usage) > 4
    cgroups["/500"] = stats._replace(cpu=CpuStats(usage_ns=2, user_ns=1))
    again = lines(b"nsagent_cgroup_cpu_usage_seconds_total")
    assert [b'"/500"} 0.000000002\n' in new for new, old in zip(again, usage, strict=True) if new is not old] == [True]
    assert all(new is old for new, old in zip(lines(b"nsagent_cgroup_memory_usage_bytes"), memory, strict=True))
    del cgroups["/500"]
    cgroups["/1000"] = stats
    left = {id(chunk) for chunk in lines(b"nsagent_cgroup_memory_usage_bytes")}
    assert sum(id(chunk) not in left for chunk in memory) <= 3
    assert sum(chunk.count(b"\n") for chunk in lines(b"nsagent_cgroup_memory_usage_bytes")) == 1000


def expectation(family: Family, sample: NodeSample) -> Samples:
    """Return what a family of this sample should be, made in the plainest way."""
    things: list[tuple[dict[str, str], Any]] = (
        [({"cgroup": text.printable(path)}, stats) for path, stats in sample.cgroups.items()]
        if family.scope is Scope.CGROUP
        else [({"kind": ns.kind, "inum": str(ns.inum), "id": str(ns.id)}, used) for ns, used in sample.namespaces.items()]
    )
    return dict(series(family, things))


def series(family: Family, things: list[tuple[dict[str, str], Any]]) -> Iterator[tuple[Any, float]]:
    for labels, whole in things:
        thing = getattr(whole, family.part) if family.part else whole
        for values, field in family.parts if thing is not None else ():
            number = getattr(thing, str(field))
            if number is not None and not (family.limit and number == math.inf):
                more = dict(zip(family.labels, values, strict=True))
                yield (family.name, frozenset((labels | more).items())), number / family.scale


@pytest.mark.parametrize(
    ("number", "written"),
    [
        (0, "0"),
        (2**64 - 1, "18446744073709551615"),
        (0.5, "0.5"),
        (1.0, "1"),
        (1e300, "1e+300"),
        (math.inf, "+Inf"),
        (-math.inf, "-Inf"),
        (math.nan, "NaN"),
    ],
)
def test_numbers(number: float, written: str) -> None:
    assert text.number(number) == written


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", False),
        ("*/*", False),
        ("text/html", False),
        ("application/openmetrics-text", True),
        # what Prometheus 2.53 sends
        (
            "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
            "text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            True,
        ),
        ("text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5", False),
        ("application/openmetrics-text;version=1.0.0;q=0", False),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;q=high", False),
    ],
)
def test_accept(accept: str, wanted: bool) -> None:
    assert encode.accepts_openmetrics(accept) is wanted


def test_lines_of_what_is_gone_are_let_go_before_others_are_written() -> None:
    """Of 5,000 cgroups they are 25 MB, and what malloc has once had it keeps."""
    encoder = Encoder(catalogue.FAMILIES)
    first, second = (
        NodeSample(
            1, FACTS, cgroups={f"/{name}{n}": CgroupStats(CpuStats(*range(10)), MemoryStats(*range(17))) for n in range(500)}
        )
        for name in "ab"
    )
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        encoder.chunks(first)
        kept = tracemalloc.get_traced_memory()[0] - before
        tracemalloc.reset_peak()
        encoder.chunks(second)
        assert tracemalloc.get_traced_memory()[1] - before < 1.5 * kept
    finally:
        tracemalloc.stop()
