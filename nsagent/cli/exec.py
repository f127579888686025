"""`nsagent exec`: another command in a running job."""

from __future__ import annotations

import click

from nsagent import jobs
from nsagent.cli.jobs import EXIT_CODES, state_dir_option
from nsagent.errors import UsageError


@click.command(
    epilog=f"""\
{EXIT_CODES}
Else CMD's own; 128+N when signal N ended it; 126 it cannot be executed; 127 it was not found.

Examples:
  nsagent exec web -- ps aux               its processes
  nsagent exec -t web -- bash              a shell, on a terminal
  nsagent exec -e DEBUG=1 -w /srv web -- ./check

To look at a job with the host's programs and all capabilities: nsagent enter JOB.""",
    context_settings={"allow_interspersed_args": False},
)
@click.option("-t", "--tty", is_flag=True, help="Give CMD a terminal, shown on this one.")
@click.option("-e", "--env", metavar="NAME[=VALUE]", multiple=True, help="Set a variable, or pass one on; may be repeated.")
@click.option("-w", "--workdir", metavar="DIR", default="", help="Directory to start in.  [default: the job's]")
@click.argument("job")
@state_dir_option
@click.argument("argv", metavar="[--] CMD [ARG]...", nargs=-1, type=click.UNPROCESSED)
def exec_(job: str, argv: tuple[str, ...], *, tty: bool, env: tuple[str, ...], workdir: str, state_dir: str | None) -> int:
    """Run CMD in a running job: in its namespaces and cgroup, as its user, with its capabilities and seccomp filter.

    It has the variables that the job was given, and counts as the job's: for its limits, its report, and its end.
    """
    if argv[:1] == ("--",):  # parsing ended at JOB, before it
        argv = argv[1:]
    if not argv:
        raise UsageError("there is no command", hint="nsagent exec JOB -- CMD")
    from nsagent.cgroups.layout import read_layout
    from nsagent.launch import descriptors, inside, spec
    from nsagent.launch.pseudoterminal import OnTerminal

    descriptors.open_standard()
    found = jobs.find(state_dir or jobs.default_state_dir(), job)
    variables = dict(pair for word in env if (pair := spec.split_env(word)))
    return inside.run(found, argv, read_layout(), env=variables, workdir=workdir, stdio=OnTerminal() if tty else None)
