"""What detached jobs wrote: <state-dir>/jobs/logs/<id>.log, and <id>.log.1 with what came before it. Bounded, for /run is memory.

When a log is full it becomes the second file, and the second one goes: the newest MOST_BYTES at least are there, and at most
twice as much. Of jobs that ended the newest logs are kept, as far as TOTAL_BYTES go.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Final

from nsagent.errors import AccessError
from nsagent.jobs.record import names

MOST_BYTES: Final = 4 << 20
TOTAL_BYTES: Final = 256 << 20
_PIECE: Final = 1 << 16


def path(state_dir: str, job_id: str) -> str:
    """Return where a job's log is."""
    return os.path.join(state_dir, "jobs", "logs", f"{job_id}.log")


class Log:
    """Appends to a job's log."""

    def __init__(self, state_dir: str, job_id: str, most_bytes: int = MOST_BYTES) -> None:
        """Raises AccessError."""
        self._path = path(state_dir, job_id)
        self._most_bytes = most_bytes
        self._size = 0
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            self._fd = self._open()
        except OSError as exc:
            raise AccessError(f"{self._path} cannot be written: {exc.strerror}", hint="see --state-dir") from exc

    def _open(self) -> int:
        return os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        """Append. What a full disk refuses is lost: a job does not wait for its log."""
        with contextlib.suppress(OSError):
            while data:
                if self._size >= self._most_bytes:
                    os.rename(self._path, f"{self._path}.1")
                    fd = self._open()
                    os.close(self._fd)
                    self._fd, self._size = fd, 0
                count = os.write(self._fd, data[: self._most_bytes - self._size])
                self._size += count
                data = data[count:]

    def remove(self) -> None:
        """Remove it again: the job never ran."""
        os.close(self._fd)
        os.unlink(self._path)


class Reading:
    """Reads a log from its begin, and on when more comes, through the change of files."""

    def __init__(self, state_dir: str, job_id: str) -> None:
        self._path = path(state_dir, job_id)
        self._fd = -1

    def read(self) -> Iterator[bytes]:
        """Yield what has come since the last call."""
        if self._fd < 0:
            yield from self._take(f"{self._path}.1")
            yield from self._take(self._path)
            return
        yield from _rest(self._fd)
        with contextlib.suppress(FileNotFoundError):
            if os.stat(self._path).st_ino != os.fstat(self._fd).st_ino:
                yield from _rest(self._fd)  # what came between the two looks
                yield from self._take(self._path)

    def _take(self, name: str) -> Iterator[bytes]:
        with contextlib.suppress(FileNotFoundError):
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self.close()
            self._fd = fd
            yield from _rest(fd)

    def close(self) -> None:
        """Close the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _rest(fd: int) -> Iterator[bytes]:
    while data := os.read(fd, _PIECE):
        yield data


def remove(state_dir: str, job_id: str) -> None:
    """Remove a job's log, if it has one."""
    for name in (path(state_dir, job_id), f"{path(state_dir, job_id)}.1"):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)


def prune(state_dir: str, total_bytes: int = TOTAL_BYTES) -> None:
    """Remove the logs of jobs that are no longer registered, and the oldest of those that ended until they fit."""
    jobs = os.path.join(state_dir, "jobs")
    ended = {name[:-5] for name in names(os.path.join(jobs, "ended"))}
    live = {name[:-5] for name in names(jobs)}  # read last: one that ends meanwhile is in one of the two
    logs = []
    for entry in os.scandir(os.path.join(jobs, "logs")):
        with contextlib.suppress(FileNotFoundError):
            status = entry.stat(follow_symlinks=False)
            logs.append((status.st_mtime_ns, entry.name.partition(".log")[0], status.st_size))
    left = total_bytes
    for _, job_id, size in sorted(logs, reverse=True):
        if job_id not in live:
            left -= size
            if left < 0 or job_id not in ended:
                remove(state_dir, job_id)
