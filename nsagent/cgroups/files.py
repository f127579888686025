"""Read and write single cgroup files, unbuffered. A file or a cgroup that is not there (any more) is a normal answer."""

from __future__ import annotations

import errno
import os
from typing import Final

from nsagent.errors import NsagentError

_PAGE: Final = 8192  # more than any file but io.stat and memory.stat has
_ROOM: Final = 2048  # a longer answer may have been cut at the end of the kernel's buffer, a page at first
_SIZE: Final = 65536
# ENOENT and ENODEV: the cgroup ended. EOPNOTSUPP: a threaded cgroup, or a controller that is off. EACCES, EPERM: another
# user's. EINVAL and EIO: files that cannot be read in this cgroup, such as the root's. ENAMETOOLONG: there is no way to it.
GONE: Final = frozenset(
    {errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP, errno.EACCES, errno.EPERM, errno.EINVAL, errno.EIO, errno.ENAMETOOLONG}
)


def open_file(name: str, directory: int | None) -> int | None:
    """Open a file of the cgroup behind the descriptor `directory` (None: `name` is a path); None where there is none to read.

    Raises NsagentError for what says nothing about the cgroup, such as EMFILE.
    """
    try:
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    except OSError as exc:
        if exc.errno in GONE:
            return None
        raise NsagentError(f"{name} of a cgroup cannot be read: {exc.strerror}") from exc


def read_kept(descriptor: int, name: str) -> bytes | None:
    """Read a whole file from its begin, by one pread(2) in most cases; None where there is none to read. Raises NsagentError."""
    try:
        text = os.pread(descriptor, _PAGE, 0)
        if len(text) < _ROOM:
            return text
        whole = [text]
        while text:  # a seq_file gives what fits into its buffer, whole lines: more may follow
            text = os.pread(descriptor, _SIZE, sum(map(len, whole)))
            whole.append(text)
        return b"".join(whole)
    except OSError as exc:
        if exc.errno in GONE:
            return None
        raise NsagentError(f"{name} of a cgroup cannot be read: {exc.strerror}") from exc


def read_once(name: str, directory: int | None) -> bytes | None:
    """Open, read and close a file of the cgroup behind `directory`; None where there is none to read. Raises NsagentError."""
    descriptor = open_file(name, directory)
    if descriptor is None:
        return None
    try:
        return read_kept(descriptor, name)
    finally:
        os.close(descriptor)


def read(path: str) -> bytes:
    """Read a file of any length; b"" where it cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.readall()
    except OSError:
        return b""


def read_text(path: str) -> str:
    """Read a file as text without blanks around it; "" where it cannot be read."""
    return os.fsdecode(read(path)).strip()


def write(path: str, value: str) -> None:
    """Write a value in one write(2), as the kernel asks for. Raises OSError."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, os.fsencode(value))
    finally:
        os.close(descriptor)


def try_write(path: str, value: str) -> bool:
    """Write a value; tell whether the kernel took it."""
    try:
        write(path, value)
    except OSError:
        return False
    return True
