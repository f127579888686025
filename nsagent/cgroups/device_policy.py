"""Which devices the processes of a cgroup may open: rules as v1's devices.allow takes them, and as a BPF program on v2.

Sources: Documentation/admin-guide/cgroup-v1/devices.rst; include/uapi/linux/bpf.h, kernel/bpf/cgroup.c
(BPF_PROG_TYPE_CGROUP_DEVICE, since Linux kernel commit ebc614f68736 (in v4.15)). Making a node is left to CAP_MKNOD: it is
opening one that reaches a device.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from nsagent import libc

_PROG_LOAD: Final = 5
_PROG_ATTACH: Final = 8
_PROG_QUERY: Final = 16
_TYPE_CGROUP_DEVICE: Final = 15
_CGROUP_DEVICE: Final = 6
_ALLOW_MULTI: Final = 2
_MKNOD: Final = 1
_TYPES: Final = {"b": 1, "c": 2}  # BPF_DEVCG_DEV_BLOCK, _CHAR
_LDX_W, _MOV, _RSH, _AND, _JNE, _MOV_IMM, _EXIT = 0x61, 0xBF, 0x77, 0x57, 0x55, 0xB7, 0x95


class DeviceRule(NamedTuple):
    """`type` c or b, and number of devices that may be read and written; `minor` None is any."""

    type: str
    major: int
    minor: int | None

    def __str__(self) -> str:
        return f"{self.type} {self.major}:{'*' if self.minor is None else self.minor} rwm"


# null, zero, full, random, urandom, tty, console, ptmx, and terminals: Documentation/admin-guide/devices.txt
BASIC: Final = (
    *(DeviceRule("c", 1, minor) for minor in (3, 5, 7, 8, 9)),
    *(DeviceRule("c", 5, minor) for minor in (0, 1, 2)),
    DeviceRule("c", 136, None),
)
MKNOD: Final = ("c *:* m", "b *:* m")


def rules_of(paths: Iterable[str]) -> tuple[DeviceRule, ...]:
    """Return a rule for each of `paths` that is a device; the others are left out."""
    rules = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            continue
        kind = "c" if stat.S_ISCHR(status.st_mode) else "b" if stat.S_ISBLK(status.st_mode) else ""
        if kind:
            rules.append(DeviceRule(kind, os.major(status.st_rdev), os.minor(status.st_rdev)))
    return tuple(rules)


def program(rules: Iterable[DeviceRule]) -> bytes:
    """Return the BPF program that lets `rules` and any mknod(2) pass, as struct bpf_insn."""

    def insn(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
        return struct.pack("=BBhi", code, dst | src << 4, off, imm)

    allow = insn(_MOV_IMM, 0, imm=1) + insn(_EXIT)
    code = insn(_LDX_W, 2, 1, 0) + insn(_MOV, 3, 2) + insn(_RSH, 3, imm=16) + insn(_AND, 2, imm=0xFFFF)
    code += insn(_LDX_W, 4, 1, 4) + insn(_LDX_W, 5, 1, 8)  # struct bpf_cgroup_dev_ctx: access << 16 | type, major, minor
    code += insn(_JNE, 3, off=2, imm=_MKNOD) + allow
    for rule in rules:
        tests = [(2, _TYPES[rule.type]), (4, rule.major), *([] if rule.minor is None else [(5, rule.minor)])]
        for left, (register, value) in zip(range(len(tests) - 1, -1, -1), tests, strict=True):
            code += insn(_JNE, register, off=left + 2, imm=value)
        code += allow
    return code + insn(_MOV_IMM, 0, imm=0) + insn(_EXIT)


def attach(cgroup: int, rules: Iterable[DeviceRule]) -> None:
    """Put the program on the v2 cgroup behind a descriptor; it goes with the cgroup. Raises OSError (EPERM, EINVAL)."""
    code = program(rules)
    instructions, license_ = ctypes.create_string_buffer(code, len(code)), ctypes.create_string_buffer(b"GPL")
    load = struct.pack(
        "=IIQQ100x", _TYPE_CGROUP_DEVICE, len(code) // 8, ctypes.addressof(instructions), ctypes.addressof(license_)
    )
    fd = libc.raw_syscall("bpf", _PROG_LOAD, load, len(load))
    try:
        target = struct.pack("=IIII", cgroup, fd, _CGROUP_DEVICE, _ALLOW_MULTI)
        libc.raw_syscall("bpf", _PROG_ATTACH, target, len(target))
    finally:
        os.close(fd)


def count(cgroup: int) -> int:
    """Return how many device programs are on a v2 cgroup. Raises OSError."""
    query = ctypes.create_string_buffer(struct.pack("=IIIIQI4x", cgroup, _CGROUP_DEVICE, 0, 0, 0, 0), 32)
    libc.raw_syscall("bpf", _PROG_QUERY, query, 32)
    return int(struct.unpack_from("=I", query.raw, 24)[0])
