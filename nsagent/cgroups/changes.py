"""In which directories of a hierarchy cgroups began or ended, or files were written: fanotify on its filesystem.

So nothing need be walked, and no setting be read again that nobody wrote.
A kernfs directory tells no change by itself: its times stand still, and its link count is the same after `rmdir a; mkdir b`
(6.18). One mark covers a hierarchy through all its mounts. An event's file handle is the kernfs id of the directory.
Sources: man 7 fanotify, FAN_REPORT_DIR_FID (5.9); fs/kernfs/mount.c; kernfs has an fsid, which a mark needs, since 6.7.
"""

from __future__ import annotations

import os
import struct
from typing import Final

from nsagent import libc
from nsagent.cgroups.layout import Hierarchy

# include/uapi/linux/fanotify.h
_CLOEXEC: Final = 0x1
_NONBLOCK: Final = 0x2
_REPORT_DIR_FID: Final = 0x400
_MARK_ADD: Final = 0x1
_MARK_FILESYSTEM: Final = 0x100
_MODIFY: Final = 0x2
_MOVED: Final = 0x40 | 0x80
_BIRTHS: Final = 0x100 | 0x200 | _MOVED  # and ends
_Q_OVERFLOW: Final = 0x4000
_ONDIR: Final = 0x40000000
_EVENT: Final = struct.Struct("=IBBHQii")  # struct fanotify_event_metadata
_INFO: Final = struct.Struct("=BBHiiIi")  # struct fanotify_event_info_fid with the head of its struct file_handle
_INFO_DFID: Final = 3
_HANDLE_KERNFS: Final = 0xFE  # include/linux/exportfs.h: a u64, the id
_ID: Final = struct.Struct("=Q")
_BUFFER: Final = 1 << 16


class Changes:
    """What happened in one hierarchy since the last `read`."""

    def __init__(self, group: int) -> None:
        self._group = group

    @classmethod
    def of(cls, hierarchy: Hierarchy) -> Changes | None:
        """Watch a mounted hierarchy; None where that is no cgroup filesystem or the kernel does not let us."""
        try:
            device = os.stat(hierarchy.mountpoint).st_dev
            if hierarchy.device != f"{os.major(device)}:{os.minor(device)}":
                return None  # a recorded tree: a mark would be on the whole disk
            group = libc.fanotify_init(_CLOEXEC | _NONBLOCK | _REPORT_DIR_FID)
        except OSError:
            return None
        try:
            libc.fanotify_mark(group, _MARK_ADD | _MARK_FILESYSTEM, _BIRTHS | _MODIFY | _ONDIR, hierarchy.mountpoint)
        except OSError:
            os.close(group)
            return None
        return cls(group)

    def close(self) -> None:
        """Watch no more."""
        os.close(self._group)

    def read(self) -> dict[int, bool] | None:
        """Return the ids of the directories in which something happened, True where a cgroup began or ended.

        None where events were lost: anything may have happened.
        """
        found: dict[int, bool] = {}
        lost = False
        while True:
            try:
                events = os.read(self._group, _BUFFER)
            except BlockingIOError:
                return None if lost else found
            except OSError:
                return None
            ids = parse_events(events)
            lost |= ids is None
            for number, born in (ids or {}).items():
                found[number] = found.get(number, False) or born


def parse_events(events: bytes) -> dict[int, bool] | None:
    """Return the ids of the directories, see `Changes.read`; None with an event of lost events or of an unknown form."""
    found: dict[int, bool] = {}
    start = 0
    while start < len(events):
        length, _, _, head, mask, _, _ = _EVENT.unpack_from(events, start)
        if mask & _Q_OVERFLOW or length < head + _INFO.size + _ID.size:
            return None
        kind, _, _, _, _, size, handle = _INFO.unpack_from(events, start + head)
        if kind != _INFO_DFID or size != _ID.size or handle != _HANDLE_KERNFS:
            return None
        (number,) = _ID.unpack_from(events, start + head + _INFO.size)
        found[number] = found.get(number, False) or bool(mask & _BIRTHS)
        start += length
    return found
