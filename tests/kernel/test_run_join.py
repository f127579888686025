"""`--join`, `--net` and `--clock-offset`: CMD's first instruction is in the namespaces that were named, and in its cgroup."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import support
from tests.kernel.launching import KINDS, LINKS, Jobs, host_inums, inums, inums_of, running

pytestmark = pytest.mark.kernel

ALL = "cgroup,ipc,mnt,net,pid,time,user,uts"


@pytest.fixture(params=[ALL.replace("user,", ""), ALL], ids=["all but user", "all"])
def target(jobs: Jobs, request: pytest.FixtureRequest) -> Iterator[int]:
    """The pid of a process in namespaces of its own, its PID 1."""
    name, launcher = jobs.start("--isolate", request.param, "--", "sh", "-c", "echo ready; while :; do sleep 1000; done")
    yield jobs.pid_of(name)
    launcher.send_signal(signal.SIGTERM)
    launcher.communicate(timeout=60)


def test_each_kind_alone_and_all_at_once(jobs: Jobs, target: int) -> None:
    theirs, host = inums_of(target), host_inums()
    different = [kind for kind in KINDS if theirs[kind] != host[kind]]
    for kind in different:
        # another's /proc shows only whom its PID namespace knows: "self" of others is nothing
        more = ["--join", f"pid:{target}"] if kind == "mnt" else []
        done = jobs.run("--isolate", "none", "--join", f"{kind}:{target}", *more, "--", "sh", "-c", LINKS)
        assert done.code == 0, f"{kind}: {done.err}"
        expected = host | {kind: theirs[kind]} | ({"pid": theirs["pid"]} if more else {})
        assert inums(done.out) == expected, kind
        found = done.report["namespaces"]
        assert {name: ref["inum"] for name, ref in found.items()} == expected
        assert {name for name, ref in found.items() if ref["joined"]} == {kind, *(["pid"] if more else [])}
        assert not any(ref["new"] for ref in found.values())
    joins = [word for kind in reversed(KINDS) for word in ("--join", f"{kind}:/proc/{target}/ns/{kind}")]
    done = jobs.run("--isolate", "none", *joins, "--", "sh", "-c", f"{LINKS}; echo $$")
    assert done.code == 0, done.err
    assert inums(done.out) == theirs
    assert int(done.out.split()[-1]) > 1
    assert jobs.cgroups(done.name) == []


def test_joined_and_new_together(jobs: Jobs, target: int) -> None:
    theirs, host = inums_of(target), host_inums()
    done = jobs.run("--join", f"pid:{target}", "--join", f"net:{target}", "--", "sh", "-c", f"{LINKS}; ls -d /proc/[0-9]*")
    assert done.code == 0, done.err
    seen = inums(done.out)
    assert (seen["pid"], seen["net"]) == (theirs["pid"], theirs["net"])
    assert all(seen[kind] not in (theirs[kind], host[kind]) for kind in ("cgroup", "ipc", "mnt", "uts"))
    assert {"/proc/1"} <= {word for word in done.out.split() if word.startswith("/proc")} < {f"/proc/{n}" for n in range(99)}
    mapped = jobs.run("--isolate", "user,mnt,uts", "--join", f"net:{target}", "--", "sh", "-c", f"{LINKS}; id -u")
    assert mapped.code == 0, mapped.err
    assert inums(mapped.out)["net"] == theirs["net"]
    assert inums(mapped.out)["user"] not in (theirs["user"], host["user"])
    assert mapped.out.split()[-1] == "0"


def test_it_is_in_its_cgroup_and_not_the_targets(jobs: Jobs, target: int) -> None:
    done = jobs.run("--isolate", "none", "--memory", "64M", "--join", f"uts:{target}", "--", "cat", "/proc/self/cgroup")
    assert {line.split(":", 2)[2] for line in done.out.splitlines()} == {"/" + done.report["cgroup"]}


def test_it_dies_with_its_launcher_and_tells_its_exit_code(jobs: Jobs, target: int) -> None:
    joins = ["--join", f"pid:{target}", "--join", f"net:{target}"]
    assert jobs.run(*joins, "--", "sh", "-c", "exit 7").code == 7
    assert jobs.run(*joins, "--", "sh", "-c", "kill -TERM $$").report["outcome"] == "signal"
    assert jobs.run(*joins, "--timeout", "50ms", "--", "sleep", "1000").code == 124
    assert jobs.run(*joins, "--", "/no/such/program").code == 127
    marker = support.unique_name("killed")
    _, argv = jobs.argv(*joins, "--", "sh", "-c", "sleep 1000; :", marker, report=False)
    launcher = subprocess.Popen(argv)
    support.wait_for(lambda: len(running(marker)) > 1, 60)
    launcher.kill()
    launcher.wait(60)
    support.wait_for(lambda: not running(marker), 60)


def test_nobody_inside_sees_the_interpreter(jobs: Jobs, target: int) -> None:
    """As runc's CVE-2019-5736: /proc/PID/exe of who enters, or a script whose interpreter is /proc/self/exe."""
    joins = ["--isolate", "none", "--join", f"pid:{target}", "--join", f"mnt:{target}"]
    directory = Path("/var/tmp") / support.unique_name("script")
    directory.mkdir()
    try:
        script = directory / "run"
        script.write_text("#!/proc/self/exe\n")
        script.chmod(0o755)
        done = jobs.run(*joins, "--", str(script))
        assert done.code == 126, done.err
        script.write_text("#!/bin/sh\necho ran\n")
        assert jobs.run(*joins, "--", str(script)).out == "ran\n"
    finally:
        for path in (script, directory):
            path.unlink() if path.is_file() else path.rmdir()


@pytest.fixture
def netns() -> Iterator[str]:
    name = support.unique_name("net")
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    support.require(made.returncode == 0, f"ip netns add: {made.stderr}")
    try:
        yield name
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True)


def test_a_network_by_its_name(jobs: Jobs, netns: str) -> None:
    inum = os.stat(f"/run/netns/{netns}").st_ino
    for words in (["--join", f"net:{netns}"], ["--net", f"join:{netns}"], ["--join", f"network:/run/netns/{netns}"]):
        done = jobs.run(*words, "--", "sh", "-c", "readlink /proc/self/ns/net; ls /sys/class/net")
        assert done.out.split() == [f"net:[{inum}]", "lo"], done.err
    plan = jobs.run("--dry-run", "--net", f"join:{netns}", "--", "true").out
    assert re.search(rf"^joined +net: /run/netns/{netns}$", plan, re.MULTILINE)


def test_the_networks(jobs: Jobs) -> None:
    host = host_inums()["net"]
    assert inums(jobs.run("--net", "host", "--", "readlink", "/proc/self/ns/net").out)["net"] == host
    done = jobs.run(
        "--net", "none", "--", "sh", "-c", "readlink /proc/self/ns/net; cat /sys/class/net/lo/flags; ls /sys/class/net"
    )
    assert inums(done.out)["net"] != host
    assert int(done.out.split()[1], 16) & 1, "lo is down"
    assert done.out.split()[2:] == ["lo"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--isolate", "net,uts", "--join", "net:1"], "--join net:1 contradicts --isolate net"),
        (["--join", "ipc:1", "--join", "ipc:2"], "ipc is joined twice"),
        (["--net", "host", "--isolate", "net"], "--net host contradicts"),
        (["--join", "time:1", "--clock-offset", "boottime:1d"], "contradicts --clock-offset"),
        (["--join", "uts:name"], "neither a pid nor a path"),
        (["--join", "all:1"], "no single kind"),
        (["--join", "net:/etc/passwd"], "is no namespace"),
        (["--join", "net:/proc/self/ns/uts"], "is a uts namespace"),
        (["--join", "net:nsagent-test-none"], "there is no /run/netns/nsagent-test-none"),
        (["--net", "bridge"], "'bridge' is no network"),
        (["--clock-offset", "realtime:1s"], "not CLOCK:TIME"),
    ],
)
def test_what_is_refused_by_name(jobs: Jobs, words: list[str], said: str) -> None:
    done = jobs.run(*words, "--", "true")
    assert (done.code, done.out) == (2, ""), done.err
    assert said in done.err
    assert jobs.cgroups() == []


def test_our_own_namespaces_are_nothing_to_join(jobs: Jobs) -> None:
    joins = [word for kind in KINDS for word in ("--join", f"{kind}:/proc/self/ns/{kind}")]
    done = jobs.run("--isolate", "none", *joins, "--", "sh", "-c", LINKS)
    assert (done.code, inums(done.out)) == (0, host_inums()), done.err


def test_a_user_may_not_join_what_is_not_his(jobs: Jobs) -> None:
    directory = Path("/tmp") / support.unique_name("state")
    _, argv = jobs.argv("--state-dir", str(directory), "--join", "net:1", "--", "true", report=False)
    as_user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", *argv]
    done = subprocess.run(as_user, capture_output=True, text=True, check=False, cwd="/", timeout=60)
    subprocess.run(["rm", "-rf", str(directory)], check=True)
    assert done.returncode == 125
    assert "--join net:1" in done.stderr
    assert "CAP_SYS_PTRACE" in done.stderr


@pytest.mark.parametrize("isolate", ["pid,mnt", "all"])
def test_the_clocks_of_a_job(jobs: Jobs, isolate: str) -> None:
    support.require(os.path.exists("/proc/self/timens_offsets"), "this kernel has no time namespaces")
    words = ["--isolate", isolate, "--clock-offset", "boottime:7d", "--clock-offset", "monotonic:-1s"]
    script = "cat /proc/self/timens_offsets; readlink /proc/self/ns/time; cut -d. -f1 /proc/uptime"
    before = float(Path("/proc/uptime").read_text().split()[0])
    done = jobs.run(*words, "--", "sh", "-c", script)
    assert done.code == 0, done.err
    rows = done.out.splitlines()
    assert [row.split() for row in rows[:2]] == [["monotonic", "-1", "0"], ["boottime", "604800", "0"]]
    assert inums(rows[2])["time"] != host_inums()["time"]
    assert done.report["namespaces"]["time"]["new"]
    after = float(Path("/proc/uptime").read_text().split()[0])
    assert int(before) <= int(rows[3]) - 604800 <= after
    plan = jobs.run(*words, "--dry-run", "--", "true").out
    assert re.search(r"^clock +boottime: \+604800 s$", plan, re.MULTILINE)
    wrong = jobs.run("--isolate", isolate, "--clock-offset", "boottime:-100000d", "--", "true")
    assert wrong.code == 125
    assert wrong.err.startswith("error: clock: write /proc/self/timens_offsets")
    assert jobs.cgroups() == []
