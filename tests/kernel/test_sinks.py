"""A full disk: what fits is whole lines, what does not waits in the queue, and goes on when there is room."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.control import Hub
from nsagent.events import SCHEMA, EventFilter
from nsagent.launch.quantities import parse_bytes
from nsagent.sinks import Sink, parse
from tests import support
from tests.unit.test_sinks import events, pids

pytestmark = pytest.mark.kernel


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    support.require_root()
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "nsagent-test", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_loses_by_the_queue_and_recovers(tiny_disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    hub, path = Hub(lambda on: None), tiny_disk / "events"
    sink = Sink(parse(f"file:{path}?size=0", parse_bytes), lambda: hub.subscribe(EventFilter()), SCHEMA)
    sink.start()
    try:
        for first in range(0, 20_000, 1000):
            hub.publish(events(first, 1000))
        support.wait_for(lambda: "No space left" in caplog.text, what="the warning")
        assert hub.lost >= 20_000 - 2 * 8192
        path.rename(tiny_disk / "moved")  # as logrotate
        before = pids((tiny_disk / "moved").read_text())  # whole lines, to the last
        (tiny_disk / "moved").unlink()
        support.wait_for(lambda: path.exists() and path.stat().st_size, what="the sink to go on")
    finally:
        sink.close(120)
    assert before == list(range(len(before)))
    assert len(before) > 64 * 1024 / 700
    after = pids(path.read_text())
    assert after == list(range(len(before), len(before) + len(after)))
    assert caplog.text.count("event=sink_failed") == 1
