"""The options of `nsagent run` that say what CMD can see and do: their words, and the parts of a RunSpec they mean."""

from __future__ import annotations

from typing import Any, Final

from nsagent.cli.option import Option
from nsagent.launch import filesystem, idmaps, security, users
from nsagent.launch.filesystem import Filesystem
from nsagent.launch.security import Security

OPTIONS: Final = (
    Option("--rootfs", metavar="DIR", help="Directory that becomes the root.  [default: the host's root]"),
    Option("--read-only", help="Mount the root read-only; volumes and tmpfs are not."),
    Option("--volume", short="-v", metavar="SRC:DST[:ro]", multiple=True, help="Show SRC of the host at DST; may be repeated."),
    Option("--tmpfs", metavar="DST[:size=N,...]", multiple=True, help="An empty DST in memory; may be repeated."),
    Option("--user", short="-u", metavar="USER[:GROUP]", help="Who CMD runs as: names or numbers, of its own /etc/passwd."),
    Option("--userns", choices=("auto", "none"), help="A user namespace; without: where needed."),
    Option("--map-uid", metavar="IN:OUT[:N]", multiple=True, help="Uids of the user namespace; may be repeated."),
    Option("--map-gid", metavar="IN:OUT[:N]", multiple=True, help="Its gids.  [default: as --map-uid]"),
    Option("--privileged", help="All capabilities, no seccomp filter, mounts as they are."),
    Option("--cap-add", metavar="CAP", multiple=True, help="Keep a capability such as SYS_ADMIN, or ALL; may be repeated."),
    Option("--cap-drop", metavar="CAP", multiple=True, help="Take one away, or ALL; may be repeated."),
    Option("--seccomp", metavar="FILE", help="Profile in docker's JSON form, or unconfined.  [default: like docker's]"),
)


def make_filesystem(words: dict[str, Any]) -> Filesystem:
    """Return the filesystem that was asked for. Raises UsageError."""
    return Filesystem(
        rootfs=filesystem.parse_rootfs(words["rootfs"]) if words["rootfs"] else "",
        read_only=words["read_only"],
        volumes=tuple(map(filesystem.parse_volume, words["volume"])),
        tmpfs=tuple(map(filesystem.parse_tmpfs, words["tmpfs"])),
    )


def make_security(words: dict[str, Any]) -> Security:
    """Return what CMD may do. Raises UsageError."""
    return Security(
        privileged=words["privileged"],
        cap_add=security.parse_capabilities(words["cap_add"], "--cap-add"),
        cap_drop=security.parse_capabilities(words["cap_drop"], "--cap-drop"),
        seccomp=security.parse_seccomp(words["seccomp"]) if words["seccomp"] else "",
    )


def identity_words(words: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a RunSpec that say who CMD is. Raises UsageError."""
    return {
        "user": users.check(words["user"]) if words["user"] else "",
        "userns": words["userns"] or "",
        "uid_map": tuple(idmaps.parse_extent(text, "--map-uid") for text in words["map_uid"]),
        "gid_map": tuple(idmaps.parse_extent(text, "--map-gid") for text in words["map_gid"]),
    }
