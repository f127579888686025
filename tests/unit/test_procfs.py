"""The /proc parsers on recorded text, and the sampled usage on a /proc that the test writes: exact sums, no privileges."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsagent import procfs
from nsagent.errors import ParseError, VanishedError
from nsagent.namespaces import KINDS, NamespaceId, NamespaceKind
from nsagent.procusage import ProcfsUsage
from nsagent.usage import Usage

STAT = (
    b"1217 (a) R (b c) S 1 1217 1217 0 -1 4194560 21 9 3 1 700 50 8 4 20 0 2 0 1234 39178240 2883 18446744073709551615"
    b" 1 1 0 0 0 0 0 4096 1256 0 0 0 17 1 0 0 77 0 0 0 0 0 0 0 0 0 0\n"
)
STATUS = (
    b"Name:\ta\\tb\nUmask:\t0022\nState:\tS (sleeping)\nTgid:\t1217\nPid:\t1217\nUid:\t1000\t1001\t1000\t1000\n"
    b"NSpid:\t1217\t12\t1\n"
    b"RssAnon:\t     112 kB\nRssFile:\t    1512 kB\nRssShmem:\t       4 kB\nVmPTE:\t      44 kB\nVmSwap:\t       8 kB\n"
    b"CapEff:\t000001fffeffffff\nvoluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t7\n"
)
IO = b"rchar: 1\nwchar: 2\nsyscr: 3\nsyscw: 4\nread_bytes: 5\nwrite_bytes: 6\ncancelled_write_bytes: 7\n"


def test_parse_stat_of_a_name_full_of_brackets() -> None:
    assert procfs.parse_stat(STAT) == (1217, "a) R (b c", "S", 1, 21, 3, 700, 50, 2, 1234, 77)


def test_parse_status() -> None:
    status = procfs.parse_status(STATUS)
    assert status.uid == 1001
    assert status.pids == (1217, 12, 1)
    assert status.capabilities == 0x1FFFEFFFFFF
    assert status[3:8] == (112 << 10, 1512 << 10, 4 << 10, 8 << 10, 44 << 10)
    assert status[8:] == (5, 7)


def test_parse_status_of_a_kernel_thread_has_no_memory_rather_than_zero() -> None:
    text = b"".join(line for line in STATUS.splitlines(True) if not line.startswith((b"Rss", b"Vm")))
    assert procfs.parse_status(text)[3:8] == (None,) * 5


def test_parse_io() -> None:
    assert procfs.parse_io(IO) == (1, 2, 3, 4, 5, 6, 7)


def test_parse_cgroup_hybrid() -> None:
    text = b"9:name=systemd:/\n3:cpu,cpuacct:/a:b\n0::/user.slice/\xff (deleted)\n"
    assert procfs.parse_cgroup(text) == (
        (9, ("name=systemd",), "/"),
        (3, ("cpu", "cpuacct"), "/a:b"),
        (0, (), os.fsdecode(b"/user.slice/\xff (deleted)")),
    )


@pytest.mark.parametrize("parse", [procfs.parse_stat, procfs.parse_status, procfs.parse_io, procfs.parse_schedstat])
@pytest.mark.parametrize("text", [b"", b"x", STAT[:60], b"(" * 50, STATUS[:90], IO[:20], b"1 2 x\n"])
def test_parsers_refuse_broken_text_with_the_path(parse: object, text: bytes) -> None:
    with pytest.raises(ParseError, match=r"^/proc/1/x: not a"):
        parse(text, "/proc/1/x")  # type: ignore[operator]


def test_parse_cgroup_names_the_line() -> None:
    with pytest.raises(ParseError, match=r"^/proc/1/cgroup:2: "):
        procfs.parse_cgroup(b"0::/\nbroken\n", "/proc/1/cgroup")


@given(st.binary(max_size=200))
def test_parsers_raise_nothing_but_parse_error(text: bytes) -> None:
    for parse in (procfs.parse_stat, procfs.parse_status, procfs.parse_io, procfs.parse_schedstat, procfs.parse_cgroup):
        try:
            parse(text)
        except ParseError:
            pass


def test_readers_of_this_process() -> None:
    assert procfs.read_stat("self").pid == procfs.read_status("self").pids[0] == os.getpid()
    assert procfs.read_threads("self")
    assert procfs.read_io("self").read_syscalls > 0
    assert {m.hierarchy for m in procfs.read_cgroup("self")}
    assert procfs.read_uptime() * procfs.TICKS_PER_SECOND >= procfs.read_stat("self").start_ticks
    assert procfs.read_sysctl("kernel/ostype") == "Linux"
    assert procfs.read_sysctl("kernel/no_such_thing") is None


class Proc:
    """A /proc that a test writes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.now = 1000.0
        self.tick(0)
        (root / "self").mkdir()
        (root / "self" / "schedstat").write_text("5 6 7\n")
        (root / "sys" / "kernel").mkdir(parents=True)
        (root / "sys" / "kernel" / "task_delayacct").write_text("0\n")
        (root / "cgroups" / "job").mkdir(parents=True)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        (self.root / "uptime").write_text(f"{self.now:.2f} 0.0\n")

    def process(
        self,
        number: int,
        *,
        start: int = 100,
        user: int = 0,
        system: int = 0,
        cgroup: str = "/",
        state: str = "S",
        written: int = 0,
        threads: dict[int, tuple[int, int]] | None = None,
        **inums: int,
    ) -> None:
        """Write a process anew; `threads`: tid -> (ns of run queue, voluntary switches)."""
        threads = threads or {number: (0, 0)}
        top = self.root / str(number)
        shutil.rmtree(top, ignore_errors=True)
        for place, tid in ((top, number), *((top / "task" / str(t), t) for t in threads)):
            place.mkdir(parents=True)
            queued, switches = threads.get(tid, (0, 0))
            (place / "stat").write_text(
                f"{tid} (x) {state} 1 1 1 0 -1 0 3 0 1 0 {user} {system} 0 0 20 0 {len(threads)} 0 {start} "
                + "0 " * 19 + "9 0 0\n"
            )  # fmt: skip
            (place / "schedstat").write_text(f"1 {queued} 1\n")
            (place / "status").write_text(
                f"Pid:\t{tid}\nUid:\t0\t0\t0\t0\nRssAnon:\t4 kB\nCapEff:\t0\nvoluntary_ctxt_switches:\t{switches}\n"
                "nonvoluntary_ctxt_switches:\t0\n"
            )
        (top / "io").write_bytes(IO.replace(b"write_bytes: 6", b"write_bytes: %d" % written))
        (top / "cgroup").write_text(f"4:cpuacct:{cgroup}\n0::/elsewhere\n")
        (top / "ns").mkdir()
        for kind in KINDS:
            (top / "ns" / kind).symlink_to(f"{kind}:[{inums.get(kind, 1)}]")

    def usage(self, **options: float) -> ProcfsUsage:
        def identify(path: str) -> NamespaceId:
            kind, inum = os.readlink(path)[:-1].split(":[")
            return NamespaceId(NamespaceKind(kind), int(inum), 0)

        root = str(self.root)
        return ProcfsUsage(root, controller="cpuacct", directory=f"{root}/cgroups{{}}".format, identify=identify, **options)

    def end(self, number: int) -> None:
        shutil.rmtree(self.root / str(number))


@pytest.fixture
def proc(tmp_path: Path) -> Proc:
    return Proc(tmp_path)


def uts(inum: int) -> NamespaceId:
    return NamespaceId(NamespaceKind.UTS, inum, 0)


TICK = procfs.NS_PER_TICK


def test_processes_alive_at_load_are_baselined_and_later_ones_are_not(proc: Proc) -> None:
    proc.process(1, user=500, system=100, written=9000)
    source = proc.usage()
    assert source.read().namespaces[uts(1)].cpu_ns == 0
    proc.process(1, user=507, system=102, written=9512)
    late = round(proc.now * procfs.TICKS_PER_SECOND) + 5
    proc.process(2, start=late, user=30, uts=2, cgroup="/job")
    got = source.read()
    one, two = got.namespaces[uts(1)], got.namespaces[uts(2)]
    assert (one.cpu_ns, one.user_ns, one.system_ns, one.write_bytes) == (9 * TICK, 7 * TICK, 2 * TICK, 512)
    assert (two.cpu_ns, two.minor_faults, two.major_faults, two.processes) == (30 * TICK, 3, 1, 1)
    assert got.namespaces[NamespaceId(NamespaceKind.PID, 1, 0)].cpu_ns == 39 * TICK
    job, root = (os.stat(proc.root / "cgroups" / name).st_ino for name in ("job", "."))
    assert {key: usage.cpu_ns for key, usage in got.cgroups.items()} == {root: 9 * TICK, job: 30 * TICK}


def test_an_old_process_that_shows_up_late_is_baselined(proc: Proc) -> None:
    source = proc.usage()
    proc.process(5, start=100, user=5000)
    assert source.read().namespaces[uts(1)].cpu_ns == 0


def test_growth_goes_to_the_context_it_was_last_seen_in(proc: Proc) -> None:
    proc.process(1, user=10)
    source = proc.usage()
    proc.process(1, user=14, uts=2, cgroup="/job")
    proc_moved = source.read()
    assert (proc_moved.namespaces[uts(1)].user_ns, proc_moved.namespaces[uts(2)].user_ns) == (4 * TICK, 0)
    proc.process(1, user=15, uts=2, cgroup="/job")
    got = source.read()
    assert (got.namespaces[uts(1)].user_ns, got.namespaces[uts(2)].user_ns) == (4 * TICK, TICK)
    assert (got.namespaces[uts(1)].processes, got.namespaces[uts(2)].processes) == (0, 1)
    assert os.stat(proc.root / "cgroups" / "job").st_ino in got.cgroups


def test_totals_do_not_fall_when_processes_end_or_a_pid_is_reused(proc: Proc) -> None:
    proc.process(1, user=10)
    source = proc.usage()
    proc.process(1, user=20)
    assert source.read().namespaces[uts(1)].user_ns == 10 * TICK
    proc.end(1)
    gone = source.read().namespaces[uts(1)]
    assert (gone.user_ns, gone.processes, gone.rss_anon_bytes) == (10 * TICK, 0, 0)
    proc.process(1, start=round(proc.now * procfs.TICKS_PER_SECOND) + 9, user=3)
    assert source.read().namespaces[uts(1)].user_ns == 13 * TICK


def test_threads_are_summed_and_survive_their_end(proc: Proc) -> None:
    proc.process(7, threads={7: (100, 1), 8: (50, 2)}, state="D")
    source = proc.usage()
    proc.process(7, threads={7: (110, 2), 8: (55, 4), 9: (1000, 10)}, state="R")
    usage = source.read().namespaces[uts(1)]
    assert (usage.run_queue_ns, usage.voluntary_switches) == (10 + 5 + 1000, 1 + 2 + 10)
    assert (usage.threads, usage.processes, usage.running, usage.rss_anon_bytes) == (3, 1, 3, 4096)
    proc.process(7, threads={7: (111, 2)})
    usage = source.read().namespaces[uts(1)]
    assert (usage.run_queue_ns, usage.voluntary_switches) == (1016, 13)
    assert (usage.threads, usage.sleeping, usage.running) == (1, 1, 0)


def test_a_zombie_stays_in_the_context_it_had(proc: Proc) -> None:
    proc.process(3, uts=4, cgroup="/job")
    source = proc.usage()
    proc.process(3, uts=4, cgroup="/", user=2, state="Z")
    for kind in set(KINDS) - {"pid", "user"}:
        (proc.root / "3" / "ns" / kind).unlink()
    for _ in range(2):
        got = source.read()
        assert (got.namespaces[uts(4)].user_ns, got.namespaces[uts(4)].zombie) == (2 * TICK, 1)


def test_what_ended_is_retained_then_folded_and_never_lost(proc: Proc) -> None:
    proc.process(1)
    proc.process(2, uts=2, cgroup="/job")
    source = proc.usage(retain_s=120)
    proc.process(2, uts=2, cgroup="/job", user=8)
    source.read()
    proc.end(2)
    (proc.root / "cgroups" / "job").rmdir()
    for wait, there in ((0, True), (119, True), (2, False)):
        proc.tick(wait)
        got = source.read()
        assert (uts(2) in got.namespaces) is there
        assert (len(got.cgroups) == 2) is there
        ended = got.namespaces_ended.get(NamespaceKind.UTS, Usage())
        assert got.namespaces.get(uts(2), Usage()).user_ns + ended.user_ns == 8 * TICK
    assert uts(1) in got.namespaces


def test_pinned_namespaces_and_existing_cgroups_are_kept(proc: Proc) -> None:
    proc.process(1)
    (proc.root / "1" / "mountinfo").write_text("9 2 0:4 uts:[2] /run/pin rw - nsfs nsfs rw\n")
    proc.process(2, uts=2, cgroup="/job")
    source = proc.usage(retain_s=1)
    proc.end(2)
    for _ in range(3):
        proc.tick(60)
        got = source.read()
    assert uts(2) in got.namespaces
    assert len(got.cgroups) == 2


def test_what_proc_cannot_give_is_named_missing(proc: Proc) -> None:
    got = proc.usage().read()
    assert got.exact is False
    events = {name for name in Usage._fields if name.endswith(("created", "exited", "freed")) or name.startswith("oom_")}
    assert got.missing == {"io_delay_ns"} | events
    (proc.root / "sys" / "kernel" / "task_delayacct").write_text("1\n")
    (proc.root / "self" / "schedstat").write_text("0 0 0\n")
    assert proc.usage().read().missing ^ got.missing == {"io_delay_ns", "run_queue_ns"}


def test_readable_counts_only_what_was_read_in_full(proc: Proc) -> None:
    proc.process(1)
    proc.process(2)
    source = proc.usage()
    assert (source.readable, source.processes) == (2, 2)
    shutil.rmtree(proc.root / "2" / "ns")  # as if it ended between two files
    source.read()
    assert (source.readable, source.processes) == (1, 1)


def test_no_proc_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(VanishedError):
        ProcfsUsage(str(tmp_path))
