"""Who used what: one `NodeUsage` a sample, made of contexts, grouped by namespace or by cgroup.

The kernel settles each task's own counters into the row of its context (bpf/common.h); reading is one pass of the task
iterator and one copy of the rows. Without BPF, `nsagent.procfs` samples /proc into the same types, approximately.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from nsagent.kernel import abi
from nsagent.kernel.attach import Attached
from nsagent.namespaces import KINDS, NamespaceId, NamespaceKind


class Usage(NamedTuple):
    """What tasks have used. Counters since the programs were loaded, in ns, counts and bytes; gauges as of this pass.

    The order is that of `nsagent.kernel.abi`: COUNTERS, EVENTS, GAUGES. The fields a source cannot report are named in
    `NodeUsage.missing`; their value here is 0 and must not be shown.
    """

    cpu_ns: int = 0
    user_ns: int = 0
    system_ns: int = 0
    run_queue_ns: int = 0
    io_delay_ns: int = 0
    voluntary_switches: int = 0
    involuntary_switches: int = 0
    minor_faults: int = 0
    major_faults: int = 0
    read_chars: int = 0
    write_chars: int = 0
    read_syscalls: int = 0
    write_syscalls: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    cancelled_write_bytes: int = 0
    processes_created: int = 0
    processes_exited: int = 0
    threads_created: int = 0
    threads_exited: int = 0
    threads_freed: int = 0
    threads: int = 0
    processes: int = 0
    running: int = 0
    sleeping: int = 0
    disk_sleep: int = 0
    stopped: int = 0
    zombie: int = 0
    idle: int = 0
    rss_anon_bytes: int = 0
    rss_file_bytes: int = 0
    rss_shmem_bytes: int = 0
    swap_bytes: int = 0
    pagetables_bytes: int = 0


def total(rows: Sequence[Usage]) -> Usage:
    """Sum usages field by field; of one, that one."""
    if len(rows) == 1:
        return rows[0]
    return Usage(*map(sum, zip(*rows, strict=True))) if rows else Usage()


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """One reading. `namespaces`: every namespace that holds, or since the load held, a task; `cgroups`: by the id of the
    accounting cgroup (the cpuacct hierarchy's on v1 and hybrid, else the v2 tree's), flat, not summed up the tree.

    `namespaces_ended` has the sum of what namespaces that are gone for good had used, by kind. `exact` is False where
    /proc was sampled. `missing` names fields of Usage that this source cannot report.
    """

    namespaces: dict[NamespaceId, Usage]
    cgroups: dict[int, Usage]
    namespaces_ended: dict[NamespaceKind, Usage]
    exact: bool
    missing: frozenset[str]
    contexts: int


class UsageSource(Protocol):
    """Where usage comes from: the kernel's rows, or /proc."""

    def read(self) -> NodeUsage:
        """Settle every task and return what all of them have used. One at a time; the caller holds the sample lock."""
        ...

    def close(self) -> None: ...


class KernelUsage:
    """Exact usage, from the rows the BPF programs keep. Implements UsageSource."""

    def __init__(self, attached: Attached) -> None:
        self._attached = attached

    def read(self) -> NodeUsage:
        """Settle every task and group the rows. Raises LoadError where the kernel breaks the pass off."""
        self._attached.settle()
        epoch, counters = self._attached.epoch, len(abi.COUNTERS) + len(abi.EVENTS)
        first, stamp = abi.KEY_WORDS, abi.KEY_WORDS + counters
        no_gauges = (0,) * len(abi.GAUGES)
        rows = []
        for words in self._attached.rows():
            gauges = words[stamp + 1 :] if words[stamp] == epoch else no_gauges
            if words[0] or any(words[first:stamp]):
                rows.append((words[0], words[1:first], Usage._make(words[first:stamp] + gauges)))
        namespaces, cgroups, ended = group(rows)
        return NodeUsage(namespaces, cgroups, ended, True, self._attached.missing_fields, len(rows))

    def close(self) -> None:
        """Nothing of its own to close: the programs belong to who attached them."""


def group(
    rows: Iterable[tuple[int, Sequence[int], Usage]],
) -> tuple[dict[NamespaceId, Usage], dict[int, Usage], dict[NamespaceKind, Usage]]:
    """Group (cgroup id, packed namespaces, usage) by namespace, by cgroup, and by kind for what is packed as 0: ended."""
    by_kind: list[dict[int, list[Usage]]] = [{} for _ in KINDS]
    by_cgroup: dict[int, list[Usage]] = {}
    for cgroup, namespaces, usage in rows:
        by_cgroup.setdefault(cgroup, []).append(usage)
        for members, packed in zip(by_kind, namespaces, strict=True):
            members.setdefault(packed, []).append(usage)
    ended = {kind: total(members.pop(0, [])) for kind, members in zip(KINDS, by_kind, strict=True)}
    flat = {
        NamespaceId(kind, packed & 0xFFFFFFFF, packed >> 32): total(usages)
        for kind, members in zip(KINDS, by_kind, strict=True)
        for packed, usages in members.items()
    }
    return flat, {cgroup: total(usages) for cgroup, usages in by_cgroup.items()}, ended
