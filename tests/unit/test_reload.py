"""Settings taken by a running agent: all of them good, or none is taken."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from nsagent.errors import UsageError
from nsagent.reload import Reloader


@dataclass(frozen=True)
class Settings:
    retain: int = 1
    rate: int = 2
    port: int = 3


class World:
    """A reloader whose settings a test changes."""

    def __init__(self) -> None:
        self.now = Settings()
        self.error: Exception | None = None
        self.web_error: Exception | None = None
        self.taken: list[object] = []
        live = {"retain": lambda value: self.taken.append(("retain", value)), "rate": self.take_rate}
        self.reloader = Reloader(self.now, self.read, live, {"port": "listen"}, self.prepare)

    def take_rate(self, value: int) -> None:
        self.taken.append(("rate", value))

    def read(self) -> Settings:
        if self.error:
            raise self.error
        return self.now

    def prepare(self) -> Callable[[], None]:
        if self.web_error:
            raise self.web_error
        return lambda: self.taken.append("web")


def test_what_changed_is_taken_and_the_rest_is_named(caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    assert world.reloader.outcome.success
    world.now = Settings(retain=9, port=8)
    with caplog.at_level(logging.INFO, "nsagent"):
        assert world.reloader.reload() == "reloaded: retain changed; a restart is needed for listen"
    assert world.taken == ["web", ("retain", 9)]
    assert [record.getMessage() for record in caplog.records] == [
        "event=reloaded changed=retain",
        "event=restart_needed settings=listen",
    ]
    world.now = dataclasses.replace(world.now, rate=7)
    assert world.reloader.reload() == "reloaded: rate changed; a restart is needed for listen", "it still is"
    world.now = dataclasses.replace(world.now, port=3)
    assert world.reloader.reload() == "reloaded: nothing changed"
    assert world.taken == ["web", ("retain", 9), "web", ("rate", 7), "web"]


@pytest.mark.parametrize("where", ["error", "web_error"])
@pytest.mark.parametrize("error", [UsageError("no good"), ZeroDivisionError("no good")])
def test_nothing_is_taken_where_something_is_no_good(where: str, error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    world = World()
    before = world.reloader.outcome
    world.now = Settings(retain=9)
    setattr(world, where, error)
    with caplog.at_level(logging.ERROR, "nsagent"), pytest.raises(type(error), match="no good"):
        world.reloader.reload()
    assert world.taken == []
    assert world.reloader.outcome == before._replace(success=False), "its time is that of the last good one"
    assert "event=reload_failed reason=no good" in caplog.text
    setattr(world, where, None)
    world.reloader.reload()
    assert world.taken == ["web", ("retain", 9)]
    assert world.reloader.outcome.success
    assert world.reloader.outcome.time_ns > before.time_ns
