"""Births and ends of cgroups as the kernel tells them: when each was made, its path by id, and the last values of what ended.

A cgroup's hierarchies are removed one after the other, each with a record of its own: they are merged by path. What lived too
shortly to be read has its last values all the same; what was read has them instead of its last reading.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.stats import CgroupStats, CpuStats, MemoryStats, PidsStats
from nsagent.cgroups.tree import Cgroup
from nsagent.kernel.cgroups import CgroupRecord

OUTCOMES: Final = ("complete", "partial", "late")
_MOST: Final = 16384  # ended between two samples, and births whose path is remembered


class Ended(NamedTuple):
    """The last values of a cgroup that ended; `fresh` if it was made since the last sample: what was read is another's then."""

    fresh: bool
    cpu_ns: int | None = None
    memory_peak_bytes: int | None = None
    oom_kills: int | None = None
    pids_peak: int | None = None

    def over(self, last: CgroupStats | None) -> CgroupStats:
        """Return what was read last, if it was this cgroup, with the last values in place of those read."""
        stats = last if last is not None and not self.fresh else CgroupStats()
        if self.cpu_ns is not None:
            cpu = stats.cpu or CpuStats()  # v2 may lack what children used that ended before the programs were loaded
            stats = stats._replace(cpu=cpu._replace(usage_ns=max(self.cpu_ns, cpu.usage_ns or 0)))
        if self.memory_peak_bytes is not None:
            memory = stats.memory or MemoryStats()
            events = memory.events if self.oom_kills is None else {**memory.events, "oom_kill": self.oom_kills}
            stats = stats._replace(memory=memory._replace(peak_bytes=self.memory_peak_bytes, events=events))
        if self.pids_peak is not None:
            stats = stats._replace(pids=(stats.pids or PidsStats())._replace(peak=self.pids_peak))
        return stats


@dataclass(slots=True)
class _End:
    """What the records of one cgroup's end have said so far: the hierarchies it is gone from, by key, with its id there."""

    fresh: bool
    lived: set[str]
    gone: dict[str, int] = field(default_factory=dict)
    values: dict[str, int] = field(default_factory=dict)
    whole: bool = True


class Ends:
    """What became of cgroups between samples. Safe from any thread.

    `read` returns the records since its last call. The kernel's paths begin at the roots of the hierarchies: for a layout that
    shows less (`Layout.is_whole`) there must be no such object.
    """

    def __init__(self, layout: Layout, read: Callable[[], list[CgroupRecord]]) -> None:
        self._read = read
        self._lock = threading.Lock()
        self._hierarchies = layout.numbered()
        self._accounting = layout.accounting[1]
        cpuacct, memory, pids = layout.of("cpuacct"), layout.of("memory"), layout.of("pids")
        cpu = layout.of("cpu")
        self._cpu = cpuacct or (layout.v2 if cpu is None or cpu.version == 2 else None)
        self._feeds = {hierarchy.key for hierarchy in (self._cpu, memory, pids) if hierarchy}
        self._fields = {
            "cpu_ns": self._cpu,
            "memory_peak_bytes": memory,
            "oom_kills": memory,
            "pids_peak": pids,
        }
        self._alive: Mapping[str, Cgroup] = {}  # as of the last sample
        self._missing: set[str] = set()  # gone in the last sample, with no record yet
        self._made: dict[str, set[str]] = {}  # path: hierarchies it was made in since the last sample
        self._born: dict[int, tuple[str, int]] = {}  # accounting id: path, parent's id
        self._paths: dict[int, str] = {}
        self._created: dict[str, int] = {}
        self._ends: dict[str, _End] = {}
        self._below: dict[int, int] = {}  # v2 id: CPU time of children that ended, which its own counter lacks
        self._seen_made: set[int] = set()  # v2 ids whose children are all in _below
        self._counts = dict.fromkeys(OUTCOMES, 0)

    def drain(self) -> None:
        """Take note of what the kernel has told since."""
        with self._lock:
            for record in self._read():
                hierarchy = self._hierarchies.get(record.hierarchy)
                if hierarchy is None or record.cut or hierarchy.directory(record.path) is None:
                    continue
                (self._end if record.ended else self._make)(record, hierarchy)

    def _make(self, record: CgroupRecord, hierarchy: Hierarchy) -> None:
        path, key = record.path, hierarchy.key
        end = self._ends.get(path)
        if end is not None and key in end.gone:  # made anew: the earlier one's series go on with the new one's
            self._count(self._ends.pop(path))
            self._made.pop(path, None)
            self._created.pop(path, None)
        self._made.setdefault(path, set()).add(key)
        self._created.setdefault(path, record.time_ns)
        if hierarchy is self._accounting:
            self._born[record.cgroup] = (path, record.parent)
            self._paths[record.cgroup] = path
            if len(self._paths) > _MOST:
                del self._paths[next(iter(self._paths))]
        if hierarchy is self._cpu and hierarchy.version == 2:
            self._seen_made.add(record.cgroup)

    def _end(self, record: CgroupRecord, hierarchy: Hierarchy) -> None:
        path, key = record.path, hierarchy.key
        end = self._ends.get(path)
        if end is None:
            alive = self._alive.get(path)
            fresh = alive is None or alive.ids.get(key, record.cgroup) != record.cgroup
            end = self._ends[path] = _End(fresh, set() if fresh or alive is None else set(alive.ids))
            if len(self._ends) > _MOST:
                del self._ends[next(iter(self._ends))]
                self._counts["late"] += 1
        if end.gone.get(key) == record.cgroup:
            return  # told twice, by the programs of two versions
        end.gone[key] = record.cgroup
        for name, source in self._fields.items():
            value: int | None = getattr(record, name)
            if source is hierarchy and value is not None:
                end.values[name] = value
        if hierarchy is self._cpu:
            end.whole = record.cpu_ns is not None
            if hierarchy.version == 2 and record.cpu_ns is not None:
                end.values["cpu_ns"] = used = record.cpu_ns + self._below.pop(record.cgroup, 0)
                self._below[record.parent] = self._below.get(record.parent, 0) + used
                end.whole = record.cgroup in self._seen_made
                self._seen_made.discard(record.cgroup)

    def _count(self, end: _End) -> None:
        if relevant := self._feeds & (end.lived | end.gone.keys()):
            self._counts["complete" if end.whole and relevant <= end.gone.keys() else "partial"] += 1

    def settle(self, alive: Mapping[str, Cgroup], found: dict[str, CgroupStats]) -> dict[str, Ended]:
        """Return the last values of what ended since the last call, by path. Once a sample, after the files were read.

        `alive` is what there was when they were read, `found` what they said: a cgroup that is on its way out, gone from some
        of its hierarchies, gets the last values of those there.
        """
        self.drain()
        with self._lock:
            ended: dict[str, Ended] = {}
            for path in list(self._ends):
                end = self._ends[path]
                end.lived |= self._made.get(path, set())
                values = Ended(end.fresh, **end.values)
                if path in found:
                    found[path] = _filled(found[path], values.over(None))
                    continue
                del self._ends[path]
                self._count(end)
                if end.values:
                    ended[path] = values
            self._counts["late"] += len(self._missing - ended.keys() - found.keys())
            self._missing = self._alive.keys() - found.keys() - ended.keys() - alive.keys()
            self._alive = {path: alive[path] for path in found if path in alive}
            self._created = {path: when for path, when in self._created.items() if path in alive}
            self._made.clear()
            return ended

    def born(self) -> dict[int, tuple[str, int]]:
        """Return (path, parent's id) of the cgroups made since the last call, by id in the accounting hierarchy."""
        self.drain()
        with self._lock:
            born, self._born = self._born, {}
            return born

    def created(self) -> dict[str, int]:
        """Return when the cgroups of the last sample were made (CLOCK_REALTIME, ns), of those whose making was told."""
        with self._lock:
            return dict(self._created)

    def final_reads(self) -> dict[str, int]:
        """Return how the ends so far were: complete, partial, or late, with no record of the kernel's."""
        with self._lock:
            return dict(self._counts)

    def path_of(self, accounting_id: int) -> str | None:
        """Return the path of a cgroup that was made since the start, also of one that ended since."""
        if accounting_id not in self._paths:
            self.drain()
        return self._paths.get(accounting_id)


def _filled(stats: CgroupStats, last: CgroupStats) -> CgroupStats:
    """Return what was read, and where nothing was, the last values."""
    return stats._replace(cpu=stats.cpu or last.cpu, memory=stats.memory or last.memory, pids=stats.pids or last.pids)
