"""A classic BPF program as the kernel runs a seccomp filter: so that tests can ask what it answers to a call."""

from __future__ import annotations

import struct
from typing import Final

X86_64: Final = 0xC000003E  # include/uapi/linux/audit.h
I386: Final = 0x40000003
ALLOW: Final = 0x7FFF0000


def errno_of(action: int) -> int:
    """Return the errno of a SECCOMP_RET_ERRNO."""
    assert action & 0xFFFF0000 == 0x50000, hex(action)
    return action & 0xFFFF


def run(program: bytes, number: int, arguments: tuple[int, ...] = (), arch: int = X86_64) -> int:
    """Return what the filter answers. Raises KeyError for an instruction that libseccomp does not make."""
    data = struct.pack("=iIQ6Q", number - (1 << 32 if number >= 1 << 31 else 0), arch, 0, *(arguments + (0,) * 6)[:6])
    steps = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    compare = {
        0x15: lambda k: accumulator == k,
        0x25: lambda k: accumulator > k,
        0x35: lambda k: accumulator >= k,
        0x45: lambda k: accumulator & k != 0,
    }
    while True:
        code, true, false, k = steps[at]
        at += 1
        if code == 0x20:
            accumulator = struct.unpack_from("=I", data, k)[0]
        elif code == 0x54:
            accumulator &= k
        elif code == 0x05:
            at += k
        elif code == 0x06:
            return int(k)
        else:
            at += true if compare[code](k) else false
