"""`nsagent metrics`: one scrape on standard output."""

from __future__ import annotations

import os
import shutil
import sys

import click

from nsagent import config, control, jobs
from nsagent.kernel import pins


@click.command(
    epilog="""\
Examples:
  nsagent metrics | grep nsagent_mode_info
  nsagent metrics | grep 'namespace_cpu_seconds_total{kind="net"'

With no agent running, it reads once by itself: from the BPF programs that an earlier agent left, if there are any,
else from /proc, where counters begin at 0 with this command and gauges are what is now."""
)
@click.option("--state-dir", default=jobs.default_state_dir, show_default="/run/nsagent, for users below $XDG_RUNTIME_DIR",
              metavar="DIR", help="The agent's state directory.")  # fmt: skip
@click.option("--pin-dir", default=pins.DEFAULT_PIN_DIR, metavar="DIR", help="Where to look for programs with no agent running.")
def metrics(state_dir: str, pin_dir: str) -> None:
    """Print one scrape of the running agent, in Prometheus' text format."""
    answer = control.ask(state_dir, {"request": "metrics"})
    if answer is not None:
        with answer[1] as stream:
            shutil.copyfileobj(stream, sys.stdout.buffer)
        return
    from nsagent import agent

    click.echo(f"no agent has its socket in {state_dir}: reading once", err=True)
    once = config.AgentConfig(
        host="",
        port=0,
        state_dir=os.path.abspath(state_dir),
        pin_dir=os.path.abspath(pin_dir),
        cache_dir=config.default_cache_dir(),
        retain_ns=0,
    )
    sys.stdout.buffer.write(agent.read_once(once))


command = metrics
