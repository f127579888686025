"""The two answers of a CRI, taken apart; and a socket that does not answer."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsagent.cri import parse_pods, read_pods
from nsagent.errors import AccessError, ParseError, VanishedError
from nsagent.identity import Names
from tests.engine.pods import field

SANDBOX, ID, UID = "aa" * 32, "bb" * 32, "1b3a5f0e-9d4c-4f7e-8a6b-2c1d0e9f8a7b"
FIXED = b"\x99\x06" + b"12345678" + b"\x9d\x06" + b"1234"  # fields of 64 and 32 bits, which nobody knows yet
POD = Names("", "", UID, "web-0", "shop")


def sandboxes() -> bytes:
    metadata = field(1, "web-0") + field(2, UID) + field(3, "shop") + field(4, 300)
    return field(1, field(1, SANDBOX) + field(2, metadata) + field(4, 1 << 60) + FIXED)


def containers(image: bytes) -> bytes:
    return field(1, field(1, ID) + field(2, SANDBOX) + field(3, field(1, "main")) + field(4, image) + field(6, 1))


def test_labels_are_the_containers_over_the_pods() -> None:
    def entry(key: str, value: str) -> bytes:
        return field(1, key) + field(2, value)

    pod = field(1, field(1, SANDBOX) + field(2, field(2, UID)) + field(5, entry("team", "a")) + field(5, entry("tier", "web")))
    own = field(8, entry("team", "b")) + field(8, entry("team", "c")) + field(8, entry("", ""))
    names = parse_pods(pod, field(1, field(1, ID) + field(2, SANDBOX) + own), "/s")
    assert names[UID].labels == names[SANDBOX].labels == (("team", "a"), ("tier", "web"))
    assert names[ID].labels == (("", ""), ("team", "c"), ("tier", "web"))


def test_pods_and_containers() -> None:
    expected = {SANDBOX: POD, UID: POD, ID: POD._replace(container="main", image="nginx:1")}
    assert parse_pods(sandboxes(), containers(field(1, "nginx:1")), "/s") == expected
    assert parse_pods(sandboxes(), containers(field(1, "sha256:1") + field(18, "nginx:1")), "/s") == expected
    assert parse_pods(b"", containers(b""), "/s") == {ID: Names("main")}
    assert parse_pods(b"", b"", "/s") == {}


@pytest.mark.parametrize("said", [b"\x0a", b"\x0a\x05abc", b"\x0b", b"\xff" * 20, b"\x09123", field(1, b"\x0a\x7f")])
def test_what_is_no_answer(said: bytes) -> None:
    with pytest.raises(ParseError):
        parse_pods(said, b"", "/s")


@given(st.binary(), st.binary())
def test_any_bytes_are_an_answer_or_none(one: bytes, other: bytes) -> None:
    try:
        assert "" not in parse_pods(one, other, "/s")
    except ParseError:
        pass


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(VanishedError):
        read_pods(str(tmp_path / "none"), 1)


def test_an_answer_that_never_comes_has_a_deadline(tmp_path: Path) -> None:
    pytest.importorskip("grpc")
    path = str(tmp_path / "containerd.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        with pytest.raises(AccessError, match="does not answer ListPodSandbox"):
            read_pods(path, 0.2)
