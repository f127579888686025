"""`nsagent bpf`: what nsagent keeps in the kernel, and how to get rid of it."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Sequence

import click

from nsagent.errors import NsagentError, UsageError
from nsagent.kernel import pins

_PIN_DIR = click.option(
    "--pin-dir", default=pins.DEFAULT_PIN_DIR, metavar="DIR", help="Directory on a bpffs that holds the pins."
)


@click.group()
def bpf() -> None:
    """Show or remove the BPF programs and maps that nsagent keeps in the kernel."""


@bpf.command(
    epilog="""\
Examples:
  nsagent bpf status                 programs, maps and their memory
  nsagent bpf status -o json | jq '.maps[] | select(.name == "rows")'

RUNS and TIME need kernel.bpf_stats_enabled=1, which slows every BPF program of the host."""
)
@click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the output.")
@_PIN_DIR
def status(output: str, pin_dir: str) -> int:
    """Show the programs and maps that are loaded, and who owns them."""
    from nsagent.kernel import objects

    loaded = objects.adopt(pin_dir)
    agent = pins.owner(pin_dir)
    if loaded is None:
        if output == "json":
            click.echo(json.dumps({"pin_dir": pin_dir, "loaded": False, "agent_pid": agent}))
        else:
            click.echo(f"nothing is loaded in {pin_dir}")
        return 0
    try:
        found = loaded.status()
    finally:
        loaded.close()
    if output == "json":
        click.echo(json.dumps({"loaded": True, "agent_pid": agent, **dataclasses.asdict(found)}, indent=2))
        return 0
    click.echo(f"pins     {found.pin_dir} ({len(found.pins)} pins, loaded {found.age_s:.0f} s ago)")
    click.echo(f"agent    {_who(agent)}")
    click.echo(f"object   source {found.source[:12]}, kernel build {found.build_id[:12]}\n")
    rows = [
        (p.name, p.attach, p.run_cnt, None if p.run_time_ns is None else f"{p.run_time_ns / 1e6:.1f} ms",
         p.recursion_misses, p.verified_insns, p.memory_bytes)
        for p in found.programs
    ]  # fmt: skip
    _table(("PROGRAM", "ATTACHED TO", "RUNS", "TIME", "MISSED", "INSNS", "BYTES"), rows)
    click.echo()
    maps = [(m.name, m.type, m.entries, m.max_entries or None, m.memory_bytes) for m in found.maps]
    _table(("MAP", "TYPE", "ENTRIES", "MAX", "BYTES"), maps)
    return 0


@bpf.command(
    epilog="""\
Examples:
  nsagent bpf build -o /srv/objects                                            for this kernel
  nsagent bpf build -o /srv/objects --btf vmlinux --notes notes --subsystem cpuacct
                                     for another node's, of the same architecture: its /sys/kernel/btf/vmlinux and notes
  nsagent agent --object-dir /srv/objects                                      uses them, and needs no compiler

An object fits one build of a kernel, these sources and one hierarchy. It runs in the kernel: keep the directory root's."""
)
@click.option("-o", "--output", "directory", required=True, metavar="DIR", help="Directory to put the object in.")
@click.option("--btf", default="/sys/kernel/btf/vmlinux", metavar="FILE", help="The kernel's types.")
@click.option("--notes", metavar="FILE", help="That kernel's /sys/kernel/notes, for its build id.")
@click.option("--build-id", metavar="HEX", help="That kernel's build id, where there is no copy of its notes.")
@click.option("--subsystem", type=click.Choice(["cpuacct", "cpu", "memory", "none"]), show_default="as on this node",
              help="v1 controller by whose hierarchy usage is charged; none on a pure v2 node.")  # fmt: skip
def build(directory: str, btf: str, notes: str | None, build_id: str | None, subsystem: str | None) -> int:
    """Compile the programs for this node or another one."""
    from nsagent.cgroups.layout import read_layout
    from nsagent.kernel import attach, objects
    from nsagent.kernel import build as builder

    if btf != builder.BTF and not (notes or build_id):
        raise UsageError("--btf needs the build id of its kernel", hint="copy that node's /sys/kernel/notes: --notes FILE")
    if build_id and not re.fullmatch(r"([0-9a-f]{2}){1,20}", build_id):
        raise UsageError(f"--build-id {build_id!r} is not hex of at most 20 bytes")
    for path in filter(None, (btf, notes)):
        if not os.path.isfile(path):
            raise UsageError(f"there is no file {path}")
    if subsystem is None:
        subsystem = read_layout().accounting[0] or "none"
    wanted = None if subsystem == "none" else subsystem
    number = build_id or objects.kernel_build_id(*((notes, btf) if notes else ()))
    document = builder.make_object(number, wanted, rows=attach.ROWS, ring_bytes=attach.RING_BYTES, btf=btf, log_dir=directory)
    path = builder.cached_path(directory, number, str(document["source"]))
    builder.store(path, document, must=True)
    click.echo(path)
    for name, reason in sorted(document["missing"].items()):
        click.echo(f"without {name}: {reason}", err=True)
    return 0


@bpf.command(
    epilog="""\
Examples:
  nsagent bpf unload                 after the agent has stopped: counting ends, memory is freed
  nsagent bpf unload --force         also under a running agent, whose metrics then stand still"""
)
@click.option("--force", is_flag=True, show_default=False, help="Also while an agent uses them.")
@_PIN_DIR
def unload(force: bool, pin_dir: str) -> int:
    """Remove the programs, maps and pins; the counters are lost."""
    agent = pins.owner(pin_dir)
    if agent is not None and not force:
        raise NsagentError(
            f"an agent ({_who(agent)}) uses {pin_dir}",
            hint="stop it first (agent --ephemeral removes them when it ends), or use --force",
        )
    click.echo(f"removed {pin_dir}" if pins.unload(pin_dir) else f"nothing is loaded in {pin_dir}")
    return 0


def _table(head: tuple[str, ...], rows: Sequence[tuple[object, ...]]) -> None:
    """Print columns; `-` where the kernel does not say."""
    cells = [head, *(tuple("-" if cell is None else str(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _who(pid: int | None) -> str:
    return "none" if pid is None else f"process {pid}" if pid else "a process in another PID namespace"
