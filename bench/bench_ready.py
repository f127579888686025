"""From the start of `nsagent agent` to its answer 200 on /-/ready, Python's own start included: cold (BTF, BCC), warm (the cached
object: no compiler, no LLVM) and by adoption (the programs of an agent that was killed are still in the kernel). And the
CPU that loading the programs takes, most of which is the verifier's."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from bench.attached import programs
from bench.measure import PREFIX, Result

TITLE = "An agent's start"
ROUNDS = 9
COLD = "cold"


def start(state: Path, pins: Path) -> tuple[float, subprocess.Popen[bytes]]:
    """Start an agent; return the milliseconds until it is ready, and the process."""
    announced = state / "agent.json"
    announced.unlink(missing_ok=True)
    argv = [str(Path(sys.executable).with_name("nsagent")), "agent", "--listen", "127.0.0.1:0", "--state-dir", str(state)]
    begun = time.perf_counter()
    process = subprocess.Popen([*argv, "--pin-dir", str(pins), "--cache-dir", str(state / "cache")], stderr=subprocess.DEVNULL)
    while process.poll() is None and time.perf_counter() < begun + 120:
        try:
            address = json.loads(announced.read_text())["listen"]
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5) as answer:
                if answer.status == 200:
                    return (time.perf_counter() - begun) * 1e3, process
        except (OSError, ValueError):
            time.sleep(0.002)
    raise RuntimeError("the agent did not become ready")


def measure() -> Result:
    """Start agents in turns: each cold start is followed by a warm one, and that one's pins by an adoption."""
    times: dict[str, list[float]] = {COLD: [], "warm": [], "adoption": []}
    pins = Path(f"/sys/fs/bpf/{PREFIX}-ready")
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        state = Path(directory)
        for _ in range(ROUNDS):
            shutil.rmtree(state / "cache", ignore_errors=True)
            for name, series in times.items():
                if name != "adoption" and pins.exists():
                    shutil.rmtree(pins)
                took, process = start(state, pins)
                series.append(took)
                process.send_signal(signal.SIGKILL)  # the pins stay
                process.wait()
    if pins.exists():
        shutil.rmtree(pins)
    loads: list[float] = []
    for _ in range(ROUNDS):
        begun = time.thread_time()
        with programs(trace=True):
            loads.append((time.thread_time() - begun) * 1e3)
    result = Result()
    result.add(times, "ms", COLD)
    result.add({"CPU of an attach, warm": loads}, "ms")
    return result
