"""One job of the command line: its options as data, their words to a RunSpec, the launch, the report, the exit code."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

from nsagent import jobs
from nsagent.cli import entering, isolation, limiting
from nsagent.cli.option import Option
from nsagent.cli.run_output import Output
from nsagent.launch import descriptors, quantities
from nsagent.launch.spec import RunSpec, read_capabilities, split_env

if TYPE_CHECKING:
    from nsagent.launch.relay import Stdio, Watch

_FORMS: Final = "text, json, none, or textfile:DIR for node_exporter; may be repeated."
_STATE_DIR: Final = "Where jobs are registered.  [default: /run/nsagent, or one of the user's own]"
OPTIONS: Final = (
    Option("--name", "Name of the job.  [default: base name of CMD]", metavar="NAME"),
    *entering.OPTIONS,
    Option("--hostname", "Host name inside.", metavar="NAME"),
    Option("--workdir", "Directory to start in.  [default: this one]", metavar="DIR"),
    Option("--env", "Set a variable, or pass one on; may be repeated.", metavar="NAME[=VALUE]", multiple=True),
    Option("--clean-env", "Start with no variables but those of --env."),
    Option("--no-proc", "Leave /proc as it is, though pid and mnt are new."),
    Option("--init", "Put a small init at PID 1, which reaps and passes signals on."),
    *isolation.OPTIONS,
    *limiting.OPTIONS,
    Option("--timeout", "Send SIGTERM after TIME, such as 1s or 10m; exit with 124.", metavar="TIME"),
    Option("--cpu-timeout", "The same after so much CPU time of all its processes.", metavar="TIME"),
    Option("--stop-timeout", "From a timeout's SIGTERM to SIGKILL.", metavar="TIME", default="10s"),
    Option("--report", _FORMS, metavar="FORM", multiple=True, default=("text",)),
    Option("--report-file", "Write the report there.  [default: stderr]", metavar="FILE"),
    Option("--push", "Push the report to a Pushgateway, such as http://127.0.0.1:9091.", metavar="URL"),
    Option("--sample", "Keep CPU and memory over time, read every TIME, such as 100ms.", metavar="TIME"),
    Option("--state-dir", _STATE_DIR, metavar="DIR"),
    Option("--tty", "Give CMD a terminal of its own, shown on this one.", short="-t"),
    Option("--detach", "Print the job's id and leave it running; see 'nsagent logs', 'nsagent wait'.", short="-d"),
    Option("--quiet", "No line on the terminal that tells, after 5 s, what a job uses.", short="-q"),
    Option("--dry-run", "Print the plan and do nothing."),
)


def launch(argv: tuple[str, ...], words: dict[str, Any]) -> int:
    """Run a job of the command line to its end, or leave it running; return the exit code. `words` are by the options' keys."""
    descriptors.open_standard()
    spec = make_spec(argv, words).for_capabilities(read_capabilities())
    if words["dry_run"]:
        from nsagent.cgroups.layout import read_layout
        from nsagent.launch import launcher, plan, prepare

        layout = read_layout()
        print(plan.describe(prepare.feasible(spec, layout), layout, launcher.parent_cgroup(layout, spec.parent)), end="")
        return 0
    if os.geteuid() and (spec.limits or spec.cpu_timeout_ns):
        _enter_scope(spec)
    # What cannot be told is refused before the job runs, not after it.
    directory = words["state_dir"] or jobs.default_state_dir()
    tty = words["tty"]
    with Output(words["report"], words["report_file"], words["push"]) as output:
        if words["detach"]:
            from nsagent.launch import detach

            print(detach.start(spec, directory, output.tell, keep=output.fds, terminal=tty))
            return 0
        from nsagent.launch import launcher

        watch = None if words["quiet"] or tty or not os.isatty(2) else _status_line(spec)
        result = launcher.run(spec, directory, stdio=_on_terminal if tty else None, watch=watch)
        output.tell(result)
    return result.exit_code


def _enter_scope(spec: RunSpec) -> None:
    """Begin again in a cgroup that systemd delegates, if it does and we have none: without one, limits would be refused."""
    from nsagent.cgroups.layout import read_layout
    from nsagent.launch import launcher, scope

    layout = read_layout()
    if launcher.parent_cgroup(layout, spec.parent):
        return
    argv = scope.command(layout, [sys.executable, *sys.orig_argv[1:]], os.environ.get("XDG_RUNTIME_DIR", ""))
    if argv is not None:
        os.execv(argv[0], argv)


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
    ).checked()
