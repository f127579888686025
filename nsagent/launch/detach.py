"""`nsagent run -d`: a process of its own launches and supervises the job, and writes its log. It lives as long as the job."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable
from typing import NoReturn

from nsagent.errors import LaunchError, NsagentError
from nsagent.jobs import log
from nsagent.jobs.record import JobRecord
from nsagent.launch import launcher
from nsagent.launch.descriptors import close_others
from nsagent.launch.relay import Logged
from nsagent.launch.report import RunResult
from nsagent.launch.spec import RunSpec


def start(
    spec: RunSpec, state_dir: str, tell: Callable[[RunResult], None], *, keep: Iterable[int] = (), terminal: bool = False
) -> str:
    """Start a job and return its id as soon as CMD runs. `tell` is called with its result, in the supervisor.

    The supervisor has a session of its own, no terminal, and no descriptors of ours but `keep`. `terminal`: CMD has one, that
    nobody types at. Call this in a process without threads.

    Raises: LaunchError, with the exit code, where the job did not come so far.
    """
    answer, end = os.pipe()
    if os.fork() == 0:
        try:
            os.setsid()
            _supervise(spec, state_dir, tell, end=end, keep=keep, terminal=terminal)
        finally:
            os._exit(125)
    os.close(end)
    with open(answer, "rb") as pipe:
        text = pipe.read()
    if not text:
        raise LaunchError("the supervisor was killed before the command ran", stage="detach")
    found = json.loads(text)
    if "id" in found:
        return str(found["id"])
    raise LaunchError(found["message"], stage="detach", exit_code=found["exit_code"], hint=found["hint"])


def _supervise(
    spec: RunSpec, state_dir: str, tell: Callable[[RunResult], None], *, end: int, keep: Iterable[int], terminal: bool
) -> NoReturn:
    null = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    close_others({0, 1, 2, end, *keep})
    logs: list[log.Log] = []
    told = False

    def answer(**words: object) -> None:
        nonlocal told
        if not told:  # else the registry has what went wrong
            os.write(end, json.dumps(words).encode())
            os.close(end)
        told = True

    def make_stdio(job: JobRecord) -> Logged:
        logs.append(log.Log(state_dir, job.id))
        return Logged(logs[0].write, terminal=terminal)

    try:
        tell(launcher.run(spec, state_dir, stdio=make_stdio, started=lambda job: answer(id=job.id)))
        log.prune(state_dir)
        os._exit(0)
    except NsagentError as exc:
        if logs and not told:  # it never ran
            logs[0].remove()
        answer(message=exc.message, hint=exc.hint, exit_code=exc.exit_code)
    except Exception as exc:
        answer(message=f"internal error: {type(exc).__name__}: {exc}", hint="try without --detach", exit_code=125)
    os._exit(125)
