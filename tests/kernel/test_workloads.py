"""Real jobs and a real agent: what ended is in the next scrape, once, whoever is killed."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from nsagent.launch import launcher
from tests import support
from tests.kernel.agents import Samples, get, running
from tests.kernel.launching import Jobs

pytestmark = pytest.mark.kernel


@pytest.fixture
def plain(jobs: Jobs, tmp_path: Path) -> list[str]:
    """The flags of an agent without BPF, which jobs have no need of, and without the node's cgroups, which take time to parse."""
    world = ["--state-dir", str(jobs.state), "--pin-dir", str(tmp_path / "pins")]
    return [*world, "--no-bpf", "--cgroup-include", "/nsagent-test-none"]


def total(samples: Samples, name: str) -> float:
    return sum(value for (series, _), value in samples.items() if series == name)


def test_a_job_of_no_time_is_in_the_next_scrape(jobs: Jobs, plain: list[str]) -> None:
    jobs.state.mkdir()
    with running(plain) as agent:
        assert get(agent.scrape(), "nsagent_workloads_running") == 0
        done = jobs.run("--", "sh", "-c", "head -c 1000000 /dev/zero >/dev/null; exit 3")
        samples = agent.scrape()
        usage = done.report["usage"]
        labels = {"workload": done.name}
        assert get(samples, "nsagent_workload_runs_total", outcome="failure", **labels) == 1
        assert get(samples, "nsagent_workload_last_exit_code", **labels) == 3
        assert get(samples, "nsagent_workload_memory_peak_bytes", **labels) == usage["memory_peak_bytes"]
        assert get(samples, "nsagent_workload_cpu_seconds_total", mode="user", **labels) == usage["user_ns"] / 1e9
        assert get(samples, "nsagent_workload_cpu_seconds_total", mode="system", **labels) == usage["system_ns"] / 1e9
        assert get(samples, "nsagent_workload_io_bytes_total", operation="read", **labels) == usage["io_read_bytes"]
        assert get(samples, "nsagent_workload_duration_seconds_count", **labels) == 1
        assert get(samples, "nsagent_workload_duration_seconds_sum", **labels) == done.report["wall_ns"] / 1e9
        assert get(samples, "nsagent_workload_duration_seconds_bucket", le="+Inf", **labels) == 1
        assert get(samples, "nsagent_workload_last_end_timestamp_seconds", **labels) == pytest.approx(done.report["end"], abs=0.1)
        assert agent.scrape().items() >= {k: v for k, v in samples.items() if k[0].startswith("nsagent_workload")}.items()
        name, argv = jobs.argv("--", "sh", "-c", "echo ready; read x")
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as job:
            assert job.stdout is not None
            assert job.stdout.readline() == "ready\n"
            assert get(agent.scrape(), "nsagent_workloads_running") == 1
            job.communicate("\n", timeout=120)
        samples = agent.scrape()
        assert get(samples, "nsagent_workloads_running") == 0
        assert get(samples, "nsagent_workload_runs_total", workload=name, outcome="success") == 1


def test_counted_once_over_kills_of_both(jobs: Jobs, plain: list[str]) -> None:
    """The agent is killed again and again while jobs come and launchers are killed: each job is in one count, none is in two."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    before = 0.0
    for _ in range(3):
        with running(plain) as agent:
            launchers = [subprocess.Popen(jobs.argv("--", "true", report=False)[1], stderr=subprocess.DEVNULL) for _ in range(5)]
            time.sleep(chance.uniform(0.0, 0.4))
            victim = chance.choice(launchers)
            victim.send_signal(signal.SIGKILL)
            if chance.random() < 0.5:
                agent.scrape()
            agent.kill()
            for each in launchers:
                each.wait(timeout=120)
        now = _counted(jobs, plain)
        assert now >= before, f"seed {seed}"
        before = now
    support.wait_for(lambda: launcher.sweep(str(jobs.state)) == [] and jobs.registered() == [], what="the end of who was killed")
    registered = len(jobs.registered("ended"))
    assert 12 <= registered <= 15
    assert _counted(jobs, plain) == registered, f"seed {seed}"
    assert jobs.cgroups() == []


def _counted(jobs: Jobs, plain: list[str]) -> float:
    with running(plain) as agent:
        found = total(agent.scrape(), "nsagent_workload_runs_total")
        agent.stop()
    return found
