r"""Which cgroups are read and shown: by patterns of their paths, and by depth.

A pattern names cgroups, and means each of them with all that is below it. What excludes is stronger than what includes.

    /system.slice           that cgroup and all below it
    /system.slice/*         all below it, not itself
    *.service  docker/*     without a slash in front: anywhere in the tree
    /kubepods*/**/pod*      ** is any number of levels, none too

`*`, `?` and `[a-z]`, `[!a-z]` match within one name, never a slash. A backslash is itself: systemd's names have them. The root
is always selected, for its figures are the node's, and what is not shown counts for those above it all the same.
"""

from __future__ import annotations

import fnmatch
import functools
import re
from collections.abc import Iterable
from typing import Final

from nsagent.errors import UsageError

REASONS: Final = ("excluded", "not_included", "too_deep")
_KNOWN: Final = 1 << 16  # paths whose answer is kept
_ANY: Final = None  # the part of a pattern that is any number of names


class Glob:
    """One pattern. Whoever may make cgroups chooses their names, and must not be able to hold the agent up: what fnmatch makes
    of a pattern tries each star in one way, and levels are gone through once."""

    def __init__(self, pattern: str) -> None:
        """Raises UsageError: it is no pattern."""
        words = [word for word in pattern.split("/") if word]
        if not pattern or (not words and pattern != "/"):
            raise UsageError(
                f"{pattern!r} is no pattern of cgroups", hint="such as '/system.slice', '*.service' or '/kubepods*/**/pod*'"
            )
        if not pattern.startswith("/"):
            words.insert(0, "**")
        if words and words[-1] == "**":  # what is below, and all that is below that
            words[-1] = "*"
        self._parts = [_ANY if word == "**" else re.compile(fnmatch.translate(word)) for word in words]

    def covers(self, names: Iterable[str]) -> bool:
        """Tell whether the cgroup whose path has those names, or one above it, is one that the pattern names."""
        parts, end = self._parts, len(self._parts)
        at = self._skip({0})
        if end in at:
            return True
        for name in names:
            at = self._skip({i if parts[i] is _ANY else i + 1 for i in at if (part := parts[i]) is _ANY or part.fullmatch(name)})
            if end in at:
                return True
        return False

    def _skip(self, at: set[int]) -> set[int]:
        """Add where one also is if a `**` is no name at all."""
        for i, part in enumerate(self._parts):
            if part is _ANY and i in at:
                at.add(i + 1)
        return at


class Selection:
    """What is selected. Without `include` everything; `max_depth` 0 is the root alone, None no bound."""

    def __init__(self, include: tuple[str, ...] = (), exclude: tuple[str, ...] = (), max_depth: int | None = None) -> None:
        """Raises UsageError: a pattern is none."""
        self.everything = not include and not exclude and max_depth is None
        self._include = [Glob(pattern) for pattern in include]
        self._exclude = [Glob(pattern) for pattern in exclude]
        self._max_depth = max_depth
        self.reason = functools.lru_cache(_KNOWN)(self._reason)

    def selects(self, path: str) -> bool:
        """Tell whether that cgroup is selected."""
        return self.everything or self.reason(path) is None

    def _reason(self, path: str) -> str | None:
        """Return why a cgroup is not selected, one of REASONS; None where it is."""
        names = path.split("/")[1:]
        if path == "/":
            return None
        if any(glob.covers(names) for glob in self._exclude):
            return "excluded"
        if self._include and not any(glob.covers(names) for glob in self._include):
            return "not_included"
        return "too_deep" if self._max_depth is not None and len(names) > self._max_depth else None
