"""The agent's Unix socket: what the command line asks a running agent for, and the stream of events to any number of readers.

    client                                     agent
    {"request": "metrics"}\\n            ->
                                         <-    {"ok": true, "bytes": N}\\n and N bytes of exposition
    {"request": "status"}\\n             ->
                                         <-    {"ok": true, "status": {...}}\\n
    {"request": "namespaces"}\\n         ->    what the tasks of each have used since the programs were loaded
                                         <-    {"ok": true, "exact": true}\\n, then a line each: {"kind": "pid", "inum": N,
                                               "id": N, "usage": {"cpu_ns": N, ...}}, usage.Usage but for what is missing
    {"request": "history", "kind": "pid", "inum": N, "id": N}\\n   ->   each of the three may be left out
                                         <-    {"ok": true, "since": T, "lost": N, "evicted": N}\\n, then a line a record, as
                                               records.Record.to_json makes them
                                               both end with {"end": N}: so many lines came between
    {"request": "trace", "output": "text", "kind": "pid", "pid": 1, "failed": true, "all": true, "cgroup": "/a", "count": 9}\\n
                                         ->
                                         <-    {"ok": true}\\n, then a line an event: {"line": "..."}, or {"lost": N}: so many
                                               more were dropped because this client read too slowly; then the end of the stream
    anything else                        <-    {"ok": false, "error": "...", "hint": "..."}\\n

One request a connection. The socket is its owner's alone (0600). `<state-dir>/agent.lock` is locked while the agent lives and
holds its pid: who gets the lock may replace the socket, which can only be a dead agent's.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import fcntl
import itertools
import json
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, Final

from nsagent.cgroups.layout import read_layout
from nsagent.cgroups.subtree import Subtree
from nsagent.errors import AccessError, NsagentError, UnsupportedError, UsageError
from nsagent.events import Event, EventFilter
from nsagent.jobs import check_state_dir
from nsagent.namespaces import NamespaceKind

log = logging.getLogger(__name__)

_CLIENTS: Final = 64
_REQUEST_BYTES: Final = 4096
_REQUEST_SECONDS: Final = 5.0
_QUEUE: Final = 8192  # events a client may be behind: some 6 MB
Answer = Callable[[dict[str, Any]], tuple[dict[str, Any], Iterable[Mapping[str, Any]]]]
_FIELDS: Final = {"output": str, "kind": str, "pid": int, "failed": bool, "all": bool, "count": int, "cgroup": str}


def socket_path(state_dir: str) -> str:
    """Return where an agent with this state directory listens."""
    return os.path.join(state_dir, "agent.sock")


class Subscription:
    """One reader's bounded queue of events. `fileno` polls readable while there may be some."""

    def __init__(self, wanted: EventFilter, limit: int) -> None:
        self._wanted = wanted
        self._limit = limit
        self._events: collections.deque[Event] = collections.deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._lost = 0
        self.all = wanted.all

    def fileno(self) -> int:
        """Return an eventfd."""
        return self._wake

    def offer(self, events: Sequence[Event]) -> int:
        """Queue those that are wanted; return how many of them were lost because the queue is full."""
        wanted = [event for event in events if self._wanted(event)]
        room = max(0, self._limit - len(self._events))
        self._events.extend(wanted[:room])
        lost = len(wanted) - len(wanted[:room])
        self._lost += lost
        if wanted:
            os.eventfd_write(self._wake, 1)
        return lost

    def take(self) -> tuple[list[Event], int]:
        """Return what is queued, and how many were lost up to now; does not wait."""
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        events = []
        while self._events:
            events.append(self._events.popleft())
        return events, self._lost

    def close(self) -> None:
        """Give up the eventfd. Only when `Hub` has forgotten this subscription."""
        os.close(self._wake)


class Hub:
    """Hands each event to every subscription, which holds at most `limit`. `trace_all` is told whether one wants plain forks."""

    def __init__(self, trace_all: Callable[[bool], None], limit: int = _QUEUE) -> None:
        self._trace_all = trace_all
        self._limit = limit
        self._lock = threading.Lock()
        self._subscriptions: list[Subscription] = []
        self._lost = 0

    @property
    def idle(self) -> bool:
        """True while nobody listens."""
        return not self._subscriptions

    @property
    def lost(self) -> int:
        """Events that a slow client lost, summed over clients."""
        return self._lost

    def publish(self, events: Sequence[Event]) -> None:
        """Offer events to all; never waits for a reader."""
        with self._lock:
            for subscription in self._subscriptions:
                self._lost += subscription.offer(events)

    @contextlib.contextmanager
    def subscribe(self, wanted: EventFilter) -> Iterator[Subscription]:
        """Receive what is published from here on, until the context ends."""
        subscription = Subscription(wanted, self._limit)
        with self._lock:
            self._subscriptions.append(subscription)
            self._tell()
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions.remove(subscription)
                self._tell()
            subscription.close()

    def _tell(self) -> None:
        self._trace_all(any(subscription.all for subscription in self._subscriptions))


class StateLock:
    """The agent's claim on its state directory, until `release` or the end of the process.

    Raises:
        NsagentError: another agent lives there; names its pid.
        AccessError: the directory cannot be made or written.
    """

    def __init__(self, state_dir: str) -> None:
        path = os.path.join(state_dir, "agent.lock")
        check_state_dir(state_dir)
        try:
            os.makedirs(state_dir, mode=0o755 if os.geteuid() == 0 else 0o700, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise AccessError(
                f"cannot use state directory {state_dir}: {error.strerror}", hint="name one that you can write with --state-dir"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.read(self._fd, 32).decode("ascii", "replace").strip()
            os.close(self._fd)
            raise NsagentError(
                f"an agent already runs with state directory {state_dir}: process {pid or 'unknown'}",
                hint="stop it first, or give this one a world of its own: --state-dir, --pin-dir and --listen",
            ) from None
        os.ftruncate(self._fd, 0)
        os.write(self._fd, f"{os.getpid()}\n".encode())

    def release(self) -> None:
        """Let another agent have it. The file stays: removing it would let two agents lock two files of one name."""
        os.ftruncate(self._fd, 0)
        os.close(self._fd)


class Control:
    """Answers on the socket in threads. `hub` is None where nothing is traced, for the reason that `untraced` gives."""

    def __init__(
        self,
        state_dir: str,
        *,
        scrape: Callable[[], bytes],
        status: Callable[[], dict[str, Any]],
        hub: Hub | None,
        untraced: str = "",
        answers: Mapping[str, Answer] | None = None,
    ) -> None:
        """The caller has the StateLock, and no threads yet: the socket is made under a umask of our own.

        `answers` has, by the name of the request, what makes its first line (without "ok") and the lines that follow.
        """
        self.path = socket_path(state_dir)
        self._scrape = scrape
        self._status = status
        self._hub = hub
        self._untraced = untraced
        self._answers = dict(answers or {})
        self._free = threading.BoundedSemaphore(_CLIENTS)
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="control", daemon=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        before = os.umask(0o177)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
            self._socket.bind(self.path)
        except OSError as error:
            self._socket.close()
            raise AccessError(f"cannot make the socket {self.path}: {error.strerror}", hint="see --state-dir") from error
        finally:
            os.umask(before)

    def start(self) -> None:
        """Listen, and answer in threads."""
        self._socket.listen(_CLIENTS)
        self._thread.start()

    def close(self) -> None:
        """Remove the socket and take no more clients."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._thread.is_alive():
            self._thread.join(5)
        self._socket.close()
        with contextlib.suppress(OSError):  # gone with its directory, or no socket any more
            os.unlink(self.path)

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._socket.accept()
            except OSError as error:
                if self._closing:
                    return
                log.warning("event=accept_failed socket=control reason=%s", error.strerror)
                time.sleep(0.1)
                continue
            if not self._free.acquire(blocking=False):
                with client, contextlib.suppress(OSError):
                    hint = "end some of the commands that talk to it, such as nsagent trace; see docs/serving.md"
                    _send(client, {"ok": False, "error": f"the agent has {_CLIENTS} clients already", "hint": hint})
                continue
            try:
                threading.Thread(target=self._serve, args=(client,), name="control-client", daemon=True).start()
            except RuntimeError:
                client.close()
                self._free.release()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):
                try:
                    self._answer(client, _read_request(client))
                except NsagentError as error:
                    _send(client, {"ok": False, "error": error.message, "hint": error.hint})
                except OSError:
                    raise
                except Exception as error:  # a bug must cost one answer, not the agent
                    log.exception("event=request_failed socket=control")
                    _send(client, {"ok": False, "error": f"internal error: {error}", "hint": "see the agent's log"})
        finally:
            self._free.release()

    def _answer(self, client: socket.socket, request: dict[str, Any]) -> None:
        match request.get("request"):
            case "metrics":
                body = self._scrape()
                _send(client, {"ok": True, "bytes": len(body)})
                client.sendall(body)
            case "status":
                _send(client, {"ok": True, "status": self._status()})
            case "trace":
                self._trace(client, request)
            case str(name) if name in self._answers:
                head, rows = self._answers[name](request)
                _send(client, {"ok": True} | head)
                _send_rows(client, rows)
            case other:
                raise UsageError(f"no request is called {other!r}", hint=", ".join(["metrics, status, trace", *self._answers]))

    def _trace(self, client: socket.socket, request: dict[str, Any]) -> None:
        if self._hub is None:
            raise UnsupportedError("tracing", self._untraced, hint="see 'nsagent doctor'")
        wanted, as_json, left = parse_trace(request)
        with self._hub.subscribe(wanted) as subscription:
            _send(client, {"ok": True})
            client.settimeout(None)  # a stopped reader may go on later; its queue is bounded
            told = 0
            poll = select.poll()
            poll.register(client, select.POLLIN | select.POLLHUP | select.POLLRDHUP)
            poll.register(subscription, select.POLLIN)
            while left is None or left > 0:
                ready = {fd for fd, _ in poll.poll()}
                if client.fileno() in ready:  # it has nothing more to say: it is gone
                    return
                events, lost = subscription.take()
                events = events[:left]
                lines = [json.dumps({"line": e.to_json() if as_json else e.to_text()}) for e in events]
                if lost > told:
                    lines.append(json.dumps({"lost": lost - told}))
                    told = lost
                client.sendall("".join(f"{line}\n" for line in lines).encode("utf-8", "backslashreplace"))
                left = left if left is None else left - len(events)


def parse_trace(request: dict[str, Any]) -> tuple[EventFilter, bool, int | None]:
    """Check a trace request; return the filter, whether JSON is wanted, and the count (None: endless). Raises UsageError."""
    for name, value in request.items():
        if name != "request" and (name not in _FIELDS or type(value) is not _FIELDS[name]):
            raise UsageError(f"trace: {name}={value!r} is not understood", hint=f"fields: {', '.join(_FIELDS)}")
    try:
        kind = NamespaceKind(request["kind"]) if "kind" in request else None
    except ValueError:
        raise UsageError(f"no namespace kind {request['kind']!r}", hint=f"one of {', '.join(NamespaceKind)}") from None
    if request.get("output", "text") not in ("text", "json") or request.get("count", 1) < 1:
        raise UsageError("trace: output is text or json, count 1 or more")
    below = Subtree(read_layout(), request["cgroup"]) if "cgroup" in request else None
    wanted = EventFilter(kind, request.get("pid"), request.get("failed", False), request.get("all", False), below)
    return wanted, request.get("output", "text") == "json", request.get("count")


def _send_rows(client: socket.socket, rows: Iterable[Mapping[str, Any]]) -> None:
    """Send a line each, and their number; some at a time, so that thousands never stand in memory together."""
    count, left = 0, iter(rows)
    while lines := [json.dumps(row) + "\n" for row in itertools.islice(left, 64)]:
        count += len(lines)
        client.sendall("".join(lines).encode())
    _send(client, {"end": count})


def _send(client: socket.socket, message: dict[str, Any]) -> None:
    client.sendall(json.dumps(message).encode() + b"\n")


def _read_request(client: socket.socket) -> dict[str, Any]:
    end = time.monotonic() + _REQUEST_SECONDS
    data = b""
    while not data.endswith(b"\n"):
        left = end - time.monotonic()
        if left <= 0 or len(data) > _REQUEST_BYTES:
            raise UsageError("no request came", hint="one line of JSON, at most 4 KiB, within 5 s")
        client.settimeout(left)
        try:
            chunk = client.recv(_REQUEST_BYTES)
        except TimeoutError:
            continue
        if not chunk:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the client went away")
        data += chunk
    client.settimeout(60.0)
    try:
        request = json.loads(data)
    except (ValueError, RecursionError):
        request = None
    if not isinstance(request, dict):
        raise UsageError("a request is a JSON object")
    return request


def ask(state_dir: str, request: dict[str, Any]) -> tuple[dict[str, Any], BinaryIO] | None:
    """Send a request to the agent of `state_dir`; return its first line and the stream behind it. None where none runs.

    Raises:
        AccessError: the socket is another user's.
        NsagentError: what the agent answered instead.
    """
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        client.connect(socket_path(state_dir))
        with contextlib.suppress(BrokenPipeError):  # it is full, and has said so and closed: the answer is there to be read
            client.sendall(json.dumps(request).encode() + b"\n")
        stream = client.makefile("rb")
        first = stream.readline()
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except PermissionError as error:
        raise AccessError(
            f"the agent's socket {socket_path(state_dir)} may not be used", hint="run as its user, or root"
        ) from error
    except OSError as error:
        raise NsagentError(f"{socket_path(state_dir)}: {error.strerror}", hint="see --state-dir") from error
    finally:
        client.close()  # the stream keeps the connection
    try:
        answer: dict[str, Any] = dict(json.loads(first)) if first else {"error": "the agent closed the connection"}
    except (ValueError, TypeError, RecursionError):
        answer = {"error": f"{socket_path(state_dir)}: the answer is no agent's", "hint": "see --state-dir"}
    if not answer.get("ok"):
        stream.close()
        raise NsagentError(answer.get("error", "the agent refused"), hint=answer.get("hint", ""))
    return answer, stream


def ask_rows(state_dir: str, request: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """Send a request that is answered by rows; return the first line and the rows. None where no agent runs.

    Raises:
        AccessError, NsagentError: as `ask`; also where the answer broke off.
    """
    answer = ask(state_dir, request)
    if answer is None:
        return None
    with answer[1] as stream:
        *rows, last = [json.loads(line) for line in stream] or [{}]
    if last.get("end") != len(rows):
        raise NsagentError("the agent broke off its answer", hint=last.get("error", "see its log"))
    return answer[0], rows
