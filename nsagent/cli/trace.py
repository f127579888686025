"""`nsagent trace`: the events, live."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
from collections.abc import Generator
from types import FrameType
from typing import Any, Final

import click

from nsagent import config, control, jobs
from nsagent.cli.count import Count
from nsagent.kernel import mounts, pins
from nsagent.namespaces import KINDS

_TRACING: Final = "tracing"  # from now on each call is seen: nsagent.tour waits for it


@click.command(
    epilog="""\
Examples:
  nsagent trace                        calls that change namespaces, and those that fail to
  nsagent trace --kind net --failed    who tries in vain to make or enter a network namespace
  nsagent trace --cgroup /docker       what containers do
  nsagent trace -o json --count 1      wait for one, for a script

The agent hands the whole stream to any number of these, each with its own filters; below a --pid it sees four generations.
With no agent running, nsagent trace loads the programs for itself, filters in the kernel (16 generations), and removes
them at its end. What is found (docs/findings.md) needs an agent."""
)
@click.option(
    "-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the output; json: one object a line."
)
@click.option("--kind", type=click.Choice([kind.value for kind in KINDS]), help="Only calls that change, or ask for, this kind.")
@click.option("--pid", type=Count(1), metavar="PID", help="Only calls of this process and of those below it.")
@click.option("--cgroup", metavar="PATH", help="Only calls from this cgroup and from those below it, such as /system.slice.")
@click.option("--failed", is_flag=True, help="Only calls that failed.")
@click.option("--all", "everything", is_flag=True, help="Also calls that change no namespace, such as a plain fork.")
@click.option("--count", type=Count(1), metavar="N", help="End after N events.")
@click.option("--state-dir", default=jobs.default_state_dir, show_default="/run/nsagent, for users below $XDG_RUNTIME_DIR",
              metavar="DIR", help="The agent's state directory.")  # fmt: skip
@click.option("--cache-dir", default=config.default_cache_dir, show_default="/var/cache/nsagent, for users ~/.cache/nsagent",
              metavar="DIR", help="Where compiled BPF programs are kept; used with no agent.")  # fmt: skip
def trace(state_dir: str, cache_dir: str, everything: bool, **flags: Any) -> None:
    """Show clone, clone3, fork, vfork, unshare and setns calls as they happen, with the namespaces before and after."""
    request = {name: value for name, value in {"all": everything, **flags}.items() if value is not None}
    answer = control.ask(state_dir, {"request": "trace", **request})
    if answer is not None:
        with answer[1] as stream:
            click.echo(_TRACING, err=True)
            for line in stream:
                _show(json.loads(line))
        return
    click.echo(f"no agent has its socket in {state_dir}: loading the programs for this command alone", err=True)
    with contextlib.closing(_private_events(request, cache_dir)) as lines:
        for text in lines:
            _show({"line": text})


def _show(message: dict[str, Any]) -> None:
    if "lost" in message:
        click.echo(f"{message['lost']} events lost: they came faster than they were read", err=True)
    else:
        click.echo(message["line"])


def _private_events(request: dict[str, Any], cache_dir: str) -> Generator[str, None, None]:
    """Yield lines of events from a set of programs of our own, which ends with the generator."""
    from nsagent.cgroups.layout import read_layout
    from nsagent.cgroups.subtree import Subtree
    from nsagent.events import KernelEvents
    from nsagent.kernel.attach import attach
    from nsagent.origins import Origins

    wanted, as_json, left = control.parse_trace(request)
    mounts.mount_bpffs()
    mounts.mount_tracefs()
    pins.sweep_private()
    pin_dir = f"{pins.PRIVATE}{os.getpid()}"
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    owner = pins.own(pin_dir)
    try:
        layout = read_layout()
        attached, origins = attach(pin_dir, cache_dir, subsystem=layout.accounting[0]), Origins(layout)
        events = KernelEvents(attached)
        try:
            events.trace_all(wanted.all)
            attached.filter_events(
                kinds=wanted.kind.flag if wanted.kind else 0,
                failed=int(wanted.failed),
                pid=wanted.pid or 0,
                cgroup=wanted.lies_below.id if isinstance(wanted.lies_below, Subtree) else 0,
            )
            click.echo(_TRACING, err=True)
            poll = select.poll()
            poll.register(events.fileno(), select.POLLIN)
            while left is None or left > 0:
                found = [event for event in events.read() if wanted(event)][:left]  # some came before the filters
                left = None if left is None else left - len(found)
                for event in map(origins.locate, found):
                    yield event.to_json() if as_json else event.to_text()
                if not found:
                    poll.poll()
        finally:
            events.close()
            attached.unload()
    finally:
        owner.release()
        pins.unload(pin_dir)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


command = trace
