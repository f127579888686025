"""What runs between clone3 and execve: one function that never returns, made of system calls in a fixed order.

Everything it needs is in a `ChildPlan` made before the clone; nothing is imported here after it. The order is drawn in
`nsagent.launch.handshake`; each step says why it stands where it stands.
"""

from __future__ import annotations

import _socket
import fcntl
import os
import signal
import struct
from typing import NamedTuple, NoReturn

from nsagent import libc
from nsagent.launch.handshake import Ended, Failed, Ready, encode

_SIOCGIFFLAGS = 0x8913  # include/uapi/linux/sockios.h
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 0x1  # include/uapi/linux/if.h
_SI_KERNEL = 0x80  # include/uapi/asm-generic/siginfo.h: sent by the kernel, as for a key on the terminal


class ChildPlan(NamedTuple):
    """All that the child does. Descriptors are the child's own ends; `parents` are the launcher's, closed first."""

    argv: tuple[bytes, ...]
    environment: dict[bytes, bytes]
    search_path: tuple[bytes, ...]  # directories tried for a command without a slash
    channel: int
    release: int
    parents: tuple[int, ...]
    tasks: tuple[int, ...]  # descriptors of `tasks` in each v1 hierarchy
    new_cgroup_namespace: bool = False
    private_mounts: bool = False
    mount_proc: bool = False
    loopback: bool = False
    hostname: str = ""
    workdir: str = ""
    become_root: bool = False  # of a new user namespace
    drop_groups: bool = False  # not where setgroups is denied
    die_with_parent: bool = True
    init: bool = False
    ignored: frozenset[int] = frozenset()  # signals the caller had ignored (nohup, `&`), and so has CMD


class _Step:
    """Where the child is: what a failure is reported with."""

    def __init__(self) -> None:
        self.stage = self.call = self.path = ""

    def __call__(self, stage: str, call: str, path: str = "") -> None:
        self.stage, self.call, self.path = stage, call, path


def run(plan: ChildPlan) -> NoReturn:
    """Become CMD as `plan` says, or report why not and exit with 125. Call it in the child of `clone3`, first thing."""
    step = _Step()
    try:
        _prepare(plan, step)
        if plan.init:
            _run_under_init(plan, step)
        _execute(plan, step)
    except OSError as exc:
        _report(plan.channel, Failed(step.stage, step.call, exc.errno or 0, step.path))
    except BaseException as exc:  # a bug of ours: it must not unwind into the launcher's frames
        _report(plan.channel, Failed(step.stage or "child", f"{type(exc).__name__}: {exc}"[:200], 0, step.path))
    finally:
        os._exit(125)


def _report(channel: int, message: Failed | Ready | Ended) -> None:
    try:
        os.write(channel, encode(message))
    except OSError:
        pass  # the launcher is gone: nobody to tell


def _prepare(plan: ChildPlan, step: _Step) -> None:
    # First of all the copies of the launcher's descriptors: while one of the job's file is open, the lock is held, and
    # a sweep after the launcher's death would take the job for a living one.
    for fd in plan.parents:
        os.close(fd)
    # In its cgroups before anything else: from here on all it uses is charged to the job. "0" is the writing task
    # itself, and `tasks` moves without the wait for RCU of `cgroup.procs`.
    for fd in plan.tasks:
        step("cgroup", "write", os.readlink(f"/proc/self/fd/{fd}"))
        os.write(fd, b"0")
        os.close(fd)
    if plan.new_cgroup_namespace:  # after the placement: its root is the cgroup the caller is in at this moment
        step("cgroup", "unshare(CLONE_NEWCGROUP)")
        libc.unshare(libc.CLONE_NEWCGROUP)
    step("handshake", "write")
    os.write(plan.channel, encode(Ready()))
    step("handshake", "read")
    if not os.read(plan.release, 1):
        os._exit(125)  # the launcher died
    if plan.become_root:
        step("ids", "setresuid")
        if plan.drop_groups:
            os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    if plan.die_with_parent:  # after the change of ids, which clears it (prctl(2))
        _die_with_parent(plan, step)
    if plan.private_mounts:  # before any mount: none may propagate to the host
        step("mounts", "mount(MS_PRIVATE)", "/")
        libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    if plan.mount_proc:
        step("mounts", "mount", "/proc")
        libc.mount("proc", "/proc", "proc", libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC)
    if plan.loopback:
        step("network", "ioctl(SIOCSIFFLAGS)", "lo")
        _loopback_up()
    if plan.hostname:
        step("hostname", "sethostname", plan.hostname)
        libc.sethostname(plan.hostname)
    if plan.workdir:
        step("directory", "chdir", plan.workdir)
        os.chdir(plan.workdir)


def _die_with_parent(plan: ChildPlan, step: _Step) -> None:
    """Have the kernel kill this process when the launcher dies: immediately, where the sweep comes later.

    SIGKILL from an ancestor PID namespace is honoured by PID 1. An execve of a set-user-ID program clears it: hence the
    sweep stays the guarantee.
    """
    step("parent", "prctl(PR_SET_PDEATHSIG)")
    libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.set_blocking(plan.release, False)
    try:
        os.read(plan.release, 1)  # end of file: it died before the prctl
        os._exit(125)
    except BlockingIOError:
        pass


def _loopback_up() -> None:
    with_flags = struct.Struct("16sH14x")
    control = _socket.socket(_socket.AF_INET, _socket.SOCK_DGRAM)
    request = bytearray(with_flags.pack(b"lo", 0))
    fcntl.ioctl(control.fileno(), _SIOCGIFFLAGS, request)
    name, flags = with_flags.unpack(request)
    fcntl.ioctl(control.fileno(), _SIOCSIFFLAGS, with_flags.pack(name, flags | _IFF_UP))
    control.close()


def _reset_signals(ignored: frozenset[int]) -> None:
    """Give CMD what execve(2) would otherwise pass on of ours: blocked signals, and those the interpreter ignores."""
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):  # 32 and 33 belong to libc
            signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


def _open_from(first: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) >= first]


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor from `first` on close-on-exec, so that CMD has those below it and no other."""
    try:
        libc.close_range(first, 0xFFFFFFFF, libc.CLOSE_RANGE_CLOEXEC)
    except OSError:  # Linux before 5.11
        for fd in _open_from(first):
            try:
                os.set_inheritable(fd, False)
            except OSError:
                pass  # that of the directory, closed again


def _close_from(first: int) -> None:
    try:
        libc.close_range(first, 0xFFFFFFFF)
    except OSError:  # Linux before 5.9
        for fd in _open_from(first):
            try:
                os.close(fd)
            except OSError:
                pass


def _execute(plan: ChildPlan, step: _Step) -> NoReturn:
    command = plan.argv[0]
    step("exec", "execve", os.fsdecode(command))
    close_on_exec_from(3)
    _reset_signals(plan.ignored)
    if b"/" in command:
        os.execve(command, plan.argv, plan.environment)
    denied: OSError | None = None
    for directory in plan.search_path:
        try:
            os.execve(os.path.join(directory, command), plan.argv, plan.environment)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError as exc:  # execvp(3): a later directory may have one that may be run
            denied = exc
    raise denied or FileNotFoundError(2, "not found in PATH")


def _run_under_init(plan: ChildPlan, step: _Step) -> NoReturn:
    """Stay as PID 1 (without a new PID namespace: as subreaper): start CMD, pass signals on, reap, end when CMD ends.

    All signals are blocked and taken one by one, so that the launcher sees in SigBlk that they will be handled.
    """
    step("init", "prctl(PR_SET_CHILD_SUBREAPER)")
    libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)
    taken = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    signal.pthread_sigmask(signal.SIG_BLOCK, taken)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored, children would vanish without a status
    step("init", "fork")
    command = os.fork()
    if command == 0:
        libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
        _execute(plan, step)
    step("init", "open", os.devnull)
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):  # or a reader of CMD's pipe would wait for us too
        os.dup2(null, fd)
    keep = os.dup2(plan.channel, 3)
    _close_from(4)
    try:
        comm = os.open("/proc/self/comm", os.O_WRONLY)
        os.write(comm, b"nsagent-init")
        os.close(comm)
    except OSError:
        pass  # another /proc than ours: only the name in ps is lost
    while True:
        info = signal.sigwaitinfo(taken)
        if info.si_signo == signal.SIGCHLD:
            status = _reap(command)
            if status is not None:
                _report(keep, Ended(status))
                os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
        elif info.si_code != _SI_KERNEL or os.getpgid(command) != os.getpgrp():  # else CMD has it from the terminal
            os.kill(command, info.si_signo)


def _reap(command: int) -> int | None:
    """Wait for all that ended; return the wait status of `command` if it is among them."""
    status = None
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            if ended[0] == command:
                status = ended[1]
    except ChildProcessError:
        pass
    return status
