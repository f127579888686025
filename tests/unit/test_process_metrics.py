"""process_* and python_info: of this process, against what the kernel and Python say of it, and in both formats."""

from __future__ import annotations

import os
import platform
import resource
import time
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from nsagent.metrics.process import Process, count_descriptors


def _samples(openmetrics: bool) -> dict[str, float]:
    body = Process()(openmetrics).decode()
    parse: Any = parse_openmetrics
    families = parse(body + "# EOF\n") if openmetrics else parse_text(body)
    return {sample.name: sample.value for family in families for sample in family.samples}


@pytest.mark.parametrize("openmetrics", [False, True])
def test_the_numbers_are_this_process_s(openmetrics: bool) -> None:
    before = time.process_time()
    found = _samples(openmetrics)
    assert before <= found["process_cpu_seconds_total"] <= time.process_time()
    assert found["process_max_fds"] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    page, (virtual, resident) = resource.getpagesize(), map(int, Path("/proc/self/statm").read_text().split()[:2])
    assert abs(found["process_virtual_memory_bytes"] - virtual * page) < 64 << 20
    assert abs(found["process_resident_memory_bytes"] - resident * page) < 64 << 20
    assert found["python_info"] == 1


def test_the_families_are_those_of_the_client_library() -> None:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    theirs = {sample.name: (sample.value, sample.labels) for family in registry.collect() for sample in family.samples}
    ours = _samples(False)
    assert ours.keys() == theirs.keys()
    assert abs(ours["process_start_time_seconds"] - theirs["process_start_time_seconds"][0]) < 2  # they count from a whole second
    assert theirs["python_info"][1]["version"] == platform.python_version()


def test_descriptors_are_counted_with_and_without_the_kernel_s_count(monkeypatch: pytest.MonkeyPatch) -> None:
    before = count_descriptors()
    opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(20)]
    try:
        assert count_descriptors() == (before or 0) + 20 == len(os.listdir("/proc/self/fd")) - 1
        size = os.stat("/dev/null")
        monkeypatch.setattr(os, "stat", lambda path: size)  # 0, as before v6.2
        assert count_descriptors() == (before or 0) + 20
    finally:
        for fd in opened:
            os.close(fd)
    assert count_descriptors("/proc/self/no-such") is None
