"""`nsagent cgroup controllers` and `tree`, against the kernel's own files and a job of known limits."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

from nsagent.cgroups.layout import read_layout
from tests import support
from tests.kernel.launching import Jobs

pytestmark = pytest.mark.kernel


def test_every_controller_is_told(jobs: Jobs) -> None:
    done = support.run_nsagent("cgroup", "controllers", "-o", "json")
    assert done.returncode == 0, done.stderr
    found = {each["name"]: each for each in json.loads(done.stdout)}
    known = {line.split()[0] for line in Path("/proc/cgroups").read_text().splitlines()[1:]}
    assert known - {"blkio"} <= set(found)
    for hierarchy in read_layout().hierarchies:
        for name in hierarchy.controllers:
            assert (found[name]["version"], found[name]["mountpoint"]) == (hierarchy.version, hierarchy.mountpoint)
    text = support.run_nsagent("cgroup", "controllers").stdout.splitlines()
    assert text[0].split()[0] == "CONTROLLER"
    assert {line.split()[0] for line in text[1:]} == set(found)


def test_a_job_is_in_the_tree(jobs: Jobs) -> None:
    layout = read_layout()
    limits = {"memory": ("--memory", "64M"), "pids": ("--pids", "50"), "cpu": ("--cpus", "0.5")}
    words = [word for controller, pair in limits.items() if layout.of(controller) for word in pair]
    name, launcher = jobs.start(*words, "--", "sh", "-c", "echo ready; while :; do sleep 1000; done")
    try:
        (path,) = ("/" + str(job["cgroup"]) for job in jobs.registered() if job["name"] == name)
        done = support.run_nsagent("cgroup", "tree", path, "-o", "json")
        (row,) = json.loads(done.stdout)
        assert row["path"] == path
        expected = {"memory": ("memory_limit_bytes", 64 << 20), "pids": ("pids_limit", 50), "cpu": ("cpus_limit", 0.5)}
        for controller, (key, value) in expected.items():
            if layout.of(controller):
                assert row[key] == value
        above = support.run_nsagent("cgroup", "tree", "--depth", "1", "/nsagent").stdout.splitlines()
        assert above[1].endswith("/nsagent")
        (line,) = (line for line in above if line.endswith(path.rpartition("/")[2]))
        if layout.of("memory"):
            assert "64.0MiB" in line
        assert path.rpartition("/")[2] not in support.run_nsagent("cgroup", "tree", "--depth", "0", "/nsagent").stdout
    finally:
        launcher.send_signal(signal.SIGTERM)
        launcher.communicate(timeout=60)
    gone = support.run_nsagent("cgroup", "tree", path)
    assert gone.returncode == 2
    assert "there is no cgroup" in gone.stderr


def test_a_name_cannot_write_to_the_terminal(cgroup_name: str) -> None:
    support.require_root()
    path = os.fsencode(f"{read_layout().accounting[1].mountpoint}/{cgroup_name}")
    name = b"a\x1b[31m\r\t\xff"
    os.makedirs(path + b"/" + name)
    try:
        done = support.run_nsagent("cgroup", "tree", cgroup_name)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1].endswith("  a\\x1b[31m\\x0d\\x09\\xff")
        (_, row) = json.loads(support.run_nsagent("cgroup", "tree", cgroup_name, "-o", "json").stdout)
        assert os.fsencode(row["path"]) == b"/" + os.fsencode(cgroup_name) + b"/" + name
        gone = support.run_nsagent("cgroup", "tree", os.fsdecode(name))
        assert gone.stderr.splitlines()[0] == "error: there is no cgroup a\\x1b[31m\\x0d\\x09\\xff"
    finally:
        os.rmdir(path + b"/" + name)
        os.rmdir(path)
