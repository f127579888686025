"""A container of a real engine: its namespaces' history names who made them, who was in them, and their end."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.engine import containerd
from tests.engine.containerd import Containerd
from tests.kernel import agents
from tests.support import require_root, run_nsagent, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.engine]

MADE = ("ipc", "mnt", "net", "pid", "uts")  # what ctr run asks runc for, everywhere


@pytest.fixture(scope="module")
def engine() -> Iterator[Containerd]:
    require_root()
    with tempfile.TemporaryDirectory(prefix="nsagent-test-") as directory, containerd.running(Path(directory)) as found:
        yield found


def asked(world: list[str], *args: str) -> Any:
    done = run_nsagent("ns", *args, "-o", "json", "--state-dir", world[1])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def record(world: list[str], kind: str, inum: int, number: int) -> dict[str, Any]:
    (found,) = [each for each in asked(world, "history", f"{kind}:{inum}")["records"] if each["id"] == number]
    return dict(found)


def test_history_of_a_container(world: list[str], engine: Containerd) -> None:
    with agents.running(world):
        pid = engine.run("one")
        seen = {kind: os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in MADE}
        mine = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in MADE}
        engine.execute("one")
        shown = asked(world, "show", str(pid), "--kind", "pid")
        number = {kind: asked(world, "show", f"{kind}:{inum}")["namespace"]["id"] for kind, inum in seen.items()}
        assert [(each["pid"], each["inner_pid"], each["argv"]) for each in shown["processes"]] == [(pid, 1, ["/bin/waiter"])]
        assert shown["namespace"]["usage"]["processes"] == 1

        for kind, inum in seen.items():
            found = record(world, kind, inum, number[kind])
            made = found["created"]
            assert found["state"] == "live"
            assert made["comm"].startswith("runc")
            assert made["argv"] == ["runc", "init"]
            assert [each["comm"] for each in made["ancestors"]][:2] == ["runc", "containerd-shim"]
            assert made["from"]["inum"] == mine[kind]
            assert [(each["pid"], each["comm"], each["argv"]) for each in found["members"]] == [(pid, "waiter", ["/bin/waiter"])]
            assert found["joins"] == 1  # the exec's runc
            joined = [each for each in found["entered"] if each["how"] == "joined"]
            assert joined[0]["ancestors"][0]["comm"] == "runc"
            assert joined[0]["pid"] != made["pid"]
            assert found["ended"] is None
        born = [
            each["child_pid"] for each in record(world, "pid", seen["pid"], number["pid"])["entered"] if each["how"] == "born"
        ]
        assert born[0] == pid
        assert len(born) == 2

        engine.remove("one")
        wait_for(lambda: record(world, "uts", seen["uts"], number["uts"])["state"] == "ended", what="the end of the container")
        for kind, inum in seen.items():
            found = record(world, kind, inum, number[kind])
            assert (found["state"], found["ended"]["how"]) == ("ended", "exit")
            assert found["created"]["time"] < found["ended"]["after"] <= found["ended"]["by"]
            assert [each["comm"] for each in found["members"]] == ["waiter"]
            assert found["kept_by"] is None
        text = run_nsagent("ns", "history", f"uts:{seen['uts']}", "--state-dir", world[1]).stdout
        assert "runc" in text
        assert "its last process exited" in text


def test_two_containers_one_after_the_other_have_two_histories(world: list[str], engine: Containerd) -> None:
    with agents.running(world) as agent:
        before = agent.scrape()
        pids = []
        for name in ("first", "second"):
            pids.append(engine.run(name))
            assert asked(world, "history", str(pids[-1]), "--kind", "net")["records"][-1]["members"][0]["pid"] == pids[-1]
            engine.remove(name)

        def ended() -> list[dict[str, Any]]:
            everything = asked(world, "history", "--kind", "net")["records"]
            over = [each for each in everything if each["state"] == "ended" and each["members"]]
            return [each for each in over if each["members"][0]["pid"] in pids]  # others of this node have namespaces too

        wait_for(lambda: len(ended()) == 2, what="the end of two net namespaces")
        found = ended()
        assert [each["members"][0]["pid"] for each in found] == pids
        assert found[0]["id"] != found[1]["id"]
        after = agent.scrape()
        for name in ("nsagent_namespaces_created_total", "nsagent_namespaces_ended_total"):
            grown = (agents.get(after, name, kind="net") or 0) - (agents.get(before, name, kind="net") or 0)
            assert grown >= 2
