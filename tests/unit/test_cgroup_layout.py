"""Which controller is where, from mountinfo: recorded hosts, and the mounts that mislead."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsagent.cgroups.layout import Hierarchy, Layout, parse_mountinfo, read_layout
from nsagent.cgroups.sources import find_sources
from nsagent.errors import ParseError, UnsupportedError

FIXTURES = Path(__file__).resolve().parent.parent / "fixtures" / "cgroups"


def recorded(name: str) -> Layout:
    return read_layout(f"{FIXTURES}/{name}/proc", f"{FIXTURES}/{name}/sys/fs/cgroup")


def host(tmp_path: Path, mountinfo: bytes, cgroup: bytes = b"") -> str:
    """Make a /proc with a mountinfo; return it."""
    (tmp_path / "self").mkdir()
    (tmp_path / "self" / "mountinfo").write_bytes(mountinfo)
    (tmp_path / "self" / "cgroup").write_bytes(cgroup)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("name", "cpu", "memory", "io", "accounting"),
    [
        ("v1", "cpu", "memory", "blkio", "cpuacct"),
        ("v2", "v2", "v2", "v2", None),
        ("hybrid", "cpu", "memory", "blkio", "cpuacct"),
    ],
)
def test_recorded_hosts(name: str, cpu: str, memory: str, io: str, accounting: str | None) -> None:
    layout = recorded(name)
    assert layout.mode == name
    found = [layout.of(controller) for controller in ("cpu", "memory", "io")]
    assert [each and each.key for each in found] == [cpu, memory, io]
    assert layout.accounting[0] == accounting
    assert layout.accounting[1].key == accounting or (accounting is None and layout.accounting[1].version == 2)
    assert all(hierarchy.writable and hierarchy.root == "/" for hierarchy in layout.hierarchies)
    assert layout.of("rdma") is None or name == "v2"


def test_hybrid_takes_each_controller_where_it_is() -> None:
    layout = recorded("hybrid")
    hugetlb, systemd = layout.of("hugetlb"), layout.hierarchies[-2]
    assert hugetlb is not None
    assert hugetlb.version == 2
    assert (systemd.key, systemd.name, systemd.controllers) == ("name=systemd", "systemd", frozenset())
    assert layout.own_cgroup()["memory"] == layout.own_cgroup()["v2"] == "/jobs/one"
    assert set(layout.own_cgroup()) == {hierarchy.key for hierarchy in layout.hierarchies}


def test_comounted_controllers_and_blanks_in_a_path(tmp_path: Path) -> None:
    layout = read_layout(
        host(
            tmp_path,
            b"30 20 0:30 / /mnt/a\\040b\\134c\\011d rw - cgroup cgroup rw,xattr,cpuacct,cpu,release_agent=/x\n",
            b"3:cpu,cpuacct:/x:y z\n0::/\n",
        )
    )
    (hierarchy,) = layout.hierarchies
    assert hierarchy.mountpoint == "/mnt/a b\\c\td"
    assert hierarchy.key == "cpu,cpuacct"
    assert layout.mode == "v1"
    assert layout.of("cpu") is layout.of("cpuacct") is hierarchy
    assert layout.own_cgroup() == {"cpu,cpuacct": "/x:y z"}
    assert hierarchy.directory("/x:y z") == "/mnt/a b\\c\td/x:y z"


def test_path_that_is_not_utf8() -> None:
    (hierarchy,) = parse_mountinfo(b"30 20 0:30 / /mnt/\xff rw - cgroup cgroup rw,pids\n")
    assert hierarchy.mountpoint == "/mnt/\udcff"


@pytest.mark.parametrize("order", [[0, 1], [1, 0]])
def test_of_several_mounts_the_widest_wins_then_a_writable_one(tmp_path: Path, order: list[int]) -> None:
    lines = [
        b"30 20 0:30 /docker/1 /bind rw - cgroup cgroup rw,pids\n",
        b"31 20 0:30 / /whole ro - cgroup cgroup rw,pids\n",
    ]
    layout = read_layout(host(tmp_path, b"".join(lines[index] for index in order)))
    assert [(h.mountpoint, h.writable) for h in layout.hierarchies] == [("/whole", False)]


def test_of_two_equal_mounts_the_writable_one(tmp_path: Path) -> None:
    layout = read_layout(
        host(
            tmp_path,
            b"31 20 0:30 / /a ro,nosuid - cgroup cgroup rw,pids\n32 20 0:30 / /b rw - cgroup cgroup rw,pids\n"
            b"33 20 0:31 / /c rw - cgroup cgroup ro,cpu\n",
        )
    )
    assert [(h.mountpoint, h.writable) for h in layout.hierarchies] == [("/b", True), ("/c", False)]


def test_what_is_mounted_over_hides_only_what_leads_through_it() -> None:
    """In a job: its hierarchies lie in a tmpfs over that of the host, with the host's own below it."""
    rows = (
        b"20 1 0:20 / / rw - ext4 root rw",
        b"30 20 0:30 / /sys/fs/cgroup ro - tmpfs tmpfs rw",
        b"31 30 0:31 /../.. /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu",
        b"40 30 0:40 / /sys/fs/cgroup ro - tmpfs tmpfs rw",
        b"41 40 0:31 / /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu",
    )
    assert [found.root for found in parse_mountinfo(b"\n".join(rows))] == ["/"]


@pytest.mark.parametrize("reverse", [False, True])
def test_hidden_mounts_do_not_count(reverse: bool) -> None:
    lines = [
        b"20 1 8:0 / / rw - ext4 /dev/a rw",
        b"30 20 0:20 / /sys/fs/cgroup rw - tmpfs t rw",
        b"31 30 0:30 / /sys/fs/cgroup/pids rw - cgroup c rw,pids",
        b"32 30 0:31 / /sys/fs/cgroup/cpu rw - cgroup c rw,cpu",
        b"33 32 0:32 / /sys/fs/cgroup/cpu rw - tmpfs over rw",
        b"34 20 0:33 / /mnt/x/cpu rw - cgroup c rw,memory",
        b"35 20 0:34 / /mnt/x rw - tmpfs over rw",
    ]
    mounts = parse_mountinfo(b"\n".join(reversed(lines) if reverse else lines))
    assert [mount.key for mount in mounts] == ["pids"]


def test_bind_mount_of_a_container(tmp_path: Path) -> None:
    layout = read_layout(
        host(tmp_path, b"30 20 0:30 /docker/1 /cg rw - cgroup cgroup rw,pids\n", b"1:pids:/docker/1/job\n0::/\n")
    )
    (hierarchy,) = layout.hierarchies
    assert hierarchy.directory("/docker/1") == "/cg"
    assert hierarchy.directory("/docker/1/job") == "/cg/job"
    assert hierarchy.directory("/docker/10") is None
    assert hierarchy.directory("/") is None
    assert layout.own_cgroup() == {"pids": "/docker/1/job"}


def test_mount_from_above_the_cgroup_namespace(tmp_path: Path) -> None:
    procfs = host(tmp_path, b"30 20 0:30 /../.. /cg rw - cgroup cgroup rw,pids\n", b"1:pids:/\n")
    layout = read_layout(procfs)
    assert layout.hierarchies[0].directory("/kubepods/a") == "/cg/kubepods/a"
    assert layout.hierarchies[0].directory("/") == "/cg"
    assert layout.own_cgroup() == {}  # the kernel does not say what the namespace's root is called
    (tmp_path / "self" / "cgroup").write_bytes(b"1:pids:/../../other/x\n")
    assert layout.own_cgroup() == {"pids": "/other/x"}
    assert not layout.is_whole  # a recorded tree's root has any inode number


def test_a_host_tree_inside_a_container(tmp_path: Path) -> None:
    procfs = host(
        tmp_path,
        b"30 20 0:30 / /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n"
        b"31 20 0:30 /.. /host/sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n",
    )
    assert read_layout(procfs, "/host/sys/fs/cgroup/").hierarchies == (
        Hierarchy(1, "/host/sys/fs/cgroup/pids", frozenset({"pids"}), "", "/..", True, "0:30"),
    )


def test_v2_with_only_a_named_v1_tree_is_v2(tmp_path: Path) -> None:
    (tmp_path / "cg").mkdir()
    (tmp_path / "cg" / "cgroup.controllers").write_text("cpu memory\n")
    text = f"30 20 0:30 / {tmp_path}/cg rw - cgroup2 none rw\n31 20 0:31 / /n rw - cgroup c rw,none,name=systemd\n"
    layout = read_layout(host(tmp_path, text.encode()))
    assert layout.mode == "v2"
    assert layout.accounting == (None, layout.v2)
    assert layout.v2 is not None
    assert layout.v2.controllers == {"cpu", "memory"}


def test_nothing_mounted(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError) as error:
        read_layout(host(tmp_path, b"20 1 8:0 / / rw - ext4 /dev/a rw\n"))
    assert "no cgroup filesystem" in error.value.message
    assert "mount -t cgroup2" in error.value.hint


@pytest.mark.parametrize("line", [b"30 20 0:30 / /x rw cgroup c rw", b"30 20 0:30 / - cgroup c rw", b"x\n"])
def test_garbage_names_the_line(line: bytes) -> None:
    with pytest.raises(ParseError) as error:
        parse_mountinfo(b"20 1 8:0 / / rw - ext4 /dev/a rw\n" + line, "mountinfo")
    assert error.value.line == 2


@pytest.mark.parametrize("name", ["v1", "v2", "hybrid"])
def test_what_shall_not_be_read_is_no_source(name: str) -> None:
    def files(*without: str) -> set[str]:
        return {file for source in find_sources(recorded(name), without) for file in source.files}

    everything = files()
    stat = {"memory.stat", "memory.kmem.usage_in_bytes"} & everything
    assert "memory.stat" in stat
    assert everything - files("memory-stat") == stat
    gone = everything - files("io", "pressure", "cpuset", "state")
    assert gone
    assert all(file.startswith(("io.", "blkio.", "cpuset.", "cgroup.", "freezer.")) or "pressure" in file for file in gone)
