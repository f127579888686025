"""`nsagent agent`: the daemon."""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click
from click.core import ParameterSource

from nsagent import config, jobs, sinks
from nsagent.cgroups.selection import Selection
from nsagent.errors import NsagentError, UsageError
from nsagent.findings import RULES
from nsagent.kernel import pins
from nsagent.launch import quantities
from nsagent.metrics.family import COLLECTORS, COMPAT
from nsagent.web import config as webconfig

EPILOG = """\
Examples:
  nsagent agent                                       metrics on http://127.0.0.1:10417/metrics
  nsagent agent --listen '[::]:10417'                 for a Prometheus on another host
  nsagent agent --listen 127.0.0.1:0 --state-dir /tmp/a --pin-dir /sys/fs/bpf/a --ephemeral
                                                      a second one, beside the first; /tmp/a/agent.json has its port
  nsagent agent --events-to 'file:/var/log/nsagent/events?size=64M&keep=5' --events-to journald
                                                      keep what happens; docs/events.md has the fields
  nsagent agent --config /etc/nsagent/agent.toml      the same words, without dashes: listen = "[::]:10417"
  nsagent agent --config /etc/nsagent/agent.toml --check
                                                      say whether these settings are good, and start nothing
  nsagent agent --dry-run                             what it would read and show here, and what that would take
  nsagent agent --listen unix:/run/nsagent/http.sock  for a proxy; curl --unix-socket /run/nsagent/http.sock http://n/metrics
  nsagent agent --web.config.file /etc/nsagent/web.yml
                                                      TLS and passwords, as for node_exporter
  nsagent agent --cgroup-include '*.service' --cgroup-exclude /user.slice
                                                      services, but none of users; docs/selection.md has the patterns
  nsagent agent --no-collector all --collector io     CPU, memory and pids of cgroups, and their IO
  nsagent agent --textfile /var/lib/prometheus/node-exporter
                                                      and node_exporter shows what this agent knows

Flags come before variables (NSAGENT_AGENT_LISTEN), these before the file, and that before the defaults.
SIGTERM ends the agent and keeps its BPF programs, which go on counting for the next one; --ephemeral and
'nsagent bpf unload' remove them. SIGHUP (or POST /-/reload, with --web.enable-lifecycle) reads the file and the web
configuration again: retain, finding-off, rate, log-level, max-series and which cgroups are shown are changed at once, other
settings need a restart, and nothing is changed where something is wrong. nsagent_config_last_reload_success tells how it was.
"""


def _load_file(ctx: click.Context, _parameter: click.Parameter, path: str | None) -> str | None:
    """Make the settings of a file the defaults of the flags: click's own order then is flags, variables, file, defaults."""
    if path:
        parameters = {parameter.opts[0].removeprefix("--"): parameter for parameter in ctx.command.params}
        found = config.read_file(path, frozenset(parameters) - {"config", "check", "dry-run"})
        for key, value in found.items():
            if isinstance(value, list) != getattr(parameters[key], "multiple", False):
                raise UsageError(f"{path}: {key} is {'no list' if isinstance(value, list) else 'a list'}")
        ctx.default_map = {str(parameters[key].name): value for key, value in found.items()}
    return path


def parse_retain(text: str) -> int:
    """Return ns; 0 keeps nothing."""
    return 0 if text.strip() in ("0", "0s") else quantities.parse_duration(text, "--retain")


def set_up_logging(level: str) -> None:
    """Log to standard error, a line a record, in key=value words."""
    formatter = logging.Formatter(
        "time=%(asctime)s.%(msecs)03dZ level=%(levelname)s logger=%(name)s %(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger("nsagent")
    root.addHandler(handler)
    root.setLevel(level.upper())
    root.propagate = False


class _Command(click.Command):
    """Remembers its arguments, which are read again with the file; and has whatever is wrong be 2 for --check."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        arguments = list(args)  # click takes them away
        try:
            context = super().make_context(info_name, args, parent, **extra)
        except NsagentError as error:
            if "--check" in arguments and not isinstance(error, UsageError):
                raise UsageError(error.message, hint=error.hint) from error
            raise
        context.obj = arguments
        return context


def _collectors_off(on: Sequence[str], off: Sequence[str]) -> frozenset[str]:
    """Return which collectors are off. Raises UsageError: one is to be both on and off."""
    if both := sorted(set(on) & set(off)):
        raise UsageError(f"--collector {both[0]} and --no-collector {both[0]}: it is on or off")
    return frozenset(COLLECTORS if _ALL in off else off) - set(on)


def _make_settings(flags: Mapping[str, Any]) -> config.AgentConfig:
    """Return what the flags mean. Raises NsagentError."""
    for sink in flags["events_to"]:
        sinks.parse(sink, quantities.parse_bytes)
    Selection(flags["cgroup_include"], flags["cgroup_exclude"], flags["max_depth"])
    socket_path = config.parse_socket_path(flags["listen"])
    host, port = ("", 0) if socket_path else config.parse_listen(flags["listen"])
    textfile = os.path.abspath(flags["textfile"]) if flags["textfile"] else ""
    if textfile and not os.path.isdir(textfile):
        raise UsageError(f"--textfile {textfile} is no directory", hint="node_exporter's --collector.textfile.directory has it")
    return config.AgentConfig(
        host=host,
        port=port,
        state_dir=os.path.abspath(flags["state_dir"]),
        pin_dir=os.path.abspath(flags["pin_dir"]),
        cache_dir=os.path.abspath(flags["cache_dir"]),
        retain_ns=parse_retain(flags["retain"]),
        contexts=flags["contexts"],
        ring_bytes=quantities.parse_bytes(flags["ring_size"], "--ring-size"),
        bpf=not flags["no_bpf"],
        trace=not flags["no_trace"],
        ephemeral=flags["ephemeral"],
        object_dir=os.path.abspath(flags["object_dir"]) if flags["object_dir"] else "",
        events_to=flags["events_to"],
        findings_off=flags["finding_off"],
        rate=flags["rate"],
        runtimes=() if flags["no_runtimes"] else flags["runtime"],
        label_allow=flags["label_allow"],
        bpf_stats=flags["bpf_stats"],
        log_level=flags["log_level"],
        socket_path=socket_path,
        web_config_file=os.path.abspath(flags["web_config_file"]) if flags["web_config_file"] else "",
        web_lifecycle=flags["web_enable_lifecycle"],
        textfile=textfile,
        cgroup_include=flags["cgroup_include"],
        cgroup_exclude=flags["cgroup_exclude"],
        max_depth=flags["max_depth"],
        max_series=flags["max_series"],
        compat=flags["compat"],
        collectors_off=_collectors_off(flags["collector"], flags["no_collector"]),
    )


def _again(ctx: click.Context) -> config.AgentConfig:
    """Read the file anew, under the same flags and variables. Raises NsagentError."""
    try:
        with ctx.command.make_context(ctx.info_name, list(ctx.obj), parent=ctx.parent) as context:
            return _make_settings(context.params)
    except click.ClickException as error:
        raise UsageError(" ".join(error.format_message().split())) from error


def _check(ctx: click.Context, settings: config.AgentConfig) -> None:
    """Print the settings as a TOML file has them, and where each that is no default comes from. Raises UsageError."""
    if settings.web_config_file:
        try:
            webconfig.read(settings.web_config_file)
        except NsagentError as error:
            raise UsageError(error.message, hint=error.hint) from error
    click.echo("# ok")  # a comment, so that all of it is a file for --config
    for parameter in ctx.command.params:
        name, value = parameter.opts[0].removeprefix("--"), ctx.params.get(str(parameter.name))
        if name in ("config", "check", "dry-run", "help") or value is None:
            continue
        source = ctx.get_parameter_source(str(parameter.name))
        came = _SOURCES.get(source, "") if source else ""
        shown = json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)
        click.echo(f"{name} = {shown}" + (f"  # {came}" if came else ""))


_ALL: Final = "all"
_SOURCES: Final = {
    ParameterSource.COMMANDLINE: "flag",
    ParameterSource.ENVIRONMENT: "variable",
    ParameterSource.DEFAULT_MAP: "file",
}


@click.command(cls=_Command, epilog=EPILOG)
@click.option("--config", "config_file", metavar="FILE", is_eager=True, callback=_load_file, show_default=False,
              help="TOML file with these settings.")  # fmt: skip
@click.option("--check", is_flag=True, show_default=False, allow_from_autoenv=False,
              help="Say whether these settings are good, and what they are; start nothing.")  # fmt: skip
@click.option("--dry-run", is_flag=True, show_default=False, allow_from_autoenv=False,
              help="Say what would be read and shown here, and what that would take; load and start nothing.")  # fmt: skip
@click.option("--listen", default=config.DEFAULT_LISTEN, metavar="ADDR:PORT|unix:/PATH",
              help="Where the HTTP server listens; port 0 is any.")  # fmt: skip
@click.option("--web.config.file", "web_config_file", metavar="FILE",
              help="TLS, users and headers of the HTTP server, in the format of Prometheus' exporter-toolkit.")  # fmt: skip
@click.option("--web.enable-lifecycle", "web_enable_lifecycle", is_flag=True, help="Let POST /-/reload do what SIGHUP does.")
@click.option("--textfile", metavar="DIR", help="Write DIR/nsagent.prom every 15 s, for node_exporter's textfile collector.")
@click.option("--state-dir", default=jobs.default_state_dir, show_default="/run/nsagent, for users below $XDG_RUNTIME_DIR",
              metavar="DIR", help="Where the socket, agent.json and the job files are.")  # fmt: skip
@click.option("--pin-dir", default=pins.DEFAULT_PIN_DIR, metavar="DIR", help="Directory on a bpffs that holds the pins.")
@click.option("--cache-dir", default=config.default_cache_dir, show_default="/var/cache/nsagent, for users ~/.cache/nsagent",
              metavar="DIR", help="Where compiled BPF programs are kept.")  # fmt: skip
@click.option("--retain", default="120s", metavar="TIME", help="For how long the last totals of what ended are shown.")
@click.option("--contexts", default=10240, metavar="N", help="Rows for combinations of a cgroup and namespaces, 370 bytes each.")
@click.option("--ring-size", default="1M", metavar="SIZE", help="Ring buffer of events, 430 bytes each; a power of two.")
@click.option("--no-bpf", is_flag=True, help="Load nothing into the kernel: approximate usage from /proc, no tracing.")
@click.option("--no-trace", is_flag=True, help="Do not trace clone, unshare and setns.")
@click.option("--bpf-stats", is_flag=True, help="Have the kernel count and time the runs of programs: slows each BPF program.")
@click.option("--object-dir", metavar="DIR", help="Where 'nsagent bpf build' put objects: looked up before compiling.")
@click.option("--events-to", multiple=True, metavar="SINK",
              help="Keep events: file:/path?size=64M&keep=5, unix:/path, journald or stdout; may be repeated.")  # fmt: skip
@click.option("--finding-off", multiple=True, type=click.Choice(list(RULES)),
              help="Do not look for this; may be repeated.")  # fmt: skip
@click.option("--rate", default=0, metavar="N", help="Events a second from one cgroup at most; 0 is no limit.")
@click.option("--cgroup-include", multiple=True, metavar="GLOB",
              help="Read and show these cgroups with all below them, and no others; may be repeated.")  # fmt: skip
@click.option("--cgroup-exclude", multiple=True, metavar="GLOB",
              help="Neither read nor show these cgroups nor what is below them; may be repeated.")  # fmt: skip
@click.option("--max-depth", type=int, metavar="N", show_default=False,
              help="Read and show no cgroup deeper than that; /system.slice has depth 1.")  # fmt: skip
@click.option("--max-series", default=200_000, metavar="N",
              help="Show at most so many series, and whole cgroups and namespaces less; 0 is no limit.")  # fmt: skip
@click.option("--no-collector", multiple=True, type=click.Choice([_ALL, *COLLECTORS]),
              help="Do not read and show these; all leaves the core, CPU, memory and pids; may be repeated.")  # fmt: skip
@click.option("--collector", multiple=True, type=click.Choice(list(COLLECTORS)),
              help="Read and show these; what --no-collector all is to leave; may be repeated.")  # fmt: skip
@click.option("--compat", multiple=True, type=click.Choice(COMPAT),
              help="Serve these names beside ours, for all that was made for them: docs/cadvisor.md.")  # fmt: skip
@click.option("--runtime", multiple=True, metavar="SOCKET", default=config.DEFAULT_RUNTIMES,
              show_default=", ".join(config.DEFAULT_RUNTIMES),
              help="Ask docker or podman there for names, or a CRI (containerd*.sock, cri*.sock); may be repeated.")  # fmt: skip
@click.option("--label-allow", multiple=True, metavar="GLOB",
              help="Show these labels of containers and pods, such as team or 'com.example.*'; may be repeated.")  # fmt: skip
@click.option("--no-runtimes", is_flag=True, help="Ask no container runtime.")
@click.option("--ephemeral", is_flag=True, help="Remove the BPF programs at the end; they keep counting otherwise.")
@click.option("--log-level", default="info", type=click.Choice(config.LOG_LEVELS), help="Least severity that is logged.")
@click.pass_context
def agent(ctx: click.Context, /, check: bool, dry_run: bool, **flags: Any) -> None:
    """Account every namespace and cgroup of this node, and serve the metrics.

    Needs root for exact figures. Without it, or on a kernel without BPF, it serves what it can and says what it cannot
    (nsagent_mode_info, nsagent_feature_info; nsagent doctor).
    """
    settings = _make_settings(flags)
    if check:
        _check(ctx, settings)
        return
    if dry_run:
        from nsagent.node import plan

        click.echo(plan.describe(plan.make(settings)), nl=False)
        return
    set_up_logging(settings.log_level)
    from nsagent import agent as agents

    agents.run(settings, lambda: _again(ctx))


command = agent
