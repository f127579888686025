"""What a service manager hears."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens, and its name as $NOTIFY_SOCKET has it."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@nsagent-test-{os.getpid()}-notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as listener:
        listener.bind(name.replace("@", "\0", 1))
        yield listener, name


def heard(listener: socket.socket) -> list[str]:
    found = []
    while True:
        try:
            found.append(listener.recv(4096).decode())
        except BlockingIOError:
            return found


def test_a_life(manager: tuple[socket.socket, str]) -> None:
    listener, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": str(os.getpid())})
    notifier.ready("serving x")
    notifier.alive()
    with pytest.raises(RuntimeError, match="wrong"), notifier.reloading():
        raise RuntimeError("wrong")
    notifier.stopping()
    ready, alive, reloading, again, stopping = heard(listener)
    assert (ready, alive, again, stopping) == ("READY=1\nSTATUS=serving x", "WATCHDOG=1", "READY=1", "STOPPING=1")
    assert reloading.startswith("RELOADING=1\nMONOTONIC_USEC=")


@pytest.mark.parametrize(
    "more", [{}, {"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}], ids=["no watchdog", "of another process"]
)
def test_without_a_watchdog_of_ours(manager: tuple[socket.socket, str], more: dict[str, str]) -> None:
    listener, name = manager
    Notifier({"NOTIFY_SOCKET": name, **more}).alive()
    assert heard(listener) == []


@pytest.mark.parametrize("address", ["", "vsock:2:1234", "/nowhere/at/all", "@nsagent-test-nobody", "/" + "x" * 300])
def test_nobody_listens(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("x")
    notifier.stopping()
