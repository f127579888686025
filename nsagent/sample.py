"""One coherent reading of the node: `Sampler.read` takes it, `NodeSample` is it, frozen.

What the kernel does not report is absent here, never 0. What ended keeps its last totals for a while, apart from what lives,
so that the next scrape sees them. A collector that fails leaves its part out and says so; the others go on.
"""

from __future__ import annotations

import json
import logging
import operator
import os
import posixpath
import threading
import time
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Generic, NamedTuple, Protocol, TypeVar

from nsagent.cgroups.ends import Ended
from nsagent.cgroups.pace import Reads
from nsagent.cgroups.selection import Selection
from nsagent.cgroups.stats import CgroupStats
from nsagent.conservation import Conservation
from nsagent.errors import NsagentError
from nsagent.events import SyscallCounts
from nsagent.history import Figures, History
from nsagent.identity import CgroupInfo, Identities, Labels
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.nsfigures import NodeFigures
from nsagent.usage import NOTHING, NodeUsage, Usage, UsageSource, total
from nsagent.workloads import Workloads

log = logging.getLogger(__name__)

_FEW: Final = 1000
GONE: Final = ("cpu_ns", "read_bytes", "write_bytes", "minor_faults", "major_faults")

T = TypeVar("T")
K = TypeVar("K", bound=Hashable)


class Outcome(NamedTuple):
    """How one collector fared."""

    success: bool
    seconds: float


class MapFigures(NamedTuple):
    """A BPF map: elements (None: not countable), room, bytes of kernel memory (None: the kernel does not say).

    `full` is how often it had no room since the load; None of a map where nobody counts that.
    """

    name: str
    entries: int | None
    max_entries: int
    memory_bytes: int | None
    full: int | None = None


class FileFigures(NamedTuple):
    """Of the files that are read: kernel memory of the descriptors kept, bytes; how often each file was too slow; how many
    cgroups there were so far whose files are not read, by reason; how long each file took to read; and how often which
    counter fell, by part and field of CgroupStats."""

    kernel_memory_bytes: int
    backoffs: Mapping[str, int]
    skipped: Mapping[str, int] = MappingProxyType({})
    reads: Mapping[str, Reads] = MappingProxyType({})
    falls: Mapping[tuple[str, str], int] = MappingProxyType({})


class Reload(NamedTuple):
    """How the last reading of the configuration was, and when the last good one was: CLOCK_REALTIME ns."""

    success: bool
    time_ns: int


class Machine(NamedTuple):
    """The hardware, as cAdvisor has it. `ids`: of this boot, the installation and the (virtual) machine, "" where not known."""

    cpus: int
    memory_bytes: int
    ids: tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Facts:
    """What does not change while the agent runs. `features`: None where available, else the reason why not."""

    build: Mapping[str, str] = field(default_factory=dict)
    mode: Mapping[str, str] = field(default_factory=dict)
    features: Mapping[str, str | None] = field(default_factory=dict)
    machine: Machine | None = None  # None: nobody asked for it


@dataclass(frozen=True, slots=True)
class NodeSample:
    """A node at one moment. cgroups are by path; `cgroup_usage` includes descendants. `missing` names fields of Usage that
    mean nothing here, `has_usage` is False where usage could not be read in this sample, `time_ns` is CLOCK_REALTIME.
    `namespaces_gone` has, by kind, what namespaces used that are in neither of the other two any more: the fields GONE.
    `cpu_error` is by what part the CPU time of all namespaces of a kind grew more than the kernel's for the node (below 0: less),
    since some earlier sample."""

    time_ns: int
    facts: Facts
    cgroups: Mapping[str, CgroupStats] = field(default_factory=dict)
    cgroups_ended: Mapping[str, CgroupStats] = field(default_factory=dict)
    cgroups_created: Mapping[str, int] = field(default_factory=dict)  # CLOCK_REALTIME ns, where it was told
    final_reads: Mapping[str, int] = field(default_factory=dict)  # by outcome
    cgroup_info: Mapping[str, CgroupInfo] = field(default_factory=dict)  # also of what ended; where more than an id is known
    cgroup_labels: Mapping[str, Labels] = field(default_factory=dict)  # of its container or pod, where some are wanted
    cgroup_usage: Mapping[str, Usage] = field(default_factory=dict)
    cgroup_usage_ended: Mapping[str, Usage] = field(default_factory=dict)
    namespaces: Mapping[NamespaceId, Usage] = field(default_factory=dict)
    namespaces_ended: Mapping[NamespaceId, Usage] = field(default_factory=dict)
    namespaces_gone: Mapping[NamespaceKind, Mapping[str, int]] = field(default_factory=dict)
    namespace_figures: NodeFigures | None = None
    cpu_error: float | None = None
    history: Figures | None = None
    has_usage: bool = False
    readable: tuple[int, int] | None = None
    missing: frozenset[str] = frozenset()
    syscalls: SyscallCounts | None = None
    findings: Mapping[str, int] = field(default_factory=dict)  # by rule
    workloads: Workloads | None = None  # None: nobody who counts jobs
    files: FileFigures | None = None
    maps: tuple[MapFigures, ...] = ()
    program_runs: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # by program: how many, and how long in all, ns
    reload: Reload | None = None  # None: nobody who reads settings anew
    collectors: Mapping[str, Outcome] = field(default_factory=dict)


class CgroupSource(Protocol):
    """The cgroups of the node and what the kernel's files say of each."""

    def read(self, selection: Selection) -> dict[str, CgroupStats]:
        """Look which cgroups there are, and read those that are selected, by path."""
        ...

    def files(self) -> FileFigures:
        """Return how the files of the last `read` fared."""
        ...

    def accounting_ids(self) -> dict[str, int]:
        """Return the ids of all cgroups, as of the last `read`, in the hierarchy whose cgroups are charged, by path."""
        ...


class CgroupEnds(Protocol):
    """What became of cgroups between samples, as the kernel tells it."""

    def ended(self) -> Mapping[str, Ended]:
        """Return the last values of what had ended by the last `CgroupSource.read`, by path, once."""
        ...

    def born(self) -> Mapping[int, tuple[str, int]]:
        """Return (path, parent's id) of what was made since the last call, by id in the accounting hierarchy."""
        ...

    def created(self) -> Mapping[str, int]:
        """Return when the cgroups there are were made, CLOCK_REALTIME ns, where that was told."""
        ...

    def final_reads(self) -> Mapping[str, int]:
        """Return how the ends were: complete, partial, late."""
        ...


class Shared(Generic[T]):
    """Makes one thing at a time. Who asks while it is being made waits, and shares the next with all who wait.

    So no caller gets what was begun before it asked, and any number of callers cost two at most.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._changed = threading.Condition()
        self._running = False
        self._begun = self._done = 0
        self._result: T | BaseException

    def get(self) -> T:
        """Return a thing made after this call began. Raises what making it raised."""
        with self._changed:
            wanted = self._begun + 1
            while self._running and self._done < wanted:
                self._changed.wait()
            if self._done < wanted:
                self._running = True
                self._begun += 1
        if self._done < wanted:
            self._run()
        with self._changed:
            result = self._result
        if isinstance(result, BaseException):
            raise result
        return result

    def _run(self) -> None:
        result: T | BaseException
        try:
            result = self._make()
        except BaseException as error:
            result = error
        with self._changed:
            self._result = result
            self._done = self._begun
            self._running = False
            self._changed.notify_all()


class Retained(Generic[K, T]):
    """Keeps the last value of what ended for `retain_ns`."""

    def __init__(
        self, retain_ns: int, alive: Callable[[T], bool] | None = None, changed: Callable[[T, T], bool] = operator.ne
    ) -> None:
        """`alive` tells of a value that it is of what lives, None: all are. `changed` tells of the last and the present value of
        what ended whether it shall be kept anew."""
        self.retain_ns = retain_ns
        self._alive = alive
        self._changed = changed
        self._live: dict[K, T] = {}  # as of the last update
        self._then = 0  # when that was
        self._ended: dict[K, tuple[int, T]] = {}  # when it last lived or changed, and what it was

    def last(self, key: K) -> T | None:
        """Return the last value, None of what never was or is not kept any more."""
        return self._ended[key][1] if key in self._ended else self._live.get(key)

    def end(self, key: K, value: T, now_ns: int) -> None:
        """Take in the last value of what has ended, whether it was ever seen or not; before `update`."""
        self._ended[key] = (now_ns, value)

    def only(self, wanted: Callable[[K], bool]) -> None:
        """Forget all else, as if it had never been."""
        self._live = {key: value for key, value in self._live.items() if wanted(key)}
        self._ended = {key: value for key, value in self._ended.items() if wanted(key)}

    def update(self, current: Mapping[K, T], now_ns: int) -> tuple[dict[K, T], dict[K, T]]:
        """Return what lives, and what ended at most `retain_ns` ago. What lives again under its key has not ended."""
        alive, ended, before = self._alive, self._ended, self._live
        live = dict(current) if alive is None else {key: value for key, value in current.items() if alive(value)}
        for key in [key for key in before if key not in live]:
            ended.setdefault(key, (self._then, before[key]))
        for key in ended.keys() & live.keys():
            del ended[key]
        for key in [key for key in current if key not in live] if len(live) != len(current) else ():
            if key not in ended or self._changed(ended[key][1], current[key]):
                ended[key] = (now_ns, current[key])
        oldest = now_ns - self.retain_ns
        for key in [key for key, (when, _) in ended.items() if when < oldest and key not in current]:
            del ended[key]
        self._live, self._then = live, now_ns
        return live, {key: value for key, (when, value) in ended.items() if when >= oldest}


class Ancestry:
    """Under which cgroup each accounting cgroup is or was: a total must not fall because a descendant is gone.

    With `path` it is kept there over a restart of the agent, for which the kernel goes on counting. An id means something
    until the next boot.
    """

    def __init__(self, path: str | None = None) -> None:
        self._path = path
        self._alive: dict[str, int] = {}
        self._root = 0
        self._known: dict[int, tuple[str, int]] = self._load() if path else {}  # id: path, id of the parent
        self._born: set[int] = set()  # told of since the last sum: what they use may be in the next one only
        self._written = 0  # lines of the file; 0: not this agent's
        self._plan: tuple[set[int], list[tuple[int, list[int]]]] | None = None  # what `_shares` says of those cgroups

    def learn(self, alive: dict[str, int]) -> None:
        """Take note of the cgroups that exist now: their ids by path."""
        self._alive = alive
        root = alive[min(alive, key=len)] if alive else 0
        if root != self._root:
            self._root, self._plan = root, None
        new = {path: cgroup for path, cgroup in alive.items() if cgroup not in self._known}
        self._add({cgroup: (path, alive.get(posixpath.dirname(path), root)) for path, cgroup in new.items()})

    def learn_born(self, born: Mapping[int, tuple[str, int]]) -> None:
        """Take note of cgroups that were made, by id: path and parent's id; also of such that are gone again."""
        self._born |= born.keys()
        self._add({cgroup: place for cgroup, place in born.items() if cgroup not in self._known})

    def _add(self, new: Mapping[int, tuple[str, int]]) -> None:
        if new:
            self._known |= new
            self._plan = None
            if self._path:
                self._save(self._path, new)

    def _load(self) -> dict[int, tuple[str, int]]:
        """Return what an earlier agent of this boot knew; nothing where its file is not to be had or not understood."""
        known: dict[int, tuple[str, int]] = {}
        try:
            with open(self._path or "", encoding="ascii") as file:
                if json.loads(file.readline())["boot"] != _boot_id():
                    return {}
                for line in file:
                    if not line.endswith("\n"):  # it was killed as it wrote
                        break
                    cgroup, path, parent = json.loads(line)
                    known[int(cgroup)] = str(path), int(parent)
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("event=ancestry_not_read path=%s reason=%s", self._path, error)
            return {}
        return known

    def _save(self, path: str, new: Mapping[int, tuple[str, int]]) -> None:
        """Write what is new behind the rest; all anew now and then, as what is not of use any more stays in the file."""
        anew = not 0 < self._written <= 2 * len(self._known) + _FEW
        place = f"{path}.new" if anew else path
        lines = [json.dumps((cgroup, *known)) + "\n" for cgroup, known in (self._known if anew else new).items()]
        try:
            with open(place, "w" if anew else "a", encoding="ascii") as out:
                out.writelines([json.dumps({"boot": _boot_id()}) + "\n", *lines] if anew else lines)
            if anew:
                os.replace(place, path)
            self._written = len(lines) if anew else self._written + len(lines)
        except OSError as error:  # a restart will then give the root what is gone, an ordinary reset
            self._written = 0
            log.debug("event=ancestry_not_saved path=%s reason=%s", path, error)

    def successor(self, cgroup: int) -> int:
        """Return who inherits the usage of `cgroup`: itself while it exists, else its nearest living ancestor."""
        while cgroup in self._known:
            path, parent = self._known[cgroup]
            if self._alive.get(path) == cgroup:
                return cgroup
            if parent == cgroup:
                break
            cgroup = parent
        return self._root or cgroup

    def sum_up(self, flat: Mapping[int, Usage]) -> tuple[dict[str, Usage], dict[str, Usage]]:
        """Sum usage up the tree. Return it by path for the cgroups that exist, and for those that are gone.

        A cgroup that came and went untold is the root's. One that is gone counts for its ancestors of then, and never for
        a new one under the same path.
        """
        totals = dict(flat)
        if self._plan is None or self._plan[0] != flat.keys():
            self._plan = set(flat), self._shares(flat)
        for parent, children in self._plan[1]:  # at once: child by child, a thousand children cost a thousand sums
            parts = [totals[cgroup] for cgroup in children]
            totals[parent] = total([totals[parent], *parts] if parent in totals else parts)
        self._forget(totals)
        live = {path: totals.get(cgroup, NOTHING) for path, cgroup in self._alive.items()}
        dead = sorted(totals.keys() & self._known.keys() - set(self._alive.values()))
        gone = {self._known[cgroup][0]: totals[cgroup] for cgroup in dead}
        return live, {path: used for path, used in gone.items() if path not in live}

    def _shares(self, cgroups: Iterable[int]) -> list[tuple[int, list[int]]]:
        """Return what is to be added to which parent, the deepest first."""
        levels: dict[int, set[int]] = {}
        for cgroup in cgroups:
            levels.setdefault(self._depth(cgroup), set()).add(cgroup)
        found: list[tuple[int, list[int]]] = []
        for depth in range(max(levels, default=0), 0, -1):
            shares: dict[int, list[int]] = {}
            for cgroup in levels.get(depth, ()):
                shares.setdefault(self._parent(cgroup), []).append(cgroup)
            for parent in shares:
                levels.setdefault(self._depth(parent), set()).add(parent)
            found += shares.items()
        return found

    def _depth(self, cgroup: int) -> int:
        if cgroup == self._root:
            return 0
        return max(1, self._known[cgroup][0].count("/")) if cgroup in self._known else 1

    def _parent(self, cgroup: int) -> int:
        parent = self._known[cgroup][1] if cgroup in self._known else self._root
        return parent if parent in self._known else self._root

    def _forget(self, used: Mapping[int, Usage]) -> None:
        useless = self._known.keys() - used.keys() - set(self._alive.values()) - self._born
        self._born = set()
        for cgroup in useless:
            del self._known[cgroup]
        if useless:
            self._plan = None


def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()


class Sampler:
    """Takes samples: one at a time, shared by those who wait. All but `facts`, `reload` and `selection`, which may change at any
    time, is given once; None: this node has it not."""

    def __init__(
        self,
        *,
        retain_ns: int,
        ancestry: Ancestry,
        cgroups: CgroupSource | None = None,
        ends: CgroupEnds | None = None,
        usage: UsageSource | None = None,
        counts: Callable[[], SyscallCounts] | None = None,
        maps: Callable[[], tuple[MapFigures, ...]] | None = None,
        program_runs: Callable[[], Mapping[str, tuple[int, int]]] | None = None,
        history: History | None = None,
        findings: Callable[[], Mapping[str, int]] | None = None,
        namespace_figures: Callable[[], NodeFigures] | None = None,
        node_cpu_ns: Callable[[], int] | None = None,
        identities: Identities | None = None,
        cgroup_usage: bool = True,
        workloads: Callable[[], Workloads] | None = None,
    ) -> None:
        """`cgroup_usage`: whether samples have what the tasks of each cgroup used."""
        self.facts = Facts()
        self.reload: Callable[[], Reload | None] = lambda: None
        self.selection = self._selected = Selection()
        self._cgroup_source = cgroups
        self._ends = ends
        self._usage_source = usage
        self._has_cgroup_usage = cgroup_usage
        self._read_counts = counts
        self._read_maps = maps
        self._read_runs = program_runs
        self._history = history
        self._read_findings = findings
        self._read_workloads = workloads
        self._identities = identities
        self._read_namespaces = namespace_figures
        self._conservation = Conservation(node_cpu_ns) if node_cpu_ns else None
        self._ancestry = ancestry
        self._cgroups: Retained[str, CgroupStats] = Retained(retain_ns)
        self._cgroup_usage: Retained[str, Usage] = Retained(retain_ns)
        self._namespaces: Retained[NamespaceId, Usage] = Retained(
            retain_ns, lambda usage: usage.threads > 0, lambda last, now: now != last and now.cpu_ns >= last.cpu_ns
        )  # what falls was folded in part: its counters must not
        self._outcomes: dict[str, Outcome] = {}
        self._failures: set[str] = set()
        self._shared = Shared(self._take)

    def read(self) -> NodeSample:
        """Return a sample that was begun after this call. Safe from any thread."""
        return self._shared.get()

    def retain(self, retain_ns: int) -> None:
        """Keep what ended so long from now on. Safe from any thread."""
        for kept in (self._cgroups, self._cgroup_usage, self._namespaces):
            kept.retain_ns = retain_ns

    def _take(self) -> NodeSample:
        self._outcomes = {}
        self._select(self.selection)
        source, selected = self._cgroup_source, self._selected
        stats = self._collect("cgroups", lambda: source.read(selected)) if source else None
        alive = source.accounting_ids() if source and stats is not None else {}
        if stats is not None and self._usage_source:
            self._ancestry.learn(alive)
        usage = self._collect("usage", self._read_usage) if self._usage_source else None
        born = self._ends.born() if self._ends else {}  # after the pass: whose usage it has was told by now
        if self._usage_source:
            self._ancestry.learn_born(born)
        figures = self._collect("namespaces", self._read_namespaces) if self._read_namespaces else None
        counts = self._collect("syscalls", self._read_counts) if self._read_counts else None
        maps = self._collect("bpf_maps", self._read_maps) if self._read_maps else None
        runs = self._collect("bpf_programs", self._read_runs) if self._read_runs else None
        findings = self._read_findings() if self._read_findings else {}  # before `observe`, which saves what is shown
        now, time_ns = time.monotonic_ns(), time.time_ns()
        ended = self._only_selected(self._ends.ended()) if self._ends and stats is not None else {}
        for path, final in ended.items():
            self._cgroups.end(path, final.over(self._cgroups.last(path)), now)
        cgroups, cgroups_ended = ({}, {}) if stats is None else self._cgroups.update(stats, now)
        used, used_ended, namespaces, namespaces_ended = self._group(usage, ended, now)
        gone = self._gone(usage, namespaces, namespaces_ended) if usage else {}
        return NodeSample(
            time_ns=time_ns,
            facts=self.facts,
            cgroups=cgroups,
            cgroups_ended=cgroups_ended,
            cgroups_created=self._only_selected(self._ends.created()) if self._ends else {},
            final_reads=self._ends.final_reads() if self._ends else {},
            cgroup_info=self._identify(alive, born, cgroups | cgroups_ended),
            cgroup_labels=self._identities.labels if self._identities else {},
            cgroup_usage=used,
            cgroup_usage_ended=used_ended,
            namespaces=namespaces,
            namespaces_ended=namespaces_ended,
            namespaces_gone=gone,
            namespace_figures=figures,
            cpu_error=self._cpu_error(usage, namespaces, namespaces_ended, gone),
            history=self._history.observe(usage.namespaces, time_ns) if self._history and usage else None,
            has_usage=usage is not None,
            readable=usage.readable if usage else None,
            missing=usage.missing if usage else frozenset(),
            syscalls=counts,
            findings=findings,
            workloads=self._collect("workloads", self._read_workloads) if self._read_workloads else None,
            files=source.files() if source else None,
            maps=maps or (),
            program_runs=runs or {},
            reload=self.reload(),
            collectors=self._outcomes,
        )

    def _select(self, selection: Selection) -> None:
        if selection is not self._selected:
            self._selected = selection
            self._cgroups.only(selection.selects)
            self._cgroup_usage.only(selection.selects)

    def _only_selected(self, found: Mapping[str, T]) -> Mapping[str, T]:
        if self._selected.everything:
            return found
        return {path: value for path, value in found.items() if self._selected.selects(path)}

    def _identify(
        self, alive: Mapping[str, int], born: Mapping[int, tuple[str, int]], shown: Iterable[str]
    ) -> Mapping[str, CgroupInfo]:
        if self._identities is None:
            return {}
        ids = {path: cgroup for cgroup, (path, _) in born.items()} | dict(alive) if born else alive
        return self._identities.update(ids, shown)

    def _read_usage(self) -> NodeUsage:
        assert self._usage_source
        if self._conservation is None:
            return self._usage_source.read()
        return self._conservation.around(self._usage_source.read)

    def _cpu_error(
        self,
        usage: NodeUsage | None,
        live: Mapping[NamespaceId, Usage],
        ended: Mapping[NamespaceId, Usage],
        gone: Mapping[NamespaceKind, Mapping[str, int]],
    ) -> float | None:
        if usage is None or not usage.exact or self._conservation is None:
            return None
        kind = NamespaceKind.PID  # the one that a zombie still has
        shown = sum(used.cpu_ns for rows in (live, ended) for name, used in rows.items() if name.kind is kind)
        return self._conservation.error(shown + gone.get(kind, {}).get("cpu_ns", 0))

    def _group(
        self, usage: NodeUsage | None, cgroups_ended: Mapping[str, Ended], now: int
    ) -> tuple[dict[str, Usage], dict[str, Usage], dict[NamespaceId, Usage], dict[NamespaceId, Usage]]:
        if usage is None:
            return {}, {}, {}, {}
        live, gone = self._ancestry.sum_up(usage.cgroups)  # which also forgets what is of no use any more
        if not self._has_cgroup_usage:
            live = gone = {}
        for path in cgroups_ended.keys() & gone.keys():
            self._cgroup_usage.end(path, gone[path], now)
        used, ended = self._cgroup_usage.update(self._only_selected(live), now)
        return used, {path: gone.get(path, last) for path, last in ended.items()}, *self._namespaces.update(usage.namespaces, now)

    def _gone(
        self, usage: NodeUsage, live: Mapping[NamespaceId, Usage], ended: Mapping[NamespaceId, Usage]
    ) -> dict[NamespaceKind, dict[str, int]]:
        """Sum what is in no series of its own: what was folded, and the rows that wait for it.

        With history, the sums never fall: a pinned namespace that is entered again before its fold would take its part back.
        """
        rows: dict[NamespaceKind, list[tuple[int, Usage]]] = {kind: [(1, used)] for kind, used in usage.namespaces_ended.items()}
        for namespace, used in usage.namespaces.items():
            if namespace not in live:
                rows.setdefault(namespace.kind, []).append((1, used))
        for namespace, used in ended.items():
            rows.setdefault(namespace.kind, []).append((-1, used))
        sums = {
            kind: {name: sum(sign * getattr(used, name) for sign, used in parts) for name in GONE} for kind, parts in rows.items()
        }
        if self._history is None:
            return sums
        rise = self._history.counts.rise
        return {kind: {name: rise(f"gone {kind} {name}", value) for name, value in each.items()} for kind, each in sums.items()}

    def _collect(self, name: str, read: Callable[[], T]) -> T | None:
        """Run one collector; a failure is logged once a cause."""
        start = time.perf_counter()
        result, failure = None, ""
        try:
            result = read()
        except (NsagentError, OSError) as error:
            failure = f"event=collector_failed collector={name} reason={error}"
        self._outcomes[name] = Outcome(not failure, time.perf_counter() - start)
        if failure and failure not in self._failures:
            self._failures.add(failure)
            log.warning("%s", failure)
        return result
