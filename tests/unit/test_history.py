"""Namespace history from made-up events and readings: who made what, who entered, when it ended, and what a restart keeps."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nsagent.events import SyscallEvent
from nsagent.history import About, Figures, History
from nsagent.namespaces import KINDS, NamespaceId, NamespaceKind
from nsagent.records import Counts, Member, Record
from nsagent.usage import Usage
from nsagent.watch import Watch

HOST = {kind: NamespaceId(kind, 1000 + at, 1) for at, kind in enumerate(KINDS)}
INUMS = {kind: namespace.inum for kind, namespace in HOST.items()}
UTS, PID, TIME, NET = NamespaceKind.UTS, NamespaceKind.PID, NamespaceKind.TIME, NamespaceKind.NET
RUNNING = Usage(threads=1, processes=1)
SECOND = 10**9


def packed(namespace: NamespaceId) -> int:
    return namespace.id << 32 | namespace.inum


def event(
    syscall: str,
    *moves: tuple[NamespaceId, NamespaceId],
    at: int = SECOND,
    pid: int = 42,
    child: int = 0,
    flags: int | None = None,
    retval: int = 0,
) -> SyscallEvent:
    """Return a call that moved from the first to the second namespace of each pair."""
    before = {kind: packed(HOST[kind]) for kind in KINDS}
    after = dict(before)
    for old, new in moves:
        before[old.kind], after[new.kind] = packed(old), packed(new)
    asked = sum(new.kind.flag for _, new in moves) if flags is None else flags
    return SyscallEvent(
        at, syscall, pid, pid, 41, 0, "maker", asked, retval, child, 3, 0, 7, 99, tuple(before.values()), tuple(after.values()),
        argv=("maker", "-x"), ancestors=((41, "shell"), (1, "init")),
    )  # fmt: skip


def new(kind: NamespaceKind, number: int = 2) -> NamespaceId:
    return NamespaceId(kind, 5000, number)


def only(history: History, namespace: NamespaceId) -> dict[str, Any]:
    (record,) = history.read({"kind": namespace.kind, "inum": namespace.inum, "id": namespace.id})
    return record


def test_an_unshare_is_a_creation_with_its_whole_origin() -> None:
    history = History(INUMS)
    history.feed([event("unshare", (HOST[UTS], new(UTS)))])
    record = only(history, new(UTS))
    made = record["created"]
    assert made["time"] == 1.0
    assert (made["syscall"], made["how"], made["pid"], made["comm"], made["argv"]) == (
        "unshare",
        "made",
        42,
        "maker",
        ["maker", "-x"],
    )
    assert made["ancestors"] == [{"pid": 41, "comm": "shell"}, {"pid": 1, "comm": "init"}]
    assert made["from"] == {"kind": "uts", "inum": HOST[UTS].inum, "id": 1}
    assert record["state"] == "new"
    assert (record["existed"], record["joins"], record["ended"]) == (False, 0, None)


@pytest.mark.parametrize(
    ("syscall", "flags", "how"),
    [("clone", TIME.flag, "born"), ("clone3", TIME.flag, "made"), ("unshare", TIME.flag, "made"), ("fork", 0, "born")],
)
def test_the_exit_signal_of_clone_is_no_new_time_namespace(syscall: str, flags: int, how: str) -> None:
    history = History(INUMS)
    history.feed([event(syscall, (HOST[TIME], new(TIME)), flags=flags, child=43)])
    record = only(history, new(TIME))
    assert (record["created"] is not None) == (how == "made")
    assert record["born"] == (how == "born")


def test_the_first_child_of_an_unshared_pid_namespace_is_born_not_the_maker() -> None:
    history = History(INUMS)
    history.feed(
        [
            event("unshare", (HOST[PID], new(PID)), at=1),
            event("clone", (HOST[PID], new(PID)), at=2, child=43, flags=0),
        ]
    )
    record = only(history, new(PID))
    made, entered = record["created"], record["entered"]
    assert made["syscall"] == "unshare"
    assert [(entry["how"], entry["child_pid"]) for entry in entered] == [("born", 43)]
    assert record["joins"] == 0
    assert record["left"] is None


def test_a_namespace_left_unused_has_ended_when_the_next_look_but_one_finds_no_row_of_it() -> None:
    """Who unshares in a loop is in most of its namespaces for no time at all: they get no row."""
    history = History(INUMS)
    first, second = new(UTS), new(UTS, 3)
    history.observe({HOST[UTS]: RUNNING}, SECOND)
    history.feed([event("unshare", (HOST[UTS], first), at=2 * SECOND), event("unshare", (first, second), at=3 * SECOND)])
    history.observe({HOST[UTS]: RUNNING}, 4 * SECOND)
    assert only(history, first)["ended"] is None  # that look may have begun before the calls were known
    figures = history.observe({HOST[UTS]: RUNNING, second: RUNNING}, 5 * SECOND)
    ended = only(history, first)["ended"]
    assert (ended["how"], ended["after"], ended["by"]) == ("left", 3.0, 3.0)
    assert only(history, second)["ended"] is None
    assert figures.ended[UTS] == 1
    assert history.observe({HOST[UTS]: RUNNING, second: RUNNING}, 6 * SECOND).ended[UTS] == 1


def test_joins_are_kept_bounded_and_counted_in_full_by_crossing() -> None:
    history = History(INUMS)
    inside, other = new(NET), new(NET, 3)
    history.feed([event("setns", (HOST[NET], inside), pid=pid) for pid in range(100, 200)])
    history.feed([event("setns", (inside, HOST[NET])), event("setns", (inside, other)), event("setns", (other, inside))])
    record = only(history, inside)
    entered = record["entered"]
    assert record["joins"] == 101
    assert [entry["pid"] for entry in entered] == [*range(185, 200), 42]
    assert history.observe({}, SECOND).joins == {(NET, "into_container"): 100, (NET, "to_host"): 1, (NET, "sibling"): 2}


def test_failed_calls_and_plain_forks_leave_no_trace() -> None:
    history = History(INUMS)
    history.feed([event("setns", (HOST[NET], new(NET)), retval=-1), event("fork", child=43)])
    assert list(history.read()) == []


def test_a_join_that_comes_before_its_creation_is_completed_by_it() -> None:
    """Two CPUs write to the ring buffer: the child's setns may stand before the end of the clone that made the namespace."""
    history = History(INUMS)
    history.feed([event("setns", (HOST[UTS], new(UTS)), at=3), event("clone", (HOST[UTS], new(UTS)), at=2, child=43)])
    record = only(history, new(UTS))
    made = record["created"]
    assert (made["syscall"], record["joins"]) == ("clone", 1)


def test_what_no_call_explains_is_made_if_new_else_joined() -> None:
    history = History(INUMS)
    history.feed([event("unseen", (HOST[UTS], new(UTS)), flags=0), event("unseen", (HOST[UTS], new(UTS)), flags=0, pid=50)])
    record = only(history, new(UTS))
    made = record["created"]
    assert (made["syscall"], record["joins"]) == ("unseen", 1)


def test_the_first_look_tells_what_existed() -> None:
    history = History(INUMS)
    history.feed([event("unshare", (HOST[UTS], new(UTS)))])
    history.observe({HOST[UTS]: RUNNING, new(UTS): RUNNING}, 2 * SECOND)
    history.observe({HOST[UTS]: RUNNING, new(UTS): RUNNING, new(NET): RUNNING}, 3 * SECOND)
    assert [(r["kind"], r["inum"], r["existed"]) for r in list(history.read())] == [
        ("uts", 5000, False),
        ("uts", HOST[UTS].inum, True),
        ("net", 5000, False),
    ]
    assert only(history, new(NET))["created"] is None


def test_an_exit_ends_between_two_looks() -> None:
    history = History(INUMS)
    history.feed([event("unshare", (HOST[UTS], new(UTS)))])
    figures = history.observe({new(UTS): RUNNING}, 2 * SECOND)
    assert figures.created_ns == {new(UTS): SECOND}
    assert only(history, new(UTS))["state"] == "live"
    figures = history.observe({new(UTS): Usage(threads_exited=1)}, 4 * SECOND)
    record = only(history, new(UTS))
    assert (record["state"], record["ended"]) == ("ended", {"after": 2.0, "by": 4.0, "how": "exit"})
    assert figures.ended == {UTS: 1}
    assert figures.created_ns == {}
    assert history.observe({new(UTS): Usage(threads_exited=1)}, 5 * SECOND).ended == {UTS: 1}
    assert history.observe({}, 6 * SECOND).ended == {UTS: 1}


def test_one_that_lived_between_two_looks_ends_after_its_creation() -> None:
    history = History(INUMS)
    history.observe({}, SECOND)
    history.feed([event("unshare", (HOST[UTS], new(UTS)), at=2 * SECOND)])
    history.observe({new(UTS): Usage(threads_exited=1)}, 3 * SECOND)
    assert only(history, new(UTS))["ended"] == {"after": 2.0, "by": 3.0, "how": "exit"}


def test_who_leaves_last_ends_it_at_that_moment() -> None:
    history = History(INUMS)
    history.observe({}, 1)
    first, second = new(UTS), new(UTS, 3)
    history.feed([event("unshare", (HOST[UTS], first), at=SECOND), event("unshare", (first, second), at=2 * SECOND)])
    history.observe({first: Usage(), second: RUNNING}, 9 * SECOND)
    record = only(history, first)
    left = record["left"]
    assert record["ended"] == {"after": 2.0, "by": 2.0, "how": "left"}
    assert left["to"] == {"kind": "uts", "inum": 5000, "id": 3}
    assert only(history, second)["state"] == "live"


def test_a_birth_that_races_with_the_pass_is_no_end() -> None:
    """Its task was born behind the pass: the row exists, the gauge is 0. The next look counts it; a third finds it gone."""
    history = History(INUMS)
    history.feed([event("clone3", (HOST[UTS], new(UTS)), child=43)])
    assert history.observe({new(UTS): Usage(threads_created=1)}, 2 * SECOND).ended == {}
    assert history.unsettled
    assert history.observe({new(UTS): Usage(threads_created=1, threads=1)}, 3 * SECOND).ended == {}
    assert not history.unsettled
    assert history.observe({new(UTS): Usage(threads_created=1, threads_exited=1)}, 4 * SECOND).ended == {UTS: 1}


def test_a_second_quiet_look_ends_it_without_more_evidence() -> None:
    history = History(INUMS)
    history.observe({new(UTS): RUNNING}, 1)
    assert history.observe({new(UTS): Usage()}, 2).ended == {}
    assert history.observe({new(UTS): Usage()}, 3).ended == {UTS: 1}


def test_a_pinned_namespace_lives_again_and_ends_again() -> None:
    history = History(INUMS)
    history.observe({new(NET): RUNNING}, 1)
    history.observe({new(NET): Usage(threads_exited=1)}, 2)
    history.feed([event("setns", (HOST[NET], new(NET)), at=3)])
    assert only(history, new(NET))["ended"] is None
    history.observe({new(NET): Usage(threads_exited=1, threads=1)}, 4)
    assert only(history, new(NET))["state"] == "live"
    assert history.observe({new(NET): Usage(threads_exited=2)}, 5).ended == {NET: 2}


def test_one_number_five_times_is_five_namespaces() -> None:
    history = History(INUMS)
    for number in range(2, 7):
        history.feed([event("unshare", (HOST[UTS], new(UTS, number)), at=number * SECOND, pid=number)])
    history.observe({new(UTS, number): Usage(threads_exited=1) for number in range(2, 7)}, 10 * SECOND)
    records = list(history.read({"inum": 5000}))
    assert [record["id"] for record in records] == [2, 3, 4, 5, 6]
    assert [record["created"]["pid"] for record in records] == [2, 3, 4, 5, 6]
    assert {record["state"] for record in records} == {"ended"}


def test_memory_is_bounded_and_the_oldest_that_ended_go_first() -> None:
    history = History(INUMS, limit=10)
    history.observe({new(UTS, 100): RUNNING, new(UTS, 101): RUNNING}, 1)
    for number in range(8):
        history.feed([event("unshare", (HOST[UTS], new(UTS, number)))])
    looked = {new(UTS, 100): RUNNING, new(UTS, 101): Usage(threads_exited=1), new(UTS, 7): RUNNING}
    history.observe(looked, 2)
    history.feed([event("unshare", (HOST[UTS], new(UTS, 50)))])
    assert [record["id"] for record in list(history.read())] == [100, 0, 1, 2, 3, 4, 5, 6, 7, 50]
    history.feed([event("unshare", (HOST[UTS], new(UTS, number))) for number in range(51, 58)])
    assert [record["id"] for record in list(history.read())] == [100, 7, *range(50, 58)]
    assert (history.evicted, len(list(history.read()))) == (8, 10)
    assert history.observe(looked, 3) == Figures({new(UTS, 7): SECOND}, {UTS: 1}, {}, 10, 8)


def test_a_loop_of_unshares_costs_no_record_of_what_somebody_lived_in() -> None:
    history = History(INUMS, limit=20)
    history.observe({HOST[UTS]: RUNNING}, 1)
    box, gone = new(NET), new(NET, 3)
    history.feed([event("unshare", (HOST[NET], gone), at=2)])
    history.observe({HOST[UTS]: RUNNING, gone: Usage(threads_created=1, threads_exited=2)}, 3)
    history.feed([event("unshare", (HOST[NET], box), at=4)])
    last = HOST[UTS]
    for number in range(10, 500):
        history.feed([event("unshare", (last, new(UTS, number)), at=number)])
        last = new(UTS, number)
        if number % 100 == 0:
            history.observe({HOST[UTS]: RUNNING, last: RUNNING}, number)
    assert only(history, gone)["state"] == "ended"
    assert only(history, box)["state"] == "new"
    history.observe({HOST[UTS]: RUNNING, box: RUNNING}, 1000)
    assert only(history, box)["created"]["time"] == 4 / 1e9
    assert (len(list(history.read())), history.evicted) == (20, 490 + 3 - 20)


def test_who_enters_what_was_only_passed_through_makes_it_one_of_the_others() -> None:
    history = History(INUMS, limit=6)
    first, second = new(UTS), new(UTS, 3)
    history.observe({HOST[UTS]: RUNNING}, 1)
    history.feed([event("unshare", (HOST[UTS], first), at=2), event("unshare", (first, second), at=3)])
    history.feed([event("setns", (HOST[UTS], first), at=4)])
    history.feed([event("unshare", (HOST[NET], new(NET, number)), at=number) for number in range(10, 13)])
    history.observe({HOST[UTS]: RUNNING, first: RUNNING, second: RUNNING}, 20)
    assert only(history, first)["joins"] == 1
    assert only(history, first)["state"] == "live"


def test_a_birth_behind_the_pass_in_a_namespace_whose_maker_has_exited_is_no_end() -> None:
    """runc: who unshares has a child and exits. Where a pass saw neither, as many exited as were born, and one lives."""
    history = History(INUMS)
    history.observe({HOST[UTS]: RUNNING}, 1)
    history.feed([event("unshare", (HOST[UTS], new(UTS)), at=2)])
    born = Usage(threads_created=1, threads_exited=1)
    assert history.observe({HOST[UTS]: RUNNING, new(UTS): born}, 3).ended == {}
    assert history.unsettled
    assert history.observe({HOST[UTS]: RUNNING, new(UTS): born._replace(threads=1)}, 4).ended == {}
    assert history.observe({HOST[UTS]: RUNNING, new(UTS): born._replace(threads_exited=2)}, 5).ended == {UTS: 1}


def test_who_left_before_a_later_look_met_others_there_did_not_end_it() -> None:
    """A look that meets the last one as a zombie has counted its exit: the next finds no exit that is new."""
    history = History(INUMS)
    first, second = new(UTS), new(UTS, 3)
    history.observe({HOST[UTS]: RUNNING}, SECOND)
    history.feed([event("unshare", (HOST[UTS], first), at=2 * SECOND), event("unshare", (first, second), at=3 * SECOND)])
    for at in (4, 5):
        history.observe({HOST[UTS]: RUNNING, first: RUNNING._replace(threads_created=1, threads_exited=1)}, at * SECOND)
    for at in (6, 7):
        history.observe({HOST[UTS]: RUNNING, first: Usage(threads_created=1, threads_exited=1)}, at * SECOND)
    ended = only(history, first)["ended"]
    assert ended["how"] == "exit"
    assert 5.0 <= ended["after"] <= ended["by"]


def test_members_are_remembered_after_the_end() -> None:
    history = History(INUMS)
    history.observe({new(UTS): RUNNING}, 1)
    assert history.living(heard_since_ns=2) == {(UTS, 5000)}
    history.describe({(UTS, 5000): (Member(43, "sleep", ("sleep", "9")),)})
    assert (history.living(heard_since_ns=2), history.living(heard_since_ns=1)) == (set(), {(UTS, 5000)})
    history.observe({new(UTS): Usage(threads_exited=1)}, 2)
    history.describe({(UTS, 5000): (Member(99, "other", ()),)})  # the number is another namespace's now
    assert only(history, new(UTS))["members"] == [{"pid": 43, "comm": "sleep", "argv": ["sleep", "9"]}]


def test_a_member_that_has_ended_was_in_it_all_the_same() -> None:
    history = History(INUMS)
    history.observe({new(UTS): RUNNING}, 1)
    history.describe({(UTS, 5000): (Member(43, "sleep", ()),)})
    history.tell({}, [], [new(UTS)])
    assert history.living(heard_since_ns=9 * SECOND) == {(UTS, 5000)}, "there may be others: look"
    history.observe({new(UTS): Usage(threads_exited=1)}, 2)
    assert [each["pid"] for each in only(history, new(UTS))["members"]] == [43]


def test_what_names_a_namespace_goes_with_it() -> None:
    history = History(INUMS)
    history.feed([event("unshare", (HOST[UTS], new(UTS)))])
    history.observe({new(UTS): RUNNING, new(NET): RUNNING}, 1)
    history.describe({(UTS, 5000): (Member(43, "sleep", ()),), (NET, 5000): (Member(44, "dog", ()),)})
    assert history.oldest() == {new(UTS): (43, "maker"), new(NET): (44, "")}
    about = About(comm="sleep", creator_comm="maker")
    history.tell({new(UTS): about}, [new(NET)])
    assert history.observe({new(UTS): RUNNING, new(NET): RUNNING}, 2).about == {new(UTS): about}
    assert history.living(heard_since_ns=9 * SECOND) == {(NET, 5000)}, "its member went elsewhere: look again"
    assert history.observe({}, 3).about == {}


def full(path: str | None = None, counts: Counts | None = None) -> History:
    history = History(INUMS, path=path, counts=counts)
    history.observe({HOST[UTS]: RUNNING}, SECOND)
    history.feed([event("unshare", (HOST[UTS], new(UTS)), at=2 * SECOND), event("setns", (HOST[NET], new(NET)), at=3 * SECOND)])
    history.feed(
        [event("unshare", (new(UTS), new(UTS, 3)), at=4 * SECOND), event("clone", (HOST[PID], new(PID)), child=43, flags=0)]
    )
    history.observe({HOST[UTS]: RUNNING, new(UTS): Usage(), new(UTS, 3): RUNNING, new(NET): RUNNING}, 5 * SECOND)
    history.describe({(UTS, 5000): (Member(43, "b\udcffd", ("a\nb",)),)})
    return history


def test_a_restart_goes_on_where_the_last_save_was(tmp_path: Path) -> None:
    path = str(tmp_path / "history.jsonl")
    history = full(path)
    history.save()
    again = History(INUMS, path=path)
    assert list(again.read()) == list(history.read())
    again.observe({HOST[UTS]: RUNNING, new(UTS, 3): Usage(threads_exited=1)}, 6 * SECOND)
    states = {(record["kind"], record["id"]): record["state"] for record in list(again.read())}
    assert states == {("uts", 1): "live", ("uts", 2): "ended", ("net", 2): "ended", ("uts", 3): "ended", ("pid", 2): "ended"}
    assert [path.name for path in tmp_path.iterdir()] == ["history.jsonl"]


def test_every_record_survives_json() -> None:
    for document in list(full().read()):
        assert Record.from_json(json.loads(json.dumps(document))).to_json() == document


@pytest.mark.parametrize("spoil", ["boot_id", "version", "records", "all", "goes_on"])
def test_what_is_not_of_this_boot_or_broken_is_left_alone(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "history.jsonl"
    full(str(path)).save()
    head, first, *rest = map(json.loads, path.read_text().splitlines())
    if spoil == "records":
        first["kind"] = "no kind"
    elif spoil in head:
        head[spoil] = "another"
    path.write_text("{" if spoil == "all" else "\n".join(map(json.dumps, (head, first, *rest))))
    assert list(History(INUMS, path=str(path), goes_on=spoil != "goes_on").read()) == []


def test_counters_survive_a_kill_and_count_no_end_twice(tmp_path: Path) -> None:
    path = str(tmp_path / "counts.json")
    last = {HOST[UTS]: RUNNING, new(UTS): Usage(), new(UTS, 3): RUNNING}
    before = full(counts=Counts(path)).observe(last, 6 * SECOND)
    assert (before.ended, before.joins) == ({UTS: 1}, {(NET, "into_container"): 1})
    after = History(INUMS, counts=Counts(path, goes_on=True)).observe(last, 7 * SECOND)
    assert (after.ended, after.joins) == (before.ended, before.joins)
    fresh = History(INUMS, counts=Counts(path)).observe({}, 7 * SECOND)
    assert (fresh.ended, fresh.joins) == ({}, {})


def test_what_an_agent_counted_and_did_not_save_ends_after_its_kill_and_is_counted_once(tmp_path: Path) -> None:
    """The first saves one record as new, two as live; the second sees all end and is killed, and the third adopts its rows."""
    path, counts = str(tmp_path / "history.jsonl"), str(tmp_path / "counts.json")
    made, lived, passed, last = new(UTS), new(NET), new(UTS, 3), new(UTS, 4)
    first = History(INUMS, path=path, counts=Counts(counts))
    first.feed([event("unshare", (HOST[UTS], made)), event("unshare", (HOST[NET], lived))])
    first.observe({HOST[UTS]: RUNNING, lived: RUNNING}, 2 * SECOND)
    first.feed([event("unshare", (HOST[UTS], passed), at=3 * SECOND), event("unshare", (passed, last), at=4 * SECOND)])
    first.save()
    gone = {HOST[UTS]: RUNNING, last: RUNNING, passed: Usage(), **dict.fromkeys((made, lived), Usage(threads_exited=1))}
    second = History(INUMS, path=path, counts=Counts(counts, goes_on=True))
    assert second.observe(gone, 5 * SECOND).ended == {UTS: 2, NET: 1}
    third = History(INUMS, path=path, counts=Counts(counts, goes_on=True))
    for at in (6, 7):
        assert third.observe(gone, at * SECOND).ended == {UTS: 2, NET: 1}
    states = [only(third, each)["state"] for each in (made, lived, passed, last)]
    assert states == ["ended", "ended", "ended", "live"]
    assert only(third, passed)["ended"] == {"after": 4.0, "by": 4.0, "how": "left"}


def test_what_no_row_shows_after_a_restart_has_ended_though_nobody_was_met_there(tmp_path: Path) -> None:
    path = str(tmp_path / "history.jsonl")
    first = History(INUMS, path=path)
    made, passed, last, mine = new(UTS), new(UTS, 3), new(UTS, 4), new(PID)
    first.feed([event("unshare", (HOST[UTS], made)), event("unshare", (HOST[UTS], passed)), event("unshare", (passed, last))])
    first.feed([event("unshare", (HOST[PID], mine))])
    first.save()
    second = History(INUMS, path=path)
    second.feed([event("unshare", (HOST[NET], new(NET)))])
    second.observe({HOST[UTS]: RUNNING, last: RUNNING}, 5 * SECOND)
    states = {namespace: only(second, namespace)["state"] for namespace in (made, passed, last, mine, new(NET))}
    assert states == {made: "ended", passed: "ended", last: "live", mine: "ended", new(NET): "new"}
    second.feed([event("clone", (HOST[PID], mine), child=43, flags=0)])
    second.observe({HOST[UTS]: RUNNING, last: RUNNING, mine: RUNNING}, 6 * SECOND)
    assert only(second, mine)["state"] == "live"


def test_a_visit_between_two_looks_to_what_had_ended_ends_again() -> None:
    history = History(INUMS)
    history.observe({new(NET): RUNNING}, 1)
    history.observe({new(NET): Usage(threads_exited=1)}, 2)
    history.feed([event("setns", (HOST[NET], new(NET)), at=3)])
    for at in (4, 5):
        history.observe({new(NET): Usage(threads_exited=2)}, at)
    assert (only(history, new(NET))["state"], only(history, new(NET))["joins"]) == ("ended", 1)


def test_rise_never_falls() -> None:
    counts = Counts()
    assert [counts.rise("x", value) for value in (3, 2, 5)] == [3, 3, 5]


def test_a_directory_that_is_gone_costs_the_file_and_nothing_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    history = full(str(tmp_path / "gone" / "history.jsonl"), Counts(str(tmp_path / "gone" / "counts.json")))
    history.save()
    assert len(list(history.read())) == 5
    assert "state_not_written" in caplog.text


def test_readers_and_writers_meet() -> None:
    history = History(INUMS, limit=64)
    done = threading.Event()
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set():
                list(history.read())
                history.observe({HOST[UTS]: RUNNING, new(UTS, 7): Usage()}, 1)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    for number in range(3000):
        history.feed([event("unshare", (new(UTS, number), new(UTS, number + 1)))])
    done.set()
    thread.join()
    assert failures == []
    assert len(list(history.read())) == 64


def test_an_answer_has_what_the_kernel_told_before_it_was_asked() -> None:
    """The thread that reads the ring may not have come to it."""
    history = History(INUMS)
    sampler: Any = SimpleNamespace(read=lambda: history.observe({}, 2 * SECOND))
    made = event("unshare", (HOST[UTS], new(UTS)))
    watch = Watch(sampler, history, lambda _: 0, lambda: history.feed([made]))
    _, records = watch.history({"kind": "uts"})
    assert [record["created"]["pid"] for record in records] == [made.pid]
