"""Where events come from, on a real node: cgroups made a moment ago, a job, a container's cgroup, the program."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nsagent.cgroups.layout import read_layout
from nsagent.cgroups.paths import Paths
from tests.kernel.agents import running
from tests.support import ROOT, nsagent_running, require_root, wait_for

pytestmark = pytest.mark.kernel
CONTAINER = "c0ffee00" * 8


@pytest.fixture(autouse=True)
def _root() -> None:
    require_root()


@contextlib.contextmanager
def cgroup(*names: str) -> Iterator[Path]:
    """Make a cgroup where usage is charged; the first name is prefixed."""
    top = Path(read_layout().accounting[1].mountpoint) / f"nsagent-test-{os.getpid()}-{names[0]}"
    path = top.joinpath(*names[1:])
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        while path != top.parent:
            path.rmdir()
            path = path.parent


def test_a_path_by_its_id_without_a_walk_and_after_the_end() -> None:
    hierarchy = read_layout().accounting[1]
    paths = Paths(hierarchy)
    assert paths.find(os.stat(hierarchy.mountpoint).st_ino) == (hierarchy.prefix or "/")
    with cgroup("a", "b c") as path:
        number = path.stat().st_ino
        name = hierarchy.prefix + str(path).removeprefix(hierarchy.mountpoint)
        assert paths.find(number) == name
    assert paths.find(number) == name
    assert Paths(hierarchy).find(number) is None


def test_an_agent_says_where_events_come_from(world: list[str], tmp_path: Path) -> None:
    events = tmp_path / "events"

    def found(**wanted: Any) -> list[dict[str, Any]]:
        text = events.read_text() if events.exists() else ""
        lines = [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]
        return [line for line in lines if all(line.get(name) == value for name, value in wanted.items())]

    with running(world, "--events-to", f"file:{events}"), cgroup("pod", f"docker-{CONTAINER}.scope") as path:
        code = "import sys; sys.stdin.readline(); libc.unshare(libc.CLONE_NEWUTS); sys.stdin.readline()"
        with subprocess.Popen(
            [sys.executable, "-c", f"from nsagent import libc\n{code}"], cwd=ROOT, stdin=subprocess.PIPE, text=True
        ) as child:
            assert child.stdin is not None
            (path / "cgroup.procs").write_text(str(child.pid))
            child.stdin.write("go\n")
            child.stdin.flush()
            (event,) = wait_for(lambda: found(pid=child.pid, syscall="unshare"))
            child.stdin.write("end\n")
        assert event["cgroup_id"] == path.stat().st_ino
        assert event["cgroup"].endswith(f"/{path.parent.name}/docker-{CONTAINER}.scope")
        assert event["container"] == CONTAINER
        assert event["exe"] == os.path.realpath(sys.executable)
        assert "job" not in event

        flags = ["--state-dir", world[1], "--name", "whence", "--isolate", "none", "--cap-add", "SYS_ADMIN", "--report", "none"]
        with nsagent_running("run", *flags, "--", "unshare", "--uts", "sleep", "1000"):
            (event,) = wait_for(lambda: [each for each in found(syscall="unshare") if each.get("job", "").startswith("whence-")])
        assert event["cgroup"].endswith(f"/nsagent/{event['job']}")
        assert "container" not in event
