"""The series budget: whole cgroups and namespaces, the choice of the first time, and each series left out counted."""

from __future__ import annotations

import dataclasses
import logging
import tracemalloc
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from nsagent.cgroups.stats import CgroupStats, CpuStats, MemoryStats, PidsStats
from nsagent.identity import CgroupInfo
from nsagent.metrics import catalogue, encode
from nsagent.metrics.encode import Encoder
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.nsfigures import Device, NamespaceFigures, NodeFigures
from nsagent.sample import NodeSample
from nsagent.usage import Usage
from tests.unit.samples import FACTS

STATS = CgroupStats(CpuStats(usage_ns=1, periods=2), pids=PidsStats(current=1))  # three series
HOST, CONTAINER = NamespaceId(NamespaceKind.NET, 0xF0000000, 1), NamespaceId(NamespaceKind.NET, 0xF0001000, 9)


def node(*paths: str, ended: tuple[str, ...] = (), devices: int = 0, **more: Any) -> NodeSample:
    """Return a sample of cgroups, each with four series, and of two namespaces, one of which may have devices."""
    figures = NamespaceFigures(devices={f"eth{number}": Device(*range(8)) for number in range(devices)})
    sample = NodeSample(
        1,
        FACTS,
        cgroups=dict.fromkeys(paths, STATS),
        cgroups_ended=dict.fromkeys(ended, STATS),
        cgroup_info={path: CgroupInfo("1", unit="a") for path in paths},
        namespaces={HOST: Usage(threads=1), CONTAINER: Usage(threads=1)},
        namespace_figures=NodeFigures({CONTAINER: figures}),
        has_usage=True,
    )
    return dataclasses.replace(sample, **more)


def shown(encoder: Encoder, sample: NodeSample) -> tuple[set[str], int, int]:
    """Return the labels of the cgroups and namespaces shown, how many samples there are, and how many were dropped."""
    body = encoder.encode(sample).decode()
    series = [each for family in text_string_to_metric_families(body) for each in family.samples]
    series_of = [each for each in series if each.name != "nsagent_mode_info"]
    names = {each.labels.get("cgroup") or each.labels.get("id") for each in series_of} - {None}
    dropped = next(int(each.value) for each in series if each.name == "nsagent_series_dropped_total")
    assert next(int(each.value) for each in series if each.name == "nsagent_scrape_samples") == len(series)
    return {str(name) for name in names}, len(series), dropped


def size(sample: NodeSample) -> int:
    return shown(Encoder(catalogue.FAMILIES), sample)[1]


def test_what_fits_is_shown() -> None:
    sample = node("/", "/a", ended=("/b",))
    everything = shown(Encoder(catalogue.FAMILIES), sample)
    assert shown(Encoder(catalogue.FAMILIES, max_series=everything[1]), sample) == everything
    assert everything[0] == {"/", "/a", "/b", "1", "9"}
    assert everything[2] == 0


def test_the_deepest_is_dropped_whole_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    sample = node("/", "/a", "/a/b/c", "/d")
    whole = size(sample)
    encoder = Encoder(catalogue.FAMILIES, max_series=whole - 1)
    with caplog.at_level(logging.WARNING, "nsagent"):
        assert shown(encoder, sample) == ({"/", "/a", "/d", "1", "9"}, whole - 4, 4)
        assert shown(encoder, node("/", "/a", "/a/b/c", "/d", "/e/f/g")) == ({"/", "/a", "/d", "1", "9"}, whole - 4, 8)
    assert caplog.text.count("event=series_dropped") == 1
    assert f"max_series={whole - 1} not_shown=1 first='/a/b/c'" in caplog.text


def test_who_was_there_first_stays_and_who_was_dropped_stays_away() -> None:
    deep = node("/", "/a/b/c/d")
    encoder = Encoder(catalogue.FAMILIES, max_series=size(deep))
    assert shown(encoder, deep)[0] == {"/", "/a/b/c/d", "1", "9"}
    assert shown(encoder, node("/", "/a/b/c/d", "/new"))[0] == {"/", "/a/b/c/d", "1", "9"}, "the new one is nearer to the root"
    assert shown(encoder, node("/", "/new"))[0] == {"/", "1", "9"}, "there is room, but the choice holds"
    assert shown(encoder, node("/", ended=("/new",)))[0] == {"/", "1", "9"}
    assert shown(encoder, node("/"))[2] == 4
    assert shown(encoder, node("/", "/new"))[0] == {"/", "/new", "1", "9"}, "another of that name"


def test_what_grew_beyond_measure_goes_before_all_others() -> None:
    sample = node("/", "/a", "/z")
    encoder = Encoder(catalogue.FAMILIES, max_series=size(sample) + 500)
    shown(encoder, sample)
    huge = node("/", "/a", "/z", "/new", devices=500)
    assert shown(encoder, huge)[0] == {"/", "/a", "/z", "/new", "1"}
    assert shown(encoder, huge)[2] == size(huge) - shown(encoder, huge)[1]


def test_the_root_goes_last_and_too_little_room_is_no_error() -> None:
    sample = node("/", "/a", devices=200)
    found, samples, _ = shown(Encoder(catalogue.FAMILIES, max_series=1), sample)
    assert found == set()
    assert samples > 1
    least = size(node("/", namespaces={HOST: Usage(threads=1)}, namespace_figures=None))
    assert shown(Encoder(catalogue.FAMILIES, max_series=least), sample)[0] == {"/", "1"}


def test_a_new_limit_is_a_new_choice() -> None:
    sample = node("/", "/a", "/b")
    whole = size(sample)
    encoder = Encoder(catalogue.FAMILIES, max_series=whole - 4)
    assert shown(encoder, sample)[0] == {"/", "/a", "/b", "1"}, "a namespace of a container is no nearer to the root than /a/b"
    encoder.limit(0)
    assert shown(encoder, sample)[:2] == ({"/", "/a", "/b", "1", "9"}, whole)
    encoder.limit(whole - 1)
    assert shown(encoder, sample)[1] < whole


def test_what_is_not_shown_is_never_in_memory_all_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode, "_AT_A_TIME", 64)
    rich = CgroupStats(CpuStats(*range(10)), MemoryStats(*range(17)))
    many = node(cgroups={f"/{number}": rich for number in range(3000)})
    encoder = Encoder(catalogue.FAMILIES, max_series=2000)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        encoder.chunks(many)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert sum(chunk.count(b"\n") for chunk in encoder.chunks(many)) > 1900
    whole = Encoder(catalogue.FAMILIES).encode(many)
    assert peak < 0.8 * len(whole)
