"""A container of Debian's docker.io: its namespaces' history, and what its cgroup is called."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.metrics.text import printable
from tests.engine import docker
from tests.engine.docker import IMAGE, Docker
from tests.engine.test_containerd import MADE, asked, record
from tests.kernel import agents
from tests.support import require_root, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.engine]


@pytest.fixture(scope="module")
def engine() -> Iterator[Docker]:
    require_root()
    with tempfile.TemporaryDirectory(prefix="nsagent-test-") as directory, docker.running(Path(directory)) as found:
        yield found


def about(agent: agents.Agent, number: str) -> dict[str, str]:
    """Return the labels of the one info of a container's own cgroup, none where there is no name yet."""
    found = [dict(labels) for series, labels in agent.scrape() if series == "nsagent_cgroup_info"]
    own = [labels for labels in found if labels["cgroup"].endswith(f"/{number}")]
    return own[0] if len(own) == 1 and own[0]["container"] else {}


def test_history_and_names_of_a_docker_container(world: list[str], engine: Docker) -> None:
    with agents.running(world, "--runtime", engine.socket) as agent:
        number, pid = engine.run("one")
        seen = {kind: os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in MADE}
        mine = {kind: os.stat(f"/proc/self/ns/{kind}").st_ino for kind in MADE}
        engine.execute("one")
        ids = {kind: asked(world, "show", f"{kind}:{inum}")["namespace"]["id"] for kind, inum in seen.items()}
        for kind, inum in seen.items():
            found = record(world, kind, inum, ids[kind])
            made = found["created"]
            assert (found["state"], found["ended"]) == ("live", None)
            assert made["comm"].startswith("runc")
            assert made["argv"] == ["runc", "init"]
            assert [each["comm"] for each in made["ancestors"]][:2] == ["runc", "containerd-shim"]
            assert made["from"]["inum"] == mine[kind]
            assert [(each["pid"], each["comm"], each["argv"]) for each in found["members"]] == [(pid, "waiter", ["/bin/waiter"])]
            assert any(each["how"] == "joined" for each in found["entered"])

        named = wait_for(lambda: about(agent, number), what="the container's name")
        expected = {"container_id": number, "container": "one", "image": IMAGE, "cgroup": f"/{engine.name}/{number}"}
        assert {label: named[label] for label in expected} == expected
        assert int(named["cgroup_id"]) > 0

        engine.remove("one")
        for kind, inum in seen.items():
            wait_for(
                lambda kind=kind, inum=inum: record(world, kind, inum, ids[kind])["state"] == "ended",  # type: ignore[misc]
                what=f"the end of its {kind} namespace",
            )
            found = record(world, kind, inum, ids[kind])
            assert found["created"]["time"] < found["ended"]["after"] <= found["ended"]["by"]
            assert [each["comm"] for each in found["members"]] == ["waiter"]
            assert found["kept_by"] is None
        assert about(agent, number) == named, "an ended cgroup keeps its names for --retain"


def test_scrapes_do_not_wait_for_a_runtime_that_hangs(world: list[str], engine: Docker, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        hanging = str(tmp_path / "h.sock")
        listener.bind(hanging)
        listener.listen()
        listener.settimeout(120)
        with agents.running(world, "--no-bpf", "--runtime", hanging, "--runtime", engine.socket) as agent:
            connection, _ = listener.accept()
            with connection:
                number, _ = engine.run("two")
                assert wait_for(lambda: about(agent, number), what="the container's name")["container"] == "two"
                engine.remove("two")


def test_labels_that_are_allowed(world: list[str], engine: Docker) -> None:
    """Whatever they are called: none breaks the exposition, and no two become one."""
    shown = {"team": "web", "odd.x": "1", "odd_x": "2", 'odd"\\\n{}': ',="\\\n', "odd\\012": "", "odd\n": "…"}
    options = [f"--label={name}={value}" for name, value in shown.items()]
    flags = ("--no-bpf", "--runtime", engine.socket, "--label-allow", "team", "--label-allow", "odd*")
    with agents.running(world, *flags) as agent:
        number, _ = engine.run("four", *options, "--label=secret=no")
        cgroup = f"/{engine.name}/{number}"

        def labels() -> dict[str, str]:
            found = [dict(each) for series, each in agent.scrape() if series == "nsagent_cgroup_label_info"]
            return {each["label"]: each["value"] for each in found if each["cgroup"] == cgroup}

        found = wait_for(labels, 60, "the container's labels")
        assert found == {printable(name): printable(value) for name, value in shown.items()}
        engine.remove("four")
        assert labels() == found, "an ended cgroup keeps its labels for --retain"


def test_without_runtimes_there_are_ids_and_no_names(world: list[str], engine: Docker) -> None:
    with agents.running(world, "--no-bpf", "--runtime", engine.socket, "--no-runtimes") as agent:
        number, _ = engine.run("three")
        found = [dict(labels) for series, labels in agent.scrape() if series == "nsagent_cgroup_info"]
        engine.remove("three")
        (own,) = [labels for labels in found if labels["cgroup"] == f"/{engine.name}/{number}"]
        assert (own["container_id"], own["container"], own["image"]) == (number, "", "")
