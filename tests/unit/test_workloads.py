"""Jobs that ended, by name: each once, whoever is killed when."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nsagent import jobs
from nsagent.jobs import ended
from nsagent.workloads import BOUNDS_S, MOST_NAMES, WorkloadCounter, Workloads
from tests.support import wait_for


def finish(state: Path, name: str = "job", **changes: object) -> str:
    """End a job; return its id."""
    record = jobs.JobRecord(jobs.new_id(name), name, ("true",), os.getpid(), 1000.0)
    job = jobs.create(str(state), record)
    job.finish(**({"end": 1001.0, "outcome": "success", "exit_code": 0} | changes))
    return record.id


def count(state: Path) -> Workloads:
    """Count as an agent does that starts, and ends, now."""
    counter = WorkloadCounter(str(state))
    try:
        return counter.read()
    finally:
        counter.close()


def runs(state: Path) -> dict[str, dict[str, int]]:
    return {name: workload.runs for name, workload in count(state).by_name.items()}


def test_each_job_is_counted_once(tmp_path: Path) -> None:
    finish(tmp_path)
    finish(tmp_path, outcome="oom", exit_code=137)
    finish(tmp_path, "other", outcome="no such")
    for _ in range(3):
        assert runs(tmp_path) == {"job": {"success": 1, "oom": 1}, "other": {"abandoned": 1}}
    finish(tmp_path)
    assert runs(tmp_path)["job"] == {"success": 2, "oom": 1}


def test_what_a_report_says_is_summed(tmp_path: Path) -> None:
    usage = {"user_ns": 3, "system_ns": 4, "io_read_bytes": 5, "io_write_bytes": 6, "memory_peak_bytes": 7}
    finish(tmp_path, end=1003.0, exit_code=9, report={"wall_ns": 5 * 10**6, "usage": usage})
    finish(tmp_path, end=1002.0, exit_code=8, report={"wall_ns": 10**18, "usage": usage | {"memory_peak_bytes": 8}})
    finish(tmp_path, end=1001.0, outcome="launch_error", exit_code=127, report={})
    found = count(tmp_path).by_name["job"]
    assert (found.user_ns, found.system_ns, found.read_bytes, found.write_bytes) == (6, 8, 10, 12)
    assert (found.last_exit_code, found.last_end, found.last_memory_peak_bytes) == (9, 1003.0, 7)
    assert found.durations == [1, *[0] * (len(BOUNDS_S) - 1), 1]
    assert found.wall_ns == 10**18 + 5 * 10**6


def test_running_jobs(tmp_path: Path) -> None:
    job = jobs.create(str(tmp_path), jobs.JobRecord(jobs.new_id("a"), "a", ("true",), os.getpid(), 1.0))
    assert count(tmp_path).running == 1
    live = tmp_path / "jobs" / f"{job.record.id}.json"
    text = live.read_text()
    job.finish(end=2.0, outcome="success")
    live.write_text(text)  # killed between the two
    assert count(tmp_path).running == 0


def test_only_who_does_not_count_leaves_the_old_ones(tmp_path: Path) -> None:
    """While an agent lives, no launcher takes away what it has not counted, be it more than the registry keeps."""
    most = jobs.KEEP + 60
    counter = WorkloadCounter(str(tmp_path))
    names = [finish(tmp_path) for _ in range(most)]
    place = tmp_path / "jobs" / "ended"
    assert len(list(place.glob("*.json"))) == most
    assert counter.read().by_name["job"].runs == {"success": most}
    assert len(list(place.glob("*.json"))) == jobs.KEEP
    assert (place / f"{names[-1]}.json").exists()
    assert counter.read().by_name["job"].runs == {"success": most}
    counter.close()
    assert runs(tmp_path) == {"job": {"success": most}}
    assert len(json.loads((tmp_path / "workloads.json").read_text())["counted"]) >= jobs.KEEP
    for _ in range(60):
        finish(tmp_path)
    assert len(list(place.glob("*.json"))) <= jobs.KEEP + 50, "nobody counts"
    assert runs(tmp_path) == {"job": {"success": most + 60}}


def test_a_removed_job_counts_all_the_same(tmp_path: Path) -> None:
    counter = WorkloadCounter(str(tmp_path))
    one, two = finish(tmp_path), finish(tmp_path)
    assert ended.remove(str(tmp_path), one)
    assert not ended.remove(str(tmp_path), one)
    assert [record.id for record in jobs.read_ended(str(tmp_path))] == [two]
    assert counter.read().by_name["job"].runs == {"success": 2}
    assert not list((tmp_path / "jobs" / "ended").glob("*.removed"))
    counter.close()
    assert ended.remove(str(tmp_path), two)
    assert not list((tmp_path / "jobs" / "ended").glob("*.removed")), "nobody counts"
    assert runs(tmp_path) == {"job": {"success": 2}}


def test_names_are_bounded(tmp_path: Path) -> None:
    state = {"version": 1, "counted": [], "workloads": {f"n{n}": {"last_end": float(n)} for n in range(MOST_NAMES)}}
    (tmp_path / "workloads.json").write_text(json.dumps(state))
    finish(tmp_path, "new", end=5000.0)
    found = count(tmp_path).by_name
    assert len(found) == MOST_NAMES
    assert "new" in found
    assert "n0" not in found


@pytest.mark.parametrize(
    "text", ["", "{}", '{"version": 9}', '{"version": 1, "workloads": {"a": {"x": 1}}, "counted": []}', "\0"]
)
def test_a_state_that_is_none_of_ours(tmp_path: Path, text: str) -> None:
    finish(tmp_path)
    (tmp_path / "workloads.json").write_text(text)
    assert runs(tmp_path) == {"job": {"success": 1}}


def test_what_cannot_be_written_is_counted_later(tmp_path: Path) -> None:
    finish(tmp_path)
    (tmp_path / "workloads.json.new").mkdir()
    assert runs(tmp_path) == {}
    (tmp_path / "workloads.json.new").rmdir()
    assert runs(tmp_path) == {"job": {"success": 1}}


def _end_jobs(state: Path) -> None:
    while True:
        finish(state)


def _count_jobs(state: Path) -> None:
    counter = WorkloadCounter(str(state))
    while True:
        counter.read()


def _forked(work: Callable[[Path], None], state: Path) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            os.closerange(3, 1 << 16)  # a copy of the parent's descriptor would hold its lock
            work(state)
        finally:
            os._exit(1)
    return pid


def test_killed_at_any_moment(tmp_path: Path) -> None:
    """Those that end jobs and the one that counts them are killed at random moments: the sum is the number of files ever."""
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    for rounds in itertools.count(1):
        workers = [_forked(work, tmp_path) for work in (_end_jobs, _end_jobs, _count_jobs)]
        try:
            time.sleep(chance.uniform(0.002, 0.03))
        finally:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        for job in jobs.abandoned(str(tmp_path)):
            job.finish(end=1001.0, outcome="abandoned")
        there = len(list((tmp_path / "jobs" / "ended").glob("*.json")))
        if there > jobs.KEEP // 2 or (there > 50 and rounds >= 30):  # a fast machine: none may be pruned; a slow one goes on
            break
    assert there < jobs.KEEP
    assert sum(runs(tmp_path)["job"].values()) == there, f"seed {seed}"
    assert list(jobs.abandoned(str(tmp_path))) == []


def test_the_counter_waits_for_who_counts(tmp_path: Path) -> None:
    counter = WorkloadCounter(str(tmp_path))
    pid = _forked(lambda state: os._exit(7 if WorkloadCounter(str(state)) else 1), tmp_path)
    try:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        counter.close()
        assert wait_for(lambda: os.waitpid(pid, os.WNOHANG)[1], what="the second counter") == 7 << 8
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
