"""The options of `nsagent run` that say which namespaces CMD is in: new ones, those of others, ours."""

from __future__ import annotations

from typing import Any, Final

from nsagent import namespaces
from nsagent.cli.option import Option
from nsagent.errors import UsageError
from nsagent.launch import joining, quantities
from nsagent.launch.spec import DEFAULT_KINDS
from nsagent.namespaces import NamespaceKind

OPTIONS: Final = (
    Option(
        "--isolate",
        metavar="LIST",
        show_default=",".join(sorted(DEFAULT_KINDS)),
        help=f"New namespaces, of {' '.join(namespaces.KINDS)}; or all, or none.",
    ),
    Option("--join", metavar="KIND:PID|PATH", multiple=True, help="Join a namespace; net also by name; may be repeated."),
    Option("--net", metavar="host|none|join:...", help="Network: ours, none but a loopback, or join:PID, PATH or NAME."),
    Option("--clock-offset", metavar="CLOCK:TIME", multiple=True, help="Set boottime or monotonic ahead (-TIME: back)."),
)


def make_namespaces(words: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a RunSpec that say it. What is joined, or ours by name, is not made anew by default.

    Raises UsageError, of kinds named twice too.
    """
    named = None if words["isolate"] is None else namespaces.parse_kinds(words["isolate"])
    joins = [joining.parse_join(text) for text in words["join"]]
    ours, new = frozenset[NamespaceKind](), frozenset[NamespaceKind]()
    net = words["net"]
    if net is not None and net.startswith("join:"):
        joins.append(joining.parse_join(f"net:{net.removeprefix('join:')}", "--net"))
    elif net == "host":
        ours = frozenset({NamespaceKind.NET})
    elif net == "none":
        new = frozenset({NamespaceKind.NET})
    elif net is not None:
        raise UsageError(f"--net {net!r} is no network", hint="host, none, join:PID, join:PATH or join:NAME")
    if named is not None and named & ours:
        raise UsageError("--net host contradicts --isolate net", hint="leave net out of --isolate, or --net out")
    isolate = (DEFAULT_KINDS - {each.kind for each in joins} if named is None else named) | new
    return {
        "isolate": isolate,
        "join": tuple(joins),
        "clock_offsets": tuple(map(quantities.parse_clock_offset, words["clock_offset"])),
    }
