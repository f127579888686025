"""Verdicts and reports: what is said of a job, and what is left unsaid."""

from __future__ import annotations

import json
import signal

import pytest

from nsagent.cgroups.stats import CgroupStats, CpuStats, IoDevice, IoStats, MemoryStats, PidsStats
from nsagent.launch import measure, report
from nsagent.launch.handshake import Failed
from nsagent.launch.supervise import failure_error


@pytest.mark.parametrize(
    ("status", "more", "outcome", "code", "words"),
    [
        (0, {}, "success", 0, "exited with 0"),
        (3 << 8, {}, "failure", 3, "exited with 3"),
        (signal.SIGTERM, {}, "signal", 143, "SIGTERM"),
        (signal.SIGSEGV | 0x80, {}, "signal", 139, "core dumped"),
        (signal.SIGKILL, {}, "signal", 137, "SIGKILL"),
        (signal.SIGKILL, {"oom_kills": 1}, "oom", 137, "lack of memory"),
        (137 << 8, {"oom_kills": 1}, "oom", 137, "lack of memory"),
        (1 << 8, {"oom_kills": 1}, "failure", 1, "exited with 1"),
        (signal.SIGKILL, {"carried_out": signal.SIGINT}, "signal", 130, "SIGINT"),
        (0, {"timeout_ns": 10**9}, "timeout", 124, "timeout of 1 s"),
        (signal.SIGKILL, {"timeout_ns": 10**9, "carried_out": signal.SIGTERM, "oom_kills": 1}, "timeout", 124, "timeout"),
        (40, {}, "signal", 168, "signal 40"),
    ],
)
def test_verdicts(status: int, more: dict[str, int], outcome: str, code: int, words: str) -> None:
    given: dict[str, int | None] = {"timeout_ns": None, "carried_out": None, "oom_kills": 0}
    verdict = report.judge(status, **(given | more))  # type: ignore[arg-type]
    assert (verdict.outcome, verdict.exit_code) == (outcome, code)
    assert words in verdict.reason


def result(usage: report.JobUsage, **changes: object) -> report.RunResult:
    fields = {
        "id": "job-1",
        "name": "job",
        "command": ("true",),
        "start": 1.0,
        "end": 2.0,
        "wall_ns": 2 * 10**9,
        "outcome": "success",
        "exit_code": 0,
        "reason": "exited with 0",
        "cgroup": "nsagent/job-1",
        "namespaces": {
            "pid": report.NamespaceRef(4026532001, 7, True),
            "user": report.NamespaceRef(4026531837, None, False),
        },
        "usage": usage,
    }
    return report.RunResult(**(fields | changes))  # type: ignore[arg-type]


def test_what_nobody_reported_is_absent() -> None:
    text = report.to_text(result(report.JobUsage()))
    for word in ("cpu", "memory", "io", "pids", "throttled", "oom"):
        assert f"\n  {word} " not in text
    assert json.loads(report.to_json(result(report.JobUsage())))["usage"] == {}


def test_everything_is_there() -> None:
    waited = report.JobUsage(
        cpu_ns=1, cpu_source="wait", io_read_bytes=4096, io_write_bytes=0, io_source="tasks", memory_source=None
    )
    stats = CgroupStats(
        cpu=CpuStats(
            usage_ns=10**9, user_ns=9 * 10**8, system_ns=10**8, periods=20, throttled_periods=12, throttled_ns=5 * 10**8
        ),
        memory=MemoryStats(peak_bytes=3 << 20, events={"oom_kill": 2}),
        io=IoStats({"254:0": IoDevice(read_bytes=8192, write_bytes=512), "254:1": IoDevice(reads=1)}),
        pids=PidsStats(peak=4),
    )
    done = result(measure.with_cgroup(waited, stats))
    text = report.to_text(done)
    for line in (
        "wall        2.000 s",
        "cpu         1.000 s (user 0.900 s, system 0.100 s, 50% of one CPU)",
        "memory      peak 3.0 MiB",
        "io          read 4.0 KiB, written 0 B (counted by its tasks)",
        "254:0     read 8.0 KiB, written 512 B (counted by its cgroup)",
        "pids        peak 4",
        "throttled   0.500 s in 12 of 20 periods",
        "oom         2 killed",
        "namespaces  pid 4026532001",
    ):
        assert line in text, text
    assert "254:1" not in text
    parsed = json.loads(report.to_json(done))
    assert parsed["schema"] == report.SCHEMA_VERSION
    assert parsed["usage"]["cpu_ns"] == 10**9
    assert parsed["usage"]["cpu_source"] == "cgroup"
    assert parsed["usage"]["io_read_bytes"] == 4096
    assert parsed["usage"]["oom_kills"] == 2
    assert parsed["namespaces"]["pid"] == {"inum": 4026532001, "new": True, "id": 7}
    assert parsed["namespaces"]["user"] == {"inum": 4026531837, "new": False}


@pytest.mark.parametrize(
    ("errno", "path", "code", "words"),
    [(2, "nosuch", 127, "command not found"), (13, "/tmp", 126, "Permission denied"), (8, "./x", 126, "Exec format error")],
)
def test_exec_failures(errno: int, path: str, code: int, words: str) -> None:
    error = failure_error(Failed("exec", "execve", errno, path))
    assert error.exit_code == code
    assert words in error.message
    assert error.errno == errno


def test_other_failures_name_stage_call_and_path() -> None:
    error = failure_error(Failed("mounts", "mount", 1, "/proc"))
    assert error.exit_code == 125
    for word in ("mounts", "mount", "/proc", "Operation not permitted"):
        assert word in error.message
    assert "--no-proc" in error.hint


def test_a_missing_interpreter_is_named() -> None:
    assert "interpreter" in failure_error(Failed("exec", "execve", 2, "/etc/passwd")).hint
