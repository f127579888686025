"""The commands about jobs: seen from outside while they run, signalled, stopped, paused, waited for, forgotten."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.kernel.launching import Jobs, running

pytestmark = pytest.mark.kernel

WAITING = ("--", "sh", "-c", "echo ready; read line; exit 5")
STUBBORN = ("--", "sh", "-c", 'trap "" TERM; echo ready; while :; do sleep 1; done')


def ps(jobs: Jobs, *args: str) -> list[dict[str, Any]]:
    done = jobs.command("ps", "--json", *args)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def test_ps_and_inspect_show_what_runs_and_what_ended(jobs: Jobs) -> None:
    first = jobs.run("--", "sh", "-c", "exit 3")
    name, process = jobs.start(*WAITING, stdin=subprocess.PIPE)
    (row,) = ps(jobs)
    assert (row["name"], row["state"], row["command"][0]) == (name, "running", "sh")
    assert {row["id"]} == {path.name for path in jobs.cgroups(name)}
    assert Path(f"/proc/{row['pid']}/comm").read_text() == "sh\n"
    assert [(r["name"], r["state"]) for r in ps(jobs, "-a")] == [(first.name, "failure"), (name, "running")]
    assert jobs.command("ps", "-q").stdout == f"{row['id']}\n"
    head, line = jobs.command("ps").stdout.splitlines()
    assert head.split() == ["JOB", "STATE", "CODE", "PID", "STARTED", "RAN", "COMMAND"]
    assert line.split()[:4] == [row["id"], "running", "-", str(row["pid"])]
    found = json.loads(jobs.command("inspect", name).stdout)
    assert found["usage"]["pids_peak"] >= 1
    assert "report" not in found
    process.communicate("\n", timeout=60)
    found = json.loads(jobs.command("inspect", name).stdout)
    assert (found["state"], found["exit_code"]) == ("failure", 5)
    assert found["report"] == jobs.report(name)
    assert ps(jobs) == []


@pytest.mark.parametrize("command", ["inspect", "wait", "stop", "kill", "pause", "resume", "rm"])
def test_an_unknown_job_is_an_error_with_a_hint(jobs: Jobs, command: str) -> None:
    jobs.run("--", "true")
    done = jobs.command(command, "nosuch")
    assert (done.returncode, done.stdout) == (125, "")
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: there is no job 'nosuch' in ")
    assert hint.startswith("hint: 'nsagent ps --all'")


def test_wait_ends_as_the_job_does(jobs: Jobs) -> None:
    name, process = jobs.start(*WAITING, stdin=subprocess.PIPE)
    good = jobs.run("--", "true")
    argv = [*support.nsagent_argv(), "wait", "--state-dir", str(jobs.state), good.name, name]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as waiter:
        assert waiter.stdout is not None
        assert waiter.stdout.readline().endswith(": exited with 0\n")
        process.communicate("\n", timeout=60)
        assert waiter.stdout.readline().endswith(": exited with 5\n")
        assert waiter.wait(timeout=60) == 5
    assert jobs.command("wait", good.name).returncode == 0


def test_wait_for_a_job_whose_launcher_is_killed(jobs: Jobs) -> None:
    name, process = jobs.start(*WAITING, stdin=subprocess.PIPE)
    argv = [*support.nsagent_argv(), "wait", "--state-dir", str(jobs.state), name]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as waiter:
        process.kill()
        assert waiter.communicate(timeout=60)[0].endswith(": its launcher was killed\n")
        assert waiter.returncode == 125
    process.communicate()
    assert jobs.cgroups() == []


@pytest.mark.parametrize("isolate", ["pid,mnt", "none"])
def test_stop_asks_first_and_kills_then(jobs: Jobs, isolate: str) -> None:
    name, process = jobs.start(
        "--isolate", isolate, "--", "sh", "-c", 'trap "exit 9" TERM; echo ready; while :; do sleep 0.05; done'
    )
    assert jobs.command("stop", "--timeout", "60s", name).returncode == 0
    process.communicate(timeout=60)
    assert (process.returncode, jobs.report(name)["outcome"]) == (9, "failure")
    name, process = jobs.start("--isolate", isolate, *STUBBORN)
    assert jobs.command("stop", "--timeout", "100ms", name).returncode == 0
    process.communicate(timeout=60)
    assert (process.returncode, jobs.report(name)["reason"]) == (137, "ended by SIGKILL")
    assert jobs.command("stop", name).returncode == 0  # ended: that is what was wanted
    assert jobs.cgroups() == []


def test_kill_sends_any_signal_and_by_default_ends_everything(jobs: Jobs) -> None:
    marker = f"9{os.getpid()}.1"
    name, process = jobs.start(
        "--", "sh", "-c", f'trap "echo got" USR1; setsid sleep {marker} & echo ready; while :; do sleep 0.05; done'
    )
    support.wait_for(lambda: running(marker), 60)
    assert jobs.command("kill", "-s", "USR1", name).returncode == 0
    assert process.stdout is not None
    assert process.stdout.readline() == "got\n"
    assert jobs.command("kill", "--signal", "nosuch", name).returncode == 2
    assert jobs.command("kill", name).returncode == 0
    process.communicate(timeout=60)
    assert (process.returncode, running(marker)) == (137, [])
    again = jobs.command("kill", name)
    assert (again.returncode, again.stderr.splitlines()[0]) == (125, f"error: job {jobs.report(name)['id']} has ended")


def test_kill_of_a_job_that_is_stopped(jobs: Jobs) -> None:
    name, process = jobs.start(*WAITING, stdin=subprocess.PIPE)
    (record,) = jobs.registered()
    assert jobs.command("kill", "-s", "STOP", name).returncode == 0

    def state() -> str:
        return Path(f"/proc/{record['pid']}/stat").read_text().rpartition(")")[2].split()[0]

    support.wait_for(lambda: state() == "T", 60)
    assert jobs.command("kill", "-s", "CONT", name).returncode == 0
    support.wait_for(lambda: state() == "S", 60)
    assert jobs.command("kill", "-s", "STOP", name).returncode == 0
    support.wait_for(lambda: state() == "T", 60)
    assert jobs.command("stop", name).returncode == 0
    process.communicate(timeout=60)
    assert (process.returncode, jobs.report(name)["reason"]) == (143, "ended by SIGTERM")


def test_pause_and_resume(jobs: Jobs) -> None:
    name, process = jobs.start("--", "sh", "-c", "echo ready; while :; do echo x; done")
    assert process.stdout is not None
    assert jobs.command("pause", name).returncode == 0
    assert ps(jobs)[0]["state"] == "paused"
    os.set_blocking(process.stdout.fileno(), False)

    def drained() -> bool:
        try:
            return not os.read(process.stdout.fileno(), 1 << 20)  # type: ignore[union-attr]
        except BlockingIOError:
            return True

    support.wait_for(drained, 60)
    assert drained()  # and nothing comes any more
    assert jobs.command("resume", name).returncode == 0
    assert ps(jobs)[0]["state"] == "running"
    support.wait_for(lambda: not drained(), 60, "its output")
    assert jobs.command("pause", name).returncode == 0
    assert jobs.command("stop", name).returncode == 0  # paused or not
    os.set_blocking(process.stdout.fileno(), True)
    process.communicate(timeout=60)
    assert process.returncode == 143
    assert jobs.command("pause", name).returncode == 125
    assert jobs.cgroups() == []


def test_rm_forgets_what_ended_and_only_by_force_what_runs(jobs: Jobs) -> None:
    done = jobs.run("--", "true")
    assert jobs.command("rm", done.name).returncode == 0
    assert ps(jobs, "-a") == []
    name, process = jobs.start(*STUBBORN)
    refused = jobs.command("rm", name)
    assert (refused.returncode, len(ps(jobs))) == (125, 1)
    assert "--force" in refused.stderr
    assert jobs.command("rm", "--force", name).returncode == 0
    process.communicate(timeout=60)
    assert process.returncode == 137
    assert ps(jobs, "-a") == []
    assert jobs.cgroups() == []


def test_a_launcher_stopped_on_its_terminal_is_no_obstacle(jobs: Jobs) -> None:
    name, process = jobs.start(*WAITING, stdin=subprocess.PIPE)
    process.send_signal(signal.SIGSTOP)
    os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
    assert jobs.command("stop", "--timeout", "60s", name).returncode == 0
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_the_oldest_is_first(jobs: Jobs) -> None:
    names = [jobs.run("--", "true").name for _ in range(3)]
    assert [row["name"] for row in ps(jobs, "-a")] == names
    assert [row["start"] for row in ps(jobs, "-a")] == sorted(row["start"] for row in ps(jobs, "-a"))
    assert ps(jobs, "-a")[-1]["end"] <= time.time()
