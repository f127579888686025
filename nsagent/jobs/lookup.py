"""Find a job by what people call it, tell whether its launcher lives, and wait for its end. Files only; nothing is changed."""

from __future__ import annotations

import contextlib
import fcntl
import os
import time

from nsagent.errors import AmbiguousJobError, ParseError, UnknownJobError
from nsagent.jobs import record as record_files
from nsagent.jobs.record import JobRecord, check_state_dir, stem

_LONGEST_PAUSE_S = 0.05


def find(state_dir: str, word: str) -> JobRecord:
    """Return the job that `word` means: an id; a name, of the one that runs or else ended last; the begin of one id alone.

    Raises: UnknownJobError; AmbiguousJobError, where several run under that name or several ids begin so; AccessError where
    `state_dir` is not ours alone.
    """
    check_state_dir(state_dir)
    found = _candidates(state_dir, word)
    if word in found:
        return found[word]
    named = [job for job in found.values() if job.name == word]
    running = [job for job in named if job.end is None]
    ended = [job for job in named if job.end is not None]
    begun = [job for job in found.values() if word and job.id.startswith(word)]
    chosen = running or sorted(ended, key=lambda job: job.end or 0.0)[-1:] or begun
    if len(chosen) == 1:
        return chosen[0]
    if chosen:
        which = f"{len(chosen)} jobs called {word!r} run" if running else f"{len(chosen)} jobs have ids that begin with {word!r}"
        names = ", ".join(sorted(job.id for job in chosen)[:3])
        raise AmbiguousJobError(which, hint=f"name one: {names}{', ...' if len(chosen) > 3 else ''}")
    raise UnknownJobError(
        f"there is no job {word!r} in {state_dir}", hint="'nsagent ps --all' lists them; --state-dir names another directory"
    )


def _candidates(state_dir: str, word: str) -> dict[str, JobRecord]:
    """Return the jobs whose file is named so that they can be meant, by id; the live ones first, for a job may end meanwhile."""
    found = {}
    for directory in (os.path.join(state_dir, "jobs"), os.path.join(state_dir, "jobs", "ended")):
        for name in record_files.names(directory):
            job_id = name[:-5]
            if job_id.startswith(word) or job_id.rpartition("-")[0] == stem(word):
                with contextlib.suppress(OSError, ParseError):
                    found[job_id] = record_files.read(os.path.join(directory, name))
    return found


def read(state_dir: str, job_id: str) -> JobRecord:
    """Return a job as it is now. Raises UnknownJobError where it was removed."""
    for directory in ("jobs", os.path.join("jobs", "ended"), "jobs"):
        with contextlib.suppress(FileNotFoundError):
            return record_files.read(os.path.join(state_dir, directory, f"{job_id}.json"))
    raise UnknownJobError(f"job {job_id} was removed")


def is_held(state_dir: str, job_id: str) -> bool:
    """Tell whether the launcher of a job lives: it holds the lock of the job's file, or has just replaced it."""
    path = _live(state_dir, job_id)
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return os.fstat(fd).st_ino != os.stat(path).st_ino
    except BlockingIOError:
        return True
    except FileNotFoundError:
        return False
    finally:
        os.close(fd)


def launcher_pidfd(state_dir: str, job: JobRecord) -> int | None:
    """Return a pidfd of a job's launcher; None where it is gone. The lock is looked at last: it is no successor."""
    try:
        pidfd = os.pidfd_open(job.launcher_pid)
    except ProcessLookupError:
        return None
    if is_held(state_dir, job.id):
        return pidfd
    os.close(pidfd)
    return None


def wait_end(state_dir: str, job_id: str, seconds: float | None = None) -> JobRecord | None:
    """Wait until a job has ended, at most `seconds`, and return its record; None where it has not, or its launcher was killed.

    Without `seconds` it sleeps in flock(2) until the launcher gives its lock up. Raises UnknownJobError where it was removed.
    """
    deadline = None if seconds is None else time.monotonic() + seconds
    path = _live(state_dir, job_id)
    while True:
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            break
        try:
            if not _lock(fd, deadline):
                return None
            if os.fstat(fd).st_ino == os.stat(path).st_ino:  # else its launcher has replaced it
                break
        except FileNotFoundError:
            break
        finally:
            os.close(fd)
    found = read(state_dir, job_id)
    return None if found.end is None else found


def _lock(fd: int, deadline: float | None) -> bool:
    if deadline is None:
        fcntl.flock(fd, fcntl.LOCK_SH)
        return True
    pause = 0.001
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(pause * 2, _LONGEST_PAUSE_S)


def _live(state_dir: str, job_id: str) -> str:
    return os.path.join(state_dir, "jobs", f"{job_id}.json")
