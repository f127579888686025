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
from typing import Any

NO_BCC = 3

# name: (group, program type, how it is attached, to what)
PROGRAMS: dict[str, tuple[str, str, str, str]] = {
    "find_cpu_offset": ("account", "raw_tracepoint", "none", ""),
    "fold_row": ("account", "raw_tracepoint", "none", ""),
    "on_birth": ("account", "tracing", "tp_btf", "task_newtask"),  # first: nobody is met unborn
    "on_move": ("account", "tracing", "tp_btf", "cgroup_attach_task"),
    "on_exec": ("account", "tracing", "tp_btf", "sched_process_exec"),
    "on_exit": ("account", "tracing", "tp_btf", "sched_process_exit"),
    "on_free": ("account", "tracing", "tp_btf", "sched_process_free"),
    "on_pass": ("account", "tracing", "iter", "task"),
    # The ends first: no call is left open. Which call it was, the entry has noted, so one program serves several.
    "leave_fork": ("trace", "tracepoint", "tracepoint", "syscalls/sys_exit_fork"),
    "leave_change": ("trace", "tracepoint", "tracepoint", "syscalls/sys_exit_unshare"),
    **{
        f"enter_{call}": ("trace", "tracepoint", "tracepoint", f"syscalls/sys_enter_{call}")
        for call in ("clone", "clone3", "fork", "vfork", "unshare", "setns")
    },
}
# More attachments of a program: name: (the program, its target)
ALSO = {
    "leave_clone": ("leave_fork", "syscalls/sys_exit_clone"),
    "leave_clone3": ("leave_fork", "syscalls/sys_exit_clone3"),
    "leave_vfork": ("leave_fork", "syscalls/sys_exit_vfork"),
    "leave_setns": ("leave_change", "syscalls/sys_exit_setns"),
}

# In the order of enum nsagent_map of bpf/common.h: a marker carries the index.
MAPS = ("tasks", "ids", "rows", "spare", "config", "stats", "generations", "events", "syscalls", "namespace_syscalls",
        "children", "cpu_offsets", "here", "rates")  # fmt: skip

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


def _targets(btf: Any, kind: int, func: int) -> dict[str, int]:
    """BTF ids the verifier wants for a tp_btf program (typedef btf_trace_X) and an iterator (function bpf_iter_X)."""
    ids = {}
    for name, (_, _, attach, target) in PROGRAMS.items():
        if attach == "tp_btf":
            ids[name] = btf.ids.get((kind, f"btf_trace_{target}"), 0)
        elif attach == "iter":
            ids[name] = btf.ids.get((func, f"bpf_iter_{target}"), 0)
    return ids


def build(request: dict[str, Any], tree: str) -> dict[str, Any]:
    """Compile what the request asks for; `tree` is an empty directory this process owns."""
    sys.path.insert(0, request["root"])
    from nsagent.kernel import btf as btf_module
    from nsagent.kernel import headers

    with open(request["btf"], "rb") as file:
        btf = btf_module.Btf(file.read(), request["btf"])
    projection = headers.project(btf)
    headers.write_tree(tree, projection.text, request["machine"])
    ids = _targets(btf, btf_module.TYPEDEF, btf_module.FUNC)
    missing = dict(projection.missing)
    for name, btf_id in ids.items():
        if not btf_id:
            missing[name] = f"this kernel has no {PROGRAMS[name][3]} to attach to"
    sys.path.pop(0)
    if os.geteuid() == 0 and request["uid"]:
        for path, _, files in os.walk(tree):
            for entry in (path, *(os.path.join(path, file) for file in files)):
                os.chown(entry, request["uid"], request["uid"])
        _drop_privileges(request["uid"])

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
    for name, (group, kind, attach, target) in PROGRAMS.items():
        if name in missing:
            continue
        code, relocations = relocate(name, module.dump_func(name.encode()), projection.kfuncs)
        programs.append(
            {
                "name": name,
                "group": group,
                "type": kind,
                "attach": attach,
                "target": target,
                "btf_id": ids.get(name, 0),
                "insns": base64.b64encode(code).decode(),
                "relocations": relocations,
            }
        )
        for also, (program, where) in ALSO.items():
            if program == name:
                programs.append({**programs[-1], "name": also, "target": where, "same_as": name, "insns": "", "relocations": []})
    return {
        "build_id": request["build_id"],
        "source": request["source"],
        "compiler": f"bcc {bcc.__version__}",
        "programs": programs,
        "missing": missing,
    }


def main() -> None:
    """Read a request from standard input and write the object to standard output."""
    request = json.load(sys.stdin)
    # The compiler is fed by us alone, but a descriptor it prints to must not be the one the object goes to.
    result = os.dup(1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory(prefix="nsagent-") as tree:
        document = json.dumps(build(request, tree))
    with open(result, "w", encoding="ascii") as out:
        out.write(document)


if __name__ == "__main__":
    ctypes.CDLL(None).prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG, SIGKILL: never outlive the agent
    try:
        main()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(1)
