"""What of some directories' files one process opens or reads, for the tests of what an agent must leave alone: fanotify(7)."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator
from pathlib import Path

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.fanotify_mark.argtypes = (ctypes.c_int, ctypes.c_uint, ctypes.c_uint64, ctypes.c_int, ctypes.c_char_p)
_FAN_CLOEXEC, _FAN_NONBLOCK = 0x1, 0x2
_FAN_MARK_ADD = 0x1
_FAN_ACCESS, _FAN_OPEN, _FAN_EVENT_ON_CHILD = 0x1, 0x20, 0x08000000
_AT_FDCWD = -100
_EVENT = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata


class Accesses:
    """What the process `pid` opens or reads from now on in `directories`; others on this machine may read them too."""

    def __init__(self, pid: int, *directories: Path) -> None:
        self._pid = pid
        self._fd = _LIBC.fanotify_init(_FAN_CLOEXEC | _FAN_NONBLOCK, os.O_RDONLY | os.O_CLOEXEC)
        assert self._fd >= 0, os.strerror(ctypes.get_errno())
        mask = _FAN_ACCESS | _FAN_OPEN | _FAN_EVENT_ON_CHILD
        for directory in directories:
            done = _LIBC.fanotify_mark(self._fd, _FAN_MARK_ADD, mask, _AT_FDCWD, os.fsencode(directory))
            assert done == 0, os.strerror(ctypes.get_errno())

    def names(self) -> set[str]:
        """Return the names of the files since the last call; directories are none."""
        return set(self._read())

    def _read(self) -> Iterator[str]:
        while True:
            try:
                events = os.read(self._fd, 1 << 16)
            except BlockingIOError:
                return
            while events:
                length, _, _, _, _, fd, pid = _EVENT.unpack_from(events)
                events = events[length:]
                if fd >= 0:
                    path = os.readlink(f"/proc/self/fd/{fd}")
                    os.close(fd)
                    if pid == self._pid:
                        yield os.path.basename(path)

    def close(self) -> None:
        """End it."""
        os.close(self._fd)
