"""`-t`: CMD has a terminal of its own, which ours shows: raw while CMD runs, of the same size, and as it was afterwards.

Keys go through as bytes, so Ctrl-C and Ctrl-Z are what CMD's terminal makes of them. A PID 1 does not get the SIGINT of a key
if it does not handle it (pid_namespaces(7)): the launcher is told of the key, and ends the job then.

Sources: man 7 pty, man 3 termios, man 2 TIOCSWINSZ, TIOCSCTTY.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import signal
import termios
from collections.abc import Callable, Sequence
from typing import Final

from nsagent.launch.relay import Press, Relay
from nsagent.launch.stdio import StdioPlan

_PIECE: Final = 4096  # PIPE_BUF: a pipe that poll(2) calls writable takes as much without waiting
_KEYS: Final = ((termios.VINTR, signal.SIGINT), (termios.VQUIT, signal.SIGQUIT))


class Flow:
    """From one descriptor to another, a piece at a time: no more is read before the piece is written. Two relays."""

    def __init__(self, source: int, target: int, *, end: bytes = b"", written: Callable[[bytes], None] | None = None) -> None:
        """`end` is written when the source ends; `written` is told of each piece."""
        self._source, self._target = source, target
        self._end = end
        self._written = written
        self._piece = self._left = b""
        self.ended = False

    def relays(self) -> tuple[Relay, Relay]:
        """Return the waiting for the source, and for the target."""
        return _Side(self, self._source, select.POLLIN), _Side(self, self._target, select.POLLOUT)

    def waits_for(self, event: int) -> bool:
        """Tell whether it is this side's turn."""
        return bool(self._left) if event == select.POLLOUT else not (self._left or self.ended)

    def read(self) -> None:
        """Take a piece from the source."""
        try:
            self._piece = os.read(self._source, _PIECE)
        except BlockingIOError:
            return
        except OSError:  # EIO: no process has CMD's terminal open, or ours has hung up
            self._piece = b""
        if not self._piece:
            self.ended = True
            self._piece, self._end = self._end, b""
        self._left = self._piece

    def write(self) -> None:
        """Give the target what it takes now. Where it is gone, the job goes on without."""
        try:
            self._left = self._left[os.write(self._target, self._left) :]
        except BlockingIOError:
            return
        except OSError:
            self._left = b""
        if not self._left and self._written is not None:
            self._written(self._piece)

    def drain(self) -> None:
        """Pass on all that is there, and wait for the target."""
        while self._left or (not self.ended and select.select([self._source], [], [], 0)[0]):
            if not self._left:
                self.read()
            if self._left:
                select.select([], [self._target], [])
                self.write()


class _Side:
    def __init__(self, flow: Flow, fd: int, event: int) -> None:
        self.fd = fd
        self._flow, self._event = flow, event

    @property
    def events(self) -> int:
        return self._event if self._flow.waits_for(self._event) else 0

    def ready(self) -> None:
        if self._event == select.POLLOUT:
            self._flow.write()
        else:
            self._flow.read()


class OnTerminal:
    """CMD's terminal, between our standard input and output. Implements Stdio.

    Where standard input is no terminal, what it has is typed, and Ctrl-D at its end; where it is one in whose background we are,
    nothing is.
    """

    def __init__(self) -> None:
        self._master, self._slave = os.openpty()
        self.plan = StdioPlan((self._slave, self._slave, self._slave), session=True)
        self._typing = os.dup(self._master)
        self._output = _own_output()
        os.set_blocking(self._master, False)
        ours = os.isatty(0)
        self._reads = not ours or os.tcgetpgrp(0) == os.getpgrp()
        self._before = termios.tcgetattr(0) if ours and self._reads else None
        self._shown = Flow(self._master, self._output)
        self._typed = Flow(0, self._typing, end=b"" if ours else b"\x04", written=self._look)
        self._press: Press = lambda number, group: None
        self.resize()

    def begin(self, press: Press) -> Sequence[Relay]:
        """See Stdio. Our terminal is raw from here on."""
        os.close(self._slave)
        self._slave = -1
        self._press = press
        self._make_raw()
        return (*self._shown.relays(), *(self._typed.relays() if self._reads else ()))

    def resize(self) -> None:
        """See Stdio. The kernel tells CMD's foreground process group."""
        if self._before is not None:
            with contextlib.suppress(OSError):
                fcntl.ioctl(self._master, termios.TIOCSWINSZ, fcntl.ioctl(0, termios.TIOCGWINSZ, b"\0" * 8))

    def suspended(self, stop: Callable[[], None]) -> None:
        """See Stdio."""
        self._restore()
        stop()
        self._make_raw()
        self.resize()

    def finish(self) -> None:
        """See Stdio."""
        try:
            self._shown.drain()
        finally:
            self._restore()
            for fd in (self._master, self._typing, self._output, *((self._slave,) if self._slave >= 0 else ())):
                os.close(fd)

    def _make_raw(self) -> None:
        if self._before is not None:
            import tty

            with contextlib.suppress(termios.error):  # it has hung up
                tty.setraw(0, termios.TCSANOW)

    def _restore(self) -> None:
        if self._before is not None:
            with contextlib.suppress(termios.error):
                termios.tcsetattr(0, termios.TCSADRAIN, self._before)

    def _look(self, typed: bytes) -> None:
        """Tell of keys that send a signal."""
        try:
            modes = termios.tcgetattr(self._master)
            group = os.tcgetpgrp(self._master)
        except (OSError, termios.error):
            return
        if modes[3] & termios.ISIG:
            for key, number in _KEYS:
                if modes[6][key] != b"\0" and modes[6][key] in typed:
                    self._press(number, group)


def _own_output() -> int:
    """Return our standard output; a terminal opened anew, so that what we do not wait for there is not what others do not."""
    if os.isatty(1):
        with contextlib.suppress(OSError):
            return os.open("/proc/self/fd/1", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    return os.dup(1)
