"""The agent's HTTP server: /metrics, /-/healthy, /-/ready and a landing page; GET and HEAD, one request a connection.

It is small rather than general. What a client can cost is bounded: header bytes, time to send them, time to take the
answer, and the number of connections at once. A thread a connection; a slow client holds its own thread alone.
Sources: RFC 9110, RFC 9112.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import socket
import threading
import time
import zlib
from collections.abc import Callable
from typing import Final, NamedTuple

from nsagent.errors import AccessError, NsagentError, UsageError
from nsagent.metrics import encode

log = logging.getLogger(__name__)

_HEADER_BYTES: Final = 16 << 10
_HEADER_SECONDS: Final = 5.0  # from the connection to the last header
_ANSWER_SECONDS: Final = 30.0
_GZIP: Final = 16 + zlib.MAX_WBITS  # with its header and trailer
_CONNECTIONS: Final = 64
_BACKLOG: Final = 128
_REASONS: Final = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    500: "Internal Server Error",
    503: "Service Unavailable",
    505: "HTTP Version Not Supported",
}
_LANDING: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>nsagent</title></head><body>
<h1>nsagent</h1>
<p>What every namespace and cgroup of this node uses.</p>
<ul><li><a href="/metrics">/metrics</a></li>
<li><a href="/-/healthy">/-/healthy</a></li><li><a href="/-/ready">/-/ready</a></li></ul>
</body></html>
"""


class Request(NamedTuple):
    """A request line and its headers, by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]


class Answer(NamedTuple):
    """A status and a body of some type, in pieces."""

    status: int
    body: tuple[bytes, ...]
    type: str = "text/plain; charset=utf-8"


class BadRequest(Exception):
    """What came is no request that is answered; `status` says why."""

    def __init__(self, status: int) -> None:
        super().__init__(_REASONS[status])
        self.status = status


class Server:
    """`listener` is from `bind`; `start` begins to answer. `scrape` makes the exposition: OpenMetrics if its argument is true."""

    def __init__(self, listener: socket.socket, scrape: Callable[[bool], tuple[bytes, ...]], ready: Callable[[], bool]) -> None:
        self._scrape = scrape
        self._ready = ready
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="http", daemon=True)
        self._socket = listener

    @property
    def address(self) -> str:
        """The address it has, with the port that was given for port 0: ``127.0.0.1:10417``, ``[::1]:10417``."""
        host, port = self._socket.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def start(self) -> None:
        """Listen, and answer in threads. Raises NsagentError where the port has been taken meanwhile."""
        try:
            self._socket.listen(_BACKLOG)
        except OSError as error:
            raise _translate(error, self.address) from error
        self._thread.start()

    def close(self) -> None:
        """Stop taking connections; answers under way go on until their client has them or the process ends."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept
        if self._thread.is_alive():
            self._thread.join(5)
        self._socket.close()

    def _accept(self) -> None:
        while not self._closing:
            try:
                client, _ = self._socket.accept()
            except OSError as error:
                if self._closing:
                    return
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS):
                    log.warning("event=accept_failed reason=%s", error.strerror)
                    time.sleep(0.1)  # the connection stays in the backlog: without a pause this would spin
                continue
            if not self._free.acquire(blocking=False):
                with client, contextlib.suppress(OSError):
                    client.setblocking(False)
                    client.send(_head(503, "text/plain", 0))
                continue
            try:
                threading.Thread(target=self._serve, args=(client,), name="http-client", daemon=True).start()
            except RuntimeError:  # no thread to be had
                client.close()
                self._free.release()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError):  # the client went away, or is too slow
                self._converse(client)
        finally:
            self._free.release()

    def _converse(self, client: socket.socket) -> None:
        send_body, encoding = True, ""
        try:
            request = read_request(client)
            send_body = request.method != "HEAD"
            answer = self._answer(request)
            if answer.status == 200 and _accepts_gzip(request.headers.get("accept-encoding", "")):
                answer = answer._replace(body=_compress(answer.body))
                encoding = "Content-Encoding: gzip\r\n"
        except BadRequest as error:
            answer = Answer(error.status, (f"{error}\n".encode(),))
        head = _head(answer.status, answer.type, sum(map(len, answer.body)), encoding)
        # Not joined: clients that share a sample share its bytes, and do not hold a copy each.
        _send(client, (head, *answer.body) if send_body else (head,))
        client.shutdown(socket.SHUT_WR)
        if answer.status != 200:
            _drain(client)

    def _answer(self, request: Request) -> Answer:
        if request.method not in ("GET", "HEAD"):
            raise BadRequest(405)
        path = request.path.partition("?")[0]
        if path == "/metrics":
            openmetrics = encode.accepts_openmetrics(request.headers.get("accept", ""))
            try:
                return Answer(200, self._scrape(openmetrics), encode.OPENMETRICS if openmetrics else encode.TEXT)
            except Exception:  # a bug must cost one answer, not the server
                log.exception("event=scrape_failed")
                return Answer(500, (b"internal error; see the agent's log\n",))
        if path == "/-/healthy":
            return Answer(200, (b"nsagent is healthy\n",))
        if path == "/-/ready":
            return Answer(200, (b"nsagent is ready\n",)) if self._ready() else Answer(503, (b"nsagent is not ready\n",))
        if path == "/":
            return Answer(200, (_LANDING.encode(),), "text/html; charset=utf-8")
        raise BadRequest(404)


def bind(host: str, port: int) -> socket.socket:
    """Return a TCP socket with that address, not yet listening; an empty host is all addresses.

    Raises:
        NsagentError: the port is in use.
        AccessError: a port below 1024 without CAP_NET_BIND_SERVICE.
        UsageError: no such address on this host.
    """
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        if not host:
            host = "::" if socket.has_dualstack_ipv6() else "0.0.0.0"
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if host == "::":
                found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            found.bind(address)
        except OSError:
            found.close()
            raise
    except OSError as error:  # getaddrinfo's is one too
        raise _translate(error, where) from error
    return found


def _translate(error: OSError, where: str) -> NsagentError:
    reason = error.strerror or os.strerror(error.errno or 0)
    if error.errno == errno.EADDRINUSE:
        port = where.rpartition(":")[2]
        return NsagentError(
            f"cannot listen on {where}: the port is in use",
            hint=f"see who has it with 'ss -ltnp sport = :{port}', or choose another with --listen",
        )
    if error.errno == errno.EACCES:
        return AccessError(f"cannot listen on {where}: {reason}", capability="CAP_NET_BIND_SERVICE")
    return UsageError(f"cannot listen on {where}: {reason}", hint="--listen names an address of this host and a port")


def read_request(client: socket.socket) -> Request:
    """Read the head of a request, within its bounds of time and size. Raises BadRequest, OSError."""
    end = time.monotonic() + _HEADER_SECONDS
    data = b""
    while b"\r\n\r\n" not in data:
        left = end - time.monotonic()
        if left <= 0:
            raise BadRequest(408)
        client.settimeout(left)
        try:
            chunk = client.recv(4096)
        except TimeoutError:
            raise BadRequest(408) from None
        if not chunk:
            raise ConnectionAbortedError(errno.ECONNABORTED, "the client went away")
        data += chunk
        if len(data) > _HEADER_BYTES:
            raise BadRequest(431)
    return parse_request(data.partition(b"\r\n\r\n")[0])


def parse_request(head: bytes) -> Request:
    """Parse a request line and its headers. Raises BadRequest."""
    first, *rest = head.decode("latin-1").split("\r\n")
    words = first.split(" ")
    if len(words) != 3 or not words[0].isalpha() or not words[1].startswith("/"):
        raise BadRequest(400)
    if words[2] not in ("HTTP/1.0", "HTTP/1.1"):
        raise BadRequest(505 if words[2].startswith("HTTP/") else 400)
    headers: dict[str, str] = {}
    for line in rest:
        name, colon, value = line.partition(":")
        if not colon or not name or name != name.strip():
            raise BadRequest(400)
        key = name.lower()
        headers[key] = f"{headers[key]}, {value.strip()}" if key in headers else value.strip()
    return Request(words[0], words[1], headers)


def _accepts_gzip(accept: str) -> bool:
    for item in accept.lower().split(","):
        coding, *parameters = (word.strip() for word in item.split(";"))
        if coding == "gzip":
            return not any(parameter.replace(" ", "").strip("0.") == "q=" for parameter in parameters)
    return False


def _head(status: int, kind: str, length: int, more: str = "") -> bytes:
    lines = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{more}"
    allow = "Allow: GET, HEAD\r\n" if status == 405 else ""
    return f"{lines}{allow}Vary: Accept, Accept-Encoding\r\nConnection: close\r\n\r\n".encode()


def _send(client: socket.socket, pieces: tuple[bytes, ...]) -> None:
    """Send all within _ANSWER_SECONDS. Raises OSError."""
    end = time.monotonic() + _ANSWER_SECONDS
    for number, piece in enumerate(pieces, 1):
        client.settimeout(max(end - time.monotonic(), 0.001))  # sendall counts it over all of its sends
        client.sendall(piece, socket.MSG_MORE if number < len(pieces) else 0)


def _compress(pieces: tuple[bytes, ...]) -> tuple[bytes, ...]:
    """Make one gzip stream of the pieces, level 1: the higher ones cost several times as much for little."""
    stream = zlib.compressobj(1, zlib.DEFLATED, _GZIP)
    return (*filter(None, map(stream.compress, pieces)), stream.flush())


def _drain(client: socket.socket) -> None:
    """Read what a refused client still sends, or the kernel would reset the connection and the answer would be lost."""
    client.settimeout(1.0)
    for _ in range(16):
        if not client.recv(4096):
            return
