"""Verdicts and reports: what is said of a job, and what is left unsaid."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import pytest

from nsagent.cgroups.limits import Limits
from nsagent.cgroups.stats import CgroupStats, CpuStats, IoDevice, IoStats, MemoryStats, PidsStats, Pressure, PressureStats
from nsagent.errors import AccessError, UsageError
from nsagent.launch import gauges, measure, report, text, timeline, verdict
from nsagent.launch.execute import INTERPRETER
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
        (0, {"stopped": "stopped after 1 s"}, "timeout", 124, "after 1 s"),
        (signal.SIGKILL, {"stopped": "its timeout", "carried_out": signal.SIGTERM, "oom_kills": 1}, "timeout", 124, "timeout"),
        (40, {}, "signal", 168, "signal 40"),
    ],
)
def test_verdicts(status: int, more: dict[str, object], outcome: str, code: int, words: str) -> None:
    given: dict[str, object] = {"stopped": "", "carried_out": None, "oom_kills": 0}
    found = verdict.judge(status, **(given | more))  # type: ignore[arg-type]
    assert (found.outcome, found.exit_code) == (outcome, code)
    assert words in found.reason


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
    words = text.to_text(result(report.JobUsage()))
    for word in ("cpu", "memory", "io", "faults", "switches", "run queue", "pids", "throttled", "pressure", "oom", "mem / time"):
        assert f"\n  {word} " not in words
    parsed = json.loads(text.to_json(result(report.JobUsage())))
    assert parsed["usage"] == {}
    assert {"cpus", "cpu_efficiency", "timeline"} & parsed.keys() == set()


def everything() -> report.RunResult:
    waited = report.JobUsage(
        cpu_ns=1,
        cpu_source="wait",
        io_read_bytes=4096,
        io_write_bytes=0,
        io_source="tasks",
        max_rss_bytes=2 << 20,
        minor_faults=70,
        major_faults=2,
        voluntary_switches=11,
        involuntary_switches=12,
        run_queue_ns=250_000_000,
    )
    stats = CgroupStats(
        cpu=CpuStats(
            usage_ns=10**9, user_ns=9 * 10**8, system_ns=10**8, periods=20, throttled_periods=12, throttled_ns=5 * 10**8
        ),
        memory=MemoryStats(peak_bytes=3 << 20, events={"oom_kill": 2}),
        io=IoStats({"vda": IoDevice(read_bytes=8192, write_bytes=512), "sr0": IoDevice(reads=1), "mapper/a-b": IoDevice(1)}),
        pids=PidsStats(peak=4),
        pressure=PressureStats({"cpu": Pressure(10**8, 0), "io": Pressure(0, 0), "irq": Pressure(None, 5)}),
    )
    times = timeline.Timeline(10**9, (0, 10**9, 2 * 10**9), (10**7, 21 * 10**7, 101 * 10**7), (0, 1 << 20, None))
    return result(measure.with_cgroup(waited, stats), cpus=2.0, timeline=times, notes=("a note",))


def test_everything_is_there() -> None:
    done = everything()
    words = text.to_text(done)
    for line in (
        "wall        2.000 s",
        "cpu         1.000 s (user 0.900 s, system 0.100 s, 50% of one CPU, 25% of the 2 it had)",
        "memory      peak 3.0 MiB (largest process 2.0 MiB)",
        "io          read 4.0 KiB, written 0 B (counted by its tasks)",
        "vda       read 8.0 KiB, written 512 B (counted by its cgroup)",
        "\n    mapper/a-b read 1 B, written 0 B (counted by its cgroup)",
        "faults      70 minor, 2 major",
        "switches    11 voluntary, 12 involuntary",
        "run queue   0.250 s",
        "pids        peak 4",
        "throttled   0.500 s in 12 of 20 periods",
        "pressure    some task waited for cpu 0.100 s\n",
        "oom         2 killed",
        "cpu / time  \u2583\u2588 up to 0.80 CPUs, every 1 s",
        "mem / time  \u2581\u2588  up to 1.0 MiB",
        "namespaces  pid 4026532001",
        "note        a note",
    ):
        assert line in words, words
    assert "sr0" not in words
    assert "set-up" not in words
    little = text.to_text(result(report.JobUsage(cpu_ns=9_000_000, cpu_source="cgroup"), cpus=2.0))
    assert "of the 2 it had, its set-up included)\n" in little
    parsed = json.loads(text.to_json(done))
    assert parsed["schema"] == report.SCHEMA_VERSION
    usage = parsed["usage"]
    assert (usage["cpu_ns"], usage["cpu_source"], usage["io_read_bytes"], usage["oom_kills"]) == (10**9, "cgroup", 4096, 2)
    disks = {"vda": {"read_bytes": 8192, "write_bytes": 512}, "sr0": {"reads": 1}, "mapper/a-b": {"read_bytes": 1}}
    assert usage["io_devices"] == disks
    assert usage["pressure"]["irq"] == {"stalled_ns": 5}
    assert (parsed["cpus"], parsed["cpu_efficiency"]) == (2.0, 0.25)
    assert parsed["timeline"]["memory_bytes"] == [0, 1 << 20, None]
    assert parsed["namespaces"]["pid"] == {"inum": 4026532001, "new": True, "joined": False, "id": 7}
    assert parsed["namespaces"]["user"] == {"inum": 4026531837, "new": False, "joined": False}


def test_a_report_can_be_read_again() -> None:
    for one in (everything(), result(report.JobUsage())):
        document = json.loads(text.to_json(one))
        assert report.from_dict(document) == one
        later = document | {"schema": 2, "usage": document["usage"] | {"new_field": 1}}
        assert report.from_dict(later) == one
    with pytest.raises(KeyError):
        report.from_dict({})


def test_every_field_is_documented() -> None:
    words = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    names = [*report.JobUsage._fields, *report.RunResult._fields, *timeline.Timeline._fields, "cpu_efficiency"]
    assert [name for name in names if f"`{name}`" not in words] == []
    assert f"`schema` is {report.SCHEMA_VERSION}" in words


@pytest.mark.parametrize(
    ("limits", "cpus"),
    [
        (Limits(cpus=0.25), 0.25),
        (Limits(cpuset="0"), 1),
        (Limits(cpus=1000.0), len(os.sched_getaffinity(0))),
        (Limits(), len(os.sched_getaffinity(0))),
    ],
)
def test_usable_cpus(limits: Limits, cpus: float) -> None:
    assert measure.usable_cpus(limits) == cpus


class Steady:
    """A meter of one CPU that is always busy after 9 ms of set-up, whose memory is largest at every odd reading."""

    def __init__(self) -> None:
        self.readings = 8

    def cpu_ns(self) -> int:
        self.readings += 1
        return self.readings * 10**6

    def memory_bytes(self) -> int:
        return 2 if self.readings % 2 else 1


def test_a_long_timeline_stays_short_and_exact() -> None:
    recorder = timeline.Recorder(Steady(), 10**6, 0)  # type: ignore[arg-type]
    due = 10**6
    for _ in range(timeline.MOST_POINTS):
        assert due % recorder.interval_ns == 0
        due = recorder.take(due)
    found = recorder.timeline()
    assert len(found.elapsed_ns) == timeline.MOST_POINTS // 2 + 1
    assert found.interval_ns == 2 * 10**6
    assert (found.elapsed_ns[0], found.cpu_ns[0]) == (0, 9 * 10**6)
    assert (found.elapsed_ns[-1], found.cpu_ns[-1]) == (timeline.MOST_POINTS * 10**6, (timeline.MOST_POINTS + 9) * 10**6)
    assert set(found.memory_bytes) == {2}
    assert found.cores() == [1.0] * (timeline.MOST_POINTS // 2)


def test_no_interval_is_too_short_for_a_rate() -> None:
    """A reading late by most of an interval, and the last one, stand closely before the next; the total lags by up to a tick."""
    recorder = timeline.Recorder(Steady(), 10**6, 0)  # type: ignore[arg-type]
    assert recorder.take(10**6) == 2 * 10**6
    assert recorder.take(2_990_000) == 3 * 10**6
    assert recorder.take(3 * 10**6) == 4 * 10**6
    recorder.take(3_400_000)
    found = recorder.timeline()
    assert (found.elapsed_ns, found.cpu_ns) == ((0, 10**6, 3_400_000), (9 * 10**6, 10 * 10**6, 13 * 10**6))
    assert found.cores() == [1.0, 1.25]
    unknown = timeline.Timeline(1, (0, 1, 2, 3), (None, 5, 6, None), (None,) * 4)
    assert unknown.cores() == [None, 1.0, None]


def test_sparklines() -> None:
    assert timeline.sparkline([]) == ""
    assert timeline.sparkline([0, 0]) == "\u2581\u2581"
    assert timeline.sparkline([0, 1, 2, None]) == "\u2581\u2585\u2588 "
    assert timeline.sparkline([1] * 100 + [9] + [1] * 19, width=60).count("\u2588") == 1
    assert len(timeline.sparkline([1.0] * 121, width=60)) <= 60


def test_metrics_of_a_run_go_into_no_file_that_another_user_put_there(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("precious")
    other.chmod(0o600)
    os.link(other, tmp_path / f".nsagent_run_job.{os.getpid()}.new")
    assert "nsagent_run_exit_code" in Path(gauges.write_textfile(everything(), str(tmp_path))).read_text()
    assert (other.read_text(), other.stat().st_mode & 0o777) == ("precious", 0o600)


def test_metrics_of_a_run(tmp_path: Path) -> None:
    one = everything()
    path = gauges.write_textfile(one, str(tmp_path))
    assert path == str(tmp_path / "nsagent_run_job.prom")
    samples = {}
    from prometheus_client.parser import text_string_to_metric_families

    for family in text_string_to_metric_families(Path(path).read_text()):
        assert family.type == "gauge"
        assert family.documentation
        for sample in family.samples:
            assert sample.labels.pop("workload") == "job"
            samples[sample.name, *sample.labels.values()] = sample.value
    assert samples["nsagent_run_outcome", "success"] == 1
    assert sum(value for key, value in samples.items() if key[0] == "nsagent_run_outcome") == 1
    assert math.isclose(samples["nsagent_run_cpu_seconds", "user"], 0.9)
    assert samples["nsagent_run_duration_seconds",] == 2
    assert samples["nsagent_run_memory_peak_bytes",] == 3 << 20
    assert samples["nsagent_run_pressure_waiting_seconds", "cpu"] == 0.1
    assert ("nsagent_run_pressure_waiting_seconds", "irq") not in samples
    assert [entry.name for entry in tmp_path.iterdir()] == ["nsagent_run_job.prom"]
    assert Path(path).stat().st_mode & 0o777 == 0o644
    bare = gauges.exposition(result(report.JobUsage(), name='a"b\\c'))
    assert 'workload="a\\"b\\\\c"' in bare
    assert "cpu" not in bare


def test_where_no_metrics_can_go() -> None:
    with pytest.raises(AccessError, match="textfile:/nosuch"):
        gauges.check_textfile("/nosuch")
    for url in ("", "ftp://x", "http://", "127.0.0.1:9091"):
        with pytest.raises(UsageError):
            gauges.check_push(url)
    gauges.check_push("http://127.0.0.1:9091")


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
    assert "interpreter" in failure_error(Failed("exec", INTERPRETER, 2, "/x")).hint


def test_a_command_that_only_the_host_has_is_not_found() -> None:
    error = failure_error(Failed("exec", "execve", 2, "/etc/passwd"))
    assert (error.message, error.exit_code) == ("/etc/passwd: command not found", 127)
    assert "inside the job" in error.hint
