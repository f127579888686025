"""`nsagent run`: flags to a RunSpec, the launch, the report, the exit code."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from nsagent import jobs
from nsagent.cli import entering, isolation, jobfile, limiting
from nsagent.cli.run_output import Output
from nsagent.launch import descriptors, quantities
from nsagent.launch.spec import RunSpec, read_capabilities, split_env

if TYPE_CHECKING:
    from nsagent.launch.relay import Stdio, Watch

EPILOG: Final = """\
Exit codes: the command's own; 128+N when signal N ended it (out of memory: 137); 124 timeout; 125 nsagent could not
do it; 126 the command cannot be executed; 127 it was not found; 2 the command line is wrong.

Examples:
  nsagent run -- make -j8                                        its CPU, memory and IO, exactly
  nsagent run --cpus 0.5 --memory 256M --pids 100 -- ./server    limits
  nsagent run --isolate all -- sh -c 'id; echo $$'               root of a user namespace, and PID 1
  nsagent run --rootfs ./debian --read-only -v ./in:/in:ro -v ./out:/out --tmpfs /tmp -- /in/build
  nsagent run --join net:blue --join ipc:4242 -- ./client        in namespaces of others: of `ip netns`, of a process
  nsagent run --net none --clock-offset boottime:7d -- uptime    a network of its own; up for a week more
  nsagent run --timeout 10m --report json --report-file r.json -- ./nightly
  nsagent run --sample 100ms --cpu-timeout 1h -- ./train         CPU and memory over time; an end after an hour of CPU
  nsagent run --report textfile:/var/lib/node_exporter --push http://127.0.0.1:9091 -- ./backup
  nsagent run -t --rootfs ./debian -- bash                       a shell on a terminal of its own
  nsagent run -d --name web -- ./server                          leaves it running: nsagent ps, logs, exec, stop
  nsagent run --parent batch --cpus 1 --ulimit nofile=4096 --nice 10 -- ./sort
                                                                 within the limits of the cgroup `batch` too
  nsagent run -f nightly.toml --memory 2G                        a job of a file, with more memory
  nsagent run --dry-run --io-max /dev/vda:wbps=10M -- dd ...     what would be done
  nsagent run                                                    a shell in namespaces of its own
"""


def _option(name: str, metavar: str, help_text: str, **more: Any) -> Callable[[Any], Any]:
    return click.option(f"--{name}", metavar=metavar, help=help_text, **more)


@click.command(epilog=EPILOG, context_settings={"allow_interspersed_args": False})
@jobfile.option
@_option("name", "NAME", "Name of the job.  [default: base name of CMD]")
@entering.options
@_option("hostname", "NAME", "Host name inside.")
@_option("workdir", "DIR", "Directory to start in.  [default: this one]")
@_option("env", "NAME[=VALUE]", "Set a variable, or pass one on; may be repeated.", multiple=True)
@click.option("--clean-env", is_flag=True, help="Start with no variables but those of --env.")
@click.option("--no-proc", is_flag=True, help="Leave /proc as it is, though pid and mnt are new.")
@click.option("--init", "init", is_flag=True, help="Put a small init at PID 1, which reaps and passes signals on.")
@isolation.options
@limiting.options
@_option("timeout", "TIME", "Send SIGTERM after TIME, such as 1s or 10m; exit with 124.")
@_option("cpu-timeout", "TIME", "The same after so much CPU time of all its processes.")
@_option("stop-timeout", "TIME", "From a timeout's SIGTERM to SIGKILL.", default="10s")
@_option(
    "report", "FORM", "text, json, none, or textfile:DIR for node_exporter; may be repeated.", multiple=True, default=["text"]
)
@_option("report-file", "FILE", "Write the report there.  [default: stderr]")
@_option("push", "URL", "Push the report to a Pushgateway, such as http://127.0.0.1:9091.")
@_option("sample", "TIME", "Keep CPU and memory over time, read every TIME, such as 100ms.")
@_option("state-dir", "DIR", "Where jobs are registered.  [default: /run/nsagent, or one of the user's own]")
@click.option("-t", "--tty", is_flag=True, help="Give CMD a terminal of its own, shown on this one.")
@click.option("-d", "--detach", is_flag=True, help="Print the job's id and leave it running; see 'nsagent logs', 'nsagent wait'.")
@click.option("-q", "--quiet", is_flag=True, help="No line on the terminal that tells, after 5 s, what a job uses.")
@click.option("--dry-run", is_flag=True, help="Print the plan and do nothing.")
@click.argument("argv", metavar="[--] [CMD [ARG]...]", nargs=-1, type=click.UNPROCESSED)
@click.pass_obj
def run(
    file: jobfile.JobFile | None,
    /,
    argv: tuple[str, ...],
    *,
    state_dir: str | None,
    detach: bool,
    tty: bool,
    dry_run: bool,
    **words: Any,
) -> int:
    """Run CMD (default: $SHELL) in namespaces and a cgroup of its own, and report what it used.

    CMD is PID 1 of a new PID namespace. When it ends, whatever it started ends too, and its cgroup goes.
    With --detach it reads nothing, 'nsagent logs' has what it writes and 'nsagent inspect' its report.
    """
    descriptors.open_standard()
    if file is not None:
        argv = argv or file.command
        file.check(lambda tried: make_spec(argv, tried), words)
    spec = make_spec(argv, words).for_capabilities(read_capabilities())
    if dry_run:
        from nsagent.cgroups.layout import read_layout
        from nsagent.launch import launcher, plan, prepare

        layout = read_layout()
        click.echo(plan.describe(prepare.feasible(spec, layout), layout, launcher.parent_cgroup(layout, spec.parent)), nl=False)
        return 0
    # What cannot be told is refused before the job runs, not after it.
    directory = state_dir or jobs.default_state_dir()
    with Output(words["report"], words["report_file"], words["push"]) as output:
        if detach:
            from nsagent.launch import detach as detaching

            click.echo(detaching.start(spec, directory, output.tell, keep=output.fds, terminal=tty))
            return 0
        from nsagent.launch import launcher

        watch = None if words["quiet"] or tty or not os.isatty(2) else _status_line(spec)
        result = launcher.run(spec, directory, stdio=_on_terminal if tty else None, watch=watch)
        output.tell(result)
    return result.exit_code


def _on_terminal(_job: jobs.JobRecord) -> Stdio:
    from nsagent.launch.pseudoterminal import OnTerminal

    return OnTerminal()


def _status_line(spec: RunSpec) -> Watch:
    from nsagent.cli.statusline import StatusLine

    return StatusLine(spec.name)


def make_spec(argv: tuple[str, ...], words: dict[str, Any]) -> RunSpec:
    """Return the spec that the options' words mean. Raises UsageError for the first that means nothing."""

    def duration(key: str) -> int | None:
        return None if words[key] is None else quantities.parse_duration(words[key], f"--{key.replace('_', '-')}")

    return RunSpec(
        argv=argv or (os.environ.get("SHELL") or "/bin/sh",),
        name=words["name"] or "",
        **entering.make_namespaces(words),
        **limiting.make_bounds(words),
        filesystem=isolation.make_filesystem(words),
        security=isolation.make_security(words),
        **isolation.identity_words(words),
        hostname=words["hostname"] or "",
        workdir=words["workdir"] or "",
        env=tuple(pair for word in words["env"] if (pair := split_env(word))),
        clean_env=words["clean_env"],
        mount_proc=not words["no_proc"],
        init=words["init"],
        timeout_ns=duration("timeout"),
        cpu_timeout_ns=duration("cpu_timeout"),
        stop_timeout_ns=quantities.parse_duration(words["stop_timeout"], "--stop-timeout"),
        sample_ns=duration("sample"),
    )
