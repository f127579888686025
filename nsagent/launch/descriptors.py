"""Which descriptors CMD has: 0, 1 and 2. All others are ours, or leaked into us by whoever started us."""

from __future__ import annotations

import os

from nsagent import libc


def close_on_exec_from(first: int) -> None:
    """Mark every descriptor from `first` on close-on-exec, so that CMD has those below it and no other."""
    try:
        libc.close_range(first, 0xFFFFFFFF, libc.CLOSE_RANGE_CLOEXEC)
    except OSError:  # Linux before 5.11
        for fd in _open_from(first):
            try:
                os.set_inheritable(fd, False)
            except OSError:
                pass  # that of the directory, closed again


def close_from(first: int) -> None:
    """Close every descriptor from `first` on."""
    try:
        libc.close_range(first, 0xFFFFFFFF)
    except OSError:  # Linux before 5.9
        for fd in _open_from(first):
            try:
                os.close(fd)
            except OSError:
                pass


def _open_from(first: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) >= first]
