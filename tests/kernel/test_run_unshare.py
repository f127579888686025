"""`nsagent unshare`: the call, in place; and then CMD in the same process."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest

from tests import support
from tests.kernel.launching import KINDS, host_inums

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def root() -> None:
    support.require_root()


def test_it_is_in_place() -> None:
    argv = [*support.nsagent_argv(), "unshare", "uts", "--", "sh", "-c", "echo $$; hostname bird; hostname"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    out, _ = process.communicate(timeout=120)
    assert out.split() == [str(process.pid), "bird"]  # no fork: CMD is the process that called
    assert socket.gethostname() != "bird"


def test_all_kinds_change_as_the_call_has_it() -> None:
    # pid is that of the next child, and has no link before there is one: see the next test. CMD must not fork for the
    # same reason: once a first child has ended, its namespace takes no other.
    kinds = [kind for kind in KINDS if kind != "pid"]
    script = f"import os; print([os.readlink('/proc/self/ns/' + kind) for kind in {kinds}], os.readlink('/proc/self/ns/pid'))"
    done = support.run_nsagent("unshare", "all", "--", sys.executable, "-c", script)
    *new, pid = [int(inum) for inum in re.findall(r"\[(\d+)\]", done.stdout)]
    host = host_inums()
    assert len(new) == len(kinds), done.stderr
    assert not set(new) & set(host.values())
    assert pid == host["pid"]


def test_the_first_child_of_pid_is_1() -> None:
    done = support.run_nsagent("unshare", "pid", "--", "sh", "-c", "sh -c 'echo $$'; true")
    assert done.stdout == "1\n"


def test_user_maps_the_caller_to_root() -> None:
    script = "id -u; cat /proc/self/uid_map"
    done = support.run_nsagent("unshare", "user", "--", "sh", "-c", script)
    assert done.stdout.split() == ["0", "0", "0", "1"]


@pytest.mark.parametrize(
    ("args", "code"), [(["planet"], 2), (["none"], 2), (["uts", "--", "nosuch-command"], 127), (["uts", "--", "/tmp"], 126)]
)
def test_refusals(args: list[str], code: int) -> None:
    done = support.run_nsagent("unshare", *args)
    assert done.returncode == code
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_the_commands_exit_code() -> None:
    assert support.run_nsagent("unshare", "uts,ipc", "--", "sh", "-c", "exit 3").returncode == 3
