"""The registry of launched jobs: one JSON file a job, read by `run`, `ps` and the agent. It launches and kills nothing.

    <state-dir>/jobs/<id>.json         a job whose launcher lives, and holds an exclusive flock(2) on the file
    <state-dir>/jobs/ended/<id>.json   a job that ended, never changed again; see nsagent.jobs.ended

A job's file is made and locked before its cgroup, so that whatever can be found on the node after a SIGKILL has a
file. A file is replaced, never rewritten: the new one is locked under a hidden name, then renamed over the old one,
so that a reader sees a whole record and the name always leads to a locked file. Under `jobs/`, a file that can be
locked is one whose launcher died: `abandoned` takes it over.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Container, Iterator
from typing import Any, Final

from nsagent.errors import AccessError, ParseError
from nsagent.jobs import ended
from nsagent.jobs import record as record_files
from nsagent.jobs.record import JobRecord, check_state_dir

_STALE_SECONDS: Final = 60.0


class JobFile:
    """The locked file of one job whose launcher (or sweeper) is this process."""

    def __init__(self, directory: str, record: JobRecord, fd: int) -> None:
        self._directory = directory
        self._fd = fd
        self.record = record

    @property
    def fd(self) -> int:
        """The descriptor that holds the lock. A child that inherits it must close it, or it would hold the lock too."""
        return self._fd

    def update(self, **changes: Any) -> None:
        """Write the record with `changes`, atomically. Raises AccessError where the directory became unwritable."""
        record = self.record._replace(**changes)
        fd = _write_locked(self._directory, record)
        os.close(self._fd)
        self._fd, self.record = fd, record

    def finish(self, **changes: Any) -> None:
        """Write the last record among the ended jobs, then drop the live one: a crash between them loses nothing."""
        self.record = self.record._replace(**changes, given={})
        os.close(_write_locked(os.path.join(self._directory, "ended"), self.record))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, f"{self.record.id}.json"))
        os.close(self._fd)
        ended.prune(self._directory)

    def release(self) -> None:
        """Give up the lock with the job unfinished: the next sweep takes it."""
        os.close(self._fd)


def create(state_dir: str, record: JobRecord) -> JobFile:
    """Make and lock the file of a new job. Raises AccessError where `state_dir` is not ours to write."""
    directory = _directory(state_dir)
    return JobFile(directory, record, _write_locked(directory, record))


def abandoned(state_dir: str) -> Iterator[JobFile]:
    """Yield, locked for the caller, each job whose launcher is gone. The caller ends each by `finish` or `release`.

    Raises AccessError where the directory is not ours alone: see `check_state_dir`.
    """
    check_state_dir(state_dir)
    directory = os.path.join(state_dir, "jobs")
    for name in record_files.names(directory):
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # ended meanwhile, or another user's
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino != os.stat(path).st_ino:  # replaced while we opened it: its launcher lives
                raise BlockingIOError
            record = record_files.parse(fd, path)
        except OSError:
            os.close(fd)
            continue
        except ParseError:  # none of ours: leave it
            os.close(fd)
            continue
        if os.path.exists(os.path.join(directory, "ended", name)):  # died within `finish`: all is written
            os.unlink(path)
            os.close(fd)
            continue
        yield JobFile(directory, record, fd)


def read_live(state_dir: str) -> list[JobRecord]:
    """Return the jobs whose launcher has not written their end (it may have died: see `abandoned`), oldest first."""
    return sorted(record_files.read_all(os.path.join(state_dir, "jobs")), key=lambda record: record.start)


def count_live(state_dir: str, ended_ids: Container[str]) -> int:
    """Return how many jobs have not ended; one whose launcher is just taking its file away is among `ended_ids`."""
    return sum(name[:-5] not in ended_ids for name in record_files.names(os.path.join(state_dir, "jobs")))


def _directory(state_dir: str) -> str:
    directory = os.path.join(state_dir, "jobs")
    check_state_dir(state_dir)
    try:
        os.makedirs(state_dir, mode=0o755 if os.geteuid() == 0 else 0o700, exist_ok=True)
        os.makedirs(os.path.join(directory, "ended"), mode=0o700, exist_ok=True)
    except OSError as exc:
        raise AccessError(
            f"no job can be registered in {state_dir}: {exc.strerror}",
            hint="name a directory that you can write with --state-dir",
        ) from exc
    check_state_dir(state_dir)  # again: in /tmp another user may have been faster
    return directory


def _write_locked(directory: str, record: JobRecord) -> int:
    """Write `record`, locked before its name appears; return the descriptor that holds the lock."""
    hidden = os.path.join(directory, f".{record.id}.{os.getpid()}.tmp")
    try:
        fd = os.open(hidden, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            text = json.dumps(record._asdict(), separators=(",", ":")).encode() + b"\n"
            if os.write(fd, text) < len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.rename(hidden, os.path.join(directory, f"{record.id}.json"))
        except BaseException:
            os.close(fd)
            raise
    except OSError as exc:
        raise AccessError(
            f"cannot write the record of job {record.id} in {directory}: {exc.strerror}",
            hint="name a directory that you can write with --state-dir",
        ) from exc
    return fd


def remove_stale(state_dir: str) -> None:
    """Remove hidden files that a launcher left when it was killed in mid-write, more than a minute ago.

    Raises AccessError where the directory is not ours alone: see `check_state_dir`.
    """
    check_state_dir(state_dir)
    for directory in (os.path.join(state_dir, "jobs"), os.path.join(state_dir, "jobs", "ended")):
        with contextlib.suppress(OSError):
            for entry in os.scandir(directory):
                if entry.name.startswith(".") and time.time() - entry.stat().st_mtime > _STALE_SECONDS:
                    os.unlink(entry.path)
