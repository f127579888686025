"""Who used what: one `NodeUsage` a sample, made of contexts, grouped by namespace or by cgroup.

The kernel settles each task's own counters into the row of its context (bpf/common.h); reading is one pass of the task
iterator and one copy of the rows. Without BPF, `nsagent.procfs` samples /proc into the same types, approximately.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from nsagent.kernel import abi
from nsagent.kernel.attach import Attached
from nsagent.namespaces import KINDS, NamespaceId, NamespaceKind

# From the end of a task's last pass to its free; FACTS: 23 to 47 ms, once 1 s.
_QUIET_S = 10.0
_QUIET_PASSES = 3

K = TypeVar("K", bound=Hashable)


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
    oom_kills_memcg: int = 0
    oom_kills_unknown: int = 0
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


NOTHING: Final = Usage()


def total(rows: Sequence[Usage]) -> Usage:
    """Sum usages field by field; of one, that one."""
    if len(rows) == 1:
        return rows[0]
    return Usage(*map(sum, zip(*rows, strict=True))) if rows else NOTHING


@dataclass(frozen=True, slots=True)
class NodeUsage:
    """One reading. `namespaces`: every namespace that holds, or since the load held, a task; `cgroups`: by the id of the
    accounting cgroup (the cpuacct hierarchy's on v1 and hybrid, else the v2 tree's), flat, not summed up the tree.

    `namespaces_ended` has the sum of what namespaces that are gone for good had used, by kind. `exact` is False where /proc
    was sampled; then `readable` has how many processes could be read, and of how many. `missing` names fields of Usage that
    this source cannot report.
    """

    namespaces: dict[NamespaceId, Usage]
    cgroups: dict[int, Usage]
    namespaces_ended: dict[NamespaceKind, Usage]
    exact: bool
    missing: frozenset[str]
    contexts: int
    readable: tuple[int, int] | None = None


class UsageSource(Protocol):
    """Where usage comes from: the kernel's rows, or /proc."""

    def read(self) -> NodeUsage:
        """Settle every task and return what all of them have used. One at a time; the caller holds the sample lock."""
        ...

    def close(self) -> None: ...


def _same(cgroup: int) -> int:
    return cgroup


class KernelUsage:
    """Exact usage, from the rows the BPF programs keep. Implements UsageSource.

    A row whose namespaces or cgroup are gone for `retain_s`, or for 10 s while three quarters of the rows are taken, is folded:
    what it holds goes, in the kernel, to the row that has 0 in their place, which is how `NodeUsage.namespaces_ended` comes
    about, and the row is free again. `successor` tells for the id of an accounting cgroup the id that inherits its usage: itself
    while it exists, else its nearest living ancestor's.
    """

    def __init__(
        self,
        attached: Attached,
        *,
        retain_s: float = 120.0,
        successor: Callable[[int], int] = _same,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._attached = attached
        self.retain_s = retain_s
        self._successor = successor
        self._clock = clock
        self._ended: dict[tuple[int, int], float] = {}  # (place in the key, id): since when no task is in it
        self._grouping = Grouping([])
        self._dropped: dict[int, tuple[float, int]] = {}  # row: when and in which pass its key was removed

    def read(self) -> NodeUsage:
        """Settle every task and group the rows. Raises LoadError where the kernel breaks the pass off."""
        self._attached.settle()
        epoch, counters = self._attached.epoch, len(abi.COUNTERS) + len(abi.EVENTS)
        first, stamp = abi.KEY_WORDS, abi.KEY_WORDS + counters
        no_gauges = (0,) * len(abi.GAUGES)
        keys, usages, live, quiet = [], [], [], []
        for index, words in enumerate(self._attached.rows()):
            if words[stamp] == epoch:
                live.append(words[:first])
                keys.append((words[0], words[1:first]))
                usages.append(Usage._make(words[first:stamp] + words[stamp + 1 :]))
            elif words[0] or any(words[first:stamp]):
                if index and words[0]:
                    quiet.append((index, words[:first]))
                keys.append((words[0], words[1:first]))
                usages.append(Usage._make(words[first:stamp] + no_gauges))
        self._retire(live, quiet)
        if keys != self._grouping.keys:
            self._grouping = Grouping(keys)
        namespaces, cgroups, ended = self._grouping.sums(usages)
        return NodeUsage(namespaces, cgroups, ended, True, self._attached.missing_fields, len(usages))

    def _retire(self, live: list[tuple[int, ...]], quiet: list[tuple[int, tuple[int, ...]]]) -> None:
        """Fold the rows nothing is left of, in two steps: drop the key, and when nobody can remember the row any more, fold.

        Who found the row before its key went may still charge it: a task on its way between exit and free, for some ticks.
        """
        now = self._clock()
        alive = [set(column) for column in zip(*live, strict=True)] or [set()] * abi.KEY_WORDS
        gone = {(place, packed) for _, key in quiet for place, packed in enumerate(key) if packed and packed not in alive[place]}
        self._ended = {member: self._ended.get(member, now) for member in gone}
        full = len(live) + len(quiet) > 0.75 * self._attached.capacity
        retain_s = min(_QUIET_S, self.retain_s) if full else self.retain_s
        over = {member for member, since in self._ended.items() if now - since >= retain_s}
        candidates = {}
        for index, key in quiet:
            target = tuple(0 if place and (place, packed) in over else packed for place, packed in enumerate(key))
            if (0, key[0]) in over:
                target = (self._successor(key[0]), *target[1:])
            if target != key:
                candidates[index] = (key, target)
        self._dropped = {index: when for index, when in self._dropped.items() if index in candidates}
        for index, (key, target) in candidates.items():
            when = self._dropped.get(index)
            if when is None:
                self._attached.drop_key(index, key)
                self._dropped[index] = (now, self._attached.epoch)
            elif now - when[0] >= min(_QUIET_S, self.retain_s) and self._attached.epoch - when[1] >= _QUIET_PASSES:
                self._attached.fold(index, target)

    def close(self) -> None:
        """Nothing of its own to close: the programs belong to who attached them."""


class Grouping:
    """Which rows add up to which namespace and cgroup. It depends on the rows' keys alone, and those seldom change."""

    def __init__(self, keys: Sequence[tuple[int, Sequence[int]]]) -> None:
        """`keys` has (cgroup id, packed namespaces) of each row."""
        same: dict[Sequence[int], Sequence[int]] = {}  # most processes are in the same namespaces
        self.keys = [(cgroup, same.setdefault(packed, packed)) for cgroup, packed in keys]
        cgroups: dict[int, list[int]] = {}
        blocks: dict[Sequence[int], list[int]] = {}
        for row, (cgroup, packed) in enumerate(self.keys):
            cgroups.setdefault(cgroup, []).append(row)
            blocks.setdefault(packed, []).append(row)
        self._cgroups = _plan(cgroups)
        self._blocks = _plan(blocks)
        ended: dict[NamespaceKind, list[int]] = {}
        found: dict[NamespaceId, list[int]] = {}
        for place, kind in enumerate(KINDS):
            members: dict[int, list[int]] = {}
            for block, packed in enumerate(blocks):
                members.setdefault(packed[place], []).append(block)
            ended[kind] = members.pop(0, [])
            found.update((NamespaceId(kind, packed & 0xFFFFFFFF, packed >> 32), each) for packed, each in members.items())
        self._ended = _plan(ended)
        self._namespaces = _plan(found)

    def sums(self, rows: Sequence[Usage]) -> tuple[dict[NamespaceId, Usage], dict[int, Usage], dict[NamespaceKind, Usage]]:
        """Sum the usages of those rows by namespace, by cgroup, and by kind for what is packed as 0: ended.

        Rows of the same eight namespaces are summed first, once for all kinds: a host's are a thousand.
        """
        made: dict[tuple[int, ...], Usage] = {}
        blocks = list(_follow(self._blocks, rows, {}).values())
        return _follow(self._namespaces, blocks, made), _follow(self._cgroups, rows, {}), _follow(self._ended, blocks, made)


class _Plan(NamedTuple, Generic[K]):
    """What is to be summed: where it is one row, where several. The order of `keys` is that of the result."""

    keys: tuple[K, ...]
    single: dict[K, int]
    several: dict[K, tuple[int, ...]]


def _plan(members: Mapping[K, Sequence[int]]) -> _Plan[K]:
    single = {key: rows[0] for key, rows in members.items() if len(rows) == 1}
    return _Plan(tuple(members), single, {key: tuple(rows) for key, rows in members.items() if len(rows) != 1})


def _follow(plan: _Plan[K], rows: Sequence[Usage], made: dict[tuple[int, ...], Usage]) -> dict[K, Usage]:
    """Sum. `made` has the sums that there are: namespaces of the same members are one sum."""
    sums = dict.fromkeys(plan.keys, NOTHING)
    sums.update(zip(plan.single, map(rows.__getitem__, plan.single.values()), strict=True))
    for key, members in plan.several.items():
        if members not in made:
            made[members] = total([rows[row] for row in members])
        sums[key] = made[members]
    return sums
