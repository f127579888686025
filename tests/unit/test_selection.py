"""Which cgroups are selected: patterns as people know them, over names that anybody may choose."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsagent.cgroups.selection import Glob, Selection
from nsagent.errors import UsageError


@pytest.mark.parametrize(
    ("pattern", "covered", "other"),
    [
        (
            "/system.slice",
            ["/system.slice", "/system.slice/a.service", "/system.slice/a/b"],
            ["/system.slicex", "/x/system.slice"],
        ),
        ("/system.slice/", ["/system.slice", "/system.slice/a"], ["/a"]),
        ("/system.slice/*", ["/system.slice/a", "/system.slice/a/b"], ["/system.slice", "/other/a"]),
        ("/system.slice/**", ["/system.slice/a", "/system.slice/a/b"], ["/system.slice"]),
        ("*.service", ["/a.service", "/s/a.service", "/s/a.service/inner", "/.service"], ["/a.services", "/s"]),
        ("docker/*", ["/docker/x", "/a/docker/x/y"], ["/docker", "/dockerx/y"]),
        ("/a/**/z", ["/a/z", "/a/b/z", "/a/b/c/z/below"], ["/a", "/a/b", "/z", "/b/z"]),
        ("**/z", ["/z", "/a/z"], ["/a", "/az"]),
        ("/**/b/**/d", ["/b/d", "/a/b/c/d", "/b/b/x/d/e"], ["/d/b", "/b", "/a/d"]),
        ("/a*b*c", ["/abc", "/aXbYc", "/abbcc"], ["/ab", "/acb", "/a/bc"]),
        ("/a?c", ["/abc", "/a.c", "/a\nc"], ["/ac", "/a/c", "/abbc"]),
        ("/[ab]*", ["/a", "/bx"], ["/c", "/[ab]x"]),
        ("/[!a]", ["/b", "/!"], ["/a", "/bb"]),
        ("/[]x]", ["/]", "/x"], ["/[", "/[]x]"]),
        ("/[*]", ["/*"], ["/a"]),
        ("/[a^]", ["/^", "/a"], ["/b"]),
        ("/[x", ["/[x"], ["/x"]),
        (r"/a\x2d*", ["/a\\x2db"], ["/a-b", "/axx2db"]),
        ("/a.b", ["/a.b"], ["/axb"]),
        ("/a**b", ["/ab", "/axb"], ["/a/b"]),
        ("/", ["/a", "/"], []),
        ("/x\udcff*", ["/x\udcff", "/x\udcff\udce9"], ["/x\udcfe"]),
    ],
)
def test_a_pattern_covers(pattern: str, covered: list[str], other: list[str]) -> None:
    glob = Glob(pattern)
    for path in covered + other:
        assert glob.covers([name for name in path.split("/") if name]) == (path in covered), path


@given(st.text("ab*?", max_size=7), st.text("ab", max_size=9))
def test_within_a_name_stars_are_those_of_the_shell(pattern: str, name: str) -> None:
    simple = re.compile(pattern.replace("*", ".*").replace("?", "."))
    if name and re.sub(r"\*+", "*", pattern) not in ("", "*"):
        assert Glob(f"/{pattern}").covers([name]) == bool(simple.fullmatch(name))


def test_a_hostile_name_costs_no_more_than_its_length() -> None:
    """Tried place by place, those stars would have 10**14 ways to fail."""
    stars = Glob("/" + "*-" * 12 + "x")
    assert not stars.covers(["-" * 255])
    assert stars.covers(["-" * 254 + "-x"])
    levels = Glob("/" + "**/a/" * 12 + "x")
    assert not levels.covers(["a"] * 1000)


@pytest.mark.parametrize("pattern", ["", "//"])
def test_what_is_no_pattern(pattern: str) -> None:
    with pytest.raises(UsageError, match="no pattern of cgroups"):
        Selection(exclude=(pattern,))


def test_exclusion_is_stronger_and_the_root_is_always_there() -> None:
    selection = Selection(("/a", "*.service"), ("/a/secret", "/"), None)
    assert [selection.reason(path) for path in ("/", "/a", "/b")] == [None, "excluded", "excluded"]
    selection = Selection(("/a", "*.service"), ("/a/secret",), 2)
    reasons = {path: selection.reason(path) for path in ("/", "/a", "/a/b", "/a/b/c", "/a/secret/x", "/b", "/b/x.service")}
    assert reasons == {
        "/": None,
        "/a": None,
        "/a/b": None,
        "/a/b/c": "too_deep",
        "/a/secret/x": "excluded",
        "/b": "not_included",
        "/b/x.service": None,
    }
    assert not selection.everything


def test_depth_counts_from_the_root() -> None:
    paths = ["/", "/a", "/a/b", "/a/b/c"]
    assert [sum(map(Selection(max_depth=n).selects, paths)) for n in range(4)] == [1, 2, 3, 4]
    assert all(map(Selection().selects, paths))
    assert Selection().everything
