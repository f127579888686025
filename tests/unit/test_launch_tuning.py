"""Rlimits in docker's words, and what of the limits a host has."""

from __future__ import annotations

import resource
import struct

import pytest

from nsagent.cgroups import v1, v2
from nsagent.cgroups.device_policy import BASIC, DeviceRule, program, rules_of
from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.limits import UNLIMITED, Limits
from nsagent.cgroups.plan import feasible
from nsagent.errors import AccessError, UnsupportedError, UsageError
from nsagent.launch import tuning
from nsagent.launch.tuning import Tuning, Ulimit

EVERYTHING = frozenset({"memory", "cpu", "pids"})


def test_rlimits() -> None:
    assert tuning.parse_ulimit("nofile=1024") == ("nofile", 1024, 1024)
    assert tuning.parse_ulimit("core=0:unlimited") == ("core", 0, resource.RLIM_INFINITY)
    assert tuning.parse_ulimit("as=1G:-1") == ("as", 1 << 30, resource.RLIM_INFINITY)
    for wrong in ("nofile", "nofile=", "nofile=2:1", "core=unlimited:5", "nproc=1k", "files=1", "cpu=-5"):
        with pytest.raises(UsageError):
            tuning.parse_ulimit(wrong)
    named = {name[7:].lower(): number for name, number in vars(resource).items() if name.startswith("RLIMIT_")}
    named.pop("ofile", None)
    assert {name: number for name, number in tuning.RESOURCES.items() if name in named} == named


def test_a_hard_limit_above_ours() -> None:
    most = resource.getrlimit(resource.RLIMIT_SIGPENDING)[1]
    if most == resource.RLIM_INFINITY:
        pytest.skip("nothing is above it")
    asked = Tuning((Ulimit("sigpending", 1, resource.RLIM_INFINITY),))
    with pytest.raises(AccessError):
        tuning.feasible(asked, 0, best_effort=False)
    had, (note,) = tuning.feasible(asked, 0, best_effort=True)
    assert had.ulimits == (("sigpending", 1, most),)
    assert "--ulimit sigpending=1:unlimited" in note
    assert tuning.feasible(asked, 1 << 24, best_effort=False) == (asked, [])


def test_swap_and_high() -> None:
    both = Limits(memory_bytes=1 << 26, swap_bytes=1 << 25, memory_high_bytes=1 << 20)
    two = {setting.file: setting.value for setting in v2.settings(both, EVERYTHING)}
    assert two == {"memory.max": str(1 << 26), "memory.swap.max": str(1 << 25), "memory.high": str(1 << 20)}
    any_swap = Limits(memory_bytes=1 << 26, swap_bytes=UNLIMITED)
    assert [s.value for s in v2.settings(any_swap, EVERYTHING)] == [str(1 << 26), "max"]
    assert [s.value for s in v1.settings(any_swap, EVERYTHING)] == ["-1", str(1 << 26)]
    with pytest.raises(UnsupportedError, match="--memory-high"):
        v1.settings(both, EVERYTHING)


def test_what_a_host_has() -> None:
    layout = Layout((Hierarchy(1, "/m", frozenset({"memory"})), Hierarchy(2, "/u", frozenset({"pids"}))))
    asked = Limits(cpus=1, memory_bytes=1 << 20, swap_bytes=5, memory_high_bytes=1 << 20, pids=7)
    had, refused = feasible(layout, asked)
    assert had == Limits(memory_bytes=1 << 20, swap_bytes=5, pids=7)
    assert [reason.partition(":")[0] for reason in refused] == ["--cpus", "--memory-high"]
    assert feasible(Layout(layout.hierarchies[1:]), asked)[0] == Limits(pids=7)
    with pytest.raises(UsageError):
        feasible(layout, Limits(pids=0))


def _decide(code: bytes, context: tuple[int, int, int]) -> int:
    """Run a device program: of its instructions, those that are in it."""
    registers, position = [0] * 11, 0
    while True:
        opcode, pair, offset, value = struct.unpack_from("=BBhi", code, position * 8)
        left, right = pair & 15, pair >> 4
        position += 1
        match opcode:
            case 0x61:
                registers[left] = context[offset // 4]
            case 0xBF:
                registers[left] = registers[right]
            case 0x77:
                registers[left] >>= value
            case 0x57:
                registers[left] &= value
            case 0x55:
                position += offset if registers[left] != value else 0
            case 0xB7:
                registers[left] = value
            case 0x95:
                return registers[0]
            case _:
                raise AssertionError(f"no instruction {opcode:#x}")


def test_the_device_program() -> None:
    code = program((*BASIC, DeviceRule("b", 254, 0)))
    read, write, mknod = 2, 4, 1
    char, block = 2, 1
    for access, kind, major, minor, allowed in (
        (read | write, char, 1, 3, 1),
        (read, char, 136, 77, 1),
        (read, char, 1, 11, 0),
        (read, char, 254, 0, 0),
        (read, block, 254, 0, 1),
        (write, block, 254, 1, 0),
        (mknod, block, 8, 0, 1),
        (mknod | read, block, 8, 0, 0),
    ):
        assert _decide(code, (access << 16 | kind, major, minor)) == allowed, (access, kind, major, minor)
    assert str(DeviceRule("c", 136, None)) == "c 136:* rwm"
    assert rules_of(["/dev/null", "/etc/passwd", "/no/such"]) == (("c", 1, 3),)


def test_the_device_rules_of_v1() -> None:
    settings = v1.settings(Limits(devices=BASIC[:1]), frozenset({"devices"}))
    assert [(s.file, s.value) for s in settings] == [
        ("devices.deny", "a"),
        ("devices.allow", "c *:* m"),
        ("devices.allow", "b *:* m"),
        ("devices.allow", "c 1:3 rwm"),
    ]
