"""`nsagent wait`, `stop`, `kill`, `pause`, `resume` and `rm`: what is done to jobs that run, and to those that ended."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Final

import click

from nsagent.cgroups.layout import Layout, read_layout
from nsagent.cli.jobs import EXIT_CODES, find_all, state_dir_option, swept
from nsagent.errors import NsagentError, UsageError
from nsagent.jobs import ended, log, lookup
from nsagent.jobs.record import JobRecord
from nsagent.launch import control, quantities

_JOBS: Final = click.argument("words", metavar="JOB...", nargs=-1, required=True)


@click.command(
    epilog=f"""\
{EXIT_CODES}
Else it is the exit code of the job, as `nsagent run` would have ended with; of several, of the first that did not end with 0.

Examples:
  nsagent wait nightly && echo good
  nsagent wait $(nsagent ps -q)"""
)
@_JOBS
@state_dir_option
def wait(words: tuple[str, ...], state_dir: str | None) -> int:
    """Wait until jobs have ended; print how each did, and end as they have."""
    directory = swept(state_dir)
    code = 0
    for job in find_all(directory, words):
        found = job
        while found.end is None:
            found = lookup.wait_end(directory, job.id) or _after_sweep(directory, job)
        click.echo(f"{found.id}: {found.reason or found.outcome}")
        code = code or (125 if found.exit_code is None else found.exit_code)
    return code


@click.command(
    epilog=f"""\
{EXIT_CODES}

Examples:
  nsagent stop nightly                     SIGTERM; SIGKILL for all of it 10 s later
  nsagent stop --timeout 1m db worker"""
)
@click.option("-t", "--timeout", metavar="TIME", default="10s", help="From SIGTERM to SIGKILL.")
@_JOBS
@state_dir_option
def stop(words: tuple[str, ...], timeout: str, state_dir: str | None) -> None:
    """End jobs: SIGTERM to the command, and when the time is over SIGKILL to every process. One that has ended is fine."""
    seconds = quantities.parse_duration(timeout, "--timeout") / 1e9
    directory = swept(state_dir)
    layout = read_layout()
    for job in find_all(directory, words):
        if job.end is None:
            _must_end(directory, job, control.stop(directory, job, seconds, layout))
        click.echo(job.id)


@click.command(
    epilog=f"""\
{EXIT_CODES}

SIGKILL ends all processes of the job; another signal goes to its command, or to the init before it. As PID 1 of a namespace a
command that does not handle a signal which would end it is ended by nsagent, as outside of a namespace the kernel does.

Examples:
  nsagent kill nightly                     every process, at once
  nsagent kill -s HUP db"""
)
@click.option("-s", "--signal", "name", metavar="SIG", default="KILL", help="Name or number of the signal.")
@_JOBS
@state_dir_option
def kill(words: tuple[str, ...], name: str, state_dir: str | None) -> None:
    """Send jobs a signal."""
    number = parse_signal(name)
    directory = swept(state_dir)
    layout = read_layout()
    for job in find_all(directory, words):
        if job.end is not None:
            raise NsagentError(f"job {job.id} has ended", hint=job.reason)
        control.send(directory, job, number, layout)
        click.echo(job.id)


@click.command(
    epilog=f"""\
{EXIT_CODES}

Examples:
  nsagent pause nightly                    no process of it runs until 'nsagent resume nightly'"""
)
@_JOBS
@state_dir_option
def pause(words: tuple[str, ...], state_dir: str | None) -> None:
    """Stop all processes of jobs where they are, with the freezer. A timeout goes on."""
    _each(words, state_dir, control.pause)


@click.command(
    epilog=f"""\
{EXIT_CODES}

Examples:
  nsagent resume nightly"""
)
@_JOBS
@state_dir_option
def resume(words: tuple[str, ...], state_dir: str | None) -> None:
    """Let paused jobs go on."""
    _each(words, state_dir, control.resume)


@click.command(
    epilog=f"""\
{EXIT_CODES}

Examples:
  nsagent rm nightly                       its report and its log
  nsagent rm --force db                    also if it runs: it is killed"""
)
@click.option("-f", "--force", is_flag=True, help="Kill the job if it runs.")
@_JOBS
@state_dir_option
def rm(words: tuple[str, ...], force: bool, state_dir: str | None) -> None:
    """Forget jobs that ended. An agent counts them all the same."""
    directory = swept(state_dir)
    layout = read_layout()
    found = find_all(directory, words)
    for job in found:
        if job.end is None and not force:
            raise NsagentError(f"job {job.id} runs", hint=f"nsagent stop {job.id}; or --force, which kills it")
    for job in found:
        if job.end is None:
            _must_end(directory, job, control.end(directory, job, layout))
        ended.remove(directory, job.id)
        log.remove(directory, job.id)
        click.echo(job.id)


def _each(words: tuple[str, ...], state_dir: str | None, act: Callable[[JobRecord, Layout], None]) -> None:
    """Do it to each of these jobs, and print its id."""
    directory = swept(state_dir)
    layout = read_layout()
    for job in find_all(directory, words):
        act(job, layout)
        click.echo(job.id)


def parse_signal(name: str) -> int:
    """Return the number of a signal: TERM, SIGTERM or 15. Raises UsageError."""
    if name.isdecimal() and int(name) in signal.valid_signals():
        return int(name)
    try:
        return signal.Signals[f"SIG{name.upper().removeprefix('SIG')}"]
    except KeyError:
        raise UsageError(f"--signal {name!r}: no such signal", hint="such as TERM, SIGTERM or 15; see signal(7)") from None


def _after_sweep(directory: str, job: JobRecord) -> JobRecord:
    """Return a job whose launcher was killed, when a sweep has ended it. Raises NsagentError where it cannot."""
    swept(directory)
    found = lookup.read(directory, job.id)
    if found.end is None and not lookup.is_held(directory, job.id):
        raise NsagentError(f"job {job.id} cannot be ended", hint="a process of it may be in uninterruptible sleep")
    return found


def _must_end(directory: str, job: JobRecord, found: JobRecord | None) -> None:
    if (found or _after_sweep(directory, job)).end is None:
        raise NsagentError(
            f"job {job.id} does not end", hint="a process of it may be in uninterruptible sleep, or its launcher stopped"
        )
