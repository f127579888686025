"""The child's last stages before execve: capabilities, no_new_privs, the seccomp filter. `Confinement` says which.

Sources: man 7 capabilities, man 2 capset, seccomp, prctl.
"""

from __future__ import annotations

import errno
from typing import NamedTuple

from nsagent import libc
from nsagent.launch.handshake import Step


class Confinement(NamedTuple):
    """What is taken from CMD. `capabilities`: a bit mask of those it keeps. `filter`: a BPF program, or None."""

    capabilities: int
    no_new_privileges: bool = True
    filter: bytes | None = None


def drop_bounding(plan: Confinement, step: Step) -> None:
    """Give up for good, also for what is executed later, what is not kept; while CAP_SETPCAP is still there."""
    step("capabilities", "prctl(PR_CAPBSET_DROP)")
    for number in range(64):
        if not plan.capabilities >> number & 1:
            try:
                libc.prctl(libc.PR_CAPBSET_DROP, number)
            except OSError as exc:
                if exc.errno == errno.EINVAL:  # beyond the last one of this kernel
                    break
                if exc.errno == errno.EPERM and plan.no_new_privileges:  # has none, and gets none by execve
                    break
                raise


def confine(plan: Confinement, step: Step) -> None:
    """Take what is not kept; nothing but execve comes after it.

    Without no_new_privs a filter asks for CAP_SYS_ADMIN, and so stands before the capabilities go; with it, last.
    """
    if plan.no_new_privileges:
        _keep(plan.capabilities, step)
        step("seccomp", "prctl(PR_SET_NO_NEW_PRIVS)")
        libc.prctl(libc.PR_SET_NO_NEW_PRIVS, 1)
    if plan.filter is not None:
        step("seccomp", "prctl(PR_SET_SECCOMP)")
        libc.seccomp_filter(plan.filter)
    if not plan.no_new_privileges:
        _keep(plan.capabilities, step)


def _keep(capabilities: int, step: Step) -> None:
    step("capabilities", "capset")
    _, permitted, _ = libc.capget()
    try:
        libc.prctl(libc.PR_CAP_AMBIENT, libc.PR_CAP_AMBIENT_CLEAR_ALL)
    except OSError:  # before Linux 4.3
        pass
    libc.capset(permitted & capabilities, permitted & capabilities, 0)
