"""The loader on the real kernel: known workloads in, exact counts out; and what crashes, races and refusals leave behind."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nsagent.errors import AccessError, LoadError, NsagentError, ParseError, UnsupportedError
from nsagent.kernel import bpf, mounts, objects, pins
from nsagent.kernel.btf import FUNC
from nsagent.kernel.objects import Loaded, Map, Object
from tests import support
from tests.kernel import bpf_asm as asm

pytestmark = pytest.mark.kernel

ROOT = support.ROOT


@pytest.fixture(autouse=True)
def _needs_bpf() -> None:
    support.require_root()
    support.require(Path("/sys/kernel/btf/vmlinux").exists(), "no BTF: /sys/kernel/btf/vmlinux")
    support.require(mounts.find_tracefs(), "tracefs is not mounted (make setup mounts it)")


def parsed(document: dict[str, Any]) -> Object:
    return objects.parse_object(asm.encoded(document))


def watch(pid: int) -> Callable[[objects.Maps], None]:
    return lambda maps: objects_update(maps["cfg"], pid)


def objects_update(cfg: Map, pid: int) -> None:
    assert cfg.update(bytes(4), struct.pack("=Q", pid))


def counts(loaded: Loaded) -> tuple[int, ...]:
    return struct.unpack("=4Q", loaded.maps["counts"].read_array())


def spawn(number: int) -> None:
    """Fork and reap children that do nothing."""
    for _ in range(number):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)


@pytest.fixture
def loaded(pin_dir: Path) -> Iterator[Loaded]:
    """The test's object, watching this process."""
    one = objects.load(parsed(asm.document()), str(pin_dir), before_attach=watch(os.getpid()))
    yield one
    one.unload()


def test_counts_each_exit_and_each_call(loaded: Loaded) -> None:
    spawn(123)
    for _ in range(45):
        os.getpgid(0)
    assert counts(loaded) == (123, 45, 0, 0)
    assert struct.unpack("=Q", loaded.maps["counts"].lookup(struct.pack("=I", 0)) or b"") == (123,)


def test_a_tracepoint_program_runs_on_every_cpu(loaded: Loaded) -> None:
    before = os.sched_getaffinity(0)
    try:
        for cpu in before:
            os.sched_setaffinity(0, {cpu})
            os.getpgid(0)
    finally:
        os.sched_setaffinity(0, before)
    assert counts(loaded)[1] == len(before)


def test_iterator_visits_each_task_and_storage_lasts(loaded: Loaded) -> None:
    children = []
    read_end, write_end = os.pipe()
    try:
        for _ in range(7):
            pid = os.fork()
            if pid == 0:
                os.close(write_end)
                os.read(read_end, 1)
                os._exit(0)
            children.append(pid)
        loaded.iterate("on_task")
        assert counts(loaded)[3] == 7
        loaded.iterate("on_task")  # each task's own storage is 2 by now
        assert counts(loaded)[3] == 7 + 14
    finally:
        os.close(write_end)
        os.close(read_end)
        for pid in children:
            os.waitpid(pid, 0)


def test_pins_survive_the_loader(pin_dir: Path) -> None:
    """A process loads and dies; what it loaded counts on, and the next one adopts it with all that was counted."""
    loader = os.fork()
    if loader == 0:
        objects.load(parsed(asm.document()), str(pin_dir), before_attach=watch(os.getppid()))
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.waitpid(loader, 0)[1] == signal.SIGKILL
    spawn(31)
    adopted = objects.adopt(str(pin_dir))
    assert adopted is not None
    assert adopted.adopted
    assert adopted.object_key == parsed(asm.document()).key
    assert set(adopted.links) == {"on_exit", "on_task", "on_call"}
    spawn(11)
    assert counts(adopted)[0] == 42 + 1  # and the loader itself
    adopted.unload()


def test_load_adopts_the_same_object_and_replaces_another(pin_dir: Path) -> None:
    first = objects.load(parsed(asm.document()), str(pin_dir), before_attach=watch(os.getpid()))
    spawn(5)
    again = objects.load(parsed(asm.document()), str(pin_dir), before_attach=watch(1))
    assert (first.adopted, again.adopted) == (False, True)
    spawn(5)
    assert counts(again)[0] == 10
    other = objects.load(parsed(asm.document(source="77" * 32)), str(pin_dir), before_attach=watch(os.getpid()))
    assert not other.adopted
    first.close()
    last = counts(again)[0]
    old = again.maps["counts"]
    spawn(3)
    assert counts(other)[0] == 3
    again.maps.pop("counts")
    again.close()
    wait_detached(old, other)
    assert int.from_bytes(old.read_array(0, 1), sys.byteorder) >= last
    old.close()
    other.unload()


def wait_detached(old: Map, _new: Loaded | None) -> None:
    """Wait until forks no longer move the old counter."""

    def still() -> bool:
        before = old.read_array()
        spawn(1)
        return old.read_array() == before

    assert support.wait_for(still, what="the old programs' detachment")


def test_groups_leave_out_programs_and_their_maps(pin_dir: Path) -> None:
    some = objects.load(parsed(asm.document()), str(pin_dir), groups={"account"})
    assert set(some.links) == {"on_exit", "on_task"}
    assert "events" not in some.maps
    assert {"cfg", "counts", "tasks", "spare"} <= some.maps.keys()
    whole = objects.load(parsed(asm.document()), str(pin_dir), groups={"account", "trace"})
    assert not whole.adopted
    assert set(whole.links) == {"on_exit", "on_task", "on_call"}
    fewer = objects.load(parsed(asm.document()), str(pin_dir), groups={"trace"})
    assert fewer.adopted
    for one in (some, whole, fewer):
        one.close()
    assert pins.unload(str(pin_dir))


def test_unload_removes_everything_and_detaches(pin_dir: Path) -> None:
    loaded = objects.load(parsed(asm.document()), str(pin_dir), before_attach=watch(os.getpid()))
    spawn(2)
    kept = Map(os.dup(loaded.maps["counts"].fd))
    assert loaded.unload()
    assert not pin_dir.exists()
    wait_detached(kept, None)
    kept.close()
    assert objects.adopt(str(pin_dir)) is None
    assert not pins.unload(str(pin_dir))


@pytest.mark.parametrize("step", ["before_attach", "after_attach"])
def test_a_failing_step_leaves_nothing(pin_dir: Path, step: str) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))

    def fail(maps: objects.Maps) -> None:
        raise NsagentError("no")

    steps: dict[str, Any] = {step: fail}
    with pytest.raises(NsagentError, match="no"):
        objects.load(parsed(asm.document()), str(pin_dir), **steps)
    assert list(pin_dir.iterdir()) == []
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_a_failed_load_keeps_what_was_there(pin_dir: Path, loaded: Loaded) -> None:
    broken = asm.document(source="11" * 32)
    broken["programs"].append(bad_program())
    with pytest.raises(LoadError):
        objects.load(parsed(broken), str(pin_dir))
    spawn(4)
    assert counts(loaded)[0] == 4
    assert [path.name for path in pin_dir.iterdir()] == [os.path.basename(pins.live_dir(str(pin_dir)))]


def bad_program() -> dict[str, Any]:
    """Reads r5, which nothing has set."""
    target = asm.exit_program()
    return asm.program("on_bad", "tp_btf", "sched_process_exit", [asm.move(1, 5)], btf_id=target["btf_id"])


def test_the_verifier_is_quoted(pin_dir: Path) -> None:
    document = asm.document()
    document["programs"] = [bad_program()]
    with pytest.raises(LoadError, match=r"on_bad .*R5 !read_ok") as caught:
        objects.load(parsed(document), str(pin_dir))
    assert "processed" in caught.value.log
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("target", "words"),
    [("syscalls/sys_enter_nosuchcall", "no such event"), ("nosuch/event", "no such event")],
)
def test_a_missing_tracepoint_is_named(pin_dir: Path, target: str, words: str) -> None:
    document = asm.document()
    document["programs"][2]["target"] = target
    with pytest.raises(UnsupportedError, match=f"{target}.*{words}"):
        objects.load(parsed(document), str(pin_dir))
    assert list(pin_dir.iterdir()) == []


def test_an_object_of_another_kernel_is_refused(pin_dir: Path) -> None:
    document = asm.document() | {"build_id": "00" * 20}
    with pytest.raises(LoadError, match="build id") as caught:
        objects.load(parsed(document), str(pin_dir))
    assert "compile" in caught.value.hint
    assert not pin_dir.exists()


def test_a_pin_dir_outside_bpffs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="not on a bpffs") as caught:
        objects.load(parsed(asm.document()), str(tmp_path / "pins"))
    assert "mount -t bpf" in caught.value.hint
    assert not (tmp_path / "pins").exists()
    with pytest.raises(AccessError) as dotted:
        pins.make_pin_dir(f"{mounts.BPFFS}/nsagent-test.{os.getpid()}")
    assert "dot" in dotted.value.hint


def test_without_capabilities_the_error_names_them(pin_dir: Path) -> None:
    """Root without capabilities may still make the directory: what is refused is bpf(2)."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            nothing = struct.pack("=6I", *[0] * 6)
            header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3
            assert ctypes.CDLL(None).capset(header, nothing) == 0
            objects.load(parsed(asm.document()), str(pin_dir))
        except AccessError as exc:
            status = 0 if "CAP_BPF" in exc.hint else 2
        except BaseException:
            status = 3
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert list(pin_dir.iterdir()) == []


RACER = """
import json, os, sys
from nsagent.kernel import objects
obj = objects.parse_object(open(sys.argv[1], "rb").read())
print("ready", flush=True)
sys.stdin.readline()
loaded = objects.load(obj, sys.argv[2], before_attach=lambda maps: maps["cfg"].update(bytes(4), (1).to_bytes(8, "little")))
print(json.dumps({"adopted": loaded.adopted, "links": sorted(loaded.links), "ns": loaded.loaded_ns}))
"""


def test_of_four_racing_loaders_one_loads(pin_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "object.json"
    path.write_bytes(asm.encoded(asm.document()))
    command = [sys.executable, "-c", RACER, str(path), str(pin_dir)]
    racers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(4)]
    for racer in racers:
        assert racer.stdout is not None
        assert racer.stdout.readline() == "ready\n"
    results = []
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write("\n")
        racer.stdin.flush()
    for racer in racers:
        out, _ = racer.communicate(timeout=120)
        assert racer.returncode == 0
        results.append(json.loads(out))
    assert sorted(result["adopted"] for result in results) == [False, True, True, True]
    assert len({result["ns"] for result in results}) == 1
    assert all(result["links"] == ["on_call", "on_exit", "on_task"] for result in results)
    assert [path.name for path in pin_dir.iterdir()] == [os.path.basename(pins.live_dir(str(pin_dir)))]
    assert pins.unload(str(pin_dir))


def test_what_a_loader_killed_in_the_middle_left_is_cleaned(pin_dir: Path) -> None:
    def die(maps: objects.Maps) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    loader = os.fork()
    if loader == 0:
        objects.load(parsed(asm.document()), str(pin_dir), before_attach=watch(os.getppid()), after_attach=die)
        os._exit(0)
    assert os.waitpid(loader, 0)[1] == signal.SIGKILL
    leftovers = sorted(path.name for path in (pin_dir / "new").iterdir())
    assert "link_on_exit" in leftovers
    assert objects.adopt(str(pin_dir)) is None
    loaded = objects.load(parsed(asm.document()), str(pin_dir), before_attach=watch(os.getpid()))
    assert not loaded.adopted
    assert not (pin_dir / "new").exists()
    spawn(6)
    assert counts(loaded)[0] == 6
    loaded.unload()
    assert not pin_dir.exists()


@pytest.mark.parametrize("gone", ["link_on_exit", "map_counts", "map_meta", "prog_on_call"])
def test_incomplete_pins_are_not_adopted_but_replaced(pin_dir: Path, gone: str) -> None:
    objects.load(parsed(asm.document()), str(pin_dir)).close()
    (Path(pins.live_dir(str(pin_dir))) / gone).unlink()
    assert objects.adopt(str(pin_dir)) is None
    again = objects.load(parsed(asm.document()), str(pin_dir))
    assert not again.adopted
    assert (Path(pins.live_dir(str(pin_dir))) / gone).exists()
    again.unload()


OWNER = """
import sys
from nsagent.kernel import pins
lock = pins.own(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


def test_one_owner_at_a_time_and_the_other_is_named(pin_dir: Path) -> None:
    command = [sys.executable, "-c", OWNER, str(pin_dir)]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    try:
        assert pins.owner(str(pin_dir)) == holder.pid
        with pytest.raises(NsagentError, match=f"process {holder.pid} ") as caught:
            pins.own(str(pin_dir))
        assert "--pin-dir" in caught.value.hint
        with pins.locked(str(pin_dir)):  # the owner does not keep loads and status out
            pass
    finally:
        holder.kill()
        holder.communicate()
    with pins.own(str(pin_dir)):  # the dead hold nothing
        assert pins.owner(str(pin_dir)) == os.getpid()
    assert pins.owner(str(pin_dir)) is None


def test_a_held_load_lock_ends_in_an_error_that_names_the_holder(pin_dir: Path) -> None:
    with pins.locked(str(pin_dir)), pytest.raises(NsagentError, match=f"process {os.getpid()} .*loading"):
        pins.locked(str(pin_dir), deadline_s=0.1)


def test_map_kinds(loaded: Loaded) -> None:
    seen, queue = loaded.maps["seen"], loaded.maps["spare"]
    key = struct.pack("=Q", 7)
    assert seen.lookup(key) is None
    assert not seen.update(key, key, bpf.EXIST)
    assert seen.update(key, key, bpf.NOEXIST)
    assert not seen.update(key, key, bpf.NOEXIST)
    assert seen.lookup(key) == key
    for n in range(20):
        seen.update(struct.pack("=Q", 100 + n), struct.pack("=Q", n))
    expected = {struct.pack("=Q", 100 + n): struct.pack("=Q", n) for n in range(20)} | {key: key}
    assert dict(seen.items()) == expected
    assert set(seen.keys()) == set(expected)
    assert seen.entries() == 21
    assert seen.delete(key)
    assert not seen.delete(key)
    with pytest.raises(ValueError, match="key of 4"):
        seen.update(bytes(4), key)

    recent = loaded.maps["recent"]  # which element an LRU evicts is the kernel's affair, early ones too: one is enough
    assert recent.update(key, key)
    assert (recent.lookup(key), recent.entries()) == (key, 1)

    assert queue.pop() is None
    assert [queue.update(b"", struct.pack("=I", n)) for n in range(4)] == [True, True, True, False]
    assert [queue.pop() for _ in range(4)] == [struct.pack("=I", n) for n in range(3)] + [None]

    percpu = loaded.maps["percpu"]
    parts = percpu.stride_bytes // 8
    assert parts >= len(os.sched_getaffinity(0))
    value = b"".join(struct.pack("=II", n + 1, 0) for n in range(parts))
    assert percpu.update(struct.pack("=I", 1), value)
    assert percpu.lookup(struct.pack("=I", 1)) == value
    assert [v for _, v in percpu.items()] == [bytes(len(value)), value]

    array = loaded.maps["counts"]
    array.update(struct.pack("=I", 3), struct.pack("=Q", 99))
    assert array.read_array(3, 1) == struct.pack("=Q", 99)
    assert array.read_array(3, 5) == struct.pack("=Q", 99)
    with pytest.raises(UnsupportedError):
        loaded.maps["cfg"].mmap()  # not made mmapable
    assert array.lookup(struct.pack("=I", 4)) is None


def test_only_what_is_asked_for_of_an_array_is_mapped(pin_dir: Path) -> None:
    document = asm.document()
    document["maps"] = {"long": {"type": "array", "key_size": 4, "value_size": 24, "max_entries": 9000, "flags": ["mmapable"]}}
    document["programs"] = []
    loaded = objects.load(parsed(document), str(pin_dir))
    array = loaded.maps["long"]
    for n in (0, 3, 8999):
        array.update(struct.pack("=I", n), struct.pack("=3Q", n, n, n))

    first = array.mmap(4)
    assert 4 * 24 <= len(first) < 9 * 24
    assert array.mmap(2) is first
    assert array.mmap(0) is first
    assert array.read_array(8999, 1) == struct.pack("=3Q", 8999, 8999, 8999)
    assert len(array.mmap()) == 9000 * 24
    assert first[3 * 24 : 4 * 24] == struct.pack("=3Q", 3, 3, 3)  # who has the old mapping keeps it
    loaded.close()


def test_batches_cover_a_map_larger_than_one(pin_dir: Path) -> None:
    document = asm.document()
    document["maps"] = {"big": {"type": "hash", "key_size": 8, "value_size": 8, "max_entries": 20000, "flags": []}}
    document["programs"] = []
    loaded = objects.load(parsed(document), str(pin_dir))
    big = loaded.maps["big"]
    for n in range(10_001):
        assert big.update(struct.pack("=Q", n), struct.pack("=Q", n * n))
    assert {struct.unpack("=Q", k)[0]: struct.unpack("=Q", v)[0] for k, v in big.items()} == {n: n * n for n in range(10_001)}
    loaded.unload()


def test_status_describes_programs_and_maps(loaded: Loaded) -> None:
    status = loaded.status()
    programs = {program.name: program for program in status.programs}
    assert programs["on_exit"].attach == "raw_tracepoint sched_process_exit"
    assert programs["on_task"].attach == "iter task"
    assert programs["on_call"].attach.startswith("perf")
    assert all(program.verified_insns > 10 and (program.memory_bytes or 0) > 0 for program in status.programs)
    sizes = {m.name: m.memory_bytes for m in status.maps}
    assert sizes["events"] is None or sizes["events"] >= 1 << 16  # None before v6.4: fdinfo says 0 there
    assert (sizes["counts"] or 0) >= 4 * 8
    assert status.source == "5a" * 32
    assert status.age_s >= 0
    assert len(status.pins) == len(status.maps) + 1 + 2 * len(status.programs)
    for fd, name in ((loaded.programs["on_exit"], "on_exit"), (loaded.programs["on_call"], "on_call")):
        assert bpf.prog_info(fd).name == name
    link = bpf.link_info(loaded.links["on_exit"])
    same = bpf.prog_get_fd_by_id(link.prog_id)
    assert bpf.prog_info(same).id == bpf.prog_info(loaded.programs["on_exit"]).id == link.prog_id
    os.close(same)


def test_run_counts_are_absent_until_the_kernel_keeps_them(loaded: Loaded) -> None:
    switch = Path("/proc/sys/kernel/bpf_stats_enabled")
    before = switch.read_text()
    if before.strip() != "0":
        pytest.skip("somebody has the kernel's BPF statistics on")
    assert loaded.status().programs[0].run_cnt is None
    try:
        switch.write_text("1")
        spawn(9)
        status = {p.name: p for p in loaded.status().programs}["on_exit"]
    finally:
        switch.write_text(before)
    assert status.run_cnt is not None
    assert status.run_cnt >= 9  # others' exits run it too
    assert (status.run_time_ns or 0) > 0


def test_a_program_without_attachment_can_be_run(pin_dir: Path) -> None:
    body = [asm.mov(8, 5), *asm.element("counts", 2), asm.move(1, 8), asm.fetch_add64(0, 1)]
    document = asm.document()
    one = asm.program("probe", "none", "", body)
    document["programs"] = [one | {"type": "raw_tracepoint"}]
    loaded = objects.load(parsed(document), str(pin_dir))
    for cpu in os.sched_getaffinity(0):
        assert bpf.prog_test_run(loaded.programs["probe"], cpu=cpu) == 0
    assert counts(loaded)[2] == 5 * len(os.sched_getaffinity(0))
    again = objects.adopt(str(pin_dir))
    assert again is not None
    assert set(again.programs) == {"probe"}
    assert again.links == {}
    again.close()
    loaded.unload()


def test_fentry_works_or_says_why_not(pin_dir: Path) -> None:
    """Where ftrace is locked down attaching is refused; either way nothing is left."""
    btf_id = asm.vmlinux().ids[FUNC, "do_exit"]
    document = asm.document()
    document["programs"] = [asm.program("on_fentry", "fentry", "do_exit", asm.bump(0, 1), btf_id=btf_id)]
    refused: UnsupportedError | None = None
    try:
        loaded = objects.load(parsed(document), str(pin_dir), groups={"account"})
    except UnsupportedError as exc:
        refused = exc
    if refused is not None:
        assert "fentry do_exit" in refused.message
        assert list(pin_dir.iterdir()) == []
        return
    spawn(3)
    assert counts(loaded)[0] >= 3
    loaded.unload()


def test_cli_shows_and_removes(pin_dir: Path) -> None:
    objects.load(parsed(asm.document()), str(pin_dir)).close()
    flag = ("--pin-dir", str(pin_dir))
    text = support.run_nsagent("bpf", "status", *flag)
    assert text.returncode == 0
    assert "on_exit" in text.stdout
    assert "raw_tracepoint sched_process_exit" in text.stdout
    shown = json.loads(support.run_nsagent("bpf", "status", "-o", "json", *flag).stdout)
    assert shown["loaded"] is True
    assert shown["agent_pid"] is None
    assert {program["name"] for program in shown["programs"]} == {"on_exit", "on_task", "on_call"}
    with pins.own(str(pin_dir)):
        refused = support.run_nsagent("bpf", "unload", *flag)
        assert refused.returncode == 125
        assert f"process {os.getpid()}" in refused.stderr
        assert "hint:" in refused.stderr
    removed = support.run_nsagent("bpf", "unload", *flag)
    assert (removed.returncode, removed.stdout) == (0, f"removed {pin_dir}\n")
    assert not pin_dir.exists()
    empty = json.loads(support.run_nsagent("bpf", "status", "-o", "json", *flag).stdout)
    assert empty == {"pin_dir": str(pin_dir), "loaded": False, "agent_pid": None}


MOUNTER = """
import json, os
from nsagent import libc
from nsagent.kernel import mounts
libc.unshare(libc.CLONE_NEWNS)
libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
target = os.environ["TARGET"]
print(json.dumps([mounts.is_bpffs(target), mounts.mount_bpffs(target), mounts.is_bpffs(target), mounts.mount_bpffs(target),
    sum(line.split()[4] == target for line in open("/proc/self/mountinfo")), mounts.mount_tracefs()]))
"""


def test_mounts_once_only(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MOUNTER], env=os.environ | {"TARGET": str(tmp_path)}, cwd=ROOT,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout) == [False, True, True, False, 1, False]
    with pytest.raises(UnsupportedError) as caught:
        mounts.mount_bpffs(str(tmp_path / "none"))
    assert "mount -t bpf" in caught.value.hint


def test_object_file_on_disk_loads(pin_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "object.json"
    path.write_bytes(asm.encoded(asm.document()))
    path.chmod(0o644)
    started = time.monotonic_ns()
    loaded = objects.load(objects.read_object(str(path)), str(pin_dir))
    assert started < loaded.loaded_ns < time.monotonic_ns()
    loaded.unload()
    path.write_bytes(b"{}")
    with pytest.raises(ParseError, match=str(path)):
        objects.read_object(str(path))
