"""Usage from /proc, where BPF is not to be had: the same types as the kernel's rows, sampled and therefore approximate.

Each pass does for every process what the kernel side does in settle(): the growth of its counters goes to the context it was
last seen in; then the context is read again and remembered. So totals never fall when processes end. What a process uses
after the last pass that saw it is lost, and one that lives between two passes is never seen: births and exits cannot be
counted from here at all. CPU time has the resolution of proc(5), one clock tick.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from nsagent import namespaces, procfs
from nsagent.errors import AccessError, NsagentError, VanishedError
from nsagent.kernel.abi import COUNTERS, EVENTS, GAUGES
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.usage import NodeUsage, Usage

_GAUGE: Final = {name: at for at, name in enumerate(GAUGES)}
_NO_EVENTS: Final = (0,) * len(EVENTS)
_MEMORY: Final = ("rss_anon_bytes", "rss_file_bytes", "rss_shmem_bytes", "swap_bytes", "pagetables_bytes")
_OF_TASKS: Final = ("run_queue_ns", "io_delay_ns", "voluntary_switches", "involuntary_switches")
_TASK_AT: Final = [COUNTERS.index(name) for name in _OF_TASKS]

Key = NamespaceId | int  # a namespace, or the id of a cgroup
Counters = list[int]  # in the order of COUNTERS


class _Task:
    """What is remembered of a process: its context, its counters at the last pass, and those that only threads have."""

    __slots__ = ("context", "counters", "threads")

    def __init__(self, context: frozenset[Key], counters: Counters, threads: dict[int, tuple[int, ...]]) -> None:
        self.context = context
        self.counters = counters
        self.threads = threads


class ProcfsUsage:
    """A usage.UsageSource without BPF. Counters mean since it was made: processes alive then are baselined.

    `readable` and `processes` tell after each read how many processes could be read in full, and of how many: an ordinary
    user reads only its own, and what the others use is in no total.
    """

    def __init__(
        self,
        root: str = "/proc",
        *,
        controller: str | None = None,
        directory: Callable[[str], str | None] | None = None,
        retain_s: float = 300.0,
        identify: Callable[[str], NamespaceId] = namespaces.identify,
    ) -> None:
        """Baseline every process of the /proc at `root`.

        `controller` and `directory` are cgroups.layout's accounting hierarchy: what it is known by in /proc/PID/cgroup (None:
        the v2 tree), and where a cgroup's path is (None: no cgroup is reported). A namespace or cgroup that is gone keeps its row
        for `retain_s` seconds; then a namespace's totals move to `namespaces_ended`.
        """
        self.readable = self.processes = 0
        self._root = root
        self._controller = controller
        self._directory = directory
        self.retain_s = retain_s
        self._identify = identify
        self._tasks: dict[tuple[int, int], _Task] = {}
        self._totals: dict[Key, Counters] = {}
        self._gauges: dict[Key, Counters] = {}
        self._ended: dict[NamespaceKind, Counters] = {}
        self._empty_since: dict[Key, float] = {}
        self._cgroup_paths: dict[int, str] = {}
        self._names: dict[tuple[NamespaceKind, int], NamespaceId] = {}
        self._cgroups: dict[str, int] = {}
        self._missing = self._find_missing()
        self._loaded_ticks = round(procfs.read_uptime(root) * procfs.TICKS_PER_SECOND)
        self._pass(loading=True)

    def _find_missing(self) -> frozenset[str]:
        missing = {*EVENTS, *(() if self._has_run_queue() else ("run_queue_ns",))}
        if procfs.read_sysctl("kernel/task_delayacct", self._root) != "1":
            missing.add("io_delay_ns")
        return frozenset(missing)

    def _has_run_queue(self) -> bool:
        """A kernel without sched_info writes zeros or no file; whoever reads this has run."""
        try:
            return procfs.read_schedstat("self", self._root)[0] > 0
        except NsagentError:
            return False

    def read(self) -> NodeUsage:
        """Settle every process that can be read, and return the totals. See usage.UsageSource."""
        self._pass(loading=False)
        rows = {key: Usage(*totals, *_NO_EVENTS, *self._gauges.get(key, ())) for key, totals in self._totals.items()}
        return NodeUsage(
            namespaces={key: row for key, row in rows.items() if isinstance(key, NamespaceId)},
            cgroups={key: row for key, row in rows.items() if isinstance(key, int)},
            namespaces_ended={kind: Usage(*totals) for kind, totals in self._ended.items()},
            exact=False,
            missing=self._missing,
            contexts=len({task.context for task in self._tasks.values()}),
            readable=(self.readable, self.processes),
        )

    def close(self) -> None:
        """Forget everything."""
        self._tasks.clear()

    def _pass(self, *, loading: bool) -> None:
        self._gauges, self._names, self._cgroups = {}, {}, {}
        self.readable = self.processes = 0
        tasks: dict[tuple[int, int], _Task] = {}
        for pid in namespaces.walk_pids(self._root):
            try:
                stat = procfs.read_stat(pid, self._root)
            except VanishedError:
                continue
            except AccessError:  # hidepid
                self.processes += 1
                continue
            key = (pid, stat.start_ticks)
            known = self._tasks.get(key)
            try:
                tasks[key] = self._settle(pid, stat, known, born=not loading and stat.start_ticks >= self._loaded_ticks)
                self.readable += 1
            except VanishedError:
                continue
            except AccessError:
                if known is not None:
                    tasks[key] = known
            self.processes += 1
        self._tasks = tasks
        self._retire(procfs.read_uptime(self._root))

    def _settle(self, pid: int, stat: procfs.Stat, known: _Task | None, *, born: bool) -> _Task:
        """The delta goes to the remembered context; then the context is read again and remembered."""
        status, io = procfs.read_status(pid, self._root), procfs.read_io(pid, self._root)
        threads, states = self._read_threads(pid, stat, status)
        context = self._read_context(pid, known)
        user, system = stat.user_ticks * procfs.NS_PER_TICK, stat.system_ticks * procfs.NS_PER_TICK
        counters = [user + system, user, system, 0, 0, 0, 0, stat.minor_faults, stat.major_faults, *io]
        if known is None:
            before, tasks = ([0] * len(COUNTERS), {}) if born else (counters, threads)
            known = _Task(context, before, tasks)
        delta = [max(0, now - last) for now, last in zip(counters, known.counters, strict=True)]
        for tid, values in threads.items():
            # a thread not seen before began at zero; one whose counters fell is another one under that tid
            last = known.threads.get(tid, (0,) * len(values))
            for at, now, old in zip(_TASK_AT, values, last, strict=True):
                delta[at] += now - old if now >= old else now
        for key in known.context:
            totals = self._totals.setdefault(key, [0] * len(COUNTERS))
            totals[:] = map(sum, zip(totals, delta, strict=True))
        known.context, known.counters, known.threads = context, counters, threads
        self._count(context, status, states)
        return known

    def _read_threads(self, pid: int, stat: procfs.Stat, status: procfs.Status) -> tuple[dict[int, tuple[int, ...]], list[str]]:
        """Return _OF_TASKS of each thread, and the state letters."""
        counters: dict[int, tuple[int, ...]] = {}
        states = []
        wants_queue = "run_queue_ns" not in self._missing
        for tid in procfs.read_threads(pid, self._root) if stat.threads > 1 else (pid,):
            try:
                if stat.threads > 1:
                    stat = procfs.read_stat(pid, self._root, tid=tid)
                    status = procfs.read_status(pid, self._root, tid=tid)
                queued = procfs.read_schedstat(pid, self._root, tid=tid)[1] if wants_queue else 0
            except VanishedError:
                continue  # the thread; if it was the process, the next file will say so
            switches = (status.voluntary_switches, status.involuntary_switches)
            counters[tid] = (queued, stat.io_delay_ticks * procfs.NS_PER_TICK, *switches)
            states.append(stat.state)
        return counters, states

    def _read_context(self, pid: int, known: _Task | None) -> frozenset[Key]:
        inums = namespaces.read_inums(pid, self._root)
        keys: set[Key] = {self._name(pid, kind, inum) for kind, inum in inums.items()}
        if NamespaceKind.MNT not in inums and known is not None:  # a zombie has left all but pid and user
            return known.context
        cgroup = self._cgroup_id(procfs.read_cgroup(pid, self._root))
        if cgroup is not None:
            keys.add(cgroup)
        return frozenset(keys)

    def _name(self, pid: int, kind: NamespaceKind, inum: int) -> NamespaceId:
        """One identify a namespace and pass: it costs an open, and inums are reused between passes."""
        name = self._names.get((kind, inum))
        if name is None:
            name = self._identify(f"{self._root}/{pid}/ns/{kind}")
            self._names[kind, name.inum] = name
        return name

    def _cgroup_id(self, memberships: tuple[procfs.Membership, ...]) -> int | None:
        """Return the kernfs id (the directory's inode number); None where it cannot be told."""
        for hierarchy, controllers, path in memberships:
            if self._controller in controllers if self._controller else hierarchy == 0:
                if self._directory is None or path.startswith("/.."):
                    return None
                if path not in self._cgroups:
                    place = self._directory(path)
                    try:
                        self._cgroups[path] = os.stat(place or "").st_ino
                    except OSError:
                        return None  # removed, or outside of what is mounted
                    self._cgroup_paths[self._cgroups[path]] = place or ""
                return self._cgroups[path]
        return None

    def _count(self, context: frozenset[Key], status: procfs.Status, states: list[str]) -> None:
        for key in context:
            self._totals.setdefault(key, [0] * len(COUNTERS))
            gauges = self._gauges.setdefault(key, [0] * len(GAUGES))
            gauges[_GAUGE["processes"]] += 1
            gauges[_GAUGE["threads"]] += len(states)
            for letter in states:
                if letter in procfs.STATES:
                    gauges[_GAUGE[procfs.STATES[letter]]] += 1
            for name in _MEMORY:
                gauges[_GAUGE[name]] += getattr(status, name) or 0

    def _retire(self, now: float) -> None:
        """Drop the rows of what has been without members for long enough and is not kept alive by a pin."""
        for key in self._gauges:
            self._empty_since.pop(key, None)
        empty = self._totals.keys() - self._gauges.keys()
        due = [key for key in empty if now - self._empty_since.setdefault(key, now) >= self.retain_s]
        pinned = {(kind, inum) for kind, inum in namespaces.read_pins(self._root)} if due else set()
        for key in due:
            if isinstance(key, NamespaceId):
                if key[:2] in pinned and self._names.get((key.kind, key.inum), key) == key:
                    continue
                ended = self._ended.setdefault(key.kind, [0] * len(COUNTERS))
                ended[:] = map(sum, zip(ended, self._totals[key], strict=True))
            elif self._alive(key):
                continue
            else:
                self._cgroup_paths.pop(key, None)
            del self._totals[key], self._empty_since[key]

    def _alive(self, cgroup: int) -> bool:
        try:
            return os.stat(self._cgroup_paths[cgroup]).st_ino == cgroup
        except (OSError, KeyError):
            return False
