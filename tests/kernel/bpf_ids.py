"""Every BPF link of the node, by the kernel's own numbers: what is attached, pinned or not, and how often."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator

from nsagent import libc
from nsagent.kernel import bpf

_LINK_GET_FD_BY_ID, _LINK_GET_NEXT_ID = 30, 31


def _bpf(command: int, attr: ctypes.Array[ctypes.c_char]) -> int:
    return libc.raw_syscall("bpf", command, attr, len(attr))


def link_ids() -> Iterator[int]:
    """Yield the id of each link."""
    last = 0
    while True:
        attr = ctypes.create_string_buffer(struct.pack("=III", last, 0, 0), 12)
        try:
            _bpf(_LINK_GET_NEXT_ID, attr)
        except FileNotFoundError:
            return
        last = struct.unpack_from("=II", attr.raw)[1]
        yield last


def maps_of(prog_fd: int) -> set[int]:
    """Return the ids of the maps that a program uses."""
    ids = (ctypes.c_uint32 * 64)()
    info = ctypes.create_string_buffer(232)
    struct.pack_into("=IQ", info, 52, len(ids), ctypes.addressof(ids))
    _bpf(15, ctypes.create_string_buffer(struct.pack("=IIQ", prog_fd, len(info), ctypes.addressof(info)), 16))
    return set(ids[: struct.unpack_from("=I", info, 52)[0]])


def attached_to(map_fd: int) -> list[str]:
    """Return the names of the programs that are attached and use the map behind `map_fd`, one for each link, sorted."""
    wanted = struct.unpack_from("=II", bpf._info(map_fd, 16))[1]
    names = []
    for number in link_ids():
        try:
            link = _bpf(_LINK_GET_FD_BY_ID, ctypes.create_string_buffer(struct.pack("=III", number, 0, 0), 12))
        except OSError:
            continue  # gone meanwhile
        try:
            program = bpf.prog_get_fd_by_id(bpf.link_info(link).prog_id)
        except OSError:
            continue
        finally:
            os.close(link)
        if wanted in maps_of(program):
            names.append(bpf.prog_info(program).name)
        os.close(program)
    return sorted(names)
