"""Many jobs: at once, in a row, and with launchers killed at any moment. Each ends once; no process, cgroup or mount is left.

The numbers of the issue (500, 10,000, 200) are the slow forms; CI runs 20, 100 and 20.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from nsagent.jobs import KEEP, lookup, read_live
from nsagent.launch import launcher
from tests import support
from tests.kernel.launching import Jobs, running

pytestmark = pytest.mark.kernel

_slow = pytest.mark.slow


def mounts(jobs: Jobs) -> list[str]:
    """Return the mounts of this host that are of a job's making: sources and targets have the job's id or our directory."""
    words = (str(jobs.state.parent), "nsagent-test-")
    return [
        line for line in Path("/proc/self/mountinfo").read_text().splitlines() if "-job" in line and any(w in line for w in words)
    ]


def outcomes(jobs: Jobs) -> Counter[str]:
    return Counter(job["outcome"] for job in jobs.registered("ended"))


@pytest.mark.parametrize("count", [20, pytest.param(500, marks=_slow)])
def test_many_at_once(jobs: Jobs, count: int, tmp_path: Path) -> None:
    marker = f"6{os.getpid()}.1"
    go = tmp_path / "go"
    script = f"until [ -e {go} ]; do sleep 1; done; [ $1 -lt {count // 2} ]"
    launchers = []
    try:
        for number in range(count):
            _, argv = jobs.argv("--", "sh", "-c", script, marker, str(number))
            launchers.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL))
        support.wait_for(lambda: len([job for job in jobs.registered() if job["pid"]]) == count, 1200, "all of them, at once")
        support.wait_for(lambda: len(running(marker)) == 2 * count, 1200, "every CMD: the launchers have the word too")
    finally:
        go.touch()
        codes = Counter(process.wait(timeout=1200) for process in launchers)
    assert codes == {0: count // 2, 1: count - count // 2}
    assert outcomes(jobs) == {"success": count // 2, "failure": count - count // 2}
    assert all(job["report"]["usage"]["cpu_ns"] > 0 for job in jobs.registered("ended"))
    assert (jobs.registered(), jobs.cgroups(), running(marker), mounts(jobs)) == ([], [], [], [])


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=_slow)])
def test_many_in_a_row(jobs: Jobs, count: int) -> None:
    name, argv = jobs.argv("--", "true", report=False)
    script = 'n=$1; shift; i=0; while [ $i -lt $n ]; do "$@" 2>/dev/null || exit 1; i=$((i + 1)); done'
    subprocess.run(["sh", "-c", script, "sh", str(count), *argv], check=True, timeout=7200)
    assert (jobs.registered(), jobs.cgroups(name), mounts(jobs)) == ([], [], [])
    kept = outcomes(jobs)
    assert set(kept) == {"success"}
    assert min(count, KEEP) <= kept["success"] <= min(count, KEEP + 51)


@pytest.mark.parametrize("count", [20, pytest.param(200, marks=_slow)])
def test_launchers_killed_at_random_moments(jobs: Jobs, count: int) -> None:
    """Over the whole life of a launch: before it registers, while it mounts and clones, while CMD runs and when it has ended."""
    marker = f"6{os.getpid()}.2"
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    begin = time.monotonic()
    assert jobs.run("--", "true").code == 0
    whole = time.monotonic() - begin
    for number in range(count):
        more = chance.choice(([], ["--init"], ["--isolate", "none"], ["--isolate", "all"], ["-d"]))
        script = f"setsid sleep {marker} & sleep 0.0{number % 10}"
        _, argv = jobs.argv(*more, "--", "sh", "-c", script, report=False)
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(chance.uniform(0, whole * 1.2))
        for record in read_live(str(jobs.state)) if "-d" in more else ():
            supervisor = lookup.launcher_pidfd(str(jobs.state), record)
            if supervisor is not None:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(supervisor, signal.SIGKILL)
                os.close(supervisor)
        process.kill()
        process.wait()

    def over() -> bool:
        launcher.sweep(str(jobs.state))
        return not jobs.registered()

    support.wait_for(over, 120, f"the end of every job, seed {seed}")
    assert (jobs.cgroups(), running(marker), mounts(jobs)) == ([], [], []), f"seed {seed}"
    ended = jobs.registered("ended")
    assert {job["outcome"] for job in ended} <= {"success", "abandoned", "launch_error"}, f"seed {seed}"
    for job in ended:
        assert job["report"] if job["outcome"] == "success" else job["reason"], f"seed {seed}: {job}"
