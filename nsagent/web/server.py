"""The agent's HTTP server: /metrics, /-/healthy, /-/ready, /-/reload and a landing page; one request a connection.

It is small rather than general. What a client can cost is bounded: header bytes, time for the handshake and to send them, time
to take the answer, and the number of connections at once. A thread a connection; a slow client holds its own thread alone.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from nsagent.errors import NsagentError
from nsagent.metrics import encode
from nsagent.web import http1, listen
from nsagent.web.config import Web, WebConfig
from nsagent.web.exposition import Exposition, Late, Pieces
from nsagent.web.gzip import Compressor
from nsagent.web.http1 import Answer, BadRequest, Request

log = logging.getLogger(__name__)

_HEADER_SECONDS: Final = 5.0  # from the connection to the last header
_ANSWER_SECONDS: Final = 30.0
_MARGIN_S: Final = 0.5  # of a scraper's timeout, at most a fifth of it: for the way there and back
_CONNECTIONS: Final = 64
_QUIET_S: Final = 60.0  # between two lines of the log on connections refused
_RECORD: Final = 1 << 14  # of TLS: RFC 8446, 5.1
_LANDING: Final = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>nsagent</title></head><body>
<h1>nsagent</h1>
<p>What every namespace and cgroup of this node uses.</p>
<ul><li><a href="/metrics">/metrics</a></li>
<li><a href="/-/healthy">/-/healthy</a></li><li><a href="/-/ready">/-/ready</a></li></ul>
</body></html>
"""


class Server:
    """`listener` is from `listen`; `start` begins to answer. `scrape` makes the exposition, OpenMetrics if it gets True."""

    def __init__(
        self,
        listener: socket.socket,
        scrape: Callable[[bool], Pieces],
        ready: Callable[[], bool],
        *,
        web: WebConfig | None = None,
        reload: Callable[[], str] | None = None,
    ) -> None:
        """`web` has TLS, users and headers; `reload` is what POST /-/reload does, None where it is switched off."""
        self._scrape = scrape
        self._ready = ready
        self._web = web
        self._reload = reload
        self._expositions = {kind: Exposition(lambda kind=kind: self._scrape(kind)) for kind in (False, True)}  # type: ignore[misc]
        self._compressors = {kind: Compressor() for kind in (encode.TEXT, encode.OPENMETRICS)}
        self._free = threading.BoundedSemaphore(_CONNECTIONS)
        self._refused = 0
        self._told = -math.inf
        self._closing = False
        self._thread = threading.Thread(target=self._accept, name="http", daemon=True)
        self._socket = listener

    @property
    def address(self) -> str:
        """As `listen.address_of` has it."""
        return listen.address_of(self._socket)

    def start(self) -> None:
        """Listen, and answer in threads. Raises NsagentError where the port has been taken meanwhile."""
        try:
            self._socket.listen(listen.BACKLOG)
        except OSError as error:
            raise listen.translate(error, self.address) from error
        self._thread.start()

    def close(self) -> None:
        """Stop taking connections; answers under way go on until their client has them or the process ends."""
        self._closing = True
        listen.remove_path(self._socket)
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
                self._refuse(client)
                continue
            try:
                threading.Thread(target=self._serve, args=(client,), name="http-client", daemon=True).start()
            except RuntimeError:  # no thread to be had
                client.close()
                self._free.release()

    def _refuse(self, client: socket.socket) -> None:
        """Say that there are too many connections, at once: this is the thread that accepts. The log says so now and then."""
        self._refused += 1
        if (now := time.monotonic()) - self._told >= _QUIET_S:
            log.warning("event=clients_refused socket=http connections=%d refused=%d", _CONNECTIONS, self._refused)
            self._refused, self._told = 0, now
        with client, contextlib.suppress(OSError):
            if not (self._web and self._web.last.tls):  # who begins with a handshake would not understand
                client.setblocking(False)
                answer = Answer(503, (f"there are {_CONNECTIONS} connections already\n".encode(),))
                client.send(b"".join((http1.head_of(answer), *answer.body)))

    def _serve(self, client: socket.socket) -> None:
        end = time.monotonic() + _HEADER_SECONDS
        try:
            with client, contextlib.suppress(OSError):  # the client went away, or is too slow; ssl's errors are such too
                web = self._web.current() if self._web else None
                if web is None or web.tls is None:
                    self._converse(client, web, end, tls=False)
                    return
                with web.tls.wrap_socket(client, server_side=True, do_handshake_on_connect=False) as secured:
                    secured.settimeout(max(end - time.monotonic(), 0.001))
                    secured.do_handshake()
                    self._converse(secured, web, end, tls=True)
        finally:
            self._free.release()

    def _converse(self, client: socket.socket, web: Web | None, header_end: float, *, tls: bool) -> None:
        send_body = True
        try:
            request = http1.read_request(client, header_end)
            send_body = request.method != "HEAD"
            answer = self._answer(request, web, header_end - _HEADER_SECONDS)
            if answer.status == 200 and http1.accepts_gzip(request.headers.get("accept-encoding", "")):
                answer = self._compressed(answer)
        except BadRequest as error:
            answer = Answer(error.status, (f"{error}\n".encode(),), more=error.more)
        if web:
            answer = answer._replace(more=(*answer.more, *web.headers))
        # Not joined: clients that share a sample share its bytes, and do not hold a copy each.
        _send(client, (http1.head_of(answer), *(answer.body if send_body else ())), tls=tls)
        if tls:
            _say_goodbye(client)
        else:
            client.shutdown(socket.SHUT_WR)
        if answer.status != 200:
            _drain(client)

    def _compressed(self, answer: Answer) -> Answer:
        body = self._compressors.get(answer.type, Compressor()).compress(answer.body)
        return answer._replace(body=body, more=(*answer.more, "Content-Encoding: gzip"))

    def _answer(self, request: Request, web: Web | None, began: float) -> Answer:
        if web and web.users and not web.users.allow(request.headers.get("authorization", "")):
            raise BadRequest(401, 'WWW-Authenticate: Basic realm="nsagent", charset="UTF-8"')
        path = request.path.partition("?")[0]
        if path == "/-/reload":
            return self._answer_reload(request.method)
        if request.method not in ("GET", "HEAD"):
            raise BadRequest(405, "Allow: GET, HEAD")
        if path == "/metrics":
            return self._answer_scrape(request, began)
        if path == "/-/healthy":
            return Answer(200, (b"nsagent is healthy\n",))
        if path == "/-/ready":
            return Answer(200, (b"nsagent is ready\n",)) if self._ready() else Answer(503, (b"nsagent is not ready\n",))
        if path == "/":
            return Answer(200, (_LANDING.encode(),), "text/html; charset=utf-8")
        raise BadRequest(404)

    def _answer_scrape(self, request: Request, began: float) -> Answer:
        openmetrics = encode.accepts_openmetrics(request.headers.get("accept", ""))
        timeout_s = http1.scrape_timeout_s(request.headers)
        end = None if timeout_s is None else began + timeout_s - min(_MARGIN_S, timeout_s / 5)
        try:
            body = self._expositions[openmetrics].get(end)
        except Late:
            text = f"no sample within the {timeout_s:g} s that the scraper waits (X-Prometheus-Scrape-Timeout-Seconds)\n"
            return Answer(503, (text.encode(),))
        except Exception:  # a bug must cost one answer, not the server
            log.exception("event=scrape_failed")
            return Answer(500, (b"internal error; see the agent's log\n",))
        return Answer(200, body, encode.OPENMETRICS if openmetrics else encode.TEXT)

    def _answer_reload(self, method: str) -> Answer:
        if method not in ("POST", "PUT"):
            raise BadRequest(405, "Allow: POST, PUT")
        if self._reload is None:
            return Answer(403, (b"reloading over HTTP is off: start the agent with --web.enable-lifecycle, or send it SIGHUP\n",))
        try:
            return Answer(200, (f"{self._reload()}\n".encode(),))
        except NsagentError as error:
            return Answer(500, (f"nothing was changed: {error}\n".encode(errors="replace"),))
        except Exception:  # logged where it was caught
            return Answer(500, (b"internal error; see the agent's log\n",))


def _send(client: socket.socket, pieces: Pieces, *, tls: bool) -> None:
    """Send all within _ANSWER_SECONDS. Raises OSError."""
    end = time.monotonic() + _ANSWER_SECONDS
    for piece in http1.gathered(pieces):
        if tls:  # its sendall would count the time anew for each record
            rest = memoryview(piece)
            while rest:
                client.settimeout(max(end - time.monotonic(), 0.001))
                rest = rest[client.send(rest[:_RECORD]) :]
        else:
            client.settimeout(max(end - time.monotonic(), 0.001))  # sendall counts it over all of its sends
            client.sendall(piece)


def _say_goodbye(client: socket.socket) -> None:
    """Send close_notify: without it a client must take the answer for cut off (RFC 8446, 6.1). It need not answer."""
    client.settimeout(1.0)
    with contextlib.suppress(OSError, ValueError):
        client.unwrap()  # type: ignore[attr-defined]


def _drain(client: socket.socket) -> None:
    """Read what a refused client still sends, or the kernel would reset the connection and the answer would be lost."""
    client.settimeout(1.0)
    for _ in range(16):
        if not client.recv(4096):
            return
