"""An assembler for the few BPF instructions the loader's tests need, and real programs written in it.

Source: Documentation/bpf/standardization/instruction-set.rst.
"""

from __future__ import annotations

import base64
import functools
import json
import struct
from pathlib import Path
from typing import Any

from nsagent.kernel.abi import ABI_VERSION
from nsagent.kernel.btf import FUNC, STRUCT, TYPEDEF, Btf
from nsagent.kernel.objects import kernel_build_id

Insn = bytes | str | tuple[str, bytes] | tuple[str, str]

MAP_LOOKUP, PID_TGID, RINGBUF_OUTPUT, STORAGE_GET = 1, 14, 130, 156
RINGBUF_RESERVE, RINGBUF_SUBMIT, RINGBUF_DISCARD = 131, 132, 133
CFG, COUNTS = ("cfg", "counts")


def op(code: int, dst: int = 0, src: int = 0, off: int = 0, imm: int = 0) -> bytes:
    return struct.pack("=BBhi", code, src << 4 | dst, off, imm)


def mov(dst: int, imm: int) -> bytes:
    return op(0xB7, dst, imm=imm)


def move(dst: int, src: int) -> bytes:
    return op(0xBF, dst, src)


def add(dst: int, imm: int) -> bytes:
    return op(0x07, dst, imm=imm)


def load64(dst: int, src: int, off: int) -> bytes:
    return op(0x79, dst, src, off)


def load32(dst: int, src: int, off: int) -> bytes:
    return op(0x61, dst, src, off)


def store64(dst: int, off: int, src: int) -> bytes:
    return op(0x7B, dst, src, off)


def store32(dst: int, off: int, imm: int) -> bytes:
    return op(0x62, dst, off=off, imm=imm)


def call(helper: int) -> bytes:
    return op(0x85, imm=helper)


def fetch_add64(dst: int, src: int) -> bytes:
    return op(0xDB, dst, src, imm=1)


def out_if_zero(reg: int) -> tuple[str, bytes]:
    return "out", op(0x15, reg)


def out_if_differ(a: int, b: int) -> tuple[str, bytes]:
    return "out", op(0x5D, a, b)


def map_in(dst: int, name: str) -> tuple[str, str]:
    return name, f"r{dst}"


def assemble(body: list[Any]) -> tuple[bytes, list[list[Any]]]:
    """Return instructions and relocations: jumps go to the shared end `r0 = 0; exit`, maps become marker constants."""
    code, relocations, jumps = bytearray(), [], []
    for item in body:
        if isinstance(item, bytes):
            code += item
        elif isinstance(item[1], bytes):
            jumps.append(len(code))
            code += item[1]
        else:
            relocations.append([len(code) // 8, item[0]])
            code += op(0x18, int(item[1][1:]), imm=0x4D415053) + op(0, imm=0x7)
    for at in jumps:
        struct.pack_into("=h", code, at + 2, (len(code) - at) // 8 - 1)
    return bytes(code + mov(0, 0) + op(0x95)), relocations


def element(map_name: str, index: int) -> list[Any]:
    """Leave the address of an array's element in r0, or leave the program."""
    return [store32(10, -4, index), map_in(1, map_name), move(2, 10), add(2, -4), call(MAP_LOOKUP), out_if_zero(0)]


def bump(index: int, by: int | None = None) -> list[Any]:
    """counts[index] += r8, or a constant; the sum before is in r1."""
    head = [mov(8, by)] if by is not None else []
    return [*head, *element(COUNTS, index), move(1, 8), fetch_add64(0, 1)]


def only_for(reg: int) -> list[Any]:
    """Go on only if `reg` (callee saved) equals cfg[0]."""
    return [*element(CFG, 0), load64(7, 0, 0), out_if_differ(reg, 7)]


@functools.cache
def vmlinux() -> Btf:
    return Btf(Path("/sys/kernel/btf/vmlinux").read_bytes())


def _offset(member: str) -> int:
    found = vmlinux().member(vmlinux().ids[STRUCT, "task_struct"], member)
    assert found is not None
    return found.bit_offset // 8


def _parent_of(reg: int) -> list[bytes]:
    """r6 = reg->real_parent->tgid, by trusted loads."""
    return [load64(6, reg, _offset("real_parent")), load32(6, 6, _offset("tgid"))]


def on_exit() -> list[Any]:
    """tp_btf sched_process_exit: counts[0] += 1 for each child of the process cfg[0]."""
    return [load64(9, 1, 0), *_parent_of(9), *only_for(6), *bump(0, 1)]


def on_call(record_bytes: int = 40) -> list[Any]:
    """A syscalls: tracepoint: for each call by cfg[0] a record full of its number; counts[2] += 1 if it did not fit."""
    fill = [store64(10, -8 - at, 1) for at in range(0, record_bytes, 8)]
    return [
        call(PID_TGID),
        move(6, 0),
        op(0x77, 6, imm=32),
        *only_for(6),
        *bump(1, 1),
        *fill,
        map_in(1, "events"),
        move(2, 10),
        add(2, -record_bytes),
        mov(3, record_bytes),
        mov(4, 0),
        call(RINGBUF_OUTPUT),
        out_if_zero(0),
        *bump(2, 1),
    ]


def on_task() -> list[Any]:
    """iter/task: for each child of cfg[0], storage += 1 and counts[3] += storage."""
    return [
        load64(9, 1, 8),
        out_if_zero(9),
        *_parent_of(9),
        *only_for(6),
        map_in(1, "tasks"),
        move(2, 9),
        mov(3, 0),
        mov(4, 1),  # BPF_LOCAL_STORAGE_GET_F_CREATE
        call(STORAGE_GET),
        out_if_zero(0),
        load64(8, 0, 0),
        add(8, 1),
        store64(0, 0, 8),
        *bump(3),
    ]


def on_call_reserving() -> list[Any]:
    """Like on_call by reserve: each even call's record (16 bytes) is submitted, each odd one's discarded."""
    return [
        call(PID_TGID),
        move(6, 0),
        op(0x77, 6, imm=32),
        *only_for(6),
        *bump(1, 1),
        move(8, 1),
        map_in(1, "events"),
        mov(2, 16),
        mov(3, 0),
        call(RINGBUF_RESERVE),
        out_if_zero(0),
        store64(0, 0, 8),
        store64(0, 8, 8),
        move(1, 0),
        mov(2, 0),
        op(0x57, 8, imm=1),
        op(0x15, 8, off=2),  # even: over the next two
        call(RINGBUF_DISCARD),
        op(0x05, off=1),
        call(RINGBUF_SUBMIT),
    ]


def program(name: str, attach: str, target: str, body: list[Any], *, btf_id: int = 0, group: str = "account") -> dict[str, Any]:
    insns, relocations = assemble(body)
    return {
        "name": name,
        "group": group,
        "type": "tracepoint" if attach == "tracepoint" else "tracing",
        "attach": attach,
        "target": target,
        "btf_id": btf_id,
        "insns": base64.b64encode(insns).decode(),
        "relocations": relocations,
    }


def exit_program() -> dict[str, Any]:
    btf_id = vmlinux().ids[TYPEDEF, "btf_trace_sched_process_exit"]
    return program("on_exit", "tp_btf", "sched_process_exit", on_exit(), btf_id=btf_id)


def document(ring_bytes: int = 1 << 16, source: str = "5a" * 32) -> dict[str, Any]:
    """An object of four programs in two groups, for the running kernel."""
    maps = {
        "cfg": {"type": "array", "key_size": 4, "value_size": 8, "max_entries": 1},
        "counts": {"type": "array", "key_size": 4, "value_size": 8, "max_entries": 4, "flags": ["mmapable"]},
        "tasks": {"type": "task_storage", "key_size": 4, "value_size": 16, "max_entries": 0, "flags": ["no_prealloc"]},
        "events": {"type": "ringbuf", "max_entries": ring_bytes},
        "spare": {"type": "queue", "value_size": 4, "max_entries": 3},
        "seen": {"type": "hash", "key_size": 8, "value_size": 8, "max_entries": 64},
        "recent": {"type": "lru_hash", "key_size": 8, "value_size": 8, "max_entries": 64},
        "percpu": {"type": "percpu_array", "key_size": 4, "value_size": 4, "max_entries": 2},
    }
    programs = [
        exit_program(),
        program("on_task", "iter", "task", on_task(), btf_id=vmlinux().ids[FUNC, "bpf_iter_task"]),
        program("on_call", "tracepoint", "syscalls/sys_enter_getpgid", on_call(), group="trace"),
    ]
    return {
        "abi": ABI_VERSION,
        "build_id": kernel_build_id(),
        "source": source,
        "compiler": "tests/kernel/bpf_asm.py",
        "maps": maps,
        "programs": programs,
        "missing": {},
    }


def encoded(value: dict[str, Any]) -> bytes:
    return json.dumps(value).encode()
