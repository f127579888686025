"""CMD's first exec, as ptrace(2) shows it, before its first instruction: where it is, and what bounds it.

Whoever attaches with PTRACE_O_TRACEEXEC sees a process stand still in its execve(2), with the new program in place.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from nsagent.cgroups.layout import read_layout
from tests import support
from tests.kernel.launching import KINDS, Jobs, host_inums, inums_of

pytestmark = pytest.mark.kernel

# include/uapi/linux/ptrace.h
SEIZE, CONT = 0x4206, 7
TRACE_FORK, TRACE_VFORK, TRACE_CLONE, TRACE_EXEC, EXIT_KILL = 1 << 1, 1 << 2, 1 << 3, 1 << 4, 1 << 20
EVENT_EXEC, WALL = 4, 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.ptrace.argtypes = [ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p]
LIBC.ptrace.restype = ctypes.c_long


class Exec(NamedTuple):
    """What is true of a process that stands in an execve."""

    inums: dict[str, int]
    cgroups: set[str]
    limits: dict[str, str]


def ptrace(request: int, pid: int, data: int) -> None:
    if LIBC.ptrace(request, pid, None, data) == -1 and ctypes.get_errno() != errno.ESRCH:  # it was killed
        raise OSError(ctypes.get_errno(), f"ptrace({request})")


def look(pid: int, files: dict[str, str]) -> Exec:
    """Read all of it."""
    rows = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    paths = {row.split(":", 2)[2] for row in rows}
    limits = {name: Path(file.format(next(iter(paths)))).read_text().strip() for name, file in files.items()}
    return Exec(inums_of(pid), paths, limits)


def first_exec(argv: list[str], marker: str, files: dict[str, str]) -> Exec:
    """Run a command to its end, and return what is true when a process of it first executes what has `marker` as a word."""
    script = 'read -r line; exec "$@"'
    process = subprocess.Popen(["sh", "-c", script, "sh", *argv], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    assert process.stdin is not None
    ptrace(SEIZE, process.pid, TRACE_FORK | TRACE_VFORK | TRACE_CLONE | TRACE_EXEC | EXIT_KILL)
    process.stdin.write(b"\n")
    process.stdin.close()
    found: list[Exec] = []
    code = None
    while code is None:  # the launcher ends last of all that is traced
        pid, status = os.waitpid(-1, WALL)
        if not os.WIFSTOPPED(status):
            code = os.waitstatus_to_exitcode(status) if pid == process.pid else None
            continue
        event, number = status >> 16, os.WSTOPSIG(status)
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        if event == EVENT_EXEC and marker.encode() in words and b"run" not in words and not found:
            found.append(look(pid, files))
        ptrace(CONT, pid, 0 if event else number)
    process.returncode = code
    assert code == 0
    assert len(found) == 1
    return found[0]


@pytest.fixture
def holder() -> Iterator[int]:
    """A process in uts, ipc and net namespaces of its own."""
    process = subprocess.Popen(["unshare", "--uts", "--ipc", "--net", "sleep", "1000"])
    ours = host_inums()
    support.wait_for(lambda: inums_of(process.pid)["net"] != ours["net"] and inums_of(process.pid)["ipc"] != ours["ipc"])
    yield process.pid
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("words", "new"),
    [
        ([], {"cgroup", "ipc", "mnt", "pid", "uts"}),
        (["--isolate", "all"], set(KINDS)),
        (["--isolate", "pid,mnt", "--join", "net:{0}", "--join", "uts:{0}", "--join", "ipc:{0}"], {"pid", "mnt"}),
        (["--clock-offset", "boottime:7d", "--join", "net:{0}"], {"cgroup", "ipc", "mnt", "pid", "uts", "time"}),
    ],
)
def test_cmds_first_exec_is_in_its_cgroup_and_namespaces(jobs: Jobs, holder: int, words: list[str], new: set[str]) -> None:
    pids, memory = read_layout().of("pids"), read_layout().of("memory")
    support.require(pids and memory, "no pids or no memory controller")
    assert pids is not None
    assert memory is not None
    limit = "memory.limit_in_bytes" if memory.version == 1 else "memory.max"
    files = {"pids": f"{pids.mountpoint}{{}}/pids.max", "memory": f"{memory.mountpoint}{{}}/{limit}"}
    words = [word.format(holder) for word in words]
    joined = {word.partition(":")[0] for word in words if word.endswith(f":{holder}")}
    marker = support.unique_name("exec")
    name, argv = jobs.argv(*words, "--pids", "77", "--memory", "64M", "--", "sh", "-c", ":", marker)
    with contextlib.ExitStack() as stack:
        stack.callback(jobs.tidy)
        seen = first_exec(argv, marker, files)
    report, ours, theirs = jobs.report(name), host_inums(), inums_of(holder)
    assert seen.inums == {kind: found["inum"] for kind, found in report["namespaces"].items()}
    for kind in KINDS:
        assert (seen.inums[kind] != ours[kind]) == (kind in new | joined), kind
        assert (seen.inums[kind] == theirs[kind]) == (kind in joined or (kind not in new and theirs[kind] == ours[kind])), kind
    assert seen.cgroups == {f"/{report['cgroup']}"}
    assert seen.limits == {"pids": "77", "memory": str(64 << 20)}
