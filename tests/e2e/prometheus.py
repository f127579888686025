"""Debian's Prometheus for a test: a server of its own on a free port of 127.0.0.1, which scrapes one target."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests import debian
from tests.support import wait_for

_CONFIG = """\
global: {{scrape_interval: {interval}s, scrape_timeout: {interval}s}}
scrape_configs:
  - job_name: nsagent
    static_configs: [{{targets: ["{target}"]}}]
"""


def search_path() -> str:
    """Return a PATH with prometheus and promtool ($NSAGENT_PROMETHEUS_CACHE or ~/.cache/nsagent-prometheus)."""
    cache = Path(os.environ.get("NSAGENT_PROMETHEUS_CACHE") or Path.home() / ".cache" / "nsagent-prometheus")
    return debian.search_path(cache, ["prometheus"], ["prometheus", "promtool"])


# "should not include type 'counter'": it counts what happens to counters.
_CONTRACT = ("nsagent_counter_regressions_total ",)


def check_metrics(exposition: bytes) -> str:
    """Return what `promtool check metrics` finds; a lint of names that the catalogue's contract sets is not counted."""
    argv = ["promtool", "check", "metrics"]
    environment = os.environ | {"PATH": search_path()}
    done = subprocess.run(argv, input=exposition, env=environment, capture_output=True, check=False, timeout=120)
    found = (done.stderr + done.stdout).decode().splitlines(keepends=True)
    return "".join(line for line in found if not line.startswith(_CONTRACT))


def promtool(directory: Path, *args: str) -> tuple[int, str]:
    """Run promtool there; return its exit code and what it said."""
    environment = os.environ | {"PATH": search_path()}
    done = subprocess.run(
        ["promtool", *args], cwd=directory, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    return done.returncode, done.stdout + done.stderr


class Prometheus:
    """A running server, and where it logs."""

    def __init__(self, url: str, log: Path) -> None:
        self.url = url
        self._log = log

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=120) as response:
            return bytes(response.read())

    def ready(self) -> bool:
        """Tell whether it answers."""
        try:
            return bool(self._get("/-/ready"))
        except (urllib.error.URLError, ConnectionError):
            return False

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Evaluate PromQL now; return the result's elements."""
        answer = json.loads(self._get("/api/v1/query?" + urllib.parse.urlencode({"query": expression})))
        assert answer["status"] == "success", answer
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found

    def value(self, expression: str) -> float:
        """Evaluate PromQL that has one result."""
        (found,) = self.query(expression)
        return float(found["value"][1])

    def alerts(self) -> list[dict[str, Any]]:
        """Return the alerts that fire, or will after the time they have to last."""
        found: list[dict[str, Any]] = json.loads(self._get("/api/v1/alerts"))["data"]["alerts"]
        return found

    def trouble(self) -> str:
        """Return what is wrong with the last scrape of each target."""
        targets = json.loads(self._get("/api/v1/targets"))["data"]["activeTargets"]
        return "; ".join(f"{each['scrapeUrl']}: {each['lastError'] or 'no error'}" for each in targets)

    def failures(self) -> list[str]:
        """Return why scrapes failed, but for those that took too long: how long is a matter of the machine."""
        reasons = re.findall(r'msg="Scrape failed".* err="((?:[^"\\]|\\.)*)"', self._log.read_text())
        return [reason for reason in reasons if "deadline exceeded" not in reason and "503 Service Unavailable" not in reason]

    def own(self, name: str) -> float:
        """Return the sum of a metric of Prometheus itself."""
        lines = self._get("/metrics").decode().splitlines()
        values = [float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0].split(" ")[0] == name]
        assert values, name
        return sum(values)


@contextlib.contextmanager
def running(
    directory: Path, target: str = "", interval: int = 1, *, config: str = _CONFIG, flags: Sequence[str] = ()
) -> Iterator[Prometheus]:
    """Run a Prometheus that keeps its data below `directory` and scrapes `target` every `interval` s, or as `config` says."""
    (directory / "prometheus.yml").write_text(config.format(target=target, interval=interval))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    argv = ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data"]
    argv += [f"--web.listen-address={address}", "--log.level=debug", *flags]
    environment = os.environ | {"PATH": search_path()}
    with (directory / "log").open("w") as log:
        process = subprocess.Popen(argv, env=environment, cwd=directory, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        server = Prometheus(f"http://{address}", directory / "log")
        wait_for(server.ready, what="Prometheus to be ready")
        yield server
    finally:
        process.terminate()
        process.wait(120)
