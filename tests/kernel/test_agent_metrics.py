"""What a real agent exports, against what the kernel's own files say and what a known workload did."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from nsagent import namespaces
from nsagent.cgroups.layout import read_layout
from nsagent.metrics import catalogue
from tests.kernel.agents import Agent, Samples, get, info, running
from tests.support import require_root, wait_for

pytestmark = pytest.mark.kernel

BURN = "import time\nend = time.process_time() + {seconds}\nwhile time.process_time() < end: pass\n"
# Joins the cgroups in argv, works, says so, and waits to be told to go.
JOINED = """
import os, sys
for place in sys.argv[1:]:
    open(place + "/cgroup.procs", "w").write("0")
{work}
print("done", flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module", autouse=True)
def _root() -> None:
    require_root()


@pytest.fixture
def agent(world: list[str]) -> Iterator[Agent]:
    with running(world, "--ephemeral") as one:
        yield one


def directories(name: str) -> dict[str, Path]:
    """Make the cgroup `name` in the hierarchies of the controllers we look at; return its directories by controller."""
    layout = read_layout()
    found = {}
    for controller in ("cpu", "cpuacct", "memory", "pids"):
        hierarchy = layout.of(controller) or layout.v2
        if hierarchy is not None:
            found[controller] = Path(hierarchy.mountpoint) / name
            found[controller].mkdir(exist_ok=True)
    return found


@contextlib.contextmanager
def member(name: str, work: str) -> Iterator[tuple[dict[str, Path], subprocess.Popen[str]]]:
    """Have a process in the cgroup `name` that has done `work` and now sleeps."""
    places = directories(name)
    argv = [sys.executable, "-c", JOINED.format(work=work), *{str(place) for place in places.values()}]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "done\n"
            wait_for(lambda: asleep(process.pid), what="the process to sleep")
            yield places, process
        finally:
            process.communicate()


def asleep(pid: int) -> bool:
    """Tell whether a process waits: its CPU time then stands still."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S"


def usage_ns(places: dict[str, Path]) -> int:
    """Read the CPU time of a cgroup from its file."""
    if (places["cpuacct"] / "cpuacct.usage").exists():
        return int((places["cpuacct"] / "cpuacct.usage").read_text())
    lines = (places["cpuacct"] / "cpu.stat").read_text().splitlines()
    return int(dict(line.split() for line in lines)["usage_usec"]) * 1000


def read_id(pid: int | str, kind: str) -> dict[str, str]:
    """Return the labels of a process's namespace."""
    found = namespaces.identify(f"/proc/{pid}/ns/{kind}")
    return {"kind": kind, "inum": str(found.inum), "id": str(found.id)}


def test_every_exported_family_is_in_the_catalogue(agent: Agent) -> None:
    names = {name for name, _ in agent.scrape()}
    endings = {"histogram": ("_bucket", "_sum", "_count")}
    known = {family.name + ending for family in catalogue.FAMILIES for ending in endings.get(family.type, ("",))}
    assert {name for name in names if name.startswith("nsagent_")} <= known
    for name in (
        "nsagent_cgroup_cpu_usage_seconds_total",
        "nsagent_cgroup_memory_usage_bytes",
        "nsagent_cgroup_pids",
        "nsagent_cgroup_storage_bytes_total",
        "nsagent_namespace_cpu_seconds_total",
        "nsagent_namespace_memory_rss_bytes",
        "nsagent_namespace_processes_created_total",
        "nsagent_syscalls_total",
        "nsagent_trace_events_total",
        "nsagent_bpf_map_memory_bytes",
        "process_resident_memory_bytes",
    ):
        assert name in names
    samples = agent.scrape()
    assert get(samples, "nsagent_scrape_samples") == len(samples)
    assert info(samples, "nsagent_mode_info")["accounting"] == "exact"


def test_openmetrics_is_understood(agent: Agent) -> None:
    body = agent.get(Accept="application/openmetrics-text; version=1.0.0").decode()
    parse: Any = text_string_to_metric_families
    names = {family.name for family in parse(body)}
    assert {"nsagent_namespace_cpu_seconds", "nsagent_build", "process_cpu_seconds"} <= names


def test_a_cgroups_figures_are_its_files(agent: Agent, cgroup_name: str) -> None:
    work = BURN.format(seconds=0.3) + "block = bytearray(32 << 20)"
    with member(cgroup_name, work) as (places, _process):
        path = f"/{cgroup_name}"

        def exact() -> Samples | None:
            """Scrape; nothing where the process had still to fall asleep, so that the figure is only between two readings."""
            before = usage_ns(places)
            samples = agent.scrape()
            after = usage_ns(places)
            exported = get(samples, "nsagent_cgroup_cpu_usage_seconds_total", cgroup=path)
            assert exported is not None
            assert before <= round(exported * 1e9) <= after
            assert exported >= 0.3
            return samples if before == after else None

        samples = wait_for(exact, what="an exact figure")
        assert samples is not None
        memory = get(samples, "nsagent_cgroup_memory_usage_bytes", cgroup=path)
        if memory is not None:
            assert memory >= 32 << 20
            assert (get(samples, "nsagent_cgroup_memory_peak_bytes", cgroup=path) or memory) >= memory
        if (places["pids"] / "pids.current").exists():
            assert get(samples, "nsagent_cgroup_pids", cgroup=path) == 1
            assert get(samples, "nsagent_cgroup_pids_limit", cgroup=path) is None, "no limit is set"
            (places["pids"] / "pids.max").write_text("17")
            assert get(agent.scrape(), "nsagent_cgroup_pids_limit", cgroup=path) == 17


def test_storage_is_counted_and_summed_up_the_tree(agent: Agent, cgroup_name: str, tmp_path: Path) -> None:
    size = 8 << 20
    work = f"f = open({str(tmp_path / 'file')!r}, 'wb'); f.write(bytes({size})); f.flush(); os.fsync(f.fileno())"
    directories(cgroup_name)
    with member(f"{cgroup_name}/inner", work):
        samples = agent.scrape()
        inner = get(samples, "nsagent_cgroup_storage_bytes_total", cgroup=f"/{cgroup_name}/inner", operation="write")
        outer = get(samples, "nsagent_cgroup_storage_bytes_total", cgroup=f"/{cgroup_name}", operation="write")
        root = get(samples, "nsagent_cgroup_storage_bytes_total", cgroup="/", operation="write")
        assert inner is not None
        assert size <= inner < size + (1 << 20)
        assert outer == inner
        assert root is not None
        assert root >= inner


def test_a_cgroup_that_ended_stays_for_a_while_and_its_parent_keeps_its_share(
    agent: Agent, cgroup_name: str, tmp_path: Path
) -> None:
    size = 4 << 20
    work = f"f = open({str(tmp_path / 'file')!r}, 'wb'); f.write(bytes({size})); f.flush(); os.fsync(f.fileno())"
    directories(cgroup_name)
    inner, outer = f"/{cgroup_name}/inner", f"/{cgroup_name}"
    with member(f"{cgroup_name}/inner", BURN.format(seconds=0.1) + work) as (places, _process):
        last = get(agent.scrape(), "nsagent_cgroup_cpu_usage_seconds_total", cgroup=inner)
    for place in set(places.values()):
        wait_for(lambda place=place: not (place / "cgroup.procs").read_text())  # type: ignore[misc]
        place.rmdir()
    for _ in range(2):
        samples = agent.scrape()
        assert (get(samples, "nsagent_cgroup_cpu_usage_seconds_total", cgroup=inner) or 0) >= (last or 0)
        assert get(samples, "nsagent_cgroup_memory_usage_bytes", cgroup=inner) is None, "a gauge of what is gone"
        assert (get(samples, "nsagent_cgroup_storage_bytes_total", cgroup=inner, operation="write") or 0) >= size
        assert (get(samples, "nsagent_cgroup_storage_bytes_total", cgroup=outer, operation="write") or 0) >= size
    directories(f"{cgroup_name}/inner")
    samples = agent.scrape()
    assert get(samples, "nsagent_cgroup_cpu_usage_seconds_total", cgroup=inner) == 0, "a new one begins at 0"
    assert get(samples, "nsagent_cgroup_storage_bytes_total", cgroup=inner, operation="write") == 0
    assert (get(samples, "nsagent_cgroup_storage_bytes_total", cgroup=outer, operation="write") or 0) >= size


def test_retain_0_forgets_at_once(world: list[str], cgroup_name: str) -> None:
    with running(world, "--ephemeral", "--no-bpf", "--retain", "0") as agent:
        directories(cgroup_name)
        name = "nsagent_cgroup_cpu_usage_seconds_total"
        assert get(agent.scrape(), name, cgroup=f"/{cgroup_name}") == 0
        for place in set(directories(cgroup_name).values()):
            place.rmdir()
        assert get(agent.scrape(), name, cgroup=f"/{cgroup_name}") is None


def test_a_namespaces_figures(agent: Agent) -> None:
    work = BURN.format(seconds=0.2) + "print('done', flush=True); import sys; sys.stdin.read()"
    argv = ["unshare", "--uts", sys.executable, "-c", work]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        wait_for(lambda: asleep(process.pid), what="the process to sleep")
        labels = read_id(process.pid, "uts")
        samples = agent.scrape()
        assert (get(samples, "nsagent_namespace_cpu_seconds_total", **labels) or 0) >= 0.2
        assert get(samples, "nsagent_namespace_processes", **labels) == 1
        assert get(samples, "nsagent_namespace_threads", **labels, state="sleeping") == 1
        rss = sum(
            get(samples, "nsagent_namespace_memory_rss_bytes", **labels, type=kind) or 0 for kind in ("anon", "file", "shmem")
        )
        status = Path(f"/proc/{process.pid}/status").read_text()
        resident = int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS"))) * 1024
        assert abs(rss - resident) <= 512 << 10, "the CPUs' own parts may be missing"
        process.communicate()
    samples = agent.scrape()
    assert (get(samples, "nsagent_namespace_cpu_seconds_total", **labels) or 0) >= 0.2, "its total is still shown"
    assert get(samples, "nsagent_namespace_processes", **labels) is None


def test_23_unshares_and_a_failed_setns_are_counted(agent: Agent) -> None:
    def count(syscall: str, result: str) -> float:
        return get(agent.scrape(), "nsagent_syscalls_total", syscall=syscall, result=result) or 0

    before = get(agent.scrape(), "nsagent_namespace_syscalls_total", syscall="unshare", kind="uts", result="ok") or 0
    failed = count("setns", "EINVAL")
    code = (
        "from nsagent import libc\nfor _ in range(23): libc.unshare(libc.CLONE_NEWUTS)\n"
        "try: libc.setns(0)\nexcept OSError as error: assert error.errno == 22, error\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdin=subprocess.DEVNULL)
    after = get(agent.scrape(), "nsagent_namespace_syscalls_total", syscall="unshare", kind="uts", result="ok") or 0
    assert after - before >= 23, "others on this machine may unshare too"
    assert count("setns", "EINVAL") - failed >= 1


def test_without_bpf_usage_is_approximate_and_says_so(world: list[str]) -> None:
    with running(world, "--no-bpf") as agent:
        samples = agent.scrape()
        mode = info(samples, "nsagent_mode_info")
        assert (mode["bpf"], mode["accounting"]) == ("off", "approximate")
        reasons = {dict(labels)["feature"] for name, labels in samples if name == "nsagent_feature_info"}
        assert {"exact_accounting", "tracing"} <= reasons
        assert get(samples, "nsagent_feature_available", feature="exact_accounting") == 0
        labels = read_id("self", "pid")
        assert (get(samples, "nsagent_namespace_processes", **labels) or 0) > 1
        assert get(samples, "nsagent_namespace_processes_created_total", **labels) is None, "absent, not 0"
        assert not [name for name, _ in samples if "syscalls_total" in name and "io" not in name]
        assert agent.get("/-/ready")


def test_where_bpf_cannot_be_had_the_agent_serves_what_it_can(state_dir: Path, tmp_path: Path) -> None:
    """No bpffs under the pin directory stands for any reason why attaching fails."""
    with running(["--state-dir", str(state_dir), "--pin-dir", str(tmp_path / "nobpffs")]) as agent:
        samples = agent.scrape()
        assert info(samples, "nsagent_mode_info")["bpf"] == "off"
        reasons = {dict(labels)["feature"]: dict(labels)["reason"] for name, labels in samples if name == "nsagent_feature_info"}
        assert "is not on a bpffs" in reasons["exact_accounting"]
        assert "event=degraded" in agent.stop()


def test_an_ordinary_user_gets_the_cgroups(state_dir: Path) -> None:
    os.chown(state_dir, 65534, 65534)
    for above in state_dir.parents[:3]:
        os.chmod(above, 0o755)
    with running(
        ["--state-dir", str(state_dir), "--pin-dir", "/sys/fs/bpf/nsagent-test-user"], user=65534, group=65534, extra_groups=[]
    ) as agent:
        samples = agent.scrape()
        assert get(samples, "nsagent_cgroup_cpu_usage_seconds_total", cgroup="/") is not None
        assert info(samples, "nsagent_mode_info")["accounting"] == "approximate"
        assert get(samples, "nsagent_collector_success", collector="usage") == 1


def test_small_and_without_a_compiler(agent: Agent) -> None:
    samples = max(len(agent.scrape()) for _ in range(3))
    maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert "libLLVM" not in maps
    assert "libbcc" not in maps
    rollup = Path(f"/proc/{agent.process.pid}/smaps_rollup").read_text().splitlines()
    pss = next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
    assert pss < (45 << 10) + max(0, samples - 10_000), "1 KiB a sample where somebody made thousands of cgroups"


def test_runs_of_programs_are_told_on_request_only(world: list[str], agent: Agent) -> None:
    runs, seconds = "nsagent_bpf_program_runs_total", "nsagent_bpf_program_run_seconds_total"
    assert not {name for name, _ in agent.scrape()} & {runs, seconds}
    agent.stop()
    with running(world, "--ephemeral", "--bpf-stats") as counting:
        before = counting.scrape()
        for _ in range(5):
            subprocess.run(["true"], check=True)
        after = counting.scrape()
        programs = {dict(labels)["program"] for name, labels in after if name == runs}
        assert programs == {dict(labels)["program"] for name, labels in after if name == seconds}
        grown = [name for name in programs if (get(after, runs, program=name) or 0) >= (get(before, runs, program=name) or 0) + 5]
        assert grown, "a hook runs once for each of five births"
        assert all((get(after, seconds, program=name) or 0) > (get(before, seconds, program=name) or 0) for name in grown)
