"""The log of a detached job: whole as long as it is small, its newest part when it is not; and few of them."""

from __future__ import annotations

import os
from pathlib import Path

import hypothesis
from hypothesis import strategies

from nsagent.jobs import log


def read_all(state: Path) -> bytes:
    reading = log.Reading(str(state), "job-1")
    data = b"".join(reading.read())
    reading.close()
    return data


@hypothesis.given(pieces=strategies.lists(strategies.binary(min_size=1, max_size=50), max_size=40))
def test_the_newest_part_is_kept(tmp_path_factory: object, pieces: list[bytes]) -> None:
    state = Path(tmp_path_factory.mktemp("log"))  # type: ignore[attr-defined]
    written = log.Log(str(state), "job-1", most_bytes=64)
    for piece in pieces:
        written.write(piece)
    data, everything = read_all(state), b"".join(pieces)
    assert everything.endswith(data)
    assert len(data) >= min(len(everything), 64)
    assert all(path.stat().st_size <= 64 for path in (state / "jobs" / "logs").iterdir())


def test_a_reader_follows_through_the_change_of_files(tmp_path: Path) -> None:
    written = log.Log(str(tmp_path), "job-1", most_bytes=100)
    reading = log.Reading(str(tmp_path), "job-1")
    everything = seen = b""
    for n in range(200):
        line = b"line %d\n" % n
        written.write(line)
        everything += line
        seen += b"".join(reading.read())
    assert seen == everything
    reading.close()


def test_logs_of_jobs_that_are_gone_go_and_the_oldest_beyond_the_total(tmp_path: Path) -> None:
    (tmp_path / "jobs" / "ended").mkdir(parents=True)
    for number, place in enumerate(("jobs", "jobs/ended", "jobs/ended", "jobs/ended", "")):
        log.Log(str(tmp_path), f"job-{number}").write(b"x" * 100)
        os.utime(log.path(str(tmp_path), f"job-{number}"), (number, number))
        if place:
            (tmp_path / place / f"job-{number}.json").write_text("{}")
    log.prune(str(tmp_path), total_bytes=350)
    left = sorted(path.name for path in (tmp_path / "jobs" / "logs").iterdir())
    assert left == ["job-0.log", "job-2.log", "job-3.log"]
