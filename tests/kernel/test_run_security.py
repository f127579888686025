"""What CMD may do: capabilities, set-user-ID programs, system calls; as the kernel says in /proc/self/status, and as it acts."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from nsagent.launch import security
from tests import support
from tests.kernel.launching import Jobs

pytestmark = pytest.mark.kernel

STATUS = ["cat", "/proc/self/status"]
ADMIN = ["--cap-add", "SYS_ADMIN"]


def status(text: str) -> dict[str, int]:
    return {key: int(value, 16) for key, value in re.findall(r"(Cap\w+|NoNewPrivs|Seccomp):\s+([0-9a-f]+)", text)}


def permitted() -> int:
    return status(Path("/proc/self/status").read_text())["CapPrm"]


@pytest.mark.parametrize("more", [[], ["--isolate", "all"], ["--isolate", "none"], ["--init"]])
def test_the_default(jobs: Jobs, more: list[str]) -> None:
    seen = status(jobs.run(*more, "--", *STATUS).out)
    assert seen["CapBnd"] == security.DEFAULT
    assert seen["CapPrm"] == seen["CapEff"] == security.DEFAULT & permitted()
    assert (seen["CapInh"], seen["CapAmb"]) == (0, 0)
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == (1, 2)


def test_more_and_less(jobs: Jobs) -> None:
    admin, default = 1 << 21, security.DEFAULT
    for words, wanted in (
        (ADMIN, default | admin),
        (["--cap-drop", "ALL"], 0),
        (["--cap-drop", "ALL", *ADMIN], admin),
        (["--cap-drop", "MKNOD,NET_RAW"], default & ~(1 << 27 | 1 << 13)),
        (["--privileged"], security.ALL & permitted()),
        (["--privileged", "--cap-drop", "SYS_ADMIN"], security.ALL & permitted() & ~admin),
    ):
        seen = status(jobs.run(*words, "--", *STATUS).out)
        assert seen["CapEff"] == seen["CapPrm"] == wanted, words
        assert seen["CapBnd"] & permitted() == wanted
    privileged = status(jobs.run("--privileged", "--", *STATUS).out)
    assert (privileged["NoNewPrivs"], privileged["Seccomp"]) == (0, 0)


def test_the_host_name_needs_a_capability(jobs: Jobs) -> None:
    """As the tutorial's `hostname -b` does: SYS_ADMIN of the UTS namespace's owner, here the host's."""
    rename = ["sh", "-c", "hostname bird 2>/dev/null && hostname; true"]
    assert jobs.run("--", *rename).out == ""
    assert jobs.run(*ADMIN, "--", *rename).out == "bird\n"
    assert jobs.run("--isolate", "all", "--", *rename).out == ""
    assert jobs.run("--isolate", "all", *ADMIN, "--", *rename).out == "bird\n"


def test_mounting_needs_a_capability(jobs: Jobs) -> None:
    """As the tutorial's `mount -t proc`."""
    mount = ["sh", "-c", "mount -t proc proc /proc 2>/dev/null && ls -d /proc/[0-9]* | wc -l; true"]
    assert jobs.run("--", *mount).out == ""
    assert int(jobs.run(*ADMIN, "--", *mount).out) <= 3


def test_a_set_user_id_program_gives_nothing(jobs: Jobs, tmp_path: Path) -> None:
    program = Path("/var/tmp") / support.unique_name("suid")
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o755 | stat.S_ISUID)
    try:
        as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", str(program), "-u"]
        assert jobs.run("--", *as_nobody).out == "65534\n"
        assert jobs.run("--privileged", "--", *as_nobody).out == "0\n"
    finally:
        program.unlink()


def test_calls_that_are_refused(jobs: Jobs) -> None:
    for command in ("unshare --user true", "unshare --uts true"):
        done = jobs.run("--", "sh", "-c", f"{command} 2>/dev/null; echo $?")
        assert done.out != "0\n", command
    assert jobs.run("--seccomp", "unconfined", "--", "unshare", "--user", "true").code == 0
    assert jobs.run(*ADMIN, "--", "unshare", "--uts", "true").code == 0


def test_a_profile(jobs: Jobs, tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}
    path.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    made = ["sh", "-c", f"mkdir {tmp_path}/made"]
    done = jobs.run("--seccomp", str(path), "--", *made)
    assert "No space left on device" in done.err
    assert jobs.run("--privileged", "--seccomp", str(path), "--", *made).code != 0, "an explicit one holds for all"
    assert jobs.run("--", *made).code == 0
    path.write_text("{}")
    wrong = jobs.run("--seccomp", str(path), "--", "true")
    assert wrong.code == 2
    assert wrong.err.startswith("error: --seccomp ")
    assert jobs.cgroups() == []


def test_the_filter_is_compiled_once(jobs: Jobs) -> None:
    for _ in range(2):
        assert jobs.run("--", "true").code == 0
    (kept,) = (jobs.state / "seccomp").iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    program = kept.read_bytes()
    assert len(program) % 8 == 0
    kept.write_bytes(b"\x06\0\0\0\x1c\0\x05\0")  # proof that it is what is used: one instruction, all calls fail
    assert jobs.run("--", "true").code != 0


def test_init_and_the_launcher_cannot_be_looked_into(jobs: Jobs) -> None:
    """/proc/1/exe of an init is the interpreter, a file of the host's."""
    script = "readlink /proc/1/exe || echo hidden; readlink /proc/self/exe"
    hidden, own = jobs.run("--init", "--", "sh", "-c", script).out.split()
    assert hidden == "hidden"
    assert own.endswith("/readlink") or "busybox" in own or "coreutils" in own
    shown = subprocess.run(["readlink", "/proc/self/exe"], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == own  # the control
