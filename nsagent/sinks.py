"""Sinks: the stream of events written to where it is kept. docs/events.md says what a line holds and what a sink loses.

    ring thread -> a subscription's bounded queue -> the sink's own thread -> file, socket, journal, standard output
                   full: the newest events are lost and counted; what is queued already has no gaps

Nothing here is ever waited for: a disk that is full, a pipe nobody reads or a journal that hangs stops one thread.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import itertools
import json
import logging
import os
import select
import socket
import stat
import threading
import time
import urllib.parse
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Protocol

from nsagent.errors import AccessError, UnsupportedError, UsageError

log = logging.getLogger(__name__)

_RETRY_MS: Final = 1000
_HINT: Final = "file:/path?size=64M&keep=5, unix:/path, journald or stdout; each may end in ?format=text"
_DEFAULT_SIZE: Final = "64M"
_DEFAULT_KEEP: Final = 5
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
# What waiting does not mend: said at the start. A pipe without a reader (ENXIO) and a full disk may get better.
_HOPELESS: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG}
)


class Record(Protocol):
    """What a sink writes: an event, or a finding. Its lines are the same each time; `priority` is syslog's."""

    @property
    def priority(self) -> int: ...

    def to_json(self) -> str: ...

    def to_text(self) -> str: ...


class Source(Protocol):
    """A bounded queue that polls readable; `take` returns what is queued, and how many were lost up to now."""

    def fileno(self) -> int: ...

    def take(self) -> tuple[Sequence[Record], int]: ...


@dataclass(frozen=True, slots=True)
class Lost:
    """Stands in the stream near the place where `count` events are missing."""

    schema: int
    time: float
    count: int

    @property
    def priority(self) -> int:
        """LOG_WARNING."""
        return 4

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps({"schema": self.schema, "type": "lost", "time": self.time, "count": self.count})

    def to_text(self) -> str:
        """One line."""
        return f"{self.count} events lost: they came faster than this sink takes them"


@dataclass(frozen=True, slots=True)
class SinkSpec:
    """Where to write. `size_bytes` 0 never rotates; `keep` is how many rotated files stay; `path` empty is the default."""

    kind: str
    path: str = ""
    text: bool = False
    size_bytes: int = 0
    keep: int = 0

    def __str__(self) -> str:
        return f"{self.kind}:{self.path}" if self.path else self.kind


def parse(text: str, parse_bytes: Callable[[str, str], int]) -> SinkSpec:
    """Parse ``file:/path?size=64M&keep=5``, ``unix:/path``, ``journald``, ``stdout``; `parse_bytes` turns a size to bytes.

    Raises:
        UsageError: it is none of these, or has a parameter that the sink does not take.
    """
    where, _, query = text.strip().partition("?")
    kind, _, path = where.partition(":")
    takes = {"file": {"format", "size", "keep"}, "unix": {"format"}, "journald": {"socket"}, "stdout": {"format"}}.get(kind)
    if takes is None or bool(path) != (kind in ("file", "unix")) or (path and not path.startswith("/")):
        raise UsageError(f"--events-to {text!r} is no sink", hint=_HINT)
    given: dict[str, str] = {}
    for word in query.split("&") if query else ():
        name, equals, value = word.partition("=")
        if name not in takes or not equals or name in given:
            raise UsageError(f"--events-to {text!r}: {kind} takes no {word!r}", hint=_HINT)
        given[name] = urllib.parse.unquote(value)
    if given.get("format", "json") not in ("json", "text"):
        raise UsageError(f"--events-to {text!r}: the formats are json and text", hint=_HINT)
    size, keep = given.get("size", _DEFAULT_SIZE), given.get("keep", str(_DEFAULT_KEEP))
    if not keep.isascii() or not keep.isdigit() or int(keep) > 999:
        raise UsageError(f"--events-to {text!r}: keep is a number of files up to 999", hint=_HINT)
    return SinkSpec(
        kind,
        given.get("socket", urllib.parse.unquote(path)),
        given.get("format") == "text",
        0 if size == "0" or kind != "file" else parse_bytes(size, "--events-to size"),
        int(keep) if kind == "file" else 0,
    )


Pending = collections.deque[Record]


class Output(Protocol):
    """Writes from the front of `pending` without waiting, and takes out what is wholly written."""

    def fileno(self) -> int:
        """Return what to wait for after BlockingIOError; -1: there is nothing to poll, try again soon."""
        ...

    def write(self, pending: Pending) -> None:
        """Write some. Raises BlockingIOError: not now; OSError: it does not work, perhaps later."""
        ...

    def close(self) -> None: ...


class _Bytes:
    """Lines to a descriptor that `_open` makes; a line that was cut is finished first, on a new connection begun again."""

    chunk_bytes = 1 << 16  # and the rest of a line: who reads a file meanwhile finds whole lines at most times

    def __init__(self, spec: SinkSpec) -> None:
        self._spec = spec
        self._fd = -1
        self._done = 0  # bytes of the first pending line that are written
        self._lines: collections.deque[bytes] = collections.deque()  # the first of `pending`, encoded

    def fileno(self) -> int:
        return self._fd

    def write(self, pending: Pending) -> None:
        try:
            if self._fd < 0:
                self._fd = self._open()
            if not self._done:
                self._between_lines()
            room = self.chunk_bytes + self._done - sum(map(len, self._lines))
            for record in itertools.islice(pending, len(self._lines), None):
                if room <= 0:
                    break
                self._lines.append(self._line(record))
                room -= len(self._lines[-1])
            self._advance(pending, self._put(b"".join(self._lines)[self._done :]))
        except BlockingIOError:
            raise
        except OSError as error:
            if error.errno in _FULL:
                self._take_back()
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptor; the next write opens another."""
        self._done = 0
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _line(self, record: Record) -> bytes:
        line = record.to_text() if self._spec.text else record.to_json()
        return line.encode("utf-8", "backslashreplace") + b"\n"

    def _advance(self, pending: Pending, written: int) -> None:
        self._done += written
        while self._lines and self._done >= len(self._lines[0]):
            self._done -= len(self._lines.popleft())
            pending.popleft()

    def _take_back(self) -> None:
        """Remove the part of a line for whose rest there is no room: the disk may have some later, elsewhere."""

    def _open(self) -> int:
        raise NotImplementedError

    def _between_lines(self) -> None:
        """Called where a line begins."""

    def _put(self, data: bytes) -> int:
        return os.write(self._fd, data)


class _File(_Bytes):
    """Appends to a file; rotates it by size, and follows when somebody else renames it. Pipes and devices are not rotated."""

    def __init__(self, spec: SinkSpec) -> None:
        super().__init__(spec)
        try:
            self._fd = self._open()
        except OSError as error:
            if error.errno in _HOPELESS:
                raise AccessError(f"cannot write events to {spec.path}: {error.strerror}", hint="see --events-to") from error

    def _open(self) -> int:
        # O_NONBLOCK: a pipe without a reader is ENXIO at once, one whose reader stopped is EAGAIN
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        return os.open(self._spec.path, flags, 0o600)

    def _between_lines(self) -> None:
        ours = os.fstat(self._fd)
        if not stat.S_ISREG(ours.st_mode):
            return
        if self._spec.size_bytes and ours.st_size >= self._spec.size_bytes:
            self._rotate()
        else:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(ours, os.stat(self._spec.path)):
                    return
        self.close()
        self._fd = self._open()

    def _take_back(self) -> None:
        status = os.fstat(self._fd)
        if self._done and stat.S_ISREG(status.st_mode):
            os.ftruncate(self._fd, status.st_size - self._done)

    def _rotate(self) -> None:
        path, keep = self._spec.path, self._spec.keep
        if not keep:
            os.unlink(path)
            return
        for number in range(keep - 1, 0, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{path}.{number}", f"{path}.{number + 1}")
        os.rename(path, f"{path}.1")


class _Stdout(_Bytes):
    """Standard output, which others may share: never made non-blocking, so written in pieces a ready pipe surely takes."""

    chunk_bytes = select.PIPE_BUF

    def _open(self) -> int:
        return os.dup(1)

    def _put(self, data: bytes) -> int:
        poll = select.poll()
        poll.register(self._fd, select.POLLOUT)
        if not poll.poll(0):
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
        return super()._put(data[: self.chunk_bytes])


class _Unix(_Bytes):
    """Connects to whoever listens at a path, by stream or datagram as that is; a datagram is a line."""

    def __init__(self, spec: SinkSpec) -> None:
        super().__init__(spec)
        self._datagrams = False

    def _open(self) -> int:
        for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
            client = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
            try:
                client.connect(self._spec.path)
            except OSError as error:
                client.close()
                if error.errno == errno.EPROTOTYPE and kind == socket.SOCK_STREAM:
                    continue
                # EAGAIN: its queue of connections is full. There is no descriptor yet to wait for.
                raise ConnectionError(error.errno, error.strerror) from error
            self._datagrams = kind == socket.SOCK_DGRAM
            return client.detach()
        raise AssertionError

    def _put(self, data: bytes) -> int:
        return super()._put(data[: data.index(b"\n") + 1] if self._datagrams else data)


class _Journal:
    """The systemd journal, by its native protocol: each event an entry with its JSON in NSAGENT_JSON."""

    def __init__(self, spec: SinkSpec) -> None:
        try:
            import logging_journald
        except ImportError:
            raise UnsupportedError(
                "journald sink", "no module named logging_journald", hint="pip install 'nsagent[journald]'"
            ) from None
        self._transport: Any = logging_journald.JournaldTransport(spec.path or None, connected=False)
        self._transport.socket.setblocking(False)

    def fileno(self) -> int:
        return -1  # an unconnected socket does not know whose queue is full

    def write(self, pending: Pending) -> None:
        record = pending[0]
        fields = {
            "MESSAGE": record.to_text().encode("utf-8", "backslashreplace"),
            "PRIORITY": record.priority,
            "SYSLOG_IDENTIFIER": "nsagent",
            "NSAGENT_JSON": record.to_json(),
        }
        self._transport.send(fields.items())
        pending.popleft()

    def close(self) -> None:
        self._transport.socket.close()


_OUTPUTS: Final[dict[str, Callable[[SinkSpec], Output]]] = {
    "file": _File,
    "unix": _Unix,
    "journald": _Journal,
    "stdout": _Stdout,
}


class Sink:
    """One destination and its thread. `subscribe` gives the queue it empties; `schema` is the number of the JSON schema.

    Raises:
        AccessError: the file cannot be made.
        UnsupportedError: the library that speaks to the journal is not installed.
    """

    def __init__(self, spec: SinkSpec, subscribe: Callable[[], AbstractContextManager[Source]], schema: int) -> None:
        self.spec = spec
        self._output = _OUTPUTS[spec.kind](spec)
        self._subscribe = subscribe
        self._schema = schema
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._failures: set[str] = set()
        self._thread = threading.Thread(target=self._run, name=f"sink-{spec.kind}", daemon=True)
        self._source: Source
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        """Receive from here on, and write in a thread."""
        self._source = self._stack.enter_context(self._subscribe())
        self._thread.start()

    def close(self, deadline_s: float = 2.0) -> None:
        """Write what is queued as far as that needs no waiting, and end. A thread that hangs in the kernel is left behind."""
        os.eventfd_write(self._stop, 1)
        if self._thread.is_alive():
            self._thread.join(deadline_s)
        if not self._thread.is_alive():
            self._stack.close()
            self._output.close()
            os.close(self._stop)

    def _run(self) -> None:
        pending: Pending = collections.deque()
        told, stopping = 0, False
        while not stopping:
            stopping = self._wait(self._source.fileno(), select.POLLIN)
            records, lost = self._source.take()
            pending.extend(records)
            if lost > told:
                pending.append(Lost(self._schema, time.time(), lost - told))
                told = lost
            while pending and self._write(pending, stopping):
                pass
            if self._failures and not pending:
                self._failures.clear()
                log.info("event=sink_recovered sink=%s", self.spec)
            stopping = stopping or bool(pending)
        if pending:
            log.warning("event=sink_closed sink=%s unwritten=%d", self.spec, len(pending))

    def _write(self, pending: Pending, stopping: bool) -> bool:
        """Write some; after a refusal wait for a better moment. False: it is time to end."""
        try:
            self._output.write(pending)
        except BlockingIOError:
            fd = self._output.fileno()
            return not stopping and not self._wait(fd, select.POLLOUT, None if fd >= 0 else 10)
        except OSError as error:
            reason = error.strerror or str(error)
            if reason not in self._failures:
                self._failures.add(reason)
                log.warning("event=sink_failed sink=%s reason=%s", self.spec, reason)
            return not stopping and not self._wait(-1, 0, _RETRY_MS)
        return True

    def _wait(self, fd: int, events: int, timeout_ms: int | None = None) -> bool:
        """Wait for `fd` (negative: for the time alone); True when it is time to end."""
        poll = select.poll()
        poll.register(self._stop, select.POLLIN)
        if fd >= 0:
            poll.register(fd, events)
        return self._stop in {ready for ready, _ in poll.poll(timeout_ms)}
