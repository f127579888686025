"""Capabilities by name, and the seccomp filters: what the compiled program answers to a call, and that it is kept."""

from __future__ import annotations

import errno
import json
import os
import platform
from pathlib import Path

import pytest

from nsagent.errors import AccessError, UnsupportedError, UsageError
from nsagent.launch import plan, prepare, profile, seccomp, security
from nsagent.launch.security import ALL, DEFAULT, Security, mask, parse_capabilities
from nsagent.launch.spec import RunSpec, read_capabilities
from nsagent.namespaces import NamespaceKind
from tests.unit.cbpf import ALLOW, I386, errno_of, run
from tests.unit.test_launch_filesystem import V2

pytestmark = pytest.mark.skipif(platform.machine() != "x86_64", reason="numbers of x86-64")

READ, CLONE, UNSHARE, SOCKET, PERSONALITY, MOUNT, ADD_KEY, IO_URING, CLONE3 = 0, 56, 272, 41, 135, 165, 248, 425, 435


def test_capabilities_by_name() -> None:
    assert parse_capabilities(["SYS_ADMIN", "cap_net_raw,mknod"], "--cap-add") == 1 << 21 | 1 << 13 | 1 << 27
    assert parse_capabilities(["all"], "--cap-add") == ALL == (1 << 41) - 1
    with pytest.raises(UsageError) as refused:
        parse_capabilities(["ADMIN"], "--cap-add")
    assert "SYS_ADMIN" in refused.value.hint


def test_what_is_kept() -> None:
    assert DEFAULT == 0xA80425FB  # what a container of docker has in CapEff
    admin = mask(["SYS_ADMIN"])
    assert Security().capabilities == DEFAULT
    assert Security(cap_add=admin).capabilities == DEFAULT | admin
    assert Security(cap_drop=mask(["MKNOD"])).capabilities == DEFAULT & ~(1 << 27)
    assert Security(cap_drop=ALL, cap_add=admin).capabilities == admin
    assert Security(cap_add=ALL, cap_drop=admin).capabilities == ALL & ~admin
    assert Security(privileged=True).capabilities == ALL
    assert [s.filtered for s in (Security(), Security(privileged=True), Security(seccomp="unconfined"))] == [True, False, False]
    assert Security(privileged=True, seccomp="/p.json").filtered


def test_a_capability_that_is_not_to_be_had() -> None:
    lacking = ALL & ~read_capabilities()
    if not lacking:
        pytest.skip("this process has all capabilities")
    asked = Security(cap_add=lacking & -lacking, seccomp="unconfined")
    with pytest.raises(AccessError, match="--cap-add"):
        prepare.confinement(RunSpec(argv=("true",), security=asked), "/nonexistent", [])
    prepare.confinement(RunSpec(argv=("true",), security=asked, isolate=frozenset({NamespaceKind.USER})), "/nonexistent", [])


def test_the_default_filter() -> None:
    program = profile.compile_profile("", DEFAULT)
    for number in (READ, CLONE, SOCKET, PERSONALITY):
        assert run(program, number) == ALLOW
    for number in (UNSHARE, MOUNT, ADD_KEY, IO_URING):
        assert errno_of(run(program, number)) == errno.EPERM
    new_user = 0x10000000
    assert errno_of(run(program, CLONE, (new_user | 17,))) == errno.EPERM
    assert errno_of(run(program, CLONE3)) == errno.ENOSYS
    assert [errno_of(run(program, SOCKET, (family,))) for family in (38, 40)] == [errno.EPERM] * 2
    assert run(program, SOCKET, (39,)) == ALLOW
    assert errno_of(run(program, PERSONALITY, (0x0400000,))) == errno.EPERM  # ADDR_NO_RANDOMIZE
    assert errno_of(run(program, 467)) == errno_of(run(program, 0x3FFFFFFF)) == errno.ENOSYS
    assert run(program, 0x40000000) == ALLOW, "read of x32"
    assert errno_of(run(program, 310, arch=I386)) == errno.EPERM, "unshare of i386"
    assert run(program, 3, arch=I386) == ALLOW
    assert run(program, READ, arch=0xC00000B7) == 0, "a foreign architecture is killed"


def test_a_capability_opens_its_calls() -> None:
    program = profile.compile_profile("", DEFAULT | mask(["SYS_ADMIN"]))
    for number in (UNSHARE, MOUNT, CLONE3):
        assert run(program, number) == ALLOW
    assert run(program, CLONE, (0x10000000,)) == ALLOW
    assert errno_of(run(program, ADD_KEY)) == errno.EPERM


def write(path: Path, **profile_: object) -> str:
    path.write_text(json.dumps(profile_))
    return str(path)


def test_a_profile_of_ones_own(tmp_path: Path) -> None:
    path = write(
        tmp_path / "p.json",
        defaultAction="SCMP_ACT_ALLOW",
        architectures=["SCMP_ARCH_X86_64"],
        syscalls=[
            {"names": ["getpid", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99},
            {"name": "mount", "action": "SCMP_ACT_KILL_PROCESS"},
            {"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
            {"names": ["chroot"], "action": "SCMP_ACT_ERRNO", "excludes": {"arches": ["amd64"]}},
            {"names": ["swapon"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "99.0"}},
            {"names": ["swapoff"], "action": "SCMP_ACT_ERRNO", "includes": {"minKernel": "3.0", "arches": ["amd64"]}},
            {"names": ["dup2"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 2, "op": "SCMP_CMP_GE"}]},
        ],
    )
    program = profile.compile_profile(path, DEFAULT)
    assert errno_of(run(program, 39)) == 99
    assert run(program, MOUNT) == 0x80000000
    assert [run(program, number) for number in (UNSHARE, 161, 167)] == [ALLOW] * 3
    assert errno_of(run(program, 168)) == errno.EPERM
    assert run(program, 33, (0, 1)) == ALLOW
    assert errno_of(run(program, 33, (0, 2))) == errno.EPERM
    assert errno_of(run(profile.compile_profile(path, ALL), UNSHARE)) == errno.EPERM


def test_no_profile(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    path.write_text("{")
    with pytest.raises(UsageError, match=r"p\.json: not JSON: .*line 1"):
        profile.compile_profile(str(path), DEFAULT)
    for wrong in ({}, {"defaultAction": "ALLOW_ALL"}, {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["read"]}]}):
        with pytest.raises(UsageError):
            profile.compile_profile(write(tmp_path / "q.json", **wrong), DEFAULT)
    with pytest.raises(UsageError):
        security.parse_seccomp(str(tmp_path / "missing"))


def test_a_program_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = seccomp.program(Security(), str(tmp_path))
    (kept,) = (tmp_path / "seccomp").iterdir()
    assert kept.read_bytes() == first
    calls: list[str] = []

    def compile_again(path: str, capabilities: int) -> bytes:
        calls.append(path)
        return b"\0" * 8

    monkeypatch.setattr(profile, "compile_profile", compile_again)
    assert seccomp.program(Security(), str(tmp_path)) == first
    assert calls == []
    seccomp.program(Security(cap_add=ALL), str(tmp_path))  # other capabilities, another program
    assert calls == [""]
    kept.chmod(0o666)  # others could have written it
    assert seccomp.program(Security(), str(tmp_path)) != first


def test_without_the_library_the_default_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: str, capabilities: int) -> bytes:
        raise UnsupportedError("seccomp filter", "no module named pyseccomp", hint="install it")

    monkeypatch.setattr(profile, "compile_profile", missing)
    notes: list[str] = []
    assert prepare.confinement(RunSpec(argv=("true",)), str(tmp_path), notes).filter is None
    assert "no module named pyseccomp" in notes[0]
    asked = write(tmp_path / "p.json", defaultAction="SCMP_ACT_ALLOW")
    with pytest.raises(UnsupportedError):
        prepare.confinement(RunSpec(argv=("true",), security=Security(seccomp=asked)), str(tmp_path), notes)


def test_the_plan_has_it() -> None:
    text = plan.describe(RunSpec(argv=("true",)), V2)
    assert "SYS_CHROOT" in text
    assert "SYS_ADMIN" not in text
    assert "unconfined" in plan.describe(RunSpec(argv=("true",), security=Security(privileged=True)), V2)
    assert os.path.exists(profile.__file__)
