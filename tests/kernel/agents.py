"""A real agent for a test: a subprocess on a free port, with state and pin directories of its own."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from nsagent import control
from tests.support import nsagent_running, wait_for

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]
CACHE = "/var/tmp/nsagent-test-cache"  # one for all tests: compiling takes a second


def parse(body: bytes) -> Samples:
    """Parse an exposition; a series that comes twice is an error."""
    samples: Samples = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"twice: {key}"
            samples[key] = float(sample.value)
    return samples


def get(samples: Samples, name: str, **labels: str) -> float | None:
    """Return one value, or None where the series is absent."""
    return samples.get((name, frozenset(labels.items())))


def info(samples: Samples, name: str) -> dict[str, str]:
    """Return the labels of the one series of an info metric."""
    found = [dict(labels) for series, labels in samples if series == name]
    assert len(found) == 1
    return found[0]


class Agent:
    """A running agent."""

    def __init__(self, process: subprocess.Popen[str], state_dir: Path) -> None:
        self.process = process
        self.state_dir = str(state_dir)
        self._file = state_dir / "agent.json"
        wait_for(self._ready, 120, "the agent to be ready")
        self.facts: dict[str, Any] = json.loads(self._file.read_text())
        self.url = f"http://{self.facts['listen']}"

    def _ready(self) -> bool:
        if self.process.poll() is not None:
            raise AssertionError(f"the agent ended with {self.process.returncode}: {self.process.communicate()[1]}")
        return self._file.exists() and json.loads(self._file.read_text())["pid"] == self.process.pid

    def get(self, path: str = "/metrics", **headers: str) -> bytes:
        """GET over HTTP."""
        request = urllib.request.Request(self.url + path, headers={k.replace("_", "-"): v for k, v in headers.items()})
        with urllib.request.urlopen(request, timeout=120) as response:
            return bytes(response.read())

    def scrape(self) -> Samples:
        """Scrape over HTTP."""
        return parse(self.get())

    def status(self) -> dict[str, Any]:
        """Ask over the control socket."""
        answer = control.ask(self.state_dir, {"request": "status"})
        assert answer is not None
        answer[1].close()
        status: dict[str, Any] = answer[0]["status"]
        return status

    def kill(self) -> None:
        """SIGKILL, and reap."""
        self.process.kill()
        self.process.communicate()

    def stop(self, number: int = signal.SIGTERM) -> str:
        """End it by a signal that it obeys; return what it logged."""
        self.process.send_signal(number)
        log = self.process.communicate(timeout=120)[1]
        assert self.process.returncode == 0, log
        return log


@contextlib.contextmanager
def running(world: list[str], *flags: str, **popen: Any) -> Iterator[Agent]:
    """Run an agent; `world` is the fixture."""
    argv = ["agent", "--listen", "127.0.0.1:0", "--cache-dir", CACHE, *world, *flags]
    with nsagent_running(*argv, **popen) as process:
        yield Agent(process, Path(world[1]))
