"""`nsagent ns`: the namespaces of this node, who is in them, what they use, and what became of them.

What /proc shows is read here; what was used, and the history, come from the agent where one runs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from nsagent import control, jobs, namespaces
from nsagent.cli import ns_text
from nsagent.cli.count import Count
from nsagent.errors import NsagentError
from nsagent.inventory import Inventory, Key, Process, Seen, parse_target, read_inventory
from nsagent.namespaces import KINDS, NamespaceKind

F = TypeVar("F", bound=Callable[..., Any])

_NO_AGENT = "no agent has its socket in {}: no history, and nothing about CPU and memory"


def _options(command: F) -> F:
    state_dir = click.option("--state-dir", default=jobs.default_state_dir, metavar="DIR", help="The agent's state directory.",
                             show_default="/run/nsagent, for users below $XDG_RUNTIME_DIR")  # fmt: skip
    output = click.option("-o", "--output", type=click.Choice(["text", "json"]), default="text", help="Form of the output.")
    return output(state_dir(command))


_KIND = click.option(
    "--kind",
    type=click.Choice([kind.value for kind in KINDS]),
    help="Only namespaces of this kind; with it, NS may be a process id.",
)


@click.group(
    epilog="""\
Examples:
  nsagent ns list --kind net           all network namespaces, those that only a mount keeps too
  nsagent ns show 4242 --kind pid      the PID namespace of process 4242: who is in it, by which number
  nsagent ns diff 1 4242               which namespaces two processes share
  nsagent ns history uts:4026532182    who made it, who entered it, when it ended

NS is KIND:INUM as in 'net:4026531840' or 'net:[4026531840]', a bare INUM, or a process id with --kind."""
)
def ns() -> None:
    """Show namespaces: who is in them, what they use, how they came about and how they ended."""


@ns.command(
    "list",
    epilog="""\
Examples:
  nsagent ns list
  nsagent ns list --kind net
  nsagent ns list -o json | jq '.namespaces[] | select(.processes == 0) | .kept_by'
                                       what keeps those without a process""",
)
@_KIND
@_options
def list_(kind: str | None, output: str, state_dir: str) -> None:
    """List the namespaces of this node with their processes, also those that have none."""
    usage = _ask(state_dir, {"request": "namespaces"}, "namespaces")
    inventory = read_inventory()
    rows = [row for row in _rows(inventory, usage) if kind in (None, row["kind"])]
    if output == "json":
        click.echo(
            json.dumps({"agent": usage is not None, "unreadable_processes": inventory.unreadable, "namespaces": rows}, indent=2)
        )
        return
    ns_text.table(ns_text.LIST_HEAD, [ns_text.list_row(row) for row in rows])
    _warn(inventory, usage, state_dir)


@ns.command(
    epilog="""\
Examples:
  nsagent ns tree
  nsagent ns tree -o json | jq '.[].below[] | select(.kind == "user")'       user namespaces in user namespaces"""
)
@_options
def tree(output: str, state_dir: str) -> None:
    """Show which user namespace owns each namespace, and which is whose child."""
    usage = _ask(state_dir, {"request": "namespaces"}, "namespaces")
    inventory = read_inventory()
    rows = {(row["kind"], row["inum"]): row for row in _rows(inventory, usage)}
    roots = ns_text.grow(rows)
    if output == "json":
        click.echo(json.dumps(roots, indent=2))
        return
    for lead, row in ns_text.draw(roots):
        click.echo(lead + ns_text.tree_label(row))
    _warn(inventory, usage, state_dir)


@ns.command(
    epilog="""\
Examples:
  nsagent ns show net:4026531840
  nsagent ns show 4242 --kind pid      that of process 4242: who is in it, by which number
  nsagent ns show 4242 --kind pid -o json | jq '.processes[] | [.pid, .inner_pid]'"""
)
@click.argument("namespace", metavar="NS")
@_KIND
@_options
def show(namespace: str, kind: str | None, output: str, state_dir: str) -> None:
    """Show one namespace: its processes by their numbers outside and inside, what it uses, what keeps it, its history."""
    target = parse_target(namespace, NamespaceKind(kind) if kind else None)
    usage = _ask(state_dir, {"request": "namespaces"}, "namespaces")
    history = _ask_history(state_dir, target)
    inventory = read_inventory()
    key = next((key for key in inventory.namespaces if target in (key, key[1])), None)
    records = (history or {}).get("records", [])
    record = _record_of(records, inventory.namespaces[key]) if key else records[-1] if records else None
    if key is None and record is None:
        raise NsagentError(
            f"there is no namespace {namespace}, and none is remembered",
            hint="'nsagent ns list' shows those there are",
        )
    row = next((r for r in _rows(inventory, usage) if key == (r["kind"], r["inum"])), None)
    document = {
        "agent": usage is not None,
        "namespace": row,
        "history": record,
        "processes": _inside(inventory, key) if key else [],
    }
    if output == "json":
        click.echo(json.dumps(document, indent=2))
        return
    ns_text.show(document)
    _warn(inventory, usage, state_dir)


@ns.command(
    epilog="""\
Examples:
  nsagent ns diff $$ 4242
  nsagent ns diff 1 4242 -o json | jq -r '.namespaces[] | select(.same | not) | .kind'"""
)
@click.argument("first", type=Count(1), metavar="PID")
@click.argument("second", type=Count(1), metavar="PID")
@_options
def diff(first: int, second: int, output: str, state_dir: str) -> None:
    """Tell which namespaces two processes share."""
    one, other = namespaces.of_process(first), namespaces.of_process(second)
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        pair = [{"inum": of[kind].inum, "id": of[kind].id} if kind in of else None for of in (one, other)]
        if any(pair):
            rows.append({"kind": kind.value, "same": pair[0] == pair[1], "first": pair[0], "second": pair[1]})
    if output == "json":
        click.echo(json.dumps({"first": first, "second": second, "namespaces": rows}, indent=2))
        return
    cells = [
        (row["kind"], "same" if row["same"] else "different", *(row[n] and row[n]["inum"] for n in ("first", "second")))
        for row in rows
    ]
    ns_text.table(("KIND", "", str(first), str(second)), cells)


@ns.command(
    epilog="""\
Examples:
  nsagent ns history                       all, the ended ones too
  nsagent ns history --kind net
  nsagent ns history uts:4026532182        who made it, who entered it, when it ended"""
)
@click.argument("namespace", metavar="[NS]", required=False)
@_KIND
@_options
def history(namespace: str | None, kind: str | None, output: str, state_dir: str) -> None:
    """Tell who made a namespace, who entered it, when its last process was gone, and what keeps it still.

    Without NS: all that are remembered, the ended ones too.
    """
    wanted = NamespaceKind(kind) if kind else None
    target = parse_target(namespace, wanted) if namespace else None
    answer = _ask_history(state_dir, target, wanted)
    if answer is None:
        raise NsagentError(
            f"no agent has its socket in {state_dir}: nobody kept a history",
            hint="start 'nsagent agent'; 'nsagent ns show' tells what /proc knows of a namespace now",
        )
    if namespace and not answer["records"]:
        raise NsagentError(f"nothing is known of namespace {namespace}", hint="'nsagent ns history' lists what is")
    inventory = read_inventory()
    for record in answer["records"]:
        key = NamespaceKind(record["kind"]), record["inum"]
        seen = inventory.namespaces.get(key)
        is_it = seen is not None and seen.id.id in (0, record["id"])
        record["kept_by"] = _keepers(inventory, key, seen) if seen and is_it else None
    if output == "json":
        click.echo(json.dumps(answer, indent=2))
    elif namespace:
        for record in answer["records"]:
            ns_text.history(record)
    else:
        ns_text.table(ns_text.HISTORY_HEAD, [ns_text.history_row(record) for record in answer["records"]])
    if answer["lost"]:
        click.echo(f"{answer['lost']} events were lost since the programs were loaded: calls may be missing here", err=True)
    if answer["evicted"]:
        click.echo(f"{answer['evicted']} records of what ended long ago were dropped", err=True)


def _ask(state_dir: str, request: Mapping[str, Any], rows: str) -> dict[str, Any] | None:
    """Return the agent's answer with its rows by that name; None without an agent."""
    answer = control.ask_rows(state_dir, dict(request))
    return None if answer is None else answer[0] | {rows: answer[1]}


def _ask_history(state_dir: str, target: Key | int | None, kind: NamespaceKind | None = None) -> dict[str, Any] | None:
    request: dict[str, Any] = {"request": "history"}
    if isinstance(target, int):
        request["inum"] = target
    elif target:
        request |= {"kind": target[0].value, "inum": target[1]}
    elif kind:
        request["kind"] = kind.value
    return _ask(state_dir, request, "records")


def _record_of(records: Sequence[dict[str, Any]], seen: Seen) -> dict[str, Any] | None:
    """Return the record of what /proc shows; `records` are in the order in which they were first heard of.

    The kernel's id decides. Where it gives none, the number's latest record may be it: if that is not known to have ended, and
    a task was met there where /proc shows one. What is kept without a process cannot be told from what had its number before.
    """
    of_inum = [record for record in records if (record["kind"], record["inum"]) == seen.id[:2]]
    if seen.id.id:
        return next((record for record in of_inum if record["id"] == seen.id.id), None)
    fitting = ("live",) if seen.members else ("live", "new")
    return of_inum[-1] if of_inum and of_inum[-1]["state"] in fitting else None


def _rows(inventory: Inventory, answer: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """Return a row a namespace: what /proc shows, and what the agent says it used; those too that only the agent knows."""
    used = {(row["kind"], row["inum"]): row for row in answer["namespaces"] if row["usage"]["threads"]} if answer else {}
    rows = []
    for key, seen in inventory.namespaces.items():
        mine = used.pop(key, None)
        if mine and seen.id.id not in (0, mine["id"]):  # the agent looked earlier: the number was another namespace's then
            mine = None
        oldest = inventory.processes.get(seen.members[0]) if seen.members else None
        rows.append(
            {
                "kind": seen.id.kind.value,
                "inum": seen.id.inum,
                "id": seen.id.id,
                "processes": len(seen.members),
                "oldest": _person(oldest) if oldest else None,
                "usage": mine and mine["usage"],
                "owner": seen.owner and {"kind": seen.owner.kind.value, "inum": seen.owner.inum, "id": seen.owner.id},
                "parent": seen.parent and {"kind": seen.parent.kind.value, "inum": seen.parent.inum, "id": seen.parent.id},
                "kept_by": _keepers(inventory, key, seen),
            }
        )
    unknown = {"processes": None, "oldest": None, "owner": None, "parent": None, "kept_by": None}
    return rows + [unknown | row for row in used.values()]


def _person(process: Process) -> dict[str, Any]:
    names = {"pid": process.pid, "ppid": process.ppid, "uid": process.uid, "comm": process.comm}
    return names | {"argv": list(process.argv), "command": process.command}


def _keepers(inventory: Inventory, key: Key, seen: Seen) -> dict[str, Any]:
    """Return what keeps a namespace: processes alone end with it, all else makes it outlive them."""
    return {
        "processes": len(seen.members),
        "mounts": list(seen.mounts),
        "descriptors": [{"pid": pid, "fd": fd, "comm": inventory.processes[pid].comm} for pid, fd in seen.descriptors],
        "for_children_of": list(seen.expected),
        "namespaces": [f"{each.kind}:{each.inum}" for each in inventory.below(key)],
    }


def _inside(inventory: Inventory, key: Key) -> list[dict[str, Any]]:
    """Return the processes of a namespace by both their numbers; of a PID namespace those of the ones nested in it too."""
    members = [inventory.processes[pid] for pid in inventory.namespaces[key].members]
    level, inner = -1, members
    if key[0] is NamespaceKind.PID and members:
        level = len(members[0].inner_pids) - 1
        nested = {key}
        while more := {k for k, s in inventory.namespaces.items() if s.parent and s.parent[:2] in nested} - nested:
            nested |= more
        inner = [p for p in inventory.processes.values() if (key[0], p.namespaces.get(key[0])) in nested]
    return [_person(each) | {"inner_pid": each.inner_pids[level]} for each in inner]


def _warn(inventory: Inventory, answer: Mapping[str, Any] | None, state_dir: str) -> None:
    if answer is None:
        click.echo(_NO_AGENT.format(state_dir), err=True)
    if inventory.unreadable:
        count = inventory.unreadable
        click.echo(f"{count} process{'es' * (count != 1)} may not be read: what only they are in is missing", err=True)


command = ns
