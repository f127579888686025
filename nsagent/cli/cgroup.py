"""`nsagent cgroup`: the controllers of this host, and its cgroups with their limits and what they use."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import click

from nsagent.cgroups.layout import read_layout
from nsagent.cgroups.stats import CgroupStats
from nsagent.cli.count import Count
from nsagent.errors import UsageError

OUTPUT = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the output.")


@click.group()
def cgroup() -> None:
    """Show the cgroups of this host: which controllers it has, and what each cgroup may use and does."""


@cgroup.command(
    epilog="""\
Examples:
  nsagent cgroup controllers
  nsagent cgroup controllers -o json | jq -r '.[] | select(.version == null) | .name'    those mounted nowhere

It is `lssubsys -am`: each controller that the kernel knows, mounted or not, and where."""
)
@OUTPUT
def controllers(output: str) -> None:
    """List each controller the kernel knows, where it is mounted, and how many cgroups are there."""
    from nsagent.cgroups.controllers import read_controllers
    from nsagent.cli.ns_text import table

    found = read_controllers(read_layout())
    if output == "json":
        click.echo(json.dumps([each._asdict() for each in found], indent=2))
        return
    rows = [
        (each.name, f"v{each.version}" if each.version else None, each.cgroups, each.mountpoint or _why_not(each.enabled))
        for each in found
    ]
    table(("CONTROLLER", "VERSION", "CGROUPS", "MOUNTED AT"), rows)


def _why_not(enabled: bool) -> str:
    return "nowhere" if enabled else "nowhere: switched off at boot (cgroup_disable=)"


@cgroup.command(
    epilog="""\
Examples:
  nsagent cgroup tree                         all of them
  nsagent cgroup tree --depth 2 /nsagent      jobs, without what is in them
  nsagent cgroup tree -o json | jq '.[] | select(.memory_limit_bytes != null)'

CPU is what was used since the cgroup was made, with all below it; CPUS its limit. Where there is no limit it is empty; `-` is
what no controller counts. In JSON a limit that is not there is null, and what is not counted is absent."""
)
@click.argument("group", metavar="[GROUP]", default="/")
@click.option("--depth", metavar="N", type=Count(min=0), help="How many levels below GROUP.  [default: all]")
@OUTPUT
def tree(group: str, depth: int | None, output: str) -> None:
    """Show GROUP (default: all) and the cgroups below it, over all hierarchies, with their limits and use."""
    from nsagent.cli.ns_text import table

    top = "/" + group.strip("/")
    rows = list(_rows(top, depth))
    if not rows:
        raise UsageError(f"there is no cgroup {group}", hint="it is looked for below the root of each hierarchy")
    if output == "json":
        click.echo(json.dumps(rows, indent=2))
        return
    base = 0 if top == "/" else top.count("/")
    head = ("CPU", "CPUS", "MEMORY", "LIMIT", "HIGH", "PIDS", "LIMIT", "CGROUP")
    table(head, [(*_cells(row), "  " * (_level(row["path"]) - base) + _name(row["path"], top)) for row in rows])


def _rows(top: str, depth: int | None) -> Iterator[dict[str, Any]]:
    from nsagent.cgroups.reader import Reader
    from nsagent.cgroups.tree import Tree

    layout = read_layout()
    known = Tree(layout)
    known.scan()
    prefix, base = "/" if top == "/" else f"{top}/", _level(top)

    def wanted(path: str) -> bool:
        return (path == top or path.startswith(prefix)) and (depth is None or _level(path) - base <= depth)

    reader = Reader(layout)
    try:
        found = reader.read_all(known, wanted)
    finally:
        reader.close()
    for path in sorted((path for path in known.cgroups if wanted(path)), key=lambda path: path.split("/")):
        yield {"path": path, "hierarchies": sorted(known.cgroups[path].ids), **_figures(found.get(path, CgroupStats()))}


def _level(path: str) -> int:
    return 0 if path == "/" else path.count("/")


def _name(path: str, top: str) -> str:
    return path if path == top else path.rpartition("/")[2]


def _figures(stats: CgroupStats) -> dict[str, Any]:
    """Return what is shown of one cgroup: what is not counted is absent, a limit that is not there None."""
    figures: dict[str, float | None] = {}
    if stats.cpu is not None:
        figures |= {"cpu_ns": stats.cpu.usage_ns, "cpus_limit": stats.cpu.limit_cores}
    if stats.memory is not None:
        figures |= {"memory_bytes": stats.memory.usage_bytes, "memory_limit_bytes": stats.memory.limit_bytes}
        figures["memory_high_bytes"] = stats.memory.high_bytes
    if stats.pids is not None:
        figures |= {"pids": stats.pids.current, "pids_limit": stats.pids.limit}
    return {key: None if value == math.inf else value for key, value in figures.items() if value is not None}


def _cells(row: dict[str, Any]) -> Iterator[str | None]:
    from nsagent.launch.text import size

    for key, form in (
        ("cpu_ns", lambda ns: f"{ns / 1e9:.2f}s"),
        ("cpus_limit", lambda cores: f"{cores:g}"),
        ("memory_bytes", size),
        ("memory_limit_bytes", size),
        ("memory_high_bytes", size),
        ("pids", str),
        ("pids_limit", str),
    ):
        if key not in row:
            yield None
        else:
            yield " " if row[key] is None else form(row[key]).replace(" ", "")
