"""The agent: builds the objects, owns the threads, and ends them. Nothing else of nsagent runs as a daemon.

Order of a start: claim the state directory, take the port, sweep what dead launchers left, bring the programs into the kernel
(this may fork the compiler), and only then start threads: the agent never forks once it has threads.

    main          signals; watch, patrol, the textfile    http, control     accept; a thread a client, bounded
    ring          events to history, findings, the hub    exposition        made for HTTP, one of a format at a time
    cgroups       births and ends of cgroups              samples           taken in the thread that asks, one at a time
    runtime       asks a container runtime for names      sink-*            the hub to files, sockets, the journal
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import logging
import os
import platform
import resource
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from nsagent import __version__, namespaces
from nsagent.cgroups.ends import Ended, Ends
from nsagent.cgroups.layout import Layout, read_layout
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.stats import CgroupStats
from nsagent.cgroups.tree import Tree
from nsagent.config import FLAGS, AgentConfig
from nsagent.conservation import read_node_cpu_ns
from nsagent.control import Control, Hub, StateLock
from nsagent.errors import AccessError, LoadError, NsagentError, UnsupportedError
from nsagent.events import SCHEMA, EventFilter, KernelEvents, SyscallCounts
from nsagent.findings import RULES, Findings, read_host_inums
from nsagent.history import History
from nsagent.identity import Identities
from nsagent.kernel import attach, headers, mounts, pins
from nsagent.kernel.cgroups import CgroupRing
from nsagent.kernel.lane import CgroupLane
from nsagent.launch.launcher import sweep
from nsagent.launch.quantities import parse_bytes
from nsagent.metrics import catalogue
from nsagent.metrics.encode import Encoder
from nsagent.namespaces import NamespaceKind
from nsagent.nsfigures import NamespaceReader, NodeFigures
from nsagent.origins import Origins
from nsagent.patrol import ROUND_S, Patrol
from nsagent.records import Counts
from nsagent.reload import Reloader
from nsagent.runtimes import Runtimes
from nsagent.sample import Ancestry, Facts, FileFigures, MapFigures, NodeSample, Sampler
from nsagent.sinks import Sink, parse
from nsagent.textfile import Textfile
from nsagent.usage import KernelUsage
from nsagent.watch import TICK_S, Watch
from nsagent.web import config as webconfig
from nsagent.web import listen
from nsagent.web.config import WebConfig
from nsagent.web.server import Server

if TYPE_CHECKING:
    from nsagent.procusage import ProcfsUsage

log = logging.getLogger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_RELOAD: Final = signal.SIGHUP
_NO_BPF: Final = "switched off with --no-bpf"
_NO_TRACE: Final = "switched off with --no-trace"
_DESCRIPTORS: Final = 1 << 16
_QUEUE_FULL: Final = "queue_full"
_FIRST_CGROUP: Final = 0xEFFFFFFB  # include/linux/proc_ns.h, PROC_CGROUP_INIT_INO


class NodeCgroups:
    """The cgroups of a layout as sample.CgroupSource."""

    def __init__(self, layout: Layout) -> None:
        self._tree = Tree(layout, retain=0, watched=True)  # the sampler keeps what ended
        self._reader = Reader(layout)
        self._lane: CgroupLane | None = None
        self._accounting = layout.accounting[1].key
        self._ended: dict[str, Ended] = {}
        self.ends: Ends | None = None  # where the kernel tells of births and ends

    def read(self) -> dict[str, CgroupStats]:
        """Look which cgroups there are, and read their files."""
        if self.ends:
            self.ends.drain()
        self._tree.scan()
        unwalked = len(self._reader.unwalked)
        found = self._reader.read_all(self._tree)
        for hierarchy, reason in list(self._reader.unwalked.items())[unwalked:]:
            log.warning("event=no_fast_lane hierarchy=%s reason=%s", hierarchy, reason)
        if self.ends:
            self._ended |= self.ends.settle(self._tree.cgroups, found)
        return found

    def files(self) -> FileFigures:
        """Return how the files of the last `read` fared."""
        return FileFigures(self._reader.kernel_memory_bytes, dict(self._reader.backoffs))

    def ended(self) -> dict[str, Ended]:
        """Return the last values of what had ended by the last `read`, once."""
        ended, self._ended = self._ended, {}
        return ended

    def use(self, lane: CgroupLane | None) -> None:
        """Read by walks of a hierarchy what they know."""
        self._reader.lane = self._lane = lane

    def close(self) -> None:
        """Close what watches the hierarchies, the files, and the walks."""
        if self._lane:
            self._lane.close()
        self._tree.close()
        self._reader.close()

    def path_of(self, accounting_id: int) -> str | None:
        """Return the path of a cgroup by its id in the accounting hierarchy, as of the last walk, or as it was made."""
        return self._tree.path_of(accounting_id) or (self.ends.path_of(accounting_id) if self.ends else None)

    def accounting_ids(self) -> dict[str, int]:
        """Return the ids in the accounting hierarchy as of the last walk, by path."""
        key = self._accounting
        return {path: cgroup.ids[key] for path, cgroup in self._tree.cgroups.items() if key in cgroup.ids}


class NodeEnds:
    """The births and ends of a node's cgroups as sample.CgroupEnds; their counts go on when the agent ends."""

    def __init__(self, cgroups: NodeCgroups, ends: Ends, history: History) -> None:
        self.ended, self.born, self.created = cgroups.ended, ends.born, ends.created
        self._ends = ends
        self._history = history
        self._before = {outcome: history.counts.values[f"end {outcome}"] for outcome in ends.final_reads()}

    def final_reads(self) -> dict[str, int]:
        """Return how the ends were, by outcome."""
        rise, before = self._history.counts.rise, self._before
        return {outcome: rise(f"end {outcome}", before[outcome] + n) for outcome, n in self._ends.final_reads().items()}


class Node:
    """What an agent reads: the programs where they can be had, /proc in their place, the cgroup files. Makes samples.

    `features` has None for what this node can, else the reason why not. `history` and `findings` are None where nobody
    keeps them: such a node only reads, and leaves the programs as it finds them.
    """

    def __init__(self, config: AgentConfig, *, keep_history: bool = False) -> None:
        self.features: dict[str, str | None] = {}
        self.ancestry = Ancestry(os.path.join(config.state_dir, "cgroups.json"))
        self.layout = self._read_layout()
        self.cgroups = NodeCgroups(self.layout) if self.layout else None
        self.origins = Origins(self.layout, self.cgroups.path_of if self.cgroups else lambda cgroup: None)
        self.attached = self._attach(config, as_found=not keep_history) if config.bpf else None
        if self.attached and self.cgroups:
            self.cgroups.use(self.attached.lane())
        self.events: KernelEvents | None = None
        self.traces = self.attached is not None and self.attached.traces
        self.hub = Hub(self.attached.trace_all if self.attached and self.traces else lambda on: None)
        if self.attached:
            self.events = KernelEvents(self.attached)
            missing = self.attached.missing
            self.features |= {name: missing.get(name) for name in headers.FEATURES} | missing
            if self.features.get("io_delay") is None and not _keeps_delays():
                self.features["io_delay"] = "kernel.task_delayacct is not 1"
            if not self.attached.traces:
                self.features.setdefault("tracing", _NO_TRACE)
        elif not config.bpf:
            self.features |= {"exact_accounting": _NO_BPF, "tracing": _NO_BPF}
        self.history = self._open_history(config.state_dir) if keep_history else None
        self.findings = self._open_findings(config) if keep_history else None
        self.cgroup_ring: CgroupRing | None = None
        self.ends = self._open_ends()
        before = self.history.counts.values if self.history else collections.Counter[str]()
        self._found_before = {rule: before[f"finding {rule}"] for rule in RULES}
        self._lost_before = before[_QUEUE_FULL]
        self._namespaces = NamespaceReader()
        self.runtimes = Runtimes(config.runtimes if keep_history else (), retain_s=config.retain_ns / 1e9)
        self._usage: KernelUsage | ProcfsUsage
        self.sampler = self._make_sampler(config.retain_ns)
        self.sampler.facts = self._facts()

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
        if _cgroup_namespace() != _FIRST_CGROUP:
            self.features["cgroup_ends"] = "the agent is in a cgroup namespace, and the kernel names cgroups from the host's root"
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

    def _make_sampler(self, retain_ns: int) -> Sampler:
        cgroups, findings = self.cgroups, self._found if self.findings else None
        figures = self._figures if self.history else None
        identities = Identities(self.runtimes.names, self.runtimes.want)
        if self.attached is None:
            from nsagent.procusage import ProcfsUsage

            controller, hierarchy = self.layout.accounting if self.layout else (None, None)
            directory = hierarchy.directory if hierarchy else None
            self._usage = usage = ProcfsUsage(controller=controller, directory=directory, retain_s=retain_ns / 1e9)
            return Sampler(
                retain_ns=retain_ns,
                ancestry=self.ancestry,
                cgroups=cgroups,
                usage=usage,
                history=self.history,
                findings=findings,
                namespace_figures=figures,
                identities=identities,
            )
        successor = self.ancestry.successor if cgroups else lambda cgroup: cgroup
        self._usage = kernel_usage = KernelUsage(self.attached, retain_s=retain_ns / 1e9, successor=successor)
        return Sampler(
            retain_ns=retain_ns,
            ancestry=self.ancestry,
            cgroups=cgroups,
            ends=self.ends,
            usage=kernel_usage,
            counts=self._counts if self.attached.traces else None,
            maps=self._maps,
            history=self.history,
            findings=findings,
            namespace_figures=figures,
            node_cpu_ns=self._node_cpu_ns,
            identities=identities,
        )

    def settings(self) -> dict[str, Callable[[Any], None]]:
        """Return how a new value is taken, by field of AgentConfig: of those that can change while it runs."""
        assert self.findings is not None
        return {
            "retain_ns": self._retain,
            "findings_off": self.findings.switch_off,
            "rate": lambda rate: self.attached.filter_events(rate=rate) if self.attached else None,
            "log_level": lambda level: logging.getLogger("nsagent").setLevel(level.upper()),
        }

    def _retain(self, retain_ns: int) -> None:
        self.sampler.retain(retain_ns)
        self.runtimes.retain(retain_ns / 1e9)
        self._usage.retain_s = retain_ns / 1e9

    def _figures(self) -> NodeFigures:
        assert self.history is not None
        return self._namespaces.read({namespace: pid for namespace, (pid, _) in self.history.oldest().items()})

    def _node_cpu_ns(self) -> int:
        cpuacct = self.layout.of("cpuacct") if self.layout else None
        return read_node_cpu_ns(cpuacct.mountpoint if cpuacct and cpuacct.version == 1 else None)

    def _counts(self) -> SyscallCounts:
        assert self.events is not None
        counts, full = self.events.counts(), self._lost_before + self.hub.lost
        full = self.history.counts.rise(_QUEUE_FULL, full) if self.history else full
        return dataclasses.replace(counts, lost=counts.lost | {"queue_full": full})

    def _maps(self) -> tuple[MapFigures, ...]:
        assert self.attached is not None
        full = {"rows": self.attached.statistic("rows_full")}
        if self.ends:
            full["cgroup_events"] = self.attached.statistic("cgroups_lost")
        maps = self.attached.status().maps
        return tuple(MapFigures(m.name, m.entries, m.max_entries, m.memory_bytes, full.get(m.name)) for m in maps)

    def _facts(self) -> Facts:
        compiler = self.attached.compiler.removeprefix("bcc ") if self.attached else ""
        build = {"version": __version__, "python": platform.python_version(), "bcc": compiler, "kernel": os.uname().release}
        mode = {
            "cgroup": self.layout.mode if self.layout else "none",
            "bpf": "loaded" if self.attached else "off",
            "accounting": "exact" if self.attached else "approximate",
            "psi": "on" if _reads("/proc/pressure/cpu") else "off",
            "delayacct": "on" if _keeps_delays() else "off",
        }
        return Facts(build, mode, self.features)

    def take_events(self) -> None:
        """Take what the ring buffer holds to the history, the findings and those who watch; for an agent's one reader."""
        assert self.events is not None
        assert self.history is not None
        assert self.findings is not None
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
        if self.events:
            self.events.close()
        if self.cgroup_ring:
            self.cgroup_ring.close()
        if self.attached:
            if unload:
                self.attached.unload()
            else:
                self.attached.close()


def _keeps_delays() -> bool:
    return _reads("/proc/sys/kernel/task_delayacct") == "1"


def _cgroup_namespace() -> int:
    """Return the inode number of this process's cgroup namespace, 0 where it cannot be told."""
    try:
        return os.stat("/proc/self/ns/cgroup").st_ino
    except OSError:
        return 0


def _reads(path: str) -> str:
    """Return the content of a file of /proc; empty where it cannot be read (EOPNOTSUPP: psi=0)."""
    try:
        with open(path, encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


class Process:
    """The exposition of process_* and python_info. prometheus_client is imported when first asked for: it costs 8 MB."""

    def __init__(self) -> None:
        self._registry: Any = None

    def __call__(self, openmetrics: bool) -> bytes:
        """Return it in one of the two formats, without the EOF line."""
        from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, exposition
        from prometheus_client.openmetrics import exposition as open_exposition

        if self._registry is None:
            self._registry = CollectorRegistry()
            ProcessCollector(registry=self._registry)
            PlatformCollector(registry=self._registry)
        generate = open_exposition.generate_latest if openmetrics else exposition.generate_latest
        return bytes(generate(self._registry)).removesuffix(b"# EOF\n")


class RingThread:
    """The thread that reads one ring buffer, so that it never fills while the agent lives."""

    def __init__(self, name: str, fileno: int, read: Callable[[], object]) -> None:
        """`read` takes all that the ring holds; the kernel wakes the thread through `fileno`."""
        self._fileno = fileno
        self._read = read
        self._stop = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        os.eventfd_write(self._stop, 1)
        if self._thread.is_alive():
            self._thread.join(5)
        os.close(self._stop)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._fileno, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            self._read()
            if self._stop in {fd for fd, _ in poll.poll()}:
                return


class _Stopped(BaseException):
    """A signal asked the agent to end while it was starting."""


def _stop(number: int, _frame: FrameType | None) -> None:
    for each in _SIGNALS:  # once is enough: what is undone now must not be interrupted
        signal.signal(each, signal.SIG_IGN)
    raise _Stopped(number)


def run(config: AgentConfig, read: Callable[[], AgentConfig] | None = None) -> None:
    """Be the agent until SIGTERM or SIGINT. SIGHUP has the settings read again, by `read`, which raises NsagentError.

    Raises:
        NsagentError: it cannot run here: another agent has the state or pin directory, the port is in use, or a directory
            may not be written.
    """
    _raise_descriptors()
    signal.pthread_sigmask(signal.SIG_BLOCK, {_RELOAD})  # it waits until the start is over
    for number in _SIGNALS:
        signal.signal(number, _stop)
    with contextlib.suppress(_Stopped), contextlib.ExitStack() as stack:
        _run(config, read or (lambda: config), stack)


def _raise_descriptors() -> None:
    """Have the descriptors that are allowed, not the 1,024 that a service starts with: cgroups' files are kept open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _bind(config: AgentConfig, stack: contextlib.ExitStack) -> socket.socket:
    listener = listen.bind_unix(config.socket_path) if config.socket_path else listen.bind(config.host, config.port)
    stack.callback(listener.close)
    stack.callback(listen.remove_path, listener)
    return listener


def _run(config: AgentConfig, read: Callable[[], AgentConfig], stack: contextlib.ExitStack) -> None:
    started, stopping = time.monotonic(), threading.Event()
    stack.callback(StateLock(config.state_dir).release)
    web = WebConfig(config.web_config_file) if config.web_config_file else None
    listener = _bind(config, stack)
    for job in sweep(config.state_dir):
        log.info("event=swept job=%s", job)
    node = stack.enter_context(open_node(config, keep_history=True))
    assert node.history is not None
    assert node.findings is not None
    patrol = Patrol(node.findings, node.hub.publish, node.attached.rows if node.attached else None)
    sinks = [Sink(parse(text, parse_bytes), lambda: node.hub.subscribe(EventFilter()), SCHEMA) for text in config.events_to]
    watch = Watch(node.sampler, node.history, _unseen)
    encoder = Encoder(catalogue.FAMILIES, Process())

    def scrape(openmetrics: bool) -> tuple[bytes, ...]:
        return encoder.chunks(node.sampler.read(), openmetrics)

    reloader = Reloader(config, read, node.settings(), FLAGS, lambda: _read_web(config, web))
    node.sampler.reload = lambda: reloader.outcome
    reload = reloader.reload if config.web_lifecycle else None
    server = Server(listener, scrape, lambda: not stopping.is_set(), web=web, reload=reload)
    facts = {
        "pid": os.getpid(),
        "version": __version__,
        "listen": server.address,
        "state_dir": config.state_dir,
        "pin_dir": config.pin_dir if node.attached else None,
        "traced_by": node.attached.traced_by if node.attached else "",
        "start": time.time(),
        **node.sampler.facts.mode,
    }
    control = Control(
        config.state_dir,
        scrape=lambda: b"".join(scrape(False)),
        status=lambda: facts | node.status(),
        hub=node.hub if node.traces else None,
        untraced=node.features.get("tracing") or "",
        answers=watch.answers,
    )
    stack.callback(control.close)
    signal.pthread_sigmask(signal.SIG_BLOCK, (*_SIGNALS, _RELOAD))  # before the threads, which inherit it
    for sink in sinks:
        stack.callback(sink.close)
        sink.start()
    rings = []
    if node.events and node.traces:
        rings.append(RingThread("ring", node.events.fileno(), node.take_events))
    if node.cgroup_ring and node.cgroups and node.cgroups.ends:
        rings.append(RingThread("cgroups", node.cgroup_ring.fileno(), node.cgroups.ends.drain))
    for ring in rings:
        stack.callback(ring.close)
        ring.start()
    stack.callback(node.runtimes.close)
    node.runtimes.start()
    watch.begin()
    control.start()
    server.start()
    stack.callback(server.close)
    textfile = Textfile(config.textfile, lambda: encoder.chunks(node.sampler.read(), process=False)) if config.textfile else None
    if textfile:
        stack.callback(textfile.remove)
        textfile.write()
    stack.enter_context(_announced(config.state_dir, facts))  # last: who reads it can connect
    log.info(
        "event=ready listen=%s bpf=%s accounting=%s tracing=%s warm=%s adopted=%s seconds=%.3f",
        server.address,
        facts["bpf"],
        facts["accounting"],
        facts["traced_by"] or "off",
        str(bool(node.attached and node.attached.warm)).lower(),
        str(bool(node.attached and node.attached.adopted)).lower(),
        time.monotonic() - started,
    )
    looked = time.monotonic()
    while (received := signal.sigtimedwait((*_SIGNALS, _RELOAD), ROUND_S)) is None or received.si_signo == _RELOAD:
        if received:
            with contextlib.suppress(Exception):  # logged, and in the metric; the agent goes on as it was
                reloader.reload()
            continue
        patrol.round()
        if time.monotonic() - looked >= TICK_S:
            watch.tick()
            if textfile:
                textfile.write()
            looked = time.monotonic()
    number = received.si_signo
    stopping.set()
    log.info("event=stopping signal=%s ephemeral=%s", signal.Signals(number).name, str(config.ephemeral).lower())


def _read_web(config: AgentConfig, web: WebConfig | None) -> Callable[[], None]:
    """Read the web configuration, and return what has it used."""
    if web is None:
        return lambda: None
    found = webconfig.read(config.web_config_file)
    return lambda: web.use(found)


def _unseen(sample: NodeSample) -> int:
    """Return how many events history lacks: a queue that was full is a reader's, and history has none."""
    lost = sample.syscalls.lost if sample.syscalls else {}
    return sum(count for reason, count in lost.items() if reason != _QUEUE_FULL)


def read_once(config: AgentConfig) -> bytes:
    """Return one exposition with no agent running: from the programs an earlier agent left, if there are any, else from /proc."""
    left = config.bpf and os.path.isdir(pins.live_dir(config.pin_dir))
    once = dataclasses.replace(config, bpf=left, trace=False, ephemeral=False)
    with open_node(once) as node:
        return Encoder(catalogue.FAMILIES, Process()).encode(node.sampler.read())


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


@contextlib.contextmanager
def _announced(state_dir: str, facts: dict[str, Any]) -> Iterator[None]:
    """Write <state-dir>/agent.json, where a script finds the address of an agent that was given port 0."""
    path = os.path.join(state_dir, "agent.json")
    try:
        with tempfile.NamedTemporaryFile("w", dir=state_dir, prefix=".agent-", delete=False) as out:
            out.write(json.dumps(facts) + "\n")
            os.fchmod(out.fileno(), 0o644)
        os.replace(out.name, path)
    except OSError as error:
        raise AccessError(f"cannot write {path}: {error.strerror}", hint="see --state-dir") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
