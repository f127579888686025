"""`--device-policy`: a device that is none of the job's cannot be opened, whatever mounts it makes; by default not either."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from nsagent.cgroups import device_policy
from nsagent.cgroups.group import Group
from nsagent.cgroups.layout import Layout, read_layout
from nsagent.cgroups.limits import Limits
from tests import support
from tests.kernel.launching import Done, Jobs

pytestmark = pytest.mark.kernel

CLOSED = ("--device-policy", "closed")
ALL_OPEN = ("--device-policy", "open")
# A mount of its own without nodev, which CAP_SYS_ADMIN allows, and in it a device that no /dev of a job has: /dev/kmsg
OPEN = "mount -t tmpfs none /mnt && mknod /mnt/node c 1 11 && (: > /mnt/node) 2>/dev/null && echo opened; echo ran"


def test_a_device_of_the_host_in_a_mount_of_its_own(jobs: Jobs) -> None:
    support.require(os.access("/dev/kmsg", os.W_OK), "/dev/kmsg cannot be written")
    words = ("--cap-add", "SYS_ADMIN", "--", "sh", "-c", OPEN)
    assert jobs.run(*ALL_OPEN, *words).out == "opened\nran\n"  # the control
    for policy in ((), CLOSED, ("--device-policy", "auto")):
        closed = jobs.run(*policy, *words)
        assert closed.out == "ran\n", closed.err
    assert jobs.run(*CLOSED, "--privileged", "--", "sh", "-c", "(: > /dev/kmsg) 2>/dev/null || echo closed").out == "closed\n"


def test_what_has_the_mounts_of_the_host_has_its_devices(jobs: Jobs) -> None:
    support.require(os.access("/dev/kmsg", os.W_OK), "/dev/kmsg cannot be written")
    script = "(: > /dev/kmsg) 2>/dev/null && echo opened; :"
    for words in (("--isolate", "none"), ("--privileged",), ("--join", f"mnt:{os.getpid()}")):
        assert jobs.run(*words, "--", "sh", "-c", script).out == "opened\n", words
        assert jobs.run(*CLOSED, *words, "--", "sh", "-c", script).out == "", words


def test_where_it_cannot_be_enforced(jobs: Jobs, tmp_path: Path) -> None:
    """In a job, which can make no cgroup: what nodev guards too may run, and what could mount without it may not."""
    tmp_path.chmod(0o777)
    inner = [*support.nsagent_argv(), "run", "--state-dir", str(tmp_path / "inner"), "--report", "none"]

    def run(*words: str) -> Done:
        return jobs.run("--cap-add", "ALL", "--seccomp", "unconfined", "--", *inner, *words, "--", "echo", "ran")

    assert run().out == "ran\n"
    refused = run("--cap-add", "SYS_ADMIN")
    assert (refused.code, refused.out) == (125, ""), refused.err
    assert run("--cap-add", "SYS_ADMIN", "--best-effort").out == "ran\n"
    assert run("--cap-add", "SYS_ADMIN", *ALL_OPEN).out == "ran\n"


def test_what_every_job_has_still_works(jobs: Jobs) -> None:
    script = """
        for name in null zero full random urandom; do head -c 0 /dev/$name || echo $name; done
        echo x > /dev/null && head -c 4 /dev/zero | wc -c; : < /dev/ptmx && echo ptmx"""
    for more in ((), ("--init",), CLOSED, (*CLOSED, "--isolate", "all")):
        done = jobs.run(*more, "--", "sh", "-c", script)
        assert done.out.split() == ["4", "ptmx"], done.err


def test_a_volume_may_be_used(jobs: Jobs) -> None:
    support.require(os.access("/dev/kmsg", os.W_OK), "/dev/kmsg cannot be written")
    script = "(: > /dev/kmsg) 2>/dev/null && echo opened"
    for policy in ((), CLOSED):
        assert jobs.run(*policy, "--volume", "/dev/kmsg:/dev/kmsg", "--", "sh", "-c", script).out == "opened\n"


def test_it_reads_back(jobs: Jobs) -> None:
    hierarchy = read_layout().of("devices")
    if hierarchy is None:
        pytest.skip("of a BPF program the launcher asks the kernel")
    script = f"cat {hierarchy.mountpoint}/$(grep ':devices:' /proc/self/cgroup | cut -d: -f3)/devices.list"
    every = {"a *:* rwm", "b *:* rwm", "c *:* rwm"}
    for words in ((), (*CLOSED, "--isolate", "pid")):
        rows = jobs.run(*words, "--", "sh", "-c", script).out.splitlines()
        assert "c 1:3 rwm" in rows
        assert not every & set(rows)
    plan = jobs.run(*CLOSED, "--dry-run", "--", "true").out
    assert Path(hierarchy.mountpoint).name in plan
    assert "--device-policy:" in plan


def test_the_program_of_v2() -> None:
    """On the v2 tree of any host, also where jobs take v1's controller."""
    support.require_root()
    v2 = read_layout().v2
    support.require(v2, "no cgroup v2 is mounted")
    support.require(os.access("/dev/kmsg", os.W_OK), "/dev/kmsg cannot be written")
    assert v2 is not None
    group = Group.create(Layout((v2,)), f"nsagent/{support.unique_name('devices')}")
    script = f"echo $$ > {group.places[v2]}/cgroup.procs; : > /dev/null && echo null; (: > /dev/kmsg) 2>/dev/null && echo kmsg; :"

    def opened() -> list[str]:
        return subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout.split()

    try:
        assert opened() == ["null", "kmsg"]  # the control
        group.apply(Limits(devices=device_policy.BASIC))
        assert opened() == ["null"]
        assert group.v2_fd is not None
        assert device_policy.count(group.v2_fd) == 1
    finally:
        group.remove()
