"""Freeze, kill and remove a cgroup in all its hierarchies, whatever its processes do against it.

    v2 with cgroup.kill (5.14)   one write
    v1, or v2 before             pids.max = 0    no fork succeeds from here on
                                 freeze, and wait until the kernel says FROZEN; else forks in flight escape the list
                                 SIGKILL every process of every descendant
                                 thaw: they die
Both are repeated until nothing is left: on a hybrid host a process may be in the cgroup of one hierarchy only.
`places` are the cgroup's directories by hierarchy. Source: cgroups(7), Documentation/admin-guide/cgroup-v1/freezer-subsystem.rst.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from nsagent.cgroups.files import read, try_write
from nsagent.cgroups.layout import Hierarchy
from nsagent.errors import NsagentError

Places = Mapping[Hierarchy, str]
_LONGEST_PAUSE: Final = 0.02


def walk_up(place: str) -> Iterator[str]:
    """Yield a cgroup's directory and all below it, children before their parents."""
    for directory, _, _ in os.walk(place, topdown=False):
        yield directory


def read_pids(places: Iterable[str]) -> set[int]:
    """Return the processes of cgroups and their descendants. One that this pid namespace cannot name is left out."""
    found: set[int] = set()
    for place in places:
        for directory in walk_up(place):
            # EOPNOTSUPP in a threaded cgroup, whose processes stand in its domain's list; ENODEV when removed meanwhile
            with contextlib.suppress(OSError), open(f"{directory}/cgroup.procs", "rb") as file:
                found.update(map(int, file.read().split()))
    return found - {0}


def freeze(places: Places, deadline: float) -> None:
    """Freeze, and wait until the kernel says that it is done."""
    _set_frozen(places, True)
    if not _wait(lambda: is_frozen(places), deadline):
        raise NsagentError(f"{_name(places)} is not frozen after {deadline:g} s")


def thaw(places: Places) -> None:
    """Undo freeze."""
    _set_frozen(places, False)


def is_frozen(places: Places) -> bool:
    """Tell whether the kernel says that every process stands still; False where nothing can freeze."""
    version, place = _freezer(places)
    if version == 2:
        return b"frozen 1" in read(f"{place}/cgroup.events")
    return version == 1 and read(f"{place}/freezer.state").strip() == b"FROZEN"


def kill(places: Places, deadline: float) -> None:
    """End every process of the cgroup; see the module's text for how."""
    end = time.monotonic() + deadline
    for place in places.values():  # v2's and v1's file have one name; harmless where a hierarchy has none
        try_write(f"{place}/pids.max", "0")
    pause = 0.0005
    while True:
        _kill_v2(places)
        if not _populated(places):
            return
        _kill_frozen(places, end)
        if _wait(lambda: not _populated(places), min(pause, max(end - time.monotonic(), 0))):
            return
        if time.monotonic() >= end:
            raise NsagentError(f"{_name(places)} still has processes {sorted(read_pids(places.values()))} after {deadline:g} s")
        pause = min(pause * 2, 0.2)


def remove(places: Iterable[str], deadline: float) -> None:
    """Remove the cgroup's directories, children first; retry while one is busy, as with a process that is still exiting."""
    end = time.monotonic() + deadline
    left = list(places)
    pause = 0.0005
    while left:
        left = [place for place in left if not _remove_tree(place)]
        if left and time.monotonic() >= end:
            pids = sorted(read_pids(left))
            raise NsagentError(f"{', '.join(left)} cannot be removed after {deadline:g} s: processes {pids}")
        if left:
            time.sleep(pause)
            pause = min(pause * 2, _LONGEST_PAUSE)


def _remove_tree(place: str) -> bool:
    try:
        os.rmdir(place)
        return True
    except FileNotFoundError:
        return True
    except OSError:
        pass  # it has children, or is busy
    for directory in walk_up(place):
        with contextlib.suppress(OSError):
            os.rmdir(directory)
    return not os.path.isdir(place)


def _kill_v2(places: Places) -> None:
    for hierarchy, place in places.items():
        if hierarchy.version == 2:
            try_write(f"{place}/cgroup.kill", "1")


def _kill_frozen(places: Places, end: float) -> None:
    try:
        _set_frozen(places, True)
        # A process in uninterruptible sleep cannot be frozen: after a while kill the others, and come again.
        _wait(lambda: is_frozen(places) or not _populated(places), min(2.0, max(end - time.monotonic(), 0.05)))
        for pid in read_pids(places.values()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
    finally:
        _set_frozen(places, False)


def _freezer(places: Places) -> tuple[int, str]:
    """Return (version, directory) of what freezes: v1's freezer, else v2, else (0, "").

    Never both: a process that v1's has stopped does not get to where v2 counts it as frozen.
    """
    for hierarchy, place in places.items():  # v1 first: see Layout
        if hierarchy.version == 2 or "freezer" in hierarchy.controllers:
            return hierarchy.version, place
    return 0, ""


def _set_frozen(places: Places, frozen: bool) -> None:
    version, place = _freezer(places)
    if version == 2:
        try_write(f"{place}/cgroup.freeze", str(int(frozen)))
    elif version == 1:
        try_write(f"{place}/freezer.state", "FROZEN" if frozen else "THAWED")


def _populated(places: Places) -> bool:
    """Tell whether any process is left in any hierarchy; a zombie does not count."""
    for hierarchy, place in places.items():
        if hierarchy.version == 2:
            if b"populated 1" in read(f"{place}/cgroup.events"):
                return True
        elif read_pids([place]):
            return True
    return False


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    end, pause = time.monotonic() + seconds, 0.0002
    while not condition():
        if time.monotonic() >= end:
            return False
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE)
    return True


def _name(places: Places) -> str:
    return next(iter(places.values()), "the cgroup")
