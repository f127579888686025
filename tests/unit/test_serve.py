"""The HTTP server, over real sockets: what it answers, and what clients cannot do to it."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import math
import socket
import threading
import tracemalloc
from collections.abc import Iterator

import pytest

from nsagent.errors import NsagentError, UsageError
from nsagent.metrics import encode
from nsagent.web import listen, server
from nsagent.web.server import Server
from tests.support import wait_for


class Running:
    """A server on a free port, whose exposition says which format was asked for."""

    def __init__(self, host: str) -> None:
        self.ready = True
        self.fail = False
        self.server = Server(listen.bind(host, 0), self.scrape, lambda: self.ready)
        self.host, self.port = self.server.address.rpartition(":")[0].strip("[]"), int(self.server.address.rpartition(":")[2])
        self.server.start()

    def scrape(self, openmetrics: bool) -> tuple[bytes, ...]:
        if self.fail:
            raise ZeroDivisionError
        return (b"openmetrics 1\n",) if openmetrics else (b"text 1\n",) * 1000

    def get(self, path: str, method: str = "GET", **headers: str) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        with contextlib.closing(connection):
            connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return response, response.read()

    def connect(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), timeout=120)

    def say(self, data: bytes) -> bytes:
        """Send bytes, and return all that comes."""
        with self.connect() as client:
            client.sendall(data)
            return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture
def running() -> Iterator[Running]:
    one = Running("127.0.0.1")
    yield one
    one.server.close()


def test_metrics_in_both_formats(running: Running) -> None:
    response, body = running.get("/metrics?x=1")
    assert (response.status, response.getheader("Content-Type")) == (200, encode.TEXT)
    assert body == b"text 1\n" * 1000
    response, body = running.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert (body, response.getheader("Content-Type")) == (b"openmetrics 1\n", encode.OPENMETRICS)


@pytest.mark.parametrize(
    ("accept", "zipped"),
    [("gzip", True), ("deflate, GZIP;q=0.5", True), ("gzip;q=0", False), ("gzip; q=0.0", False), ("br", False), ("", False)],
)
def test_gzip_when_asked(running: Running, accept: str, zipped: bool) -> None:
    response, body = running.get("/metrics", Accept_Encoding=accept)
    assert (response.getheader("Content-Encoding") == "gzip") is zipped
    assert (gzip.decompress(body) if zipped else body) == b"text 1\n" * 1000


def test_head_sends_no_body(running: Running) -> None:
    response, body = running.get("/metrics", "HEAD")
    assert (response.status, response.getheader("Content-Length"), body) == (200, "7000", b"")


def test_health_and_landing_page(running: Running) -> None:
    assert running.get("/-/healthy")[0].status == 200
    assert running.get("/-/ready")[0].status == 200
    running.ready = False
    assert running.get("/-/ready")[0].status == 503
    assert running.get("/-/healthy")[0].status == 200
    response, body = running.get("/")
    assert response.status == 200
    assert b'href="/metrics"' in body


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET /nowhere HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello", 405),
        (b"GET /metrics HTTP/2.0\r\n\r\n", 505),
        (b"GET /metrics\r\n\r\n", 400),
        (b"GET metrics HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n folded: 1\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000 + b"\r\n\r\n", 431),
    ],
)
def test_what_is_refused(running: Running, sent: bytes, status: int) -> None:
    answer = running.say(sent)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert (b"\r\nAllow: GET, HEAD\r\n" in answer) == (status == 405)


def test_a_bug_costs_one_answer(running: Running) -> None:
    running.fail = True
    assert running.get("/metrics")[0].status == 500
    running.fail = False
    assert running.get("/metrics")[0].status == 200


def served() -> int:
    """Count the connections that have a thread."""
    return sum(thread.name == "http-client" for thread in threading.enumerate())


def test_slow_clients_hold_nobody_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEADER_SECONDS", 0.3)
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(running.connect()) for _ in range(20)]
        wait_for(lambda: served() == 20)
        monkeypatch.undo()  # for who is not slow but on a slow machine
        for client in slow:
            client.sendall(b"GET /metrics HTT")
        assert running.get("/metrics")[0].status == 200
        for client in slow:
            assert client.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_too_many_connections_are_told_so_and_room_comes_back(
    running: Running, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """They need not be idle: the head of a request that does not end is as good."""
    monkeypatch.setattr(server, "_HEADER_SECONDS", 120)
    with contextlib.ExitStack() as stack:
        for _ in range(server._CONNECTIONS):
            stack.enter_context(running.connect()).sendall(b"GET /metr")
        wait_for(lambda: served() == server._CONNECTIONS)
        monkeypatch.setattr(server, "_QUIET_S", math.inf)
        for _ in range(3):
            head, _, body = running.say(b"").partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 503 ")
            assert body == b"there are 64 connections already\n"
            assert b"\r\nContent-Length: %d\r\n" % len(body) in head
        assert [record.getMessage() for record in caplog.records] == [
            "event=clients_refused socket=http connections=64 refused=1"
        ], "once in a while"
        monkeypatch.setattr(server, "_QUIET_S", 0)
        assert running.say(b"")
        assert caplog.messages[1:] == ["event=clients_refused socket=http connections=64 refused=3"]
    wait_for(lambda: b"200 OK" in running.say(b"GET / HTTP/1.1\r\n\r\n"))


def test_a_client_that_never_reads_is_given_up(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_ANSWER_SECONDS", 0.2)
    monkeypatch.setattr(running.server, "_scrape", lambda openmetrics: (b"x" * 25_000_000,) * 2)
    with running.connect() as client:
        client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        wait_for(lambda: served() == 0)


@pytest.mark.parametrize("host", ["::1", "", "localhost"])
def test_addresses(host: str) -> None:
    try:
        one = Running(host)
    except UsageError as error:
        pytest.skip(f"this host has no such address: {error}")
    try:
        one.host = host or "127.0.0.1"
        assert one.get("/-/healthy")[0].status == 200
        assert one.port > 0
    finally:
        one.server.close()


def test_a_port_in_use_is_one_clear_error(running: Running) -> None:
    with pytest.raises(NsagentError, match=rf"cannot listen on 127.0.0.1:{running.port}: the port is in use") as raised:
        listen.bind("127.0.0.1", running.port)
    assert "--listen" in raised.value.hint
    assert str(running.port) in raised.value.hint


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_an_address_of_no_interface_is_the_users_mistake(host: str) -> None:
    with pytest.raises(UsageError, match="cannot listen on"):
        listen.bind(host, 0)


def test_close_frees_the_port(running: Running) -> None:
    running.server.close()
    with listen.bind("127.0.0.1", running.port) as again:
        again.listen()


def test_slow_clients_share_the_bytes_of_one_sample() -> None:
    body, clients = b"metric 1\n" * 1_500_000, 12  # more than the two sockets' buffers take
    server = Server(listen.bind("127.0.0.1", 0), lambda openmetrics: (body,), lambda: True)
    server.start()
    tracemalloc.start()
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(clients):
                client = stack.enter_context(socket.socket())
                client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                client.connect(server._socket.getsockname())
                client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
                assert client.recv(15) == b"HTTP/1.1 200 OK"
            assert tracemalloc.get_traced_memory()[0] < 2 * len(body)
    finally:
        tracemalloc.stop()
        server.close()
