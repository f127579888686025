"""Accounting against the kernel's own: a known workload in a cgroup of its own, the sum of its contexts, no difference."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from nsagent.kernel import abi
from nsagent.kernel.attach import Attached
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.usage import KernelUsage, NodeUsage, Usage
from tests import support
from tests.kernel.conftest import AccountedCgroup, accounting, expect_ready, go_on

pytestmark = pytest.mark.kernel

TICK_NS = 10_000_000  # the largest jiffy; sum_exec_runtime of a running task lags by up to one
NewCgroup = Callable[[str], AccountedCgroup]


def assert_exact(cgroup: AccountedCgroup, at_least_ns: int, ours: Usage | None = None) -> Usage:
    """The contexts' sum is the kernel's figure: to the ns on v1, to its us on v2; each unseen free may lack its share."""
    ours = ours or cgroup.complete()
    kernel = cgroup.kernel_ns()
    missed = ours.threads_exited - ours.threads_freed
    difference = kernel - ours.cpu_ns
    assert kernel >= at_least_ns
    if missed == 0:
        rounding = 0 if accounting()[0] else 1000
        assert -rounding <= difference <= rounding, f"{difference} ns of {kernel}"
    else:  # PID 1 of this host hides frees from BPF: those threads' last part is lost, and nothing else
        assert 0 <= difference <= 0.02 * kernel + missed * 1_000_000, f"{difference} ns of {kernel}, {missed} frees unseen"
    return ours


@pytest.mark.parametrize(
    ("argv", "at_least_us", "processes", "threads"),
    [
        (["burn", "50000"], 50_000, 0, 0),
        (["forks", "300", "200"], 60_000, 300, 300),
        (["spawns", "200"], 0, 200, 200),
        (["threads", "50", "200"], 40_000, 0, 200),
        (["vforks", "300"], 0, 300, 300),
        (["leader-first", "30000"], 90_000, 0, 3),
        (["exec-by-thread"], 30_000, 0, 4),
        (["storm", "3", "40"], 0, 3 + 3 * 40 * 5, 3 + 3 * 40 * 9),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else None,
)
def test_cpu_equals_the_kernels(  # noqa: PLR0917
    cgroup: AccountedCgroup, load: str, argv: list[str], at_least_us: int, processes: int, threads: int
) -> None:
    process = cgroup.run([load, *argv])
    assert process.wait(120) == 0
    ours = assert_exact(cgroup, at_least_us * 1000)
    assert ours.processes_created == processes
    assert ours.threads_created == threads
    assert ours.processes_exited == processes + 1  # and the workload itself, born outside
    assert ours.threads_exited == threads + 1


def test_passes_that_race_exits_lose_and_double_nothing(cgroup: AccountedCgroup, load: str, attached: Attached) -> None:
    """Endless passes on one CPU while tasks end on the other."""
    stop = threading.Event()
    visited, storms = attached.statistic("passes"), 0

    def passes() -> None:
        while not stop.is_set():
            attached.settle()

    racer = threading.Thread(target=passes)
    racer.start()
    try:
        while not storms or attached.statistic("passes") - visited < 10_000:  # tasks; a slow machine has more storms
            storms += 1
            assert cgroup.run([load, "storm", "4", "60"]).wait() == 0
    finally:
        stop.set()
        racer.join()
    ours = assert_exact(cgroup, 0)
    assert ours.threads_created == storms * (4 + 4 * 60 * 9)


def test_zombies_are_complete_before_anybody_reaps_them(cgroup: AccountedCgroup, load: str) -> None:
    process = cgroup.run([load, "zombies", "40", "2000"])
    expect_ready(process)
    ours = cgroup.ours()
    assert ours.zombie == 40
    assert ours.threads_freed == 0
    support.wait_for(
        lambda: abs(cgroup.ours().cpu_ns - cgroup.kernel_ns()) <= TICK_NS, what="both to agree, once the parent sleeps"
    )
    assert ours.cpu_ns >= 40 * 2_000_000
    go_on(process)
    assert process.wait(120) == 0
    assert_exact(cgroup, 80_000_000)


def test_counters_count_from_the_load_on(attached: Attached, cgroup: AccountedCgroup, load: str, cache_dir: str) -> None:
    """A task alive at load has a past that is nobody's: a second set of programs sees only what comes after."""
    from nsagent.kernel.attach import attach

    process = cgroup.run([load, "phases", "100000"])
    expect_ready(process)
    pins = f"/sys/fs/bpf/{support.unique_name('second')}"
    second = attach(pins, cache_dir, subsystem=accounting()[0])
    try:
        late = AccountedCgroup(cgroup.path, KernelUsage(second))
        start, kernel = late.ours().cpu_ns, cgroup.kernel_ns()
        assert start < TICK_NS
        go_on(process)
        expect_ready(process)
        grown = late.ours().cpu_ns - start
        assert grown >= 100_000_000
        assert abs(grown - (cgroup.kernel_ns() - kernel)) <= TICK_NS
        assert cgroup.ours().cpu_ns >= 200_000_000  # the control: the first set has seen it all
    finally:
        second.unload()
        go_on(process)
        process.wait(120)


def test_a_process_that_moves_is_split_at_the_move(new_cgroup: NewCgroup, load: str) -> None:
    first, second = new_cgroup("first"), new_cgroup("second")
    process = first.run([load, "phases", "60000"])
    expect_ready(process)
    (second.path / "cgroup.procs").write_text(str(process.pid))
    go_on(process)
    expect_ready(process)
    go_on(process)
    assert process.wait(120) == 0
    assert_exact(first, 60_000_000)
    assert_exact(second, 60_000_000)


def test_threads_that_move_with_their_process_are_split_too(new_cgroup: NewCgroup, load: str) -> None:
    first, second = new_cgroup("first"), new_cgroup("second")
    process = first.run([load, "move-threads", "4"])
    expect_ready(process)
    support.wait_for(lambda: first.kernel_ns() > 300_000_000)
    (second.path / "cgroup.procs").write_text(str(process.pid))
    support.wait_for(lambda: second.kernel_ns() > 300_000_000)
    go_on(process)
    assert process.wait(120) == 0
    for cgroup in (first, second):
        ours = cgroup.complete()
        # A thread that runs at the moment of the move has what it used since its CPU's last tick, which neither side has
        # charged yet; where a host takes the CPU away, ticks are late.
        assert abs(ours.cpu_ns - cgroup.kernel_ns()) <= 100_000_000
    both = first.complete().cpu_ns + second.complete().cpu_ns
    assert abs(both - first.kernel_ns() - second.kernel_ns()) <= TICK_NS


def test_one_thread_that_moves_takes_only_its_own(new_cgroup: NewCgroup, load: str) -> None:
    controller, _ = accounting()
    if controller is None:
        pytest.skip("a thread moves alone only on v1 (or in threaded v2 cgroups)")
    first, second = new_cgroup("first"), new_cgroup("second")
    process = first.run([load, "move-threads", "3"])
    expect_ready(process)
    support.wait_for(lambda: first.kernel_ns() > 300_000_000)
    last = max(int(tid) for tid in os.listdir(f"/proc/{process.pid}/task"))
    (second.path / "tasks").write_text(str(last))
    support.wait_for(lambda: second.kernel_ns() > 300_000_000)
    low = second.kernel_ns()
    node = second.reader.read()
    assert (second.ours(node).threads, first.ours(node).threads) == (1, 2)
    assert low - 100_000_000 <= second.ours(node).cpu_ns <= second.kernel_ns() + 100_000_000  # ticks may be late
    go_on(process)
    process.wait(120)


@pytest.mark.parametrize("kind", [NamespaceKind.UTS, NamespaceKind.IPC, NamespaceKind.NET, NamespaceKind.MNT])
def test_unshare_splits_the_time_before_and_after(cgroup: AccountedCgroup, load: str, kind: NamespaceKind) -> None:
    process = cgroup.run([load, "unshare-between", "50000", hex(kind.flag)])
    assert process.stdout is not None
    before, after = map(int, process.stdout.readline().split())
    expect_ready(process)
    inum = os.stat(f"/proc/{process.pid}/ns/{kind}").st_ino
    node = cgroup.reader.read()
    inside = [usage for namespace, usage in node.namespaces.items() if namespace.kind is kind and namespace.inum == inum]
    newest = max(inside, key=lambda usage: usage.threads)
    assert newest.processes == 1
    assert abs(newest.cpu_ns - after) <= TICK_NS
    outside = cgroup.ours(node).cpu_ns - newest.cpu_ns
    assert before <= outside + TICK_NS
    go_on(process)
    assert process.wait(120) == 0


def test_a_namespace_in_which_nothing_was_used_takes_no_row(cgroup: AccountedCgroup, attached: Attached, load: str) -> None:
    process = cgroup.run([load, "unshares", "400"])
    expect_ready(process)
    go_on(process)
    expect_ready(process)
    cgroup.reader.read()
    rows = [words[abi.KEY_WORDS - 1] & 0xFFFFFFFF for words in attached.rows() if words[0] == cgroup.id]
    assert os.stat(f"/proc/{process.pid}/ns/uts").st_ino in rows  # the one it is in
    assert len(rows) < 400  # what a tick fell into, or a switch
    go_on(process)
    assert process.wait(120) == 0
    assert_exact(cgroup, 0)


def test_a_move_after_an_unshare_splits_by_the_context_that_was(new_cgroup: NewCgroup, load: str) -> None:
    """No pass in between: the row is made at the move, for the context that was, not for the one that is."""
    first, second = new_cgroup("first"), new_cgroup("second")
    process = first.run([load, "unshare-between", "50000", hex(NamespaceKind.UTS.flag)])
    assert process.stdout is not None
    _, after = map(int, process.stdout.readline().split())
    expect_ready(process)
    (second.path / "cgroup.procs").write_text(str(process.pid))
    inum = os.stat(f"/proc/{process.pid}/ns/uts").st_ino
    node = first.reader.read()
    (newest,) = [used for key, used in node.namespaces.items() if key[:2] == (NamespaceKind.UTS, inum) and used.processes]
    assert abs(newest.cpu_ns - after) <= TICK_NS
    assert second.ours(node).cpu_ns <= TICK_NS
    go_on(process)
    assert process.wait(120) == 0
    assert_exact(first, 100_000_000)
    assert_exact(second, 0)


def test_setns_splits_the_time_too(cgroup: AccountedCgroup, load: str) -> None:
    process = cgroup.run([load, "setns-back", "50000"])
    expect_ready(process)
    inum = os.stat(f"/proc/{process.pid}/ns/uts").st_ino
    first = cgroup.reader.read().namespaces
    mine = next(key for key, usage in first.items() if key[:2] == (NamespaceKind.UTS, inum) and usage.processes == 1)
    before = cgroup.kernel_ns()
    go_on(process)
    expect_ready(process)
    grown = cgroup.reader.read().namespaces[mine].cpu_ns - first[mine].cpu_ns
    assert grown >= 50_000_000 - TICK_NS
    assert cgroup.kernel_ns() - before - grown >= 100_000_000 - TICK_NS  # what came after setns is not among it
    go_on(process)
    assert process.wait(120) == 0
    assert_exact(cgroup, 150_000_000)


def test_five_namespaces_with_one_inum_are_five(usage: KernelUsage, cgroup: AccountedCgroup, load: str) -> None:
    """`unshare -u` five times in a row: the kernel hands out the same inode number, never the same namespace."""
    before = set(usage.read().namespaces)
    inums = []
    spent = _children_ns()
    for _ in range(5):
        script = f"readlink /proc/self/ns/uts; exec {load} burn 20000"
        done = subprocess.run(["unshare", "-u", "sh", "-c", script], capture_output=True, text=True, check=True)
        inums.append(int(re.findall(r"\d+", done.stdout)[0]))
    spent = _children_ns() - spent
    found = {
        k: u
        for k, u in usage.read().namespaces.items()
        if k.kind is NamespaceKind.UTS and k.inum in inums and k not in before and u.cpu_ns >= 20_000_000
    }
    assert len(found) == 5
    assert {namespace.inum for namespace in found} == set(inums)
    assert len({namespace.id for namespace in found}) == 5
    assert sum(used.cpu_ns for used in found.values()) <= spent + TICK_NS


def _children_ns() -> int:
    """Return the CPU time of all children that were waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((used.ru_utime + used.ru_stime) * 1e9)


def test_memory_is_counted_once_however_many_threads(cgroup: AccountedCgroup, load: str) -> None:
    process = cgroup.run([load, "memory", "64", "5"])
    expect_ready(process)
    support.wait_for(lambda: cgroup.ours().sleeping == 6)
    ours = cgroup.ours()
    status = Path(f"/proc/{process.pid}/status").read_text()
    kernel = {name: int(re.findall(rf"^{name}:\s+(\d+)", status, re.M)[0]) << 10 for name in ("RssAnon", "RssFile", "VmPTE")}
    assert (ours.threads, ours.processes, ours.sleeping) == (6, 1, 6)
    assert ours.rss_anon_bytes == pytest.approx(kernel["RssAnon"], abs=1 << 20)
    assert ours.rss_anon_bytes >= 63 << 20  # before v6.2 up to 64 pages of a thread are not in its mm's counters yet
    assert ours.rss_file_bytes == pytest.approx(kernel["RssFile"], abs=1 << 20)
    assert ours.pagetables_bytes >= kernel["VmPTE"]
    go_on(process)
    assert process.wait(120) == 0
    gone = cgroup.ours()
    assert (gone.threads, gone.rss_anon_bytes) == (0, 0)


SLEEPER = """
import ctypes, mmap
memory = mmap.mmap(-1, 16 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
print(ctypes.addressof(ctypes.c_char.from_buffer(memory)), flush=True)
input()
"""


def test_what_others_do_to_who_sleeps_is_in_the_next_pass(new_cgroup: NewCgroup) -> None:
    first, second = new_cgroup("first"), new_cgroup("second")
    process = first.run([sys.executable, "-I", "-S", "-c", SLEEPER])
    assert process.stdout is not None
    address = int(process.stdout.readline())
    support.wait_for(lambda: first.ours().sleeping == 1)
    slept = [first.ours() for _ in range(3)]  # from the second pass on it is known not to have run
    assert {(ours.threads, ours.cpu_ns, ours.rss_anon_bytes) for ours in slept} == {(1, slept[0].cpu_ns, slept[0].rss_anon_bytes)}
    for to, left in ((second, first), (first, second)):
        (to.path / "cgroup.procs").write_text(str(process.pid))
        assert (to.ours().sleeping, left.ours().sleeping) == (1, 0)
        assert (to.ours().sleeping, left.ours().sleeping) == (1, 0)
    with open(f"/proc/{process.pid}/mem", "wb", buffering=0) as memory:
        memory.seek(address)
        assert memory.write(b"x" * (16 << 20)) == 16 << 20
    assert first.ours().rss_anon_bytes - slept[0].rss_anon_bytes == pytest.approx(16 << 20, abs=1 << 20)
    assert first.ours().cpu_ns == slept[0].cpu_ns, "it has run meanwhile, and nothing was shown"
    go_on(process)
    assert process.wait(120) == 0
    assert first.ours().threads == 0


def test_io_equals_proc_pid_io(cgroup: AccountedCgroup, load: str, tmp_path: Path) -> None:
    process = cgroup.run([load, "io", "16", str(tmp_path / "data")])
    assert process.stdout is not None
    told = dict(line.split(": ") for line in (process.stdout.readline() for _ in range(7)) if ": " in line)
    expect_ready(process)
    ours = cgroup.ours()
    assert ours.write_bytes == int(told["write_bytes"]) >= 16 << 20
    assert ours.cancelled_write_bytes == int(told["cancelled_write_bytes"])
    assert ours.read_bytes == int(told["read_bytes"]) - cgroup.brought["read_bytes"]  # the shell's own pages
    assert ours.write_chars >= 16 << 20
    assert ours.write_syscalls >= int(told["syscw"])
    go_on(process)
    assert process.wait(120) == 0


def test_faults_and_switches_equal_the_processs_own(cgroup: AccountedCgroup, load: str) -> None:
    process = cgroup.run([load, "memory", "32", "0"])
    expect_ready(process)
    support.wait_for(lambda: cgroup.ours().sleeping == 1)
    ours = cgroup.ours()
    stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{process.pid}/status").read_text()
    # our shell of Python moved in before exec: its faults up to then are the parent cgroup's, not this one's
    assert 32 * 256 // 512 <= ours.minor_faults <= int(stat[7])
    assert ours.voluntary_switches <= int(re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.M)[0])
    assert ours.voluntary_switches >= 1
    go_on(process)
    process.wait(120)


def test_kernel_threads_are_accounted(usage: KernelUsage) -> None:
    """kthreads are in the initial namespaces: the root's contexts have more threads than /proc shows of user processes."""
    node = usage.read()
    kthreads = sum(1 for pid in filter(str.isdigit, os.listdir("/proc")) if _is_kernel_thread(pid))
    initial = max((u for k, u in node.namespaces.items() if k.kind is NamespaceKind.PID), key=lambda u: u.threads)
    assert kthreads > 10
    assert initial.idle + initial.sleeping >= kthreads * 0.9


def _is_kernel_thread(pid: str) -> bool:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[6]) & 0x00200000 != 0
    except OSError:
        return False


def test_counters_never_fall_and_do_grow(usage: KernelUsage, cgroup: AccountedCgroup, load: str) -> None:
    last: dict[NamespaceId, Usage] = {}
    seen: list[int] = []
    while len(seen) < 5:  # a slow machine reads once or twice in a storm, so there is another one
        process = cgroup.run([load, "storm", "2", "80"])
        while process.poll() is None:
            node = usage.read()
            # Not of what ended: its rows are folded, those of this node's others too.
            for key, used in ((key, used) for key, used in node.namespaces.items() if used.threads):
                for field in ("cpu_ns", "user_ns", "system_ns", "minor_faults", "processes_created", "threads_freed"):
                    assert getattr(used, field) >= getattr(last.get(key, Usage()), field), (key, field)
            last = dict(node.namespaces)
            seen.append(cgroup.ours(node).cpu_ns)
        assert process.returncode == 0
    assert seen == sorted(seen)
    assert seen[-1] > seen[0]


def test_a_sigkilled_process_is_complete(cgroup: AccountedCgroup, load: str) -> None:
    process = cgroup.run([load, "move-threads", "3"])
    expect_ready(process)
    support.wait_for(lambda: cgroup.kernel_ns() > 50_000_000)
    process.send_signal(signal.SIGKILL)
    process.wait(120)
    assert_exact(cgroup, 50_000_000)


def test_ended_namespaces_are_folded_and_nothing_is_lost(attached: Attached, cgroup: AccountedCgroup, load: str) -> None:
    """Their rows come back, and each kind's sum stays what it was: no second of CPU falls out of it."""
    clock = [1000.0]
    reader = KernelUsage(attached, retain_s=60, clock=lambda: clock[0])
    process = cgroup.run(["unshare", "-u", "-i", load, "forks", "50", "2000"])
    assert process.wait(120) == 0
    cgroup.complete()

    def sums(node: NodeUsage) -> dict[NamespaceKind, int]:
        return {
            kind: node.namespaces_ended[kind].cpu_ns + sum(u.cpu_ns for k, u in node.namespaces.items() if k.kind is kind)
            for kind in NamespaceKind
        }

    def mine(node: NodeUsage) -> list[NamespaceId]:
        return [
            k for k, u in node.namespaces.items() if k.kind is NamespaceKind.UTS and u.processes_created == 50 and not u.processes
        ]

    first = reader.read()
    (namespace,) = mine(first)
    used = first.namespaces[namespace]
    assert used.cpu_ns >= 100_000_000
    ended = first.namespaces_ended[NamespaceKind.UTS]
    for step in (59, 2, 1, 1, 11):  # not yet; key dropped; two passes; folded
        clock[0] += step
        node = reader.read()
        if step == 59:
            assert node.namespaces[namespace] == used
    after = reader.read()
    assert namespace not in after.namespaces
    grown = after.namespaces_ended[NamespaceKind.UTS]
    assert grown.cpu_ns - ended.cpu_ns >= used.cpu_ns
    assert grown.processes_created - ended.processes_created >= 50
    before_sums, after_sums = sums(first), sums(after)
    for kind in NamespaceKind:
        assert after_sums[kind] >= before_sums[kind]
        assert after_sums[kind] == after_sums[NamespaceKind.CGROUP]  # every kind has all of the node
    assert_exact(cgroup, 100_000_000, cgroup.ours(after))  # the cgroup is alive and keeps all of it


def test_rows_come_back(attached: Attached, cgroup: AccountedCgroup, load: str) -> None:
    """Many more namespaces than would fit if each kept its row for ever, in rounds; the highest row stays low."""
    clock = [1000.0]
    reader = KernelUsage(attached, retain_s=1, clock=lambda: clock[0])

    def look() -> tuple[int, int, int]:
        """Count the rows in use up to now, those of this test, and those of others."""
        owners = [words[0] for words in attached.rows()]
        mine = owners.count(cgroup.id)
        return len(owners), mine, len(owners) - mine - owners.count(0)

    looks, full = [], attached.statistic("rows_full")
    for _ in range(6):
        process = cgroup.run([load, "unshares-used", "300"])
        expect_ready(process)
        go_on(process)
        expect_ready(process)
        go_on(process)
        process.wait(120)
        cgroup.complete()
        assert look()[1] >= 300  # the control
        for _ in range(6):
            clock[0] += 5
            reader.read()
        looks.append(look())
    levels, mine, others = zip(*looks, strict=True)
    assert max(mine) < 300
    assert levels[-1] - levels[0] < 300 + 2 * (max(others) - min(others))  # of 1,500, and what others of this node make
    assert attached.statistic("rows_full") == full or max(others) > 3000


def test_a_table_nearly_full_is_cleared_sooner(cgroup: AccountedCgroup, cache_dir: str, load: str) -> None:
    """Three quarters of the rows taken by what has ended: they come back after 10 s, not after `retain_s`.

    So many that the few dozen contexts of this node's own do not matter.
    """
    from nsagent.kernel.attach import attach

    pins = f"/sys/fs/bpf/{support.unique_name('small')}"
    small = attach(pins, cache_dir, subsystem=accounting()[0], rows=1024)
    clock = [1000.0]
    try:
        reader = KernelUsage(small, retain_s=3600, clock=lambda: clock[0])
        if reader.read().contexts > 200:
            pytest.skip("this node has too many contexts of others")

        def unshare(count: int) -> int:
            process = cgroup.run([load, "unshares-used", str(count)])
            for _ in range(2):
                expect_ready(process)
                go_on(process)
            assert process.wait(120) == 0
            return reader.read().contexts

        def later() -> int:
            for _ in range(6):
                clock[0] += 20
                reader.read()
            return reader.read().contexts

        few = unshare(200)
        assert few >= 200
        assert later() >= 200  # the control: far from full they stay
        many = unshare(650)
        assert many > 768
        assert later() <= 768  # below three quarters of 1,024 they may stay
    finally:
        small.unload()
