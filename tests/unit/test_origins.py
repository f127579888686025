"""Where an event comes from: the job and the container that a cgroup's path shows, and what an event says of it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest

from nsagent import origins
from nsagent.cgroups.layout import Hierarchy
from nsagent.cgroups.paths import Paths
from nsagent.events import Origin, SyscallEvent

ID, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4
POD = "pod1b3a5f0e-9d4c-4f7e-8a6b-2c1d0e9f8a7b"


def event(**fields: object) -> SyscallEvent:
    comm = Path("/proc/self/comm").read_text().removesuffix("\n")
    kinds = tuple(range(8))
    given = SyscallEvent(0, "unshare", os.getpid(), os.getpid(), 1, 0, comm, 0, 0, 0, 0, 0, 0, 7, kinds, kinds[::-1])
    return dataclasses.replace(given, **fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    [
        f"/docker/{ID}",
        f"/docker/{ID}/init/worker",
        f"/system.slice/docker-{ID}.scope",
        f"/docker/{OTHER}/docker/{ID}",
        f"/system.slice/docker-{OTHER}.scope/docker/{ID}",
        f"/kubepods/burstable/{POD}/{ID}",
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-{POD}.slice/cri-containerd-{ID}.scope",
        f"/kubepods.slice/kubepods-{POD}.slice/crio-{ID}.scope/container",
        f"/system.slice/containerd.service/kubepods-burstable-{POD}.slice:cri-containerd:{ID}",
        f"/machine.slice/libpod-{ID}.scope/container",
        f"/libpod_parent/libpod-{ID}",
        f"/system.slice/nerdctl-{ID}.scope",
        f"/default/{ID}",
    ],
)
def test_the_container_of_a_path(path: str) -> None:
    assert origins.container_of(path) == ID


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "",
        "/system.slice/docker.service",
        f"/machine.slice/libpod-conmon-{ID}.scope",
        f"/kubepods.slice/crio-conmon-{ID}.scope",
        f"/docker/{ID[:-1]}",
        f"/docker/{ID}0",
        f"/docker/{ID.upper()}",
        f"/kubepods/burstable/{POD}",
        "/default/redis",
    ],
)
def test_a_path_without_a_container(path: str) -> None:
    assert origins.container_of(path) == ""


@pytest.mark.parametrize(
    ("path", "job"),
    [
        ("/nsagent/demo-97c74b67", "demo-97c74b67"),
        ("/nsagent/demo-97c74b67/below", "demo-97c74b67"),
        ("/user.slice/session-1.scope/nsagent/a_b.c-1-00000000", "a_b.c-1-00000000"),
        ("/nsagent/outer-11111111/nsagent/inner-22222222", "inner-22222222"),
        ("/nsagent", ""),
        ("/nsagent/by-hand", ""),
        ("/x-nsagent/demo-97c74b67", ""),
        ("/nsagent/demo-97c74b67x", ""),
        ("/", ""),
    ],
)
def test_the_job_of_a_path(path: str, job: str) -> None:
    assert origins.job_of(path) == job


def test_json_has_what_is_known_and_nothing_else() -> None:
    bare = event().document()
    assert not {"cgroup", "job", "container", "exe"} & set(bare)
    origin = Origin(f"/docker/{ID}", container=ID, exe="/bin/true")
    found = json.loads(event(origin=origin).to_json())
    assert found == bare | {"cgroup": f"/docker/{ID}", "container": ID, "exe": "/bin/true"}


def test_text_ends_with_the_container_or_the_job() -> None:
    bare = event().to_text()
    assert event(origin=Origin("/x", exe="/bin/true")).to_text() == bare
    assert event(origin=Origin("/nsagent/a-00000000", job="a-00000000")).to_text() == f"{bare}  [job a-00000000]"
    assert event(origin=Origin("/x", job="a-00000000", container=ID)).to_text() == f"{bare}  [container {ID[:12]}]"


def test_the_program_is_the_callers_or_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    where = origins.Origins(None, {7: f"/docker/{ID}"}.get)
    monkeypatch.setattr(where, "_reads_proc", True)
    here = Origin(f"/docker/{ID}", "", ID, os.path.realpath("/proc/self/exe"), uid_inside=event().uid)  # its map is our own
    assert where.locate(event()).origin == here
    assert where.locate(event(comm="another")).origin.exe == ""  # it has executed something else since
    assert where.locate(event(pid=2**22 + 1, tid=2**22 + 1)).origin.exe == ""  # it has ended: beyond PID_MAX_LIMIT
    assert where.locate(event(after=event().before)).origin.exe == ""  # a plain fork: not worth reading
    assert where.locate(event(cgroup_id=8)).origin.cgroup == ""
    monkeypatch.setattr(where, "_reads_proc", False)  # another PID namespace: these pids are other processes there
    assert where.locate(event()).origin.exe == ""


def test_paths_that_the_kernel_does_not_tell_are_absent(tmp_path: Path) -> None:
    for mountpoint in (str(tmp_path), str(tmp_path / "nowhere")):
        paths = Paths(Hierarchy(2, mountpoint, frozenset()))
        assert [paths.find(number) for number in (0, 1, tmp_path.stat().st_ino, 2**64 - 1)] == [None] * 4


def test_a_uid_is_mapped_into_the_callers_user_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = tmp_path / "uid_map"
    maps.write_text("         0     100000      65536\n     70000       1000          1\n")
    real = open
    monkeypatch.setattr("builtins.open", lambda path, *rest, **more: real(maps if "uid_map" in str(path) else path, **more))
    assert origins._uid_inside(1, 100000) == 0
    assert origins._uid_inside(1, 165535) == 65535
    assert origins._uid_inside(1, 1000) == 70000
    assert origins._uid_inside(1, 5) is None
