"""clone3(2) from Python: one call makes a child in new namespaces, in its v2 cgroup, with a pidfd.

`os.fork` cannot say which namespaces or which cgroup, and unshare + fork needs a process in between. The call is made
as `os.fork` makes it: between PyOS_BeforeFork and PyOS_AfterFork_*, with the GIL held (PyDLL), so that the
interpreter's locks are whole in the child. The caller must have no other thread.

Sources: man 2 clone, include/uapi/linux/sched.h (struct clone_args), Python C API "PyOS_BeforeFork".
"""

from __future__ import annotations

import ctypes
import os
import signal

from nsagent import libc

_PYTHON = ctypes.PyDLL(None)
_PYTHON.syscall.restype = ctypes.c_long
_PYTHON.__errno_location.restype = ctypes.POINTER(ctypes.c_int)


class _CloneArgs(ctypes.Structure):
    """struct clone_args, CLONE_ARGS_SIZE_VER2: with `cgroup`, since Linux kernel commit ef2c41cf38a7 (in v5.7)."""

    _fields_ = [
        (name, ctypes.c_uint64)
        for name in (
            "flags",
            "pidfd",
            "child_tid",
            "parent_tid",
            "exit_signal",
            "stack",
            "stack_size",
            "tls",
            "set_tid",
            "set_tid_size",
            "cgroup",
        )
    ]


def clone3(flags: int, cgroup_fd: int | None = None, *, sibling: bool = False) -> tuple[int, int]:
    """Fork with `flags` (CLONE_NEW*), into the v2 cgroup behind `cgroup_fd`. Return (pid, pidfd); in the child (0, -1).

    The pidfd is close-on-exec. `sibling`: the child is one of the caller's parent (CLONE_PARENT), which waits for it.

    Raises: OSError. EPERM: no CAP_SYS_ADMIN, or user namespaces are forbidden. ENOSYS: kernel before 5.3, or a seccomp
    filter (as docker's) hides clone3. ENOSPC: a limit of /proc/sys/user or the depth of 32. EINVAL: a kind this kernel
    lacks. EACCES, EBUSY, EOPNOTSUPP: the cgroup may not be entered (cgroups(7)). EBADF: the descriptor is of a v1 tree.
    """
    number = libc.syscall_number("clone3")
    pidfd = ctypes.c_int(-1)
    args = _CloneArgs(
        flags=flags
        | libc.CLONE_PIDFD
        | (0 if cgroup_fd is None else libc.CLONE_INTO_CGROUP)
        | (libc.CLONE_PARENT if sibling else 0),
        pidfd=ctypes.addressof(pidfd),
        exit_signal=0 if sibling else signal.SIGCHLD,  # of a sibling: as that of the caller, another one is EINVAL
        cgroup=cgroup_fd or 0,
    )
    buffer, size, call = ctypes.byref(args), ctypes.c_size_t(ctypes.sizeof(args)), ctypes.c_long(number)
    _PYTHON.PyOS_BeforeFork()
    pid: int = _PYTHON.syscall(call, buffer, size)
    if pid == 0:
        _PYTHON.PyOS_AfterFork_Child()
        return 0, -1
    err = _PYTHON.__errno_location()[0]  # before anything else can change it
    _PYTHON.PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(err, f"clone3: {os.strerror(err)}")
    return pid, pidfd.value
