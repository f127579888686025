"""Samples: what ended is kept for a while, totals up the tree never fall, and who shares a sample with whom."""

from __future__ import annotations

import json
import random
import threading
from pathlib import Path

import pytest

from nsagent.cgroups.selection import Selection
from nsagent.cgroups.stats import CgroupStats, CpuStats
from nsagent.errors import NsagentError
from nsagent.namespaces import NamespaceId, NamespaceKind
from nsagent.sample import Ancestry, FileFigures, Retained, Sampler, Shared
from nsagent.usage import NodeUsage, Usage, total
from tests.support import wait_for
from tests.unit.samples import node_usage

NET = NamespaceId(NamespaceKind.NET, 1, 1)


class Cgroups:
    """A CgroupSource of what a test says."""

    def __init__(self, ids: dict[str, int]) -> None:
        self.ids = ids
        self.error: NsagentError | None = None

    def read(self, selection: Selection) -> dict[str, CgroupStats]:
        if self.error:
            raise self.error
        return {path: CgroupStats(CpuStats(usage_ns=number)) for path, number in self.ids.items() if selection.selects(path)}

    def files(self) -> FileFigures:
        return FileFigures(0, {})

    def accounting_ids(self) -> dict[str, int]:
        return self.ids


class Source:
    """A UsageSource of what a test says."""

    def __init__(self, usage: NodeUsage) -> None:
        self.usage = usage

    def read(self) -> NodeUsage:
        return self.usage

    def close(self) -> None:
        pass


def test_what_ended_is_retained_then_gone() -> None:
    kept: Retained[str, int] = Retained(100)
    assert kept.update({"a": 1, "b": 2}, 0) == ({"a": 1, "b": 2}, {})
    assert kept.update({"a": 5}, 50) == ({"a": 5}, {"b": 2})
    assert kept.update({"a": 5}, 100) == ({"a": 5}, {"b": 2})
    assert kept.update({"a": 5}, 101) == ({"a": 5}, {})
    assert kept.update({"a": 5, "b": 1}, 102) == ({"a": 5, "b": 1}, {}), "made again: it lives"


def test_what_is_dead_when_first_seen_is_seen_once_at_least() -> None:
    kept: Retained[str, int] = Retained(100, alive=lambda value: value > 0)
    assert kept.update({"short": -7}, 0) == ({}, {"short": -7})
    assert kept.update({"short": -7}, 99) == ({}, {"short": -7})
    assert kept.update({"short": -7}, 101) == ({}, {})
    assert kept.update({"short": -7}, 500) == ({}, {}), "listed by its source or not, it is over"
    assert kept.update({"short": -8}, 501) == ({}, {"short": -8}), "a late charge shows"
    assert kept.update({"short": 3}, 502) == ({"short": 3}, {}), "a member joined"


def used(read_bytes: int) -> Usage:
    return Usage(read_bytes=read_bytes)


def by_path(usage: dict[str, Usage]) -> dict[str, int]:
    return {path: each.read_bytes for path, each in usage.items()}


def test_usage_is_summed_up_the_tree() -> None:
    tree = Ancestry()
    tree.learn({"/": 1, "/a": 2, "/a/b": 3, "/a/c": 4, "/d": 5})
    live, gone = tree.sum_up({1: used(1), 3: used(10), 4: used(100)})
    assert by_path(live) == {"/": 111, "/a": 110, "/a/b": 10, "/a/c": 100, "/d": 0}
    assert gone == {}


def test_totals_of_ancestors_keep_what_is_gone() -> None:
    tree = Ancestry()
    tree.learn({"/": 1, "/a": 2, "/a/b": 3})
    flat = {2: used(1), 3: used(10)}
    assert by_path(tree.sum_up(flat)[0]) == {"/": 11, "/a": 11, "/a/b": 10}
    tree.learn({"/": 1, "/a": 2})
    live, gone = tree.sum_up(flat)
    assert by_path(live) == {"/": 11, "/a": 11}
    assert by_path(gone) == {"/a/b": 10}
    tree.learn({"/": 1})
    assert by_path(tree.sum_up(flat)[0]) == {"/": 11}, "the parent is gone too"


def test_a_new_cgroup_under_an_old_path_begins_at_nothing() -> None:
    tree = Ancestry()
    tree.learn({"/": 1, "/a": 2, "/a/b": 3})
    flat = {2: used(1), 3: used(10)}
    tree.sum_up(flat)
    tree.learn({"/": 1, "/a": 9, "/a/b": 8})
    live, gone = tree.sum_up(flat | {8: used(100)})
    assert by_path(live) == {"/": 111, "/a": 100, "/a/b": 100}
    assert gone == {}


def test_a_cgroup_that_came_and_went_unseen_is_the_roots() -> None:
    tree = Ancestry()
    tree.learn({"/": 1, "/a": 2})
    assert by_path(tree.sum_up({0: used(1), 77: used(10)})[0]) == {"/": 11, "/a": 0}
    assert tree.successor(77) == 1


def test_a_cgroup_that_is_told_of_before_it_is_used_is_known_when_it_has_gone() -> None:
    tree = Ancestry()
    tree.learn({"/": 1, "/a": 2})
    tree.learn_born({77: ("/a/b", 2)})
    tree.sum_up({2: used(1)})  # made while this sample was taken: it is not in it
    live, gone = tree.sum_up({2: used(1), 77: used(10)})
    assert by_path(live) == {"/": 11, "/a": 11}
    assert by_path(gone) == {"/a/b": 10}
    tree.learn_born({78: ("/a/c", 2)})
    for _ in range(2):
        tree.sum_up({2: used(1)})
    assert by_path(tree.sum_up({78: used(10)})[1]) == {}, "nobody is kept for long who uses nothing"


def test_who_inherits() -> None:
    tree = Ancestry()
    tree.learn({"/": 1, "/a": 2, "/a/b": 3})
    assert [tree.successor(cgroup) for cgroup in (1, 2, 3)] == [1, 2, 3]
    tree.sum_up({3: used(1)})
    tree.learn({"/": 1, "/a": 2})
    assert tree.successor(3) == 2
    tree.sum_up({3: used(1)})
    tree.learn({"/": 1})
    assert tree.successor(3) == 1


def test_folding_into_the_parent_changes_no_total() -> None:
    tree = Ancestry()
    tree.learn({"/": 1, "/a": 2, "/a/b": 3})
    tree.sum_up({3: used(10)})
    tree.learn({"/": 1, "/a": 2})
    before = by_path(tree.sum_up({2: used(1), 3: used(10)})[0])
    assert by_path(tree.sum_up({2: used(11)})[0]) == before == {"/": 11, "/a": 11}


def test_a_restarted_agent_knows_whose_the_gone_were(tmp_path: Path) -> None:
    file = tmp_path / "cgroups.jsonl"
    flat = {2: used(1), 3: used(10)}
    tree = Ancestry(str(file))
    tree.learn({"/": 1, "/a": 2, "/a/\udcff": 3})
    tree.sum_up(flat)
    again = Ancestry(str(file))
    again.learn({"/": 1, "/a": 2})
    live, gone = again.sum_up(flat)
    assert by_path(live) == {"/": 11, "/a": 11}
    assert by_path(gone) == {"/a/\udcff": 10}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"boot": "another"}\n[3, "/a/b", 2]\n', "BOOT\n5\n", 'BOOT\n[3, "/a/b", 2]'])
def test_a_file_of_another_boot_or_none_of_ours_is_nothing(tmp_path: Path, text: str) -> None:
    file = tmp_path / "cgroups.jsonl"
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    file.write_text(text.replace("BOOT", json.dumps({"boot": boot})))
    tree = Ancestry(str(file))
    tree.learn({"/": 1, "/a": 2})
    assert by_path(tree.sum_up({3: used(10)})[0]) == {"/": 10, "/a": 0}
    assert [json.loads(line) for line in file.read_text().splitlines()] == [{"boot": boot}, [1, "/", 1], [2, "/a", 1]]


def test_what_is_new_is_written_behind_the_rest_until_most_of_it_is_of_no_use(tmp_path: Path) -> None:
    file = tmp_path / "cgroups.jsonl"
    tree, longest = Ancestry(str(file)), 0
    for number in range(3000):  # each is gone when the next one is made
        tree.learn({"/": 1, f"/{number}": number + 2})
        tree.sum_up({})
        lines = file.read_text().splitlines()
        assert json.loads(lines[-1]) == [number + 2, f"/{number}", 1]
        longest = max(longest, len(lines))
    assert 1000 < longest < 1100


def test_where_no_cgroup_is_known_everyone_succeeds_itself() -> None:
    assert Ancestry().successor(5) == 5
    assert Ancestry().sum_up({5: used(1)}) == ({}, {})


def test_a_sample_has_what_lives_and_what_ended() -> None:
    cgroups = Cgroups({"/": 1, "/a": 2})
    source = Source(node_usage({NET: Usage(cpu_ns=5, threads=1)}, {2: used(10)}))
    sampler = Sampler(retain_ns=10**12, ancestry=Ancestry(), cgroups=cgroups, usage=source)
    sample = sampler.read()
    assert sample.cgroups.keys() == {"/", "/a"}
    assert sample.namespaces.keys() == {NET}
    cgroups.ids = {"/": 1}
    source.usage = node_usage({NET: Usage(cpu_ns=6)}, {2: used(11)})
    sample = sampler.read()
    assert sample.cgroups.keys() == sample.cgroup_usage.keys() == {"/"}
    assert sample.cgroups_ended["/a"].cpu == CpuStats(usage_ns=2)
    assert sample.cgroup_usage_ended["/a"].read_bytes == 11, "charged after its end"
    assert sample.namespaces == {}
    assert sample.namespaces_ended[NET].cpu_ns == 6


def test_what_is_not_selected_counts_above_and_is_forgotten_at_once() -> None:
    cgroups = Cgroups({"/": 1, "/a": 2, "/a/b": 3})
    source = Source(node_usage({NET: Usage(threads=1)}, {2: used(10), 3: used(5)}))
    sampler = Sampler(retain_ns=10**12, ancestry=Ancestry(), cgroups=cgroups, usage=source)
    assert sampler.read().cgroups.keys() == {"/", "/a", "/a/b"}
    sampler.selection = Selection(max_depth=1)
    sample = sampler.read()
    assert sample.cgroups.keys() == {"/", "/a"}
    assert by_path(dict(sample.cgroup_usage)) == {"/": 15, "/a": 15}
    assert not sample.cgroups_ended, "it has not ended"
    assert not sample.cgroup_usage_ended
    del cgroups.ids["/a/b"]
    assert sampler.read().cgroup_usage_ended == {}
    sampler.selection = Selection(exclude=("/a",))
    assert sampler.read().cgroups.keys() == {"/"}


def test_a_collector_that_fails_leaves_its_part_out(caplog: pytest.LogCaptureFixture) -> None:
    cgroups = Cgroups({"/": 1})
    sampler = Sampler(retain_ns=0, ancestry=Ancestry(), cgroups=cgroups, usage=Source(node_usage({NET: Usage(threads=1)})))
    cgroups.error = NsagentError("no")
    for _ in range(3):
        sample = sampler.read()
        assert (sample.collectors["cgroups"].success, sample.collectors["usage"].success) == (False, True)
        assert sample.cgroups == {}
        assert sample.namespaces.keys() == {NET}
    assert caplog.text.count("event=collector_failed") == 1, "logged once a cause"
    cgroups.error = None
    assert sampler.read().cgroups.keys() == {"/"}


def test_who_waits_shares_the_next_and_nobody_gets_an_older_one() -> None:
    begun = 0
    gate = threading.Semaphore(0)

    def make() -> int:
        nonlocal begun
        begun += 1
        number = begun
        gate.acquire()
        return number

    shared = Shared(make)
    results: list[int] = []
    first = threading.Thread(target=lambda: results.append(shared.get()))
    first.start()
    wait_for(lambda: begun == 1)
    others = [threading.Thread(target=lambda: results.append(shared.get())) for _ in range(8)]
    for thread in others:
        thread.start()
    wait_for(lambda: len(shared._changed._waiters) == 8)  # type: ignore[attr-defined]
    gate.release()
    first.join()
    assert results == [1]
    gate.release()
    for thread in others:
        thread.join()
    assert results == [1] + [2] * 8
    gate.release()
    assert shared.get() == 3


def test_a_failure_is_everyones_and_not_the_last_word() -> None:
    answers: list[int | Exception] = [ValueError("once"), 5]

    def make() -> int:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    shared = Shared(make)
    with pytest.raises(ValueError, match="once"):
        shared.get()
    assert shared.get() == 5


def test_totals_are_those_of_all_below_however_the_tree_has_changed_since_the_last_time() -> None:
    chance = random.Random(11)
    ancestry, alive = Ancestry(), {"/": 1}
    for number in range(2, 200):
        above = chance.choice(list(alive))
        alive[f"{above.rstrip('/')}/{number}"] = number
        if number % 5 == 0:
            gone = chance.choice(list(alive)[1:])
            alive = {path: cgroup for path, cgroup in alive.items() if path != gone and not path.startswith(gone + "/")}
        ancestry.learn(dict(alive))
        for _ in range(2):
            flat = {cgroup: Usage(cpu_ns=chance.randrange(1000)) for cgroup in alive.values() if chance.random() < 0.8}
            live, dead = ancestry.sum_up(flat)
            below = {
                path: [flat[c] for p, c in alive.items() if c in flat and f"{p}/".startswith(path.rstrip("/") + "/")]
                for path in alive
            }
            assert (live, dead) == ({path: total(parts) for path, parts in below.items()}, {})
