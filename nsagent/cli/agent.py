"""`nsagent agent`: the daemon."""

from __future__ import annotations

import logging
import os
import sys
import time
from typing import Any

import click

from nsagent import config, jobs, sinks
from nsagent.errors import UsageError
from nsagent.findings import RULES
from nsagent.kernel import pins
from nsagent.launch import quantities

EPILOG = """\
Examples:
  nsagent agent                                       metrics on http://127.0.0.1:10417/metrics
  nsagent agent --listen '[::]:10417'                 for a Prometheus on another host
  nsagent agent --listen 127.0.0.1:0 --state-dir /tmp/a --pin-dir /sys/fs/bpf/a --ephemeral
                                                      a second one, beside the first; /tmp/a/agent.json has its port
  nsagent agent --events-to 'file:/var/log/nsagent/events?size=64M&keep=5' --events-to journald
                                                      keep what happens; docs/events.md has the fields
  nsagent agent --config /etc/nsagent/agent.toml      the same words, without dashes: listen = "[::]:10417"

Flags come before variables (NSAGENT_AGENT_LISTEN), these before the file, and that before the defaults.
SIGTERM ends the agent and keeps its BPF programs, which go on counting for the next one; --ephemeral and
'nsagent bpf unload' remove them.
"""


def _load_file(ctx: click.Context, _parameter: click.Parameter, path: str | None) -> str | None:
    """Make the settings of a file the defaults of the flags: click's own order then is flags, variables, file, defaults."""
    if path:
        parameters = {parameter.opts[0].removeprefix("--"): parameter for parameter in ctx.command.params}
        found = config.read_file(path, frozenset(parameters) - {"config"})
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


@click.command(epilog=EPILOG)
@click.option("--config", "config_file", metavar="FILE", is_eager=True, callback=_load_file, show_default=False,
              help="TOML file with these settings.")  # fmt: skip
@click.option("--listen", default=config.DEFAULT_LISTEN, metavar="ADDR:PORT", help="Address of the HTTP server; port 0 is any.")
@click.option("--state-dir", default=jobs.default_state_dir, show_default="/run/nsagent, for users below $XDG_RUNTIME_DIR",
              metavar="DIR", help="Where the socket, agent.json and the job files are.")  # fmt: skip
@click.option("--pin-dir", default=pins.DEFAULT_PIN_DIR, metavar="DIR", help="Directory on a bpffs that holds the pins.")
@click.option("--cache-dir", default=config.default_cache_dir, show_default="/var/cache/nsagent, for users ~/.cache/nsagent",
              metavar="DIR", help="Where compiled BPF programs are kept.")  # fmt: skip
@click.option("--retain", default="120s", metavar="TIME", help="For how long the last totals of what ended are shown.")
@click.option("--contexts", default=10240, metavar="N", help="Rows for combinations of a cgroup and namespaces, 360 bytes each.")
@click.option("--ring-size", default="1M", metavar="SIZE", help="Ring buffer of events, 430 bytes each; a power of two.")
@click.option("--no-bpf", is_flag=True, help="Load nothing into the kernel: approximate usage from /proc, no tracing.")
@click.option("--no-trace", is_flag=True, help="Do not trace clone, unshare and setns.")
@click.option("--object-dir", metavar="DIR", help="Where 'nsagent bpf build' put objects: looked up before compiling.")
@click.option("--events-to", multiple=True, metavar="SINK",
              help="Keep events: file:/path?size=64M&keep=5, unix:/path, journald or stdout; may be repeated.")  # fmt: skip
@click.option("--finding-off", multiple=True, type=click.Choice(list(RULES)),
              help="Do not look for this; may be repeated.")  # fmt: skip
@click.option("--rate", default=0, metavar="N", help="Events a second from one cgroup at most; 0 is no limit.")
@click.option("--runtime", multiple=True, metavar="SOCKET", default=config.DEFAULT_RUNTIMES,
              show_default=", ".join(config.DEFAULT_RUNTIMES),
              help="Ask docker or podman there for names, or a CRI (containerd*.sock, cri*.sock); may be repeated.")  # fmt: skip
@click.option("--no-runtimes", is_flag=True, help="Ask no container runtime.")
@click.option("--ephemeral", is_flag=True, help="Remove the BPF programs at the end; they keep counting otherwise.")
@click.option("--log-level", default="info", type=click.Choice(config.LOG_LEVELS), help="Least severity that is logged.")
def agent(config_file: str | None, **flags: Any) -> None:
    """Account every namespace and cgroup of this node, and serve the metrics.

    Needs root for exact figures. Without it, or on a kernel without BPF, it serves what it can and says what it cannot
    (nsagent_mode_info, nsagent_feature_info; nsagent doctor).
    """

    host, port = config.parse_listen(flags["listen"])
    for sink in flags["events_to"]:
        sinks.parse(sink, quantities.parse_bytes)
    settings = config.AgentConfig(
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
    )
    set_up_logging(flags["log_level"])
    from nsagent import agent as agents

    agents.run(settings)


command = agent
