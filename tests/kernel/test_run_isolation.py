"""What CMD sees: its own namespaces, /proc, ids, network, environment; and what the host does not see of it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.kernel.launching import KINDS, Jobs, host_inums

pytestmark = pytest.mark.kernel


def test_cmd_is_pid_one(jobs: Jobs) -> None:
    assert jobs.run("--", "sh", "-c", "echo $$").out == "1\n"
    alone = jobs.run("--isolate", "pid", "--", "sh", "-c", "echo $$")
    assert (alone.code, alone.out) == (0, "1\n")
    assert jobs.run("--isolate", "none", "--", "sh", "-c", "echo $$").out != "1\n"


def test_every_namespace_is_new_and_the_reports(jobs: Jobs) -> None:
    script = "for k in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$k; done"
    done = jobs.run("--isolate", "all", "--", "sh", "-c", script)
    assert done.code == 0, done.err
    seen = {kind: int(inum) for kind, inum in re.findall(r"(\w+):\[(\d+)\]", done.out)}
    assert sorted(seen) == sorted(KINDS)
    host = host_inums()
    assert [kind for kind in KINDS if seen[kind] == host[kind]] == []
    assert {kind: ref["inum"] for kind, ref in done.report["namespaces"].items()} == seen
    assert all(ref["new"] for ref in done.report["namespaces"].values())


def test_none_is_the_hosts(jobs: Jobs) -> None:
    done = jobs.run("--isolate", "none", "--", "true")
    assert {kind: ref["inum"] for kind, ref in done.report["namespaces"].items()} == host_inums()
    assert not any(ref["new"] for ref in done.report["namespaces"].values())


def test_successive_namespaces_have_ids_of_their_own(jobs: Jobs) -> None:
    first, second = (jobs.run("--isolate", "uts", "--", "true").report["namespaces"]["uts"] for _ in range(2))
    if "id" not in first:
        pytest.skip("this kernel has no NS_GET_ID")
    assert first["id"] != second["id"]


def test_a_hostname_inside_is_not_seen_outside(jobs: Jobs) -> None:
    before = socket.gethostname()
    done = jobs.run("--cap-add", "SYS_ADMIN", "--", "sh", "-c", "hostname bird && hostname")
    assert done.out == "bird\n"
    assert socket.gethostname() == before
    assert jobs.run("--hostname", "heron", "--", "hostname").out == "heron\n"
    assert socket.gethostname() == before


def test_the_user_namespace_maps_root_to_somebody_else(jobs: Jobs, tmp_path: Path) -> None:
    done = jobs.run("--isolate", "user", "--", "sh", "-c", "id -u; id -G; cat /proc/self/uid_map /proc/self/gid_map")
    assert done.code == 0, done.err
    uid, groups, uid_map, gid_map = done.out.splitlines()
    assert (uid, groups) == ("0", "0")
    for line in (uid_map, gid_map):
        inside, outside, count = map(int, line.split())
        assert (inside, count) == (0, 65536)
        assert outside >= 1000, "0 inside must not be 0 outside"
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    tmp_path.chmod(0o755)
    read = ["cat", str(secret)]
    assert jobs.run("--isolate", "user", "--", *read).code != 0
    assert jobs.run("--isolate", "pid", "--", *read).out == "x"  # the control: without `user` it is root


def test_proc_is_fresh_and_gone_with_the_job(jobs: Jobs) -> None:
    count = "ls -d /proc/[0-9]* | wc -l"
    mounts_before = Path("/proc/self/mountinfo").read_text()
    assert int(jobs.run("--", "sh", "-c", count).out) <= 4
    left = jobs.run("--no-proc", "--", "sh", "-c", "ls -d /proc/[0-9]* | wc -l; test -d /proc/2 && echo host")
    assert left.out.split()[-1] == "host"
    assert Path("/proc/self/mountinfo").read_text() == mounts_before


def test_mounts_do_not_propagate(jobs: Jobs, tmp_path: Path) -> None:
    script = f"mount -t tmpfs none {tmp_path} && touch {tmp_path}/inside && ls {tmp_path}"
    done = jobs.run("--cap-add", "SYS_ADMIN", "--", "sh", "-c", script)
    assert "inside" in done.out.split(), done.err
    assert not (tmp_path / "inside").exists()


def test_loopback_is_up_in_a_new_network(jobs: Jobs) -> None:
    listen = (
        "import socket; s = socket.create_server(('127.0.0.1', 0));"
        "c = socket.create_connection(s.getsockname()); print('connected', sorted(i for _, i in socket.if_nameindex())[-1])"
    )
    done = jobs.run("--isolate", "net", "--", "python3", "-c", listen)
    assert done.code == 0, done.err
    assert done.out.split()[0] == "connected"


def test_the_cgroup_namespace_is_rooted_at_the_job(jobs: Jobs) -> None:
    inside = jobs.run("--", "cat", "/proc/self/cgroup")
    paths = {line.split(":", 2)[2] for line in inside.out.splitlines()}
    assert "/" in paths
    assert not any("nsagent" in path for path in paths)
    outside = jobs.run("--isolate", "pid,mnt", "--", "cat", "/proc/self/cgroup")
    assert f"/{outside.report['cgroup']}" in {line.split(":", 2)[2] for line in outside.out.splitlines()}


def test_environment_directory_and_descriptors(jobs: Jobs, tmp_path: Path) -> None:
    env = os.environ | {"INHERITED": "yes", "PASSED": "on"}
    done = jobs.run("--env", "ADDED=a=b", "--workdir", str(tmp_path), "--", "sh", "-c", "echo $INHERITED $ADDED; pwd", env=env)
    assert done.out == f"yes a=b\n{tmp_path}\n"
    clean = jobs.run("--clean-env", "--env", "PASSED", "--env", "NOT_SET_ANYWHERE", "--", "env", env=env)
    assert clean.out == "PASSED=on\n"
    read_end, write_end = os.pipe()
    try:
        listing = "ls /proc/self/fd | wc -l"  # 0, 1, 2 and the directory's own
        leaked = jobs.run("--", "sh", "-c", listing, pass_fds=[read_end, write_end])
        assert int(leaked.out) == 4
    finally:
        os.close(read_end)
        os.close(write_end)


def test_signals_are_as_a_new_program_expects_them(jobs: Jobs) -> None:
    done = jobs.run("--", "cat", "/proc/self/status")
    masks = {key: int(mask, 16) for key, mask in re.findall(r"(Sig\w+):\s+([0-9a-f]{16})", done.out)}
    internal = 1 << 31 | 1 << 32  # 32 and 33 belong to libc, and who started this test may have them ignored
    assert (masks["SigBlk"], masks["SigIgn"] & ~internal, masks["SigCgt"]) == (0, 0, 0)


def test_nohup_holds_for_cmd(jobs: Jobs) -> None:
    name, argv = jobs.argv("--", "grep", "SigIgn", "/proc/self/status", report=False)
    done = subprocess.run(["sh", "-c", 'trap "" HUP; exec "$@"', "sh", *argv], capture_output=True, text=True, check=True)
    assert int(done.stdout.split()[1], 16) & 1
    assert name


def test_a_closed_stdin(jobs: Jobs) -> None:
    name, argv = jobs.argv("--", "sh", "-c", "cat; echo end", report=False)
    done = subprocess.run(["sh", "-c", 'exec "$@" <&-', "sh", *argv], capture_output=True, text=True, check=False, timeout=120)
    assert "end" in done.stdout
    assert done.returncode == 0, done.stderr
    assert jobs.cgroups(name) == []
