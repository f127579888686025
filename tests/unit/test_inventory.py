"""What NS of a command line means, what keeps what, and how the trees of `nsagent ns` are drawn."""

from __future__ import annotations

import os
from typing import Any

import pytest

from nsagent.cli import ns_text
from nsagent.errors import UsageError
from nsagent.inventory import Inventory, Seen, parse_target, read_argv, read_inventory
from nsagent.namespaces import NamespaceId, NamespaceKind

USER, PID, UTS = NamespaceKind.USER, NamespaceKind.PID, NamespaceKind.UTS


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("net:4026531840", None, (NamespaceKind.NET, 4026531840)),
        ("net:[4026531840]", UTS, (NamespaceKind.NET, 4026531840)),
        ("4026531840", None, 4026531840),
        ("[4026531840]", None, 4026531840),
    ],
)
def test_what_ns_means(text: str, kind: NamespaceKind | None, target: object) -> None:
    assert parse_target(text, kind) == target


def test_a_pid_with_a_kind_is_that_process_namespace() -> None:
    assert parse_target(str(os.getpid()), UTS) == (UTS, os.stat("/proc/self/ns/uts").st_ino)


@pytest.mark.parametrize("text", ["", "net:", "net:x", "house:5", "net:5:6", "-5", "net:[", "²"])
def test_what_ns_does_not_mean(text: str) -> None:
    with pytest.raises(UsageError, match="no namespace"):
        parse_target(text, None)


def test_the_inventory_has_this_process() -> None:
    found = read_inventory()
    me = found.processes[os.getpid()]
    assert (me.ppid, me.uid, me.inner_pids[0]) == (os.getppid(), os.geteuid(), os.getpid())
    assert me.argv == read_argv(os.getpid())
    for kind, inum in me.namespaces.items():
        assert os.getpid() in found.namespaces[kind, inum].members
        assert inum == os.stat(f"/proc/self/ns/{kind}").st_ino


def test_what_is_below_keeps_a_namespace() -> None:
    user, pid, uts = (NamespaceId(kind, number, 0) for kind, number in ((USER, 1), (PID, 2), (UTS, 3)))
    nested = Seen(NamespaceId(PID, 4, 0), owner=user, parent=pid)
    seen = {each.id[:2]: each for each in (Seen(user), Seen(pid, owner=user), Seen(uts, owner=user), nested)}
    inventory = Inventory(seen)
    assert inventory.below((USER, 1)) == [pid, uts, nested.id]
    assert inventory.below((PID, 2)) == [nested.id]
    assert inventory.below((UTS, 3)) == []


def row(kind: str, inum: int, owner: int | None = None, parent: int | None = None) -> dict[str, Any]:
    return {
        "kind": kind,
        "inum": inum,
        "owner": owner and {"kind": "user", "inum": owner, "id": 0},
        "parent": parent and {"kind": kind, "inum": parent, "id": 0},
    }


def drawn(rows: list[dict[str, Any]]) -> list[str]:
    roots = ns_text.grow({(each["kind"], each["inum"]): each for each in rows})
    return [f"{lead}{ns_text.name_of(each)}" for lead, each in ns_text.draw(roots)]


def test_the_tree_nests_by_owner_and_pid_by_parent() -> None:
    rows = [
        row("pid", 10, owner=1),
        row("pid", 11, owner=1, parent=10),
        row("pid", 12, owner=2, parent=11),  # owned by another user namespace than its parent is: that one has it
        row("user", 1),
        row("user", 2, owner=1, parent=1),
        row("uts", 20, owner=2),
        row("uts", 21, owner=9),  # its owner is not to be seen
    ]
    assert drawn(rows) == [
        "user:1",
        "├─ pid:10",
        "│  └─ pid:11",
        "└─ user:2",
        "   ├─ pid:12",
        "   └─ uts:20",
        "uts:21",
    ]


def test_what_comes_from_processes_is_made_printable() -> None:
    assert ns_text.shorten("a\x1b[31mb\nc\udcff") == "a\\x1b[31mb\\x0ac\\xff"
    assert ns_text.shorten("x" * 100, 10) == "x" * 9 + "…"
    descriptor = {"pid": 5, "fd": 3, "comm": "e\x07"}
    kept = {"mounts": ["/a\nb"], "descriptors": [descriptor], "for_children_of": [6], "namespaces": ["pid:1"]}
    assert ns_text.keepers(kept) == "mount /a\\x0ab, descriptor 3 of e\\x07(5), next child of 6, pid:1"
    assert (
        ns_text.keepers(kept | {"mounts": ["/a", "/b", "/c"]})
        == "mount /a, mount /b, mount /c, descriptor 3 of e\\x07(5) and 2 more"
    )


@pytest.mark.parametrize(
    ("usage", "text"),
    [
        (None, None),
        ({"cpu_ns": 1}, None),
        ({"rss_anon_bytes": 0, "rss_file_bytes": 0, "rss_shmem_bytes": 0}, "0B"),
        ({"rss_anon_bytes": 1024, "rss_file_bytes": 512, "rss_shmem_bytes": 512}, "2KiB"),
        ({"rss_anon_bytes": 3 << 30, "rss_file_bytes": 0, "rss_shmem_bytes": 0}, "3.0GiB"),
    ],
)
def test_memory_in_a_unit_that_fits(usage: dict[str, int] | None, text: str | None) -> None:
    assert ns_text.rss(usage) == text
