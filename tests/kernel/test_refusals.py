"""Bad input and hosts that lack something: one `error:` line, one `hint:` line, the right exit code, and nothing left."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from nsagent.cgroups.layout import read_layout
from tests import support
from tests.kernel.launching import Done, Jobs, make_rootfs

pytestmark = pytest.mark.kernel

READ_ONLY = r"""
mount --make-rprivate / && for m in $(sed -n 's/^\([^ ]* \)\{4\}\([^ ]*\) .* - cgroup2\{0,1\} .*/\2/p' /proc/self/mountinfo)
do mount -o remount,bind,ro $m || exit; done; exec "$@"
"""


def refused(code: int, stderr: str) -> None:
    assert [line.partition(":")[0] for line in stderr.splitlines()] == ["error", "hint"], stderr
    assert all(len(line) < 300 and not line.endswith(": ") for line in stderr.splitlines())
    assert "internal error" not in stderr
    assert code in (2, 125, 126, 127)


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--isolate", "cow", "--", "true"), 2),
        (("--memory", "12Q", "--", "true"), 2),
        (("--pids", "0", "--", "true"), 2),
        (("--hostname", "x" * 65, "--", "true"), 2),
        (("--name", "a\nb", "--", "true"), 2),
        (("--", "/no/such/command"), 127),
        (("--", "no-such-command"), 127),
        (("--init", "--", "no-such-command"), 127),
        (("--", "/etc/passwd"), 126),
        (("--seccomp", "/etc/passwd", "--", "true"), 2),
        (("--join", "net:4194304", "--", "true"), 125),
        (("--workdir", "/no/such", "--", "true"), 125),
    ],
)
def test_what_run_refuses(jobs: Jobs, options: tuple[str, ...], code: int) -> None:
    done = jobs.run(*options)
    refused(done.code, done.err)
    assert (done.code, done.out) == (code, "")
    assert jobs.cgroups() == []
    assert jobs.registered() == []


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/etc/passwd", 126)])
def test_what_unshare_refuses(command: str, code: int) -> None:
    support.require_root()
    done = support.run_nsagent("unshare", "uts", "--", command)
    refused(done.returncode, done.stderr)
    assert done.returncode == code


@pytest.mark.parametrize("most", [7, 8, 9, 11])
def test_too_few_descriptors(jobs: Jobs, most: int) -> None:
    done = jobs.run("--", "true", preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (most, most)))
    refused(done.code, done.err)
    assert "Too many open files" in done.err
    assert jobs.cgroups() == []
    jobs.run("--", "true")
    assert jobs.registered() == []


def read_only(jobs: Jobs, *options: str) -> Done:
    name, argv = jobs.argv(*options)
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", READ_ONLY, "sh", *argv], capture_output=True, text=True, timeout=120, check=False
    )
    return Done(name, done.returncode, done.stdout, done.stderr, jobs.report(name))


def test_a_read_only_cgroup_tree(jobs: Jobs) -> None:
    done = read_only(jobs, "--memory", "64M", "--", "true")
    refused(done.code, done.err)
    assert "read-only" in done.err
    done = read_only(jobs, "--", "true")
    assert (done.code, done.report["cgroup"]) == (0, "")
    assert ["read-only" in note for note in done.report["notes"]] == [True]


def as_nobody() -> None:
    os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)


@pytest.mark.parametrize(
    "words", [("trace", "--count", "1"), ("unshare", "uts", "--", "true"), ("run", "--memory", "9M", "true")]
)
def test_what_an_ordinary_user_may_not(tmp_path: Path, words: tuple[str, ...]) -> None:
    support.require_root()
    state = tmp_path / "state"
    state.mkdir()
    os.chown(state, 65534, 65534)
    for directory in (tmp_path, *tmp_path.parents[:2]):
        directory.chmod(directory.stat().st_mode | 0o011)
    options = [] if words[0] == "unshare" else ["--state-dir", str(state)]
    done = support.run_nsagent(words[0], *options, *words[1:], preexec_fn=as_nobody)
    stderr = "".join(line for line in done.stderr.splitlines(keepends=True) if not line.startswith("no agent"))
    refused(done.returncode, stderr)
    assert done.returncode == 125


@pytest.mark.parametrize("words", [("enter", "4194304"), ("ns", "show", "4194304", "--kind", "net")])
def test_a_process_that_is_gone(words: tuple[str, ...]) -> None:
    done = support.run_nsagent(*words)
    refused(done.returncode, done.stderr)
    assert "process 4194304 is gone" in done.stderr


def test_a_broken_configuration(tmp_path: Path) -> None:
    (tmp_path / "agent.toml").write_text("listen = [")
    done = support.run_nsagent("agent", "--config", str(tmp_path / "agent.toml"))
    refused(done.returncode, done.stderr)
    assert "not TOML" in done.stderr


def test_a_command_that_the_rootfs_lacks(jobs: Jobs, tmp_path: Path) -> None:
    """The host has both: what is said is of the rootfs."""
    root = make_rootfs(tmp_path)
    program = "/tmp/script"
    done = jobs.run("--rootfs", str(root), "--", "/bin/sh")
    refused(done.code, done.err)
    assert (done.code, "/bin/sh: command not found" in done.err) == (127, True)
    (root / "tmp/script").write_text("#!/bin/sh\n")
    (root / "tmp/script").chmod(0o755)
    done = jobs.run("--rootfs", str(root), "--", program)
    refused(done.code, done.err)
    assert (done.code, "interpreter" in done.err) == (127, True)


def test_a_memory_limit_too_small_for_the_child(jobs: Jobs) -> None:
    support.require(read_layout().of("memory"), "no memory controller")
    done = jobs.run("--memory", "1k", "--", "true")
    refused(done.code, done.err)
    assert "--memory" in done.err
    assert done.code == 125
    assert jobs.cgroups() == []


@pytest.mark.parametrize("action", ["status", "unload"])
def test_a_pin_directory_that_is_closed(action: str, tmp_path: Path) -> None:
    """As most bpffs are to ordinary users: what is in it is not known to be nothing."""
    support.require_root()
    tmp_path.chmod(0o700)
    done = support.run_nsagent("bpf", action, "--pin-dir", str(tmp_path / "pins"), preexec_fn=as_nobody)
    refused(done.returncode, done.stderr)
    assert (done.returncode, done.stdout) == (125, "")


@pytest.fixture
def elsewhere(cgroup_name: str) -> Callable[[], str]:
    """Make a cgroup beside the job's in the accounting hierarchy; return its file of members."""

    def make() -> str:
        controller, hierarchy = read_layout().accounting
        place = f"{hierarchy.mountpoint}/{cgroup_name}"
        os.mkdir(place)
        return f"{place}/{'tasks' if controller else 'cgroup.procs'}"

    return make


def test_a_job_that_moves_out_of_its_cgroup_is_not_reported_idle(jobs: Jobs, elsewhere: Callable[[], str]) -> None:
    burn = "import time\nwhile time.process_time() < 0.3: pass"
    done = jobs.run("--isolate", "none", "--", "sh", "-c", f"echo $$ > {elsewhere()}; python3 -c '{burn}'")
    assert done.code == 0, done.err
    assert done.report["usage"]["cpu_ns"] >= 300_000_000
    assert ["left its cgroup" in note for note in done.report["notes"]] == [True]


def test_a_job_that_stays_has_no_such_note(jobs: Jobs) -> None:
    done = jobs.run("--", "python3", "-c", "import time\nwhile time.process_time() < 0.3: pass")
    assert (done.code, done.report["notes"]) == (0, [])
