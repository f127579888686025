"""`nsagent enter`: a command, by default a shell, in the namespaces of a process or job."""

from __future__ import annotations

import os
from typing import Any

import click

from nsagent import jobs, namespaces
from nsagent.cli.jobs import state_dir_option
from nsagent.errors import UsageError

EPILOG = """\
All kinds are joined by one setns(2) on a pidfd: the process that was meant when this started, or none. Nothing is taken from
CMD: it has the capabilities of the caller, and in another user namespace it is root of that. It stays in the cgroup of the
caller, so its use is counted there and limits of the target do not bind it; --join-cgroup puts it into the target's.
To run something confined, with a report: nsagent run --join KIND:PID.

A number is a pid; anything else a job: its name, its id, or as much of an id's begin as no other has.
Exit codes: CMD's own; 128+N when signal N ended it; 125 it could not be done; 126, 127 CMD cannot be executed, was not found.

Examples:
  nsagent enter train                              a shell ($SHELL) where the job `train` is
  nsagent enter 4242 --kind net -- ss -tlnp        the host's programs, in its network alone
  nsagent enter 4242 --kind mnt,pid -- ps aux      its files, and its processes
  nsagent enter train --join-cgroup -- gdb -p 1    counted and limited as the job is
"""


@click.command(epilog=EPILOG)
@click.argument("target", metavar="JOB|PID")
@click.option(
    "--kind", metavar="LIST", help=f"Which to join, of {' '.join(namespaces.KINDS)}; or all.  [default: those that are not ours]"
)
@click.option("--join-cgroup", is_flag=True, help="Be in the target's cgroup too.")
@click.option("--workdir", metavar="DIR", help="Directory to start in.  [default: / of a joined mnt, else this one]")
@state_dir_option
@click.argument("argv", metavar="[-- CMD [ARG]...]", nargs=-1, type=click.UNPROCESSED)
def enter(target: str, kind: str | None, argv: tuple[str, ...], **words: Any) -> int:
    """Run CMD (default: $SHELL) in the namespaces of a process or of a running job."""
    wanted = None if kind is None else namespaces.parse_kinds(kind)
    if wanted is not None and not wanted:
        raise UsageError("no kind to join", hint=f"name some: {' '.join(namespaces.KINDS)}")
    from nsagent.launch import enter as entering
    from nsagent.launch.execute import Command
    from nsagent.launch.signals import read_ignored
    from nsagent.launch.spec import DEFAULT_PATH

    found = entering.find(target, words["state_dir"] or jobs.default_state_dir())
    kinds = entering.other_kinds(found) if wanted is None else wanted
    if words["join_cgroup"]:
        from nsagent.cgroups.layout import read_layout

        entering.join_cgroup(found, read_layout())
    command_words = argv or (os.environ.get("SHELL") or "/bin/sh",)
    command = Command(
        argv=tuple(map(os.fsencode, command_words)),
        environment=dict(os.environb),
        search_path=tuple(os.environb.get(b"PATH", DEFAULT_PATH.encode()).split(b":")),
        ignored=read_ignored(),
        real_path=namespaces.NamespaceKind.MNT in kinds,
    )
    return entering.enter(found, kinds, command, words["workdir"] or "")
