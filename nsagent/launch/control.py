"""What can be done to a job from outside of its launcher: see its state, signal it, stop it, pause it, end it.

A signal goes through the launcher where that passes it on: it does for a PID 1 what the kernel does not, and knows then why
the job ended (nsagent.launch.signals).
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import Any

from nsagent.cgroups.group import Group
from nsagent.cgroups.layout import Layout
from nsagent.errors import NsagentError, UnsupportedError
from nsagent.jobs import lookup
from nsagent.jobs.record import JobRecord
from nsagent.launch import measure
from nsagent.launch.report import JobUsage, usage_to_dict
from nsagent.launch.signals import PASSED_ON


def state(job: JobRecord, layout: Layout) -> str:
    """Return starting, running or paused; of a job that ended its outcome."""
    if job.end is not None:
        return job.outcome or "abandoned"
    if job.pid is None:
        return "starting"
    return "paused" if job.cgroup and Group.open(layout, job.cgroup).frozen else "running"


def usage(job: JobRecord, layout: Layout) -> dict[str, Any]:
    """Return what the cgroup of a running job has counted so far, in the form of a report's usage."""
    if not job.cgroup:
        return {}
    with contextlib.suppress(NsagentError):  # it ends just now
        return usage_to_dict(measure.with_cgroup(JobUsage(), Group.open(layout, job.cgroup).stats()))
    return {}


def send(state_dir: str, job: JobRecord, number: int, layout: Layout) -> None:
    """Give a running job a signal; SIGKILL is for all its processes. Raises NsagentError where it does not run."""
    if number == signal.SIGKILL and job.cgroup:
        Group.open(layout, job.cgroup).kill()
        return
    launcher = lookup.launcher_pidfd(state_dir, job)
    if launcher is None:
        raise NsagentError(f"job {job.id} does not run")
    try:
        if number in PASSED_ON:
            signal.pidfd_send_signal(launcher, number)
        elif not _send_command(job, number):
            raise NsagentError(f"the command of job {job.id} does not run", hint="it starts, or has ended just now")
    except ProcessLookupError:
        raise NsagentError(f"job {job.id} has just ended") from None
    finally:
        os.close(launcher)


def _send_command(job: JobRecord, number: int) -> bool:
    """Signal CMD itself, or its init. The pidfd is opened before the process is identified, so it is no successor's."""
    if job.pid is None:
        return False
    try:
        pidfd = os.pidfd_open(job.pid)
    except ProcessLookupError:
        return False
    try:
        if measure.read_start_ticks(job.pid) != job.start_ticks:
            return False
        signal.pidfd_send_signal(pidfd, number)
        return True
    except ProcessLookupError:
        return False
    finally:
        os.close(pidfd)


def stop(state_dir: str, job: JobRecord, seconds: float, layout: Layout) -> JobRecord | None:
    """Ask a job to end with SIGTERM, kill all of it `seconds` later, and return its record; None where it cannot be killed."""
    with contextlib.suppress(NsagentError):  # ended meanwhile: that is what is wanted
        send(state_dir, job, signal.SIGTERM, layout)
        send(state_dir, job, signal.SIGCONT, layout)
        resume(job, layout)
    ended = lookup.wait_end(state_dir, job.id, seconds)
    return ended or end(state_dir, job, layout)


def end(state_dir: str, job: JobRecord, layout: Layout, seconds: float = 10.0) -> JobRecord | None:
    """Kill every process of a job, and return its record when its launcher has written it; None after `seconds`."""
    with contextlib.suppress(NsagentError):
        job = lookup.read(state_dir, job.id)  # by now its command may have a pid
        send(state_dir, job, signal.SIGKILL, layout)
        send(state_dir, job, signal.SIGCONT, layout)  # for a launcher that was stopped on its terminal
    return lookup.wait_end(state_dir, job.id, seconds)


def pause(job: JobRecord, layout: Layout) -> None:
    """Freeze all its processes; when it returns, none runs. Raises NsagentError, UnsupportedError."""
    _group(job, layout).freeze()


def resume(job: JobRecord, layout: Layout) -> None:
    """Let a paused job go on."""
    _group(job, layout).thaw()


def _group(job: JobRecord, layout: Layout) -> Group:
    if job.end is not None:
        raise NsagentError(f"job {job.id} has ended")
    group = Group.open(layout, job.cgroup) if job.cgroup else None
    if group is None or not group.places:
        raise UnsupportedError(
            f"job {job.id}", "it has no cgroup that could be frozen", hint="run it as root, or in a delegated cgroup"
        )
    return group
