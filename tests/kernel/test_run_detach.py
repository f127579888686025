"""`nsagent run --detach`: it runs on by itself, its log stays small, and whoever kills the supervisor leaves nothing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from nsagent.jobs import log
from tests import support
from tests.kernel.launching import Jobs, running

pytestmark = pytest.mark.kernel


def detached(jobs: Jobs, *args: str) -> tuple[str, str]:
    """Start a job; return (name, id). That its output ends shows that the supervisor has none of its caller's descriptors."""
    name, argv = jobs.argv("--detach", *args)
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return name, done.stdout.rstrip("\n")


def sizes(jobs: Jobs) -> list[int]:
    return [path.stat().st_size for path in (jobs.state / "jobs" / "logs").glob("*")]


def test_a_detached_job_from_start_to_end(jobs: Jobs, tmp_path: Path) -> None:
    script = f"echo out; echo err >&2; read x || echo nothing to read; until [ -e {tmp_path}/go ]; do sleep 0.05; done; exit 4"
    name, job_id = detached(jobs, "--", "sh", "-c", script)
    (record,) = jobs.registered()
    assert (record["id"], record["name"]) == (job_id, name)
    assert os.getsid(record["launcher_pid"]) == record["launcher_pid"]
    assert {os.readlink(f"/proc/{record['launcher_pid']}/fd/{fd}") for fd in (0, 1, 2)} == {"/dev/null"}
    support.wait_for(lambda: jobs.command("logs", name).stdout == "out\nerr\nnothing to read\n", 60, "its log")
    follow = [*support.nsagent_argv(), "logs", "--state-dir", str(jobs.state), "--follow", "--tail", "1", name]
    with subprocess.Popen(follow, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        assert follower.stdout.readline() == "nothing to read\n"
        (tmp_path / "go").touch()
        assert follower.communicate(timeout=60)[0] == ""
        assert follower.returncode == 0
    assert jobs.command("wait", name).returncode == 4
    assert json.loads(jobs.command("inspect", name).stdout)["report"] == jobs.report(name)
    assert jobs.cgroups() == []
    assert jobs.command("rm", name).returncode == 0
    assert sizes(jobs) == []


def test_a_command_that_cannot_run_is_told_at_once(jobs: Jobs) -> None:
    for command, code in (("nosuch-command", 127), ("/etc/passwd", 126)):
        done = jobs.run("--detach", "--", command)
        assert (done.code, done.out) == (code, "")
        assert done.err.startswith(f"error: {command}: ")
    assert sizes(jobs) == []
    support.wait_for(lambda: not jobs.registered(), 60)
    assert {job["outcome"] for job in jobs.registered("ended")} == {"launch_error"}


def test_a_gigabyte_of_output_blocks_nothing_and_the_log_stays_small(jobs: Jobs) -> None:
    name, _ = detached(jobs, "--", "sh", "-c", "echo first; head -c 1073741824 /dev/zero; echo last")
    assert jobs.command("wait", name, timeout=600).returncode == 0
    assert jobs.report(name)["outcome"] == "success"
    assert log.MOST_BYTES < sum(sizes(jobs)) <= 2 * log.MOST_BYTES
    kept = subprocess.run(
        [*support.nsagent_argv(), "logs", "--state-dir", str(jobs.state), name], capture_output=True, check=True
    )
    assert len(kept.stdout) == sum(sizes(jobs))
    assert kept.stdout.endswith(b"\0last\n")
    assert b"first" not in kept.stdout


def test_a_daemon_does_not_outlive_it(jobs: Jobs) -> None:
    marker = f"7{os.getpid()}.9"
    for isolate in ("pid,mnt", "none"):
        script = (
            f"setsid sh -c 'exec sleep {marker}' & until grep -qs {marker} /proc/[0-9]*/cmdline; do sleep 0.05; done; echo up"
        )
        name, _ = detached(jobs, "--isolate", isolate, "--", "sh", "-c", script)
        assert jobs.command("wait", name).returncode == 0
        assert jobs.command("logs", name).stdout == "up\n"  # the control: there was one
        assert running(marker) == []
    assert jobs.cgroups() == []


def test_kill_9_of_the_supervisor_leaves_nothing(jobs: Jobs) -> None:
    marker = f"8{os.getpid()}.9"
    name, job_id = detached(jobs, "--", "sh", "-c", f"setsid sleep {marker} & exec sleep {marker}")
    support.wait_for(lambda: len(running(marker)) == 2, 60)
    (record,) = jobs.registered()
    os.kill(record["launcher_pid"], signal.SIGKILL)
    done = jobs.command("wait", name)
    assert (done.returncode, done.stdout) == (125, f"{job_id}: its launcher was killed\n")
    assert running(marker) == []
    assert jobs.cgroups() == []


def test_stop_and_a_timeout_of_a_detached_job(jobs: Jobs) -> None:
    name, job_id = detached(jobs, "--", "sleep", "1000")
    assert jobs.command("stop", job_id[:-2]).returncode == 0
    assert jobs.report(name)["exit_code"] == 143
    name, _ = detached(jobs, "--timeout", "100ms", "--", "sleep", "1000")
    assert jobs.command("wait", name).returncode == 124
    assert jobs.cgroups() == []


def test_what_attached_jobs_wrote_is_in_no_log(jobs: Jobs) -> None:
    done = jobs.command("logs", jobs.run("--", "echo", "x").name)
    assert done.returncode == 125
    assert "has no log" in done.stderr
