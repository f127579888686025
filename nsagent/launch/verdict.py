"""How a job ended, in a word, as an exit code, and as a sentence."""

from __future__ import annotations

import os
import signal
from typing import NamedTuple


class Verdict(NamedTuple):
    """`outcome`, `exit_code` and `reason` of a RunResult."""

    outcome: str
    exit_code: int
    reason: str


def judge(status: int, *, stopped: str, carried_out: int | None, oom_kills: int) -> Verdict:
    """Say how a job ended. `status`: CMD's wait status; `stopped`: why we ended it, in words; `carried_out`: see Ending.

    SIGKILL of CMD is the OOM killer's where it killed in this cgroup; a shell says 137 when the process it ran was.
    """
    if stopped:
        return Verdict("timeout", 124, stopped)
    if carried_out is not None:
        return Verdict("signal", 128 + carried_out, f"ended by {describe_signal(carried_out)}")
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = 128 + number if number else os.WEXITSTATUS(status)
    if oom_kills and code == 128 + signal.SIGKILL:
        return Verdict("oom", code, "killed for lack of memory: its limit was reached")
    if number:
        core = ", core dumped" if os.WCOREDUMP(status) else ""
        return Verdict("signal", code, f"ended by {describe_signal(number)}{core}")
    return Verdict("failure" if code else "success", code, f"exited with {code}")


def describe_signal(number: int) -> str:
    """Return a signal's name, such as SIGTERM, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
