"""`nsagent agent --dry-run` against the agent that it speaks of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsagent.cgroups.group import Group
from nsagent.cgroups.layout import read_layout
from nsagent.kernel import abi, maps
from nsagent.metrics import catalogue
from nsagent.metrics.family import Scope
from nsagent.node.plan import count
from tests.kernel import agents
from tests.support import run_nsagent, wait_for

pytestmark = pytest.mark.kernel
OWN = ("process_", "python_")  # prometheus_client's
EXACT = {family.name for family in catalogue.FAMILIES if family.scope in (Scope.CGROUP, Scope.CGROUP_USAGE)} - {
    "nsagent_cgroup_io_bytes_total",  # the root's, by what the disks do meanwhile
    "nsagent_cgroup_io_operations_total",
}


def planned(*flags: str) -> dict[str, int]:
    """Return the series by family that a dry run foresees."""
    done = run_nsagent("agent", "--dry-run", *flags, timeout=300)
    assert done.returncode == 0, done.stderr
    words = [line.split() for line in done.stdout.splitlines() if line.startswith(" ")]
    return {family: int(number) for number, family in words}


def test_the_estimate_is_what_a_scrape_has(world: list[str], cgroup_name: str) -> None:
    layout = read_layout()
    for number in range(30):
        Group.create(layout, f"{cgroup_name}/{number}")
    flags = ["--cgroup-include", f"/{cgroup_name}", "--no-runtimes", "--retain", "0", *world]
    with agents.running(world, "--ephemeral", *flags[:5]) as agent:
        wait_for(lambda: b"\nnsagent_namespace_mounts{" in agent.get(), 300, "the agent to know who is in each namespace")
        before = sorted(os.listdir(agent.state_dir))

        def compare() -> bool:
            """Others make namespaces meanwhile, and end them; and on a busy machine a file may be too slow, here or there."""
            plan = planned(*flags)
            scrape = {name: n for name, n in count(agent.get()).items() if not name.startswith(OWN)}
            other = {name: (plan.get(name), scrape.get(name)) for name in EXACT if plan.get(name) != scrape.get(name)}
            return not other and abs(sum(plan.values()) / sum(scrape.values()) - 1) < 0.2

        wait_for(compare, 300, "an estimate within 20 %")
        assert sorted(os.listdir(agent.state_dir)) == before
        for figures in [line for line in agent.get().decode().splitlines() if line.startswith("nsagent_bpf_map_memory_bytes{")]:
            name, real = figures.split('"')[1], float(figures.split()[-1])
            estimate = maps.map_bytes(**abi.map_specs(10240, 1 << 20)[name])
            assert abs(estimate - real) <= max(0.02 * real, 4096), name


def test_it_leaves_nothing(tmp_path: Path, pin_dir: Path) -> None:
    state = tmp_path / "state"
    done = run_nsagent("agent", "--dry-run", "--state-dir", str(state), "--pin-dir", str(pin_dir), "--no-runtimes", timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mode         cgroups ")
    assert "accounting exact, by BPF" in done.stdout
    assert not state.exists()
    assert not pin_dir.exists()
