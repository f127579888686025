"""What flows between a job and the world while it runs, in the launcher's loop: what `Stdio` and `Watch` are, and the log's.

The launcher imports this only for a job whose descriptors are not its own.
"""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, Protocol

from nsagent.launch.stdio import StdioPlan

if TYPE_CHECKING:
    from nsagent.cgroups.meter import Meter
    from nsagent.launch.supervise import Alarm

_PIECE: Final = 1 << 16

Press = Callable[[int, int], None]  # a key has sent this signal to this process group


class Relay(Protocol):
    """A descriptor that the launcher's loop waits for."""

    @property
    def fd(self) -> int:
        """The descriptor."""

    @property
    def events(self) -> int:
        """What is waited for, as poll(2) has it; it may be another each time. 0: nothing."""

    def ready(self) -> None:
        """Do what can be done without waiting."""


class Stdio(Protocol):
    """CMD's descriptors, and the launcher's part in them. The order of calls: `plan`, the clone, `begin`, `finish`."""

    @property
    def plan(self) -> StdioPlan:
        """The child's part."""

    def begin(self, press: Press) -> Sequence[Relay]:
        """CMD has its ends: close ours of them, and return what is to be waited for. `press` is told of keys."""

    def resize(self) -> None:
        """Our terminal has another size now."""

    def suspended(self, stop: Callable[[], None]) -> None:
        """Call `stop`, in which this process stands still; our terminal is as it was meanwhile."""

    def finish(self) -> None:
        """No process of the job is left, or it was never made: pass on what there still is, and give up what was taken."""


class Watch(Protocol):
    """Somebody who looks on while a job runs."""

    def begin(self, meter: Meter | None, now_ns: int) -> Alarm:
        """CMD runs; `meter` reads its cgroup, if it has one. Return when to look for the first time."""

    def suspended(self, stop: Callable[[], None]) -> None:
        """Call `stop`, in which this process stands still and others have our terminal."""

    def finish(self) -> None:
        """CMD has ended, or will not run."""


class Source:
    """Reads a descriptor and passes all on."""

    def __init__(self, fd: int, write: Callable[[bytes], None]) -> None:
        self.fd = fd
        self.events = select.POLLIN
        self._write = write
        os.set_blocking(fd, False)

    def ready(self) -> None:
        """Pass on one piece."""
        try:
            data = os.read(self.fd, _PIECE)
        except BlockingIOError:
            return
        except OSError:  # EIO: no process has the terminal open any more
            data = b""
        if data:
            self._write(data)
        else:
            self.events = 0

    def drain(self) -> None:
        """Pass on all that is there."""
        while self.events and select.select([self.fd], [], [], 0)[0]:
            self.ready()


class Logged:
    """CMD reads nothing, and what it writes goes to `write`, its errors too: the order is theirs. Implements Stdio.

    With `terminal` it has one that nobody types at.
    """

    def __init__(self, write: Callable[[bytes], None], *, terminal: bool = False) -> None:
        source, self._end = os.openpty() if terminal else os.pipe()
        self._null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self.plan = StdioPlan((self._end if terminal else self._null, self._end, self._end), session=terminal)
        self._source = Source(source, write)

    def begin(self, press: Press) -> Sequence[Relay]:
        """See Stdio."""
        self._close_ends()
        return (self._source,)

    def resize(self) -> None:
        """See Stdio."""

    def suspended(self, stop: Callable[[], None]) -> None:
        """See Stdio."""
        stop()

    def finish(self) -> None:
        """See Stdio."""
        self._close_ends()
        self._source.drain()
        os.close(self._source.fd)

    def _close_ends(self) -> None:
        for fd in (self._null, self._end):
            with contextlib.suppress(OSError):  # closed already
                os.close(fd)
        self._null = self._end = -1
