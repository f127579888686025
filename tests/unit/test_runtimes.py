"""Asking a runtime at its socket: what it says, and that nobody waits for one that says nothing."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsagent import runtimes
from nsagent.errors import AccessError, ParseError, VanishedError
from nsagent.identity import CgroupInfo, Identities, Names
from nsagent.runtimes import Runtime, Runtimes, parse_answer, read_containers
from tests.support import wait_for

ID, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4
UID = "1b3a5f0e-9d4c-4f7e-8a6b-2c1d0e9f8a7b"
POD = {"io.kubernetes.pod.uid": UID, "io.kubernetes.pod.name": "web-0", "io.kubernetes.pod.namespace": "shop"}


def answer(found: Any, status: str = "200 OK") -> bytes:
    return f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{json.dumps(found)}".encode()


def container(number: str = ID, name: str = "/web", image: str = "nginx:1", **more: Any) -> dict[str, Any]:
    return {"Id": number, "Names": [name], "Image": image} | more


class Server:
    """A Unix socket. Each connection gets the answers in turn, the last one again; None: none, for ever."""

    def __init__(self, path: Path, *answers: bytes | None) -> None:
        self.path = str(path)
        self.requests: list[bytes] = []
        self.open: list[socket.socket] = []
        self.answers = list(answers)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            said = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            self.requests.append(connection.recv(1 << 16))
            if said is None:
                self.open.append(connection)
            else:
                with contextlib.suppress(OSError), connection:
                    connection.sendall(said)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(120)
        for connection in self.open:
            connection.close()


@contextlib.contextmanager
def serving(directory: Path, *answers: bytes | None) -> Iterator[Server]:
    server = Server(directory / "runtime.sock", *answers)
    try:
        yield server
    finally:
        server.close()


def test_what_a_runtime_says(tmp_path: Path) -> None:
    shim = container(OTHER, "/k8s_app_web-0", "sha256:1", Labels=POD | {"io.kubernetes.container.name": "app"})
    linked = container() | {"Names": ["/other/alias", "/web"]}
    with serving(tmp_path, answer([linked, shim])) as server:
        assert read_containers(server.path) == {
            ID: Names("web", "nginx:1"),
            OTHER: Names("app", "sha256:1", UID, "web-0", "shop", tuple(sorted(shim["Labels"].items()))),
            UID: Names("", "", UID, "web-0", "shop"),
        }
        assert server.requests[0].startswith(b"GET /containers/json?all=1 HTTP/1.0\r\n")


def test_only_labels_that_are_allowed_are_kept(tmp_path: Path) -> None:
    labels = {
        "team": "a",
        "com.example.x": "1",
        "com.example": "2",
        "a\nb": "3",
        "long": "x" * 1021,
        "longer": "x" * 1021,
        "n": 7,
    }
    with serving(tmp_path, answer([container(Labels=labels)])) as server:
        for patterns, kept in (
            ((), []),
            (("team",), ["team"]),
            (("com.example.*", "a?b"), ["a\nb", "com.example.x"]),
            (("*", "team"), ["a\nb", "com.example", "com.example.x", "team"]),
            (("[t]eam", "lon*"), ["team"]),
        ):
            runtime = Runtime(server.path, retain_s=60, labels=patterns)
            runtime.refresh()
            assert [name for name, _ in runtime.names[ID].labels] == kept


@pytest.mark.parametrize(
    "said",
    [
        b"",
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1\r\n\r\n[]",
        answer([], "500 Oops"),
        answer({}),
        answer([])[:-1],
    ],
)
def test_what_is_no_answer(said: bytes) -> None:
    with pytest.raises(ParseError):
        parse_answer(said, "/s")


def test_hostile_values_are_left_out() -> None:
    odd: list[Any] = [7, None, {}, {"Id": 7}, {"Id": ""}, {"Id": ID, "Names": [None, 1], "Image": {}, "Labels": [1]}]
    assert parse_answer(answer(odd), "/s") == {ID: Names()}
    assert parse_answer(answer([container(name="/a\ud800")]), "/s") == {ID: Names("a?", "nginx:1")}
    deep = b"HTTP/1.0 200 OK\r\n\r\n" + b"[" * 100_000
    with pytest.raises(ParseError):
        parse_answer(deep, "/s")


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(VanishedError):
        read_containers(str(tmp_path / "none"))
    path = tmp_path / "left"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with pytest.raises(VanishedError):
        read_containers(str(path))


def test_an_answer_that_never_comes_has_a_deadline(tmp_path: Path) -> None:
    with serving(tmp_path, None) as server, pytest.raises(AccessError, match=r"does not answer within 0\.05 s"):
        read_containers(server.path, 0.05)


def test_an_answer_that_drips_has_the_same_deadline(tmp_path: Path) -> None:
    """Each byte comes in time for a timeout of one call: only the whole has run out."""
    stop = threading.Event()
    with serving(tmp_path, None) as server:

        def drip() -> None:
            wait_for(lambda: server.open)
            with contextlib.suppress(OSError):
                while not stop.wait(0.005):
                    server.open[0].send(b"x")

        dripping = threading.Thread(target=drip)
        dripping.start()
        with pytest.raises(AccessError, match="does not answer within"):
            read_containers(server.path, 0.2)
        stop.set()
        dripping.join()


def test_an_answer_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtimes, "_MOST_BYTES", 1000)
    with serving(tmp_path, b"x" * 1_000_000) as server, pytest.raises(ParseError, match="more than 1000 bytes"):
        read_containers(server.path)


def test_nobody_waits_for_a_runtime_that_hangs(tmp_path: Path) -> None:
    """The names of the other runtime come, and infos are made, while a question is open that nobody will ever answer."""
    (tmp_path / "other").mkdir()
    with serving(tmp_path, None) as hanging, serving(tmp_path / "other", answer([container()])) as good:
        both = Runtimes([hanging.path, good.path, str(tmp_path / "none")], retain_s=60, deadline_s=300)
        identities = Identities(both.names, both.want)
        both.start()
        try:
            wait_for(lambda: hanging.open, what="the question")
            path = f"/docker/{ID}"
            wait_for(
                lambda: identities.update({path: 5}, [path])[path] == CgroupInfo("5", "", "", ID, "web", "", "", "", "nginx:1")
            )
            hanging.open[0].setblocking(False)
            with pytest.raises(BlockingIOError):  # the question is still open: neither answered nor given up
                hanging.open[0].recv(1)
        finally:
            both.close()


def test_names_outlive_container_and_runtime(tmp_path: Path) -> None:
    kept = Runtime(str(tmp_path / "runtime.sock"), retain_s=3600)
    with serving(tmp_path, answer([container()]), answer([container(OTHER, "/db")]), b"garbage"):
        kept.refresh()
        kept.refresh()
        both = kept.names
        assert both == {ID: Names("web", "nginx:1"), OTHER: Names("db", "nginx:1")}
        kept.refresh()
        assert kept.names is both
    kept.refresh()  # nobody listens
    assert kept.names is both


def test_names_go_after_retain(tmp_path: Path) -> None:
    shortly = Runtime(str(tmp_path / "runtime.sock"), retain_s=0)
    with serving(tmp_path, answer([container()]), answer([])):
        shortly.refresh()
        assert ID in shortly.names
        shortly.refresh()
        assert shortly.names == {}


def test_the_same_names_are_the_same_object(tmp_path: Path) -> None:
    runtime = Runtime(str(tmp_path / "runtime.sock"), retain_s=60)
    with serving(tmp_path, answer([container()])):
        runtime.refresh()
        before = runtime.names
        runtime.refresh()
        assert runtime.names is before


def test_a_failure_is_logged_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    runtime = Runtime(str(tmp_path / "runtime.sock"), retain_s=60)
    with serving(tmp_path, b"garbage"):
        runtime.refresh()
        runtime.refresh()
    assert [record.message.split()[0] for record in caplog.records if record.levelname == "WARNING"] == ["event=runtime_failed"]


def test_an_id_without_a_name_is_asked_for_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(Runtime, "ask", lambda self: asked.append(1))
    both = Runtimes(["/none"], retain_s=60)
    for wanted, count in (({"a"}, 1), ({"a"}, 1), ({"a", "b"}, 2), ({"b"}, 2), ({"a"}, 3)):
        both.want(wanted)
        assert len(asked) == count
