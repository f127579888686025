"""The maps of a job's user namespace: which ids outside its ids 0.. are.

Root maps 0..65535 onto a range of its own, never 0 to 0: a process that is 0 on both sides owns the host's files and
could write /proc/sys/kernel/core_pattern. An ordinary user maps 0 to itself, the one map that needs no privilege.
Sources: man 7 user_namespaces, man 5 subuid.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from nsagent.errors import AccessError, LaunchError

COUNT: Final = 65536
FALLBACK: Final = 100_000  # where /etc/subuid has no range for root, as is common


class IdMaps(NamedTuple):
    """Where the namespace's ids begin outside, and how many there are; `setgroups`: may it still be called inside."""

    uid: int
    gid: int
    length: int
    setgroups: bool

    def describe(self) -> str:
        """Return the maps as the plan shows them."""
        last = f"..{self.length - 1}" if self.length > 1 else ""
        return (
            f"uid 0{last} is {self.uid}.. outside, gid 0{last} is {self.gid}.."
            if last
            else (f"uid 0 is {self.uid} outside, gid 0 is {self.gid}")
        )


def parse_subordinate(text: str, user: str, uid: int) -> int | None:
    """Return the start of the first range of `user` (by name or number) with at least COUNT ids, or None; subuid(5)."""
    for line in text.splitlines():
        owner, _, rest = line.strip().partition(":")
        start, _, count = rest.partition(":")
        if owner in (user, str(uid)) and start.isdigit() and count.isdigit() and int(count) >= COUNT and int(start) > 0:
            return int(start)
    return None


def _read_subordinate(path: str) -> int:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse_subordinate(file.read(), "root", 0) or FALLBACK
    except OSError:
        return FALLBACK


def choose(euid: int, egid: int, etc: str = "/etc") -> IdMaps:
    """Return the maps for a job of this user."""
    if euid != 0:
        return IdMaps(euid, egid, 1, False)
    return IdMaps(_read_subordinate(f"{etc}/subuid"), _read_subordinate(f"{etc}/subgid"), COUNT, True)


def write(pid: int, maps: IdMaps, procfs: str = "/proc") -> None:
    """Write the maps of `pid`'s user namespace, once. Raises AccessError (EPERM) or LaunchError naming the file."""
    files = [] if maps.setgroups else [("setgroups", "deny")]  # before gid_map, which else is refused to a user
    files += [("uid_map", f"0 {maps.uid} {maps.length}"), ("gid_map", f"0 {maps.gid} {maps.length}")]
    for name, text in files:
        path = f"{procfs}/{pid}/{name}"
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(fd, text.encode())
            finally:
                os.close(fd)
        except PermissionError as exc:
            raise AccessError(
                f"ids: {name} of the job's user namespace cannot be '{text}': {exc.strerror}",
                hint="these ids must exist in this user namespace; all but one's own need CAP_SETUID and CAP_SETGID",
            ) from exc
        except OSError as exc:
            raise LaunchError(f"ids: {name}: {exc.strerror}", stage="ids", call="write", errno=exc.errno or 0, path=path) from exc
