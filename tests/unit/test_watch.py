"""What the watch looks for, and how often in vain."""

from __future__ import annotations

import os

from nsagent import namespaces
from nsagent.namespaces import NamespaceKind
from nsagent.watch import Search, read_members

_THERE, _NOT = (NamespaceKind.NET, 1), (NamespaceKind.UTS, 2)


def _rounds(search: Search, count: int) -> list[int]:
    """Return in which rounds what is not there was looked for."""
    looked = []
    for number in range(count):
        if _NOT in search.due({_THERE, _NOT}):
            looked.append(number)
        search.end({_THERE})
    return looked


def test_what_is_not_found_is_looked_for_less_and_less() -> None:
    assert _rounds(Search(), 50) == [0, 2, 6, 14, 30, 46]


def test_what_is_wanted_no_more_is_looked_for_at_once_when_it_is_again() -> None:
    search = Search()
    assert _rounds(search, 7) == [0, 2, 6]
    assert search.due({_THERE}) == {_THERE}
    search.end({_THERE})
    assert _rounds(search, 3) == [0, 2]


def test_what_is_found_is_due_in_each_round() -> None:
    search = Search()
    for found in (set(), {_NOT}, {_NOT}):
        while _NOT not in search.due({_NOT}):
            search.end(set())
        search.end(found)
    assert search.due({_NOT}) == {_NOT}


def test_members_by_one_kind() -> None:
    own = namespaces.read_inums("self")
    key = (NamespaceKind.UTS, own[NamespaceKind.UTS])
    members = read_members({key, (NamespaceKind.NET, 1)})
    assert members.keys() == {key}
    assert 1 <= len(members[key]) <= 8
    assert namespaces.read_inums(os.getpid(), kinds={NamespaceKind.UTS}) == {key[0]: key[1]}
