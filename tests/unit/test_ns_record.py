"""Which record `nsagent ns show` gives to a namespace that /proc shows: never by its number alone."""

from __future__ import annotations

from typing import Any

import pytest

from nsagent.cli import ns_text
from nsagent.cli.ns import _record_of, _rows
from nsagent.inventory import Inventory, Seen
from nsagent.namespaces import NamespaceId, NamespaceKind

UTS, NET = NamespaceKind.UTS, NamespaceKind.NET


def record(number: int, state: str, kind: NamespaceKind = UTS) -> dict[str, Any]:
    return {"kind": kind.value, "inum": 5000, "id": number, "state": state}


@pytest.mark.parametrize("members", [(), (42,)])
def test_the_kernels_id_decides_whatever_the_state(members: tuple[int, ...]) -> None:
    records = [record(2, "new"), record(3, "ended"), record(4, "new"), record(3, "live", NET)]
    for number in (2, 3, 4):
        found = _record_of(records, Seen(NamespaceId(UTS, 5000, number), members))
        assert found is not None
        assert (found["kind"], found["id"]) == ("uts", number)
    assert _record_of(records, Seen(NamespaceId(UTS, 5000, 9), members)) is None


@pytest.mark.parametrize(
    ("states", "members", "found"),
    [
        (("ended", "live"), (42,), 1),
        (("ended", "new"), (42,), None),
        (("ended", "new"), (), 1),
        (("new", "ended"), (), None),
        (("live", "ended"), (42,), None),
        ((), (42,), None),
    ],
)
def test_without_an_id_only_the_latest_that_has_not_ended(
    states: tuple[str, ...], members: tuple[int, ...], found: int | None
) -> None:
    records = [record(number, state) for number, state in enumerate(states)]
    shown = _record_of([*records, record(9, "live", NET)], Seen(NamespaceId(UTS, 5000, 0), members))
    assert (shown and shown["id"]) == found


@pytest.mark.parametrize(("number", "cpu"), [(2, 7), (0, 7), (3, None)])
def test_usage_is_of_the_same_namespace(number: int, cpu: int | None) -> None:
    inventory = Inventory({(UTS, 5000): Seen(NamespaceId(UTS, 5000, number))})
    answer = {"namespaces": [record(2, "live") | {"usage": {"threads": 1, "cpu_ns": 7}}]}
    (row,) = _rows(inventory, answer)
    assert (row["usage"] and row["usage"]["cpu_ns"]) == cpu


@pytest.mark.parametrize(("after", "sign"), [(100.0, "≤ "), (None, "≤ "), (200.0, "")])
def test_the_table_says_where_an_end_is_a_bound(after: float | None, sign: str) -> None:
    told = {"id": 7, "state": "ended", "created": None, "existed": True, "members": [], "joins": 0}
    ended = {"after": after, "by": 200.0, "how": "exit"}
    row = ns_text.history_row({"kind": "uts", "inum": 5000, **told, "ended": ended})
    assert dict(zip(ns_text.HISTORY_HEAD, row, strict=True))["ENDED"] == f"{sign}{ns_text.clock(200.0)}"
    alive = ns_text.history_row({"kind": "uts", "inum": 5000, **told, "ended": None})
    assert alive[ns_text.HISTORY_HEAD.index("ENDED")] is None
