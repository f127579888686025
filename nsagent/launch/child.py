"""What runs between clone3 and execve: one function that never returns, made of stages in a fixed order.

Everything it needs is in a `ChildPlan` made before the clone (`nsagent.launch.prepare`): nothing is decided, and nothing
imported, after it. The order is drawn in `nsagent.launch.handshake`; each step says why it stands where it stands.
"""

from __future__ import annotations

import os
import signal
from typing import NamedTuple, NoReturn

from nsagent import libc
from nsagent.launch import mounts
from nsagent.launch.confine import Confinement, confine, drop_bounding
from nsagent.launch.descriptors import close_others
from nsagent.launch.entry import Entry, be_born, join
from nsagent.launch.execute import Command, execute
from nsagent.launch.handshake import Failed, Ready, Step, encode, send
from nsagent.launch.identity import Identity, become_maker, become_user
from nsagent.launch.init import run_under_init
from nsagent.launch.mounts import MountPlan
from nsagent.launch.network import loopback_up
from nsagent.launch.stdio import StdioPlan, take
from nsagent.launch.tuning import Ulimit, limit


class ChildPlan(NamedTuple):
    """All that the child does. Descriptors are the child's own ends; `parents` are the launcher's, closed first."""

    command: Command
    channel: int
    release: int
    parents: tuple[int, ...]
    tasks: tuple[int, ...]  # descriptors of `tasks` in each v1 hierarchy
    entry: Entry | None = None
    ulimits: tuple[Ulimit, ...] = ()
    new_cgroup_namespace: bool = False
    mounts: MountPlan | None = None
    loopback: bool = False
    hostname: str = ""
    workdir: str = ""
    identity: Identity = Identity()
    die_with_parent: bool = True
    init: bool = False
    stdio: StdioPlan | None = None  # None: the caller's own descriptors
    confinement: Confinement = Confinement(-1, no_new_privileges=False)
    hidden: bool = False  # from other processes of the job until execve, an init for good; not where our ids are mapped
    foreign_root: bool = False  # not the host's

    @property
    def made_first(self) -> bool:
        """Whether it has no more than CMD may when those with CAP_SYS_PTRACE, who look into what is hidden, can see it.

        Not where it has namespaces to make, and not where an ordinary launcher could not reach another user's process.
        """
        return self.entry is not None and self.hidden and not (self.entry.flags or self.entry.unshared or self.hostname)


def run(plan: ChildPlan) -> NoReturn:
    """Become CMD as `plan` says, or report why not and exit with 125. Call it in the child of `clone3`, first thing."""
    step = Step()
    try:
        _take_place(plan, step)
        if plan.entry is not None:
            if plan.hidden:  # from those who are in the namespaces already
                _hide(step)
            join(plan.entry, step)
            if plan.made_first:
                _become_command(plan, step)
            be_born(plan.entry, step)
        _prepare(plan, step)
        if plan.init:
            run_under_init(plan.command, plan.channel, step)
        execute(plan.command, step)
    except OSError as exc:
        send(plan.channel, Failed(step.stage, step.call, exc.errno or 0, step.path))
    except BaseException as exc:  # a bug of ours: it must not unwind into the launcher's frames
        send(plan.channel, Failed(step.stage or "child", f"{type(exc).__name__}: {exc}"[:200], 0, step.path))
    finally:
        os._exit(125)


def _take_place(plan: ChildPlan, step: Step) -> None:
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
    if plan.entry is not None:  # where others can see it, it has nothing that its caller had leaked to the launcher
        ours = (plan.channel, plan.release, plan.entry.born, *(fd for _, fd in plan.entry.joins))
        close_others({0, 1, 2, *ours, *(plan.stdio.fds if plan.stdio else ())})


def _hide(step: Step) -> None:
    """Be not to be looked into: /proc/PID/exe is the interpreter, a file of the host's (proc_pid_exe(5), ptrace(2))."""
    step("hide", "prctl(PR_SET_DUMPABLE)")
    libc.prctl(libc.PR_SET_DUMPABLE, 0)


def _prepare(plan: ChildPlan, step: Step) -> None:
    if plan.new_cgroup_namespace:  # after the placement: its root is the cgroup the caller is in at this moment
        step("cgroup", "unshare(CLONE_NEWCGROUP)")
        libc.unshare(libc.CLONE_NEWCGROUP)
    step("handshake", "write")
    os.write(plan.channel, encode(Ready()))
    step("handshake", "read")
    if not os.read(plan.release, 1):
        os._exit(125)  # the launcher died
    if plan.hidden:
        _hide(step)
    if plan.stdio is not None:
        take(plan.stdio, step)
    sources = None
    if plan.mounts is not None:  # while it may still read what its caller may
        sources = mounts.open_sources(plan.mounts, step)
    if not plan.made_first:
        become_maker(plan.identity, step)
    if plan.die_with_parent:  # after the change of ids, which clears it (prctl(2))
        _die_with_parent(plan, step)
    if plan.mounts is not None and sources is not None:
        mounts.build(plan.mounts, sources, step)
    if plan.loopback:
        step("network", "ioctl(SIOCSIFFLAGS)", "lo")
        loopback_up()
    if plan.hostname:
        step("hostname", "sethostname", plan.hostname)
        libc.sethostname(plan.hostname)
    if not plan.made_first:
        _take_user(plan, step)
        if plan.die_with_parent and plan.identity.user is not None:
            _die_with_parent(plan, step)
    limit(plan.ulimits, step)
    confine(plan.confinement, step)


def _become_command(plan: ChildPlan, step: Step) -> None:
    """Be CMD's user, with CMD's capabilities. The filter comes later: it may forbid the clone."""
    become_maker(plan.identity, step)
    _take_user(plan, step)
    if plan.confinement.no_new_privileges or plan.confinement.filter is None:
        confine(plan.confinement._replace(filter=None), step)


def _take_user(plan: ChildPlan, step: Step) -> None:
    drop_bounding(plan.confinement, step)
    become_user(plan.identity, step)
    if plan.workdir:
        step("directory", "chdir", plan.workdir)
        if plan.foreign_root:  # not by /proc/self/fd to where a descriptor of ours leads
            os.fchdir(libc.openat2(libc.AT_FDCWD, plan.workdir, os.O_PATH | os.O_DIRECTORY, libc.RESOLVE_NO_MAGICLINKS))
        else:
            os.chdir(plan.workdir)


def _die_with_parent(plan: ChildPlan, step: Step) -> None:
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
