"""A process in between, where clone3 alone cannot make the job: it joins namespaces, or sets clocks, and has the job made.

What setns(2) says of pid, and unshare(2) of time, holds for the next child, and an offset is set before anybody is in the
namespace. So this process does both and clones CMD's process as the launcher's child (CLONE_PARENT), born in all of
them; then it ends. It is in the job's cgroup already, and so is what it clones.

Sources: man 2 setns, clone3; man 7 time_namespaces, user_namespaces.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from nsagent import libc
from nsagent.launch.clone import clone3
from nsagent.launch.handshake import Step
from nsagent.launch.joining import Join


class Entry(NamedTuple):
    """`joins`: with their descriptors, in order. `flags`: what CMD's clone3 makes anew. `born`: where its pid is told.

    `unshared`: CLONE_NEWUSER and CLONE_NEWTIME as far as they are made here, for `offsets` (bytes of timens_offsets).
    """

    joins: tuple[tuple[Join, int], ...]
    flags: int
    born: int
    unshared: int = 0
    offsets: bytes = b""


def join(plan: Entry, step: Step) -> None:
    """Be in the namespaces, but for pid and time, which are those of the next child. Raises OSError where `step` says."""
    offsets = -1
    if plan.offsets:  # while /proc is the one where we are "self"
        step("clock", "open", "/proc/self/timens_offsets")
        offsets = os.open("/proc/self/timens_offsets", os.O_WRONLY | os.O_CLOEXEC)
    for each, fd in plan.joins:
        step("join", "setns", each.word)
        libc.setns(fd, each.kind.flag)
        os.close(fd)
    if plan.offsets:
        step("clock", "unshare(CLONE_NEWTIME)")
        libc.unshare(plan.unshared)  # a new user namespace, if any, comes first: it owns the other
        step("clock", "write", "/proc/self/timens_offsets")
        os.write(offsets, plan.offsets)
        os.close(offsets)


def be_born(plan: Entry, step: Step) -> None:
    """Return in CMD's process, with all namespaces; this one ends. From here on those who are in them can see it."""
    step("clone", "clone3")
    pid, _ = clone3(plan.flags, sibling=True)
    if pid:
        os.write(plan.born, b"%d" % pid)
        os._exit(0)
    os.close(plan.born)


def adopt(pid: int, pidfd: int, born: int) -> tuple[int, int]:
    """Return (pid, pidfd) of the child that the process in between has made; its own where it made none, and will tell why.

    Nobody but us waits for the child, so that its pid is nobody else's.
    """
    text = os.read(born, 32)
    if not text:
        return pid, pidfd
    os.waitpid(pid, 0)
    os.close(pidfd)
    return int(text), os.pidfd_open(int(text))
