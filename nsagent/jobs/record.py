"""What the registry keeps of one job, read with suspicion; and which directory it is in."""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

from nsagent.errors import AccessError, ParseError

_NONE: Final[dict[str, Any]] = {}  # of a record that was never given one; nobody writes to it


class JobRecord(NamedTuple):
    """What is kept of one job. Times are seconds since the epoch; `start_ticks` identifies `pid` (proc_pid_stat(5)).

    `cgroup` is the path below the root of each hierarchy, or "" where the job has none. `outcome`, `end` and
    `exit_code` are None until it ended; an outcome is success, failure, signal, oom, timeout, launch_error, or
    abandoned (the launcher was killed: there is no exit code, and no report). `report` is the whole one (docs/report.md);
    it is empty where CMD never ran. `given` is what CMD may do and begins with, while it runs (nsagent.launch.inside).
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
    namespaces: dict[str, int] = _NONE
    end: float | None = None
    outcome: str | None = None
    exit_code: int | None = None
    reason: str = ""
    report: dict[str, Any] = _NONE
    given: dict[str, Any] = _NONE


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
        if found[1].st_mode & stat.S_IWGRP and found[1].st_gid not in (0, os.getegid()):
            raise AccessError(
                f"{path} can be written by group {found[1].st_gid}", hint=f"chmod g-w {path}, or name another --state-dir"
            )


def new_id(name: str) -> str:
    """Return an id for a job called `name`: safe as a file's and as a cgroup's name, and no other job's."""
    return f"{stem(name)}-{os.urandom(4).hex()}"


def stem(name: str) -> str:
    """Return the part of an id that comes of the job's name."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", name).strip(".-")[:48] or "job"


def parse(fd: int, path: str) -> JobRecord:
    """Return the record in an open file, without fields of a later version. Raises ParseError where it is no job's."""
    pieces = []
    while piece := os.read(fd, 1 << 16):
        pieces.append(piece)
    try:
        known = set(JobRecord._fields)
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
    if file_name not in (f"{record.id}.json", f"{record.id}.removed") or not all(isinstance(word, str) for word in words):
        raise ValueError("the id or a word of it is wrong")
    if record.cgroup and not re.fullmatch(rf"(.+/)?nsagent/([^/]+/)*{re.escape(record.id)}", record.cgroup):
        raise ValueError(f"{record.cgroup!r} is not its cgroup")
    if not all(isinstance(number, int) and number >= 0 for number in whole) or not all(isinstance(t, int | float) for t in times):
        raise ValueError("a number of it is wrong")


def read(path: str) -> JobRecord:
    """Return the record in a file. Raises OSError, and ParseError where it is none."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return parse(fd, path)
    finally:
        os.close(fd)


def read_all(directory: str, suffix: str = ".json") -> Iterator[JobRecord]:
    """Yield the records of a directory; what ended meanwhile, is another user's or none of ours is left out."""
    for name in names(directory, suffix):
        try:
            yield read(os.path.join(directory, name))
        except (OSError, ParseError):
            continue


def names(directory: str, suffix: str = ".json") -> list[str]:
    """Return the names of its files that are no hidden ones."""
    try:
        return [name for name in os.listdir(directory) if name.endswith(suffix) and not name.startswith(".")]
    except OSError:  # not there, not ours to read, or no directory: what writes there says so
        return []
