"""Limits and accounting: set before CMD's first instruction, read back, obeyed; the report says what was used."""

from __future__ import annotations

import os
import re
import resource
from pathlib import Path

import pytest

from nsagent.cgroups.layout import read_layout
from tests import support
from tests.kernel.launching import Jobs

pytestmark = pytest.mark.kernel

BUSY = "import time\nend = time.process_time() + {}\nwhile time.process_time() < end: pass"


def test_cmds_first_instruction_is_in_its_cgroup(jobs: Jobs) -> None:
    done = jobs.run("--isolate", "pid", "--", "cat", "/proc/self/cgroup")
    paths = {line.split(":", 2)[2] for line in done.out.splitlines()}
    assert paths == {"/" + done.report["cgroup"]}
    assert done.report["cgroup"].startswith(f"nsagent/{done.name}")
    assert "/" + done.report["cgroup"] not in Path("/proc/self/cgroup").read_text()


def test_limits_read_back_from_inside(jobs: Jobs) -> None:
    layout = read_layout()
    files = {}
    for controller, v1_file, v2_file in (
        ("memory", "memory.limit_in_bytes", "memory.max"),
        ("pids", "pids.max", "pids.max"),
        ("cpu", "cpu.cfs_quota_us", "cpu.max"),
        ("cpuset", "cpuset.cpus", "cpuset.cpus"),
    ):
        hierarchy = layout.of(controller)
        support.require(hierarchy, f"the {controller} controller is in no hierarchy")
        assert hierarchy is not None
        files[controller] = f"{hierarchy.mountpoint}/$path/{v1_file if hierarchy.version == 1 else v2_file}"
    script = "path=$(tail -n1 /proc/self/cgroup | cut -d: -f3); cat " + " ".join(f'"{file}"' for file in files.values())
    limits = ["--memory", "64M", "--pids", "50", "--cpus", "0.5", "--cpuset", "0"]
    done = jobs.run("--isolate", "pid", *limits, "--", "sh", "-c", script)
    assert done.code == 0, done.err
    assert done.out.split()[:4] == [str(64 << 20), "50", "50000", "0"]


def test_the_report_has_the_cpu_that_was_used(jobs: Jobs) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = jobs.run("--", "python3", "-c", BUSY.format(0.3))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    usage = done.report["usage"]
    assert usage["cpu_source"] == "cgroup"
    assert usage["cpu_ns"] >= 300_000_000
    assert usage["cpu_ns"] / 1e9 <= after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime  # with the launcher's
    assert usage["user_ns"] + usage["system_ns"] == usage["cpu_ns"]
    idle = jobs.run("--", "sleep", "1").report
    assert idle["usage"]["cpu_ns"] < idle["wall_ns"] / 2  # the control: it is not wall time


def test_processes_that_nobody_waited_for_count_too(jobs: Jobs) -> None:
    done = jobs.run("--", "sh", "-c", f"(python3 -c '{BUSY.format(0.3)}'; echo) | (read line; exit 0)")
    assert done.report["usage"]["cpu_ns"] >= 300_000_000


def test_throttling_is_reported(jobs: Jobs) -> None:
    usage = jobs.run("--cpus", "0.05", "--", "python3", "-c", BUSY.format(0.05)).report["usage"]  # less than anybody gets
    assert usage["throttled_ns"] > 0
    assert 0 < usage["throttled_periods"] <= usage["periods"]
    assert not jobs.run("--", "python3", "-c", BUSY.format(0.2)).report["usage"].get("throttled_ns")


def test_memory_peak_and_oom(jobs: Jobs) -> None:
    fill = "x = b'x' * {}; print('done')"
    done = jobs.run("--memory", "200M", "--", "python3", "-c", fill.format(50 << 20))
    assert (done.code, done.out) == (0, "done\n")
    assert 50 << 20 <= done.report["usage"]["memory_peak_bytes"] <= 100 << 20
    assert done.report["usage"]["oom_kills"] == 0
    killed = jobs.run("--memory", "30M", "--", "python3", "-c", fill.format(100 << 20))
    assert (killed.code, killed.report["outcome"], killed.out) == (137, "oom", "")
    assert killed.report["usage"]["oom_kills"] >= 1
    assert "memory" in killed.report["reason"]
    shell = jobs.run("--memory", "30M", "--", "sh", "-c", f'python3 -c "{fill.format(100 << 20)}"; exit $?')
    assert (shell.code, shell.report["outcome"]) == (137, "oom")
    assert jobs.cgroups() == []


def test_pids_limit_and_peak(jobs: Jobs) -> None:
    script = 'for i in 1 2 3 4 5 6 7; do sleep 1000 & all="$all $!"; done; kill $all; wait'
    assert jobs.run("--", "sh", "-c", script).report["usage"]["pids_peak"] >= 8
    limited = jobs.run("--pids", "4", "--", "sh", "-c", script)
    assert "fork" in limited.err.lower()
    assert limited.report["usage"]["pids_peak"] <= 4


def test_io_is_reported(jobs: Jobs, tmp_path: Path) -> None:
    disk = next((p for p in (tmp_path, Path("/var/tmp"), Path("/")) if os.major(os.stat(p).st_dev)), None)
    support.require(disk, "no directory on a block device")
    target = Path(str(disk)) / support.unique_name("io")
    try:
        done = jobs.run("--", "dd", "if=/dev/zero", f"of={target}", "bs=1M", "count=8", "conv=fsync")
        assert done.code == 0, done.err
        usage = done.report["usage"]
        assert usage["io_source"] == "tasks"
        assert 8 << 20 <= usage["io_write_bytes"] < 9 << 20
    finally:
        target.unlink(missing_ok=True)
    assert jobs.run("--", "true").report["usage"]["io_write_bytes"] < 1 << 20


def test_io_max_on_the_disk_of_a_path(jobs: Jobs) -> None:
    layout = read_layout()
    support.require(layout.of("io"), "no io or blkio controller")
    root = "/"
    support.require(os.major(os.stat(root).st_dev), "/ is not on a block device")
    plan = jobs.run("--dry-run", "--io-max", f"{root}:rbps=1M,wiops=100", "--", "true")
    assert plan.code == 0, plan.err
    assert re.search(r"limit +--io-max: .*\d+:\d+", plan.out)
    done = jobs.run("--io-max", f"{root}:rbps=1M,wiops=100", "--", "true")
    assert done.code == 0, done.err


def test_a_dry_run_makes_nothing(jobs: Jobs) -> None:
    done = jobs.run("--dry-run", "--memory", "64M", "--isolate", "all", "--timeout", "1s", "--", "touch", "/tmp/made by it")
    assert done.code == 0
    for word in ("touch '/tmp/made by it'", str(64 << 20), "uid 0..65535", "SIGTERM after 1 s", "a fresh /proc", "lo, up"):
        assert word in done.out
    assert not Path("/tmp/made by it").exists()
    assert not jobs.state.exists()
    assert jobs.cgroups() == []
