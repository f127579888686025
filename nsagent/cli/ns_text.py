"""How `nsagent ns` looks to people: tables, trees and paragraphs made of the rows that -o json prints."""

from __future__ import annotations

import pwd
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import click

from nsagent.events import printable

Row = dict[str, Any]

LIST_HEAD: Final = ("KIND", "INUM", "ID", "PROCS", "PID", "USER", "CPU", "RSS", "COMMAND")
HISTORY_HEAD: Final = ("KIND", "INUM", "ID", "STATE", "CREATED", "BY", "FROM", "JOINS", "ENDED", "MEMBERS")
_WIDE: Final = 60


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns, made printable; `-` for what is not known. The last column is as wide as it is."""
    cells = [tuple(head), *(tuple("-" if cell in (None, "") else printable(str(cell)) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in list(zip(*cells, strict=True))[:-1]]
    for row in cells:
        click.echo("  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]]).rstrip())


def name_of(row: Mapping[str, Any]) -> str:
    """Return ``kind:inum``."""
    return f"{row['kind']}:{row['inum']}"


def cpu(usage: Mapping[str, int] | None) -> str | None:
    """Return seconds with their unit."""
    return f"{usage['cpu_ns'] / 1e9:.2f}s" if usage else None


def rss(usage: Mapping[str, int] | None) -> str | None:
    """Return the resident memory in a unit that fits it."""
    if not usage or "rss_anon_bytes" not in usage:
        return None
    size = float(usage["rss_anon_bytes"] + usage["rss_file_bytes"] + usage["rss_shmem_bytes"])
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f}{unit}"
        size /= 1024
    return f"{size:.1f}GiB"


def user(uid: int) -> str:
    """Return a user's name, or the number of one without."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def clock(seconds: float | None, *, day: bool = False) -> str | None:
    """Return local time to the millisecond."""
    if seconds is None:
        return None
    form = "%Y-%m-%d %H:%M:%S" if day or time.time() - seconds > 43200 else "%H:%M:%S"
    return f"{time.strftime(form, time.localtime(seconds))}.{int(seconds % 1 * 1000):03d}"


def shorten(text: str, width: int = _WIDE) -> str:
    """Make it printable, and cut it with an ellipsis."""
    text = printable(text)
    return text if len(text) <= width else f"{text[: width - 1]}…"


def list_row(row: Row) -> tuple[object, ...]:
    """Return the cells of LIST_HEAD."""
    oldest = row["oldest"]
    what = shorten(oldest["command"]) if oldest else keepers(row["kept_by"])
    who = (oldest["pid"], user(oldest["uid"])) if oldest else (None, None)
    return row["kind"], row["inum"], row["id"], row["processes"], *who, cpu(row["usage"]), rss(row["usage"]), what


def keepers(kept: Mapping[str, Any] | None) -> str:
    """Say what beside processes keeps a namespace; empty if nothing was found."""
    if kept is None:
        return ""
    words = [f"mount {printable(path)}" for path in kept["mounts"]]
    words += [f"descriptor {each['fd']} of {printable(each['comm'])}({each['pid']})" for each in kept["descriptors"]]
    words += [f"next child of {pid}" for pid in kept["for_children_of"]]
    words += kept["namespaces"]
    more = len(words) - 4
    return ", ".join(words[:4]) + (f" and {more} more" if more > 0 else "")


def grow(rows: Mapping[tuple[str, int], Row]) -> list[Row]:
    """Return the roots of the tree; each row's `below` has what it owns, and a pid namespace's its children of one owner."""
    roots: list[Row] = []
    for row in rows.values():
        row["below"] = []
    for key, row in rows.items():
        owner, parent = ((each["kind"], each["inum"]) if each else None for each in (row["owner"], row["parent"]))
        if row["kind"] == "pid" and parent in rows and parent is not None and rows[parent]["owner"] == row["owner"]:
            above: tuple[str, int] | None = parent
        else:
            above = owner
        (rows[above]["below"] if above in rows and above is not None and above != key else roots).append(row)
    return roots


def tree_label(row: Row) -> str:
    """Return what the tree shows of a namespace."""
    count = row["processes"]
    parts = [name_of(row), "" if count is None else f"{count} process{'es' * (count != 1)}"]
    if row["oldest"]:
        parts += [f"{user(row['oldest']['uid'])}: {shorten(row['oldest']['command'], 40)} ({row['oldest']['pid']})"]
    elif kept := keepers(row["kept_by"]):
        parts += [f"kept by {kept}"]
    if row["usage"]:
        parts += [f"cpu {cpu(row['usage'])}"]
    return "  ".join(filter(None, parts))


def draw(nodes: Sequence[Row], indent: str | None = None) -> Iterator[tuple[str, Row]]:
    """Yield each node with what stands before it in a drawn tree; children are in `below`."""
    for at, node in enumerate(nodes):
        last = at == len(nodes) - 1
        lead, deeper = ("", "") if indent is None else (indent + ("└─ " if last else "├─ "), indent + ("   " if last else "│  "))
        yield lead, node
        yield from draw(node["below"], deeper)


def show(document: Mapping[str, Any]) -> None:
    """Print the answer of `ns show`."""
    row, record, processes = document["namespace"], document["history"], document["processes"]
    if row is None:
        history(record)
        return
    click.echo(f"{name_of(row)}  id {row['id']}")
    for word in ("owner", "parent"):
        if row[word]:
            _line(word, name_of(row[word]))
    _line("processes", str(row["processes"]))
    if row["usage"]:
        _line("used", f"cpu {cpu(row['usage'])}, rss {rss(row['usage']) or 'unknown'}; since the agent's programs were loaded")
    if record:
        _past(record)
    if kept := keepers(row["kept_by"]):
        _line("kept by", f"{kept}{'' if row['processes'] else '; no process is in it'}")
    if not processes:
        return
    by_pid = {each["pid"]: each | {"below": []} for each in processes}
    roots: list[Row] = []
    for each in by_pid.values():
        (by_pid[each["ppid"]]["below"] if each["ppid"] in by_pid else roots).append(each)
    click.echo(f"\n{'PID':>7}  {'INSIDE':>7}  COMMAND")
    for lead, each in draw(roots):
        click.echo(f"{each['pid']:>7}  {each['inner_pid']:>7}  {lead}{shorten(each['command'])}")


def _line(word: str, text: str) -> None:
    click.echo(f"  {word:<10}{text}")


def call_text(entry: Mapping[str, Any]) -> str:
    """Return who made a call, and whose descendant that was: ``nsenter(42) ← sh(41)``."""
    return f"{printable(entry['comm'])}({entry['pid']})" + "".join(
        f" ← {printable(each['comm'])}({each['pid']})" for each in entry["ancestors"]
    )


def _past(record: Mapping[str, Any]) -> None:
    made, left, ended = record["created"], record["left"], record["ended"]
    if made:
        _line("created", f"{clock(made['time'], day=True)} by {made['syscall']} of {call_text(made)}")
        if made["argv"]:
            _line("", f"argv {shorten(' '.join(made['argv']), 100)}")
        _line("", f"from {name_of(made['from'])}")
    elif record["existed"]:
        _line("created", f"before the agent, which began to watch {clock(record['heard'], day=True)}")
    else:
        _line("created", f"unseen, found {clock(record['heard'], day=True)}: the event was lost, or no traced call made it")
    for how, count in (("joined", record["joins"]), ("born", record["born"])):
        entries = [entry for entry in record["entered"] if entry["how"] == how]
        if count:
            _line(how, f"{count} time{'s' * (count != 1)}" + (f", the last {len(entries)}:" if count > len(entries) else ":"))
        for entry in entries:
            who = f"{entry['child_pid']} of " if how == "born" else ""
            _line("", f"{clock(entry['time'])} {who}{call_text(entry)} from {name_of(entry['from'])}")
    if left and record["state"] != "live":
        _line("left", f"{clock(left['time'])} {call_text(left)} to {name_of(left['to'])}")
    if record["members"]:
        found = [f"{each['pid']} {shorten(' '.join(each['argv']) or '[' + each['comm'] + ']', 40)}" for each in record["members"]]
        _line("members", ", ".join(found))
    if ended:
        _line("ended", f"{_span(ended)}: {_HOW[ended['how']]}")


_HOW: Final = {"exit": "its last process exited", "left": "its last process went elsewhere", "": "no process is in it any more"}


def _span(ended: Mapping[str, Any]) -> str:
    if ended["after"] is None:
        return f"before {clock(ended['by'], day=True)}"
    if ended["after"] == ended["by"]:
        return str(clock(ended["by"], day=True))
    return f"between {clock(ended['after'], day=True)} and {clock(ended['by'])}"


def history(record: Mapping[str, Any]) -> None:
    """Print the past of one namespace."""
    click.echo(f"{name_of(record)}  id {record['id']}  {record['state']}")
    _past(record)
    kept = record.get("kept_by")
    if kept is None:
        _line("kept by", "nothing that was found" if record["state"] == "ended" else "nothing that /proc shows")
    else:
        count = kept["processes"]
        words = [f"{count} process{'es' * (count != 1)}"] * bool(count) + [keepers(kept)] * bool(keepers(kept))
        _line("kept by", ", ".join(words) or "nothing that was found")


def history_row(record: Mapping[str, Any]) -> tuple[object, ...]:
    """Return the cells of HISTORY_HEAD."""
    made, ended = record["created"], record["ended"]
    members = ", ".join(f"{printable(each['comm'])}({each['pid']})" for each in record["members"][:3])
    created = clock(made["time"]) if made else "before" if record["existed"] else None
    return (
        record["kind"], record["inum"], record["id"], record["state"], created,
        made and f"{printable(made['comm'])}({made['pid']})", made and name_of(made["from"]), record["joins"],
        ended and ("" if ended["after"] == ended["by"] else "≤ ") + str(clock(ended["by"])), members,
    )  # fmt: skip
