"""The pin directory: names in it, its two locks, and its removal.

    <pin_dir>/            flock: the load lock, held for the moment of a load, an adoption or an unload
    <pin_dir>/owner/      flock: held by the agent that owns this node's programs, for its whole life
    <pin_dir>/new/        being built by the holder of the load lock; a leftover is a dead loader's
    <pin_dir>/abi<N>/     complete: published by one renameat2(2); map_NAME, prog_NAME, link_NAME

bpffs holds no regular file, so the locks are on directories, and who holds one is read from /proc/locks. bpffs refuses
dots in names (EPERM). Sources: kernel/bpf/inode.c, man 2 flock, man 5 proc_locks.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from types import TracebackType
from typing import Final, Self

from nsagent import libc
from nsagent.errors import AccessError, NsagentError, UnsupportedError
from nsagent.kernel import mounts
from nsagent.kernel.abi import ABI_VERSION

DEFAULT_PIN_DIR: Final = f"{mounts.BPFFS}/nsagent"
PRIVATE: Final = f"{mounts.BPFFS}/nsagent-trace-"  # and a pid: what a `nsagent trace` without an agent has for itself
_POLL_S: Final = 0.02


def live_dir(pin_dir: str) -> str:
    """Return where the pins of this ABI are."""
    return f"{pin_dir}/abi{ABI_VERSION}"


class Lock:
    """An exclusive flock on a directory, held until `release` or the end of the process, however that ends."""

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self._fd = fd

    def release(self) -> None:
        """Give the lock up; harmless twice."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None) -> None:
        self.release()


def locked(pin_dir: str, *, deadline_s: float = 30.0) -> Lock:
    """Take the load lock, making `pin_dir` where it is absent. `load`, `adopt` and `unload` take it themselves.

    Raises:
        UnsupportedError: `pin_dir` does not lie on a bpffs.
        AccessError: it cannot be made or opened.
        NsagentError: somebody else held it for `deadline_s`; names the process.
    """
    make_pin_dir(pin_dir)
    return _lock(pin_dir, pin_dir, deadline_s, "is loading or unloading programs in")


def own(pin_dir: str, *, deadline_s: float = 0.0) -> Lock:
    """Become the one agent of this pin directory, until the lock is released. Raises as `locked`."""
    return _lock(pin_dir, f"{pin_dir}/owner", deadline_s, "is the agent of")


def owner(pin_dir: str) -> int | None:
    """Return the process that owns the pin directory; None without one, 0 if its PID namespace hides it from us."""
    return _holder(f"{pin_dir}/owner")


def exists(pin_dir: str) -> bool:
    """Tell whether there is a pin directory. Raises AccessError where one above it is closed to this user, as a bpffs is."""
    try:
        return stat.S_ISDIR(os.stat(pin_dir).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as exc:
        raise AccessError(f"cannot look into {pin_dir}: {exc.strerror}", hint="run as root") from exc


def make_pin_dir(pin_dir: str) -> None:
    """Make `pin_dir` with mode 0700 on a bpffs. Raises UnsupportedError, AccessError."""
    parent = os.path.dirname(os.path.abspath(pin_dir))
    if not mounts.is_bpffs(parent):
        raise UnsupportedError(f"pin directory {pin_dir}", f"{parent} is not on a bpffs", hint=f"mount -t bpf bpf {mounts.BPFFS}")
    try:
        os.mkdir(pin_dir, 0o700)
    except FileExistsError:
        pass
    except OSError as exc:
        hint = "bpffs allows no dot in a name" if "." in os.path.basename(pin_dir) else "run as root"
        raise AccessError(f"cannot make pin directory {pin_dir}: {exc.strerror}", hint=hint) from exc


def _lock(pin_dir: str, path: str, deadline_s: float, doing: str) -> Lock:
    end = time.monotonic() + deadline_s
    while True:
        make_pin_dir(pin_dir)
        try:
            with contextlib.suppress(FileExistsError):
                os.mkdir(path, 0o700)
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:  # an unload took the directory away in between
            continue
        except OSError as exc:
            raise AccessError(f"cannot lock {path}: {exc.strerror}", hint="run as root") from exc
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _same(fd, path):
                return Lock(path, fd)
        except BlockingIOError:
            if time.monotonic() >= end:
                os.close(fd)
                raise NsagentError(
                    f"{_describe(_holder(path))} {doing} {pin_dir}",
                    hint="stop it first, or give this one a world of its own: --pin-dir and --state-dir",
                ) from None
        os.close(fd)
        time.sleep(_POLL_S)


def _same(fd: int, path: str) -> bool:
    """Tell whether `path` still is the directory we locked, and not one made after an unload removed that."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(path: str) -> int | None:
    try:
        status = os.stat(path)
        with open("/proc/locks", encoding="ascii") as locks:
            lines = locks.read().splitlines()
    except OSError:
        return None
    identity = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    for words in map(str.split, lines):  # 1: FLOCK ADVISORY WRITE 1234 00:2a:567 0 EOF; waiters have -> before FLOCK
        if len(words) > 5 and words[1] == "FLOCK" and words[5] == identity:
            return max(int(words[4]), 0)
    return None


def _describe(pid: int | None) -> str:
    if not pid:
        return "another process"
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"process {pid} ({file.read().strip()})"
    except OSError:
        return f"process {pid}"


def remove_dir(path: str) -> bool:
    """Unlink all pins in `path` and remove it; False where it did not exist."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return False
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{path}/{name}")
    os.rmdir(path)
    return True


def publish(pin_dir: str) -> None:
    """Make new/ the pins of this ABI, in one step, and remove those it replaces: these end only now.

    The caller has the load lock. A bpffs exchanges two names since Linux kernel commit 3871cb8cf741 ("libfs: Support
    RENAME_EXCHANGE in simple_rename()") (in v5.16); before that a crash between the two steps leaves new/ alone.
    """
    new, live = f"{pin_dir}/new", live_dir(pin_dir)
    try:
        libc.rename_exchange(new, live)
    except OSError as exc:
        if exc.errno not in (errno.ENOENT, errno.EINVAL, errno.ENOSYS):
            raise
        remove_dir(live)
        os.rename(new, live)
    for name in os.listdir(pin_dir):
        path = f"{pin_dir}/{name}"
        if name == "new" or (name.startswith("abi") and path != live):  # another object's, or another ABI's
            remove_dir(path)


def unload(pin_dir: str) -> bool:
    """Remove all pins of every ABI, a dead loader's too, and `pin_dir`; True if there were any.

    The kernel detaches a program when its last descriptor is closed. Does not ask whether an agent runs: see `owner`.

    Raises:
        AccessError: the pins may not be removed.
        NsagentError: a load has been going on for too long.
    """
    if not exists(pin_dir):
        return False
    with locked(pin_dir):
        try:
            names = [name for name in os.listdir(pin_dir) if name == "new" or name.startswith("abi")]
            removed = [remove_dir(f"{pin_dir}/{name}") for name in names]
            if owner(pin_dir) in (None, os.getpid()):
                with contextlib.suppress(FileNotFoundError):
                    os.rmdir(f"{pin_dir}/owner")
            with contextlib.suppress(OSError):  # somebody else's pins may be in it, or an agent that has its lock
                os.rmdir(pin_dir)
        except OSError as exc:
            raise AccessError(f"cannot remove the pins in {pin_dir}: {exc.strerror}", hint="run as root") from exc
    return any(removed)


def sweep_private() -> None:
    """Remove the programs of a `nsagent trace` that was killed: those whose directory nobody owns."""
    names: list[str] = []
    with contextlib.suppress(OSError):  # no bpffs, or not ours to read: what needs it next says so
        names = os.listdir(mounts.BPFFS)
    for name in names:
        path = os.path.join(mounts.BPFFS, name)
        if path.startswith(PRIVATE) and owner(path) is None:
            unload(path)
