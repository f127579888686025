"""Jobs that ended: <state-dir>/jobs/ended/<id>.json, written once, when the job is over. The newest KEEP are kept.

Writing that file, by one rename(2), is what ends a job: before it, a launcher that dies leaves its job to a sweep, which
ends it as abandoned; after it, the end stands. So each job has one end, and whoever counts ends (the agent) counts files,
and remembers which.

    <id>.json         a job that ended
    <id>.removed      the same, after `nsagent rm`: shown to nobody, and kept until it has been counted
    counter.lock      locked by the agent, which counts them; who else ends a job then leaves the old ones to it
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

from nsagent.errors import AccessError, ParseError
from nsagent.jobs import record as record_files
from nsagent.jobs.record import JobRecord

KEEP: Final = 1000
_SLACK: Final = 50  # so that not every run that ends lists and sorts the directory's times
_SUFFIXES: Final = (".json", ".removed")
_LOCK: Final = "counter.lock"


def read_ended(state_dir: str) -> list[JobRecord]:
    """Return the newest jobs that ended, in the order of their end."""
    return sorted(record_files.read_all(_directory(state_dir)), key=lambda record: record.end or 0.0)


def remove(state_dir: str, job_id: str) -> bool:
    """Show an ended job to nobody any more; tell whether there was one. Raises AccessError."""
    path = os.path.join(_directory(state_dir), job_id)
    try:
        os.rename(f"{path}.json", f"{path}.removed")
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise AccessError(f"job {job_id} cannot be removed: {exc.strerror}", hint="jobs are removed by who ran them") from exc
    prune(os.path.join(state_dir, "jobs"))
    return True


def prune(jobs_directory: str) -> None:
    """Keep the newest KEEP and, while nobody counts, none that was removed. Where an agent counts, it does this."""
    directory = os.path.join(jobs_directory, "ended")
    listed = os.listdir(directory)
    removed = [name for name in listed if name.endswith(".removed")]
    if len(listed) <= KEEP + _SLACK and not removed:
        return
    if _is_counted(directory):
        return
    for name in [*removed, *_old(directory)]:
        _unlink(directory, name)


def _is_counted(directory: str) -> bool:
    try:
        fd = os.open(os.path.join(directory, _LOCK), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _old(directory: str) -> list[str]:
    times = []
    for entry in os.scandir(directory):
        if entry.name.endswith(_SUFFIXES) and not entry.name.startswith("."):
            with contextlib.suppress(FileNotFoundError):  # another launcher prunes too
                times.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
    return [name for _, name in sorted(times)[:-KEEP]]


def _unlink(directory: str, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(directory, name))


def _directory(state_dir: str) -> str:
    return os.path.join(state_dir, "jobs", "ended")


class Counting:
    """The right to count ended jobs of a state directory: one process has it at a time, until `close`."""

    def __init__(self, state_dir: str) -> None:
        """Raises AccessError where the directory cannot be written."""
        self._directory = _directory(state_dir)
        try:
            os.makedirs(self._directory, mode=0o700, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._fd = os.open(os.path.join(self._directory, _LOCK), flags, 0o600)
            fcntl.flock(self._fd, fcntl.LOCK_EX)  # only a launcher that asks has it, for a moment
        except OSError as exc:
            raise AccessError(f"{self._directory} cannot be written: {exc.strerror}", hint="see --state-dir") from exc

    def ids(self) -> dict[str, str]:
        """Return the file of every job that ended and is there, by the job's id; those that were removed too."""
        found = {}
        for name in os.listdir(self._directory):
            stem, suffix = os.path.splitext(name)
            if suffix in _SUFFIXES and not name.startswith("."):
                found[stem] = name
        return found

    def read(self, name: str) -> JobRecord | None:
        """Return what a file of `ids` says; None where it is none of ours. One removed meanwhile is found as that."""
        stem = os.path.splitext(name)[0]
        for path in (os.path.join(self._directory, other) for other in (name, f"{stem}.removed")):
            try:
                return record_files.read(path)
            except FileNotFoundError:
                continue
            except (OSError, ParseError):
                return None
        return None

    def has(self, job_id: str) -> bool:
        """Tell whether a job's file is there; a rename goes from the first suffix to the second."""
        return any(os.path.lexists(os.path.join(self._directory, job_id + suffix)) for suffix in _SUFFIXES)

    def prune(self, counted: dict[str, str]) -> list[str]:
        """Remove the files of `counted` that are old, or were removed already; return their ids."""
        old = set(_old(self._directory)) if len(counted) > KEEP + _SLACK else set()
        pruned = [job_id for job_id, name in counted.items() if name in old or name.endswith(".removed")]
        for job_id in pruned:
            _unlink(self._directory, counted[job_id])
        return pruned

    def close(self) -> None:
        """Let another have it."""
        os.close(self._fd)
