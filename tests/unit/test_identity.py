"""What a cgroup's path shows, as its makers write it, and how the runtimes' names come to it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsagent.identity import CgroupInfo, Identities, Names, identify

ID, OTHER = "0123456789abcdef" * 4, "fedcba9876543210" * 4
UID = "1b3a5f0e-9d4c-4f7e-8a6b-2c1d0e9f8a7b"
UID_ = UID.replace("-", "_")
STATIC = "0f1e2d3c4b5a69788796a5b4c3d2e1f0"
BURSTABLE = "kubepods.slice/kubepods-burstable.slice"

PATHS: dict[str, CgroupInfo] = {
    "/": CgroupInfo(),
    "/init.scope": CgroupInfo(unit="init.scope"),
    "/system.slice": CgroupInfo(slice="system.slice"),
    "/system.slice/nginx.service": CgroupInfo(unit="nginx.service", slice="system.slice"),
    "/system.slice/nginx.service/workers": CgroupInfo(unit="nginx.service", slice="system.slice"),
    "/system.slice/system-getty.slice/getty@tty1.service": CgroupInfo(unit="getty@tty1.service", slice="system-getty.slice"),
    r"/system.slice/system-systemd\x2dfsck.slice/systemd-fsck@dev-disk-by\x2duuid-1a.service": CgroupInfo(
        unit=r"systemd-fsck@dev-disk-by\x2duuid-1a.service", slice=r"system-systemd\x2dfsck.slice"
    ),
    r"/system.slice/run-rpc_pipefs.mount": CgroupInfo(unit="run-rpc_pipefs.mount", slice="system.slice"),
    r"/system.slice/dev-disk\x2dswap.swap": CgroupInfo(unit=r"dev-disk\x2dswap.swap", slice="system.slice"),
    "/system.slice/ssh.socket": CgroupInfo(unit="ssh.socket", slice="system.slice"),
    "/system.slice/_cpu.service": CgroupInfo(unit="cpu.service", slice="system.slice"),  # cg_escape: a file's name
    "/user.slice/user-1000.slice/session-3.scope": CgroupInfo(unit="session-3.scope", slice="user-1000.slice"),
    "/user.slice/user-1000.slice/user@1000.service": CgroupInfo(unit="user@1000.service", slice="user-1000.slice"),
    "/user.slice/user-1000.slice/user@1000.service/app.slice": CgroupInfo(unit="user@1000.service", slice="app.slice"),
    r"/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome\x2dterminal-7.scope": CgroupInfo(
        unit=r"app-gnome\x2dterminal-7.scope", slice="app.slice"
    ),
    "/foo.timer": CgroupInfo(),  # has no cgroup
    "/.service": CgroupInfo(),
    "/a b.service": CgroupInfo(),
    f"/docker/{ID}": CgroupInfo(container_id=ID),
    f"/docker/{ID}/init": CgroupInfo(container_id=ID),
    f"/docker/{OTHER}/docker/{ID}": CgroupInfo(container_id=ID),
    f"/docker/{ID}/system.slice/nginx.service": CgroupInfo(unit="nginx.service", slice="system.slice", container_id=ID),
    f"/system.slice/docker-{ID}.scope": CgroupInfo(unit=f"docker-{ID}.scope", slice="system.slice", container_id=ID),
    "/default/redis": CgroupInfo(container_id="redis"),
    "/default/redis/below": CgroupInfo(container_id="redis"),
    "/k8s.io/nginx-1.2": CgroupInfo(container_id="nginx-1.2"),
    f"/k8s.io/{ID}": CgroupInfo(container_id=ID),
    "/default": CgroupInfo(),
    "/x/default/redis": CgroupInfo(),
    f"/system.slice/nerdctl-{ID}.scope": CgroupInfo(unit=f"nerdctl-{ID}.scope", slice="system.slice", container_id=ID),
    f"/machine.slice/libpod-{ID}.scope/container": CgroupInfo(unit=f"libpod-{ID}.scope", slice="machine.slice", container_id=ID),
    f"/machine.slice/libpod-conmon-{ID}.scope": CgroupInfo(unit=f"libpod-conmon-{ID}.scope", slice="machine.slice"),
    f"/machine.slice/machine-libpod_pod_{OTHER}.slice/libpod-{ID}.scope": CgroupInfo(
        unit=f"libpod-{ID}.scope", slice=f"machine-libpod_pod_{OTHER}.slice", container_id=ID
    ),
    f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container": CgroupInfo(
        unit=f"libpod-{ID}.scope", slice="user.slice", container_id=ID
    ),
    f"/libpod_parent/libpod-{ID}": CgroupInfo(container_id=ID),
    "/kubepods": CgroupInfo(),
    "/kubepods/besteffort": CgroupInfo(),
    f"/kubepods/pod{UID}": CgroupInfo(pod_uid=UID),
    f"/kubepods/burstable/pod{UID}": CgroupInfo(pod_uid=UID),
    f"/kubepods/burstable/pod{UID}/{ID}": CgroupInfo(container_id=ID, pod_uid=UID),
    f"/kubepods/besteffort/pod{UID}/crio-{ID}": CgroupInfo(container_id=ID, pod_uid=UID),
    f"/kubepods/burstable/pod{STATIC}/{ID}": CgroupInfo(container_id=ID, pod_uid=STATIC),
    "/kubepods.slice": CgroupInfo(slice="kubepods.slice"),
    f"/kubepods.slice/kubepods-pod{UID_}.slice": CgroupInfo(slice=f"kubepods-pod{UID_}.slice", pod_uid=UID),
    f"/{BURSTABLE}/kubepods-burstable-pod{UID_}.slice/cri-containerd-{ID}.scope": CgroupInfo(
        unit=f"cri-containerd-{ID}.scope", slice=f"kubepods-burstable-pod{UID_}.slice", container_id=ID, pod_uid=UID
    ),
    f"/{BURSTABLE}/kubepods-burstable-pod{STATIC}.slice/crio-{ID}.scope/container": CgroupInfo(
        unit=f"crio-{ID}.scope", slice=f"kubepods-burstable-pod{STATIC}.slice", container_id=ID, pod_uid=STATIC
    ),
    f"/{BURSTABLE}/kubepods-burstable-pod{UID_}.slice/crio-conmon-{ID}.scope": CgroupInfo(
        unit=f"crio-conmon-{ID}.scope", slice=f"kubepods-burstable-pod{UID_}.slice", pod_uid=UID
    ),
    f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{UID_}.slice/cri-containerd-{ID}.scope": CgroupInfo(
        unit=f"cri-containerd-{ID}.scope", slice=f"kubelet-kubepods-pod{UID_}.slice", container_id=ID, pod_uid=UID
    ),
    f"/system.slice/containerd.service/kubepods-burstable-pod{UID_}.slice:cri-containerd:{ID}": CgroupInfo(
        unit="containerd.service", slice="system.slice", container_id=ID, pod_uid=UID
    ),
    f"/kubepods/burstable/pod{UID}x": CgroupInfo(),
    "/nsagent": CgroupInfo(),
    "/nsagent/demo-97c74b67": CgroupInfo(workload="demo"),
    "/nsagent/a-b.c-97c74b67/below": CgroupInfo(workload="a-b.c"),
    f"/docker/{ID}/nsagent/demo-97c74b67": CgroupInfo(container_id=ID, workload="demo"),
}


@pytest.mark.parametrize(("path", "info"), PATHS.items(), ids=PATHS)
def test_what_a_path_shows(path: str, info: CgroupInfo) -> None:
    assert identify(path) == info


@given(st.text())
def test_any_bytes_are_a_path(path: str) -> None:
    assert identify(f"/{path}").cgroup_id == ""


class Told:
    """Names that a test gives, and the ids it was asked for."""

    def __init__(self, names: Mapping[str, Names]) -> None:
        self.names = names
        self.wanted: list[frozenset[str]] = []
        self.identities = Identities(lambda: self.names, self.wanted.append)

    def update(self, ids: Mapping[str, int], *ended: str) -> dict[str, CgroupInfo]:
        return self.identities.update(ids, [*ids, *ended])


def test_only_what_is_known_is_shown() -> None:
    found = Told({}).update({"/": 1, "/a": 2, "/system.slice": 3})
    assert found == {"/system.slice": CgroupInfo("3", slice="system.slice")}


def test_names_come_later_and_stay_past_death() -> None:
    path, told = f"/docker/{ID}", Told({})
    assert told.update({path: 5})[path] == CgroupInfo("5", container_id=ID)
    assert told.wanted == [frozenset({ID})]
    told.names = {ID: Names("web", "nginx:1", UID, "web-0", "shop")}
    named = CgroupInfo("5", "", "", ID, "web", UID, "web-0", "shop", "nginx:1")
    assert told.update({path: 5})[path] == named
    told.names = {}  # the runtime has forgotten it
    assert told.update({}, path)[path] == named
    assert told.update({}) == {}
    assert told.update({}, path)[path] == CgroupInfo("", container_id=ID), "kept by nobody"


def test_labels_come_and_stay_as_names_do() -> None:
    path, told = f"/docker/{ID}", Told({})
    told.update({path: 5, f"{path}/below": 6, "/other": 7})
    assert told.identities.labels == {}
    web = (("team", "web"),)
    told.names = {ID: Names("web", "nginx:1", labels=web), UID: Names(pod_uid=UID, labels=(("team", "pod"),))}
    told.update({path: 5, f"{path}/below": 6, f"/kubepods/pod{UID}": 8})
    assert told.identities.labels == {path: web, f"{path}/below": web, f"/kubepods/pod{UID}": (("team", "pod"),)}
    told.names = {ID: Names("web", "nginx:1")}
    told.update({path: 5}, f"/kubepods/pod{UID}")
    assert told.identities.labels == {f"/kubepods/pod{UID}": (("team", "pod"),)}
    told.names = {}
    told.update({f"/kubepods/pod{UID}": 9})
    assert told.identities.labels == {}, "another cgroup under the path"


def test_a_name_that_changes() -> None:
    path, told = f"/docker/{ID}/below", Told({ID: Names("old", "image")})
    assert told.update({path: 5})[path].container == "old"
    told.names = {ID: Names("new", "image")}
    assert told.update({path: 5})[path].container == "new"
    assert told.wanted == []


def test_the_names_of_a_pod_without_container() -> None:
    path = f"/kubepods/burstable/pod{UID}"
    info = Told({UID: Names("", "", UID, "web-0", "shop")}).update({path: 5})[path]
    assert (info.pod_uid, info.pod, info.pod_namespace, info.container, info.image) == (UID, "web-0", "shop", "", "")


def test_another_cgroup_under_the_path_has_nothing_of_the_first() -> None:
    path, told = "/default/redis", Told({"redis": Names("first", "image")})
    assert told.update({path: 5})[path].container == "first"
    told.names = {}
    assert told.update({path: 6})[path] == CgroupInfo("6", container_id="redis")


def test_an_info_is_the_same_object_while_nothing_changes() -> None:
    told = Told({ID: Names("web", "image")})
    first = told.update({f"/docker/{ID}": 5, "/system.slice": 6})
    second = told.update({f"/docker/{ID}": 5, "/system.slice": 6})
    assert first == second
    assert all(second[path] is info for path, info in first.items())
