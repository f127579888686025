"""The job without a cgroup (an ordinary user without a delegated one): find and end what it left by parentage alone.

The launcher is made a subreaper before the clone, so that what daemonises itself becomes its child (prctl(2)). A
process that forks faster than it is killed can outrun this; where a PID namespace was made, the end of its PID 1 ends
them all.
"""

from __future__ import annotations

import os
import signal
import time

from nsagent import libc

_DEADLINE_S = 5.0


class Orphans:
    """Children the launcher gets from the job. Those it had before are not touched."""

    def __init__(self) -> None:
        self._before = _children()
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 1)

    def kill(self) -> None:
        """Kill and reap every child the job left, and the children these leave, for at most a few seconds."""
        deadline = time.monotonic() + _DEADLINE_S
        while (left := _children() - self._before) and time.monotonic() < deadline:
            for pid in left:
                os.kill(pid, signal.SIGKILL)  # not reaped yet: the pid is still theirs
            for pid in left:
                os.waitpid(pid, 0)
        libc.prctl(libc.PR_SET_CHILD_SUBREAPER, 0)


def _children() -> set[int]:
    try:
        with open("/proc/thread-self/children", encoding="ascii") as file:
            return {int(word) for word in file.read().split()}
    except FileNotFoundError:  # a kernel without CONFIG_PROC_CHILDREN
        return set()
