"""Sampled usage of real processes in real namespaces: known work in, the kernel's own numbers out."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsagent import libc, namespaces, procfs
from nsagent.cgroups import layout
from nsagent.namespaces import NamespaceKind
from nsagent.procusage import ProcfsUsage
from tests.support import require_root, wait_for

pytestmark = pytest.mark.kernel


class Worker:
    """A child in a UTS namespace of its own that burns as many ticks of CPU as it is told."""

    def __init__(self) -> None:
        command, self._tell = os.pipe()
        self._done, done = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                libc.prctl(libc.PR_SET_PDEATHSIG, signal.SIGKILL)
                libc.unshare(libc.CLONE_NEWUTS)
                os.write(done, b"y")
                while order := os.read(command, 8):
                    _work(int(order))
                    os.write(done, b"y")
            finally:
                os._exit(0)
        os.close(command)
        os.close(done)
        self.wait()

    def wait(self) -> None:
        assert os.read(self._done, 1) == b"y", "the worker died"

    def burn(self, ticks: int) -> None:
        """Return when it has used `ticks` more."""
        os.write(self._tell, b"%8d" % ticks)
        self.wait()

    def end(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _work(ticks: int) -> None:
    enough = os.times()
    goal = enough.user + enough.system + ticks / procfs.TICKS_PER_SECOND
    while (now := os.times()).user + now.system < goal:
        sum(range(20000))


@pytest.fixture
def worker() -> Iterator[Worker]:
    require_root()
    made = Worker()
    yield made
    made.end()


def cpu_ticks(pid: int) -> int:
    stat = procfs.read_stat(pid)
    return stat.user_ticks + stat.system_ticks


def test_cpu_of_a_namespace_is_that_of_its_process(worker: Worker) -> None:
    identity = namespaces.of_process(worker.pid)[NamespaceKind.UTS]
    before = cpu_ticks(worker.pid)
    source = ProcfsUsage()
    assert source.read().namespaces[identity].cpu_ns == 0
    seen = []
    for _ in range(3):
        worker.burn(5)
        least = cpu_ticks(worker.pid)  # it may have to run a little before it sleeps
        usage = source.read().namespaces[identity]
        seen.append(usage.cpu_ns)
        assert (least - before) * procfs.NS_PER_TICK <= usage.cpu_ns <= (cpu_ticks(worker.pid) - before) * procfs.NS_PER_TICK
        assert (usage.processes, usage.threads) == (1, 1)
        assert usage.rss_anon_bytes > 0
    assert seen[0] >= 4 * procfs.NS_PER_TICK
    assert seen == sorted(set(seen)), "three burns, three times more"
    worker.end()
    ended = source.read().namespaces[identity]
    assert (ended.cpu_ns, ended.processes) == (seen[-1], 0)


def test_a_namespace_born_after_load_counts_from_zero() -> None:
    require_root()
    source = ProcfsUsage()
    made = Worker()
    try:
        made.burn(6)
        identity = namespaces.of_process(made.pid)[NamespaceKind.UTS]
        least = cpu_ticks(made.pid)
        usage = source.read().namespaces[identity]
        assert least * procfs.NS_PER_TICK <= usage.cpu_ns <= cpu_ticks(made.pid) * procfs.NS_PER_TICK
        assert usage.cpu_ns >= 5 * procfs.NS_PER_TICK
    finally:
        made.end()


def test_written_bytes_equal_what_the_kernel_says(tmp_path: Path) -> None:
    source = ProcfsUsage()
    own = namespaces.of_process("self")[NamespaceKind.PID]
    before, io = source.read().namespaces[own], procfs.read_io("self")
    (tmp_path / "x").write_bytes(b"x" * (3 << 20))
    grown = source.read().namespaces[own].write_chars - before.write_chars
    assert grown >= procfs.read_io("self").write_chars - io.write_chars - 4096 >= (3 << 20) - 4096


def test_cgroup_ids_are_those_of_the_accounting_tree(cgroup_name: str, worker: Worker) -> None:
    controller, hierarchy = layout.read_layout().accounting
    group = Path(str(hierarchy.directory(f"/{cgroup_name}")))
    group.mkdir()
    (group / "cgroup.procs").write_text(str(worker.pid))
    source = ProcfsUsage(controller=controller, directory=hierarchy.directory)
    worker.burn(4)
    got = source.read()
    assert group.stat().st_ino in got.cgroups
    assert got.cgroups[group.stat().st_ino].cpu_ns == got.namespaces[
        namespaces.of_process(worker.pid)[NamespaceKind.UTS]
    ].cpu_ns  # fmt: skip
    assert got.cgroups[group.stat().st_ino].processes == 1


def test_threads_are_counted_by_state() -> None:
    require_root()
    stop = threading.Event()
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            libc.unshare(libc.CLONE_NEWUTS)
            for _ in range(4):
                threading.Thread(target=stop.wait, daemon=True).start()
            os.write(write, b"y")
            signal.pause()
        finally:
            os._exit(0)
    try:
        os.read(read, 1)
        identity = namespaces.of_process(pid)[NamespaceKind.UTS]
        source = ProcfsUsage()

        def asleep() -> bool:
            usage = source.read().namespaces[identity]
            return (usage.threads, usage.processes, usage.sleeping) == (5, 1, 5)

        wait_for(asleep, what="five sleeping threads of one process")
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_an_ordinary_user_reads_its_own_and_says_how_few() -> None:
    require_root()

    def look() -> object:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        libc.prctl(4, 1)  # PR_SET_DUMPABLE: the change of uid has cleared it, and a program of nobody's has it
        source = ProcfsUsage()
        source.read()
        return 1 <= source.readable < source.processes

    assert in_child(look) == "True"


def in_child(call: Callable[[], object]) -> str:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = str(call())
        except BaseException as exc:
            text = repr(exc)
        os.write(write, text.encode())
        os._exit(0)
    os.close(write)
    with open(read) as answer:
        text = answer.read()
    os.waitpid(pid, 0)
    return text
