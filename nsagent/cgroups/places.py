"""What a reader keeps of a cgroup between readings: descriptors within a budget, and the bytes it read last."""

from __future__ import annotations

import collections
import os
import resource
from collections.abc import Collection, Mapping
from typing import Any, Final

from nsagent.cgroups.falls import Lost
from nsagent.cgroups.files import GONE, open_file, read_kept, read_once
from nsagent.cgroups.layout import Hierarchy
from nsagent.cgroups.stats import CgroupStats
from nsagent.errors import NsagentError

MOST_FILES: Final = 9000  # 45 MB of kernel memory
_MOST_DIRECTORIES: Final = 16384
_PINNED_BYTES: Final = 5 << 10  # by a cgroup file's descriptor after its first read (seq_file's page and more), measured on 6.18
_DIRECTORY_BYTES: Final = 1 << 10
_READ_ONCE: Final = -1  # in place of a descriptor: most files are never read again, because the fast lane stands for them


class Budget:
    """How many descriptors may be kept: of the soft RLIMIT_NOFILE a half for directories and a quarter for files."""

    def __init__(self, most: int | None = None) -> None:
        if most is None:
            soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = 1 << 20 if soft == resource.RLIM_INFINITY else soft
        self.files_left = self._files = min(most // 4, MOST_FILES)
        self.directories_left = self._directories = min(most // 2, _MOST_DIRECTORIES)

    @property
    def kernel_memory_bytes(self) -> int:
        """Kernel memory of what is kept now, estimated."""
        files, directories = self._files - self.files_left, self._directories - self.directories_left
        return files * _PINNED_BYTES + directories * _DIRECTORY_BYTES


class Record:
    """A cgroup: its path, its files' bytes by part, what they were parsed to, and the parts whose bytes changed since."""

    __slots__ = ("changed", "files", "ids", "limit", "lost", "parsed", "path", "stats", "wanted")

    def __init__(self, path: str) -> None:
        self.path = path
        self.ids: Mapping[str, int] = {}
        self.wanted = True
        self.files: dict[str, dict[str, bytes]] = collections.defaultdict(dict)
        self.changed: set[str] = set()
        self.parsed: dict[str, Any] = {}
        self.lost: Lost = {}
        self.limit: float | None = None
        self.stats = CgroupStats()

    def put(self, part: str, name: str, text: bytes) -> None:
        """Take in what a file has."""
        files = self.files[part]
        if files.get(name) != text:
            files[name] = text
            self.changed.add(part)

    def forget(self, part: str, name: str) -> None:
        """A file is not there, or not read, any more."""
        if self.files[part].pop(name, None) is not None:
            self.changed.add(part)


class Place:
    """A cgroup in one hierarchy. Without a descriptor of its directory, where those are used up, files are opened by path."""

    __slots__ = (
        "_base",
        "_budget",
        "_directory",
        "_kept",
        "_listed",
        "above",
        "controllers",
        "gone",
        "hierarchy",
        "id",
        "is_root",
        "record",
        "served",
        "stat",
        "stat_read",
        "told",
    )

    def __init__(self, hierarchy: Hierarchy, record: Record, number: int, directory: str, budget: Budget) -> None:
        """Raises OSError: it is not there (any more)."""
        self.hierarchy = hierarchy
        self.record = record
        self.id = number
        self.above: int | None = None  # the id of its parent
        self.gone = False
        self.is_root = record.path == (hierarchy.prefix or "/")
        self.controllers = hierarchy.controllers if hierarchy.version == 1 else frozenset[str]()
        self._kept: dict[str, int] = {}
        self._listed: bytes | None = None
        self.told: int | None = None  # digest of the fast lane's record
        self.served: frozenset[str] = frozenset()  # the files it stands for
        self.stat: int | None = None  # what it says memory.stat goes by
        self.stat_read: int | None = None  # what memory.stat went by when it was read
        self._budget = budget
        self._base = directory + "/"
        self._directory: int | None = None
        if budget.directories_left > 0:
            self._directory = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._base = ""
            budget.directories_left -= 1

    @classmethod
    def open(cls, hierarchy: Hierarchy, record: Record, number: int, budget: Budget) -> Place | None:
        """Return the place of a cgroup in `hierarchy`; None where it is not there or may not be read. Raises NsagentError."""
        directory = hierarchy.directory(record.path)
        if directory is None:
            return None
        try:
            return cls(hierarchy, record, number, directory, budget)
        except OSError as exc:
            if exc.errno in GONE:
                return None
            raise NsagentError(f"{directory} cannot be opened: {exc.strerror}") from exc

    def close(self) -> None:
        """Close its descriptors."""
        self.gone = True
        for descriptor in self._kept.values():
            if descriptor >= 0:
                os.close(descriptor)
                self._budget.files_left += 1
        self._kept.clear()
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None
            self._budget.directories_left += 1

    def read(self, name: str, *, keep: bool = False) -> bytes | None:
        """Read a file; None where there is none to read. `keep` its descriptor, from the second reading on, if the budget has
        room. Raises NsagentError."""
        kept = self._kept.get(name)
        if kept is None or kept < 0:
            if not keep or kept is None or self._budget.files_left <= 0:
                if keep:
                    self._kept[name] = _READ_ONCE
                return read_once(self._base + name, self._directory)
            kept = open_file(self._base + name, self._directory)
            if kept is None:
                return None
            self._kept[name] = kept
            self._budget.files_left -= 1
        text = read_kept(kept, name)
        if text is None:  # a removed cgroup's gives ENODEV
            del self._kept[name]
            self._budget.files_left += 1
            os.close(kept)
        return text

    def leave(self) -> None:
        """The fast lane says nothing of it any more."""
        self.told = self.stat = None
        self.served = frozenset()

    def lives(self) -> bool:
        """Tell whether the cgroup still exists, so that a file it lacks is one that it never had: a removed one has no file."""
        return self.has("cgroup.procs")

    def stands(self) -> bool:
        """Tell whether what is read is still this cgroup, and not one made anew: without a descriptor it is read by path."""
        try:
            return os.stat(self._base or ".", dir_fd=self._directory).st_ino == self.id
        except OSError:
            return False

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        try:
            os.stat(self._base + name, dir_fd=self._directory)
        except OSError:
            return False
        return True

    def list(self) -> list[str]:
        """Return the names of its files."""
        try:
            return os.listdir(self._base if self._directory is None else self._directory)
        except OSError:
            return []

    def look_at_controllers(self, touched: Collection[int] | None = None) -> bool:
        """Read which controllers a v2 cgroup has; tell whether they changed.

        They come and go with the parent's cgroup.subtree_control and its own cgroup.type: where `touched`, the cgroups in which
        something was written, has neither, they are as they were.
        """
        if self._listed is not None and touched is not None and self.id not in touched and self.above not in touched:
            return False
        text = self.read("cgroup.controllers", keep=True)
        if text == self._listed:
            return False
        self._listed = text
        self.controllers = frozenset(os.fsdecode(text or b"").split())
        return True
