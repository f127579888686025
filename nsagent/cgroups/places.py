"""What a reader keeps of a cgroup between readings: descriptors within a budget, and the bytes it read last.

There are thousands, so each is small: what was not opened has no descriptor, what has none has no table of them, and files that
are alike in many cgroups are kept once.
"""

from __future__ import annotations

import functools
import os
import resource
from collections.abc import Collection, Mapping
from typing import Final

from nsagent.cgroups.falls import Lost
from nsagent.cgroups.files import GONE, open_file, read_kept, read_once
from nsagent.cgroups.layout import Hierarchy
from nsagent.cgroups.stats import CgroupStats
from nsagent.errors import NsagentError

MOST_FILES: Final = 6000  # 31 MB of kernel memory: with the directories and the maps of BPF below 64
_MOST_DIRECTORIES: Final = 12288
_PINNED_BYTES: Final = 5 << 10  # by a cgroup file's descriptor after its first read (seq_file's page and more), measured on 6.18
_DIRECTORY_BYTES: Final = 1 << 10
_NOTHING: Final[frozenset[str]] = frozenset()
UNSETTLED: Final = -1.0  # in place of a limit
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
    """A cgroup: its path, its files' bytes by part, what they were parsed to, and the parts whose bytes changed since.

    The files of a part that did not change may be those of another record too. On v2 `limit` bounds its children's
    memory.
    """

    __slots__ = ("changed", "files", "ids", "limit", "lost", "path", "stats", "wanted")

    def __init__(self, path: str) -> None:
        self.path = path
        self.ids: Mapping[str, int] = {}
        self.wanted = True
        self.files: dict[str, dict[str, bytes]] = {}
        self.changed: frozenset[str] = _NOTHING
        self.lost: Lost = {}
        self.limit: float | None = UNSETTLED
        self.stats = CgroupStats()

    def put(self, part: str, name: str, text: bytes) -> None:
        """Take in what a file has."""
        if self.files.get(part, {}).get(name) != text:
            self._change(part)[name] = text

    def forget(self, part: str, name: str) -> None:
        """A file is not there, or not read, any more."""
        if name in self.files.get(part, {}):
            del self._change(part)[name]

    def take_changed(self) -> frozenset[str]:
        """Return the parts whose files changed since the last call."""
        changed, self.changed = self.changed, _NOTHING
        return changed

    def parse_again(self, part: str) -> None:
        """What the files of a part are parsed to may be otherwise by now."""
        self._change(part)

    def _change(self, part: str) -> dict[str, bytes]:
        """Return the files of a part, to be changed."""
        if part not in self.changed:
            self.changed |= {part}
            self.files[part] = dict(self.files.get(part, {}))
        return self.files[part]


class Place:
    """A cgroup in one hierarchy. Its directory is opened when a file is first read; where descriptors are used up, or only the
    fast lane tells of it, it has none."""

    __slots__ = (
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

    def __init__(self, hierarchy: Hierarchy, record: Record, number: int, budget: Budget) -> None:
        """`number` is its kernfs id; 0: whichever has the path."""
        self.hierarchy = hierarchy
        self.record = record
        self.id = number
        self.above: int | None = None  # the id of its parent
        self.gone = False
        self.is_root = record.path == (hierarchy.prefix or "/")
        self.controllers = hierarchy.controllers if hierarchy.version == 1 else _NOTHING
        self.told = False  # what the last walk of the fast lane said of it is in its record
        self.served: frozenset[str] = _NOTHING  # the files it stands for
        self.stat: int | None = None  # what it says memory.stat goes by
        self.stat_read: int | None = None  # what memory.stat went by when it was read
        self._kept: dict[str, int] | None = None
        self._listed: bytes | None = None
        self._budget = budget
        self._directory: int | None = None

    def close(self) -> None:
        """Close its descriptors."""
        self.gone = True
        for descriptor in (self._kept or {}).values():
            if descriptor >= 0:
                os.close(descriptor)
                self._budget.files_left += 1
        self._kept = None
        if self._directory is not None:
            os.close(self._directory)
            self._directory = None
            self._budget.directories_left += 1

    def read(self, name: str, *, keep: bool = False) -> bytes | None:
        """Read a file; None where there is none to read. `keep` its descriptor, from the second reading on, if the budget has
        room. Raises NsagentError."""
        kept = self._kept.get(name) if self._kept else None
        if kept is None or kept < 0:
            self._open_directory()
            if self.gone:
                return None
            if not keep or kept is None or self._budget.files_left <= 0:
                if keep:
                    self._keep(name, _READ_ONCE)
                return read_once(self._path(name), self._directory)
            kept = open_file(self._path(name), self._directory)
            if kept is None:
                return None
            self._keep(name, kept)
            self._budget.files_left -= 1
        text = read_kept(kept, name)
        if text is None and self._kept:  # a removed cgroup's gives ENODEV
            del self._kept[name]
            self._budget.files_left += 1
            os.close(kept)
        return text

    def _keep(self, name: str, descriptor: int) -> None:
        if self._kept is None:
            self._kept = {}
        self._kept[name] = descriptor

    def _path(self, name: str) -> str:
        """Return the path of a file, from the directory's descriptor where there is one."""
        return name if self._directory is not None else f"{self.hierarchy.directory(self.record.path)}/{name}"

    def _open_directory(self) -> None:
        """Have a descriptor of the directory, if the budget has room. If its path leads to another cgroup by now, it is gone."""
        if self._directory is not None or self._budget.directories_left <= 0 or self.gone:
            return
        path = self._path(".")
        try:
            directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno not in GONE:
                raise NsagentError(f"{path} cannot be opened: {exc.strerror}") from exc
            self.gone = True
            return
        if self.id and os.fstat(directory).st_ino != self.id:
            os.close(directory)
            self.gone = True
            return
        self._directory = directory
        self._budget.directories_left -= 1

    def leave(self) -> None:
        """The fast lane says nothing of it any more."""
        self.told, self.stat, self.served = False, None, _NOTHING

    def lives(self) -> bool:
        """Tell whether the cgroup still exists, so that a file it lacks is one that it never had: a removed one has no file."""
        return not self.gone and self.has("cgroup.procs")

    @property
    def is_system(self) -> bool:
        """Tell whether it is the whole system: a v2 tree's own root, not that of a cgroup namespace, which has a cgroup.type."""
        return self.is_root and not self.has("cgroup.type")

    def stands(self) -> bool:
        """Tell whether what is read is still this cgroup, and not one made anew: without a descriptor it is read by path."""
        try:
            return os.stat(self._path("."), dir_fd=self._directory).st_ino == self.id
        except OSError:
            return False

    def has(self, name: str) -> bool:
        """Tell whether a file is there."""
        try:
            os.stat(self._path(name), dir_fd=self._directory)
        except OSError:
            return False
        return True

    def list(self) -> list[str]:
        """Return the names of its files."""
        try:
            return os.listdir(self._path(".") if self._directory is None else self._directory)
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
        self.controllers = _controllers(text or b"")
        return True


@functools.lru_cache(maxsize=64)
def _controllers(text: bytes) -> frozenset[str]:
    return frozenset(os.fsdecode(text).split())
