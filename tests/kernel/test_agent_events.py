"""What a real agent does with events: sinks, findings, the rate, and that nobody waits for a sink."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.kernel.agents import CACHE, get, running
from tests.support import ROOT, nsagent_running, require_root, run_nsagent, wait_for

pytestmark = pytest.mark.kernel


@pytest.fixture(scope="module", autouse=True)
def _root() -> None:
    require_root()


def call(script: str) -> int:
    """Run a script of calls to its end; return its pid."""
    code = f"import os; from nsagent.libc import *; fd = lambda p: os.open(p, os.O_RDONLY)\n{script}"
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
    assert process.wait(120) == 0
    return process.pid


def lines(path: Path, **wanted: Any) -> list[dict[str, Any]]:
    text = path.read_text() if path.exists() else ""
    found = [json.loads(line) for line in text.rpartition("\n")[0].splitlines()]
    return [each for each in found if all(each.get(name) == value for name, value in wanted.items())]


ESCAPE = "m = fd('/proc/self/ns/mnt'); unshare(CLONE_NEWNS); setns(m, CLONE_NEWNS)"


def test_sinks_get_events_and_findings_whatever_another_sink_does(world: list[str], tmp_path: Path) -> None:
    path, fifo = tmp_path / "events", tmp_path / "fifo"
    os.mkfifo(fifo)
    with running(world, "--events-to", f"file:{path}", "--events-to", f"file:{fifo}", "--finding-off", "orphan") as agent:
        pid = call("for _ in range(23): unshare(CLONE_NEWUTS)")
        wait_for(lambda: len(lines(path, type="syscall", pid=pid)) >= 23)
        escaped = call(ESCAPE)
        (finding,) = wait_for(lambda: [f for f in lines(path, type="finding") if f["evidence"]["event"]["pid"] == escaped])
        assert finding["rule"] == "to_host"
        samples = agent.scrape()
        first = get(samples, "nsagent_findings_total", rule="to_host") or 0
        assert first >= 1
        assert get(samples, "nsagent_findings_total", rule="clone_storm") is not None
        assert get(samples, "nsagent_findings_total", rule="orphan") is None
        for _ in range(30):  # until what the FIFO's sink has taken, and its queue, are full
            call("for _ in range(2000): unshare(CLONE_NEWUTS)")
            samples = agent.scrape()
            if get(samples, "nsagent_trace_lost_events_total", reason="queue_full"):
                break
        else:
            pytest.fail("60,000 events, and the queue of a sink nobody reads is not full")
        assert len(lines(path, type="syscall", pid=pid)) == 23
        lost = get(samples, "nsagent_trace_lost_events_total", reason="queue_full")
        agent.kill()
    with running(world) as agent:
        samples = agent.scrape()
        assert (get(samples, "nsagent_findings_total", rule="to_host") or 0) >= first
        assert (get(samples, "nsagent_trace_lost_events_total", reason="queue_full") or 0) >= (lost or 0)


def test_a_client_of_trace_sees_findings(world: list[str]) -> None:
    code = f"import os, time; from nsagent.libc import *; fd = lambda p: os.open(p, os.O_RDONLY)\nwhile True:\n  {ESCAPE}"
    with running(world) as agent, nsagent_running("trace", "--state-dir", agent.state_dir, "-o", "json") as trace:
        process = subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(0.05)"], cwd=ROOT)
        try:
            assert trace.stdout is not None
            for line in trace.stdout:
                seen = json.loads(line)
                if seen["type"] == "finding" and seen["evidence"]["event"]["pid"] == process.pid:
                    break
        finally:
            process.kill()
            process.wait()
    assert seen["rule"] == "to_host"


def test_the_rate_is_a_cgroups_and_is_counted(world: list[str], tmp_path: Path) -> None:
    path = tmp_path / "events"
    with running(world, "--rate", "1", "--events-to", f"file:{path}") as agent:
        pid = call("for _ in range(2000): unshare(CLONE_NEWUTS)")
        samples = agent.scrape()
        cut = get(samples, "nsagent_trace_lost_events_total", reason="rate_limited") or 0
        assert cut > 0
        wait_for(lambda: len(lines(path, type="syscall", pid=pid)) + cut >= 2000, what="every event that was not cut")
        assert len(lines(path, type="syscall", pid=pid)) < 2000
        assert (get(samples, "nsagent_syscalls_total", syscall="unshare", result="ok") or 0) >= 2000


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--events-to", "syslog"], 2, "is no sink"),
        (["--events-to", "file:/nonexistent/directory/events"], 125, "/nonexistent/directory/events"),
        (["--finding-off", "nothing"], 2, "nothing"),
        (["--rate", "-1"], 2, "--rate"),
    ],
    ids=["no sink", "no directory", "no rule", "rate"],
)
def test_what_cannot_be_done_is_said_at_the_start(world: list[str], flags: list[str], code: int, words: str) -> None:
    done = run_nsagent("agent", "--listen", "127.0.0.1:0", "--cache-dir", CACHE, *world, *flags)
    assert done.returncode == code
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_the_configuration_file_has_lists(world: list[str], tmp_path: Path) -> None:
    path, file = tmp_path / "events", tmp_path / "agent.toml"
    file.write_text(f'events-to = ["file:{path}"]\nfinding-off = ["orphan", "to_host"]\n')
    with running(world, "--config", str(file)) as agent:
        pid = call("unshare(CLONE_NEWUTS)")
        wait_for(lambda: lines(path, pid=pid))
        samples = agent.scrape()
        assert get(samples, "nsagent_findings_total", rule="to_host") is None
        assert get(samples, "nsagent_findings_total", rule="clone_storm") is not None
    file.write_text('events-to = "stdout"\n')
    done = run_nsagent("agent", "--config", str(file), *world)
    assert done.returncode == 2
    assert "events-to" in done.stderr


def test_an_event_of_a_user_namespace_has_the_uid_inside(world: list[str], state_dir: Path) -> None:
    lines: list[str] = []
    script = "unshare -U -r sh -c 'unshare -u sleep 2'"
    with running(world), nsagent_running("trace", *world[:2], "-o", "json", "--kind", "uts") as trace:
        stdout = trace.stdout
        assert stdout is not None
        threading.Thread(target=lambda: lines.extend(stdout), daemon=True).start()

        def seen() -> list[dict[str, Any]]:
            subprocess.run(["sh", "-c", script], check=True)
            return [event for event in map(json.loads, lines) if event["comm"] == "unshare" and "uid_inside" in event]

        event = wait_for(seen, what="an event of the inner unshare")[0]
    assert (event["syscall"], event["uid"], event["uid_inside"]) == ("unshare", 0, 0)
    assert event["exe"].endswith("unshare")
