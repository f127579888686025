"""Kinds, their parsing, and reading of a recorded /proc: no privileges."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from nsagent import libc, namespaces
from nsagent.errors import UnsupportedError, UsageError, VanishedError
from nsagent.namespaces import KINDS, NamespaceKind


def make_process(proc: Path, number: int, /, **inums: int) -> None:
    """Record a process: its ns links dangle, as a recorded tree's must."""
    (proc / str(number) / "ns").mkdir(parents=True)
    for name, inum in inums.items():
        (proc / str(number) / "ns" / name).symlink_to(f"{name.removesuffix('_for_children')}:[{inum}]")


def test_kinds_are_the_eight_in_alphabetical_order_with_distinct_flags() -> None:
    assert list(KINDS) == sorted(KINDS)
    assert len({kind.flag for kind in KINDS}) == len(KINDS) == 8
    assert NamespaceKind.MNT.flag == libc.CLONE_NEWNS


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("pid", {"pid"}),
        ("pid,mnt", {"pid", "mnt"}),
        (" PID , mnt,pid", {"pid", "mnt"}),
        ("mount,network", {"mnt", "net"}),
        ("all", set(KINDS)),
        ("all,pid", set(KINDS)),
        ("none", set()),
    ],
)
def test_parse_kinds(text: str, kinds: set[str]) -> None:
    assert namespaces.parse_kinds(text) == kinds


@pytest.mark.parametrize(("text", "word"), [("pid,moon", "'moon'"), ("", "missing"), ("pid,", "missing"), ("none,pid", "alone")])
def test_parse_kinds_refuses_with_the_list_of_kinds(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word) as caught:
        namespaces.parse_kinds(text)
    assert all(kind in caught.value.hint for kind in KINDS)


def test_read_inums_of_a_recorded_process(tmp_path: Path) -> None:
    make_process(tmp_path, 7, pid=11, mnt=12, pid_for_children=13)
    assert namespaces.read_inums(7, str(tmp_path)) == {"pid": 11, "mnt": 12}
    assert namespaces.read_inums(7, str(tmp_path), for_children=True) == {"pid": 13, "mnt": 12}


def test_read_inums_of_nobody_is_vanished(tmp_path: Path) -> None:
    with pytest.raises(VanishedError, match="process 8 is gone"):
        namespaces.read_inums(8, str(tmp_path))


def test_list_all_groups_a_recorded_tree(tmp_path: Path) -> None:
    make_process(tmp_path, 1, net=100, uts=200)
    make_process(tmp_path, 9, net=100, uts=201)
    (tmp_path / "cpuinfo").touch()
    (tmp_path / "1" / "mountinfo").write_text(
        "22 27 0:21 / /proc rw - proc proc rw\n"
        "90 27 0:4 net:[300] /run/netns/blue\\040bird rw shared:5 - nsfs nsfs rw\n"
        "91 27 0:4 mnt:[x] /run/bad rw - nsfs nsfs rw\n"
        "92 27 0:4 net:[100] /run/netns/host rw - nsfs nsfs rw\n"
    )
    found = {(n.id.kind, n.id.inum): (n.members, n.pins) for n in namespaces.list_all(str(tmp_path))}
    assert found == {
        ("net", 100): ((1, 9), ("/run/netns/host",)),
        ("net", 300): ((), ("/run/netns/blue bird",)),
        ("uts", 200): ((1,), ()),
        ("uts", 201): ((9,), ()),
    }


def test_identify_own_namespaces_without_privileges() -> None:
    own = namespaces.of_process("self")
    assert own.keys() == namespaces.read_inums("self").keys() >= {"pid", "user", "mnt"}
    for kind, identity in own.items():
        assert identity.kind is kind
        assert identity.inum == os.stat(f"/proc/self/ns/{kind}").st_ino
        assert 0 <= identity.id < 1 << 32


def test_identify_refuses_what_is_no_namespace(tmp_path: Path) -> None:
    with pytest.raises(VanishedError):
        namespaces.identify(str(tmp_path / "absent"))
    with pytest.raises(UnsupportedError, match="not a namespace"):
        namespaces.identify(os.fspath(tmp_path))
    with socket.socket() as other, pytest.raises(UnsupportedError):
        namespaces.identify(other.fileno())


def test_parent_is_for_kinds_that_nest() -> None:
    fd = os.open("/proc/self/ns/uts", os.O_RDONLY)
    try:
        with pytest.raises(UsageError, match="uts namespaces have no parents"):
            namespaces.parent(fd)
    finally:
        os.close(fd)


def test_entering_the_own_user_namespace_is_nothing_to_do() -> None:
    namespaces.enter(os.getpid(), {NamespaceKind.USER})


def test_entering_a_process_that_ended_is_vanished() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    with pytest.raises(VanishedError):
        namespaces.enter(pid, {NamespaceKind.UTS})
