"""The rules against the calls they are about, each beside one that looks like it and is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nsagent import namespaces
from nsagent.events import EventFilter, KernelEvents
from nsagent.findings import Finding, Findings, read_host_inums
from nsagent.kernel.attach import Attached
from nsagent.namespaces import NamespaceKind
from nsagent.patrol import read_held
from tests import support
from tests.kernel.conftest import AccountedCgroup

pytestmark = pytest.mark.kernel

NOBODY = 65534


@pytest.fixture
def kernel_events(attached: Attached) -> Iterator[KernelEvents]:
    events = KernelEvents(attached)
    events.read()
    yield events
    events.close()


def found_in(script: str, events: KernelEvents, findings: Findings | None = None) -> list[Finding]:
    """Run a script of calls in a process of its own; return what the rules say of that process."""
    code = f"import os; from nsagent import libc; from nsagent.libc import *; fd = lambda p: os.open(p, os.O_RDONLY)\n{script}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=support.ROOT)
    assert process.wait(120) == 0
    return [each for each in (findings or Findings()).of_events(events.read()) if each.pid == process.pid]


def test_the_initial_namespaces_are_known() -> None:
    host, ours = read_host_inums(), namespaces.read_inums("self")
    support.require(ours[NamespaceKind.PID] == 0xEFFFFFFC, "these tests run in a PID namespace of their own")
    assert len(host) == 8
    for kind in (NamespaceKind.USER, NamespaceKind.MNT):
        assert host[kind] == ours[kind]


@pytest.mark.parametrize(
    ("script", "kinds"),
    [
        ("m = fd('/proc/self/ns/mnt'); unshare(CLONE_NEWNS); setns(m, CLONE_NEWNS)", [["mnt"]]),
        ("f = [fd(f'/proc/self/ns/{k}') for k in ('mnt', 'uts')]\n"
         "unshare(CLONE_NEWNS | CLONE_NEWUTS)\nfor each in f: setns(each)", [["mnt"]]),
        ("u = fd('/proc/self/ns/uts'); unshare(CLONE_NEWUTS); setns(u, CLONE_NEWUTS)", []),
        ("unshare(CLONE_NEWNS); m = fd('/proc/self/ns/mnt'); unshare(CLONE_NEWNS); setns(m, CLONE_NEWNS)", []),
        ("unshare(CLONE_NEWNS)", []),
        ("p = fd('/proc/self/ns/pid'); unshare(CLONE_NEWPID); setns(p, CLONE_NEWPID)", []),
    ],
    ids=["back to the host", "one by one", "uts alone", "between two others", "away", "children's pid"],
)  # fmt: skip
def test_to_host(script: str, kinds: list[list[str]], kernel_events: KernelEvents) -> None:
    found = found_in(script, kernel_events)
    assert [(each.rule, each.evidence["kinds"]) for each in found] == [("to_host", each) for each in kinds]


USER = f"os.setresgid({NOBODY},{NOBODY},{NOBODY}); os.setresuid({NOBODY},{NOBODY},{NOBODY}); "


@pytest.mark.parametrize(
    ("script", "kinds"),
    [
        (USER + "unshare(CLONE_NEWUSER | CLONE_NEWNET)", [["net"]]),
        (USER + "unshare(CLONE_NEWUSER); unshare(CLONE_NEWNS | CLONE_NEWNET)", [["mnt", "net"]]),
        (USER + "unshare(CLONE_NEWUSER | CLONE_NEWNS); unshare(CLONE_NEWNET)", [["mnt"]]),  # once a user namespace
        (USER + "unshare(CLONE_NEWUSER)", []),
        (USER + "unshare(CLONE_NEWUSER | CLONE_NEWUTS)", []),
        ("unshare(CLONE_NEWUSER | CLONE_NEWNET)", []),
        ("unshare(CLONE_NEWNET)", []),
        (USER + "\ntry: unshare(CLONE_NEWNET)\nexcept OSError: pass", []),
    ],
    ids=["one call", "two calls", "told once", "user alone", "uts in it", "by root", "root, net", "refused"],
)
def test_unprivileged_user_namespaces(script: str, kinds: list[list[str]], kernel_events: KernelEvents) -> None:
    found = found_in(script, kernel_events)
    assert [(each.rule, each.evidence["kinds"]) for each in found] == [("unprivileged_userns", each) for each in kinds]


def test_a_rule_that_is_off_finds_nothing_and_is_not_counted(kernel_events: KernelEvents) -> None:
    script = "m = fd('/proc/self/ns/mnt'); unshare(CLONE_NEWNS); setns(m, CLONE_NEWNS)"
    off, on = Findings(off=["to_host"]), Findings()
    assert found_in(script, kernel_events, off) == []
    assert "to_host" not in off.counts()
    assert len(found_in(script, kernel_events, on)) == 1
    assert on.counts()["to_host"] >= 1
    assert on.counts()["orphan"] == 0


def test_the_forms_of_a_finding(kernel_events: KernelEvents) -> None:
    (found,) = found_in("m = fd('/proc/self/ns/mnt'); unshare(CLONE_NEWNS); setns(m, CLONE_NEWNS)", kernel_events)
    document = json.loads(found.to_json())
    assert (document["schema"], document["type"], document["rule"]) == (1, "finding", "to_host")
    assert document["evidence"]["event"]["syscall"] == "setns"
    assert document["evidence"]["event"]["pid"] == found.pid
    assert "FINDING to_host" in found.to_text()
    assert EventFilter()(found)
    assert EventFilter(kind=NamespaceKind.MNT, pid=os.getpid())(found)  # it descends from us
    assert not EventFilter(failed=True)(found)


def test_a_namespace_that_only_a_mount_keeps(tmp_path: Path) -> None:
    support.require_root()
    kept, lived_in = tmp_path / "kept", tmp_path / "lived-in"
    for path in (kept, lived_in):
        path.touch()
    subprocess.run(["unshare", f"--uts={kept}", "true"], check=True)
    member = subprocess.Popen(["unshare", f"--uts={lived_in}", "sleep", "60"])
    findings = Findings(orphan_s=100)
    try:
        support.wait_for(lambda: os.path.ismount(lived_in) and Path(f"/proc/{member.pid}/comm").read_text() == "sleep\n")
        inum = kept.stat().st_ino
        assert [f for f in findings.of_held(read_held(), 0) if f.evidence["inum"] == inum] == []
        assert [f for f in findings.of_held(read_held(), 99) if f.evidence["inum"] == inum] == []
        found = findings.of_held(read_held(), 100)
        (ours,) = [f for f in found if f.evidence["inum"] == inum]
        assert (ours.rule, ours.evidence["kind"], ours.evidence["held_by"]) == ("orphan", "uts", [str(kept)])
        assert lived_in.stat().st_ino not in {f.evidence["inum"] for f in found}
        assert [f for f in findings.of_held(read_held(), 500) if f.evidence["inum"] == inum] == []  # told once
    finally:
        member.kill()
        member.wait()
        for path in (kept, lived_in):
            subprocess.run(["umount", str(path)], check=False)


def test_a_namespace_that_only_a_descriptor_keeps() -> None:
    support.require_root()
    member = subprocess.Popen(["unshare", "--uts", "sleep", "600"])
    place = Path(f"/proc/{member.pid}/ns/uts")
    support.wait_for(lambda: place.stat().st_ino != Path("/proc/self/ns/uts").stat().st_ino)
    hold = 'exec 9<"$1"; echo; read line'
    holder = subprocess.Popen(["sh", "-c", hold, "sh", str(place)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    own = os.open(place, os.O_RDONLY)  # what this process keeps, it does not find
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"\n"
        inum = os.fstat(own).st_ino
        assert inum not in {each.inum for each in read_held()}
        member.kill()
        member.wait()
        assert [how for each, how in read_held().items() if each.inum == inum] == [(f"process {holder.pid} by descriptor 9",)]
    finally:
        os.close(own)
        for process in (member, holder):
            process.kill()
            process.communicate()


def test_a_clone_storm(attached: Attached, new_cgroup: Callable[[str], AccountedCgroup], load: str) -> None:
    stormy, busy = new_cgroup("stormy"), new_cgroup("busy")
    findings = Findings(storm_per_s=500, path_of={stormy.id: "/stormy"}.get)
    ours = {stormy.id, busy.id}

    def check(now: float, forks: int) -> list[Finding]:
        for cgroup, count in ((stormy, forks), (busy, 50)):
            process = cgroup.run([load, "forks", str(count), "0"])
            process.communicate(timeout=120)
        return [each for each in findings.of_rows(attached.created(), now) if each.cgroup_id in ours]

    assert check(0, 600) == []  # what came before is not compared with anything
    assert check(1, 600) == []  # a burst
    assert check(2, 50) == []
    assert check(3, 600) == []
    (found,) = check(4, 600)
    assert (found.rule, found.cgroup_id, found.evidence["cgroup"]) == ("clone_storm", stormy.id, "/stormy")
    assert 500 <= found.evidence["processes_per_second"] <= 601  # and the exec'd load itself
    assert check(5, 600) == []  # told once a storm


def test_processes_that_only_changed_their_row_are_no_storm() -> None:
    """A fold moves a count into another row: twice a fold in a row, and nobody made a process."""
    findings = Findings(storm_per_s=500)
    assert findings.of_rows([(1, 10), (2, 5000), (3, 5000)], 0) == []
    assert findings.of_rows([(1, 5010), (0, 0), (3, 5000)], 1) == []
    assert findings.of_rows([(1, 10010), (0, 0), (0, 0)], 2) == []
    assert findings.of_rows([(1, 15010), (0, 0), (0, 0)], 3) == []
    assert len(findings.of_rows([(1, 20010), (0, 0), (0, 0)], 4)) == 1
