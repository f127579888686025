"""`nsagent ns` against lsns, the kernel's own numbers and namespaces made here; with a real agent, the history of each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsagent import control, namespaces
from nsagent.errors import NsagentError
from nsagent.namespaces import KINDS, NamespaceId, NamespaceKind
from nsagent.watch import read_about
from tests.kernel.agents import Agent, get, running
from tests.support import nsagent_argv, require, require_root, run_nsagent, wait_for

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module", autouse=True)
def _root() -> None:
    require_root()


@pytest.fixture
def agent(world: list[str]) -> Iterator[Agent]:
    with running(world) as found:
        yield found


def ask(state_dir: str | Path, *args: str) -> Any:
    """Run `nsagent ns ... -o json`."""
    done = run_nsagent("ns", *args, "-o", "json", "--state-dir", str(state_dir))
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def record(agent: Agent, namespace: NamespaceId) -> dict[str, Any]:
    found = ask(agent.state_dir, "history", f"{namespace.kind}:{namespace.inum}")["records"]
    return dict(next(each for each in found if each["id"] == namespace.id))


class Inside:
    """A process of ours that does as told on its standard input, a Python statement a line; `ready` after each."""

    def __init__(self, *prefix: str) -> None:
        code = "import sys, os\nfrom nsagent import libc\nfor line in sys.stdin: exec(line); print('ready', flush=True)\n"
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )
        self.pid = self.process.pid
        self.do("pass")

    def do(self, statement: str) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(statement + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer == "ready\n", answer

    def namespace(self, kind: NamespaceKind) -> NamespaceId:
        return namespaces.identify(f"/proc/{self.pid}/ns/{kind}")

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.stdin = None
        self.process.wait(120)


@contextlib.contextmanager
def inside(*prefix: str) -> Iterator[Inside]:
    found = Inside(*prefix)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.kill()
        found.process.communicate()


def lsns() -> set[tuple[str, int]]:
    require(shutil.which("lsns"), "lsns is not installed (util-linux)")
    done = subprocess.run(["lsns", "--json", "--output", "NS,TYPE"], capture_output=True, text=True, check=True)
    return {(each["type"], int(each["ns"])) for each in json.loads(done.stdout)["namespaces"]}


def test_list_has_all_that_lsns_has(state_dir: Path) -> None:
    with inside("unshare", "--uts", "--ipc", "--net", "--mount", "--user", "--map-root-user") as child:
        before = lsns()
        listed = ask(state_dir, "list")
        stayed = before & lsns()
        found = {(row["kind"], row["inum"]): row for row in listed["namespaces"]}
        assert listed["agent"] is False
        assert stayed <= found.keys()
        for kind in ("uts", "ipc", "net", "mnt", "user"):
            identity = child.namespace(NamespaceKind(kind))
            row = found[kind, identity.inum]
            assert (row["id"], row["processes"], row["oldest"]["pid"]) == (identity.id, 1, child.pid)
            assert row["usage"] is None
            owner = child.namespace(NamespaceKind.USER)
            assert row["owner"]["inum"] == (owner.inum if kind != "user" else os.stat("/proc/self/ns/user").st_ino)
        assert {row["kind"] for row in ask(state_dir, "list", "--kind", "net")["namespaces"]} == {"net"}


def test_list_has_what_no_process_is_in(state_dir: Path, tmp_path: Path) -> None:
    """By a mount of this mount namespace, by a mount that only another one sees, and by a descriptor."""
    pin, hidden = tmp_path / "pin", tmp_path / "hidden"
    for path in (pin, hidden):
        path.touch()
    with inside("unshare", "--mount", "--propagation", "private") as keeper, inside() as child:
        child.do("libc.unshare(libc.CLONE_NEWUTS)")
        mounted = child.namespace(NamespaceKind.UTS)
        subprocess.run(["mount", "--bind", f"/proc/{child.pid}/ns/uts", str(pin)], check=True)
        try:
            child.do("libc.unshare(libc.CLONE_NEWUTS)")
            concealed = child.namespace(NamespaceKind.UTS)
            enter = ["nsenter", f"--mount=/proc/{keeper.pid}/ns/mnt"]
            subprocess.run([*enter, "mount", "--bind", f"/proc/{child.pid}/ns/uts", str(hidden)], check=True)
            child.do("libc.unshare(libc.CLONE_NEWUTS)")
            opened = child.namespace(NamespaceKind.UTS)
            child.do("global fd; fd = os.open('/proc/self/ns/uts', os.O_RDONLY); libc.unshare(libc.CLONE_NEWUTS)")
            found = {row["inum"]: row for row in ask(state_dir, "list", "--kind", "uts")["namespaces"]}
            for namespace in (mounted, concealed, opened):
                row = found[namespace.inum]
                assert (row["id"], row["processes"], row["oldest"]) == (namespace.id, 0, None)
            assert found[mounted.inum]["kept_by"]["mounts"] == [str(pin)]
            assert found[concealed.inum]["kept_by"]["mounts"] == [str(hidden)]
            (descriptor,) = found[opened.inum]["kept_by"]["descriptors"]
            assert descriptor["pid"] == child.pid
            text = run_nsagent("ns", "list", "--kind", "uts", "--state-dir", str(state_dir))
            assert f"mount {pin}" in text.stdout
            assert "no agent" in text.stderr
        finally:
            subprocess.run(["umount", str(pin)], check=True)


def test_tree_has_owners_and_parents(state_dir: Path) -> None:
    argv = ["unshare", "--user", "--map-root-user", "--uts", "--pid", "--fork"]
    with inside(*argv, *argv) as outer:
        chain = descendants(outer.pid)
        assert len(chain) == 2
        users = [os.stat(f"/proc/{pid}/ns/user").st_ino for pid in (outer.pid, chain[0])]  # unshare(1) forks after it
        pids = [os.stat(f"/proc/{pid}/ns/pid").st_ino for pid in chain]
        (root,) = ask(state_dir, "tree")
        assert root["inum"] == os.stat("/proc/self/ns/user").st_ino
        first = next(each for each in root["below"] if each["inum"] == users[0])
        second = next(each for each in first["below"] if each["inum"] == users[1])
        assert {(each["kind"], each["inum"]) for each in first["below"]} >= {("user", users[1]), ("pid", pids[0])}
        (nested,) = [each for each in second["below"] if each["kind"] == "pid"]
        assert nested["parent"] == {**nested["parent"], "kind": "pid", "inum": pids[0]}
        text = run_nsagent("ns", "tree", "--state-dir", str(state_dir)).stdout
        assert f"─ user:{users[0]}" in text


def descendants(pid: int) -> list[int]:
    """Return the only child of a process, that one's only child, and so on."""
    found: list[int] = []
    while children := Path(f"/proc/{(found or [pid])[-1]}/task/{(found or [pid])[-1]}/children").read_text().split():
        found.append(int(children[0]))
    return found


def test_show_has_both_numbers_of_each_process(state_dir: Path) -> None:
    """What `pstree -pl` outside and `echo $$` inside told by hand."""
    script = "echo $$; sleep 1000 & echo $!; unshare --pid --fork sh -c 'echo $$; exec sleep 1001' & wait"
    argv = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            shell, sleeper, nested = (int(process.stdout.readline()) for _ in range(3))
            assert (shell, nested) == (1, 1)
            first = int(Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text())

            def show() -> Any:
                return ask(state_dir, "show", str(first), "--kind", "pid")

            def commands() -> set[str]:
                return {each["command"] for each in show()["processes"]}

            # the nested shell says its number before it becomes the second sleep
            wait_for(lambda: commands() >= {"sleep 1000", "sleep 1001"}, what="two sleeps")
            shown = show()
            assert len(shown["processes"]) == 4
            by_command = {each["command"]: each for each in shown["processes"]}
            assert by_command["sleep 1000"]["inner_pid"] == sleeper
            assert by_command["sleep 1001"]["inner_pid"] > sleeper  # 1 in its own, a number of this one here
            (top,) = [each for each in shown["processes"] if each["inner_pid"] == 1]
            assert (top["pid"], top["comm"]) == (first, "sh")
            assert shown["namespace"]["processes"] == 3
            assert (shown["agent"], shown["history"]) == (False, None)
            lines = run_nsagent("ns", "show", f"pid:[{shown['namespace']['inum']}]", "--state-dir", str(state_dir)).stdout
            assert f"{by_command['sleep 1000']['pid']:>7}  {sleeper:>7}  " in lines
        finally:
            process.kill()


def test_diff(state_dir: Path) -> None:
    with inside("unshare", "--uts", "--net") as child:
        rows = ask(state_dir, "diff", str(os.getpid()), str(child.pid))["namespaces"]
        assert [row["kind"] for row in rows] == [kind.value for kind in KINDS if os.path.exists(f"/proc/self/ns/{kind}")]
        assert {row["kind"] for row in rows if not row["same"]} == {"uts", "net"}
        assert next(row["second"]["inum"] for row in rows if row["kind"] == "uts") == child.namespace(NamespaceKind.UTS).inum


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("show", "net:xyz"), 2, "no namespace 'net:xyz'"),
        (("show", "house:4026531840"), 2, "no namespace 'house:4026531840'"),
        (("show", "uts:1"), 125, "there is no namespace uts:1, and none is remembered"),
        (("show", "4194304", "--kind", "uts"), 125, "process 4194304 is gone"),
        (("diff", "1", "0"), 2, "not in the range"),
        (("diff", str(os.getpid()), "4194304"), 125, "process 4194304 is gone"),
        (("history",), 125, "nobody kept a history"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_told_is_one_line(state_dir: Path, args: tuple[str, ...], code: int, words: str) -> None:
    done = run_nsagent("ns", *args, "--state-dir", str(state_dir))
    assert (done.returncode, done.stdout) == (code, "")
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_five_times_one_number_are_five_histories(agent: Agent) -> None:
    """The kernel hands the same inum to one `unshare -u` after the other; each has its maker, its span and its end."""
    made = [
        subprocess.Popen(["unshare", "--uts", "readlink", "/proc/self/ns/uts"], stdout=subprocess.PIPE, text=True) for _ in "x"
    ]
    for _ in range(4):
        made[-1].wait()
        made.append(subprocess.Popen(made[0].args, stdout=subprocess.PIPE, text=True))
    inums = [int(process.communicate()[0].strip()[5:-1]) for process in made]
    wanted = {process.pid: inum for process, inum in zip(made, inums, strict=True)}

    def found() -> dict[int, dict[str, Any]]:
        records = [record for record in ask(agent.state_dir, "history", "--kind", "uts")["records"] if record["created"]]
        return {record["created"]["pid"]: record for record in records if record["created"]["pid"] in wanted}

    wait_for(lambda: [record["state"] for record in found().values()] == ["ended"] * 5, what="five ended namespaces")
    records = found()
    assert {pid: record["inum"] for pid, record in records.items()} == wanted
    assert len({record["id"] for record in records.values()}) == 5
    for record in records.values():
        assert record["created"]["argv"][:2] == ["unshare", "--uts"]
        assert record["created"]["ancestors"][0]["pid"] == os.getpid()
        assert record["created"]["from"]["inum"] == os.stat("/proc/self/ns/uts").st_ino
        assert record["ended"]["how"] == "exit"
        assert record["created"]["time"] <= record["ended"]["after"] <= record["ended"]["by"]
    one = run_nsagent("ns", "history", f"uts:{inums[0]}", "--state-dir", agent.state_dir).stdout
    assert one.count("its last process exited") >= inums.count(inums[0])
    assert f"unshare({made[0].pid}) ← " in one


def test_who_joins_and_who_leaves_last(agent: Agent) -> None:
    before = agent.scrape()
    with inside() as child:
        child.do("global home; home = os.open('/proc/self/ns/uts', os.O_RDONLY); libc.unshare(libc.CLONE_NEWUTS)")
        namespace = child.namespace(NamespaceKind.UTS)
        target = f"/proc/{child.pid}/ns/uts"
        visitors = [subprocess.Popen(["nsenter", f"--uts={target}", "true"]) for _ in range(3)]
        assert [visitor.wait(120) for visitor in visitors] == [0, 0, 0]
        seen = wait_for(lambda: (found := record(agent, namespace))["joins"] == 3 and found, what="three joins")
        assert {entry["pid"] for entry in seen["entered"]} == {visitor.pid for visitor in visitors}
        assert [(each["pid"]) for each in seen["members"]] == [child.pid]
        assert (seen["state"], seen["kept_by"]["processes"]) == ("live", 1)
        child.do("libc.setns(home, libc.CLONE_NEWUTS)")
        wait_for(lambda: record(agent, namespace)["state"] == "ended", what="the end")
        ended = record(agent, namespace)
        assert ended["left"]["pid"] == child.pid
        assert ended["left"]["to"]["inum"] == os.stat("/proc/self/ns/uts").st_ino
        # Its visitors exited, so that the last one's leaving is one of two possible ends: the span has it either way.
        assert ended["ended"]["after"] <= ended["left"]["time"] <= ended["ended"]["by"]
        assert ended["kept_by"] is None
    after = agent.scrape()

    def grown(name: str, **labels: str) -> float:
        return (get(after, name, kind="uts", **labels) or 0) - (get(before, name, kind="uts", **labels) or 0)

    assert grown("nsagent_namespaces_created_total") >= 1
    assert grown("nsagent_namespaces_ended_total") >= 1
    assert grown("nsagent_namespace_joins_total", crossing="into_container") >= 3
    assert grown("nsagent_namespace_joins_total", crossing="to_host") >= 1


def test_who_has_cap_sys_ptrace_is_not_told_to_get_it() -> None:
    """Root of a user namespace has it, but not over a process of the one above."""
    argv = ["unshare", "--user", "--map-root-user", *nsagent_argv(), "ns", "diff", str(os.getpid()), str(os.getpid())]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    require("unshare failed" not in done.stderr, "this host lets nobody make user namespaces")
    assert done.returncode == 125
    assert "hint: not for lack of CAP_SYS_PTRACE: " in done.stderr


def test_a_pinned_namespace_outlives_its_processes(agent: Agent, tmp_path: Path) -> None:
    pin = tmp_path / "pin"
    pin.touch()
    with inside("unshare", "--net") as child:
        namespace = child.namespace(NamespaceKind.NET)
        shown = ask(agent.state_dir, "show", f"net:{namespace.inum}")
        assert shown["namespace"]["usage"]["processes"] == 1
        assert shown["namespace"]["usage"]["cpu_ns"] > 0
        labels = {"kind": "net", "inum": str(namespace.inum), "id": str(namespace.id)}
        made = get(agent.scrape(), "nsagent_namespace_created_timestamp_seconds", **labels)
        assert made == pytest.approx(record(agent, namespace)["created"]["time"], abs=1e-3)
        subprocess.run(["mount", "--bind", f"/proc/{child.pid}/ns/net", str(pin)], check=True)
        try:
            child.end()
            wait_for(lambda: record(agent, namespace)["state"] == "ended", what="the end of its last process")
            kept = record(agent, namespace)
            assert kept["kept_by"]["mounts"] == [str(pin)]
            assert kept["kept_by"]["processes"] == 0
            assert get(agent.scrape(), "nsagent_namespace_created_timestamp_seconds", **labels) is None
            with inside("nsenter", f"--net={pin}"):
                again = record(agent, namespace)
                assert (again["state"], again["joins"], again["ended"]) == ("live", 1, None)
        finally:
            subprocess.run(["umount", str(pin)], check=True)


def test_show_tells_the_history_of_what_only_a_mount_keeps(agent: Agent, tmp_path: Path) -> None:
    """Its record has ended, as no process is in it; those that had its number before are not its own."""
    pin = tmp_path / "pin"
    pin.touch()
    subprocess.run(["unshare", "--uts", "true"], check=True)
    with inside("unshare", "--uts") as child:
        namespace = child.namespace(NamespaceKind.UTS)
        require(namespace.id, "this kernel has no NS_GET_ID (6.18 has it)")
        subprocess.run(["mount", "--bind", f"/proc/{child.pid}/ns/uts", str(pin)], check=True)
        try:
            child.end()
            wait_for(lambda: record(agent, namespace)["state"] == "ended", what="the end of its last process")
            shown = ask(agent.state_dir, "show", f"uts:{namespace.inum}")
            assert (shown["namespace"]["id"], shown["namespace"]["processes"]) == (namespace.id, 0)
            assert shown["history"] == {k: v for k, v in record(agent, namespace).items() if k != "kept_by"}
            assert (shown["history"]["id"], shown["history"]["created"]["pid"]) == (namespace.id, child.pid)
            text = run_nsagent("ns", "show", f"uts:{namespace.inum}", "--state-dir", agent.state_dir).stdout
            assert f" by unshare of unshare({child.pid}) ← " in text
            assert f"kept by   mount {pin}; no process is in it" in text
        finally:
            subprocess.run(["umount", str(pin)], check=True)


def test_what_names_a_namespace(tmp_path: Path) -> None:
    pin = tmp_path / "blue"
    pin.touch()
    with inside("unshare", "--user", "--map-root-user", "--uts") as child:
        uts, user = child.namespace(NamespaceKind.UTS), child.namespace(NamespaceKind.USER)
        subprocess.run(["mount", "--bind", f"/proc/{child.pid}/ns/uts", str(pin)], check=True)
        try:
            oldest = {uts: (child.pid, "maker"), user: (child.pid, ""), uts._replace(id=uts.id + 1): (child.pid, "")}
            about, strayed, gone = read_about(oldest)
        finally:
            subprocess.run(["umount", str(pin)], check=True)
        host = str(os.stat("/proc/self/ns/user").st_ino)
        comm = Path(f"/proc/{child.pid}/comm").read_text().strip()
        assert about[uts][:5] == (str(user.inum), "", "blue", str(child.pid), comm)
        assert about[uts].creator_comm == "maker"
        assert about[uts].cgroup.startswith("/")
        assert about[user][:3] == (host, host, "")
        assert (strayed, gone) == ([uts._replace(id=uts.id + 1)], [])
    assert read_about({uts: (child.pid, "")}) == ({}, [], [uts])


def test_what_was_there_before_the_agent_is_said_to_be(world: list[str]) -> None:
    with inside("unshare", "--uts") as child, running(world) as agent:
        found = record(agent, child.namespace(NamespaceKind.UTS))
        assert (found["existed"], found["created"], found["state"]) == (True, None, "live")
        assert "before the agent" in run_nsagent("ns", "show", str(child.pid), "--kind", "uts", "--state-dir", world[1]).stdout


def test_history_and_counters_survive(world: list[str]) -> None:
    """SIGTERM saves the records. SIGKILL costs those since the last save, but no counter falls, and no end counts twice."""
    names = ("nsagent_namespaces_ended_total", "nsagent_namespaces_created_total")
    with running(world) as agent, inside() as child:
        child.do("libc.unshare(libc.CLONE_NEWUTS)")
        first = child.namespace(NamespaceKind.UTS)
        child.do("libc.unshare(libc.CLONE_NEWUTS)")
        wait_for(lambda: record(agent, first)["state"] == "ended", what="the end")
        told = record(agent, first)
        assert told["ended"]["how"] == "left"
        agent.stop(signal.SIGTERM)
        with running(world) as again:
            assert record(again, first) == told
            subprocess.run(["nsenter", f"--uts=/proc/{child.pid}/ns/uts", "true"], check=True)
            second = child.namespace(NamespaceKind.UTS)
            wait_for(lambda: record(again, second)["joins"] == 1, what="a join")
            before = again.scrape()
            again.kill()
        with running(world) as last:
            after = last.scrape()
            for name, labels in [key for key in before if key[0] in (*names, "nsagent_namespace_joins_total")]:
                assert after[name, labels] >= before[name, labels]
            assert record(last, first)["ended"]["how"] == "left"


def test_no_second_of_a_kind_is_lost_when_its_namespaces_go(world: list[str]) -> None:
    """Each busy process has a uts namespace of its own; their series go after --retain, their seconds stay in the kind's sum."""
    sums: list[float] = []

    def look(agent: Agent) -> float:
        samples = agent.scrape()
        mine = [value for (name, labels), value in samples.items() if name == "nsagent_namespace_cpu_seconds_total"
                and ("kind", "uts") in labels]  # fmt: skip
        gone = get(samples, "nsagent_namespace_ended_cpu_seconds_total", kind="uts") or 0.0
        sums.append(sum(mine) + gone)
        return gone

    with running(world, "--retain", "1s") as agent:
        at_first = look(agent)
        burn = "import time\nwhile time.process_time() < 0.1: pass"
        for _ in range(10):
            subprocess.run(["unshare", "--uts", sys.executable, "-c", burn], check=True)
            look(agent)
        wait_for(lambda: look(agent) - at_first >= 1.0, what="ten ended namespaces' seconds")
        looks = len(sums)
        wait_for(lambda: look(agent) is not None and len(sums) >= looks + 5, what="the folds")
        assert sums == sorted(sums)


def test_many_ask_at_once(agent: Agent) -> None:
    answers: list[int] = []

    def go() -> None:
        answer = control.ask_rows(agent.state_dir, {"request": "history"})
        assert answer is not None
        answers.append(len(answer[1]))

    threads = [threading.Thread(target=go) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 20
    assert min(answers) >= 8


@pytest.mark.parametrize("wrong", [{"kind": "house"}, {"inum": "1"}, {"id": True}, {"colour": 1}])
def test_a_request_that_is_not_understood(agent: Agent, wrong: dict[str, Any]) -> None:
    with pytest.raises(NsagentError, match="is not understood"):
        control.ask(agent.state_dir, {"request": "history", **wrong})


def test_without_bpf_the_history_knows_what_it_sees(world: list[str]) -> None:
    with running(world, "--no-bpf") as agent, inside() as child:
        child.do("libc.unshare(libc.CLONE_NEWUTS)")
        namespace = child.namespace(NamespaceKind.UTS)
        found = record(agent, namespace)
        assert (found["state"], found["created"], found["existed"]) == ("live", None, False)
        child.end()
        wait_for(lambda: record(agent, namespace)["state"] == "ended", what="the end")
        assert [each["pid"] for each in record(agent, namespace)["members"]] == [child.pid]
        assert get(agent.scrape(), "nsagent_namespaces_created_total", kind="uts") is None
