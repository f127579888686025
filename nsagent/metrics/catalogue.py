"""All families, one row each. HELP and TYPE, docs/metrics.md and later the dashboards' checks come from here.

`python -m nsagent.metrics.catalogue > docs/metrics.md` writes the reference; a test keeps the file equal to the table.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Final

from nsagent.metrics import agent, cgroup, info, namespace, syscalls, workload
from nsagent.metrics.family import COMPAT, SCOPE_LABELS, Family, Scope

CHAPTERS: Final[tuple[tuple[str, str, tuple[Family, ...]], ...]] = (
    (
        "Cgroups",
        "`cgroup` is the path below the root of its hierarchy; the root is `/`. On a hybrid host each family comes from the "
        "hierarchy that has its controller. Counters include descendants, living and dead, where their "
        "help does not say otherwise.",
        (*cgroup.FAMILIES, *info.FAMILIES),
    ),
    (
        "Namespaces",
        "`kind` is cgroup, ipc, mnt, net, pid, time, user or uts; `inum` is the inode number that `ls -l /proc/PID/ns` shows; "
        "`id` tells apart namespaces that had the same number one after the other (the kernel reuses numbers at once). A "
        "process counts in its own namespace of each kind and not in that one's ancestors, so the series of one kind add up. "
        "Counters mean: since the BPF programs were loaded; they survive a restart of the agent.",
        namespace.FAMILIES,
    ),
    ("Traced calls", "Counted in the kernel, whoever made the call; absent where nothing is traced.", syscalls.FAMILIES),
    (
        "Jobs",
        "What `nsagent run` launched with the state directory of the agent. A job is counted once, when it has ended, also over "
        "restarts of the agent; one of 5 ms is in the next scrape. `workload` is its name: `--name`, else that of the command.",
        workload.FAMILIES,
    ),
    (
        "The agent",
        "Beside these it exports `process_*` and `python_info` of its own process, as all client libraries do.",
        agent.FAMILIES,
    ),
)

FAMILIES: Final[tuple[Family, ...]] = tuple(family for _, _, families in CHAPTERS for family in families)


def families(compat: Iterable[str] = ()) -> tuple[Family, ...]:
    """Return what an agent exports that was asked for some of COMPAT too."""
    if "cadvisor" not in compat:
        return FAMILIES
    from nsagent.metrics import cadvisor  # only who asked for it pays for it

    return (*FAMILIES, *cadvisor.FAMILIES)


_HEAD: Final = """\
# Metrics

<!-- Written by `python -m nsagent.metrics.catalogue`; do not edit. -->

Every family that `nsagent agent` exports. What the kernel does not report is absent, never 0; a limit that is not set is absent
too. Times are seconds, sizes bytes. "exact" is what the kernel itself counts, to the nanosecond or byte; what comes from
BPF becomes approximate where BPF is not to be had and /proc is sampled instead: `nsagent_mode_info` and
`nsagent_feature_info` say what holds on a node, and why.

A cgroup or namespace that has ended keeps the last values of its counters (and peaks) for `--retain`, so that the next scrape
sees them. One that is made again under the same labels begins at 0, an ordinary counter reset.

Names come from the kernel and can hold any byte. A byte that is not valid UTF-8, and a control character, is written as a
backslash and three octal digits, as in /proc/mounts; a backslash before three octal digits is written `\\134`. So two names
are never one label.
"""
_COMPAT: Final = (
    "Only with `--compat cadvisor`, beside the others: the same sample under cAdvisor's names and labels (docs/cadvisor.md). "
    "`id` is the cgroup's path. `name`, `image`, `container`, `pod` and `namespace` are empty where the cgroup is not a "
    "container's or pod's own, or where its runtime says nothing."
)


def _exactness(family: Family) -> str:
    if family.scope in (Scope.NAMESPACE, Scope.CGROUP_USAGE) or family.part == "usage":
        return "exact with BPF; approximate from /proc"
    return "exact"


def markdown() -> str:
    """Return docs/metrics.md."""
    lines = [_HEAD]
    compat = ("cAdvisor's names", _COMPAT, families(COMPAT)[len(FAMILIES) :])
    for title, text, rows in (*CHAPTERS, compat):
        lines += [f"## {title}\n", f"{text}\n"]
        for family in rows:
            labels = ", ".join(f"`{label}`" for label in (*SCOPE_LABELS[family.scope], *family.labels)) or "none"
            values = [value for values, _ in family.parts for value in values]
            shown = f" ({', '.join(values)})" if values else ""
            lines += [
                f"### {family.name}\n",
                f"{family.help}\n",
                f"- type: {family.type}; labels: {labels}{shown}",
                f"- source: {family.source}",
                f"- {_exactness(family)}" + (f"; collector {family.collector}" if family.collector else "") + "\n",
            ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.stdout.write(markdown())
