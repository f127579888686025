"""The system calls nsagent makes that `os` does not offer: typed declarations, one error path.

Calls with a libc wrapper go through it; those without (bpf, clone3, pivot_root, those for mounts, ...) go through
 `syscall` with the numbers below, by machine. Each raises OSError with errno, the call's name and the path it
was about.
Sources: man 2 of each call, include/uapi/linux/sched.h, include/uapi/linux/mount.h, include/uapi/linux/prctl.h.
"""

from __future__ import annotations

import ctypes
import os
import struct
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

# include/uapi/linux/sched.h
CLONE_NEWTIME: Final = 0x00000080
CLONE_PIDFD: Final = 0x00001000
CLONE_PARENT: Final = 0x00008000
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWCGROUP: Final = 0x02000000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWPID: Final = 0x20000000
CLONE_NEWNET: Final = 0x40000000
CLONE_INTO_CGROUP: Final = 0x200000000  # Since Linux kernel commit ef2c41cf38a7 (in v5.7)

# include/uapi/linux/mount.h
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_REC: Final = 0x4000
MS_PRIVATE: Final = 1 << 18
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2
MOUNT_ATTR_RDONLY: Final = 0x1
MOUNT_ATTR_NODEV: Final = 0x4
_FSOPEN_CLOEXEC: Final = 0x1
_FSCONFIG_CMD_CREATE: Final = 6
_FSMOUNT_CLOEXEC: Final = 0x1
_OPEN_TREE_CLONE: Final = 0x1
_AT_SYMLINK_NOFOLLOW: Final = 0x100  # include/uapi/linux/fcntl.h
_AT_EMPTY_PATH: Final = 0x1000
_AT_RECURSIVE: Final = 0x8000
_MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
_MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40

# include/uapi/linux/openat2.h
RESOLVE_NO_MAGICLINKS: Final = 0x02
RESOLVE_NO_SYMLINKS: Final = 0x04
RESOLVE_IN_ROOT: Final = 0x10

CLOSE_RANGE_CLOEXEC: Final = 4  # include/uapi/linux/close_range.h, since Linux kernel commit 582f1fb6b721 (in v5.11)

_M_ARENA_MAX: Final = -8  # malloc.h

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG: Final = 1
PR_SET_DUMPABLE: Final = 4
PR_SET_NAME: Final = 15
PR_SET_SECCOMP: Final = 22
PR_CAPBSET_DROP: Final = 24
PR_SET_CHILD_SUBREAPER: Final = 36
PR_SET_NO_NEW_PRIVS: Final = 38
PR_CAP_AMBIENT: Final = 47
PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_SECCOMP_MODE_FILTER: Final = 2  # include/uapi/linux/seccomp.h
_CLOSE_NS: Final = 20_000
_CAPABILITY_VERSION_3: Final = 0x20080522  # include/uapi/linux/capability.h

# arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h
_NUMBERS: Final = {
    "x86_64": {"bpf": 321, "execveat": 322, "perf_event_open": 298, "pivot_root": 155},
    "aarch64": {"bpf": 280, "execveat": 281, "perf_event_open": 241, "pivot_root": 41},
}
_SINCE_424: Final = {  # one number on all machines
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


def syscall_number(name: str) -> int:
    """Return this machine's number of a call that libc does not wrap. Raises OSError(ENOSYS) on an unknown machine."""
    try:
        return (_NUMBERS[os.uname().machine] | _SINCE_424)[name]
    except KeyError:
        raise OSError(38, f"{name}: no syscall number known for {os.uname().machine}") from None


def _declare(name: str, *argtypes: Any) -> Any:
    function = getattr(_libc, name)
    function.argtypes = argtypes
    function.restype = ctypes.c_int
    return function


def _check(result: int, call: str, path: str = "") -> int:
    if result == -1:
        err = ctypes.get_errno()
        raise OSError(err, f"{call}: {os.strerror(err)}", path or None)
    return result


AT_FDCWD: Final = -100

_unshare = _declare("unshare", ctypes.c_int)
_setns = _declare("setns", ctypes.c_int, ctypes.c_int)
_mount = _declare("mount", ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_umount2 = _declare("umount2", ctypes.c_char_p, ctypes.c_int)
_sethostname = _declare("sethostname", ctypes.c_char_p, ctypes.c_size_t)
_signalfd = _declare("signalfd", ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_statfs = _declare("statfs", ctypes.c_char_p, ctypes.c_void_p)
_renameat2 = _declare("renameat2", ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint)
_open_by_handle_at = _declare("open_by_handle_at", ctypes.c_int, ctypes.c_char_p, ctypes.c_int)
_fanotify_init = _declare("fanotify_init", ctypes.c_uint, ctypes.c_uint)
_fanotify_mark = _declare("fanotify_mark", ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
_capget = _declare("capget", ctypes.c_char_p, ctypes.c_void_p)
_capset = _declare("capset", ctypes.c_char_p, ctypes.c_char_p)
_prctl = _declare("prctl", ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)


def unshare(flags: int) -> None:
    """Move the caller into new namespaces, unshare(2). EPERM without CAP_SYS_ADMIN (user namespaces need none)."""
    _check(_unshare(flags), "unshare")


def setns(fd: int, nstype: int = 0) -> None:
    """Join the namespace (or, with a pidfd, the namespaces `nstype` names) behind `fd`, setns(2)."""
    _check(_setns(fd, nstype), "setns")


def mount(source: str, target: str, fstype: str | None, flags: int, data: str | None = None) -> None:
    """mount(2); `fstype` and `data` may be None, as for a remount or a change of propagation."""
    encoded = [None if word is None else os.fsencode(word) for word in (source, target, fstype, data)]
    _check(_mount(encoded[0], encoded[1], encoded[2], flags, encoded[3]), "mount", target)


def umount(target: str, flags: int = 0) -> None:
    """umount2(2)."""
    _check(_umount2(os.fsencode(target), flags), "umount2", target)


def open_tree(path: str, *, recursive: bool = True) -> int:
    """Return a descriptor of a detached copy of the mount at `path` (with those below it), open_tree(2): a bind to be.

    A symlink at the end is not followed. Since Linux kernel commit a07b20004793 (in v5.2).
    """
    flags = _OPEN_TREE_CLONE | os.O_CLOEXEC | _AT_SYMLINK_NOFOLLOW | (_AT_RECURSIVE if recursive else 0)
    try:
        return raw_syscall("open_tree", AT_FDCWD, os.fsencode(path), flags)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from None


def move_mount(tree: int, target: int) -> None:
    """Attach the detached mount `tree` at what the descriptor `target` (O_PATH) stands for, move_mount(2)."""
    raw_syscall("move_mount", tree, b"", target, b"", _MOVE_MOUNT_F_EMPTY_PATH | _MOVE_MOUNT_T_EMPTY_PATH)


def new_mount(fstype: str, attributes: int) -> int:
    """Return a detached mount of a filesystem that has no source, such as proc; fsopen(2), fsmount(2).

    EPERM of proc and sysfs in a user namespace: none of theirs is fully visible in this mnt namespace.
    """
    context = raw_syscall("fsopen", os.fsencode(fstype), _FSOPEN_CLOEXEC)
    try:
        raw_syscall("fsconfig", context, _FSCONFIG_CMD_CREATE, 0, 0, 0)
        return raw_syscall("fsmount", context, _FSMOUNT_CLOEXEC, attributes)
    finally:
        os.close(context)


def mount_setattr(mount: int, attributes: int) -> None:
    """Set MOUNT_ATTR_* on the mount that the descriptor `mount` stands for, and on all below it: all of them or none.

    mount_setattr(2). ENOSYS before Linux kernel commit 2a1867219c7b (in v5.12).
    """
    packed = struct.pack("=QQQQ", attributes, 0, 0, 0)  # struct mount_attr
    raw_syscall("mount_setattr", mount, b"", _AT_EMPTY_PATH | _AT_RECURSIVE, packed, len(packed))


def openat2(directory: int, path: str, flags: int, resolve: int) -> int:
    """Open `path` below `directory` (or, absolute, as usual) as far as the RESOLVE_* say, openat2(2); close-on-exec.

    ELOOP: what `resolve` forbids was met. ENOSYS before Linux kernel commit fddb5d430ad9 (in v5.6).
    """
    packed = struct.pack("=QQQ", flags | os.O_CLOEXEC, 0, resolve)  # struct open_how
    try:
        return raw_syscall("openat2", directory, os.fsencode(path), packed, len(packed))
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, path) from None


def execveat(directory: int, name: bytes, argv: Sequence[bytes], environment: Mapping[bytes, bytes]) -> None:
    """Execute `name`, which must be no symlink (ELOOP), of a directory that is open close-on-exec: execveat(2).

    ENOENT also of a file that begins with `#!`: the kernel could not tell its interpreter where it is.
    """
    words = (ctypes.c_char_p * (len(argv) + 1))(*argv)
    variables = (ctypes.c_char_p * (len(environment) + 1))(*(b"%s=%s" % pair for pair in environment.items()))
    try:
        raw_syscall("execveat", directory, name, words, variables, _AT_SYMLINK_NOFOLLOW)
    except OSError as exc:
        raise OSError(exc.errno, exc.strerror, os.fsdecode(name)) from None


def fanotify_init(flags: int) -> int:
    """Make a fanotify group; return its descriptor, fanotify_init(2). EPERM without CAP_SYS_ADMIN for most flags."""
    return _check(_fanotify_init(flags, 0), "fanotify_init")


def fanotify_mark(group: int, flags: int, mask: int, path: str) -> None:
    """Ask a group for events about `path`, fanotify_mark(2). EINVAL, ENODEV, EXDEV, EOPNOTSUPP: not of this filesystem."""
    _check(_fanotify_mark(group, flags, mask, AT_FDCWD, os.fsencode(path)), "fanotify_mark", path)


def statfs_type(path: str) -> int:
    """Return f_type, the magic number of the filesystem at `path`, statfs(2); os.statvfs does not have it."""
    buffer = ctypes.create_string_buffer(256)  # struct statfs has 120 bytes, f_type first, a long
    _check(_statfs(os.fsencode(path), buffer), "statfs", path)
    return ctypes.c_long.from_buffer(buffer).value


def pivot_root(new_root: str, put_old: str) -> None:
    """pivot_root(2), which libc does not wrap."""
    number = syscall_number("pivot_root")
    _check(_libc.syscall(ctypes.c_long(number), os.fsencode(new_root), os.fsencode(put_old)), "pivot_root", new_root)


def rename_exchange(one: str, other: str) -> None:
    """Exchange what two names stand for, renameat2(2) with RENAME_EXCHANGE. EINVAL where the filesystem cannot."""
    _check(_renameat2(AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), 2), "renameat2", one)


def open_by_handle_at(mount_fd: int, handle_type: int, handle: bytes, flags: int) -> int:
    """Open what a file handle names in the filesystem of `mount_fd`, open_by_handle_at(2). ESTALE: it is gone.

    EPERM without CAP_DAC_READ_SEARCH in the initial user namespace.
    """
    packed = struct.pack("=Ii", len(handle), handle_type) + handle  # struct file_handle
    return _check(_open_by_handle_at(mount_fd, packed, flags), "open_by_handle_at")


def sethostname(name: str) -> None:
    """sethostname(2), in the caller's UTS namespace; at most 64 bytes (EINVAL)."""
    encoded = os.fsencode(name)
    _check(_sethostname(encoded, len(encoded)), "sethostname")


def use_one_arena() -> None:
    """Have all threads share malloc's main arena (glibc; nothing elsewhere).

    Else a thread gets an arena of its own, and what one arena has free no other uses: of scrapes in threads some megabytes stay
    behind in each. Python's threads allocate under one lock anyway. Source: mallopt(3), M_ARENA_MAX.
    """
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2)."""
    return _check(_prctl(option, arg2, arg3, arg4, arg5), "prctl")


def capget() -> tuple[int, int, int]:
    """Return the caller's (effective, permitted, inheritable) capabilities as bit masks, capget(2)."""
    data = ctypes.create_string_buffer(24)  # struct __user_cap_data_struct[2]: of bits 0 to 31, of bits 32 to 63
    _check(_capget(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), data), "capget")
    words = struct.unpack("=6I", data.raw)
    return words[0] | words[3] << 32, words[1] | words[4] << 32, words[2] | words[5] << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """Set the caller's capabilities, capset(2). EPERM: one is not permitted now."""
    masks = (effective, permitted, inheritable)
    words = [mask & 0xFFFFFFFF for mask in masks] + [mask >> 32 for mask in masks]
    _check(_capset(struct.pack("=Ii", _CAPABILITY_VERSION_3, 0), struct.pack("=6I", *words)), "capset")


def seccomp_filter(program: bytes) -> None:
    """Put the caller under a seccomp filter (struct sock_filter, 8 bytes each), seccomp(2).

    EACCES: neither CAP_SYS_ADMIN nor no_new_privs. EINVAL: no such program, or a kernel without CONFIG_SECCOMP_FILTER.
    """
    instructions = ctypes.create_string_buffer(program, len(program))
    header = struct.pack("@HP", len(program) // 8, ctypes.addressof(instructions))  # struct sock_fprog
    fprog = ctypes.create_string_buffer(header, len(header))
    prctl(PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.addressof(fprog))


def signalfd(signals: Iterable[int]) -> int:
    """Return a descriptor that reads as 128-byte records of those `signals` that the caller has blocked, signalfd(2).

    It is close-on-exec and non-blocking.
    """
    mask = sum(1 << (number - 1) for number in signals)
    return _check(_signalfd(-1, mask.to_bytes(128, sys.byteorder), os.O_CLOEXEC | os.O_NONBLOCK), "signalfd")


def close_range(first: int, last: int, flags: int = 0) -> None:
    """Close descriptors or mark them close-on-exec, close_range(2). ENOSYS before 5.9, EINVAL of the flag before 5.11.

    `last` is included.
    """
    raw_syscall("close_range", first, last, flags)


def boot_to_real_ns() -> int:
    """Return CLOCK_REALTIME less CLOCK_BOOTTIME, which stamps what BPF programs tell.

    Between two clocks a busy node may let somebody else run for long: of some readings the closest counts.
    """
    closest, offset_ns = 1 << 62, 0
    for _ in range(5):
        before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        real = time.clock_gettime_ns(time.CLOCK_REALTIME)
        took = time.clock_gettime_ns(time.CLOCK_BOOTTIME) - before
        if took < closest:
            closest, offset_ns = took, real - before - took // 2
        if took < _CLOSE_NS:
            break
    return offset_ns


def raw_syscall(name: str, *args: Any) -> int:
    """Call one of the unwrapped system calls; `args` are ctypes values, bytes, or int (as long). Raises OSError."""
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in args]
    return _check(_libc.syscall(ctypes.c_long(syscall_number(name)), *words), name)
