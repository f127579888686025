"""The whole of it: a job launched by `nsagent run`, traced and accounted by a real agent, read by a real HTTP scrape."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests import support

pytestmark = pytest.mark.kernel

FREES_UNSEEN_AT_MOST = 0.02  # of the job's CPU, where PID 1 of this host hides frees from BPF


class Agent:
    """A real agent process in a world of its own."""

    def __init__(self, state: Path, pins: Path, cache: str) -> None:
        self.state = state
        self.world = ["--state-dir", str(state)]
        self.argv = [*support.nsagent_argv(), "agent", "--listen", "127.0.0.1:0", "--pin-dir", str(pins), "--cache-dir", cache]
        self.process: subprocess.Popen[str]

    def start(self, *options: str) -> dict[str, Any]:
        """Start it and wait until it is ready; return what it announces of itself."""
        (self.state / "agent.json").unlink(missing_ok=True)
        self.process = subprocess.Popen([*self.argv, *self.world, *options], stderr=subprocess.PIPE, text=True)
        self.log: list[str] = []
        stderr = self.process.stderr
        assert stderr is not None
        threading.Thread(target=lambda: self.log.extend(stderr), daemon=True).start()
        support.wait_for(lambda: self.process.poll() is None and bool(self._ready()), 120, "the agent to be ready")
        return self.facts

    def _ready(self) -> dict[str, Any]:
        try:
            self.facts: dict[str, Any] = json.loads((self.state / "agent.json").read_text())
            with urllib.request.urlopen(f"http://{self.facts['listen']}/-/ready", timeout=120) as answer:
                return self.facts if answer.status == 200 else {}
        except OSError:
            return {}

    def scrape(self) -> Scrape:
        """GET /metrics."""
        with urllib.request.urlopen(f"http://{self.facts['listen']}/metrics", timeout=120) as answer:
            text = answer.read().decode()
        found: dict[tuple[str, frozenset[tuple[str, str]]], float] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in found, f"twice: {key}"
                found[key] = sample.value
        return Scrape(found)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End it by a signal."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait(120)


class Scrape(NamedTuple):
    """One exposition: values by name and labels."""

    samples: dict[tuple[str, frozenset[tuple[str, str]]], float]

    def all(self, name: str, **labels: str) -> dict[frozenset[tuple[str, str]], float]:
        """The samples of `name` that have these labels, by all their labels."""
        return {key: v for (n, key), v in self.samples.items() if n == name and labels.items() <= dict(key).items()}

    def one(self, name: str, **labels: str) -> float:
        """The one sample of `name` that has these labels."""
        (value,) = self.all(name, **labels).values()
        return value

    def sum(self, name: str, **labels: str) -> float:
        """The sum over the samples of `name` that have these labels."""
        return sum(self.all(name, **labels).values())


@pytest.fixture
def agent(state_dir: Path, pin_dir: Path, cache_dir: str) -> Iterator[Agent]:
    one = Agent(state_dir, pin_dir, cache_dir)
    one.start()
    yield one
    if one.process.poll() is None:
        one.stop()


class Ran(NamedTuple):
    """A job that ended: growth of its cgroup's own accounting between its first and last line, its pid namespace, its report."""

    grown_ns: int
    inum: int
    report: dict[str, Any]


JOB = """
usage() {{ for f in /sys/fs/cgroup/cpuacct$1/cpuacct.usage /sys/fs/cgroup$1/cpu.stat; do
    [ -r $f ] && {{ sed -n 's/^usage_usec \\(.*\\)/\\1000/p;s/^[0-9]*$/&/p' $f; return; }}; done; }}
path=$(sed -n 's/^[0-9]*:cpuacct[^:]*://p;s/^0:://p' /proc/self/cgroup | head -1)
usage $path; {load} forks {n} 800; usage $path; readlink /proc/self/ns/pid
"""


def run_job(agent: Agent, directory: Path, load: str, processes: int, *options: str) -> Ran:
    """Run so many processes of about a millisecond each inside `nsagent run --isolate pid,mnt`."""
    out = directory / "report.json"
    script = JOB.format(load=load, n=processes)
    flags = ["--isolate", "pid,mnt", "--report", "json", "--report-file", str(out), *options]
    done = support.run_nsagent("run", *agent.world, *flags, "--", "sh", "-c", script, timeout=120)
    assert done.returncode == 0, done.stderr
    first, last, link = done.stdout.split()
    return Ran(int(last) - int(first), int(link.removeprefix("pid:[").removesuffix("]")), json.loads(out.read_text()))


def test_three_thousand_processes_are_exact_and_the_next_job_has_counters_of_its_own(
    agent: Agent, load: str, tmp_path: Path
) -> None:
    seen: set[tuple[str, str]] = set()
    for _ in range(2):
        job = run_job(agent, tmp_path, load, 3000)
        scrape = agent.scrape()
        mine = {
            (labels["inum"], labels["id"])
            for labels in map(dict, scrape.all("nsagent_namespace_cpu_seconds_total", kind="pid", inum=str(job.inum)))
        } - seen
        ((inum, number),) = mine
        seen |= mine
        labels = {"kind": "pid", "inum": inum, "id": number}
        assert job.grown_ns >= 3000 * 800_000
        least, most = (1 - FREES_UNSEEN_AT_MOST) * job.grown_ns / 1e9, 1.01 * job.report["usage"]["cpu_ns"] / 1e9

        def counted(labels: dict[str, str] = labels, least: float = least) -> Scrape | None:
            """Return a scrape that has the end of each process: the kernel frees them when it has time."""
            found = agent.scrape()
            return found if found.one("nsagent_namespace_cpu_seconds_total", **labels) >= least else None

        found = support.wait_for(counted, what="the frees")
        assert found is not None
        scrape = found
        assert scrape.one("nsagent_namespace_cpu_seconds_total", **labels) <= most
        assert scrape.one("nsagent_namespace_processes_created_total", **labels) >= 3001
        assert not scrape.all("nsagent_namespace_processes", **labels)  # it ended: totals stay for a while, gauges do not
        assert scrape.one("nsagent_namespace_run_queue_seconds_total", **labels) > 0
    assert len(seen) == 2


def test_counters_never_fall_between_scrapes_and_grow_by_the_load(agent: Agent, load: str, tmp_path: Path) -> None:
    before = agent.scrape()
    results: list[Ran] = []
    last, rounds = before, 0
    while rounds < 5:  # a slow machine scrapes once or twice in a job's life, so there is another one
        worker = threading.Thread(target=lambda: results.append(run_job(agent, tmp_path, load, 1500)))
        worker.start()
        while worker.is_alive():
            now = agent.scrape()
            rounds += 1
            for (name, labels), value in last.samples.items():
                if name.startswith(("nsagent_namespace_", "nsagent_syscalls", "nsagent_cgroup_cpu")) and name.endswith("_total"):
                    assert now.samples.get((name, labels), float("inf")) >= value, (name, sorted(labels))
            last = now
        worker.join()
    assert results

    def grown() -> float:
        name = "nsagent_namespace_cpu_seconds_total"
        return agent.scrape().sum(name, kind="user") - before.sum(name, kind="user")

    support.wait_for(lambda: grown() >= 0.98 * sum(job.grown_ns for job in results) / 1e9, what="the load, and its frees")


def test_unshares_and_a_failed_setns_reach_the_exposition_and_the_stream(agent: Agent, load: str) -> None:
    lines: list[str] = []
    with support.nsagent_running("trace", *agent.world, "-o", "json") as trace:
        stdout = trace.stdout
        assert stdout is not None
        threading.Thread(target=lambda: lines.extend(stdout), daemon=True).start()
        support.wait_for(lambda: subprocess.run(["unshare", "-u", "true"], check=True) and lines, what="the stream")
        before = agent.scrape()
        for mode, count in (("unshares", 23), ("bad-setns", 1)):
            subprocess.run([load, mode, str(count)], input="\n\n", text=True, check=True, capture_output=True)
        support.wait_for(lambda: sum('"comm": "load"' in line for line in lines) >= 24, what="24 events")
    after = agent.scrape()
    events = [json.loads(line) for line in lines]
    mine = [event for event in events if event["comm"] == "load"]
    assert [(e["syscall"], e["result"]) for e in mine if e["syscall"] == "unshare"] == [("unshare", "ok")] * 23
    assert [(e["result"], e["fd"]) for e in mine if e["syscall"] == "setns"] == [("EBADF", 999)]

    def grown(name: str, **labels: str) -> float:
        return after.sum(name, **labels) - before.sum(name, **labels)

    assert grown("nsagent_syscalls_total", syscall="unshare", result="ok") >= 23
    assert grown("nsagent_namespace_syscalls_total", syscall="unshare", kind="uts", result="ok") >= 23
    assert grown("nsagent_syscalls_total", syscall="setns", result="EBADF") >= 1
    assert grown("nsagent_trace_events_total") >= 24


def test_a_killed_agent_goes_on_from_where_the_kernel_is(agent: Agent, load: str, tmp_path: Path) -> None:
    first = agent.scrape()
    agent.stop(signal.SIGKILL)
    subprocess.run([load, "burn", "300000"], check=True)  # while no agent lives
    facts = agent.start()
    assert any("adopted=true" in line and "warm=true" in line for line in agent.log), agent.log
    second = agent.scrape()
    for key, value in first.samples.items():
        if key[0] == "nsagent_namespace_cpu_seconds_total":
            assert second.samples.get(key, 0) >= value
    grown = second.sum("nsagent_namespace_cpu_seconds_total", kind="net") - first.sum(
        "nsagent_namespace_cpu_seconds_total", kind="net"
    )
    assert grown >= 0.3
    assert facts["pid"] == agent.process.pid


def test_a_warm_start_needs_no_compiler_and_the_agent_holds_no_llvm(
    agent: Agent, pin_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent.stop()
    unload = support.run_nsagent("bpf", "unload", "--pin-dir", str(pin_dir))
    assert unload.returncode == 0, unload.stderr
    monkeypatch.setenv("NSAGENT_BCC_PYTHON", "/bin/false")
    agent.start()
    assert any("adopted=false" in line and "warm=true" in line for line in agent.log), agent.log
    agent.scrape()
    maps = Path(f"/proc/{agent.process.pid}/maps").read_text()
    assert "LLVM" not in maps
    assert "libbcc" not in maps
    rollup = Path(f"/proc/{agent.process.pid}/smaps_rollup").read_text()
    pss_kb = int(next(line.split()[1] for line in rollup.splitlines() if line.startswith("Pss:")))
    assert 5_000 < pss_kb < 45_000


def test_ephemeral_leaves_nothing_and_sigterm_keeps_the_pins(agent: Agent, pin_dir: Path) -> None:
    agent.stop()
    assert any(pin_dir.glob("abi*/link_*"))
    agent.start("--ephemeral")
    agent.stop()
    assert not any(pin_dir.glob("abi*/link_*"))
    assert not (agent.state / "agent.sock").exists() or not any((agent.state).glob("agent.json"))
