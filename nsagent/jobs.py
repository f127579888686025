"""The registry of launched jobs: one JSON file a job, read by `run`, `ps` and the agent. It launches and kills nothing.

    <state-dir>/jobs/<id>.json         a job whose launcher lives, and holds an exclusive flock(2) on the file
    <state-dir>/jobs/ended/<id>.json   a job that ended, never changed again; the newest KEEP are kept

A job's file is made and locked before its cgroup, so that whatever can be found on the node after a SIGKILL has a
file. A file is replaced, never rewritten: the new one is locked under a hidden name, then renamed over the old one,
so that a reader sees a whole record and the name always leads to a locked file. Under `jobs/`, a file that can be
locked is one whose launcher died: `abandoned` takes it over.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from nsagent.errors import AccessError, ParseError

KEEP: Final = 1000
_SLACK: Final = 50  # so that not every run that ends lists and sorts the directory's times
_STALE_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What is kept of one job. Times are seconds since the epoch; `start_ticks` identifies `pid` (proc_pid_stat(5)).

    `cgroup` is the path below the root of each hierarchy, or "" where the job has none. `outcome`, `end` and
    `exit_code` are None until it ended; an outcome is success, failure, signal, oom, timeout, launch_error, or
    abandoned (the launcher was killed: there is no exit code, and no report). `report` is the whole one (docs/report.md);
    it is empty where CMD never ran.
    """

    id: str
    name: str
    command: tuple[str, ...]
    launcher_pid: int
    start: float
    cgroup: str = ""
    isolate: tuple[str, ...] = ()
    pid: int | None = None
    start_ticks: int | None = None
    namespaces: dict[str, int] = field(default_factory=dict)
    end: float | None = None
    outcome: str | None = None
    exit_code: int | None = None
    reason: str = ""
    report: dict[str, Any] = field(default_factory=dict)


def default_state_dir() -> str:
    """Return this user's state directory: /run/nsagent, or below $XDG_RUNTIME_DIR, or a private one in /tmp."""
    if os.geteuid() == 0:
        return "/run/nsagent"
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    return os.path.join(runtime, "nsagent") if runtime else f"/tmp/nsagent-{os.geteuid()}"


def check_state_dir(state_dir: str) -> None:
    """Refuse a state directory that another user made or can write: what stands there is obeyed, with kills and removals.

    One that does not exist yet is fine. Raises AccessError.
    """
    for path in (state_dir, os.path.join(state_dir, "jobs")):
        try:
            found = [os.lstat(path), os.stat(path)]  # a link in /tmp is whose link it is, too
        except OSError:
            continue
        if any(one.st_uid not in (0, os.geteuid()) for one in found):
            raise AccessError(f"{path} belongs to another user", hint="name a directory of yours with --state-dir")
        if found[1].st_mode & stat.S_IWOTH:
            raise AccessError(f"{path} can be written by every user", hint=f"chmod o-w {path}, or name another --state-dir")


def new_id(name: str) -> str:
    """Return an id for a job called `name`: safe as a file's and as a cgroup's name, and no other job's."""
    word = re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip(".-")[:48] or "job"
    return f"{word}-{os.urandom(4).hex()}"


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
        record = dataclasses.replace(self.record, **changes)
        fd = _write_locked(self._directory, record)
        os.close(self._fd)
        self._fd, self.record = fd, record

    def finish(self, **changes: Any) -> None:
        """Write the last record among the ended jobs, then drop the live one: a crash between them loses nothing."""
        self.record = dataclasses.replace(self.record, **changes)
        os.close(_write_locked(os.path.join(self._directory, "ended"), self.record))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(self._directory, f"{self.record.id}.json"))
        os.close(self._fd)
        _prune(os.path.join(self._directory, "ended"))

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
    for name in _names(directory):
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue  # ended meanwhile, or another user's
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(fd).st_ino != os.stat(path).st_ino:  # replaced while we opened it: its launcher lives
                raise BlockingIOError
            record = _parse(fd, path)
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
    return _read_all(os.path.join(state_dir, "jobs"))


def read_ended(state_dir: str) -> list[JobRecord]:
    """Return the newest jobs that ended, in the order of their end."""
    return sorted(_read_all(os.path.join(state_dir, "jobs", "ended")), key=lambda record: record.end or 0.0)


def _read_all(directory: str) -> list[JobRecord]:
    records = []
    for name in _names(directory):
        path = os.path.join(directory, name)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            with contextlib.suppress(ParseError):  # none of ours
                records.append(_parse(fd, path))
        finally:
            os.close(fd)
    return sorted(records, key=lambda record: record.start)


def _parse(fd: int, path: str) -> JobRecord:
    """Raises ParseError where the file is no job's record. Fields of a later version are left out."""
    pieces = []
    while piece := os.read(fd, 1 << 16):
        pieces.append(piece)
    try:
        known = {f.name for f in dataclasses.fields(JobRecord)}
        fields = {key: value for key, value in json.loads(b"".join(pieces)).items() if key in known}
        for key in ("command", "isolate"):
            fields[key] = tuple(fields[key])
        record = JobRecord(**fields)
        _check(record, os.path.basename(path))
        return record
    except (ValueError, TypeError, KeyError, AttributeError, OSError, RecursionError) as exc:
        raise ParseError(f"not the record of a job: {exc}", path=path) from exc


def _check(record: JobRecord, file_name: str) -> None:
    """Raise ValueError for a record that would have a sweep kill or write anything but the job that the file is named for."""
    words = (record.name, record.cgroup, *record.command)
    whole = (record.launcher_pid, record.pid or 0, record.start_ticks or 0)
    times = (record.start, record.end or 0.0)
    if file_name != f"{record.id}.json" or not all(isinstance(word, str) for word in words):
        raise ValueError("the id or a word of it is wrong")
    if record.cgroup and not f"/{record.cgroup}".endswith(f"/nsagent/{record.id}"):
        raise ValueError(f"{record.cgroup!r} is not its cgroup")
    if not all(isinstance(number, int) and number >= 0 for number in whole) or not all(isinstance(t, int | float) for t in times):
        raise ValueError("a number of it is wrong")


def _names(directory: str) -> list[str]:
    try:
        return [name for name in os.listdir(directory) if name.endswith(".json")]
    except OSError:  # not there, not ours to read, or no directory: what writes there says so
        return []


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
            os.write(fd, json.dumps(dataclasses.asdict(record), separators=(",", ":")).encode() + b"\n")
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


def _prune(directory: str) -> None:
    """Keep the newest KEEP ended jobs, and no hidden file of a launcher that died while it wrote."""
    entries = list(os.scandir(directory))
    if len(entries) <= KEEP + _SLACK:
        return
    times = []
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):  # another launcher prunes too
            times.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
    old = [name for _, name in sorted(times)[:-KEEP]]
    for name in old:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(os.path.join(directory, name))


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
