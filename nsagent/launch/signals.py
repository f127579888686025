"""Signals and the terminal, on the launcher's side: take them as records, see what CMD would do, keep the terminal.

The job stays in the launcher's process group and session, as under unshare(1): a pipeline keeps its terminal, Ctrl-C
and Ctrl-Z reach both, and a shell inside makes a group of its own when it wants job control. So a signal of the
terminal has reached CMD already (si_code SI_KERNEL), and one that was sent has not.

Sources: man 7 signal, man 2 signalfd, man 7 pid_namespaces (PID 1 gets only signals it handles, except SIGKILL and
SIGSTOP from an ancestor), man 3 tcsetpgrp.
"""

from __future__ import annotations

import os
import signal
import struct
from typing import Final, NamedTuple

from nsagent import libc

STOPPING: Final = frozenset({signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU})
HARMLESS: Final = frozenset({signal.SIGWINCH, signal.SIGCONT, signal.SIGURG})  # their default effect ends nothing
INHERITED: Final = frozenset({signal.SIGHUP, signal.SIGINT, signal.SIGQUIT})  # nohup, and `&` in a script

_FORWARDED: Final = (
    frozenset({signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM})
    | INHERITED
    | STOPPING
    | HARMLESS
    | frozenset(range(signal.SIGRTMIN, signal.SIGRTMAX + 1))
)
PASSED_ON: Final = _FORWARDED - STOPPING  # what a launcher gives CMD when it is sent it itself, and nothing more

_RECORD: Final = struct.Struct("=IiiI112x")  # struct signalfd_siginfo: signo, errno, code, pid
SI_KERNEL: Final = 0x80  # include/uapi/asm-generic/siginfo.h: sent by the kernel, as for a key on the terminal


def read_ignored() -> frozenset[int]:
    """Return what the caller had ignored when we were started, which so is ignored by CMD."""
    return frozenset(int(s) for s in INHERITED if signal.getsignal(s) is signal.SIG_IGN)


class Received(NamedTuple):
    """A signal that reached the launcher; `from_kernel`: a key on the terminal, or its hangup."""

    number: int
    from_kernel: bool


class Inbox:
    """Block what a launcher passes on, and read it from `fd`. What the caller had ignored stays ignored.

    Blocking SIGTTOU also lets a background launcher take its terminal back (tcsetpgrp(3)).
    """

    def __init__(self) -> None:
        self.ignored = read_ignored()
        taken = (_FORWARDED | {signal.SIGCHLD}) - self.ignored
        self._before = signal.pthread_sigmask(signal.SIG_BLOCK, taken)
        self.fd = libc.signalfd(taken)

    def read(self) -> list[Received]:
        """Return what has come since the last call; SIGCHLD among it. Never blocks."""
        try:
            data = os.read(self.fd, 64 * _RECORD.size)
        except BlockingIOError:
            return []
        return [Received(number, code == SI_KERNEL) for number, _, code, _ in _RECORD.iter_unpack(data)]

    def close(self) -> None:
        """Drop what nobody read, then unblock: a second Ctrl-C during the tidying up must not end it."""
        while self.read():
            pass
        os.close(self.fd)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._before)


class Disposition(NamedTuple):
    """What a process does on a signal: `ignored`, or `handled` (caught, or blocked: taken later), or its default."""

    handled: bool
    ignored: bool


def read_disposition(pid: int, number: int, procfs: str = "/proc") -> Disposition:
    """Return what `pid` does on signal `number`, from SigBlk, SigIgn and SigCgt of its status (proc_pid_status(5)).

    A process that is gone does nothing: neither.
    """
    masks = {b"SigBlk": 0, b"SigIgn": 0, b"SigCgt": 0}
    try:
        fd = os.open(f"{procfs}/{pid}/status", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return Disposition(False, False)
    try:
        for line in os.read(fd, 1 << 14).splitlines():
            key, _, value = line.partition(b":")
            if key in masks:
                masks[key] = int(value, 16)
    except OSError:
        return Disposition(False, False)
    finally:
        os.close(fd)
    bit = 1 << (number - 1)
    return Disposition(bool((masks[b"SigCgt"] | masks[b"SigBlk"]) & bit), bool(masks[b"SigIgn"] & bit))


class Terminal:
    """The controlling terminal, if there is one, and whether it was ours when the job began."""

    def __init__(self) -> None:
        self._fd = -1
        self.foreground = False
        try:
            self._fd = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
            self.foreground = os.tcgetpgrp(self._fd) == os.getpgrp()
        except OSError:  # no terminal (ENXIO), or none of ours
            self.close()

    def take_back(self) -> int | None:
        """Make our process group the foreground one again, if it was; return the group that was there instead."""
        if not self.foreground or self._fd < 0:
            return None
        try:
            group = os.tcgetpgrp(self._fd)
            if group == os.getpgrp():
                return None
            os.tcsetpgrp(self._fd, os.getpgrp())
            return group
        except OSError:  # hung up
            return None

    def give(self, group: int) -> None:
        """Make `group` the foreground process group; nothing where it is gone."""
        try:
            os.tcsetpgrp(self._fd, group)
        except OSError:
            pass

    def close(self) -> None:
        """Close the descriptor."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
