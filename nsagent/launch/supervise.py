"""From the child's birth to its end: one loop over its pidfd, its channel and our signals. Single-threaded, no handlers."""

from __future__ import annotations

import functools
import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, NamedTuple

from nsagent.cgroups.meter import Meter
from nsagent.errors import LaunchError, UnsupportedError
from nsagent.launch.execute import INTERPRETER
from nsagent.launch.handshake import Began, Decoder, Ended, Failed, Ready
from nsagent.launch.signals import HARMLESS, STOPPING, Inbox, Received, Terminal, read_disposition

if TYPE_CHECKING:
    from nsagent.launch.relay import Stdio, Watch

_CPU_PAUSE_NS = 4_000_000  # a tick: a running task's time is not known sooner
_STOP_DEADLINE_S = 5.0
_SUSPEND_GRACE_S = 0.2  # for a program that puts its terminal in order on SIGTSTP


class UnreadyError(LaunchError):
    """The child was killed on its way to CMD, and could not say why."""


class Ending(NamedTuple):
    """How the child ended: it is a zombie now, not waited for yet.

    `failure`: it never ran CMD. `command_status`: CMD's wait status where an init reaped it. `carried_out`: the signal
    whose default effect PID 1 does not get from the kernel, and got from us. `stopped`: why it was, or "".
    """

    failure: Failed | None
    command_status: int | None
    carried_out: int | None
    stopped: str


class Alarm:
    """Something to do at a time: `ring` is called with the time it is and returns when next. CLOCK_MONOTONIC ns; None: never."""

    __slots__ = ("due_ns", "ring")

    def __init__(self, due_ns: int | None, ring: Callable[[int], int | None]) -> None:
        self.due_ns = due_ns
        self.ring = ring


class CpuTimeout:
    """Calls `stop` when a cgroup has used `limit_ns` of CPU. Looks no sooner than all CPUs together could have used the rest."""

    def __init__(self, meter: Meter, limit_ns: int, stop: Callable[[str], None]) -> None:
        self._meter = meter
        self._limit_ns = limit_ns
        self._stop = stop
        self._cpus = os.cpu_count() or 1

    def ring(self, now_ns: int) -> int | None:
        """Look now; return when next, or None where it is done. Raises UnsupportedError where the CPU time cannot be read."""
        used_ns = self._meter.cpu_ns()
        if used_ns is None:
            raise UnsupportedError("--cpu-timeout", "the job's cgroup does not tell its CPU time", hint="see 'nsagent doctor'")
        if used_ns >= self._limit_ns:
            self._stop(f"stopped after its timeout of {self._limit_ns / 1e9:g} s of CPU time")
            return None
        return now_ns + max((self._limit_ns - used_ns) // self._cpus, _CPU_PAUSE_NS)


class Supervisor:
    """Watches one child. `pid_one`: it is PID 1 of a namespace of its own, and has no init of ours.

    `kill` ends every process of the job; it is called for a carried-out signal and `stop_timeout_ns` after a `stop`.
    `started` is called when CMD runs. `stdio`: CMD's descriptors where they are not ours.
    """

    def __init__(
        self,
        pid: int,
        pidfd: int,
        channel: int,
        *,
        inbox: Inbox,
        terminal: Terminal,
        kill: Callable[[], None],
        pid_one: bool,
        stop_timeout_ns: int,
        started: Callable[[], None] = lambda: None,
        stdio: Stdio | None = None,
        watch: Watch | None = None,
    ) -> None:
        self._pid = pid
        self._pidfd = pidfd
        self._channel = channel
        self._inbox = inbox
        self._terminal = terminal
        self._kill = kill
        self._pid_one = pid_one
        self._decoder = Decoder()
        self._begun = False
        self._running = False  # the channel was closed: by execve, or by an end
        self._failure: Failed | None = None
        self._command_status: int | None = None
        self._carried_out: int | None = None
        self._stopped = ""
        self._stop_timeout_ns = stop_timeout_ns
        self._started = started
        self._stdio = stdio
        self._watch = watch
        self._grace = Alarm(None, self._end_grace)
        self._poll = select.poll()
        for fd in (pidfd, channel):
            self._poll.register(fd, select.POLLIN)

    def wait_ready(self) -> None:
        """Wait until the child is in its cgroups and namespaces. Raises LaunchError where it is not, or has died."""
        ready = False
        while not ready:
            data = os.read(self._channel, 4096)
            for message in self._decoder.feed(data):
                if isinstance(message, Failed):
                    raise failure_error(message)
                ready = ready or isinstance(message, Ready)
            if not data:
                raise UnreadyError("the child ended before it was ready", stage="handshake", call="read")

    def wait(self, alarms: Iterable[Alarm] = ()) -> Ending:
        """Pass signals on, and do what `alarms` and the relays of `stdio` say, until the child has ended."""
        self._poll.register(self._inbox.fd, select.POLLIN)
        alarms = [*alarms, self._grace]
        relays = self._stdio.begin(self._pressed) if self._stdio else ()
        while True:
            due_ns = min((alarm.due_ns for alarm in alarms if alarm.due_ns is not None), default=None)
            left_ms = None if due_ns is None else max(0, (due_ns - time.monotonic_ns() + 999_999) // 1_000_000)
            waited = [relay for relay in relays if relay.events]
            for relay in waited:
                self._poll.register(relay.fd, relay.events)
            ready = {fd for fd, _ in self._poll.poll(left_ms)}
            for relay in waited:
                self._poll.unregister(relay.fd)
                if relay.fd in ready:
                    relay.ready()
            if self._channel in ready:
                self._read_channel()
            if self._pidfd in ready:
                if not self._running:
                    self._read_channel()
                return Ending(self._failure, self._command_status, self._carried_out, self._stopped)
            if self._inbox.fd in ready:
                batch = self._inbox.read()
                # One stop is enough: a PID 1 that reads its terminal in the background tries again at once, each time
                # with a SIGTTIN to all of us, because its own is dropped.
                stops = [received for received in batch if received.number in STOPPING]
                for received in [other for other in batch if other not in stops] + stops[:1]:
                    self._take(received)
            now_ns = time.monotonic_ns()
            for alarm in alarms:
                if alarm.due_ns is not None and alarm.due_ns <= now_ns:
                    alarm.due_ns = alarm.ring(now_ns)

    def stop(self, reason: str) -> None:
        """Ask the job to end, with SIGTERM; what is left of it after the stop timeout is killed. The first reason counts."""
        if not self._stopped:
            self._stopped = reason
            self._grace.due_ns = time.monotonic_ns() + self._stop_timeout_ns
            self.send(signal.SIGTERM)
            self._signal(signal.SIGCONT)  # a stopped job takes it too

    def _end_grace(self, _now_ns: int) -> None:
        self._kill()

    def _read_channel(self) -> None:
        while not self._running:
            data = os.read(self._channel, 4096)
            for message in self._decoder.feed(data):
                if isinstance(message, Failed):
                    self._failure = message
                elif isinstance(message, Began):
                    self._begin()
                elif isinstance(message, Ended):
                    self._command_status = message.status
            if not data:
                self._running = True
                self._poll.unregister(self._channel)
                self._begin()
            elif not select.select([self._channel], [], [], 0)[0]:
                break

    def _begin(self) -> None:
        """CMD runs, as the end of the channel says or before that an init; unless it failed."""
        if self._failure is None and not self._begun:
            self._begun = True
            self._started()

    def _take(self, received: Received) -> None:
        if received.number == signal.SIGCHLD:
            self._follow_stop()
        elif received.number in STOPPING:
            self._suspend(received)
        elif received.number == signal.SIGWINCH and self._stdio:
            self._stdio.resize()
        elif received.number == signal.SIGCONT:
            self._signal(signal.SIGCONT)
        else:
            self.send(received.number, has_it=received.from_kernel and self._in_our_group())

    def send(self, number: int, has_it: bool = False) -> None:
        """Give the child a signal, unless it `has_it` already; do ourselves what the kernel does not do to a PID 1.

        A PID 1 with a signal's default disposition never gets it (pid_namespaces(7)). Its default effect is the end of
        PID 1, with which the kernel ends the whole namespace: the same is done to the whole job. So it is before
        execve, where our own blocking would look like handling.
        """
        if self._pid_one and number not in HARMLESS:
            does = read_disposition(self._pid, number)
            if does.ignored:
                return
            if not does.handled or not self._running:
                if self._carried_out is None:
                    self._carried_out = number
                self._kill()
                return
        if not has_it:
            self._signal(number)

    def _pressed(self, number: int, group: int) -> None:
        """Do for a PID 1 what its terminal's key does not; its group has the signal already."""
        if group == self._pid:
            self.send(number, has_it=True)

    def _signal(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._pidfd, number)
        except ProcessLookupError:
            pass  # ended: the pidfd says so next

    def _in_our_group(self) -> bool:
        try:
            return os.getpgid(self._pid) == os.getpgrp()
        except ProcessLookupError:
            return True

    def _suspend(self, received: Received) -> None:
        """Stop the job, then ourselves, so that the shell that waits for us sees a stopped job; go on when continued."""
        does = read_disposition(self._pid, received.number)
        if does.ignored:  # a shell that does job control itself
            return
        has_it = received.from_kernel and self._in_our_group()
        if not has_it:
            self._signal(received.number)
        if self._pid_one:  # it can stop neither by default nor by itself; SIGSTOP from outside it obeys
            if does.handled:
                time.sleep(_SUSPEND_GRACE_S)
            self._signal(signal.SIGSTOP)
            self._await_stop()
        self._stop_ourselves()

    def _await_stop(self) -> None:
        """Wait until SIGSTOP has worked: until then CMD may take what is typed for the shell. In a frozen cgroup it does not."""
        deadline, pause = time.monotonic() + _STOP_DEADLINE_S, 0.0005
        while time.monotonic() < deadline and not select.select([self._pidfd], [], [], pause)[0]:
            if os.waitid(os.P_PIDFD, self._pidfd, os.WSTOPPED | os.WNOHANG) is not None:
                return
            pause = min(pause * 2, 0.05)

    def _follow_stop(self) -> None:
        """Where the child stopped itself on our terminal (`suspend` in a shell), stop too: else nobody could go on."""
        if not self._terminal.foreground:
            return
        try:
            stopped = os.waitid(os.P_PIDFD, self._pidfd, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return
        if stopped is not None:
            self._stop_ourselves()

    def _stop_ourselves(self) -> None:
        group = self._terminal.take_back()
        stop: Callable[[], None] = _stop
        for other in (self._stdio, self._watch):
            if other is not None:
                stop = functools.partial(other.suspended, stop)
        stop()
        if group is not None:
            self._terminal.give(group)
        self._signal(signal.SIGCONT)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


_HINTS = {
    "join": "CAP_SYS_ADMIN is needed here and in the user namespace that owns it: --join user:... comes first",
    "clock": "no clock may be behind its start, or ahead by more than 146 years; 'nsagent doctor' lists the namespaces there are",
    "clone": "a limit of /proc/sys/user, or no CAP_SYS_ADMIN in the user namespace that was joined",
    "cgroup": "'nsagent doctor' says what this host's cgroups support",
    "mounts": "a fresh /proc in a user namespace needs a fully visible /proc outside; --no-proc leaves it as it is",
    "directory": "the directory is looked up inside the job: with its mounts, and as its user",
    "hostname": "at most 64 bytes",
    "rootfs": "the directory must be reachable as the user the job runs as",
    "volume": "SRC is looked up on the host, DST inside the job; DST must exist, unless there is a --rootfs",
    "user": "only root, or root of a user namespace (--userns auto), can become another user",
    "capabilities": "--privileged takes none away",
    "seccomp": "this kernel may lack seccomp filters; --seccomp unconfined does without",
    "ulimit": "above the hard limit only with CAP_SYS_RESOURCE; nofile at most /proc/sys/fs/nr_open",
    "tmpfs": "DST must be a directory inside the job; options are those of tmpfs(5)",
}
_NOT_FOUND = 2  # ENOENT


def failure_error(failure: Failed) -> LaunchError:
    """Return what the child reported as the error the user sees: 127 for a command not found, 126 for one not runnable."""
    reason = os.strerror(failure.errno) if failure.errno else failure.call
    hint = _HINTS.get(failure.stage, "")
    code = 125
    message = f"{failure.stage}: {failure.call} {failure.path}".rstrip() + f": {reason}"
    if failure.call == "open_tree" and failure.stage in ("volume", "rootfs"):
        message = f"--{failure.stage} {failure.path}: {reason}"
    if failure.stage == "exec":
        code = 127 if failure.errno == _NOT_FOUND else 126
        message = f"{failure.path}: {reason}"
        if code == 126:
            hint = "the job's user must be allowed to execute it; a script needs a '#!' line"
        elif failure.call == INTERPRETER:
            hint = "the file exists: the interpreter in its '#!' line, or its ELF loader, does not"
        else:
            hint = "it is looked up in PATH inside the job" if "/" not in failure.path else "there is no such file inside the job"
            message = f"{failure.path}: command not found"
    return LaunchError(
        message,
        stage=failure.stage,
        call=failure.call,
        errno=failure.errno,
        path=failure.path,
        exit_code=code,
        hint=hint,
    )
