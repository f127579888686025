"""Which descriptors CMD has: 0, 1 and 2. All others are ours, or leaked into us by whoever started us."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable

from nsagent import libc


def open_standard() -> None:
    """Make those of 0, 1 and 2 that are closed /dev/null: else the next files we open would be CMD's."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


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
        _close(_open_from(first))


def close_others(kept: Collection[int]) -> None:
    """Close every descriptor that is not among `kept`."""
    _close(fd for fd in _open_from(0) if fd not in kept)


def _close(descriptors: Iterable[int]) -> None:
    for fd in descriptors:
        try:
            os.close(fd)
        except OSError:
            pass  # that of the directory, closed again


def _open_from(first: int) -> list[int]:
    return [int(name) for name in os.listdir("/proc/self/fd") if int(name) >= first]
