"""What a service manager is told of the agent: started, alive, reloading, ending. Nobody is told where nobody asked.

One datagram a message to the socket that $NOTIFY_SOCKET names. Sources: man 3 sd_notify, man 3 sd_watchdog_enabled.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator, Mapping


class Notifier:
    """Sends to the manager that started this process; a message that cannot be sent is lost, for nothing depends on it."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        self._address = environment.get("NOTIFY_SOCKET", "")
        meant = environment.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
        self._watched = meant and environment.get("WATCHDOG_USEC", "").isdecimal()

    def ready(self, status: str) -> None:
        """It serves; `status` is a line for people."""
        self._send(f"READY=1\nSTATUS={status}")

    def alive(self) -> None:
        """It still goes round: no need to end it by the watchdog, where there is one."""
        if self._watched:
            self._send("WATCHDOG=1")

    @contextlib.contextmanager
    def reloading(self) -> Iterator[None]:
        """Its settings are read again while the block runs; also where that fails, since then it goes on as it was."""
        self._send(f"RELOADING=1\nMONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")
        try:
            yield
        finally:
            self._send("READY=1")

    def stopping(self) -> None:
        """It ends."""
        self._send("STOPPING=1")

    def _send(self, state: str) -> None:
        if not self._address.startswith(("/", "@")):  # vsock, or none
            return
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            sender.sendto(state.encode(), socket.MSG_DONTWAIT, address)
