"""Running a command in the namespaces of a process that is there: no cgroup, no mounts, no confinement of its own, as nsenter.

For a process that is to be confined in namespaces of another there is `nsagent run --join`.
Sources: man 1 nsenter, man 2 setns, pidfd_open; man 7 pid_namespaces.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable
from typing import NamedTuple, NoReturn

from nsagent import jobs, libc, namespaces
from nsagent.cgroups.files import write
from nsagent.cgroups.layout import Layout
from nsagent.cgroups.plan import translate
from nsagent.errors import AccessError, NsagentError, UnsupportedError, VanishedError
from nsagent.launch.execute import Command, execute
from nsagent.launch.handshake import Failed, Step
from nsagent.launch.identity import Identity, become_maker
from nsagent.launch.measure import read_start_ticks
from nsagent.launch.signals import SI_KERNEL
from nsagent.launch.supervise import failure_error
from nsagent.namespaces import NamespaceKind


class Target(NamedTuple):
    """A process, pinned: `pidfd` stands for it even when `pid` is another's."""

    pid: int
    pidfd: int


def find(word: str, state_dir: str) -> Target:
    """Return the process of that pid, or CMD's of the running job that `word` means.

    Raises: VanishedError, where it ended; UnknownJobError and the others of `jobs.find`; UnsupportedError before Linux 5.3.
    """
    if word.isascii() and word.isdecimal():
        return _pin(int(word), f"process {int(word)}")
    job = jobs.find(state_dir, word)
    if job.pid is None or job.end is not None:
        raise NsagentError(
            f"job {job.id} {'has not begun yet' if job.end is None else 'has ended'}", hint="'nsagent ps' lists them"
        )
    target = _pin(job.pid, f"job {job.id}")
    if read_start_ticks(job.pid) != job.start_ticks:  # looked at after it was pinned: it is that one, or none
        raise VanishedError(f"job {job.id}")
    return target


def _pin(pid: int, what: str) -> Target:
    try:
        return Target(pid, os.pidfd_open(pid))
    except (ProcessLookupError, OverflowError):
        raise VanishedError(what) from None
    except OSError as exc:
        if exc.errno == errno.EINVAL:  # a thread that does not lead, or 0
            raise NsagentError(f"{what}: not a process", hint="name the pid of a process, not of a thread of it") from exc
        raise UnsupportedError("pidfd_open", exc.strerror or "", hint="Linux 5.3 has it") from exc


def other_kinds(target: Target) -> frozenset[NamespaceKind]:
    """Return the kinds of which the target is in another namespace than the caller. Raises VanishedError, AccessError."""
    here, there = namespaces.read_inums("self"), namespaces.read_inums(target.pid)
    return frozenset(kind for kind, inum in there.items() if here.get(kind) != inum)


def join_cgroup(target: Target, layout: Layout) -> None:
    """Move the caller into the cgroup of the target, in every hierarchy. Raises VanishedError, AccessError, NsagentError."""
    own = layout.own_cgroup(target.pid)
    for hierarchy in layout.hierarchies:
        directory = hierarchy.directory(own[hierarchy.key]) if hierarchy.key in own else None
        if directory is not None:
            path = f"{directory}/{'tasks' if hierarchy.version == 1 else 'cgroup.procs'}"
            try:
                write(path, "0")
            except OSError as exc:
                raise translate(exc, f"{path} cannot be joined") from exc


def enter(target: Target, kinds: frozenset[NamespaceKind], command: Command, workdir: str = "") -> int:
    """Run `command` in those namespaces of the target; return its exit code, 128+N where signal N ended it.

    Where no PID namespace is entered this process becomes the command. Otherwise a child does: setns(2) holds for children.
    Call it in a process without threads.

    Raises: VanishedError, AccessError, UsageError as `namespaces.enter`; LaunchError (127, 126) of a command.
    """
    if os.geteuid() == 0:  # or those inside would see /proc/PID/exe, a file of the host's: see nsagent.launch.child
        libc.prctl(libc.PR_SET_DUMPABLE, 0)
    forks = NamespaceKind.PID in kinds and NamespaceKind.PID in other_kinds(target)
    as_root = NamespaceKind.USER in kinds and NamespaceKind.USER in other_kinds(target)
    namespaces.enter(target.pid, kinds, pidfd=target.pidfd)
    if not forks:
        _become(command, as_root, workdir)
    return _in_child(lambda: _become(command, as_root, workdir))


def _become(command: Command, as_root: bool, workdir: str) -> NoReturn:
    step = Step()
    try:
        become_maker(Identity(maker=(0, 0) if as_root else None, joined=as_root), step)
        if workdir:
            step("directory", "chdir", workdir)
            os.chdir(workdir)
        execute(command, step)
    except OSError as exc:
        raise failure_error(Failed(step.stage, step.call, exc.errno or 0, step.path)) from exc


def _in_child(become: Callable[[], NoReturn]) -> int:
    """Fork, and wait as a shell's `exec` would look: signals are passed on, a stop stops us too, the exit code is the same."""
    taken = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, the child would vanish without a status
    before = signal.pthread_sigmask(signal.SIG_BLOCK, taken)
    try:
        pid = os.fork()
    except OSError as exc:  # ENOMEM: PID 1 of that namespace has ended (pid_namespaces(7))
        raise AccessError(f"no process can be made there: {exc.strerror}") from exc
    if pid == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        become()
    while True:
        info = signal.sigwaitinfo(taken)
        if info.si_signo != signal.SIGCHLD:
            if info.si_code != SI_KERNEL or os.getpgid(pid) != os.getpgrp():  # else it has it from the terminal
                os.kill(pid, info.si_signo)
            continue
        ended, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
        if ended and os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)  # the SIGCONT that ends it is passed on
        elif ended:
            return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status)
