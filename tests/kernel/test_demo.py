"""`make demo` shows what it promises and leaves nothing: after success, after a failure half way, and after Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, cgroup_mounts, require, require_root, wait_for
from tools import demo as demo_tool

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _host() -> None:
    require_root()
    require(Path("/sys/fs/bpf").is_mount(), "bpffs is not mounted on /sys/fs/bpf (make setup mounts it)")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "demo.out"


@pytest.fixture
def start(output: Path) -> Iterator[Callable[[], subprocess.Popen[bytes]]]:
    """Start the demo."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> subprocess.Popen[bytes]:
        with output.open("wb") as file:
            started.append(subprocess.Popen([sys.executable, "tools/demo.py"], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(120)


def leftovers(demo_pid: int) -> list[str]:
    """Return what the demo made and did not remove: pins, cgroups, directories, and processes working for it."""
    found = [str(path) for path in Path("/sys/fs/bpf").glob(f"nsagent-demo-{demo_pid}*")]
    found += [str(path) for mount in cgroup_mounts() for path in mount.glob("nsagent/demo*")]
    found += [str(path) for path in Path("/var/tmp").glob("nsagent-demo-*")]
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            words = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if b"nsagent-demo-" in words and int(entry.name) != os.getpid():
            found.append(f"process {entry.name}: {words.replace(bytes(1), b' ').decode(errors='replace')}")
    return found


def value(text: str, pattern: str) -> float:
    """Return the number at the end of the one line that matches `pattern`."""
    lines = [line for line in text.splitlines() if re.search(pattern, line)]
    assert len(lines) == 1, f"{pattern}: {lines}"
    return float(lines[0].split()[-1])


def test_shows_the_job_from_three_sides_and_leaves_nothing(start: Callable[[], subprocess.Popen[bytes]], output: Path) -> None:
    demo = start()
    code = demo.wait(600)
    text = output.read_text()
    assert code == 0, text
    for title in range(1, 9):
        assert f"== {title}. " in text
    assert "inside: I am PID 1 on host bird" in text
    assert re.search(r"clone3\(.*CLONE_NEWPID.*\) = \d+ .*pid \d+→\d+", text)
    assert re.search(r"nsenter .*setns\(", text)
    assert re.search(r"unshare .*unshare\(CLONE_NEWUTS\)", text)
    assert value(text, r"nsagent_cgroup_cpu_limit_cores\{") == 0.5
    assert value(text, r"nsagent_cgroup_memory_limit_bytes\{") == 128 << 20
    assert value(text, r"nsagent_cgroup_memory_peak_bytes\{") > 64 << 20
    assert value(text, r'nsagent_namespace_storage_bytes_total\{.*kind="pid".*operation="write"') >= 32 << 20
    # sh, and what its script starts: 300 times true, and a dozen for the pipelines, dd and the rest
    created = value(text, r'nsagent_namespace_processes_created_total\{.*kind="pid"')
    assert 305 <= created <= 330
    assert value(text, r'nsagent_namespace_processes\{.*kind="pid"') == 1
    cpu = value(text, r"nsagent_cgroup_cpu_usage_seconds_total\{")
    assert value(text, r'nsagent_namespace_cpu_seconds_total\{.*kind="pid"') == pytest.approx(cpu, rel=0.05)
    assert "nothing is left" in text
    assert leftovers(demo.pid) == []


@pytest.mark.parametrize(
    ("moment", "number"),
    [("== 1.", signal.SIGINT), ("== 3.", signal.SIGINT), ("inside: done", signal.SIGINT), ("== 3.", signal.SIGTERM)],
)
def test_an_interrupted_demo_leaves_nothing(
    start: Callable[[], subprocess.Popen[bytes]], output: Path, moment: str, number: signal.Signals
) -> None:
    for _ in range(5):
        demo = start()
        wait_for(lambda demo=demo: moment in output.read_text() or demo.poll() is not None, 300, moment)  # type: ignore[misc]
        demo.send_signal(number)
        code = demo.wait(300)
        assert leftovers(demo.pid) == []
        if code:  # else the demo was through before the signal came: on a busy machine this process may be late
            break
    assert code == 130, output.read_text()


def test_a_demo_that_fails_half_way_leaves_nothing(tmp_path: Path) -> None:
    """Without nsenter on PATH, step 4 cannot go on."""
    for tool in ("sh", "dd", "head", "tail", "wc", "ls", "hostname", "unshare", "true"):
        found = next((path for path in (Path("/bin") / tool, Path("/usr/bin") / tool) if path.exists()), None)
        if found is not None:
            (tmp_path / tool).symlink_to(found)
    argv = [sys.executable, "tools/demo.py"]
    with subprocess.Popen(
        argv, cwd=ROOT, env={"PATH": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        text, _ = process.communicate(timeout=600)
    assert process.returncode == 1, text
    assert "error: " in text
    assert "nsenter" in text
    assert leftovers(process.pid) == []


def test_a_signal_while_a_process_is_started_does_not_lose_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []

    class Interrupted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            started.append(self.pid)
            signal.raise_signal(signal.SIGTERM)  # before its maker knows it

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    before = signal.signal(signal.SIGTERM, demo_tool.interrupt)
    try:
        with pytest.raises(KeyboardInterrupt), demo_tool.running(["sleep", "100"], tmp_path / "log"):
            pytest.fail("it was interrupted before")
    finally:
        signal.signal(signal.SIGTERM, before)
    assert len(started) == 1
    assert not Path(f"/proc/{started[0]}").exists(), "ended, and reaped"
