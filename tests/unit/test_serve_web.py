"""The HTTP server with what --web.config.file, reloading and a scraper's timeout ask for, over real sockets."""

from __future__ import annotations

import base64
import contextlib
import http.client
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import bcrypt
import pytest

from nsagent.errors import UsageError
from nsagent.web import listen, server
from nsagent.web.config import WebConfig
from nsagent.web.exposition import Exposition
from nsagent.web.server import Server
from tests.certificates import Authority
from tests.support import wait_for

HASH = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
SECRET = "Basic " + base64.b64encode(b"alice:secret").decode()
TLS = "tls_server_config:\n  cert_file: server.crt\n  key_file: server.key\n"
MUTUAL = TLS + "  client_auth_type: RequireAndVerifyClientCert\n  client_ca_file: ca.crt\n"


class Running:
    """A server whose samples wait for `go`, and are numbered."""

    def __init__(self, listener: socket.socket, web: WebConfig | None = None, reload: object = None) -> None:
        self.go = threading.Event()
        self.go.set()
        self.begun = 0
        self.body = b""
        self.reloads: list[str] = []
        self.error: Exception | None = None
        self.server = Server(listener, self.scrape, lambda: True, web=web, reload=self.reload if reload else None)
        self.server.start()

    def scrape(self, openmetrics: bool) -> tuple[bytes, ...]:
        self.begun += 1
        number = self.begun
        assert self.go.wait(120)
        return (b"number %d\n" % number, self.body)

    @property
    def waiting(self) -> int:
        """How many wait for the next sample."""
        call = self.server._expositions[False]._next
        return call.waiting if call else 0

    def reload(self) -> str:
        if self.error:
            raise self.error
        self.reloads.append("x")
        return "reloaded"

    def connect(self) -> socket.socket:
        client = socket.socket(self.server._socket.family)
        client.settimeout(120)
        client.connect(self.server._socket.getsockname())
        return client

    def ask(
        self,
        path: str = "/metrics",
        method: str = "GET",
        *,
        tls: ssl.SSLContext | None = None,
        authorization: str = "",
        **headers: str,
    ) -> tuple[int, str, str]:
        """Return the status, the head and the body."""
        if authorization:
            headers["Authorization"] = authorization
        lines = [f"{method} {path} HTTP/1.1", *(f"{name.replace('_', '-')}: {value}" for name, value in headers.items())]
        with contextlib.ExitStack() as stack:
            client = stack.enter_context(self.connect())
            if tls:
                client = stack.enter_context(tls.wrap_socket(client, server_hostname="127.0.0.1"))
            client.sendall("\r\n".join((*lines, "", "")).encode())
            head, _, body = b"".join(iter(lambda: client.recv(65536), b"")).decode().partition("\r\n\r\n")
        return int(head.split(" ")[1]), head, body


@contextlib.contextmanager
def running(web: WebConfig | None = None, reload: object = None) -> Iterator[Running]:
    one = Running(listen.bind("127.0.0.1", 0), web, reload)
    try:
        yield one
    finally:
        one.go.set()
        one.server.close()


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    authority = Authority(tmp_path / "ca")
    authority.sign("server")
    return authority


def web(authority: Authority, text: str) -> WebConfig:
    path = authority.directory / "web.yml"
    path.write_text(text)
    return WebConfig(str(path))


def trusting(authority: Authority, cert: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(authority.cert))
    context.verify_flags |= ssl.VERIFY_X509_STRICT  # the default since Python 3.13
    if cert:
        context.load_cert_chain(cert[0], cert[1])
    return context


def in_threads(count: int, call: object) -> list[threading.Thread]:
    assert callable(call)
    threads = [threading.Thread(target=call) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_scrapes_that_overlap_share_a_sample_and_none_is_older_than_its_request() -> None:
    with running() as one:
        one.go.clear()
        bodies: list[str] = []
        first = in_threads(1, lambda: bodies.append(one.ask()[2]))
        wait_for(lambda: one.begun == 1)
        others = in_threads(20, lambda: bodies.append(one.ask()[2]))
        wait_for(lambda: one.waiting == 20)
        one.go.set()
        for thread in first + others:
            thread.join(120)
        assert sorted(bodies) == ["number 1\n", *["number 2\n"] * 20], "begun after they asked, once for all"


def test_who_cannot_wait_is_told_so_in_time_and_shares_the_next() -> None:
    with running() as one:
        one.go.clear()
        first = in_threads(1, one.ask)
        wait_for(lambda: one.begun == 1)
        status, _, body = one.ask(X_Prometheus_Scrape_Timeout_Seconds="0.3")
        assert status == 503
        assert body.startswith("no sample within the 0.3 s")
        for _ in range(5):  # a sample that hangs costs one thread, however often somebody asks
            assert one.ask(X_Prometheus_Scrape_Timeout_Seconds="0.05")[0] == 503
        assert one.begun == 1
        assert sum(thread.name == "exposition" for thread in threading.enumerate()) == 1
        bodies: list[str] = []
        patient = in_threads(3, lambda: bodies.append(one.ask(X_Prometheus_Scrape_Timeout_Seconds="300")[2]))
        wait_for(lambda: one.waiting == 3)
        one.go.set()
        for thread in first + patient:
            thread.join(120)
        assert bodies == ["number 2\n"] * 3
        wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "exposition"])


def test_what_nobody_waits_for_any_more_is_not_made() -> None:
    with running() as one:
        one.go.clear()
        first = in_threads(1, one.ask)
        wait_for(lambda: one.begun == 1)
        for _ in range(3):
            assert one.ask(X_Prometheus_Scrape_Timeout_Seconds="0.1")[0] == 503
        one.go.set()
        first[0].join(120)
        wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "exposition"])
        assert one.begun == 1
        assert one.ask()[2] == "number 2\n"


def test_both_formats_wait_apart() -> None:
    with running() as one:
        one.go.clear()
        asking = in_threads(1, one.ask)
        wait_for(lambda: one.begun == 1)
        asking += in_threads(1, lambda: one.ask(Accept="application/openmetrics-text"))
        wait_for(lambda: one.begun == 2, what="the other to begin while the first is made")
        one.go.set()
        for thread in asking:
            thread.join(120)


@pytest.mark.parametrize("value", ["", "soon", "-1", "0", "nan", "inf"])
def test_a_timeout_that_is_none_is_not_heeded(value: str) -> None:
    with running() as one:
        assert one.ask(X_Prometheus_Scrape_Timeout_Seconds=value)[0] == 200


def test_the_timeout_less_a_little(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[float | None] = []

    def get(_: Exposition, end: float | None) -> tuple[bytes, ...]:
        ends.append(end)
        return ()

    monkeypatch.setattr(Exposition, "get", get)
    with running() as one:
        for value in ("10", "1", "x"):
            one.ask(X_Prometheus_Scrape_Timeout_Seconds=value)
    assert ends[2] is None
    assert ends[0] is not None
    assert ends[1] is not None
    began = [ends[0] - 9.5, ends[1] - 0.8]
    assert 0 <= began[1] - began[0] < 5, "of the clock, from the connection on"


def test_reload_over_http() -> None:
    with running(reload=True) as one:
        assert one.ask("/-/reload", "POST")[::2] == (200, "reloaded\n")
        assert one.ask("/-/reload", "PUT")[0] == 200
        assert one.reloads == ["x", "x"]
        one.error = UsageError("--rate cannot be negative")
        assert one.ask("/-/reload", "POST")[::2] == (500, "nothing was changed: --rate cannot be negative\n")
        one.error = ZeroDivisionError()
        assert one.ask("/-/reload", "POST")[0] == 500
        status, head, _ = one.ask("/-/reload")
        assert status == 405
        assert "\r\nAllow: POST, PUT\r\n" in head
    with running() as one:
        status, _, body = one.ask("/-/reload", "POST")
        assert status == 403
        assert "--web.enable-lifecycle" in body


def test_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    one = Running(listen.bind_unix(str(path)))
    try:
        assert one.server.address == f"unix:{path}"
        assert one.ask()[::2] == (200, "number 1\n")
    finally:
        one.server.close()
    assert not path.exists()


def test_a_wrong_password_is_401_everywhere_and_says_how(authority: Authority) -> None:
    text = f"basic_auth_users: {{alice: '{HASH}'}}\nhttp_server_config: {{headers: {{X-Frame-Options: deny}}}}\n"
    with running(web(authority, text), reload=True) as one:
        for path, method in (("/metrics", "GET"), ("/", "GET"), ("/-/healthy", "GET"), ("/none", "GET"), ("/-/reload", "POST")):
            for authorization in ("", "Basic " + base64.b64encode(b"alice:wrong").decode()):
                status, head, _ = one.ask(path, method, authorization=authorization)
                assert status == 401
                assert '\r\nWWW-Authenticate: Basic realm="nsagent"' in head
                assert "\r\nX-Frame-Options: deny\r\n" in head
        assert (one.begun, one.reloads) == (0, [])
        status, head, body = one.ask(authorization=SECRET)
        assert (status, body) == (200, "number 1\n")
        assert "\r\nX-Frame-Options: deny\r\n" in head


def test_tls_and_a_certificate_that_is_replaced(authority: Authority) -> None:
    with running(web(authority, TLS)) as one:
        assert one.ask(tls=trusting(authority))[::2] == (200, "number 1\n")
        one.body = b"x" * 3_000_000
        assert len(one.ask(tls=trusting(authority))[2]) > 3_000_000
        port = one.server._socket.getsockname()[1]
        with contextlib.closing(
            http.client.HTTPSConnection("127.0.0.1", port, context=trusting(authority), timeout=120)
        ) as client:
            client.request("GET", "/", headers={"Accept-Encoding": "gzip"})
            assert client.getresponse().getheader("Content-Encoding") == "gzip"
        other = Authority(authority.directory, "ca")  # the same names, other keys
        stranger = trusting(other)
        other.sign("server")
        assert one.ask(tls=stranger)[0] == 200


def test_a_client_without_the_right_certificate_is_not_let_in(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other").sign("client")
    with running(web(authority, MUTUAL)) as one:
        for cert in (None, stranger):
            with pytest.raises(OSError):  # noqa: PT011 - an alert, or a reset where that came first
                one.ask(tls=trusting(authority, cert))
        assert one.begun == 0
        assert one.ask(tls=trusting(authority, authority.sign("client")))[0] == 200


def test_an_old_protocol_is_refused(authority: Authority) -> None:
    with running(web(authority, TLS + "  min_version: TLS13\n")) as one:
        old = trusting(authority)
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        with pytest.raises(OSError):  # noqa: PT011 - as above
            one.ask(tls=old)
        assert one.ask(tls=trusting(authority))[0] == 200


def test_handshakes_that_stall_hold_nobody_up(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_HEADER_SECONDS", 1.0)
    with running(web(authority, TLS)) as one, contextlib.ExitStack() as stack:
        silent = [stack.enter_context(one.connect()) for _ in range(10)]
        half = [stack.enter_context(one.connect()) for _ in range(10)]
        plain = stack.enter_context(one.connect())
        wait_for(lambda: sum(thread.name == "http-client" for thread in threading.enumerate()) == 21)
        monkeypatch.undo()  # for who does not stall but is on a slow machine
        for client in half:
            client.sendall(b"\x16\x03\x01\x02\x00\x01")  # the first bytes of a ClientHello
        plain.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert one.ask(tls=trusting(authority))[0] == 200
        for client in (*silent, *half, plain):
            with contextlib.suppress(ConnectionResetError):
                while client.recv(4096):
                    pass
        wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "http-client"])
        assert one.begun == 1


def test_a_slow_header_over_tls_is_given_up(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(web(authority, TLS)) as one:
        for seconds in (1.0, 10.0, 100.0):  # in which a slow machine may not be through with the handshake
            monkeypatch.setattr(server, "_HEADER_SECONDS", seconds)
            answer = b""
            with (
                contextlib.suppress(OSError),
                one.connect() as client,
                trusting(authority).wrap_socket(client, server_hostname="127.0.0.1") as secured,
            ):
                secured.sendall(b"GET /metr")
                answer = secured.recv(65536)
            if answer:
                break
        assert answer.startswith(b"HTTP/1.1 408 ")


def test_who_never_reads_over_tls_is_given_up(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_ANSWER_SECONDS", 0.3)
    with running(web(authority, TLS)) as one, one.connect() as client:
        one.body = b"x" * 25_000_000
        with trusting(authority).wrap_socket(client, server_hostname="127.0.0.1") as secured:
            secured.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            wait_for(lambda: one.begun)
            wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "http-client"])
        monkeypatch.undo()
        one.body = b""
        assert one.ask(tls=trusting(authority))[0] == 200
