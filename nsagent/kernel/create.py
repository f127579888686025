"""Make one map, one program or one link of its specification, and say clearly why not.

Sources: kernel/bpf/syscall.c, kernel/bpf/bpf_local_storage.c (the BTF a storage needs), kernel/trace/trace_event_perf.c.
"""

from __future__ import annotations

import errno
import os
import re
import struct

from nsagent.errors import AccessError, LoadError, UnsupportedError
from nsagent.kernel import bpf, mounts
from nsagent.kernel.maps import Map
from nsagent.kernel.objfile import ATTACH, MapSpec, ProgramSpec


def create_map(name: str, spec: MapSpec) -> Map:
    """Create a map. Raises UnsupportedError (no such type in this kernel), AccessError, LoadError."""
    flags = sum(bpf.MAP_FLAGS[flag] for flag in set(spec.flags))
    btf = -1
    try:
        if spec.type == "task_storage":
            btf = bpf.btf_load(_storage_btf(spec.value_size))
            flags |= bpf.MAP_FLAGS["no_prealloc"]
        types = (btf, 1, 3) if btf >= 0 else (0, 0, 0)
        fd = bpf.map_create(
            bpf.MAP_TYPES[spec.type],
            name,
            key_size=spec.key_size,
            value_size=spec.value_size,
            max_entries=spec.max_entries,
            flags=flags,
            btf=types,
        )
    except OSError as exc:
        raise bpf.translate(exc, f"map {name} ({spec.type})") from exc
    finally:
        if btf >= 0:
            os.close(btf)
    return Map(fd, name)


def _storage_btf(value_bytes: int) -> bytes:
    """Return the least BTF task storage accepts: 1 = int, the key; 2 = u64; 3 = u64[value_bytes / 8], the value."""
    types = struct.pack("=4I", 1, 1 << 24, 4, 1 << 24 | 32)  # KIND_INT, signed, 32 bits
    types += struct.pack("=4I", 5, 1 << 24, 8, 64)
    types += struct.pack("=6I", 0, 3 << 24, 0, 2, 1, value_bytes // 8)  # KIND_ARRAY of 2, indexed by 1
    names = b"\0int\0u64\0"
    return struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names)) + types + names


def load_program(program: ProgramSpec, fds: dict[str, int]) -> int:
    """Load a program that uses the maps behind `fds`; return its descriptor.

    Raises:
        LoadError: the verifier refused it: its last word in the message, all of them in `log`.
        UnsupportedError, AccessError: it never came to the verifier.
    """
    attach_type = ATTACH[program.attach][1]
    try:
        return bpf.prog_load(
            bpf.PROG_TYPES[program.type],
            program.name,
            program.linked(fds),
            attach_type=attach_type,
            btf_id=program.btf_id,
        )
    except bpf.VerifierError as exc:
        what = f"program {program.name} ({program.attach} {program.target})"
        if exc.errno == errno.EPERM or not exc.log.strip():
            raise bpf.translate(exc, what) from exc
        raise LoadError(
            f"{what}: the verifier refused it: {_cause(exc.log)}",
            log=exc.log,
            hint="this kernel differs from those nsagent was tested on: please report it with the verifier's log",
        ) from exc


def _cause(text: str) -> str:
    """Return the verifier's last line that tells a cause: around it stand its summary and register states."""
    noise = re.compile(r"processed \d+ insns|verification time|stack depth|\d+: \(|mark_precise|R\d+(_w)?=")
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if not noise.match(line)), lines[-1] if lines else "no reason given")


def attach(program: ProgramSpec, fd: int) -> int:
    """Attach the program behind `fd` to its target; return the link. Raises UnsupportedError, AccessError, LoadError."""
    what = f"{program.attach} {program.target}"
    try:
        if program.attach == "iter":
            return bpf.link_create(fd, bpf.TRACE_ITER)
        if program.attach != "tracepoint":
            return bpf.raw_tracepoint_open(fd)
        # One that counts would have perf prepare and hand out a record for each call on its CPU, besides.
        event = bpf.perf_event_tracepoint(_tracepoint_id(program.target), _online_cpu(), counting=False)
        try:
            return bpf.link_create(fd, bpf.PERF_EVENT, target_fd=event)
        finally:
            os.close(event)  # the link holds it
    except OSError as exc:
        raise bpf.translate(exc, f"cannot attach {program.name} to {what}") from exc


def _tracepoint_id(target: str) -> int:
    tracefs = mounts.find_tracefs()
    if tracefs is None:
        raise UnsupportedError(
            f"tracepoint {target}", "tracefs is not mounted", hint=f"mount -t tracefs tracefs {mounts.TRACEFS}"
        )
    try:
        with open(f"{tracefs}/events/{target}/id", encoding="ascii") as file:
            return int(file.read())
    except FileNotFoundError:
        raise UnsupportedError(f"tracepoint {target}", "this kernel has no such event") from None
    except OSError as exc:
        raise AccessError(f"tracepoint {target}: {exc.strerror}", capability="CAP_DAC_READ_SEARCH") from exc


def _online_cpu() -> int:
    with open("/sys/devices/system/cpu/online", encoding="ascii") as file:
        return int(re.split("[-,]", file.read())[0])
