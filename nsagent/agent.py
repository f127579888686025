"""The agent: owns the address, the threads and the end of what `node` puts together. Nothing else of nsagent runs as a daemon.

Order of a start: claim the state directory, take the port, sweep what dead launchers left, bring the programs into the kernel
(this may fork the compiler), and only then start threads: the agent never forks once it has threads.

    main          signals; watch, patrol, the textfile    http, control     accept; a thread a client, bounded
    ring          events to history, findings, the hub    exposition        made for HTTP, one of a format at a time
    cgroups       births and ends of cgroups              samples           taken in the thread that asks, one at a time
    runtime       asks a container runtime for names      sink-*            the hub to files, sockets, the journal
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import logging
import os
import resource
import select
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from nsagent import __version__, libc
from nsagent.config import FLAGS, AgentConfig
from nsagent.control import Control, StateLock
from nsagent.errors import AccessError, NsagentError
from nsagent.events import SCHEMA, EventFilter
from nsagent.kernel import pins
from nsagent.launch.launcher import sweep
from nsagent.launch.quantities import parse_bytes
from nsagent.metrics import catalogue
from nsagent.metrics.encode import Encoder
from nsagent.metrics.process import Process
from nsagent.node.node import QUEUE_FULL, open_node
from nsagent.notify import Notifier
from nsagent.patrol import ROUND_S, Patrol
from nsagent.reload import Reloader
from nsagent.sample import NodeSample
from nsagent.sinks import Sink, parse
from nsagent.textfile import Textfile
from nsagent.watch import TICK_S, Watch
from nsagent.web import config as webconfig
from nsagent.web import listen
from nsagent.web.config import WebConfig
from nsagent.web.server import Server

log = logging.getLogger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
_RELOAD: Final = signal.SIGHUP
_DESCRIPTORS: Final = 1 << 16
_TOGETHER_MS: Final = 2  # events that come within it are taken together


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
        stop, poll = select.poll(), select.poll()
        stop.register(self._stop, select.POLLIN)
        poll.register(self._fileno, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        while True:
            self._read()
            # What comes in quick succession is taken together: to be woken for each would cost who writes it a microsecond.
            if stop.poll(_TOGETHER_MS) or self._stop in {fd for fd, _ in poll.poll()}:
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
    libc.use_one_arena()
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
    _sweep(config.state_dir)
    node = stack.enter_context(open_node(config, keep_history=True))
    assert node.history is not None
    assert node.findings is not None
    patrol = Patrol(node.findings, node.hub.publish, node.attached.created if node.attached else None)
    sinks = [Sink(parse(text, parse_bytes), lambda: node.hub.subscribe(EventFilter()), SCHEMA) for text in config.events_to]
    traced = node.events if node.traces else None
    watch = Watch(node.sampler, node.history, _unseen, node.take_events if traced else lambda: None)
    encoder = Encoder(catalogue.families(config.compat), Process(), max_series=config.max_series)

    def scrape(openmetrics: bool) -> tuple[bytes, ...]:
        return encoder.chunks(node.sampler.read(), openmetrics)

    live = node.settings() | {"max_series": encoder.limit}
    reloader = Reloader(config, read, live, FLAGS, lambda: _read_web(config, web))
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
    if traced:
        rings.append(RingThread("ring", traced.fileno(), node.take_events))
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
    notifier = Notifier()
    notifier.ready(f"serving {server.address}")
    looked = time.monotonic()
    while (received := signal.sigtimedwait((*_SIGNALS, _RELOAD), ROUND_S)) is None or received.si_signo == _RELOAD:
        if received:
            with notifier.reloading(), contextlib.suppress(Exception):  # logged, and in the metric; it goes on as it was
                reloader.reload()
            continue
        notifier.alive()
        patrol.round()
        if time.monotonic() - looked >= TICK_S:
            watch.tick()
            _sweep(config.state_dir)
            if textfile:
                textfile.write()
            looked = time.monotonic()
    number = received.si_signo
    stopping.set()
    notifier.stopping()
    log.info("event=stopping signal=%s ephemeral=%s", signal.Signals(number).name, str(config.ephemeral).lower())


def _sweep(state_dir: str) -> None:
    """End what launchers that were killed have left; it forks nothing."""
    try:
        for job in sweep(state_dir):
            log.info("event=swept job=%s", job)
    except NsagentError as error:
        log.warning("event=not_swept reason=%s", error)


def _read_web(config: AgentConfig, web: WebConfig | None) -> Callable[[], None]:
    """Read the web configuration, and return what has it used."""
    if web is None:
        return lambda: None
    found = webconfig.read(config.web_config_file)
    return lambda: web.use(found)


def _unseen(sample: NodeSample) -> int:
    """Return how many events history lacks: a queue that was full is a reader's, and history has none."""
    lost = sample.syscalls.lost if sample.syscalls else {}
    return sum(count for reason, count in lost.items() if reason != QUEUE_FULL)


def read_once(config: AgentConfig) -> bytes:
    """Return one exposition with no agent running: from the programs an earlier agent left, if there are any, else from /proc."""
    left = config.bpf and os.path.isdir(pins.live_dir(config.pin_dir))
    once = dataclasses.replace(config, bpf=left, trace=False, ephemeral=False)
    with open_node(once) as node:
        return Encoder(catalogue.FAMILIES, Process()).encode(node.sampler.read())


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
        hint = "raise the limit of open files: ulimit -n" if error.errno == errno.EMFILE else "see --state-dir"
        raise AccessError(f"cannot write {path}: {error.strerror}", hint=hint) from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)
