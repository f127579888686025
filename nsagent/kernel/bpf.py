"""bpf(2) and the one perf_event_open(2) that goes with it: typed calls, nothing decided here.

Each call packs the member of ``union bpf_attr`` it needs and no more: the kernel takes the rest as zero, so that one
layout serves every kernel. No libbpf: its versions differ more than the kernel's interface does (0.5 is too old).
All raise OSError with errno and the command's name; `translate` makes one of nsagent's errors of it.
Descriptors are close-on-exec (the kernel sets it on all that bpf(2) returns).
Sources: include/uapi/linux/bpf.h, include/uapi/linux/perf_event.h, kernel/bpf/syscall.c, man 2 bpf,
man 2 perf_event_open.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import os
import struct
from typing import Final, NamedTuple

from nsagent import libc
from nsagent.errors import AccessError, LoadError, NsagentError, UnsupportedError


class Command(enum.IntEnum):
    """enum bpf_cmd, as far as it is used."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    RAW_TRACEPOINT_OPEN = 17
    BTF_LOAD = 18
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_FREEZE = 22
    MAP_LOOKUP_BATCH = 24
    LINK_CREATE = 28
    ENABLE_STATS = 32
    ITER_CREATE = 33


# enum bpf_map_type
MAP_TYPES: Final = {
    "hash": 1,
    "array": 2,
    "percpu_hash": 5,
    "percpu_array": 6,
    "lru_hash": 9,
    "queue": 22,
    "ringbuf": 27,
    "task_storage": 29,
}
# BPF_F_* of BPF_MAP_CREATE
MAP_FLAGS: Final = {"no_prealloc": 1 << 0, "rdonly_prog": 1 << 7, "mmapable": 1 << 10}
# enum bpf_prog_type
PROG_TYPES: Final = {
    "socket_filter": 1,
    "kprobe": 2,
    "tracepoint": 5,
    "raw_tracepoint": 17,
    "tracing": 26,
    "syscall": 31,
}
# enum bpf_attach_type
TRACE_RAW_TP: Final = 23
TRACE_FENTRY: Final = 24
TRACE_FEXIT: Final = 25
TRACE_ITER: Final = 28
PERF_EVENT: Final = 41  # Since Linux kernel commit b89fbfbb854c ("bpf: Implement minimal BPF perf link") (in v5.15)

ANY: Final = 0
NOEXIST: Final = 1
EXIST: Final = 2

ENOTSUPP: Final = 524  # the kernel's own, not in errno.h; what a missing fentry or map operation says
_UNSUPPORTED = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.E2BIG, errno.ENOENT, errno.ENODEV, ENOTSUPP)
_NAME_BYTES = 15  # BPF_OBJ_NAME_LEN less its NUL
_LOG_BYTES = 16 << 20


class VerifierError(OSError):
    """The kernel refused a program; `log` is what the verifier said (empty where it never got that far)."""

    log = ""


class MapInfo(NamedTuple):
    """struct bpf_map_info: sizes in bytes."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


class ProgInfo(NamedTuple):
    """struct bpf_prog_info. The run figures move only while kernel.bpf_stats_enabled is 1."""

    type: int
    id: int
    name: str
    run_time_ns: int
    run_cnt: int
    recursion_misses: int
    verified_insns: int


class LinkInfo(NamedTuple):
    """struct bpf_link_info, what all types of link have."""

    type: int
    id: int
    prog_id: int


class BtfInfo(NamedTuple):
    """struct bpf_btf_info."""

    size: int
    id: int


def strerror(err: int) -> str:
    """Return os.strerror, and words for the kernel's private ENOTSUPP."""
    return "not supported by this kernel" if err == ENOTSUPP else os.strerror(err)


def translate(exc: OSError, what: str) -> NsagentError:
    """Turn an OSError of this module into nsagent's: EPERM lacks a capability, EINVAL and its kin a kernel feature."""
    err = exc.errno or 0
    if err == errno.EPERM and _capable():
        why = "not permitted in spite of CAP_BPF: locked down, or in a user namespace or under a seccomp filter"
        return UnsupportedError(what, why, hint="see 'nsagent doctor'")
    if err in (errno.EPERM, errno.EACCES):
        return AccessError(f"{what}: {strerror(err)}", capability="CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before v5.8)")
    if err in _UNSUPPORTED:
        return UnsupportedError(what, f"refused by this kernel ({strerror(err)})", hint="see 'nsagent doctor'")
    return LoadError(f"{what}: {strerror(err)}")


def _capable() -> bool:
    """Tell whether we have CAP_BPF (39) and CAP_PERFMON (38), or CAP_SYS_ADMIN (21): then EPERM has another cause."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as lines:
        mask = next((int(line.split()[1], 16) for line in lines if line.startswith("CapEff:")), 0)
    return mask >> 21 & 1 == 1 or mask >> 38 & 3 == 3


def _buffer(data: bytes) -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(data, max(len(data), 1))


def _call(command: Command, attr: bytes | ctypes.Array[ctypes.c_char], path: str | None = None) -> int:
    """Make the call; `attr` as a ctypes array gets back what the kernel writes into it."""
    data = _buffer(attr) if isinstance(attr, bytes) else attr
    try:
        return libc.raw_syscall("bpf", int(command), data, len(data))
    except OSError as exc:
        raise OSError(exc.errno, f"bpf({command.name}): {strerror(exc.errno or 0)}", path) from None


def _name(name: str) -> bytes:
    return name.encode()[:_NAME_BYTES]


def map_create(
    map_type: int,
    name: str,
    *,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int = 0,
    btf: tuple[int, int, int] = (0, 0, 0),
) -> int:
    """Create a map and return its descriptor. `btf`: descriptor and type ids of key and value, for task storage."""
    head = struct.pack("=7I16s", map_type, key_size, value_size, max_entries, flags, 0, 0, _name(name))
    return _call(Command.MAP_CREATE, head + struct.pack("=4I", 0, *btf))


def _element(fd: int, key: ctypes.Array[ctypes.c_char] | None, value: ctypes.Array[ctypes.c_char] | None, flags: int) -> bytes:
    address = [ctypes.addressof(b) if b is not None else 0 for b in (key, value)]
    return struct.pack("=I4xQQQ", fd, *address, flags)


def map_lookup(fd: int, key: bytes, value_bytes: int, flags: int = 0) -> bytes:
    """Return the value, of `value_bytes` in user space (a per-CPU map's: all CPUs'). ENOENT without the key."""
    k, v = _buffer(key), ctypes.create_string_buffer(value_bytes)
    _call(Command.MAP_LOOKUP_ELEM, _element(fd, k, v, flags))
    return v.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = ANY) -> None:
    """Set a value (an empty `key` for a queue: push). EEXIST with NOEXIST, ENOENT with EXIST, E2BIG when full."""
    k, v = _buffer(key), _buffer(value)
    _call(Command.MAP_UPDATE_ELEM, _element(fd, k if key else None, v, flags))


def map_delete(fd: int, key: bytes) -> None:
    """Delete a key. ENOENT without it, EINVAL for an array."""
    k = _buffer(key)
    _call(Command.MAP_DELETE_ELEM, _element(fd, k, None, 0))


def map_pop(fd: int, value_bytes: int) -> bytes:
    """Take the head of a queue. ENOENT when it is empty."""
    v = ctypes.create_string_buffer(value_bytes)
    _call(Command.MAP_LOOKUP_AND_DELETE_ELEM, _element(fd, None, v, 0))
    return v.raw


def map_next_key(fd: int, key: bytes | None, key_bytes: int) -> bytes | None:
    """Return the key after `key` (None: the first), or None after the last."""
    k, v = _buffer(key) if key is not None else None, ctypes.create_string_buffer(key_bytes)
    try:
        _call(Command.MAP_GET_NEXT_KEY, _element(fd, k, v, 0))
    except OSError as exc:
        if exc.errno == errno.ENOENT:
            return None
        raise
    return v.raw


def map_lookup_batch(
    fd: int, token: bytes | None, key_bytes: int, value_bytes: int, count: int
) -> tuple[bytes | None, int, bytes, bytes]:
    """Return (token for the next call or None at the end, elements, their keys, their values).

    ENOSPC when one hash bucket holds more than `count`: ask for more. Since Linux kernel commit cb4d03ab499d (in v5.6).
    """
    into = _buffer(token) if token else None
    out = ctypes.create_string_buffer(max(key_bytes, 8))
    keys, values = ctypes.create_string_buffer(count * key_bytes), ctypes.create_string_buffer(count * value_bytes)
    addresses = (ctypes.addressof(into) if into is not None else 0, *(ctypes.addressof(b) for b in (out, keys, values)))
    attr = _buffer(struct.pack("=QQQQIIQQ", *addresses, count, fd, 0, 0))
    following: bytes | None = None
    try:
        _call(Command.MAP_LOOKUP_BATCH, attr)
        following = out.raw
    except OSError as exc:
        if exc.errno != errno.ENOENT:  # the end: what came with it counts
            raise
    (got,) = struct.unpack_from("=I", attr, 32)
    return following, got, keys.raw[: got * key_bytes], values.raw[: got * value_bytes]


def map_freeze(fd: int) -> None:
    """Make the map read-only for user space, for good. Since Linux kernel commit 87df15de441b (in v5.2)."""
    _call(Command.MAP_FREEZE, struct.pack("=I", fd))


def btf_load(blob: bytes) -> int:
    """Load type information of our own; returns a descriptor."""
    data = _buffer(blob)
    return _call(Command.BTF_LOAD, struct.pack("=QQIII", ctypes.addressof(data), 0, len(blob), 0, 0))


def prog_load(prog_type: int, name: str, insns: bytes, *, attach_type: int = 0, btf_id: int = 0, flags: int = 0) -> int:
    """Load a program (8 bytes an instruction) and return its descriptor.

    Raises:
        VerifierError: refused. It is then loaded a second time for the verifier's words: keeping them always is slow.
    """
    code, licence = _buffer(insns), _buffer(b"GPL\0")

    def attempt(log: ctypes.Array[ctypes.c_char] | None) -> int:
        head = struct.pack("=IIQQ", prog_type, len(insns) // 8, ctypes.addressof(code), ctypes.addressof(licence))
        words = (1, len(log), ctypes.addressof(log)) if log is not None else (0, 0, 0)
        tail = struct.pack("=6I", 0, attach_type, 0, 0, 0, 0) + struct.pack("=IIQIIII", 0, 0, 0, 0, btf_id, 0, 0)
        attr = head + struct.pack("=IIQII16s", *words, 0, flags, _name(name)) + tail
        for _ in range(4):
            try:
                return _call(Command.PROG_LOAD, attr)
            except InterruptedError:
                pass
            except BlockingIOError:  # EAGAIN: a signal arrived while the verifier ran
                pass
        return _call(Command.PROG_LOAD, attr)

    try:
        return attempt(None)
    except OSError:
        log = ctypes.create_string_buffer(_LOG_BYTES)
        try:
            return attempt(log)
        except OSError as exc:
            refused = VerifierError(exc.errno, exc.strerror)
            refused.log = log.value.decode(errors="replace")
            raise refused from None


def prog_test_run(fd: int, context: bytes = b"", *, data: bytes = b"", cpu: int | None = None) -> int:
    """Run a program once and return what it returned. `cpu` only for raw_tracepoint programs: BPF_F_TEST_RUN_ON_CPU."""
    c, d = _buffer(context), _buffer(data)
    pointers = [ctypes.addressof(b) if raw else 0 for b, raw in ((d, data), (c, context))]
    attr = _buffer(
        struct.pack("=4IQQ", fd, 0, len(data), 0, pointers[0], 0)
        + struct.pack("=4IQQ", 0, 0, len(context), 0, pointers[1], 0)
        + struct.pack("=3I4x", 0 if cpu is None else 1, cpu or 0, 0)
    )
    _call(Command.PROG_TEST_RUN, attr)
    return int(struct.unpack_from("=I", attr, 4)[0])


def raw_tracepoint_open(prog_fd: int) -> int:
    """Attach a tracing program (tp_btf, fentry, fexit) to what its BTF id names; returns a link."""
    return _call(Command.RAW_TRACEPOINT_OPEN, struct.pack("=QII", 0, prog_fd, 0))


def link_create(prog_fd: int, attach_type: int, *, target_fd: int = 0, iter_info: bytes = b"") -> int:
    """Attach a program and return the link: TRACE_ITER (`iter_info`: union bpf_iter_link_info), or PERF_EVENT."""
    info = _buffer(iter_info)
    tail = struct.pack("=QII", ctypes.addressof(info) if iter_info else 0, len(iter_info), 0)
    return _call(Command.LINK_CREATE, struct.pack("=4I", prog_fd, target_fd, attach_type, 0) + tail)


def iter_create(link_fd: int) -> int:
    """Start one walk of an iterator; reading the descriptor to its end makes it."""
    return _call(Command.ITER_CREATE, struct.pack("=II", link_fd, 0))


def obj_pin(fd: int, path: str) -> None:
    """Pin a map, program or link at `path` on a bpffs. EEXIST; EPERM also for a dot in the name."""
    name = _buffer(os.fsencode(path) + b"\0")
    _call(Command.OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0), path)


def obj_get(path: str) -> int:
    """Open what is pinned at `path`. ENOENT."""
    name = _buffer(os.fsencode(path) + b"\0")
    return _call(Command.OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0), path)


def enable_stats() -> int:
    """Have the kernel count and time the runs of every program of the host, while the descriptor returned is open.

    EPERM without CAP_SYS_ADMIN. Since Linux kernel commit d46edd671a14 ("bpf: Sharing bpf runtime stats with
    BPF_ENABLE_STATS") (in v5.8).
    """
    return _call(Command.ENABLE_STATS, struct.pack("=I", 0))  # BPF_STATS_RUN_TIME


def prog_get_fd_by_id(prog_id: int) -> int:
    """Open a program by its id; needs CAP_SYS_ADMIN."""
    return _call(Command.PROG_GET_FD_BY_ID, struct.pack("=III", prog_id, 0, 0))


def _info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)  # a longer one than the kernel knows is fine while its tail is zero
    _call(Command.OBJ_GET_INFO_BY_FD, struct.pack("=IIQ", fd, size, ctypes.addressof(info)))
    return info.raw


def _text(raw: bytes) -> str:
    return raw.split(b"\0", 1)[0].decode(errors="replace")


def map_info(fd: int) -> MapInfo:
    """Describe a map."""
    raw = _info(fd, 88)
    kind, map_id, key_size, value_size, max_entries, flags = struct.unpack_from("=6I", raw)
    return MapInfo(kind, map_id, key_size, value_size, max_entries, flags, _text(raw[24:40]))


def prog_info(fd: int) -> ProgInfo:
    """Describe a program."""
    raw = _info(fd, 232)
    kind, prog_id = struct.unpack_from("=II", raw)
    return ProgInfo(kind, prog_id, _text(raw[64:80]), *struct.unpack_from("=QQQI", raw, 192))


def link_info(fd: int) -> LinkInfo:
    """Describe a link."""
    return LinkInfo(*struct.unpack_from("=III", _info(fd, 64)))


def btf_info(fd: int) -> BtfInfo:
    """Describe loaded type information."""
    return BtfInfo(*struct.unpack_from("=8xII", _info(fd, 32)))


def memlock_bytes(fd: int) -> int | None:
    """Return the kernel memory behind a map or program in bytes, from its fdinfo; None where that does not say."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith("memlock:"):
                return int(line.split()[1])
    return None


def perf_event_tracepoint(event_id: int, cpu: int, *, counting: bool = True) -> int:
    """Open a tracepoint's perf event. A BPF program attached to it runs on every CPU, and while it does not count too."""
    attr = ctypes.create_string_buffer(64)  # PERF_ATTR_SIZE_VER0
    # PERF_TYPE_TRACEPOINT; no period, sample_type and read_format: no samples; then the bits, of which `disabled` is the first
    struct.pack_into("=IIQQQQQ", attr, 0, 2, len(attr), event_id, 0, 0, 0, not counting)
    return libc.raw_syscall("perf_event_open", attr, -1, cpu, -1, 8)  # PERF_FLAG_FD_CLOEXEC
