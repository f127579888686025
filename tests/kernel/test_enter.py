"""`nsagent enter`: the namespaces of a process or job, as the links of /proc say; its cgroup only where asked for."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nsagent import namespaces
from nsagent.errors import VanishedError
from tests import support
from tests.kernel.launching import LINKS, Jobs, host_inums, inums, inums_of, running

pytestmark = pytest.mark.kernel


class Running(NamedTuple):
    """A job that runs."""

    name: str
    pid: int
    launcher: subprocess.Popen[str]


@pytest.fixture
def target(jobs: Jobs) -> Iterator[Running]:
    """A job in namespaces of its own, all eight."""
    name, launcher = jobs.start("--isolate", "all", "--", "sh", "-c", "echo ready; while :; do sleep 1000; done")
    yield Running(name, jobs.pid_of(name), launcher)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)


def test_all_kinds_of_a_job_and_of_a_pid(jobs: Jobs, target: Running) -> None:
    theirs = inums_of(target.pid)
    for word in (target.name, str(target.pid)):
        done = jobs.command("enter", word, "--", "sh", "-c", f"{LINKS}; id -u; pwd; echo $$")
        assert done.returncode == 0, done.stderr
        assert inums(done.stdout) == theirs
        uid, directory, pid = done.stdout.split()[-3:]
        assert (uid, directory) == ("0", "/")
        assert 1 < int(pid) < 100, "it is not in the PID namespace"


def test_some_kinds(jobs: Jobs, target: Running) -> None:
    theirs, host = inums_of(target.pid), host_inums()
    done = jobs.command("enter", str(target.pid), "--kind", "uts,net", "--", "sh", "-c", f"{LINKS}; pwd", cwd="/usr")
    assert inums(done.stdout) == host | {"uts": theirs["uts"], "net": theirs["net"]}
    assert done.stdout.split()[-1] == "/usr"
    ours = jobs.command("enter", str(os.getpid()), "--kind", "all", "--", "sh", "-c", LINKS)
    assert (ours.returncode, inums(ours.stdout)) == (0, host)
    assert jobs.command("enter", str(target.pid), "--kind", "none").returncode == 2


def test_one_by_one_it_is_still_that_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel takes no pidfd."""
    pidfd = os.pidfd_open(os.getpid())
    monkeypatch.setattr(namespaces, "_enter_pidfd", lambda *_: False)
    child = subprocess.Popen(["true"])
    gone = os.pidfd_open(child.pid)
    child.wait()
    try:
        namespaces.enter(os.getpid(), {namespaces.NamespaceKind.UTS}, pidfd=pidfd)
        with pytest.raises(VanishedError):  # the pid is another process's by now
            namespaces.enter(os.getpid(), {namespaces.NamespaceKind.UTS}, pidfd=gone)
    finally:
        os.close(pidfd)
        os.close(gone)


def test_the_cgroup_is_joined_only_where_asked_for(jobs: Jobs, target: Running) -> None:
    show = ["--kind", "uts", "--", "cat", "/proc/self/cgroup"]
    own = Path("/proc/self/cgroup").read_text()
    assert jobs.command("enter", target.name, *show).stdout == own
    theirs = Path(f"/proc/{target.pid}/cgroup").read_text()
    assert theirs != own
    assert jobs.command("enter", target.name, "--join-cgroup", *show).stdout == theirs


def test_the_exit_code_is_passed_on(jobs: Jobs, target: Running) -> None:
    for kinds in ([], ["--kind", "uts"]):  # by a child, in place
        assert jobs.command("enter", target.name, *kinds, "--", "sh", "-c", "exit 7").returncode == 7
        missing = jobs.command("enter", target.name, *kinds, "--", "/no/such/program")
        assert (missing.returncode, missing.stderr.count("error:")) == (127, 1)
    assert jobs.command("enter", target.name, "--", "sh", "-c", "kill -TERM $$").returncode == 128 + signal.SIGTERM


def test_signals_are_passed_on(jobs: Jobs, target: Running) -> None:
    script = "trap 'echo got; exit 3' USR1; echo ready; while :; do sleep 0.05; done"
    argv = [*support.nsagent_argv(), "enter", "--state-dir", str(jobs.state), target.name, "--", "sh", "-c", script]
    entered = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    assert entered.stdout is not None
    assert entered.stdout.readline() == "ready\n"
    entered.send_signal(signal.SIGUSR1)
    out, _ = entered.communicate(timeout=60)
    assert (out, entered.returncode) == ("got\n", 3)


def test_the_default_is_a_shell(jobs: Jobs, target: Running) -> None:
    done = jobs.command("enter", target.name, stdin=LINKS, env={"SHELL": "/bin/sh"})
    assert inums(done.stdout) == inums_of(target.pid), done.stderr


def test_those_inside_do_not_see_the_interpreter(jobs: Jobs, target: Running) -> None:
    directory = Path("/var/tmp") / support.unique_name("script")
    directory.mkdir(mode=0o755)
    script = directory / "run"
    try:
        script.write_text("#!/proc/self/exe\n")
        script.chmod(0o755)
        assert jobs.command("enter", target.name, "--", str(script)).returncode == 126
        script.write_text("#!/bin/sh\necho ran\n")
        assert jobs.command("enter", target.name, "--", str(script)).stdout == "ran\n"
    finally:
        script.unlink()
        directory.rmdir()


def test_what_is_gone(jobs: Jobs) -> None:
    child = subprocess.Popen(["true"])
    child.wait()
    done = jobs.command("enter", str(child.pid), "--", "true")
    assert done.returncode == 125
    assert f"process {child.pid} is gone" in done.stderr
    ended = jobs.run("--", "true")
    assert "has ended" in jobs.command("enter", ended.name, "--", "true").stderr
    assert jobs.command("enter", "no-such-job", "--", "true").returncode == 125
    assert running(ended.name) == []
