"""The endings of docs/jobs.md that other tests do not have: no memory, jobs that stand still, closed descriptors, much output."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests import support
from tests.kernel.launching import Jobs

pytestmark = pytest.mark.kernel


def test_out_of_memory(jobs: Jobs) -> None:
    done = jobs.run("--memory", "40M", "--", "python3", "-c", "bytearray(200 << 20)")
    assert (done.code, done.report["outcome"]) == (137, "oom")
    assert done.report["usage"]["oom_kills"] >= 1
    assert jobs.run("--memory", "400M", "--", "python3", "-c", "bytearray(200 << 20)").code == 0  # the control
    assert jobs.cgroups() == []


@pytest.mark.parametrize("how", ["STOP", "pause"])
def test_a_timeout_of_a_job_that_stands_still(jobs: Jobs, how: str, tmp_path: Path) -> None:
    script = f'trap "" TERM; echo ready; until [ -e {tmp_path}/x ]; do sleep 0.05; done'
    name, process = jobs.start("--timeout", "5s", "--stop-timeout", "100ms", "--", "sh", "-c", script)
    words = ("pause", name) if how == "pause" else ("kill", "-s", how, name)
    jobs.command(*words)  # on a slow machine it may have ended by now: that is the same ending
    process.communicate(timeout=120)
    assert (process.returncode, jobs.report(name)["outcome"]) == (124, "timeout")
    assert jobs.cgroups() == []


@pytest.mark.parametrize("more", [[], ["--init"], ["--isolate", "none"], ["-d"]])
def test_closed_descriptors_are_dev_null(jobs: Jobs, more: list[str], tmp_path: Path) -> None:
    show = "import os; names = [os.readlink(f'/proc/self/fd/{fd}') for fd in (0, 1, 2)]\n"
    show += f"open({str(tmp_path / 'seen')!r}, 'w').write(repr(names))"
    name, argv = jobs.argv(*more, "--", "python3", "-c", show)
    closed = ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", *argv]
    subprocess.run(closed, check=True, timeout=120)
    support.wait_for(lambda: jobs.report(name), 60, "its report")
    seen = (tmp_path / "seen").read_text()
    if "-d" in more:
        assert seen.count("'/dev/null'") == 1
        assert seen.count("pipe:") == 2
    else:
        assert seen == repr(["/dev/null"] * 3)
    assert jobs.report(name)["outcome"] == "success"


def test_no_terminal(jobs: Jobs) -> None:
    done = jobs.run("--", "sh", "-c", "(: </dev/tty) 2>/dev/null && exit 1; cat", stdin="words", start_new_session=True)
    assert (done.code, done.out) == (0, "words")


def test_a_reader_that_goes_away(jobs: Jobs) -> None:
    """As without nsagent: SIGPIPE ends CMD, and the job has its report."""
    name, argv = jobs.argv("--", "yes")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"y\n"
        process.stdout.close()
        process.wait(timeout=120)
    assert jobs.report(name)["outcome"] in {"signal", "failure"}  # a PID 1 is not killed by SIGPIPE: it has EPIPE
    assert jobs.cgroups() == []


def test_a_gigabyte_of_output(jobs: Jobs) -> None:
    name, argv = jobs.argv("--", "head", "-c", "1073741824", "/dev/zero")
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        count = 0
        while data := process.stdout.read(1 << 20):
            count += len(data)
        assert process.wait(timeout=120) == 0
    assert count == 1 << 30
    assert jobs.report(name)["outcome"] == "success"


def test_the_launchers_hangup_is_passed_on(jobs: Jobs) -> None:
    name, process = jobs.start("--", "sh", "-c", 'trap "exit 3" HUP; echo ready; while :; do sleep 0.05; done')
    process.send_signal(signal.SIGHUP)
    process.communicate(timeout=120)
    assert process.returncode == 3
    assert json.loads(jobs.command("inspect", name).stdout)["exit_code"] == 3
    assert not os.path.exists(f"/proc/{process.pid}")
