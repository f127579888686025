"""`--user` as docker means it: ids or names, looked up in the job's own /etc/passwd and /etc/group.

With no root of its own the host's databases are asked, so that names of NSS work.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from nsagent import libc
from nsagent.errors import LaunchError, UsageError

_LARGEST = 1 << 20  # bytes of a passwd that are read


class User(NamedTuple):
    """Who CMD runs as."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    home: str = "/"


def check(text: str) -> str:
    """Return USER[:GROUP] as it is. Raises UsageError where it cannot be one."""
    user, separator, group = text.partition(":")
    for word in (user, group) if separator else (user,):
        if not word or not word.isprintable() or ":" in word or (word.isdigit() and int(word) >= (1 << 32) - 1):
            raise UsageError(f"--user {text!r} is not USER[:GROUP]", hint="names, or numbers below 4294967295")
    return text


def resolve(text: str, rootfs: str) -> User:
    """Look `text` up. A number needs no entry. Raises LaunchError for an unknown name."""
    word, _, group = text.partition(":")
    passwd, groups = (_read_database(rootfs, name) for name in ("passwd", "group"))
    entry = next((row for row in passwd if len(row) >= 6 and (row[0] == word or row[2] == word)), None)
    if entry is None and not word.isdigit():
        raise _unknown("user", word, rootfs)
    uid = int(entry[2]) if entry else int(word)
    home = (entry[5] if entry else "") or "/"
    if group:
        row = next((row for row in groups if len(row) >= 3 and (row[0] == group or row[2] == group)), None)
        if row is None and not group.isdigit():
            raise _unknown("group", group, rootfs)
        return User(uid, int(row[2]) if row else int(group), (), home)
    if entry is None:
        return User(uid, 0, (), home)
    members = tuple(int(row[2]) for row in groups if len(row) >= 4 and entry[0] in row[3].split(","))
    return User(uid, int(entry[3]), members, home)


def _unknown(what: str, name: str, rootfs: str) -> LaunchError:
    where = f"{rootfs}/etc/{'passwd' if what == 'user' else what}" if rootfs else "this host"
    return LaunchError(f"--user: no {what} {name!r} in {where}", stage="user", hint="a number needs no entry")


def _read_database(rootfs: str, name: str) -> list[list[str]]:
    """Return the rows of the job's own file, found inside its root whatever links are there; or of the host's databases."""
    if not rootfs:
        return _host_database(name)
    try:
        root = os.open(rootfs, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fd = libc.openat2(root, f"etc/{name}", os.O_RDONLY | os.O_NONBLOCK, libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS)
        finally:
            os.close(root)
        with open(fd, encoding="utf-8", errors="replace") as file:
            rows = [line.rstrip("\n").split(":") for line in file.read(_LARGEST).splitlines()]
    except OSError:
        return []
    return [row for row in rows if len(row) >= 3 and row[2].isdigit() and (name != "passwd" or (row[3:4] and row[3].isdigit()))]


def _host_database(name: str) -> list[list[str]]:
    if name == "passwd":
        import pwd

        return [[e.pw_name, "", str(e.pw_uid), str(e.pw_gid), e.pw_gecos, e.pw_dir] for e in pwd.getpwall()]
    import grp

    return [[e.gr_name, "", str(e.gr_gid), ",".join(e.gr_mem)] for e in grp.getgrall()]
