"""The registry: records survive crashes, belong to one launcher, and stay few."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from nsagent import jobs
from nsagent.errors import AccessError, AmbiguousJobError, UnknownJobError
from nsagent.jobs import lookup
from tests.support import require_root, wait_for


def record(name: str = "job", **changes: object) -> jobs.JobRecord:
    fields = {"id": jobs.new_id(name), "name": name, "command": ("true",), "launcher_pid": os.getpid(), "start": time.time()}
    return jobs.JobRecord(**(fields | changes))  # type: ignore[arg-type]


def test_a_job_from_start_to_end(tmp_path: Path) -> None:
    job = jobs.create(str(tmp_path), record(isolate=("pid", "uts")))
    assert jobs.read_live(str(tmp_path)) == [job.record]
    job.update(pid=42, namespaces={"pid": 4026532000})
    (live,) = jobs.read_live(str(tmp_path))
    assert (live.pid, live.namespaces, live.isolate) == (42, {"pid": 4026532000}, ("pid", "uts"))
    job.finish(end=2.0, outcome="success", exit_code=0)
    assert jobs.read_live(str(tmp_path)) == []
    (ended,) = jobs.read_ended(str(tmp_path))
    assert (ended.outcome, ended.exit_code, ended.pid) == ("success", 0, 42)
    assert [p.name for p in (tmp_path / "jobs").rglob(".*")] == []


def test_only_the_owner_reads_them(tmp_path: Path) -> None:
    job = jobs.create(str(tmp_path / "state"), record())
    assert (tmp_path / "state" / "jobs" / f"{job.record.id}.json").stat().st_mode & 0o077 == 0
    job.release()


def _hold(state: str, name: str) -> None:
    job = jobs.create(state, record(name))
    job.update(pid=os.getpid())  # the lock must live through a replaced file
    signal.pause()


def test_abandoned_means_that_the_launcher_is_gone(tmp_path: Path) -> None:
    state = str(tmp_path)
    context = multiprocessing.get_context("fork")
    launcher = context.Process(target=_hold, args=(state, "held"))
    launcher.start()
    try:
        wait_for(lambda: [r for r in jobs.read_live(state) if r.pid], what="the job's file")
        assert list(jobs.abandoned(state)) == []
    finally:
        launcher.kill()
        launcher.join()
    (job,) = jobs.abandoned(state)
    assert job.record.name == "held"
    assert list(jobs.abandoned(state)) == [], "a second sweeper took what the first one holds"
    job.finish(outcome="abandoned")
    assert list(jobs.abandoned(state)) == []
    assert [r.outcome for r in jobs.read_ended(state)] == ["abandoned"]


def test_a_launcher_that_died_within_finish_left_its_end(tmp_path: Path) -> None:
    job = jobs.create(str(tmp_path), record())
    live = tmp_path / "jobs" / f"{job.record.id}.json"
    text = live.read_text()
    job.finish(outcome="success", exit_code=0)
    live.write_text(text)
    assert list(jobs.abandoned(str(tmp_path))) == []
    assert not live.exists()
    assert [r.outcome for r in jobs.read_ended(str(tmp_path))] == ["success"]


def test_the_newest_thousand_are_kept(tmp_path: Path) -> None:
    ended = tmp_path / "jobs" / "ended"
    ended.mkdir(parents=True)
    for n in range(jobs.KEEP + 200):
        path = ended / f"old-{n}.json"
        path.write_text("{}")
        os.utime(path, (n, n))
    job = jobs.create(str(tmp_path), record())
    job.finish(outcome="success", exit_code=0)
    left = {path.name for path in ended.iterdir()}
    assert len(left) == jobs.KEEP
    assert f"{job.record.id}.json" in left
    assert "old-200.json" not in left
    assert f"old-{jobs.KEEP + 199}.json" in left


def test_a_later_versions_fields_are_passed_over(tmp_path: Path) -> None:
    job = jobs.create(str(tmp_path), record())
    path = tmp_path / "jobs" / f"{job.record.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"colour": "blue"}))
    assert [r.id for r in jobs.read_live(str(tmp_path))] == [job.record.id]


def test_ids_are_safe_names() -> None:
    for name in ("../../etc", "a\nb", "", "...", "x" * 300, "ü/\\", "cgroup.procs"):
        made = jobs.new_id(name)
        assert "/" not in made
        assert made.isprintable()
        assert not made.startswith((".", "-"))
        assert len(made) <= 60
        assert made != jobs.new_id(name)


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AccessError) as caught:
        jobs.create(str(tmp_path / "file" / "state"), record())
    assert "--state-dir" in caught.value.hint


@pytest.mark.parametrize("place", ["", "jobs"])
def test_a_directory_that_others_can_write_is_obeyed_in_nothing(tmp_path: Path, place: str) -> None:
    job = jobs.create(str(tmp_path), record())
    job.release()
    hidden = tmp_path / "jobs" / ".bashrc"  # as where `jobs` is a link that another user made to somebody's home
    hidden.write_text("")
    os.utime(hidden, (1, 1))
    (tmp_path / place).chmod(0o777)
    with pytest.raises(AccessError, match="every user"):
        jobs.remove_stale(str(tmp_path))
    with pytest.raises(AccessError, match="every user"):
        list(jobs.abandoned(str(tmp_path)))
    with pytest.raises(AccessError, match="every user"):
        jobs.create(str(tmp_path), record())
    assert hidden.exists()


@pytest.mark.parametrize("place", ["", "jobs"])
def test_a_group_that_can_write_is_roots_or_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    require_root()
    jobs.create(str(tmp_path), record()).release()
    monkeypatch.setattr("os.getegid", lambda: 7)
    for group, mode in ((54321, 0o755), (0, 0o775), (7, 0o775)):
        os.chown(tmp_path / place, 0, group)
        (tmp_path / place).chmod(mode)
        jobs.check_state_dir(str(tmp_path))
    os.chown(tmp_path / place, 0, 54321)
    with pytest.raises(AccessError, match="by group 54321"):
        jobs.check_state_dir(str(tmp_path))


def test_another_users_directory_is_refused(tmp_path: Path) -> None:
    require_root()
    home = tmp_path / "home"
    home.mkdir()
    (home / ".bashrc").write_text("")
    os.utime(home / ".bashrc", (1, 1))
    state = tmp_path / "state"
    state.mkdir()
    (state / "jobs").symlink_to(home)
    os.chown(state / "jobs", 65534, 65534, follow_symlinks=False)
    for call in (jobs.remove_stale, lambda path: list(jobs.abandoned(path)), lambda path: jobs.create(path, record())):
        with pytest.raises(AccessError, match="another user"):
            call(str(state))
    assert (home / ".bashrc").exists()


@pytest.mark.parametrize(
    "changes",
    [
        {"id": "../../other"},
        {"cgroup": "somebody/else"},
        {"cgroup": "nsagent"},
        {"cgroup": 5},
        {"pid": "abc"},
        {"pid": -1},
        {"start": "now"},
        {"command": [5]},
        {"namespaces": None, "name": None},
    ],
)
def test_a_record_that_is_no_jobs_own_is_left_alone(tmp_path: Path, changes: dict[str, object]) -> None:
    job = jobs.create(str(tmp_path), record())
    job.release()
    path = tmp_path / "jobs" / f"{job.record.id}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    assert list(jobs.abandoned(str(tmp_path))) == []
    assert jobs.read_live(str(tmp_path)) == []
    assert path.exists()


@pytest.mark.parametrize("text", ["", "[" * 9000, "[]", "null", "\udcff"])
def test_a_file_that_is_no_record_stops_nobody(tmp_path: Path, text: str) -> None:
    jobs.create(str(tmp_path), record()).release()
    (tmp_path / "jobs" / "x.json").write_text(text, errors="surrogateescape")
    assert len(jobs.read_live(str(tmp_path))) == 1
    assert len(list(jobs.abandoned(str(tmp_path)))) == 1


def test_a_state_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    assert list(jobs.abandoned(str(tmp_path / "state"))) == []
    with pytest.raises(AccessError):
        jobs.create(str(tmp_path / "state"), record())


def ended(state: Path, name: str, end: float) -> str:
    job = jobs.create(str(state), record(name))
    job.finish(end=end, outcome="success", exit_code=0)
    return job.record.id


def test_a_job_is_found_by_what_people_call_it(tmp_path: Path) -> None:
    state = str(tmp_path)
    older, newer = ended(tmp_path, "make", 1.0), ended(tmp_path, "make", 2.0)
    other = ended(tmp_path, "make all!", 3.0)
    assert jobs.find(state, older).id == older
    assert jobs.find(state, "make").id == newer
    assert jobs.find(state, "make all!").id == other
    assert jobs.find(state, "make_a").id == other
    assert jobs.find(state, newer[:-1]).id == newer
    running = jobs.create(state, record("make"))
    assert jobs.find(state, "make").id == running.record.id
    second = jobs.create(state, record("make"))
    with pytest.raises(AmbiguousJobError, match="2 jobs called 'make' run"):
        jobs.find(state, "make")
    with pytest.raises(AmbiguousJobError, match="ids that begin with 'mak'"):
        jobs.find(state, "mak")
    running.release()
    second.release()


@pytest.mark.parametrize("word", ["", "nosuch", "make/../make", "*", "make-"])
def test_an_unknown_job_is_named_and_has_a_hint(tmp_path: Path, word: str) -> None:
    ended(tmp_path, "make", 1.0)
    ended(tmp_path, "make", 1.0)
    with pytest.raises(UnknownJobError) as caught:
        jobs.find(str(tmp_path), word)
    assert caught.value.exit_code == 125
    assert caught.value.hint


def test_who_waits_wakes_at_the_end_and_not_at_a_change(tmp_path: Path) -> None:
    state = str(tmp_path)
    job = jobs.create(state, record())
    job_id = job.record.id
    reading, writing = os.pipe()
    waiter = os.fork()
    if waiter == 0:
        os.close(job.fd)  # the lock is the launcher's
        os.write(writing, b"w")
        found = lookup.wait_end(state, job_id)
        os._exit(7 if found and found.exit_code == 3 else 1)
    assert os.read(reading, 1) == b"w"
    for pid in range(1, 50):
        job.update(pid=pid)
        assert lookup.is_held(state, job_id)
    assert lookup.wait_end(state, job_id, 0.01) is None
    assert os.waitpid(waiter, os.WNOHANG) == (0, 0)
    job.finish(end=2.0, outcome="failure", exit_code=3)
    assert os.waitstatus_to_exitcode(os.waitpid(waiter, 0)[1]) == 7
    assert not lookup.is_held(state, job_id)
    for fd in (reading, writing):
        os.close(fd)


def test_waiting_for_a_job_whose_launcher_was_killed_ends(tmp_path: Path) -> None:
    job = jobs.create(str(tmp_path), record())
    job.release()
    assert lookup.wait_end(str(tmp_path), job.record.id) is None
    assert lookup.launcher_pidfd(str(tmp_path), job.record) is None
    with pytest.raises(UnknownJobError):
        lookup.wait_end(str(tmp_path), "gone-00000000")
