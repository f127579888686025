"""CMD's descriptors 0, 1 and 2 where they are not its caller's: the child's stage. The launcher's part: nsagent.launch.relay."""

from __future__ import annotations

import fcntl
import os
from typing import Final, NamedTuple

from nsagent.launch.handshake import Step

_TIOCSCTTY: Final = 0x540E  # include/uapi/asm-generic/ioctls.h


class StdioPlan(NamedTuple):
    """The descriptors that become 0, 1 and 2. `session`: they are a terminal, and CMD leads a session on it."""

    fds: tuple[int, int, int]
    session: bool = False


def take(plan: StdioPlan, step: Step) -> None:
    """Make them so, in the child. Sources: man 2 setsid, TIOCSCTTY."""
    if plan.session:
        step("terminal", "setsid")
        os.setsid()
        step("terminal", "ioctl(TIOCSCTTY)")
        fcntl.ioctl(plan.fds[0], _TIOCSCTTY, 0)
    step("terminal", "dup2")
    for number, fd in enumerate(plan.fds):
        os.dup2(fd, number)
