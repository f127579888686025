"""The agent's check on itself: growth against growth, and when there is nothing to say."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsagent.conservation import Conservation, read_node_cpu_ns
from nsagent.errors import NsagentError

S = 10**9


def test_growth_is_compared_with_growth() -> None:
    kernel = [100 * S]
    check = Conservation(lambda: kernel[0])

    def sample(kernel_s: float, shown_s: float) -> float | None:
        kernel[0] = round(kernel_s * S)
        assert check.around(lambda: "read") == "read"
        return check.error(round(shown_s * S))

    assert sample(100, 7) is None, "the first"
    assert sample(110, 17) == 0
    assert sample(114, 22) == 0.25
    assert sample(118, 25) == -0.25
    assert sample(118.5, 25.5) is None, "half a second"
    assert sample(119, 25.75) == -0.25, "the interval went on: 0.75 s of 1 s"
    assert sample(50, 26) is None, "it fell: another kernel's"
    assert sample(60, 36) == 0


def test_the_kernels_figure_is_that_of_the_middle_of_the_reading() -> None:
    answers = [0, 2 * S, 1000 * S, 1004 * S]
    check = Conservation(lambda: answers.pop(0))
    check.around(lambda: None)
    assert check.error(0) is None
    check.around(lambda: None)
    assert check.error(1001 * S) == 0


def test_a_reading_that_took_long_says_nothing_before_that_is_little_of_the_whole() -> None:
    answers = [0, S, 50 * S, 51 * S, 70 * S, 72 * S, 110 * S, 110 * S]
    check = Conservation(lambda: answers.pop(0))
    told = []
    for shown_s in (0, 49, 69, 109.5):
        check.around(lambda: None)
        told.append(check.error(round(shown_s * S)))
    assert told == [None, None, None, 0], "half a second each of 50; half and one of 70; half of 109.5"


def test_what_cannot_be_read_is_no_figure() -> None:
    def fail() -> int:
        raise NsagentError("no")

    check = Conservation(fail)
    assert check.around(lambda: 5) == 5
    assert check.error(3) is None


def test_where_the_nodes_time_is_read(tmp_path: Path) -> None:
    (tmp_path / "stat").write_text("cpu  1 2 3 1000 2000 4 5 6000 7 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n")
    ticks = read_node_cpu_ns(procfs=str(tmp_path))
    assert ticks == 15 * 10**7
    (tmp_path / "cpuacct.usage").write_text("123456789\n")
    assert read_node_cpu_ns(str(tmp_path), str(tmp_path)) == ticks, "not a root: of some cgroup only"
    (tmp_path / "release_agent").touch()
    assert read_node_cpu_ns(str(tmp_path), str(tmp_path)) == 123456789
    (tmp_path / "stat").write_text("cpu\n")
    with pytest.raises(NsagentError):
        read_node_cpu_ns(procfs=str(tmp_path))
