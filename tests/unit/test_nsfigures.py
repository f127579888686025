"""Files of /proc as the kernel writes them, and which namespaces a reading takes its time for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsagent import nsfigures
from nsagent.errors import ParseError
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.nsfigures import NamespaceReader

HEAD = b"Inter-|   Receive  |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop\n"
ROW = b" 1 2 3 4 50 60 70 80 5 6 7 8 90 100 110 120\n"


class Clock:
    """A clock that a test moves, by `step` each time it is read."""

    def __init__(self) -> None:
        self.now = self.step = 0.0

    def __call__(self) -> float:
        self.now += self.step
        return self.now


def member(root: Path, pid: int, inum: int, mounts: int) -> NamespaceId:
    """Make a process of a recorded /proc: in a mount namespace, with so many mounts."""
    directory = root / str(pid) / "ns"
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "mnt").unlink(missing_ok=True)
    os.symlink(f"mnt:[{inum}]", directory / "mnt")
    (root / str(pid) / "mountinfo").write_bytes(b"a mount\n" * mounts)
    return NamespaceId(NamespaceKind.MNT, inum, 0)


@pytest.fixture
def identified(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorded link is no namespace that an ioctl could be made on."""
    monkeypatch.setattr("nsagent.namespaces.identify", lambda path: NamespaceId(NamespaceKind.MNT, 0, 0))


def mounts_of(reader: NamespaceReader, members: dict[NamespaceId, int]) -> dict[int, int | None]:
    return {namespace.inum: each.mounts for namespace, each in reader.read(members).namespaces.items()}


def test_devices() -> None:
    names = [b"lo", b'a"b\\c\x01\xff{}=,\x7f', b"eth0"]
    found = nsfigures.parse_devices(HEAD + b"".join(b"%6s:%s" % (name, ROW) for name in names))
    assert list(found) == [os.fsdecode(name) for name in names]
    assert set(found.values()) == {nsfigures.Device(1, 2, 3, 4, 5, 6, 7, 8)}
    assert nsfigures.parse_devices(HEAD) == {}
    with pytest.raises(ParseError):
        nsfigures.parse_devices(HEAD + b"lo: 1 2\n")


def test_other_files() -> None:
    tcp = b"Tcp: RtoAlgorithm MaxConn OutSegs RetransSegs InErrs\nTcp: 1 -1 303124 902 0\n"
    assert nsfigures.parse_retransmitted(b"Ip: Forwarding\nIp: 1\n" + tcp + b"Udp: A\nUdp: 1\n") == 902
    assert nsfigures.parse_retransmitted(b"Ip: Forwarding\nIp: 1\n") is None
    text = (
        b"sockets: used 14\nTCP: inuse 1 orphan 7 tw 8 alloc 9 mem 0\nUDP: inuse 2 mem 5\nRAW: inuse 0\nFRAG: inuse 6 memory 0\n"
    )
    assert nsfigures.parse_sockets(text) == {"tcp": 1, "udp": 2, "raw": 0}
    assert nsfigures.parse_sockets(b"TCP6: inuse 3\nFRAG6: inuse 1 memory 0\n") == {"tcp6": 3}
    assert nsfigures.parse_conntrack(b"entries  clashres found\n0000001f  00 00\n0000001f  00 00\n") == 31
    assert nsfigures.parse_conntrack(b"") is None
    offsets = b"monotonic          -2 500000000\nboottime           86400         0\n"
    assert nsfigures.parse_offsets(offsets) == {"monotonic": -1.5, "boottime": 86400.0}


@pytest.mark.usefixtures("identified")
def test_a_reading_ends_with_its_budget_and_the_next_goes_on(tmp_path: Path) -> None:
    members = {member(tmp_path, pid, 1000 + pid, pid): pid for pid in range(1, 7)}
    clock = Clock()
    reader = NamespaceReader(str(tmp_path), budget_s=0.5, clock=clock)
    clock.step = 0.2  # two of them, then the time is over
    seen = [len(mounts_of(reader, members)) for _ in range(4)]
    assert seen == [2, 4, 6, 6]
    for pid in range(1, 7):
        member(tmp_path, pid, 1000 + pid, 10 * pid)
    for _ in range(3):
        last = mounts_of(reader, members)
    assert last == {1000 + pid: 10 * pid for pid in range(1, 7)}, "each has its turn, the one read longest ago first"


@pytest.mark.usefixtures("identified")
def test_who_is_elsewhere_tells_nothing_of_a_namespace(tmp_path: Path) -> None:
    here = member(tmp_path, 5, 1005, 3)
    clock = Clock()
    reader = NamespaceReader(str(tmp_path), clock=clock)
    assert mounts_of(reader, {here: 5}) == {1005: 3}
    member(tmp_path, 5, 2000, 99)
    assert mounts_of(reader, {here: 5}) == {1005: 3}, "its last figures stand until another member is known"
    clock.now += nsfigures.KEPT_S + 1
    assert mounts_of(reader, {here: 5}) == {}
    member(tmp_path, 6, 1005, 4)
    assert mounts_of(reader, {here: 6}) == {1005: 4}
    assert mounts_of(reader, {}) == {}
    assert mounts_of(reader, {here: 7}) == {}, "nobody is there"


@pytest.mark.usefixtures("identified")
def test_a_file_that_did_not_change_is_not_parsed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "5/ns").mkdir(parents=True)
    (tmp_path / "5/net").mkdir()
    os.symlink("net:[7]", tmp_path / "5/ns/net")
    device = tmp_path / "5/net/dev"
    parsed: list[bytes] = []
    parse = nsfigures.parse_devices

    def counted(text: bytes) -> dict[str, nsfigures.Device]:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(nsfigures, "parse_devices", counted)
    reader, namespace = NamespaceReader(str(tmp_path)), NamespaceId(NamespaceKind.NET, 7, 0)
    for name in (b"lo", b"lo", b"eth0", b"eth0"):
        device.write_bytes(HEAD + name + b":" + ROW)
        figures = reader.read({namespace: 5}).namespaces[namespace]
        assert list(figures.devices) == [name.decode()]
    assert len(parsed) == 2
    assert (figures.tcp_retransmitted_segments, figures.sockets, figures.conntrack_entries) == (None, {}, None)
