"""The maps of a job's user namespace: which ids outside its ids are.

Root maps 0..65535 onto a range of its own, never 0 to 0: a process that is 0 on both sides owns the host's files and
could write /proc/sys/kernel/core_pattern. An ordinary user maps 0 to itself, which needs no privilege, and 1 and up to
the range that /etc/subuid gives it, which newuidmap(1) writes; without one it has that one id.
Sources: man 7 user_namespaces, man 5 subuid, man 1 newuidmap.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

from nsagent.errors import AccessError, LaunchError, UsageError

COUNT: Final = 65536
FALLBACK: Final = 100_000  # where /etc/subuid has no range for root, as is common
_HELPERS: Final = {"uid_map": "newuidmap", "gid_map": "newgidmap"}


class Extent(NamedTuple):
    """`length` ids from `inside` on are those from `outside` on."""

    inside: int
    outside: int
    length: int = 1


class IdMaps(NamedTuple):
    """All extents; `setgroups`: may it still be called inside. `helpers`: newuidmap and newgidmap write the maps."""

    uids: tuple[Extent, ...]
    gids: tuple[Extent, ...]
    setgroups: bool = True
    helpers: bool = False

    def describe(self) -> str:
        """Return the maps as the plan shows them."""
        both = [*(("uid", each) for each in self.uids), *(("gid", each) for each in self.gids)]
        text = ", ".join(
            f"{kind} {each.inside} is {each.outside} outside"
            if each.length == 1
            else f"{kind} {each.inside}..{each.inside + each.length - 1} is {each.outside}.. outside"
            for kind, each in both
        )
        return text + ("; written by newuidmap and newgidmap" if self.helpers else "")


def has(extents: tuple[Extent, ...], number: int) -> bool:
    """Return whether an id exists inside."""
    return any(each.inside <= number < each.inside + each.length for each in extents)


def parse_extent(text: str, flag: str) -> Extent:
    """Parse INSIDE:OUTSIDE[:COUNT]. Raises UsageError."""
    words = text.split(":")
    if len(words) not in (2, 3) or not all(word.isascii() and word.isdigit() for word in words):
        raise UsageError(f"{flag} {text!r} is not INSIDE:OUTSIDE[:COUNT]", hint=f"such as {flag} 0:100000:65536")
    extent = Extent(*map(int, words))
    if not extent.length or max(extent[0], extent[1]) + extent.length > 1 << 32:
        raise UsageError(f"{flag} {text!r}: no such ids", hint="ids are below 4294967295, and COUNT at least 1")
    return extent


def parse_subordinate(text: str, user: str, uid: int) -> int | None:
    """Return the start of the first range of `user` (by name or number) with at least COUNT ids, or None; subuid(5)."""
    for line in text.splitlines():
        owner, _, rest = line.strip().partition(":")
        start, _, count = rest.partition(":")
        if owner in (user, str(uid)) and start.isdigit() and count.isdigit() and int(count) >= COUNT and int(start) > 0:
            return int(start)
    return None


def _read_subordinate(path: str, user: str, uid: int) -> int | None:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return parse_subordinate(file.read(), user, uid)
    except OSError:
        return None


def _helpers_are_there() -> bool:
    path = os.environ.get("PATH", "/usr/bin").split(":")
    return all(any(os.access(os.path.join(part, helper), os.X_OK) for part in path) for helper in _HELPERS.values())


def choose(
    euid: int,
    egid: int,
    *,
    uids: tuple[Extent, ...] = (),
    gids: tuple[Extent, ...] = (),
    inside: tuple[int, int] = (0, 0),
    etc: str = "/etc",
) -> IdMaps:
    """Return the maps for a job of this user: as asked for with `uids` and `gids`, else the default.

    `inside`: the ids a user with no range of its own wants to have there.
    """
    if uids or gids:
        maps = IdMaps(uids or gids, gids or uids)
        own = all(e.length == 1 for e in (*maps.uids, *maps.gids)) and len(maps.uids) == len(maps.gids) == 1
        own = own and maps.uids[0].outside == euid and maps.gids[0].outside == egid
        return maps._replace(setgroups=euid == 0 or not own, helpers=euid != 0 and not own)
    if euid == 0:
        start = _read_subordinate(f"{etc}/subuid", "root", 0), _read_subordinate(f"{etc}/subgid", "root", 0)
        return IdMaps((Extent(0, start[0] or FALLBACK, COUNT),), (Extent(0, start[1] or FALLBACK, COUNT),))
    if _helpers_are_there():
        import pwd

        try:
            name = pwd.getpwuid(euid).pw_name
        except KeyError:
            name = ""
        first_uid, first_gid = (_read_subordinate(f"{etc}/{file}", name, euid) for file in ("subuid", "subgid"))
        if first_uid and first_gid:
            return IdMaps(
                (Extent(0, euid), Extent(1, first_uid, COUNT)), (Extent(0, egid), Extent(1, first_gid, COUNT)), helpers=True
            )
    return IdMaps((Extent(inside[0], euid),), (Extent(inside[1], egid),), setgroups=False)


def write(pid: int, maps: IdMaps, procfs: str = "/proc") -> None:
    """Write the maps of `pid`'s user namespace, once. Raises AccessError (EPERM) or LaunchError naming the file."""
    if not maps.setgroups:  # before gid_map, which else is refused to a user
        _write(f"{procfs}/{pid}/setgroups", "deny")
    for name, extents in (("uid_map", maps.uids), ("gid_map", maps.gids)):
        if maps.helpers:
            _call(_HELPERS[name], [str(pid), *(str(number) for extent in extents for number in extent)])
        else:
            _write(f"{procfs}/{pid}/{name}", "\n".join(" ".join(map(str, extent)) for extent in extents))


def _write(path: str, text: str) -> None:
    name = os.path.basename(path)
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


def _call(helper: str, arguments: list[str]) -> None:
    """Run newuidmap or newgidmap, set-user-ID programs that know /etc/subuid; what they say is the error."""
    said, write_end = os.pipe()
    try:
        actions = [(os.POSIX_SPAWN_DUP2, write_end, 1), (os.POSIX_SPAWN_DUP2, write_end, 2)]
        pid = os.posix_spawnp(helper, [helper, *arguments], os.environ, file_actions=actions)
        os.close(write_end)
        write_end = -1
        text = os.read(said, 4096).decode(errors="replace").strip()
        status = os.waitpid(pid, 0)[1]
    except FileNotFoundError as exc:
        raise AccessError(f"ids: {helper} is missing", hint="install uidmap; or map your own ids alone") from exc
    except OSError as exc:
        raise LaunchError(f"ids: {helper}: {exc.strerror}", stage="ids", call=helper, errno=exc.errno or 0) from exc
    finally:
        os.close(said)
        if write_end >= 0:
            os.close(write_end)
    if status:
        raise AccessError(f"ids: {text or helper + ' failed'}", hint="/etc/subuid and /etc/subgid say which ranges a user has")
