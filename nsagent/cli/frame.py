"""The `nsagent` command: a table of commands, loaded when used.

`nsagent --help` imports click and nothing else, and `nsagent run` imports only what a launch needs; that is why the
table below carries each command's line of help. A command is a click command that returns its exit code (None is 0)
or raises; epilogs keep their line breaks. Each option has a variable NSAGENT_<COMMAND>_<FLAG> (auto_envvar_prefix).
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Sequence

import click

from nsagent import __version__
from nsagent.cli.failing import fail, guarded

# name -> (module, attribute, help), in the order --help lists them
COMMANDS: dict[str, tuple[str, str, str]] = {
    "run": ("nsagent.cli.run", "run", "Run a command in namespaces and a cgroup of its own, and report what it used."),
    "ps": ("nsagent.cli.jobs_show", "ps", "List jobs."),
    "inspect": ("nsagent.cli.jobs_show", "inspect", "Print all that is known of a job, as JSON."),
    "exec": ("nsagent.cli.exec", "exec_", "Run another command in a running job."),
    "logs": ("nsagent.cli.jobs_show", "logs", "Print what a detached job wrote."),
    "wait": ("nsagent.cli.jobs_control", "wait", "Wait until jobs have ended, and end as they have."),
    "stop": ("nsagent.cli.jobs_control", "stop", "End jobs: SIGTERM, later SIGKILL."),
    "kill": ("nsagent.cli.jobs_control", "kill", "Send jobs a signal."),
    "pause": ("nsagent.cli.jobs_control", "pause", "Stop all processes of jobs where they are."),
    "resume": ("nsagent.cli.jobs_control", "resume", "Let paused jobs go on."),
    "rm": ("nsagent.cli.jobs_control", "rm", "Forget jobs that ended."),
    "enter": ("nsagent.cli.enter", "enter", "Run a command, or a shell, in the namespaces of a process or job."),
    "cgroup": ("nsagent.cli.cgroup", "cgroup", "Show the controllers of this host, and its cgroups with limits and use."),
    "unshare": ("nsagent.cli.unshare", "unshare", "Run a command after unshare(2) of the namespaces named."),
    "agent": ("nsagent.cli.agent", "agent", "Account every namespace and cgroup of this node, and serve the metrics."),
    "metrics": ("nsagent.cli.metrics", "metrics", "Print one scrape of the running agent."),
    "trace": ("nsagent.cli.trace", "trace", "Show clone, unshare and setns calls as they happen."),
    "ns": ("nsagent.cli.ns", "ns", "Show namespaces: who is in them, what they use, how they came about and ended."),
    "bpf": ("nsagent.cli.bpf", "bpf", "Show or remove what nsagent keeps in the kernel."),
    "tour": ("nsagent.cli.tour", "tour", "Show, live on this machine, what a container is made of."),
    "doctor": ("nsagent.cli.doctor", "doctor", "Say what this host supports, what follows, and what to do about it."),
}

EPILOG = """\
Examples:
  nsagent doctor                                          what works on this host
  nsagent agent &                                         metrics on http://127.0.0.1:10417/metrics
  nsagent run --cpus 0.5 --memory 256M -- make -j8        a job under limits, with a report
  nsagent trace --failed                                  namespace calls that did not work

Options of a command can be set as NSAGENT_<COMMAND>_<FLAG>, such as NSAGENT_RUN_MEMORY=256M.
NSAGENT_DEBUG=1 shows the Python traceback of an internal error.
"""


def keep_lines(command: click.Command) -> click.Command:
    """Make `command` and its subcommands print their epilog as written: click would join its lines."""
    if command.epilog and "\b" not in command.epilog:
        command.epilog = "\b\n" + command.epilog.strip().replace("\n\n", "\n\n\b\n")  # which has no margin
    for child in getattr(command, "commands", {}).values():
        keep_lines(child)
    return command


class LazyGroup(click.Group):
    """A group whose commands are imported when they are invoked, from COMMANDS."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return the command, or None where there is no such name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _help = COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return keep_lines(command)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from the table alone."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_module, _attribute, text) in COMMANDS.items()])


@click.group(
    cls=LazyGroup,
    invoke_without_command=True,
    context_settings={"auto_envvar_prefix": "NSAGENT", "show_default": True, "max_content_width": 120},
    epilog=EPILOG,
)
@click.option("--debug", is_flag=True, show_default=False, help="Show the traceback of an internal error.")
@click.version_option(__version__, prog_name="nsagent", allow_from_autoenv=False)
@click.pass_context
def cli(ctx: click.Context, debug: bool) -> None:
    """Tell what every namespace and cgroup of this node uses, who changes them, and launch jobs into them."""
    if debug:
        os.environ["NSAGENT_DEBUG"] = "1"
    if "NO_COLOR" in os.environ:
        ctx.color = False
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


keep_lines(cli)


def report_click(exc: click.ClickException) -> int:
    """Print what click refused: where to read how it is meant, and 2, as for all that cannot be parsed."""
    context = getattr(exc, "ctx", None)
    if isinstance(exc, getattr(click.exceptions, "NoArgsIsHelpError", ())):  # since click 8.2: its text is the help
        click.echo(exc.format_message(), err=True)
        return exc.exit_code
    hint = f"see '{context.command_path} --help'" if context is not None else ""
    return fail(" ".join(exc.format_message().split()), hint, exc.exit_code if exc.exit_code != 1 else 2)


def invoke(args: Sequence[str] | None = None) -> int:
    """Run one command line (default: sys.argv) and return its exit code; errors are printed, never raised."""

    def act() -> object:
        try:
            return cli.main(args=args, prog_name="nsagent", standalone_mode=False)
        except click.Abort:  # click turns KeyboardInterrupt into this
            return 130
        except click.ClickException as exc:
            return report_click(exc)

    return guarded(act)
