"""Id maps: root never maps 0 to 0, a user maps 0 to itself; --map-uid; --user in the job's own files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nsagent.errors import AccessError, LaunchError, UsageError
from nsagent.launch import idmaps, prepare, users
from nsagent.launch.idmaps import Extent, IdMaps
from nsagent.launch.spec import RunSpec
from nsagent.launch.users import User
from nsagent.namespaces import NamespaceKind


def test_ranges_of_root() -> None:
    text = "alice:100000:65536\nroot:500000:65536\nroot:1:65536\n"
    assert idmaps.parse_subordinate(text, "root", 0) == 500000
    assert idmaps.parse_subordinate("0:300000:65536", "root", 0) == 300000
    for unusable in ("", "root:5:100", "root:0:65536", "root:x:65536", "root:5", "alice:100000:65536"):
        assert idmaps.parse_subordinate(unusable, "root", 0) is None


def test_root_takes_its_range_or_the_fallback(tmp_path: Path) -> None:
    fallback = (Extent(0, 100000, 65536),)
    assert idmaps.choose(0, 0, etc=str(tmp_path)) == IdMaps(fallback, fallback)
    (tmp_path / "subuid").write_text("root:200000:65536\n")
    (tmp_path / "subgid").write_text("root:300000:65536\n")
    assert idmaps.choose(0, 0, etc=str(tmp_path)) == IdMaps((Extent(0, 200000, 65536),), (Extent(0, 300000, 65536),))


def test_a_user_is_root_of_itself_alone(tmp_path: Path) -> None:
    assert idmaps.choose(1000, 1001, etc=str(tmp_path)) == IdMaps((Extent(0, 1000),), (Extent(0, 1001),), setgroups=False)
    asked = idmaps.choose(1000, 1001, inside=(7, 8), etc=str(tmp_path))
    assert (asked.uids, asked.gids) == ((Extent(7, 1000),), (Extent(8, 1001),))


def test_a_user_with_a_range_has_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("newuidmap", "newgidmap"):
        (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "subuid").write_text("54321:200000:65536\n")
    assert not idmaps.choose(54321, 54321, etc=str(tmp_path)).helpers, "no gids"
    (tmp_path / "subgid").write_text("54321:300000:65536\n")
    maps = idmaps.choose(54321, 54322, etc=str(tmp_path))
    assert maps.uids == (Extent(0, 54321), Extent(1, 200000, 65536))
    assert maps.gids == (Extent(0, 54322), Extent(1, 300000, 65536))
    assert (maps.setgroups, maps.helpers) == (True, True)
    (tmp_path / "newgidmap").unlink()
    assert not idmaps.choose(54321, 54322, etc=str(tmp_path)).helpers


def test_maps_as_asked_for() -> None:
    uids = (Extent(0, 5000, 10), Extent(10, 7000))
    assert idmaps.choose(0, 0, uids=uids) == IdMaps(uids, uids)
    assert idmaps.choose(0, 0, uids=uids, gids=uids[:1]) == IdMaps(uids, uids[:1])
    own = idmaps.choose(1000, 1000, uids=(Extent(5, 1000),))
    assert (own.setgroups, own.helpers) == (False, False)
    assert idmaps.choose(1000, 1000, uids=uids).helpers
    assert idmaps.has(uids, 10)
    assert not idmaps.has(uids, 11)


def test_extents() -> None:
    assert idmaps.parse_extent("0:100000:65536", "--map-uid") == Extent(0, 100000, 65536)
    assert idmaps.parse_extent("5:6", "--map-uid") == Extent(5, 6, 1)
    for wrong in ("", "1", "a:b", "1:2:3:4", "-1:2", "0:0:0", "0:4294967295:2", "0:1:"):
        with pytest.raises(UsageError):
            idmaps.parse_extent(wrong, "--map-uid")


def test_userns() -> None:
    assert NamespaceKind.USER in RunSpec(argv=("true",), userns="auto").checked().isolate
    assert NamespaceKind.USER in RunSpec(argv=("true",), uid_map=(Extent(0, 1),)).checked().isolate
    assert NamespaceKind.USER not in RunSpec(argv=("true",), userns="none").for_capabilities(0).isolate
    assert NamespaceKind.USER in RunSpec(argv=("true",)).for_capabilities(0).isolate
    with pytest.raises(UsageError):
        RunSpec(argv=("true",), userns="none", uid_map=(Extent(0, 1),)).checked()


@pytest.fixture
def rootfs(tmp_path: Path) -> str:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "passwd").write_text("root:x:0:0::/root:/bin/sh\nbroken\nbob:x:7:8:Bob:/home/bob:/bin/sh\n")
    (tmp_path / "etc" / "group").write_text("root:x:0:\nstaff:x:50:al,bob\ndisk:x:6:bobby\nbobs:x:8:\n")
    return str(tmp_path)


def test_a_user_is_looked_up_inside(rootfs: str) -> None:
    bob = User(7, 8, (50,), "/home/bob")
    assert users.resolve("bob", rootfs) == users.resolve("7", rootfs) == bob
    assert users.resolve("bob:staff", rootfs) == users.resolve("7:50", rootfs) == User(7, 50, (), "/home/bob")
    assert users.resolve("99", rootfs) == User(99, 0, (), "/")
    assert users.resolve("99:98", rootfs) == User(99, 98, (), "/")
    for unknown in ("nobody-here", "bob:nogroup-here"):
        with pytest.raises(LaunchError, match="here"):
            users.resolve(unknown, rootfs)
    assert users.resolve("root", "").uid == 0


def test_no_link_leads_to_the_hosts_users(rootfs: str, tmp_path: Path) -> None:
    passwd = tmp_path / "etc" / "passwd"
    passwd.unlink()
    passwd.symlink_to("../../../../../../../../etc/passwd")
    with pytest.raises(LaunchError):
        users.resolve("root", rootfs)
    outside = tmp_path / "outside"
    outside.write_text("out:x:1:1::/:\n")
    passwd.unlink()
    passwd.symlink_to(outside)
    with pytest.raises(LaunchError):
        users.resolve("out", rootfs)


@pytest.mark.parametrize("text", ["", ":", "a:", ":b", "a:b:c", "4294967295", "a\tb"])
def test_no_user(text: str) -> None:
    with pytest.raises(UsageError):
        users.check(text)


def test_a_user_that_the_namespace_lacks() -> None:
    spec = RunSpec(argv=("true",), user="70000")
    maps = IdMaps((Extent(0, 1000, 10),), (Extent(0, 1000, 10),))
    with pytest.raises(LaunchError, match="not in the user namespace"):
        prepare.identity(spec, maps, User(70000, 0))
    made = prepare.identity(spec, maps, User(5, 0, (3, 50)))
    assert made.user == (5, 0, (3,)), "groups that do not exist there are left out"
    assert made.maker == (0, 0)
    assert prepare.identity(spec, IdMaps((Extent(7, 1000),), (Extent(8, 1000),)), None).maker == (7, 8)
    assert prepare.identity(spec, None, User(70000, 0)).maker is None


def test_a_helper_that_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    maps = IdMaps((Extent(0, 1, 2),), (Extent(0, 1, 2),), helpers=True)
    with pytest.raises(AccessError, match="newuidmap"):
        idmaps.write(os.getpid(), maps)
