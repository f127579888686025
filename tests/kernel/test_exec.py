"""`nsagent exec`: in the job's namespaces and cgroup, and with nothing more than its CMD may."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.kernel.launching import KINDS, Jobs

pytestmark = pytest.mark.kernel

ALIKE = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")


@contextlib.contextmanager
def job(jobs: Jobs, *args: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """A job that runs; stopped in the end."""
    name, record = jobs.detach(*args)
    yield name, record
    assert jobs.command("rm", "--force", name).returncode == 0
    assert jobs.cgroups(name) == []


def inside(jobs: Jobs, name: str, *words: str, options: tuple[str, ...] = (), **run: Any) -> subprocess.CompletedProcess[str]:
    return jobs.command("exec", *options, name, "--", *words, **run)


def status(text: str) -> dict[str, str]:
    return {key: " ".join(value.split()) for key, _, value in (line.partition(":") for line in text.splitlines()) if key in ALIKE}


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--isolate", "all"],
        ["--isolate", "none"],
        ["--user", "nobody", "--cap-drop", "ALL"],
        ["--privileged"],
        ["--init", "--cap-add", "SYS_ADMIN"],
        ["--isolate", "mnt,pid,net", "--seccomp", "unconfined"],
    ],
    ids=" ".join,
)
def test_it_is_where_and_may_what_the_job_may(jobs: Jobs, args: list[str]) -> None:
    with job(jobs, *args, "--", "sleep", "1000") as (name, record):
        pid = record["pid"]
        theirs = "1"
        if "--init" in args:
            (pid,) = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
            theirs = "2"
        elif args == ["--isolate", "none"]:
            theirs = str(pid)
        done = inside(jobs, name, "cat", "/proc/self/status", f"/proc/{theirs}/status")
        assert done.returncode == 0, done.stderr
        mine, separator, of_command = done.stdout.partition("\nName:\tsleep\n")
        assert separator
        assert status(mine) == status(of_command)
        assert len(status(mine)) == len(ALIKE)
        links = inside(jobs, name, "readlink", *(f"/proc/self/ns/{kind}" for kind in KINDS))
        assert links.stdout.splitlines() == [os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS]


def test_it_is_counted_and_limited_as_the_job(jobs: Jobs) -> None:
    with job(jobs, "--memory", "60M", "--", "sleep", "1000") as (name, record):
        script = "import sys; print('ready', flush=True); sys.stdin.read()"
        argv = [*support.nsagent_argv(), "exec", "--state-dir", str(jobs.state), name, "python3", "-c", script]
        with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            for cgroup in jobs.cgroups(name):
                assert len((cgroup / "cgroup.procs").read_text().split()) == 2, cgroup
            process.communicate(timeout=60)
        assert inside(jobs, name, "python3", "-c", "bytearray(200 << 20)").returncode == 137
        assert Path(f"/proc/{record['pid']}").exists()  # the job itself goes on


CATCH = """import ctypes, os
ptrace = ctypes.CDLL(None).ptrace
ptrace.argtypes = [ctypes.c_long] * 4
SEIZE, INTERRUPT, DETACH, WALL = 0x4206, 0x4207, 17, 0x40000000
known = {name for name in os.listdir("/proc") if name.isdecimal()}
print("ready", flush=True)
while True:
    for name in {name for name in os.listdir("/proc") if name.isdecimal()} - known:
        known.add(name)
        if ptrace(SEIZE, int(name), 0, 0) == 0:
            ptrace(INTERRUPT, int(name), 0, 0)
            os.waitpid(int(name), WALL)
            status = dict(line.rstrip("\\n").split(":\\t", 1) for line in open(f"/proc/{name}/status"))
            fds = [os.readlink(f"/proc/{name}/fd/{fd}") for fd in os.listdir(f"/proc/{name}/fd")]
            print(status["Name"], status["CapEff"], status["CapBnd"], status["NoNewPrivs"], *fds, flush=True)
            ptrace(DETACH, int(name), 0, 0)
"""


def test_who_may_trace_gets_no_more_of_it_than_the_job_has(jobs: Jobs, tmp_path: Path) -> None:
    """With CAP_SYS_PTRACE the job can look into the process before it is CMD: that had all of them, and what had leaked."""
    leaked = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    try:
        with job(jobs, "--cap-add", "SYS_PTRACE", "--", "python3", "-c", CATCH) as (name, record):
            own = status(Path(f"/proc/{record['pid']}/status").read_text())

            def caught() -> list[list[str]]:
                assert inside(jobs, name, "true", pass_fds=(leaked,)).returncode == 0
                words = [line.split() for line in jobs.command("logs", name).stdout.splitlines()]
                return [each for each in words if each[0] not in ("ready", "true")]

            for _, effective, bounding, no_new_privs, *descriptors in support.wait_for(
                caught, what="a process that is not CMD yet"
            ):
                assert (effective, bounding, no_new_privs) == (own["CapEff"], own["CapBnd"], "1")
                assert str(tmp_path) not in descriptors
    finally:
        os.close(leaked)


def test_what_it_is_given(jobs: Jobs) -> None:
    words = ["--ulimit", "nofile=77:99", "--nice", "7", "--oom-score-adj", "300"]
    words += ["--clean-env", "--env", "A=1", "--env", "PATH=/usr/bin:/bin", "--workdir", "/usr"]
    with job(jobs, *words, "--", "sleep", "1000") as (name, _):
        done = inside(jobs, name, "sh", "-c", "echo $A $B $HOME; pwd; cat", options=("--env", "B=2"), stdin="typed")
        assert done.stdout == "1 2\n/usr\ntyped"
        done = inside(jobs, name, "sh", "-c", "ulimit -Sn; ulimit -Hn; nice; cat /proc/self/oom_score_adj")
        assert done.stdout.split() == ["77", "99", "7", "300"]
        assert inside(jobs, name, "pwd", options=("--workdir", "/etc")).stdout == "/etc\n"


def test_exit_codes(jobs: Jobs) -> None:
    with job(jobs, "--", "sleep", "1000") as (name, record):
        assert inside(jobs, name, "sh", "-c", "exit 6").returncode == 6
        assert inside(jobs, name, "sh", "-c", "kill -USR1 $$").returncode == 138
        assert inside(jobs, name, "nosuch-command").returncode == 127
        assert inside(jobs, name, "/etc").returncode == 126
        assert jobs.command("exec", name).returncode == 2
        assert jobs.command("exec", "nosuch", "true").returncode == 125
        assert jobs.command("pause", name).returncode == 0
        paused = inside(jobs, name, "true")
        assert (paused.returncode, "is paused" in paused.stderr) == (125, True)
        assert jobs.command("resume", name).returncode == 0
        argv = [*support.nsagent_argv(), "exec", "--state-dir", str(jobs.state), name, "sh", "-c", "echo ready; exec sleep 1000"]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            assert jobs.command("stop", name).returncode == 0  # with its PID 1 the job ends
            process.communicate(timeout=60)
            assert process.returncode == 137
        ended = inside(jobs, name, "true")
        assert (ended.returncode, "does not run" in ended.stderr) == (125, True)
        assert "given" not in jobs.command("inspect", record["id"]).stdout


def test_signals_are_passed_on(jobs: Jobs) -> None:
    with job(jobs, "--", "sleep", "1000") as (name, _):
        script = 'trap "exit 9" TERM; echo ready; while :; do sleep 0.05; done'
        argv = [*support.nsagent_argv(), "exec", "--state-dir", str(jobs.state), name, "sh", "-c", script]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.terminate()
            process.communicate(timeout=60)
            assert process.returncode == 9
