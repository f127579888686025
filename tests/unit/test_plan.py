"""The plan of an agent; tests/kernel/test_dry_run.py has it against a real one."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from nsagent.config import AgentConfig
from nsagent.kernel.maps import map_bytes
from nsagent.node import plan


def test_series_are_counted_by_family() -> None:
    text = b"# HELP a x\n# TYPE a counter\na 1\na 2\n# HELP h x\n# TYPE h histogram\nh_bucket 1\nh_sum 1\nh_count 1\n"
    assert plan.count(text) == {"a": 2, "h": 3}


def test_a_plan_loads_nothing_and_says_what_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nsagent.kernel.attach.attach", lambda *_, **__: pytest.fail("programs were loaded"))
    state = tmp_path / "state"
    off = frozenset({"io", "network"})
    config = AgentConfig(
        "127.0.0.1", 0, str(state), str(state), str(state), 0, runtimes=(), cgroup_include=("/none",), collectors_off=off
    )
    made = plan.make(dataclasses.replace(config, max_series=1000))
    assert not state.exists()
    words = plan.describe(made)
    for line in ("off          io, network\n", "asks         no container runtime\n", "--max-series 1000"):
        assert line in words
    assert "--retain" not in words
    kept = dataclasses.replace(made, config=dataclasses.replace(config, retain_ns=90 * 10**9))
    assert "not in it    what ends: it is shown for 90 s more (--retain)\n" in plan.describe(kept)
    assert "blkio" not in words
    assert "io.stat" not in words
    assert {"nsagent_cgroup_io_bytes_total", "nsagent_namespace_network_receive_bytes_total"} & made.series.keys() == set()
    if made.layout:
        assert made.cgroups == made.series["nsagent_cgroup_cpu_usage_seconds_total"] == 1
    without = plan.make(dataclasses.replace(config, bpf=False))
    assert not without.exact
    assert "approximate" in plan.describe(without)
    assert "nsagent_bpf_map_memory_bytes" not in without.series


def test_a_map_takes_what_the_kernel_says() -> None:
    assert map_bytes("hash", 72, 8, 10240) == 1572864  # 1574032 with the map itself
    assert map_bytes("ringbuf", 0, 0, 1 << 20) == 1 << 20
    assert map_bytes("array", 4, 12, 3) == 48
    assert map_bytes("task_storage", 4, 208, 0) == 0
