"""Sinks on real files, pipes and sockets: what is queued is written whole and in order, what does not fit is counted."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from nsagent.control import Hub
from nsagent.errors import AccessError, UnsupportedError, UsageError
from nsagent.events import SCHEMA, EventFilter, SyscallEvent
from nsagent.launch.quantities import parse_bytes
from nsagent.sinks import Sink, SinkSpec, parse
from tests import support


def event(number: int, comm: str = "load") -> SyscallEvent:
    return SyscallEvent(
        time_ns=number, syscall="unshare", pid=number, tid=number, ppid=1, uid=0, comm=comm, flags=0x04000000, retval=0,
        child_pid=0, fd=0, target=0, latency_ns=1, cgroup_id=1, before=(1,) * 8, after=(1,) * 7 + (2,),
    )  # fmt: skip


def events(first: int, count: int) -> list[SyscallEvent]:
    return [event(number) for number in range(first, first + count)]


@contextmanager
def sink_to(text: str, hub: Hub) -> Iterator[Sink]:
    sink = Sink(parse(text, parse_bytes), lambda: hub.subscribe(EventFilter()), SCHEMA)
    sink.start()
    try:
        yield sink
    finally:
        sink.close(120)


@pytest.fixture
def hub() -> Hub:
    return Hub(lambda on: None)


def pids(text: str) -> list[int]:
    return [line["pid"] for line in map(json.loads, text.splitlines()) if line["type"] == "syscall"]


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("file:/var/log/e", SinkSpec("file", "/var/log/e", False, 64 << 20, 5)),
        ("file:/e?size=1K&keep=0&format=text", SinkSpec("file", "/e", True, 1024, 0)),
        ("file:/a%3Fb?size=0", SinkSpec("file", "/a?b", False, 0, 5)),
        ("unix:/run/e.sock", SinkSpec("unix", "/run/e.sock")),
        ("stdout?format=text", SinkSpec("stdout", "", True)),
        ("journald", SinkSpec("journald")),
        ("journald?socket=/run/systemd/journal.a/socket", SinkSpec("journald", "/run/systemd/journal.a/socket")),
    ],
)
def test_parse(text: str, spec: SinkSpec) -> None:
    assert parse(text, parse_bytes) == spec


@pytest.mark.parametrize(
    "text",
    ["", "file", "file:", "file:rel", "file:/e?size=x", "file:/e?keep=-1", "file:/e?keep=²", "file:/e?size=1&size=2",
     "file:/e?bogus=1", "unix:/a?size=3", "stdout:/x", "journald:/x", "syslog", "stdout?format=xml", "file:/e?keep"],
)  # fmt: skip
def test_what_is_no_sink_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text, parse_bytes)
    assert caught.value.hint


def test_a_file_gets_every_event_in_order(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "events"
    with sink_to(f"file:{path}", hub):
        for first in range(0, 3000, 100):
            hub.publish(events(first, 100))
    assert pids(path.read_text()) == list(range(3000))
    assert {json.loads(line)["schema"] for line in path.read_text().splitlines()} == {SCHEMA}
    assert path.stat().st_mode & 0o777 == 0o600
    assert hub.lost == 0
    assert hub.idle


def test_a_comm_that_is_no_text_is_one_line(hub: Hub, tmp_path: Path) -> None:
    for form in ("json", "text"):
        with sink_to(f"file:{tmp_path / form}?format={form}", hub):
            hub.publish([event(1, "a\nb\udcff")])
        assert (tmp_path / form).read_bytes().count(b"\n") == 1


def text_of(path: Path) -> str:
    """Return what a file holds; empty between its renaming, in a rotation, and the next one's making."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def test_rotation_keeps_so_many_files_and_loses_nothing_within_them(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "events"
    with sink_to(f"file:{path}?size=20K&keep=3", hub):
        for first in range(0, 1000, 10):
            hub.publish(events(first, 10))
            support.wait_for(lambda last=first + 9: f'"pid": {last},' in text_of(path), what="the batch on disk")  # type: ignore[misc]
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["events", "events.1", "events.2", "events.3"]
    kept = [number for name in reversed(names) for number in pids((tmp_path / name).read_text())]
    assert kept == list(range(kept[0], 1000))
    assert 3 * 20 * 1024 < sum(p.stat().st_size for p in tmp_path.iterdir()) < 4 * 30 * 1024


def test_keep_0_begins_anew(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "events"
    with sink_to(f"file:{path}?size=1K&keep=0", hub):
        for number in range(20):
            hub.publish([event(number)])
            support.wait_for(lambda last=number: f'"pid": {last},' in text_of(path))  # type: ignore[misc]
    assert [p.name for p in tmp_path.iterdir()] == ["events"]
    assert path.stat().st_size < 3 * 1024


def test_a_file_that_somebody_renamed_is_followed(hub: Hub, tmp_path: Path) -> None:
    path = tmp_path / "events"
    with sink_to(f"file:{path}?size=0", hub):
        hub.publish(events(0, 5))
        support.wait_for(lambda: len(pids(path.read_text())) == 5)
        path.rename(tmp_path / "old")
        hub.publish(events(5, 5))
    assert pids((tmp_path / "old").read_text()) == list(range(5))
    assert pids(path.read_text()) == list(range(5, 10))


def test_a_pipe_nobody_reads_stops_its_own_thread_only(hub: Hub, tmp_path: Path) -> None:
    fifo, path = tmp_path / "fifo", tmp_path / "events"
    os.mkfifo(fifo)
    with sink_to(f"file:{fifo}", hub), sink_to(f"file:{path}", hub):
        for first in range(0, 20_000, 1000):
            hub.publish(events(first, 1000))  # returns: nothing here waits
            support.wait_for(lambda last=first + 999: f'"pid": {last},' in tail(path), what="the other sink")  # type: ignore[misc]
        lost = hub.lost
        assert 20_000 - 2 * 8192 <= lost <= 20_000 - 8192  # its queue, and what it had taken before
        reader = os.open(fifo, os.O_RDONLY)
        text = b""
        while b'"lost"' not in text:
            text += os.read(reader, 1 << 16)
        os.close(reader)
    lines = [json.loads(line) for line in text.decode().splitlines()]
    assert pids("\n".join(map(json.dumps, lines))) == list(range(20_000 - lost))  # what came first, without a gap
    assert lines[-1]["count"] == lost
    assert pids(path.read_text()) == list(range(20_000))


def tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 2000))
        return file.read().decode()


def test_a_reader_that_stopped_gets_whole_lines_when_it_goes_on(hub: Hub, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with sink_to(f"file:{fifo}", hub) as sink:
        hub.publish(events(0, 2000))  # some 1.2 MB into a pipe of 64 KiB
        os.set_blocking(reader, True)
        text = b""
        while text.count(b"\n") < 2000:
            text += os.read(reader, 777)
        assert sink.spec.kind == "file"
    os.close(reader)
    assert pids(text.decode()) == list(range(2000))


def test_closing_does_not_wait_for_a_pipe(hub: Hub, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    with sink_to(f"file:{fifo}", hub):
        hub.publish(events(0, 2000))
    assert hub.idle  # the thread ended, and gave up its queue
    os.close(reader)
    assert "unwritten=" in caplog.text


def test_a_directory_that_is_not_there_is_said_at_once(hub: Hub, tmp_path: Path) -> None:
    for path in (tmp_path / "none" / "events", tmp_path):
        with pytest.raises(AccessError, match=str(path)):
            Sink(parse(f"file:{path}", parse_bytes), lambda: hub.subscribe(EventFilter()), SCHEMA)


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["stream", "datagram"])
def test_a_unix_socket_that_comes_late_and_comes_back(hub: Hub, tmp_path: Path, kind: int) -> None:
    path = str(tmp_path / "collector")
    with sink_to(f"unix:{path}", hub):
        hub.publish(events(0, 50))
        first = socket.socket(socket.AF_UNIX, kind)
        first.bind(path)
        assert read_lines(first, kind, 50) == list(range(50))
        first.close()
        os.unlink(path)
        hub.publish(events(50, 50))
        again = socket.socket(socket.AF_UNIX, kind)
        again.bind(path)
        got = read_lines(again, kind, 50)
        again.close()
    assert got == list(range(50, 100))


def read_lines(server: socket.socket, kind: int, count: int) -> list[int]:
    server.settimeout(120)
    if kind == socket.SOCK_STREAM:
        server.listen()
        client, _ = server.accept()
        with client, client.makefile("rb") as stream:
            return pids("".join(stream.readline().decode() for _ in range(count)))
    return pids("".join(server.recv(1 << 16).decode() for _ in range(count)))


def test_a_collector_that_stops_reading_loses_by_the_queue(hub: Hub, tmp_path: Path) -> None:
    path = str(tmp_path / "collector")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    server.bind(path)
    server.listen()
    with sink_to(f"unix:{path}", hub):
        for first in range(0, 30_000, 1000):
            hub.publish(events(first, 1000))
        assert hub.lost > 0
        client, _ = server.accept()
        lines: list[dict[str, int]] = []
        with client, client.makefile("rb") as stream:
            while not lines or lines[-1]["type"] != "lost":  # type: ignore[comparison-overlap]
                lines.append(json.loads(stream.readline()))
    numbers = [line["pid"] for line in lines[:-1]]
    assert numbers == list(range(len(numbers)))
    server.close()


def test_journald_gets_the_text_the_priority_and_the_json(hub: Hub, tmp_path: Path) -> None:
    pytest.importorskip("logging_journald")
    path = str(tmp_path / "journal")
    server = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    server.bind(path)
    server.settimeout(120)
    with sink_to(f"journald?socket={path}", hub):
        hub.publish(events(0, 300))  # more than a datagram socket queues
        entries = [server.recv(1 << 16) for _ in range(300)]
    server.close()
    found = [json.loads(entry.split(b"NSAGENT_JSON=")[1].splitlines()[0])["pid"] for entry in entries]
    assert found == list(range(300))
    assert b"PRIORITY=6\n" in entries[0]
    assert b"SYSLOG_IDENTIFIER=nsagent\n" in entries[0]
    length = int.from_bytes(entries[0][8:16], sys.byteorder)
    assert entries[0][:8] == b"MESSAGE\n"
    assert entries[0][16 : 16 + length].decode() == event(0).to_text()


def test_without_the_library_the_error_says_what_to_install(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "logging_journald", None)
    with pytest.raises(UnsupportedError, match="logging_journald") as caught:
        Sink(parse("journald", parse_bytes), lambda: hub.subscribe(EventFilter()), SCHEMA)
    assert "nsagent[journald]" in caught.value.hint


STDOUT = """
from nsagent.control import Hub
from nsagent.events import EventFilter
from nsagent.launch.quantities import parse_bytes
from nsagent.sinks import Sink, parse
from tests.unit.test_sinks import events
hub = Hub(lambda on: None)
sink = Sink(parse("stdout", parse_bytes), lambda: hub.subscribe(EventFilter()), 1)
sink.start()
hub.publish(events(0, 1000))
input()
sink.close(60)
"""


def test_stdout_is_not_waited_for_and_not_made_nonblocking() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", STDOUT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=support.ROOT
    )
    assert process.stdout is not None
    assert process.stdin is not None
    text = "".join(process.stdout.readline() for _ in range(1000))
    flags = Path(f"/proc/{process.pid}/fdinfo/1").read_text().split("flags:\t")[1].split()[0]
    process.stdin.write("\n")
    process.stdin.close()
    assert process.wait(120) == 0
    process.stdout.close()
    assert pids(text) == list(range(1000))
    assert not int(flags, 8) & os.O_NONBLOCK
