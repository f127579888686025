"""The job's seccomp filter as a program: the default one, or a profile's; compiled once and kept.

Compiling takes libseccomp's binding and some 50 ms; a compiled program is a file in the state directory, named by all
that it depends on. Nothing of that is imported while the file is there.
"""

from __future__ import annotations

import os

from nsagent import __version__
from nsagent.launch.security import Security

_COMPILER = os.path.join(os.path.dirname(__file__), "profile.py")


def program(security: Security, directory: str) -> bytes:
    """Return the BPF program of a job's filter, from `directory` where it is kept.

    Raises: UnsupportedError where libseccomp or its binding is missing, UsageError of a profile, AccessError.
    """
    path = os.path.join(directory, "seccomp", _key(security))
    kept = _read(path)
    if kept:
        return kept
    from nsagent.launch import profile

    made = profile.compile_profile(security.seccomp, security.capabilities)
    _write(path, made)
    return made


def _key(security: Security) -> str:
    """Name the program by what it is made of: the profile's file, or the code that has the default; capabilities; host."""
    source = os.stat(security.seccomp or _COMPILER)
    host = os.uname()
    kernel = ".".join(host.release.split(".")[:2])
    words = (source.st_dev, source.st_ino, source.st_size, source.st_mtime_ns, source.st_ctime_ns, security.capabilities)
    return f"{__version__}-{host.machine}-{kernel}-" + "-".join(f"{word:x}" for word in words)


def _read(path: str) -> bytes:
    """Return a kept program; nothing where there is none, or one that another user could have put there."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        status = os.fstat(fd)
        if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
            return b""
        return os.read(fd, status.st_size) if status.st_size % 8 == 0 else b""
    finally:
        os.close(fd)


def _write(path: str, made: bytes) -> None:
    """Keep a program; where that cannot be done, the next job compiles it again."""
    temporary = f"{path}.{os.getpid()}"
    try:
        os.makedirs(os.path.dirname(path), 0o700, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, made)
        finally:
            os.close(fd)
        os.rename(temporary, path)
    except OSError:
        pass
