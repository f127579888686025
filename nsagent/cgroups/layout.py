"""Which cgroup hierarchies are mounted where, and which of them has a controller: v1, v2 or hybrid, from mountinfo.

v1 and v2 are told apart by controller, never by host: a hybrid host has v1 controllers and a v2 tree. Sources:
proc_pid_mountinfo(5), cgroups(7), cgroup_namespaces(7), Documentation/admin-guide/cgroup-v2.rst.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from nsagent.errors import AccessError, NsagentError, ParseError, UnsupportedError, VanishedError

CGROUPFS: Final = "/sys/fs/cgroup"
# The options of a v1 mount that are controllers (kernel/cgroup/cgroup-v1.c: all others are flags of the mount).
_V1_CONTROLLERS: Final = frozenset(
    {"cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "net_cls", "net_prio", "perf_event", "hugetlb"}
    | {"pids", "rdma", "misc", "debug"}
)
_V1_NAMES: Final = {"io": "blkio"}
_OCTAL: Final = re.compile(rb"\\([0-7]{3})")


class Hierarchy(NamedTuple):
    """One mounted tree of cgroups.

    `mountpoint` is where this process reaches it. `root` is the cgroup that stands there, as this process's cgroup
    namespace names it: "/" normally, "/docker/ID" for a bind mount, "/.." for what lies above the namespace.
    `name` is that of a named v1 hierarchy (``systemd``), else "". `device` is the filesystem's ``major:minor``.
    """

    version: int
    mountpoint: str
    controllers: frozenset[str]
    name: str = ""
    root: str = "/"
    writable: bool = True
    device: str = ""

    @property
    def key(self) -> str:
        """Name the hierarchy: "v2", "cpu,cpuacct" or "name=systemd"; unique on a host."""
        if self.version == 2:
            return "v2"
        return ",".join([*sorted(self.controllers), *([f"name={self.name}"] if self.name else [])])

    @property
    def prefix(self) -> str:
        """The path of the cgroup at the mountpoint, without a slash at its end: "" for the root or where it has no name."""
        return "" if self.root == "/" or self.root.startswith("/..") else self.root

    def directory(self, path: str) -> str | None:
        """Return where the cgroup `path` (from its hierarchy's root, such as "/a/b") is; None if it is outside of the mount."""
        prefix = self.prefix
        if path == "/" and not prefix:
            return self.mountpoint
        if path == prefix or path.startswith(prefix + "/"):
            return self.mountpoint + path[len(prefix) :]
        return None


class Layout(NamedTuple):
    """All hierarchies, v1 ones first in the order of mounting."""

    hierarchies: tuple[Hierarchy, ...]
    procfs: str = "/proc"

    @property
    def v2(self) -> Hierarchy | None:
        """The v2 tree."""
        return next((h for h in self.hierarchies if h.version == 2), None)

    @property
    def mode(self) -> str:
        """``v1``, ``v2`` (no v1 hierarchy has a controller) or ``hybrid``."""
        if self.v2 is None:
            return "v1"
        return "hybrid" if any(h.version == 1 and h.controllers for h in self.hierarchies) else "v2"

    @property
    def is_whole(self) -> bool:
        """Tell whether each mount shows its hierarchy from the very root, as a host's do, also from within a cgroup namespace.

        The root of a kernfs has the inode number 1 (fs/kernfs/dir.c, kernfs_create_root).
        """
        return all(_inode(hierarchy.mountpoint) == 1 for hierarchy in self.hierarchies)

    def of(self, controller: str) -> Hierarchy | None:
        """Return the hierarchy that `controller` is in; ``io`` finds v1's ``blkio``. None where no mounted one has it."""
        legacy = _V1_NAMES.get(controller, controller)
        for hierarchy in self.hierarchies:
            if (legacy if hierarchy.version == 1 else controller) in hierarchy.controllers:
                return hierarchy
        return None

    @property
    def accounting(self) -> tuple[str | None, Hierarchy]:
        """The hierarchy whose cgroup ids the BPF programs use, and the v1 controller that leads there (None: the v2 tree)."""
        for controller in ("cpuacct", "cpu", "memory"):
            hierarchy = self.of(controller)
            if hierarchy is not None and hierarchy.version == 1:
                return controller, hierarchy
        return None, self.v2 or self.hierarchies[0]

    def own_cgroup(self, pid: int | str = "self") -> dict[str, str]:
        """Return the cgroup of a process in each mounted hierarchy: {hierarchy key: path for `Hierarchy.directory`}.

        A hierarchy whose mount does not reach that cgroup is left out. Raises VanishedError.
        """
        from nsagent.procfs import read_cgroup  # a job of root's needs none of it

        found = {}
        for _, controllers, path in read_cgroup(pid, self.procfs):
            for hierarchy in self.hierarchies:
                if _is_in(hierarchy, controllers):
                    below = _below(hierarchy, path)
                    if below is not None:
                        found[hierarchy.key] = below
        return found

    def numbered(self) -> dict[int, Hierarchy]:
        """Return the hierarchies by number: that of /proc/PID/cgroup, the kernel's hierarchy_id. Raises VanishedError."""
        from nsagent.procfs import read_cgroup

        lines = read_cgroup("self", self.procfs)
        return {n: hierarchy for n, names, _ in lines for hierarchy in self.hierarchies if _is_in(hierarchy, names)}


def _is_in(hierarchy: Hierarchy, controllers: tuple[str, ...]) -> bool:
    """Tell whether a line of /proc/PID/cgroup is about `hierarchy`."""
    if hierarchy.version == 2:
        return not controllers
    return not hierarchy.controllers.isdisjoint(controllers) or (bool(hierarchy.name) and f"name={hierarchy.name}" in controllers)


def _below(hierarchy: Hierarchy, cgroup: str) -> str | None:
    """Make a path of /proc/PID/cgroup one for `directory`; both are named from the reader's cgroup namespace."""
    if not hierarchy.root.startswith("/.."):
        return cgroup if hierarchy.directory(cgroup) is not None else None
    if cgroup == hierarchy.root or cgroup.startswith(hierarchy.root + "/"):
        return cgroup[len(hierarchy.root) :] or "/"
    return None  # below the namespace's root, whose own name the kernel does not tell


def _inode(path: str) -> int:
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _read(path: str, what: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ESRCH, errno.ENODEV):
            raise VanishedError(what) from exc
        if exc.errno in (errno.EACCES, errno.EPERM):
            raise AccessError(f"{path} may not be read") from exc
        raise NsagentError(f"{path}: {exc.strerror}") from exc


def _unescape(field: bytes) -> str:
    """Undo the octal escapes of mountinfo (blank, tab, newline, backslash)."""
    return os.fsdecode(_OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field))


def parse_mountinfo(text: bytes, path: str = "") -> list[Hierarchy]:
    """Return every cgroup mount of a mountinfo that no other mount hides; v2 mounts with no controllers yet."""
    mounts: dict[bytes, tuple[bytes, str]] = {}  # id: its parent's id, where
    found: dict[bytes, Hierarchy] = {}
    for number, line in enumerate(text.splitlines(), 1):
        left, separator, right = line.partition(b" - ")
        fields, rest = left.split(b" "), right.split(b" ")
        if not separator or len(fields) < 6 or len(rest) < 3:
            raise ParseError("not a line of mountinfo", path=path, line=number)
        mountpoint = _unescape(fields[4])
        mounts[fields[0]] = (fields[1], mountpoint)
        if rest[0] not in (b"cgroup", b"cgroup2"):
            continue
        options = set(os.fsdecode(rest[2]).split(","))
        found[fields[0]] = Hierarchy(
            version=2 if rest[0] == b"cgroup2" else 1,
            mountpoint=mountpoint,
            controllers=frozenset(options & _V1_CONTROLLERS) if rest[0] == b"cgroup" else frozenset(),
            name=next((word[5:] for word in options if word.startswith("name=")), ""),
            root=_unescape(fields[3]),
            writable=b"ro" not in fields[5].split(b",") and "ro" not in options,
            device=os.fsdecode(fields[2]),
        )
    return [mount for number, mount in found.items() if not _hidden(number, mounts)]


def _hidden(number: bytes, mounts: dict[bytes, tuple[bytes, str]]) -> bool:
    """Tell whether something is mounted over a mount, or over a directory on its way, in the mount that the way leads through."""
    below: dict[bytes, list[tuple[bytes, str]]] = {}
    for other, (above, point) in mounts.items():
        below.setdefault(above, []).append((other, point))
    if any(point == mounts[number][1] for _, point in below.get(number, ())):
        return True
    passed: set[bytes] = set()
    while number in mounts and number not in passed:
        passed.add(number)
        above, target = mounts[number][0], f"{mounts[number][1]}/"
        if any(other != number and target.startswith(point.rstrip("/") + "/") for other, point in below[above]):
            return True
        number = above
    return False


def _best_mounts(mounts: Iterable[Hierarchy]) -> list[Hierarchy]:
    """Of several mounts of one hierarchy keep the one that shows most of it; then a writable one; then the first."""
    best: dict[tuple[int, str], Hierarchy] = {}
    for mount in mounts:
        key = (mount.version, mount.device)
        other = best.get(key)
        if other is None or _rank(mount) < _rank(other):
            best[key] = mount
    return sorted(best.values(), key=lambda mount: mount.version)


def _rank(mount: Hierarchy) -> tuple[bool, int, bool]:
    above = mount.root.startswith("/..")
    depth = -mount.root.count("/..") if above else mount.root.rstrip("/").count("/")
    return not above, depth, not mount.writable


def read_layout(procfs: str = "/proc", cgroupfs: str | None = None) -> Layout:
    """Find the mounted hierarchies.

    `cgroupfs` is a directory to take in place of /sys/fs/cgroup: mounts below it if there are any (a host's tree in a
    container), else what mountinfo has below /sys/fs/cgroup, looked up there (a recorded tree).
    Raises UnsupportedError where no cgroup filesystem is mounted.
    """
    path = f"{procfs}/self/mountinfo"
    mounts = parse_mountinfo(_read(path, path), path)
    if cgroupfs is not None:
        mounts = _moved(mounts, cgroupfs.rstrip("/"))
    hierarchies = []
    for mount in _best_mounts(mounts):
        controllers = mount.controllers
        if mount.version == 2:
            try:
                controllers = frozenset(os.fsdecode(_read(f"{mount.mountpoint}/cgroup.controllers", mount.mountpoint)).split())
            except NsagentError:
                continue  # covered by a mount that this /proc does not show, or not ours to read
        hierarchies.append(
            Hierarchy(2, mount.mountpoint, controllers, "", mount.root, mount.writable, mount.device)
            if mount.version == 2
            else mount
        )
    if not hierarchies:
        raise UnsupportedError(
            "cgroups", f"{path} shows no cgroup filesystem", hint="mount -t cgroup2 none /sys/fs/cgroup, or run on the host"
        )
    return Layout(tuple(hierarchies), procfs)


def _moved(mounts: list[Hierarchy], cgroupfs: str) -> list[Hierarchy]:
    inside = [m for m in mounts if m.mountpoint == cgroupfs or m.mountpoint.startswith(cgroupfs + "/")]
    if inside:
        return inside
    return [
        Hierarchy(m.version, cgroupfs + m.mountpoint[len(CGROUPFS) :], m.controllers, m.name, m.root, m.writable, m.device)
        for m in mounts
        if m.mountpoint == CGROUPFS or m.mountpoint.startswith(CGROUPFS + "/")
    ]
