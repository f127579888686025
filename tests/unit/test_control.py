"""The control socket, over real sockets: requests, the stream of events, losses, and who may have the state directory."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsagent import control
from nsagent.control import Control, Hub, StateLock, Subscription
from nsagent.errors import AccessError, NsagentError, UsageError
from nsagent.events import EventFilter, SyscallEvent
from nsagent.namespaces import NamespaceKind
from tests.support import wait_for

UTS_BEFORE = tuple(range(1, 9))
UTS_AFTER = (*range(1, 8), 99)


def event(pid: int = 1, *, failed: bool = False, changes: bool = True) -> SyscallEvent:
    """An unshare of the UTS namespace, or a fork that changes nothing."""
    return SyscallEvent(
        time_ns=0,
        syscall="unshare" if changes or failed else "fork",
        pid=pid,
        tid=pid,
        ppid=1,
        uid=0,
        comm="t\udcff",
        flags=NamespaceKind.UTS.flag if changes else 0,
        retval=-1 if failed else 0,
        child_pid=0,
        fd=0,
        target=0,
        latency_ns=1,
        cgroup_id=1,
        before=UTS_BEFORE,
        after=UTS_AFTER if changes and not failed else UTS_BEFORE,
    )


class World:
    """A control socket with a hub, and what it told the kernel side."""

    def __init__(self, state_dir: Path, traced: bool = True) -> None:
        self.state_dir = str(state_dir)
        self.all: list[bool] = []
        self.hub = Hub(self.all.append, limit=200)
        self.control = Control(
            self.state_dir,
            scrape=lambda: b"a 1\n" * 100_000,
            status=lambda: {"pid": 5},
            hub=self.hub if traced else None,
            untraced="no tracefs",
        )
        self.control.start()

    def trace(self, **request: Any) -> Any:
        """Start to trace; returns the stream once the agent has subscribed it."""
        answer = control.ask(self.state_dir, {"request": "trace", **request})
        assert answer is not None
        return answer[1]


@pytest.fixture
def world(state_dir: Path) -> Iterator[World]:
    one = World(state_dir)
    yield one
    one.control.close()


def read(stream: Any, count: int) -> list[dict[str, Any]]:
    return [json.loads(stream.readline()) for _ in range(count)]


def test_metrics_and_status(world: World) -> None:
    answer = control.ask(world.state_dir, {"request": "metrics"})
    assert answer is not None
    with answer[1] as stream:
        body = stream.read()
    assert body == b"a 1\n" * 100_000
    assert answer[0]["bytes"] == len(body)
    answer = control.ask(world.state_dir, {"request": "status"})
    assert answer is not None
    answer[1].close()
    assert answer[0]["status"] == {"pid": 5}


def test_the_socket_is_its_owners_alone(world: World) -> None:
    assert stat.S_IMODE(os.stat(world.control.path).st_mode) == 0o600


def test_each_client_has_the_whole_stream_of_what_it_wants(world: World) -> None:
    with world.trace() as changes, world.trace(all=True, output="json") as everything, world.trace(pid=7) as seven:
        world.hub.publish([event(1), event(7), event(2, changes=False), event(3, failed=True)])
        lines = read(everything, 4)
        assert [json.loads(line["line"])["pid"] for line in lines] == [1, 7, 2, 3]
        assert [line["line"].split()[2] for line in read(changes, 3)] == ["1", "7", "3"]
        assert read(seven, 1)[0]["line"].split()[2] == "7"
        world.hub.publish([event(7, failed=True)])
        assert "EPERM" in read(seven, 1)[0]["line"]


def test_filters(world: World) -> None:
    with world.trace(kind="uts", failed=True) as failed, world.trace(kind="net", all=True) as net:
        world.hub.publish([event(1), event(2, failed=True)])
        assert read(failed, 1)[0]["line"].split()[2] == "2"
        world.control.close()
        assert net is not None


def test_count_ends_the_stream(world: World) -> None:
    with world.trace(count=2) as stream:
        world.hub.publish([event(n) for n in range(1, 6)])
        assert len(stream.read().splitlines()) == 2
    wait_for(lambda: world.hub.idle)


def test_a_client_that_goes_away_is_noticed_without_an_event(world: World) -> None:
    with world.trace(all=True):
        assert not world.hub.idle
        assert world.all[-1] is True
    wait_for(lambda: world.hub.idle)
    assert world.all[-1] is False, "plain forks are traced only while somebody wants them"


def test_a_full_queue_loses_counts_and_goes_on() -> None:
    hub = Hub(lambda on: None)
    subscription = Subscription(EventFilter(), limit=3)
    hub._subscriptions.append(subscription)
    hub.publish([event(n) for n in range(1, 6)])
    hub.publish([event(6), event(7, changes=False)])
    events, lost = subscription.take()
    assert [e.pid for e in events] == [1, 2, 3]
    assert lost == hub.lost == 3, "what nobody wanted is not lost"
    hub.publish([event(8)])
    assert [e.pid for e in subscription.take()[0]] == [8]
    subscription.close()


def test_a_slow_client_is_told_its_losses_and_delays_nobody(world: World) -> None:
    with world.trace() as slow, world.trace() as quick:
        published = 6_000
        for start in range(0, published, 100):
            world.hub.publish([event(n) for n in range(start, start + 100)])
            got = read(quick, 100)
            assert all("line" in line for line in got)
        assert world.hub.lost > 0, "the slow one's queue and socket do not hold it all"
        world.hub.publish([event(published)])
        messages: list[dict[str, Any]] = []
        while sum(message.get("lost", 1) for message in messages) < published:
            messages += read(slow, 1)
        assert sum(message.get("lost", 0) for message in messages) == world.hub.lost


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        ({"request": "nonsense"}, "no request is called 'nonsense'"),
        ({}, "no request is called None"),
        ({"request": "trace", "kind": "cow"}, "no namespace kind 'cow'"),
        ({"request": "trace", "pid": "1"}, "pid='1' is not understood"),
        ({"request": "trace", "count": True}, "count=True is not understood"),
        ({"request": "trace", "colour": 1}, "colour=1 is not understood"),
    ],
)
def test_what_is_refused(world: World, request_: dict[str, Any], error: str) -> None:
    with pytest.raises(NsagentError, match=error):
        control.ask(world.state_dir, request_)


@pytest.mark.parametrize("sent", [b"no json\n", b"[1]\n", b"x" * 5000])
def test_garbage_is_answered(world: World, sent: bytes) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.connect(world.control.path)
        client.sendall(sent)
        assert json.loads(client.makefile("rb").readline())["ok"] is False


def test_too_many_clients_are_told_what_to_do(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_CLIENTS", 1)
    world = World(state_dir)
    try:
        with contextlib.closing(world.trace()), pytest.raises(NsagentError, match="has 1 clients already") as raised:
            control.ask(world.state_dir, {"request": "status"})
        assert "nsagent trace" in raised.value.hint
    finally:
        world.control.close()


def test_who_is_refused_before_he_has_asked_is_told_too(state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent need not wait for a question that it will not answer."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as full:
        full.bind(control.socket_path(str(state_dir)))
        full.listen()

        class Closed(socket.socket):
            def connect(self, address: Any) -> None:
                super().connect(address)
                with full.accept()[0] as accepted:
                    accepted.sendall(b'{"ok": false, "error": "full"}\n')

        monkeypatch.setattr(socket, "socket", Closed)
        with pytest.raises(NsagentError, match="full"):
            control.ask(str(state_dir), {"request": "status"})


def test_where_nothing_is_traced_the_reason_is_told(state_dir: Path) -> None:
    world = World(state_dir, traced=False)
    with contextlib.closing(world.control), pytest.raises(NsagentError, match="tracing: no tracefs"):
        world.trace()


def test_no_agent_is_none(state_dir: Path) -> None:
    assert control.ask(str(state_dir), {"request": "status"}) is None


def test_a_dead_agents_socket_is_none_and_is_replaced(state_dir: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as dead:
        dead.bind(control.socket_path(str(state_dir)))
    assert control.ask(str(state_dir), {"request": "status"}) is None
    world = World(state_dir)
    assert control.ask(str(state_dir), {"request": "status"}) is not None
    world.control.close()
    assert not os.path.exists(world.control.path)


HOLDER = """
import sys, time
from nsagent.control import StateLock
lock = StateLock(sys.argv[1])
print("locked", flush=True)
time.sleep(1000)
"""


def test_one_agent_a_state_directory(tmp_path: Path) -> None:
    state = tmp_path / "made"
    with subprocess.Popen([sys.executable, "-c", HOLDER, state], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        with pytest.raises(NsagentError, match=f"process {holder.pid}$") as raised:
            StateLock(str(state))
        assert "--state-dir" in raised.value.hint
        holder.kill()
    lock = StateLock(str(state))  # killed: nothing is held any more
    with pytest.raises(NsagentError, match=f"process {os.getpid()}$"):
        StateLock(str(state))
    lock.release()
    StateLock(str(state)).release()


def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(AccessError, match="cannot use state directory"):
        StateLock(str(tmp_path / "file"))


def test_parse_trace() -> None:
    wanted, as_json, count = control.parse_trace({"request": "trace", "kind": "pid", "output": "json", "count": 3})
    assert (wanted, as_json, count) == (EventFilter(NamespaceKind.PID), True, 3)
    with pytest.raises(UsageError):
        control.parse_trace({"failed": 1})


def test_a_directory_in_the_sockets_place_is_one_clear_error(state_dir: Path) -> None:
    (state_dir / "agent.sock").mkdir()
    with pytest.raises(AccessError, match=r"agent\.sock"):
        World(state_dir)


def test_a_socket_that_became_something_else_does_not_spoil_the_end(state_dir: Path) -> None:
    one = World(state_dir)
    (state_dir / "agent.sock").unlink()
    (state_dir / "agent.sock").mkdir()
    one.control.close()


def test_a_directory_that_others_can_write_takes_no_agent(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(AccessError, match="every user"):
        StateLock(str(tmp_path))


@pytest.mark.parametrize("answer", [b"[]\n", b"HTTP/1.1 400 Bad Request\n", b"[" * 9000 + b"\n", b'"x"\n', b""])
def test_what_answers_may_be_no_agent(state_dir: Path, answer: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(control.socket_path(str(state_dir)))
        listener.listen()

        def reply() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(4096)
                client.sendall(answer)

        thread = threading.Thread(target=reply)
        thread.start()
        with pytest.raises(NsagentError, match="agent"):
            control.ask(str(state_dir), {"request": "status"})
        thread.join()
