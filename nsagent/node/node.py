"""A node as an agent reads it: what can be had of programs, /proc and cgroup files, put together."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, Any, Final

from nsagent import namespaces
from nsagent.cgroups.ends import Ends
from nsagent.cgroups.layout import Layout, read_layout
from nsagent.cgroups.selection import Selection
from nsagent.config import AgentConfig
from nsagent.conservation import read_node_cpu_ns
from nsagent.control import Hub
from nsagent.errors import AccessError, LoadError, NsagentError, UnsupportedError
from nsagent.events import KernelEvents, SyscallCounts
from nsagent.findings import RULES, Findings, read_host_inums
from nsagent.history import History
from nsagent.identity import Identities
from nsagent.kernel import attach, headers, mounts, pins
from nsagent.kernel.cgroups import CgroupRing
from nsagent.namespaces import NamespaceKind
from nsagent.node import facts
from nsagent.node.cgroups import NodeCgroups, NodeEnds
from nsagent.nsfigures import READ, NamespaceReader, NodeFigures
from nsagent.origins import Origins
from nsagent.records import Counts
from nsagent.runtimes import Runtimes
from nsagent.sample import Ancestry, MapFigures, Sampler
from nsagent.usage import KernelUsage
from nsagent.workloads import WorkloadCounter

if TYPE_CHECKING:
    from nsagent.procusage import ProcfsUsage

log = logging.getLogger(__name__)

QUEUE_FULL: Final = "queue_full"
_NO_BPF: Final = "switched off with --no-bpf"
_NO_TRACE: Final = "switched off with --no-trace"


class Node:
    """What an agent reads: the programs where they can be had, /proc in their place, the cgroup files. Makes samples.

    `features` has None for what this node can, else the reason why not. `history` and `findings` are None where nobody
    keeps them: such a node only reads, and leaves the programs as it finds them.
    """

    def __init__(self, config: AgentConfig, *, keep_history: bool = False) -> None:
        self.features: dict[str, str | None] = {}
        self.ancestry = Ancestry(os.path.join(config.state_dir, "cgroups.jsonl"))
        self.layout = self._read_layout()
        falls = os.path.join(config.state_dir, "falls.json") if keep_history else None
        self.cgroups = NodeCgroups(self.layout, config.collectors_off, path=falls) if self.layout else None
        self.origins = Origins(self.layout, self.cgroups.path_of if self.cgroups else lambda cgroup: None)
        self.attached = self._attach(config, as_found=not keep_history) if config.bpf else None
        if self.attached and self.cgroups:
            self.cgroups.use(self.attached.lane())
        self.events: KernelEvents | None = None
        self._taking = threading.Lock()
        self.traces = self.attached is not None and self.attached.traces
        self.hub = Hub(self.attached.trace_all if self.attached and self.traces else lambda on: None)
        if self.attached:
            self.events = KernelEvents(self.attached)
            missing = self.attached.missing
            self.features |= {name: missing.get(name) for name in headers.FEATURES} | missing
            if self.features.get("io_delay") is None and not facts.keeps_delays():
                self.features["io_delay"] = "kernel.task_delayacct is not 1"
            if not self.attached.traces:
                self.features.setdefault("tracing", _NO_TRACE)
        elif not config.bpf:
            self.features |= {"exact_accounting": _NO_BPF, "tracing": _NO_BPF}
        self._keeps_runs = config.bpf_stats and self.attached is not None and self._keep_runs(self.attached)
        self.history = self._open_history(config.state_dir) if keep_history else None
        self.findings = self._open_findings(config) if keep_history else None
        self.cgroup_ring: CgroupRing | None = None
        self.ends = self._open_ends()
        before = self.history.counts.values if self.history else collections.Counter[str]()
        self._found_before = {rule: before[f"finding {rule}"] for rule in RULES}
        self._lost_before = before[QUEUE_FULL]
        self._namespaces = self._read_kinds(config.collectors_off)
        self._workloads = WorkloadCounter(config.state_dir) if keep_history else None
        sockets = config.runtimes if keep_history else ()
        self.runtimes = Runtimes(sockets, retain_s=config.retain_ns / 1e9, labels=config.label_allow)
        self._usage: KernelUsage | ProcfsUsage
        self.sampler = self._make_sampler(config.retain_ns, cgroup_usage="tasks" not in config.collectors_off)
        self._selection = {name: getattr(config, name) for name in ("cgroup_include", "cgroup_exclude", "max_depth")}
        self._select()
        machine = facts.read_machine() if config.compat else None
        self.sampler.facts = dataclasses.replace(facts.read_facts(self.layout, self.attached, self.features), machine=machine)

    def _read_layout(self) -> Layout | None:
        try:
            return read_layout()
        except NsagentError as error:
            log.warning("event=no_cgroups reason=%s", error)
            self.features["cgroups"] = str(error)
            return None

    def _attach(self, config: AgentConfig, *, as_found: bool) -> attach.Attached | None:
        """Load or adopt the programs, without tracing where only that fails; None where there is no accounting by BPF."""
        subsystem = self.layout.accounting[0] if self.layout else None
        for trace in (True, False) if config.trace else (False,):
            try:
                attached = attach.attach(
                    config.pin_dir,
                    config.cache_dir,
                    subsystem=subsystem,
                    trace=trace,
                    rows=config.contexts,
                    ring_bytes=config.ring_bytes,
                    object_dir=config.object_dir,
                    rate=config.rate,
                    as_found=as_found,
                )
            except (UnsupportedError, AccessError, LoadError) as error:
                what = "tracing" if trace else "exact_accounting"
                self.features[what] = str(error)
                log.warning("event=degraded feature=%s reason=%s hint=%s", what, error, error.hint)
            else:
                self.features["exact_accounting"] = None
                if trace:
                    self.features["tracing"] = None
                return attached
        self.features.setdefault("tracing", self.features["exact_accounting"])
        return None

    def _keep_runs(self, attached: attach.Attached) -> bool:
        """Have the kernel count the runs of programs; tell whether it does."""
        try:
            attached.keep_runs()
        except NsagentError as error:
            self.features["bpf_stats"] = str(error)
            return False
        return True

    def _open_history(self, state_dir: str) -> History:
        """Go on with what an earlier agent kept, as far as it still means the same."""
        adopted = self.attached is not None and (self.attached.adopted or self.attached.carried)
        has_ids = namespaces.identify("/proc/self/ns/uts").id != 0
        return History(
            read_host_inums(),
            path=os.path.join(state_dir, "history.jsonl"),
            goes_on=adopted or has_ids,
            counts=Counts(os.path.join(state_dir, "counts.json"), goes_on=adopted),
        )

    def _open_ends(self) -> NodeEnds | None:
        """Be the one reader of what the kernel tells of cgroups: who keeps no history leaves it to the next agent."""
        if not (self.attached and self.cgroups and self.layout and self.history):
            return None
        if not self.layout.is_whole:
            self.features["cgroup_ends"] = "the agent sees a part of a cgroup tree, and the kernel names cgroups from its root"
            return None
        self.cgroup_ring = self.attached.cgroup_ring()
        if self.cgroup_ring is None:
            return None
        self.cgroups.ends = Ends(self.layout, self.cgroup_ring.read)
        return NodeEnds(self.cgroups, self.cgroups.ends, self.history)

    def _open_findings(self, config: AgentConfig) -> Findings:
        return Findings(off=config.findings_off, path_of=self.origins.path_of)

    def _found(self) -> dict[str, int]:
        """Findings by rule: as a counter that goes on when the agent ends, like those of the kernel."""
        assert self.findings is not None
        assert self.history is not None
        before, rise = self._found_before, self.history.counts.rise
        return {rule: rise(f"finding {rule}", before[rule] + count) for rule, count in self.findings.counts().items()}

    def _make_sampler(self, retain_ns: int, *, cgroup_usage: bool) -> Sampler:
        kernel = self._open_usage(retain_ns / 1e9)
        return Sampler(
            retain_ns=retain_ns,
            ancestry=self.ancestry,
            cgroups=self.cgroups,
            ends=self.ends if kernel else None,
            usage=self._usage,
            counts=self._counts if self.attached and self.attached.traces else None,
            maps=self._maps if kernel else None,
            program_runs=self.attached.runs if self.attached and self._keeps_runs else None,
            history=self.history,
            findings=self._found if self.findings else None,
            namespace_figures=self._figures if self.history and self._namespaces else None,
            node_cpu_ns=self._node_cpu_ns if kernel else None,
            identities=Identities(self.runtimes.names, self.runtimes.want),
            cgroup_usage=cgroup_usage,
            workloads=self._workloads.read if self._workloads else None,
        )

    def _open_usage(self, retain_s: float) -> bool:
        """Have a source of usage; tell whether it is the kernel's programs, else it is /proc."""
        if self.attached is not None:
            successor = self.ancestry.successor if self.cgroups else lambda cgroup: cgroup
            self._usage = KernelUsage(self.attached, retain_s=retain_s, successor=successor)
            return True
        from nsagent.procusage import ProcfsUsage

        controller, hierarchy = self.layout.accounting if self.layout else (None, None)
        self._usage = ProcfsUsage(controller=controller, directory=hierarchy.directory if hierarchy else None, retain_s=retain_s)
        return False

    def settings(self) -> dict[str, Callable[[Any], None]]:
        """Return how a new value is taken, by field of AgentConfig: of those that can change while it runs."""
        assert self.findings is not None
        return {
            "retain_ns": self._retain,
            "findings_off": self.findings.switch_off,
            "rate": lambda rate: self.attached.filter_events(rate=rate) if self.attached else None,
            "log_level": lambda level: logging.getLogger("nsagent").setLevel(level.upper()),
            "cgroup_include": lambda globs: self._select(cgroup_include=globs),
            "cgroup_exclude": lambda globs: self._select(cgroup_exclude=globs),
            "max_depth": lambda depth: self._select(max_depth=depth),
        }

    def _select(self, **changed: Any) -> None:
        self._selection |= changed
        self.sampler.selection = Selection(*self._selection.values())

    def _retain(self, retain_ns: int) -> None:
        self.sampler.retain(retain_ns)
        self.runtimes.retain(retain_ns / 1e9)
        self._usage.retain_s = retain_ns / 1e9

    @staticmethod
    def _read_kinds(off: Collection[str]) -> NamespaceReader | None:
        net = frozenset({NamespaceKind.NET})
        kinds = READ - (net if "network" in off else frozenset()) - (READ - net if "namespaces" in off else frozenset())
        return NamespaceReader(kinds=kinds) if kinds else None

    def _figures(self) -> NodeFigures:
        assert self.history is not None
        assert self._namespaces is not None
        return self._namespaces.read({namespace: pid for namespace, (pid, _) in self.history.oldest().items()})

    def _node_cpu_ns(self) -> int:
        cpuacct = self.layout.of("cpuacct") if self.layout else None
        return read_node_cpu_ns(cpuacct.mountpoint if cpuacct and cpuacct.version == 1 else None)

    def _counts(self) -> SyscallCounts:
        assert self.events is not None
        counts, full = self.events.counts(), self._lost_before + self.hub.lost
        full = self.history.counts.rise(QUEUE_FULL, full) if self.history else full
        return dataclasses.replace(counts, lost=counts.lost | {QUEUE_FULL: full})

    def _maps(self) -> tuple[MapFigures, ...]:
        assert self.attached is not None
        full = {"rows": self.attached.statistic("rows_full")}
        if self.ends:
            full["cgroup_events"] = self.attached.statistic("cgroups_lost")
        maps = self.attached.map_status()
        return tuple(MapFigures(m.name, m.entries, m.max_entries, m.memory_bytes, full.get(m.name)) for m in maps)

    def take_events(self) -> None:
        """Take what the ring buffer holds to the history, the findings and those who watch; for one agent, in any thread."""
        assert self.events is not None
        assert self.history is not None
        assert self.findings is not None
        with self._taking:  # so that they come in order
            events = self.events.read()
            self.history.feed(events)
            if not self.hub.idle:
                events = [self.origins.locate(event) for event in events]
            self.hub.publish([*events, *self.findings.of_events(events)])

    def status(self) -> dict[str, Any]:
        """Return what changes, taken by a sample: how much there is, and whether every exited thread was seen freed."""
        sample = self.sampler.read()
        everything = (*sample.namespaces.items(), *sample.namespaces_ended.items())
        rows = [used for namespace, used in everything if namespace.kind is NamespaceKind.PID]
        return {
            "features": dict(self.features),
            "cgroups": len(sample.cgroups),
            "namespaces": len(sample.namespaces),
            "threads_exited": sum(used.threads_exited for used in rows),
            "threads_freed": sum(used.threads_freed for used in rows),
        }

    def close(self, *, unload: bool) -> None:
        """Let go of the programs; `unload` ends them, else the pins keep them counting."""
        if self.cgroups:
            self.cgroups.close()
        if self.history:
            self.history.save()
        if self._workloads:
            self._workloads.close()
        if self.events:
            self.events.close()
        if self.cgroup_ring:
            self.cgroup_ring.close()
        if self.attached:
            if unload:
                self.attached.unload()
            else:
                self.attached.close()


@contextlib.contextmanager
def open_node(config: AgentConfig, *, keep_history: bool = False) -> Iterator[Node]:
    """Own the pin directory and open the node. Raises NsagentError where another process owns it."""
    owner: pins.Lock | None = None
    if config.bpf:
        for mount in (mounts.mount_bpffs, mounts.mount_tracefs):
            try:
                if mount():
                    log.info("event=mounted by=%s", mount.__name__)
            except NsagentError as error:  # what needs it will say so
                log.debug("event=not_mounted by=%s reason=%s", mount.__name__, error)
        with contextlib.suppress(NsagentError):
            pins.sweep_private()
        with contextlib.suppress(UnsupportedError, AccessError):  # attach will say so
            owner = pins.own(config.pin_dir, deadline_s=2.0)
    unload = config.ephemeral
    try:
        node = Node(config, keep_history=keep_history)
        try:
            yield node
        except NsagentError:  # the start failed: what it loaded would go on counting for nobody
            unload = unload or not (node.attached and node.attached.adopted)
            raise
        finally:
            node.close(unload=unload)
    finally:
        if owner:
            if config.ephemeral:  # stopped while it loaded, it has left the directories of the locks
                with contextlib.suppress(NsagentError):
                    pins.unload(config.pin_dir)
            owner.release()
