"""What CMD sees as its filesystem, as asked for: a root of its own, volumes, tmpfs. Data, and how its words are read."""

from __future__ import annotations

import os
import posixpath
from typing import Final, NamedTuple

from nsagent.errors import UsageError

_OURS: Final = ("/proc", "/sys")  # mounted by us: what would lie there would be covered
_TMPFS_WORDS: Final = ("ro", "exec")
_TMPFS_VALUES: Final = ("size", "mode", "uid", "gid", "nr_inodes")


class Volume(NamedTuple):
    """`source` of the host appears at `target` inside, with all that is mounted below it."""

    source: str
    target: str
    read_only: bool = False


class Tmpfs(NamedTuple):
    """An empty filesystem in memory at `target`; `data` are tmpfs(5)'s own options."""

    target: str
    data: str = ""
    read_only: bool = False
    executable: bool = False


class Filesystem(NamedTuple):
    """`rootfs`: a directory that becomes the root, "" for the host's. `read_only`: all but volumes, tmpfs, /dev."""

    rootfs: str = ""
    read_only: bool = False
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()

    def check(self) -> None:
        """Raise UsageError where it makes no sense."""
        for target in self.targets:
            if self.targets.count(target) > 1:
                raise UsageError(f"{target} is mounted twice", hint="one --volume or --tmpfs a place")

    @property
    def targets(self) -> tuple[str, ...]:
        """Where volumes and tmpfs are, inside; without `..`, which a symlink in the root may make mean something else."""
        targets = (*(each.target for each in self.volumes), *(each.target for each in self.tmpfs))
        return tuple(map(plain, targets))

    def __bool__(self) -> bool:
        """Whether anything is asked for that needs a mount namespace."""
        return self != Filesystem()


def plain(target: str) -> str:
    """Return an absolute path without `.`, `..` and doubled slashes; two that lead it are one (posixpath keeps them)."""
    return posixpath.normpath("/" + target.lstrip("/"))


def parse_rootfs(text: str) -> str:
    """Return the absolute path of --rootfs DIR. Raises UsageError where it is no directory, or is the host's root."""
    path = os.path.realpath(text)
    if not os.path.isdir(path):
        raise UsageError(f"--rootfs {text!r} is not a directory", hint="a directory that holds bin, etc, lib, ... of the job")
    if path == "/":
        raise UsageError("--rootfs / is the host's own root", hint="leave it out: that is the default")
    return path


def parse_volume(text: str) -> Volume:
    """Parse SRC:DST[:ro|:rw]; a relative SRC is one of the current directory. Raises UsageError."""
    hint = "SRC:DST or SRC:DST:ro, such as --volume ./data:/data:ro"
    source, separator, rest = text.partition(":")
    target, _, mode = rest.partition(":")
    if not source or not separator or mode not in ("", "ro", "rw"):
        raise UsageError(f"--volume {text!r} is not SRC:DST[:ro]", hint=hint)
    return Volume(os.path.abspath(source), _checked(target, f"--volume {text!r}", hint), mode == "ro")


def parse_tmpfs(text: str) -> Tmpfs:
    """Parse DST[:OPTION,...]: size=64M, mode=1777, uid=, gid=, nr_inodes=, ro, exec. Raises UsageError."""
    hint = f"DST, or DST:size=64M,mode=1777; options: {', '.join(f'{v}=' for v in _TMPFS_VALUES)}, {', '.join(_TMPFS_WORDS)}"
    target, _, options = text.partition(":")
    words = [word for word in options.split(",") if word]
    data = [word for word in words if word.partition("=")[0] in _TMPFS_VALUES and word.partition("=")[2]]
    unknown = [word for word in words if word not in data and word not in _TMPFS_WORDS]
    if unknown:
        raise UsageError(f"--tmpfs {text!r}: no option {unknown[0]!r}", hint=hint)
    return Tmpfs(_checked(target, f"--tmpfs {text!r}", hint), ",".join(data), "ro" in words, "exec" in words)


def _checked(target: str, what: str, hint: str) -> str:
    if not target.startswith("/"):
        raise UsageError(f"{what}: {target or 'DST'} is not absolute", hint=hint)
    place = plain(target)
    if place in ("/", "/dev"):
        raise UsageError(f"{what}: nothing can be mounted at {place}", hint="--rootfs sets the root; /dev is the job's own")
    if place.startswith(tuple(f"{path}/" for path in _OURS)) or place in _OURS:
        raise UsageError(f"{what}: {place} is below a mount of the kernel's", hint=f"not in {' or '.join(_OURS)}")
    return target
