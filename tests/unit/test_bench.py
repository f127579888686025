"""The benches' frame: what it computes and prints, and that its herd is gone when it ends. Durations are not tested."""

from __future__ import annotations

import os

import pytest

from bench import run
from bench.measure import Result, herd, interleaved, rotated


def group_members(group: int) -> list[int]:
    members = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            if os.getpgid(pid) == group:
                members.append(pid)
        except ProcessLookupError:
            continue
    return members


def test_median_and_ratio_to_the_baseline() -> None:
    result = Result()
    result.add({"slow": [1.0, 9.0, 6.0], "fast": [2.0, 2.0, 50.0]}, "ms", "fast")
    assert [(row.name, row.median, row.ratio) for row in result.rows] == [("slow", 6.0, 3.0), ("fast", 2.0, 1.0)]
    assert list(run.table(result.rows))[2:] == ["| slow | 6 ms | 3 | 3 × fast |", "| fast | 2 ms | 3 |  |"]


def test_cases_take_turns_and_the_first_round_is_not_counted() -> None:
    calls: list[str] = []
    samples = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=3)
    assert calls == ["a", "b"] * 4
    assert {name: len(values) for name, values in samples.items()} == {"a": 3, "b": 3}


def test_another_case_comes_first_in_each_round() -> None:
    assert ["".join(rotated("abc", number)) for number in range(4)] == ["abc", "bca", "cab", "abc"]


def test_a_herd_has_its_size_and_leaves_nobody() -> None:
    with herd(25) as group:
        assert len(group_members(group)) == 25
    assert group_members(group) == []


def test_a_herd_ends_with_an_exception_too() -> None:
    with pytest.raises(KeyError), herd(5) as group:
        raise KeyError
    assert group_members(group) == []


def test_an_unknown_bench_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["nonsense"]) == 2
    assert "no such bench: nonsense" in capsys.readouterr().err


def test_the_machine_is_named() -> None:
    text = "\n".join(run.machine())
    assert os.uname().release in text
    assert f"{os.cpu_count()} CPUs" in text
