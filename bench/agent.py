"""An agent in a world of its own, for the benches: own state directory, pins and port; all gone when it ends."""

from __future__ import annotations

import contextlib
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from bench.measure import PREFIX

_number = itertools.count()


@dataclass(frozen=True)
class Agent:
    """A running agent: its process and its address."""

    pid: int
    url: str

    def scrape(self) -> bytes:
        """GET /metrics."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=60) as response:
            return bytes(response.read())

    def cpu_ms(self) -> float:
        """Return the CPU time of all threads of the agent, ended ones included, to the nanosecond.

        The clock id is what clock_getcpuclockid(3) makes of a pid: CPUCLOCK_SCHED of include/linux/posix-timers_types.h.
        """
        return time.clock_gettime_ns((~self.pid << 3) | 2) / 1e6

    def pss_mb(self) -> float:
        """Return its proportional set size (smaps_rollup), in 10**6 bytes."""
        lines = Path(f"/proc/{self.pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) * 1024 / 1e6

    def kernel_mb(self) -> float:
        """Return the kernel memory that its descriptors and maps pin, as it says itself, in 10**6 bytes."""
        lines = (line for line in self.scrape().splitlines() if line.startswith(b"nsagent_kernel_memory_bytes"))
        return sum(float(line.split()[-1]) for line in lines) / 1e6


@contextlib.contextmanager
def running_agent(*flags: str) -> Iterator[Agent]:
    """Start an agent and wait until it is ready; RuntimeError with its last words if it does not get there."""
    pins = Path(f"/sys/fs/bpf/{PREFIX}-{next(_number)}")
    with tempfile.TemporaryDirectory(prefix=PREFIX) as state, tempfile.TemporaryFile() as log:
        nsagent = str(Path(sys.executable).with_name("nsagent"))
        world = ["--listen", "127.0.0.1:0", "--state-dir", state, "--cache-dir", state, "--pin-dir", str(pins), "--ephemeral"]
        process = subprocess.Popen([nsagent, "agent", *world, *flags], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield Agent(process.pid, _wait_ready(process, Path(state) / "agent.json"))
        except RuntimeError as exc:
            log.seek(0)
            raise RuntimeError(f"{exc}\n{log.read().decode(errors='replace')}") from exc
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if pins.exists():
                shutil.rmtree(pins)


def _wait_ready(process: subprocess.Popen[bytes], announced: Path) -> str:
    """Return the agent's URL once it is ready."""
    end = time.monotonic() + 90
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(FileNotFoundError, urllib.error.URLError, ConnectionError):
            url = f"http://{json.loads(announced.read_text())['listen']}"
            with urllib.request.urlopen(f"{url}/-/ready", timeout=5):
                return url
        time.sleep(0.02)
    raise RuntimeError("the agent did not become ready")
