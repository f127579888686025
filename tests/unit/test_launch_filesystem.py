"""--rootfs, --volume and --tmpfs: their words, what is refused, and the mounts that are planned for them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.errors import UsageError
from nsagent.launch import filesystem, plan, prepare
from nsagent.launch.filesystem import Filesystem, Tmpfs, Volume
from nsagent.launch.kernelfs import Hierarchy as CgroupMount
from nsagent.launch.security import Security
from nsagent.launch.spec import DEFAULT_KINDS, RunSpec
from nsagent.namespaces import NamespaceKind

HYBRID = Layout(
    (
        Hierarchy(1, "/sys/fs/cgroup/cpu,cpuacct", frozenset({"cpuacct", "cpu"})),
        Hierarchy(1, "/sys/fs/cgroup/systemd", frozenset(), name="systemd"),
        Hierarchy(2, "/sys/fs/cgroup/unified", frozenset()),
        Hierarchy(2, "/elsewhere", frozenset()),
    )
)
V2 = Layout((Hierarchy(2, "/sys/fs/cgroup", frozenset({"cpu"})),))


@pytest.mark.parametrize(
    ("text", "volume"),
    [
        ("/a:/b", Volume("/a", "/b")),
        ("/a:/b:ro", Volume("/a", "/b", True)),
        ("/a:/b:rw", Volume("/a", "/b", False)),
        ("/a/../c:/b/../d", Volume("/c", "/b/../d")),
    ],
)
def test_a_volume(text: str, volume: Volume) -> None:
    assert filesystem.parse_volume(text) == volume


def test_a_relative_source_is_of_this_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert filesystem.parse_volume("./x:/x").source == os.path.join(os.getcwd(), "x")


@pytest.mark.parametrize(
    "text",
    ["", "/a", "/a:", ":/a", "/a:b", "/a:/b:wr", "/a:/", "/a:/..", "/a:/proc/sys", "/a:/x/../sys", "/a:/dev", "/a:/b:ro:x"],
)
def test_no_volume(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        filesystem.parse_volume(text)
    assert refused.value.hint


def test_a_tmpfs() -> None:
    assert filesystem.parse_tmpfs("/tmp") == Tmpfs("/tmp")
    assert filesystem.parse_tmpfs("/tmp:size=1M,exec,mode=700,ro") == Tmpfs("/tmp", "size=1M,mode=700", True, True)
    for text in ("tmp", "/tmp:dev", "/tmp:size", "/tmp:size=", "/proc"):
        with pytest.raises(UsageError):
            filesystem.parse_tmpfs(text)


def test_what_makes_no_sense(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="mounted twice"):
        Filesystem(volumes=(Volume("/a", "/x"),), tmpfs=(Tmpfs("/x/../x/"),)).check()
    with pytest.raises(UsageError, match="mnt"):
        RunSpec(argv=("true",), isolate=frozenset({NamespaceKind.PID}), filesystem=Filesystem(read_only=True)).checked()
    for text in (str(tmp_path / "missing"), "/", "/tmp/.."):
        with pytest.raises(UsageError):
            filesystem.parse_rootfs(text)
    assert filesystem.parse_rootfs(str(tmp_path)) == str(tmp_path.resolve())


def test_the_hierarchies_as_the_job_sees_them() -> None:
    spec = RunSpec(argv=("true",))
    assert prepare.mount_plan(spec, HYBRID, None).kernel.cgroups == (
        CgroupMount("cpu,cpuacct", "cgroup", "cpu,cpuacct"),
        CgroupMount("systemd", "cgroup", "none,name=systemd"),
        CgroupMount("unified", "cgroup2"),
    )
    assert prepare.mount_plan(spec, V2, None).kernel.cgroups == (CgroupMount("", "cgroup2"),)
    shared = RunSpec(argv=("true",), isolate=DEFAULT_KINDS - {NamespaceKind.CGROUP})
    assert prepare.mount_plan(shared, V2, None).kernel.cgroups is None


def test_what_a_user_namespace_may_not_mount_is_taken_from_the_host(tmp_path: Path) -> None:
    root = Filesystem(rootfs=str(tmp_path))
    user = frozenset({NamespaceKind.MNT, NamespaceKind.USER})
    kernel = prepare.mount_plan(RunSpec(argv=("true",), isolate=user, filesystem=root), V2, None).kernel
    assert (kernel.proc, kernel.sys, kernel.dev) == ("host", "host", "new")
    kernel = prepare.mount_plan(RunSpec(argv=("true",), isolate=DEFAULT_KINDS, filesystem=root), V2, None).kernel
    assert (kernel.proc, kernel.sys, kernel.dev) == ("new", "new", "new")
    kernel = prepare.mount_plan(RunSpec(argv=("true",), security=Security(privileged=True)), V2, None).kernel
    assert (kernel.proc, kernel.sys, kernel.dev, kernel.covered) == ("new", "keep", "keep", False)


def test_the_plan_names_each_mount(tmp_path: Path) -> None:
    files = Filesystem(rootfs=str(tmp_path), read_only=True, volumes=(Volume("/a", "/b", True),), tmpfs=(Tmpfs("/t", "size=1M"),))
    text = plan.describe(RunSpec(argv=("true",), filesystem=files), V2)
    for words in (f"{tmp_path} becomes the root; read-only", "/a at /b read-only", "tmpfs at /t size=1M", "a fresh /dev"):
        assert words in text


def test_the_directory_is_found_again_below_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path / "in")
    here = os.getcwd()
    assert prepare.workdir(RunSpec(argv=("true",))) == ""
    covering = Filesystem(tmpfs=(Tmpfs(str(tmp_path.resolve())),))
    assert prepare.workdir(RunSpec(argv=("true",), filesystem=covering)) == here
    assert prepare.workdir(RunSpec(argv=("true",), filesystem=Filesystem(rootfs="/tmp"))) == "/"
    assert prepare.workdir(RunSpec(argv=("true",), filesystem=Filesystem(rootfs="/tmp"), workdir="/w")) == "/w"
