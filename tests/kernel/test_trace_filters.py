"""`nsagent trace` with filters, with an agent and without one: the same events."""

from __future__ import annotations

import contextlib
import json
import os
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.agents import CACHE, running
from tests.kernel.conftest import accounting
from tests.support import ROOT, nsagent_running, require_root, run_nsagent

pytestmark = pytest.mark.kernel

# In the cgroup given, or where it is: a child of a child unshares uts, and fails to enter what is no namespace; then net.
SCRIPT = """
import os, sys, time
from nsagent.libc import *
if sys.argv[1]:
    open(sys.argv[1] + "/cgroup.procs", "w").write("0")
for _ in range(int(sys.argv[2])):
    child = os.fork()
    if child:
        os.waitpid(child, 0)
        os._exit(0)
unshare(CLONE_NEWUTS)
try: setns(0, CLONE_NEWUTS)
except OSError: pass
unshare(CLONE_NEWNET)
"""

Runs = Callable[..., int]


@pytest.fixture(params=["agent", "private"])
def traced(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Start `nsagent trace` with flags, and return its lines up to the marker: a call that every filter here lets through."""
    require_root()
    with contextlib.ExitStack() as stack:
        state_dir = str(tmp_path)
        if request.param == "agent":
            world = request.getfixturevalue("world")
            state_dir = stack.enter_context(running(world)).state_dir
        yield lambda *flags: nsagent_running("trace", "-o", "json", "--state-dir", state_dir, "--cache-dir", CACHE, *flags)


def results(
    trace: subprocess.Popen[str], run: Callable[[], int], marker: tuple[str, str, str], *, again: bool = True
) -> list[tuple[str, str, str]]:
    """Run the script until its last call is seen; return what is seen of the next run: the first may have begun too early."""
    assert trace.stdout is not None
    descriptor, rest, listening = trace.stdout.fileno(), b"", False
    for patience in (1.0, 1.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0):  # it may take its time to load, and to say something
        pid = run()
        seen: list[tuple[str, str, str]] = []
        end = time.monotonic() + 10 * patience  # others of the node may have something to say all the time
        while (
            time.monotonic() < end
            and select.select([descriptor], [], [], patience)[0]
            and (chunk := os.read(descriptor, 1 << 16))
        ):
            *lines, rest = (rest + chunk).split(b"\n")
            for line in map(json.loads, lines):
                if line["type"] != "syscall" or pid not in (line["pid"], *(each["pid"] for each in line["ancestors"])):
                    continue
                seen.append((line["syscall"], line["result"], "".join(change["kind"] for change in line["changes"])))
            if marker in seen:  # the last of its calls
                if listening or not again:
                    return seen
                listening = True
                break
    pytest.fail(f"{marker} was never seen; of the last run {seen}; the trace says {trace.poll()}")


def script(cgroup: str = "", depth: int = 2) -> int:
    argv = [sys.executable, "-c", SCRIPT, cgroup, str(depth)]
    process = subprocess.Popen(argv, cwd=ROOT, stdin=subprocess.DEVNULL)
    assert process.wait(120) == 0
    return process.pid


UTS, BAD, NET = ("unshare", "ok", "uts"), ("setns", "EINVAL", ""), ("unshare", "ok", "net")


@pytest.mark.parametrize(
    ("flags", "marker", "expected"),
    [
        ([], NET, [UTS, BAD, NET]),
        (["--kind", "uts"], BAD, [UTS, BAD]),
        (["--kind", "net"], NET, [NET]),
        (["--failed"], BAD, [BAD]),
        (["--pid", str(os.getpid())], NET, [UTS, BAD, NET]),
    ],
    ids=["all", "uts", "net", "failed", "pid"],
)
def test_filters(traced: Any, flags: list[str], marker: tuple[str, str, str], expected: list[tuple[str, str, str]]) -> None:
    with traced(*flags) as trace:
        assert results(trace, script, marker) == expected


def test_a_cgroup_and_those_below_it(traced: Any, cgroup_name: str) -> None:
    top = accounting()[1] / cgroup_name
    for name in ("in", "out"):
        (top / name).mkdir(parents=True)
    with traced("--cgroup", f"/{cgroup_name}/in") as trace:
        runs: list[int] = []

        def run() -> int:
            script(str(top / "out"))
            below = top / "in" / f"later{len(runs)}"  # made while the filter is on
            below.mkdir()
            runs.append(script(str(below)))
            return runs[-1]

        assert results(trace, run, NET)[-3:] == [UTS, BAD, NET]


def test_outside_of_the_filter_nothing_is_seen(traced: Any, cgroup_name: str) -> None:
    (accounting()[1] / cgroup_name / "in").mkdir(parents=True)
    with traced("--cgroup", f"/{cgroup_name}/in", "--count", "1") as trace:
        ours = []

        def run() -> int:
            script()
            ours.append(script(str(accounting()[1] / cgroup_name / "in")))
            return ours[-1]

        assert results(trace, run, UTS, again=False) == [UTS]


def test_a_cgroup_that_is_not_there(traced: Any, tmp_path: Path) -> None:
    done = run_nsagent("trace", "--state-dir", str(tmp_path), "--cache-dir", CACHE, "--cgroup", "/nsagent-test-none")
    assert done.returncode == 2
    assert "/nsagent-test-none" in done.stderr
