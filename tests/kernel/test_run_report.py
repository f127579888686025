"""The report against what others measured: GNU time, a known timeline, a Pushgateway; and that the registry has all of it."""

from __future__ import annotations

import http.server
import resource
import subprocess
import threading
from pathlib import Path

import pytest

from tests import support
from tests.kernel.launching import Jobs

pytestmark = pytest.mark.kernel

BUSY = "end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
GNU_TIME = "/usr/bin/time"
WORK = """
import os, time
block = bytearray({bytes})
for at in range(0, len(block), 4096): block[at] = 1
end = time.process_time() + 0.4
while time.process_time() < end: os.stat("/")
"""


def test_agrees_with_gnu_time(jobs: Jobs, tmp_path: Path) -> None:
    """GNU time, in the job, measures all but itself; its resolution is 10 ms and 1 KiB."""
    support.require(Path(GNU_TIME).exists(), "GNU time is not installed")
    out = tmp_path / "time"
    # The kernel's peak of a process begins with that of who forked it, this one: exec_mmap() of fs/exec.c.
    size = (96 << 20) + (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10)
    alone = jobs.run("--", GNU_TIME, "-o", str(out), "true").report["usage"]["cpu_ns"] / 1e9
    done = jobs.run("--", GNU_TIME, "-o", str(out), "-f", "%e %U %S %M %R %F %w %c", "python3", "-c", WORK.format(bytes=size))
    assert done.code == 0, done.err
    wall, user, system, rss, minor, major, waits, switches = map(float, out.read_text().split())
    usage = done.report["usage"]
    tick = 0.011
    own = 0.02 + 3 * alone  # of time itself, from its execve to its fork and at its end
    assert usage["cpu_source"] == "cgroup"
    assert user + system - tick <= usage["cpu_ns"] / 1e9 <= user + system + tick + own
    assert usage["user_ns"] + usage["system_ns"] == usage["cpu_ns"]
    assert wall - tick <= done.report["wall_ns"] / 1e9
    assert usage["max_rss_bytes"] == rss * 1024
    assert usage["memory_peak_bytes"] >= size
    assert minor <= usage["minor_faults"] <= minor + 2000
    assert major <= usage["major_faults"] <= major + 50
    assert waits <= usage["voluntary_switches"] <= waits + 50
    assert switches <= usage["involuntary_switches"] <= switches + 200
    assert 0 <= usage["run_queue_ns"] <= 2 * done.report["wall_ns"]  # of two processes


def test_efficiency_is_of_what_it_could_use(jobs: Jobs) -> None:
    script = f"import time\n{BUSY}"
    report = jobs.run("--cpus", "0.25", "--", "python3", "-c", script).report
    assert report["cpus"] == 0.25
    assert report["cpu_efficiency"] == pytest.approx(report["usage"]["cpu_ns"] / (report["wall_ns"] * 0.25), abs=1e-3)
    assert 0 < jobs.run("--cpuset", "0", "--", "sleep", "0.2").report["cpu_efficiency"] < 1


def test_a_timeline_says_when(jobs: Jobs) -> None:
    """Some time of nothing, then CPU time and 64 MiB: the two are told apart, and the last reading is the total."""
    for seconds in (0.5, 5, 30):  # in which a busy machine may not come to read
        script = f"import time; time.sleep({seconds}); b = bytearray(64 << 20); time.sleep({seconds})\n{BUSY}"
        report = jobs.run("--sample", "20ms", "--", "python3", "-c", script).report
        times = report["timeline"]
        idle = [m for e, m in zip(times["elapsed_ns"], times["memory_bytes"], strict=True) if e < seconds * 800_000_000]
        if len(idle) >= 10 and len(times["elapsed_ns"]) >= len(idle) + 10:
            break
    assert len(times["elapsed_ns"]) == len(times["cpu_ns"]) == len(times["memory_bytes"]) >= 20
    assert times["elapsed_ns"] == sorted(times["elapsed_ns"])
    assert times["cpu_ns"] == sorted(times["cpu_ns"])
    assert times["interval_ns"] == 20_000_000
    assert times["elapsed_ns"][0] == 0 < times["cpu_ns"][0]  # what setting it up took is before CMD's start
    assert 0 <= report["usage"]["cpu_ns"] - times["cpu_ns"][-1] < 50_000_000
    assert max(idle) < 32 << 20 < 64 << 20 <= max(times["memory_bytes"])
    _, argv = jobs.argv("--sample", "20ms", "--", "sleep", "0.1", report=False)
    text = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=True).stderr
    assert "cpu / time" in text
    assert "mem / time" in text


def test_a_timeout_of_cpu_time(jobs: Jobs) -> None:
    done = jobs.run("--cpu-timeout", "300ms", "--", "sh", "-c", "while :; do :; done & while :; do :; done")
    assert (done.code, done.report["outcome"]) == (124, "timeout")
    assert "0.3 s of CPU time" in done.report["reason"]
    assert 0.3 <= done.report["usage"]["cpu_ns"] / 1e9 <= 10  # some ms, or whatever a busy machine lets them run on
    control = jobs.run("--cpu-timeout", "300ms", "--", "sleep", "0.5")
    assert (control.code, control.report["outcome"]) == (0, "success")
    deaf = jobs.run("--cpu-timeout", "100ms", "--stop-timeout", "100ms", "--", "sh", "-c", "trap '' TERM; while :; do :; done")
    assert (deaf.code, deaf.report["outcome"]) == (124, "timeout")
    assert jobs.cgroups() == []


class Gateway(http.server.BaseHTTPRequestHandler):
    """Takes what a Pushgateway takes."""

    taken: list[tuple[str, str, str]]

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.taken.append((self.command, self.path, body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def test_metrics_of_the_last_run(jobs: Jobs, tmp_path: Path) -> None:
    Gateway.taken = []
    server = http.server.HTTPServer(("127.0.0.1", 0), Gateway)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}"
        done = jobs.run("--report", f"textfile:{tmp_path}", "--push", url, "--", "sh", "-c", "exit 3")
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert done.code == 3
    words = (tmp_path / f"nsagent_run_{done.name}.prom").read_text()
    assert f'nsagent_run_exit_code{{workload="{done.name}"}} 3\n' in words
    assert f'nsagent_run_outcome{{workload="{done.name}",outcome="failure"}} 1.0\n' in words
    ((method, path, body),) = Gateway.taken
    assert method == "PUT"
    assert "/metrics/job/nsagent/" in path
    assert f"/workload/{done.name}" in path
    assert "nsagent_run_exit_code 3.0\n" in body
    gone = jobs.run("--push", url, "--", "sh", "-c", "exit 4")
    assert gone.code == 4
    assert f"warning: --push {url}: Connection refused\n" in gone.err
    refused = jobs.run("--report", "textfile:/nosuch", "--", "touch", str(tmp_path / "ran"))
    assert refused.code == 125
    assert not (tmp_path / "ran").exists()


def test_a_report_that_cannot_be_written_leaves_the_exit_code(jobs: Jobs) -> None:
    _, argv = jobs.argv("--report-file", "/dev/full", "--", "sh", "-c", "exit 3", report=False)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (3, "warning: --report-file /dev/full: No space left on device\n")
    _, argv = jobs.argv("--", "sh", "-c", "exit 4", report=False)
    with open("/dev/full", "w") as full:
        assert subprocess.run(argv, stderr=full, timeout=120, check=False).returncode == 4


def test_the_registry_keeps_the_whole_report(jobs: Jobs) -> None:
    done = jobs.run("--", "sh", "-c", "exit 2")
    (ended,) = jobs.registered("ended")
    assert ended["report"] == done.report
    assert jobs.run("--", "/nosuch/command").code == 127
    (failed,) = [job for job in jobs.registered("ended") if job["outcome"] == "launch_error"]
    assert (failed["exit_code"], failed["report"]) == (127, {})
