"""The two kernel filesystems BPF needs: bpffs, where pins live, and tracefs, where tracepoints have their ids.

Sources: man 2 statfs, include/uapi/linux/magic.h, Documentation/trace/ftrace.rst, kernel/bpf/inode.c.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Final

from nsagent import libc
from nsagent.errors import AccessError, NsagentError, UnsupportedError

BPFFS: Final = "/sys/fs/bpf"
TRACEFS: Final = "/sys/kernel/tracing"
_TRACEFS_OLD: Final = "/sys/kernel/debug/tracing"
_BPFFS_MAGIC: Final = 0xCAFE4A11
_TRACEFS_MAGIC: Final = 0x74726163
_MOUNT_FLAGS: Final = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC


def _is_type(path: str, magic: int) -> bool:
    try:
        return libc.statfs_type(path) & 0xFFFFFFFF == magic
    except OSError:
        return False


def is_bpffs(path: str) -> bool:
    """Tell whether `path` lies on a bpffs."""
    return _is_type(path, _BPFFS_MAGIC)


def find_tracefs() -> str | None:
    """Return where tracefs is mounted, in one of its two usual places, or None."""
    return next((path for path in (TRACEFS, _TRACEFS_OLD) if _is_type(path, _TRACEFS_MAGIC)), None)


def mount_bpffs(path: str = BPFFS) -> bool:
    """Mount a bpffs at `path` unless one is there; True if this call did it.

    bpffs mounts stack, and a second one hides the pins of the first: so it looks first, under a lock.

    Raises:
        AccessError: no CAP_SYS_ADMIN.
        UnsupportedError: the kernel has no bpffs, or there is no directory `path`.
    """
    return _mount_once("bpf", path, _BPFFS_MAGIC, "mode=700")


def mount_tracefs(path: str = TRACEFS) -> bool:
    """Mount tracefs at `path` unless it is in one of its two usual places; True if this call did. Raises as above."""
    return find_tracefs() is None and _mount_once("tracefs", path, _TRACEFS_MAGIC, "mode=700")


def _mount_once(fstype: str, path: str, magic: int, options: str) -> bool:
    if _is_type(path, magic):
        return False
    try:
        under = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise _translate(exc, fstype, path) from exc
    try:
        fcntl.flock(under, fcntl.LOCK_EX)  # on the directory below: two racing callers mount once
        if _is_type(path, magic):
            return False
        libc.mount(fstype, path, fstype, _MOUNT_FLAGS, options)
        return True
    except OSError as exc:
        raise _translate(exc, fstype, path) from exc
    finally:
        os.close(under)


def _translate(exc: OSError, fstype: str, path: str) -> NsagentError:
    what = f"{fstype} filesystem at {path}"
    if exc.errno in (errno.EPERM, errno.EACCES):
        return AccessError(f"cannot mount a {what}: {os.strerror(exc.errno)}", capability="CAP_SYS_ADMIN")
    return UnsupportedError(
        what,
        os.strerror(exc.errno or 0),
        hint=f"mount it by hand: mount -t {fstype} {fstype} {path}; see 'nsagent doctor'",
    )
