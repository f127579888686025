"""What the commands about jobs share: where the registry is, which job is meant, and the registry swept of killed launchers'."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

from nsagent import jobs
from nsagent.jobs.record import JobRecord

F = TypeVar("F", bound=Callable[..., Any])

EXIT_CODES: Final = """\
JOB is a name, an id, or as much of an id's begin as no other has; of several jobs of one name it is the one that runs, else the
one that ended last. Exit codes: 125 there is no such job, or it could not be done; 2 the command line is wrong."""


def state_dir_option(command: F) -> F:
    """Add --state-dir."""
    text = "Where jobs are registered.  [default: /run/nsagent, or one of the user's own]"
    return click.option("--state-dir", metavar="DIR", help=text)(command)


def swept(state_dir: str | None) -> str:
    """Return the state directory, after what killed launchers left there has been ended."""
    from nsagent.launch import launcher

    directory = state_dir or jobs.default_state_dir()
    launcher.sweep(directory)
    return directory


def find_all(state_dir: str, words: tuple[str, ...]) -> list[JobRecord]:
    """Return the jobs that are meant, each once. Raises before anything is done to one of them."""
    found = {job.id: job for job in (jobs.find(state_dir, word) for word in words)}
    return list(found.values())
