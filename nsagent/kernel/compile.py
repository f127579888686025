"""Compile bpf/*.c into an object, as a short-lived child: the only place that imports bcc, and with it LLVM.

    python3 -I compile.py < request.json > object.json

runs under an interpreter that has the distribution's bcc and otherwise only the standard library. It reads the kernel's BTF,
gives up its privileges (compiling needs none, because the maps are markers and not BCC tables), compiles, and writes the
instructions with their map references as symbols: nothing in the object depends on a file descriptor.

Request: {"root": directory with the nsagent package, "btf": path, "sources": {file name: text}, "machine", "subsystem": or null,
"build_id", "source": hash to be carried along, "uid": to become}. Exit status: 0; 3 no bcc here; 1 with the cause in the last
line of standard error.
"""

from __future__ import annotations

import base64
import ctypes
import json
import os
import struct
import sys
import tempfile
from typing import Any, NamedTuple

NO_BCC = 3


class Program(NamedTuple):
    """A program of the object: the C function it is, its group, its type, how it is attached and to what.

    With `same_as` it is one more attachment of that program, with no instructions of its own.
    """

    name: str
    function: str
    group: str
    type: str
    attach: str
    target: str = ""
    same_as: str = ""


_FORKS = {"x86_64": ("fork", "vfork", "clone", "clone3"), "aarch64": ("clone", "clone3")}
_CHANGES = ("unshare", "setns")
# The functions of the calls: what a syscall tracepoint's sys_enter_X is to all calls, these are to one.
_FUNCTIONS = {"x86_64": "__x64_sys_", "aarch64": "__arm64_sys_"}


def list_programs(machine: str) -> list[Program]:
    """Return all programs in the order they are attached.

    Birth first: nobody is met unborn. Of the calls the ends first: none is left open. Which call it was its entry has noted, so
    one program serves several tracepoints; a fexit program is bound to its function when it is loaded.
    """
    programs = [
        Program("find_cpu_offset", "find_cpu_offset", "account", "raw_tracepoint", "none"),
        Program("fold_row", "fold_row", "account", "raw_tracepoint", "none"),
        Program("on_birth", "on_birth", "account", "tracing", "tp_btf", "task_newtask"),
        Program("on_move", "on_move", "account", "tracing", "tp_btf", "cgroup_attach_task"),
        Program("on_exec", "on_exec", "account", "tracing", "tp_btf", "sched_process_exec"),
        Program("on_exit", "on_exit", "account", "tracing", "tp_btf", "sched_process_exit"),
        Program("on_free", "on_free", "account", "tracing", "tp_btf", "sched_process_free"),
        Program("on_pass", "on_pass", "account", "tracing", "iter", "task"),
        Program("on_cgroup_mkdir", "on_cgroup_mkdir", "cgroups", "tracing", "tp_btf", "cgroup_mkdir"),
        Program("on_cgroup_rmdir", "on_cgroup_rmdir", "cgroups", "tracing", "tp_btf", "cgroup_rmdir"),
    ]
    programs.append(Program("on_oom_kill", "on_oom_kill", "oom", "tracing", "tp_btf", "mark_victim"))
    programs.append(Program("on_cgroup", "on_cgroup", "cgroups", "tracing", "iter_of", "cgroup"))
    ends = [(call, "fork") for call in _FORKS[machine]] + [(call, "change") for call in _CHANGES]
    first: dict[str, str] = {}
    for call, kind in ends:
        name = f"leave_{call}"
        target = f"syscalls/sys_exit_{call}"
        same_as = first.setdefault(kind, name)
        same_as = "" if same_as == name else same_as
        programs.append(Program(name, f"leave_{kind}", "trace_tracepoints", "tracepoint", "tracepoint", target, same_as))
    for call, _ in ends:
        name = f"enter_{call}"
        programs.append(Program(name, name, "trace_tracepoints", "tracepoint", "tracepoint", f"syscalls/sys_enter_{call}"))
    if prefix := _FUNCTIONS.get(machine):
        for call, kind in ends:
            programs.append(Program(f"fexit_{call}", f"fexit_{kind}", "trace_functions", "tracing", "fexit", prefix + call))
        for call, _ in ends:
            programs.append(Program(f"fentry_{call}", f"fentry_{call}", "trace_functions", "tracing", "fentry", prefix + call))
    return programs


# In the order of enum nsagent_map of bpf/common.h: a marker carries the index.
MAPS = ("tasks", "ids", "rows", "spare", "config", "stats", "generations", "events", "syscalls", "namespace_syscalls",
        "cpu_offsets", "here", "rates", "notes", "leaving", "cgroup_events",
        "cgroup_scratch", "lane", "oom_kills", "seen")  # fmt: skip

_MARKER = 0x4E53410000004D41
_LD_IMM64, _CALL, _PSEUDO_KFUNC = 0x18, 0x85, 0x20
_KFUNC_CALLS = {90001: "bpf_iter_task_new", 90002: "bpf_iter_task_next", 90003: "bpf_iter_task_destroy"}


def relocate(name: str, code: bytes, kfuncs: dict[str, int]) -> tuple[bytes, list[tuple[int, str]]]:
    """Find the map markers of a program and turn the kfunc numbers into calls by BTF id.

    Returns the instructions and, for each map reference, (index of its ld_imm64, map name).
    """
    out, relocations, at = bytearray(code), [], 0
    while at < len(code):
        opcode, _, _, immediate = struct.unpack_from("<BBhi", code, at)
        if opcode == _LD_IMM64:
            value = immediate & 0xFFFFFFFF | struct.unpack_from("<I", code, at + 12)[0] << 32
            if value & 0xFFFFFF00FFFFFFFF == _MARKER:
                relocations.append((at // 8, MAPS[value >> 32 & 0xFF]))
            at += 16
            continue
        if opcode == _CALL and immediate in _KFUNC_CALLS:
            out[at + 1] = out[at + 1] & 0x0F | _PSEUDO_KFUNC
            struct.pack_into("<i", out, at + 4, kfuncs[_KFUNC_CALLS[immediate]])
        at += 8
    return bytes(out), relocations


def _drop_privileges(uid: int) -> None:
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def find_target(btf: Any, typedef: int, function: int, program: Program) -> int:
    """Return the BTF id a tracing program is bound to; 0 where this kernel has none, or none is needed.

    tp_btf: the typedef btf_trace_X; an iterator: the function bpf_iter_X; fentry and fexit: the function itself. For a call
    without arguments (fork, vfork) that is __do_sys_X on x86-64: __x64_sys_X is its alias, and BTF has no aliases
    (arch/x86/include/asm/syscall_wrapper.h, __SYS_STUB0).
    """
    keys = {
        "tp_btf": [(typedef, f"btf_trace_{program.target}")],
        "iter": [(function, f"bpf_iter_{program.target}")],
        "iter_of": [(function, f"bpf_iter_{program.target}")],
        "fentry": (functions := [(function, program.target), (function, "__do_sys_" + program.target.rpartition("_sys_")[2])]),
        "fexit": functions,
    }.get(program.attach, [])
    return next((int(btf.ids[key]) for key in keys if key in btf.ids), 0)


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Compile what the request asks for, as the user that it names where this is root."""
    sys.path.insert(0, request["root"])
    from nsagent.kernel import btf as btf_module
    from nsagent.kernel import headers

    with open(request["btf"], "rb") as file:
        btf = btf_module.Btf(file.read(), request["btf"])
    projection = headers.project(btf)
    wanted = list_programs(request["machine"])
    ids = {program.name: find_target(btf, btf_module.TYPEDEF, btf_module.FUNC, program) for program in wanted}
    missing = dict(projection.missing)
    absent = {program.name: program for program in wanted if program.type == "tracing" and not ids[program.name]}
    if any(program.group == "trace_functions" for program in absent.values()):
        absent |= {program.name: program for program in wanted if program.group == "trace_functions"}  # all or none
    if "cgroup_ends" in missing or any(program.group == "cgroups" for program in absent.values()):
        absent |= {program.name: program for program in wanted if program.group == "cgroups"}
        missing.setdefault("cgroup_ends", "this kernel has no tracepoints cgroup_mkdir and cgroup_rmdir")
    if "oom_kills" in missing or "on_oom_kill" in absent:
        absent |= {program.name: program for program in wanted if program.group == "oom"}
        missing.setdefault("oom_kills", "this kernel has no tracepoint mark_victim")
    for name, program in absent.items():
        if program.group == "account":
            missing[name] = f"this kernel has no {program.target} to attach to"
    if os.geteuid() == 0 and request["uid"]:
        _drop_privileges(request["uid"])
    with tempfile.TemporaryDirectory(prefix="nsagent-") as tree:
        headers.write_tree(tree, projection.text, os.uname().machine)  # BCC looks for its own machine's
        sys.path.pop(0)
        programs, compiler = _compile(request, tree, [p for p in wanted if p.name not in absent], ids, projection.kfuncs)
    return {
        "build_id": request["build_id"],
        "source": request["source"],
        "compiler": compiler,
        "programs": programs,
        "missing": missing,
    }


def _compile(
    request: dict[str, Any], tree: str, wanted: list[Program], ids: dict[str, int], kfuncs: dict[str, int]
) -> tuple[list[dict[str, Any]], str]:
    """Return the programs `wanted`, compiled against the headers in `tree`, and what compiled them."""
    os.environ["BCC_KERNEL_SOURCE"] = tree
    try:
        import bcc
        from bcc import BPF
    except ImportError:
        sys.exit(NO_BCC)
    sources: dict[str, str] = request["sources"]
    for name, text in sources.items():
        with open(os.path.join(tree, name), "w", encoding="utf-8") as out:
            out.write(text)
    flags = [
        f"-I{tree}",
        "-Wno-unused-function",
        "-Wno-address-of-packed-member",
        "-Werror=implicit-function-declaration",
    ]
    if request["subsystem"]:
        flags.append(f"-DNSAGENT_SUBSYS=NSAGENT_{request['subsystem']}_cgrp_id")
    # BCC gives a section, and so a program, only to functions of the main text: the .c files are joined, headers included.
    module = BPF(text="\n".join(sources[name] for name in sorted(sources) if name.endswith(".c")), cflags=flags)
    programs: list[dict[str, Any]] = []
    for program in wanted:
        record: dict[str, Any] = program._asdict() | {"btf_id": ids[program.name], "insns": "", "relocations": []}
        del record["function"]
        if not program.same_as:
            code, record["relocations"] = relocate(program.name, module.dump_func(program.function.encode()), kfuncs)
            record["insns"] = base64.b64encode(code).decode()
        programs.append(record)
    return programs, f"bcc {bcc.__version__}"


def main() -> None:
    """Read a request from standard input and write the object to standard output."""
    request = json.load(sys.stdin)
    # The compiler is fed by us alone, but a descriptor it prints to must not be the one the object goes to.
    result = os.dup(1)
    os.dup2(2, 1)
    document = json.dumps(build(request))
    with open(result, "w", encoding="ascii") as out:
        out.write(document)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL: never outlive the agent
    try:
        main()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
