"""`nsagent ps` and `nsagent inspect`: the jobs that run and those that ended."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from typing import Any, Final

import click

from nsagent import jobs
from nsagent.cgroups.layout import Layout, read_layout
from nsagent.cli.count import Count
from nsagent.cli.jobs import EXIT_CODES, state_dir_option, swept
from nsagent.cli.ns_text import shorten, table
from nsagent.errors import NsagentError
from nsagent.jobs import log, lookup
from nsagent.jobs.record import JobRecord
from nsagent.launch import control

_HEAD: Final = ("JOB", "STATE", "CODE", "PID", "STARTED", "RAN", "COMMAND")


@click.command(
    epilog=f"""\
{EXIT_CODES}

Examples:
  nsagent ps                        the jobs that run
  nsagent ps -a                     and those that ended, the newest 1,000
  nsagent ps -a --json              all that is known of them but their reports"""
)
@click.option("-a", "--all", "everything", is_flag=True, help="Also jobs that ended.")
@click.option("-q", "--quiet", is_flag=True, help="Ids only.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@state_dir_option
def ps(everything: bool, quiet: bool, as_json: bool, state_dir: str | None) -> None:
    """List jobs, the oldest first."""
    directory = swept(state_dir)
    layout = read_layout()
    found = {job.id: job for job in jobs.read_live(directory)}
    if everything:  # read last: what ended meanwhile is shown as ended
        found |= {job.id: job for job in jobs.read_ended(directory)}
    listed = sorted(found.values(), key=lambda job: job.start)
    if quiet:
        click.echo("".join(f"{job.id}\n" for job in listed), nl=False)
    elif as_json:
        click.echo(json.dumps([document(job, layout, report=False) for job in listed], indent=2))
    else:
        table(_HEAD, [_row(job, layout) for job in listed])


@click.command(
    epilog=f"""\
{EXIT_CODES}

Examples:
  nsagent inspect nightly                           a running job has its usage so far, one that ended its report
  nsagent inspect nightly | jq .report.usage.cpu_ns"""
)
@click.argument("job")
@state_dir_option
def inspect(job: str, state_dir: str | None) -> None:
    """Print all that is known of a job, as JSON."""
    directory = swept(state_dir)
    click.echo(json.dumps(document(jobs.find(directory, job), read_layout(), report=True), indent=2))


@click.command(
    epilog=f"""\
{EXIT_CODES}

Examples:
  nsagent logs web                      what it wrote, errors and all: the newest 4 MiB at least
  nsagent logs -f --tail 20 web         the last 20 lines, and what comes, until the job ends"""
)
@click.option("-f", "--follow", is_flag=True, help="Go on until the job ends.")
@click.option("-n", "--tail", type=Count(min=0), metavar="N", help="Begin with the last N lines.")
@click.argument("job")
@state_dir_option
def logs(job: str, follow: bool, tail: int | None, state_dir: str | None) -> None:
    """Print what a detached job wrote."""
    directory = swept(state_dir)
    found = jobs.find(directory, job)
    if not os.path.exists(log.path(directory, found.id)):
        hint = "only what --detach leaves running has one, and of those that ended the newest 256 MiB are kept"
        raise NsagentError(f"job {found.id} has no log", hint=hint)
    reading = log.Reading(directory, found.id)
    out = sys.stdout.buffer
    text = b"".join(reading.read())
    out.write(text if tail is None else b"".join(_last_lines(text, tail)))
    out.flush()
    pause = 0.01
    going_on = follow
    while going_on:
        going_on = lookup.is_held(directory, found.id)  # before the reading: what came before the end is read
        seen = False
        for piece in reading.read():
            out.write(piece)
            seen = True
        out.flush()
        pause = 0.01 if seen else min(pause * 2, 0.2)
        if going_on:
            time.sleep(pause)


def _last_lines(text: bytes, count: int) -> list[bytes]:
    return text.splitlines(keepends=True)[-count:] if count else []


def document(job: JobRecord, layout: Layout, *, report: bool) -> dict[str, Any]:
    """Return a job as JSON has it (docs/jobs.md): what is not known is left out."""
    known = {key: value for key, value in job._asdict().items() if value is not None}
    for field in ("given", *(() if report and job.report else ("report",))):
        known.pop(field, None)
    known["state"] = control.state(job, layout)
    if report and job.end is None and (usage := control.usage(job, layout)):
        known["usage"] = usage
    return known


def _row(job: JobRecord, layout: Layout) -> tuple[object, ...]:
    wall_ns = job.report.get("wall_ns")
    ran_s = time.time() - job.start if job.end is None else (wall_ns / 1e9 if isinstance(wall_ns, int) else job.end - job.start)
    started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.start))
    pid = None if job.end is not None else job.pid
    command = shorten(shlex.join(job.command))
    return job.id, control.state(job, layout), job.exit_code, pid, started, _duration(max(ran_s, 0.0)), command


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.3g}s" if seconds < 10 else f"{seconds:.0f}s"
    minutes, left = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{left:02}s"
