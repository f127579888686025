"""An agent that shows some cgroups, or some families: it reads no file of the others, and the sums above them have all."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import pytest

from nsagent.cgroups.layout import read_layout
from nsagent.metrics import catalogue
from tests.kernel.accesses import Accesses
from tests.kernel.agents import Agent, Samples, get, running
from tests.kernel.test_agent_metrics import BURN, directories, member, usage_ns
from tests.support import require_root, wait_for

pytestmark = pytest.mark.kernel


CORE = (
    "cgroup_cpu_usage_seconds_total",
    "cgroup_memory_usage_bytes",
    "cgroup_pids",
    "namespace_cpu_seconds_total",
    "syscalls_total",
)


@pytest.fixture(scope="module", autouse=True)
def _root() -> None:
    require_root()


def nested(path: str) -> dict[str, Path]:
    """Make a cgroup with all above it; return its directories."""
    names = path.split("/")
    return [directories("/".join(names[:depth])) for depth in range(1, len(names) + 1)][-1]


def shown(samples: Samples, top: str) -> set[str]:
    """Return the cgroups below `top` that any series is about."""
    found = {value for _, labels in samples for name, value in labels if name == "cgroup"}
    return {path for path in found if path == top or path.startswith(f"{top}/")}


def skipped(samples: Samples, reason: str) -> float:
    value = get(samples, "nsagent_cgroups_skipped_total", reason=reason)
    assert value is not None
    return value


def test_what_is_not_selected_is_not_opened_and_counts_above(world: list[str], cgroup_name: str, tmp_path: Path) -> None:
    top = f"/{cgroup_name}"
    nested(f"{cgroup_name}/wanted")
    unwanted = nested(f"{cgroup_name}/not\\wanted/inner")
    size = 4 << 20
    work = f"f = open({str(tmp_path / 'file')!r}, 'wb'); f.write(bytes({size})); f.flush(); os.fsync(f.fileno())"
    flags = ["--cgroup-include", top, "--cgroup-exclude", "not\\wan*", "--ephemeral"]
    with running(world, *flags) as agent, member(f"{cgroup_name}/not\\wanted/inner", BURN.format(seconds=0.2) + work):
        agent.scrape()
        new = nested(f"{cgroup_name}/wanted/new")
        seen, unseen = Accesses(agent.process.pid, *set(new.values())), Accesses(agent.process.pid, *set(unwanted.values()))
        try:
            samples = agent.scrape()
            assert shown(samples, top) == {top, f"{top}/wanted", f"{top}/wanted/new"}
            assert unseen.names() == set()
            assert seen.names(), "those of a selected one are read, once at least"
        finally:
            seen.close()
            unseen.close()
        name, inner = "nsagent_cgroup_cpu_usage_seconds_total", usage_ns(unwanted)
        assert inner >= 200_000_000
        assert round((get(samples, name, cgroup=top) or 0) * 1e9) >= inner, "the kernel's own sum"
        written = get(samples, "nsagent_cgroup_storage_bytes_total", cgroup=top, operation="write")
        assert (written or 0) >= size, "the agent's own sum"
        assert get(samples, "nsagent_cgroup_storage_bytes_total", cgroup="/", operation="write") is not None
        assert get(samples, name, cgroup="/") is not None
        assert skipped(samples, "excluded") == 2
        others = skipped(samples, "not_included")
        made = nested(f"{cgroup_name}/not\\wanted/inner/new")
        assert skipped(agent.scrape(), "excluded") == 3
        assert skipped(agent.scrape(), "excluded") == 3, "each once"
        for place in set(made.values()):
            place.rmdir()
        samples = agent.scrape()
        assert shown(samples, top) == {top, f"{top}/wanted", f"{top}/wanted/new"}, "its end is not shown either"
        assert skipped(samples, "not_included") >= others


def test_a_new_selection_by_sighup(world: list[str], cgroup_name: str, tmp_path: Path) -> None:
    top, file = f"/{cgroup_name}", tmp_path / "agent.toml"
    nested(f"{cgroup_name}/a/b")
    file.write_text(f'cgroup-include = ["{top}"]\n')

    def becomes(agent: Agent, text: str, paths: set[str]) -> None:
        file.write_text(text)
        agent.process.send_signal(signal.SIGHUP)
        wait_for(lambda: shown(agent.scrape(), top) == paths, what=f"{paths}")

    with running(world, "--no-bpf", "--config", str(file)) as agent:
        assert shown(agent.scrape(), top) == {top, f"{top}/a", f"{top}/a/b"}
        becomes(agent, f'cgroup-include = ["{top}"]\nmax-depth = 2\n', {top, f"{top}/a"})
        becomes(agent, f'cgroup-include = ["{top}"]\ncgroup-exclude = ["{top}/a"]\n', {top})
        becomes(agent, "max-depth = 0\n", set())
        before = skipped(agent.scrape(), "excluded")
        file.write_text('cgroup-exclude = [""]\n')
        agent.process.send_signal(signal.SIGHUP)
        wait_for(lambda: get(agent.scrape(), "nsagent_config_last_reload_success") == 0)
        becomes(agent, f'cgroup-include = ["{top}"]\n', {top, f"{top}/a", f"{top}/a/b"})
        samples = agent.scrape()
        assert skipped(samples, "excluded") == before
        assert skipped(samples, "too_deep") >= 2
        assert get(samples, "nsagent_cgroup_cpu_usage_seconds_total", cgroup=f"{top}/a/b") == 0


def test_what_no_path_leads_to_is_counted(world: list[str], cgroup_name: str) -> None:
    """Levels of 255 bytes: the first that PATH_MAX excludes counts once, as does one that is made when the agent runs."""
    layout = read_layout()
    hierarchy = layout.of("pids") or layout.v2
    assert hierarchy is not None
    most = (os.pathconf("/", "PC_PATH_MAX") - len(f"{hierarchy.mountpoint}/{cgroup_name}/.") - 1) // 256
    with contextlib.ExitStack() as stack:

        def make(name: str, above: int) -> int:
            os.mkdir(name, dir_fd=above)
            stack.callback(os.rmdir, name, dir_fd=above)
            directory = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=above)
            stack.callback(os.close, directory)
            return directory

        root = os.open(hierarchy.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, root)
        levels = [make(cgroup_name, root)]
        for _ in range(most + 3):
            levels.append(make("d" * 255, levels[-1]))
        with running(world, "--no-bpf") as agent:
            samples = agent.scrape()
            assert max(path.count("/") for path in shown(samples, f"/{cgroup_name}")) == 1 + most
            assert skipped(samples, "path_too_long") == 1
            make("e" * 255, levels[most])
            wait_for(lambda: skipped(agent.scrape(), "path_too_long") == 2)
            assert skipped(agent.scrape(), "path_too_long") == 2, "each once"


def test_collectors_that_are_off_read_nothing(world: list[str], cgroup_name: str) -> None:
    optional = {family.name for family in catalogue.FAMILIES if family.collector}
    words = ("memory.stat", "blkio", "io.stat", "pressure", "cpuset", "hugetlb", "rdma", "misc", "freezer", "cgroup.")

    def read(agent: Agent) -> tuple[set[str], set[str]]:
        """Return the families of a scrape, and the files it read of a new cgroup that some collector needs."""
        agent.scrape()
        places = nested(f"{cgroup_name}/{agent.process.pid}")
        accesses = Accesses(agent.process.pid, *set(places.values()))
        try:
            names = {name for name, _ in agent.scrape() if name.startswith("nsagent_")}
            return names, {name for name in accesses.names() if name.startswith(words)} - {"cgroup.controllers"}
        finally:
            accesses.close()

    with running(world, "--ephemeral") as agent:
        everything, files = read(agent)
        assert files
    with running(world, "--ephemeral", "--no-collector", "all") as agent:
        core, files = read(agent)
        assert files == set()
        assert core & optional == set()
        assert core >= everything & {f"nsagent_{name}" for name in CORE}
    some = ("memory-stat", "namespaces", "tasks")
    chosen = {family.name for family in catalogue.FAMILIES if family.collector in some}
    flags = [word for name in some for word in ("--collector", name)]
    with running(world, "--ephemeral", "--no-collector", "all", *flags) as agent:
        names, files = read(agent)
        assert names & optional == everything & chosen
        assert files == {"memory.stat"}


def test_no_more_series_than_allowed(world: list[str], cgroup_name: str, tmp_path: Path) -> None:
    file = tmp_path / "agent.toml"
    file.write_text("max-series = 1000\n")
    top, many = f"/{cgroup_name}", {f"/{cgroup_name}/{number}" for number in range(150)}
    for path in many:
        nested(path[1:])

    def dropped(samples: Samples) -> float:
        return get(samples, "nsagent_series_dropped_total", reason="max_series") or 0

    with running(world, "--no-bpf", "--config", str(file)) as agent:
        samples = agent.scrape()
        assert sum(name.startswith("nsagent_") for name, _ in samples) <= 1000
        assert dropped(samples) > 0
        assert shown(samples, "/"), "the root is among what is left"
        first = shown(samples, top)
        assert many - first
        assert shown(agent.scrape(), top) == first, "the choice holds"
        file.write_text("max-series = 0\n")
        agent.process.send_signal(signal.SIGHUP)
        wait_for(lambda: shown(agent.scrape(), top) >= many, what="all of them")
        assert "event=series_dropped max_series=1000" in agent.stop()
