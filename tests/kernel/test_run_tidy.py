"""Nothing is left: after success, failure, a bomb, a daemon; and after SIGKILL of the launcher, when the next run has swept."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nsagent import jobs as registry
from nsagent.launch import launcher, measure
from tests import support
from tests.kernel.launching import Jobs, running

pytestmark = pytest.mark.kernel


DAEMON = "setsid sh -c 'exec sleep {marker}' >/dev/null 2>&1 & sleep 0.2; echo started"


@pytest.mark.parametrize("isolate", ["pid,mnt", "none"])
def test_a_daemon_does_not_outlive_its_job(jobs: Jobs, isolate: str) -> None:
    marker = f"7{os.getpid()}.{len(isolate)}"
    control = subprocess.Popen(["sleep", marker])
    try:
        support.wait_for(lambda: running(marker) == [control.pid], what="the control: it would be seen")
        done = jobs.run("--isolate", isolate, "--", "sh", "-c", DAEMON.format(marker=marker))
        assert (done.code, done.out) == (0, "started\n")
        assert running(marker) == [control.pid]
    finally:
        control.kill()
        control.wait()
    assert jobs.cgroups() == []


BOMB = "import os\nwhile True:\n  try: os.fork()\n  except OSError: pass"


@pytest.mark.parametrize("isolate", ["pid,mnt", "none"])
def test_a_fork_bomb_under_pids_and_timeout(jobs: Jobs, isolate: str) -> None:
    args = ["--isolate", isolate, "--pids", "60", "--stop-timeout", "300ms"]
    for timeout in ("2s", "20s", "60s"):
        done = jobs.run(*args, "--timeout", timeout, "--", "python3", "-c", BOMB)
        assert (done.code, done.report["outcome"]) == (124, "timeout")
        if done.report["usage"]["pids_peak"] == 60:  # the control: it was a bomb
            break
    else:
        pytest.fail("the bomb never reached its limit")
    assert jobs.cgroups() == []


@pytest.mark.parametrize("more", [[], ["--isolate", "none"], ["--init"]])
def test_kill_9_of_the_launcher_leaves_nothing_after_a_sweep(jobs: Jobs, more: list[str]) -> None:
    marker = f"8{os.getpid()}.{len(more)}"
    script = f"setsid sleep {marker} & echo ready; exec sleep {marker}"
    name, argv = jobs.argv(*more, "--", "sh", "-c", script)
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    support.wait_for(lambda: len(running(marker)) >= 2)
    assert jobs.cgroups(name)  # the control: there is something to sweep
    process.kill()
    process.wait()
    assert jobs.registered()[0]["name"] == name
    assert jobs.run("--", "true").code == 0  # sweeps
    assert running(marker) == []
    assert jobs.cgroups(name) == []
    assert jobs.registered() == []
    assert {job["outcome"] for job in jobs.registered("ended")} == {"abandoned", "success"}
    process.stdout.close()


def test_without_cap_kill_a_sweep_leaves_another_users_process(tmp_path: Path) -> None:
    """The agent of the DaemonSet has no CAP_KILL: it is no reason to end, and the next sweep that may does it."""
    drop = ["setpriv", "--bounding-set=-kill", "--inh-caps=-all"]
    code = "import sys; from nsagent.launch import launcher; print(launcher.sweep(sys.argv[1]))"
    with subprocess.Popen(["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "sleep", "1d"]) as process:
        try:
            support.wait_for(lambda: os.stat(f"/proc/{process.pid}").st_uid == 65534, what="another user's process")
            known = {"pid": process.pid, "start_ticks": measure.read_start_ticks(process.pid)}
            job = registry.JobRecord(registry.new_id("job"), "job", ("sleep",), os.getpid(), time.time(), **known)  # type: ignore[arg-type]
            registry.create(str(tmp_path), job).release()
            done = subprocess.run([*drop, sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
            assert process.poll() is None
            assert launcher.sweep(str(tmp_path)) == [job.id]
            assert process.wait(120) == -signal.SIGKILL
        finally:
            process.kill()


def test_a_sweep_leaves_living_jobs_alone(jobs: Jobs) -> None:
    name, argv = jobs.argv("--", "sh", "-c", "echo ready; read line; exit 5")
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    assert launcher.sweep(str(jobs.state)) == []
    assert jobs.run("--", "true").code == 0
    assert jobs.cgroups(name)
    process.communicate("go\n", timeout=120)
    assert process.returncode == 5


def test_cmd_dies_with_its_launcher_at_once(jobs: Jobs) -> None:
    _, argv = jobs.argv("--", "sh", "-c", "echo ready; exec sleep 1000")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    (record,) = jobs.registered()
    pidfd = os.pidfd_open(record["pid"])
    process.kill()
    process.wait()
    assert select.select([pidfd], [], [], 120)[0], "CMD lives on"
    os.close(pidfd)
    process.stdout.close()
    assert support.wait_for(lambda: launcher.sweep(str(jobs.state))) == [record["id"]]
    assert jobs.cgroups() == []


def test_kill_9_at_any_moment(jobs: Jobs) -> None:
    """A launcher killed at moments spread over the time that it takes to come to CMD leaves what a sweep finds."""
    begin = time.monotonic()
    _, process = jobs.start("--", "sh", "-c", "echo ready; exec sleep 1000")
    whole = time.monotonic() - begin
    process.kill()
    process.communicate()
    assert jobs.registered()  # the control: there is something to sweep
    for step in range(30):
        _, argv = jobs.argv("--", "sleep", "1000")
        process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True)
        time.sleep(whole * step / 25)
        process.kill()
        process.communicate()

    def swept() -> bool:  # the child of the last one may hold the lock until it has noticed that the launcher died
        launcher.sweep(str(jobs.state))
        return not jobs.registered()

    support.wait_for(swept, 60, what="the end of every job")
    assert jobs.cgroups() == []


def test_50_runs_leave_no_cgroup_and_50_records(jobs: Jobs) -> None:
    name, argv = jobs.argv("--", "true", report=False)
    script = 'for i in $(seq 50); do "$@" 2>/dev/null || exit 1; done'
    subprocess.run(["sh", "-c", script, "sh", *argv], check=True, timeout=900)
    assert jobs.cgroups(name) == []
    assert len(jobs.registered("ended")) == 50
    assert jobs.registered() == []
