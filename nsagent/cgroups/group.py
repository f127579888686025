"""One cgroup of our own, in all its hierarchies: make it, limit it, place a child in it, read it, end it.

A job's cgroup is `<mountpoint>/nsagent/<id>` in every mounted hierarchy; the `nsagent` above it stays. What a hierarchy
does not allow is kept in `Group.missing`, and becomes an error only where a limit needs it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator, Mapping
from typing import Final

from nsagent.cgroups import device_policy, ending, v1
from nsagent.cgroups.device_policy import DeviceRule
from nsagent.cgroups.files import read_text, try_write, write
from nsagent.cgroups.layout import Hierarchy, Layout
from nsagent.cgroups.limits import IoMax, Limits, Setting
from nsagent.cgroups.meter import Meter
from nsagent.cgroups.plan import plan, translate, write_setting
from nsagent.cgroups.stats import CgroupStats
from nsagent.errors import AccessError, NsagentError, UnsupportedError, UsageError

__all__ = ["Group", "IoMax", "Limits", "plan"]

# What every cgroup of ours has where v2 rules: the stats of a report need them. cpuset, hugetlb only when they are asked for.
_WANTED: Final = frozenset({"cpu", "memory", "io", "pids"})


class Group:
    """A cgroup in all hierarchies that let us make it. Close it to release its descriptors; `remove` ends it."""

    def __init__(self, layout: Layout, path: str, places: Mapping[Hierarchy, str], missing: Mapping[str, str]) -> None:
        self.layout = layout
        self.path = path
        self.places = dict(places)
        self.missing = dict(missing)
        self._descriptors: dict[str, int] = {}

    @classmethod
    def create(cls, layout: Layout, path: str) -> Group:
        """Make the cgroup `path`, relative to the mountpoints ("nsagent/ID"), in every writable hierarchy; v2 included.

        Raises AccessError or UnsupportedError where no hierarchy lets us, NsagentError where it exists; leaves nothing then.
        """
        names = _names(path)
        group = cls(layout, path, {}, {})
        try:
            for hierarchy in layout.hierarchies:
                group._make(hierarchy, names)
        except BaseException:
            group._unmake()
            raise
        if not group.places:
            first, *others = group.missing.items()
            reasons = ": ".join(first) + (f", and {len(others)} hierarchies more" if others else "")
            if any("Permission denied" in reason for reason in group.missing.values()):
                raise AccessError(f"no cgroup can be made: {reasons}", hint="run as root, or in a delegated cgroup")
            raise UnsupportedError(
                "cgroups", f"none can be made: {reasons}", hint="mount -o remount,rw the cgroup filesystems, or run on the host"
            )
        return group

    @classmethod
    def open(cls, layout: Layout, path: str) -> Group:
        """Return the existing cgroup `path`, in those hierarchies that have it; `places` is empty where none has."""
        _names(path)
        places = {h: f"{h.mountpoint}/{path}" for h in layout.hierarchies}
        return cls(layout, path, {h: place for h, place in places.items() if os.path.isdir(place)}, {})

    def __enter__(self) -> Group:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors that `attach_fds` and `v2_fd` gave out. The cgroup stays."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def apply(self, limits: Limits, refused: list[str] | None = None) -> None:
        """Write `limits` and read them back. Raises UnsupportedError, UsageError, AccessError, naming the flag.

        With a list `refused` it gets what this host does not enforce, which then is no error.
        """
        self._enable_above({name for name, asked in (("cpuset", limits.cpuset), ("hugetlb", limits.hugetlb)) if asked})
        for hierarchy, setting in plan(self.layout, limits):
            try:
                self._write(hierarchy, setting)
            except (UnsupportedError, AccessError) as exc:
                if refused is None:
                    raise
                refused.append(exc.message)

        if limits.devices is not None and self.layout.of("devices") is None:
            try:
                self._attach_device_policy(limits.devices)
            except (UnsupportedError, AccessError) as exc:
                if refused is None:
                    raise
                refused.append(exc.message)

    def _attach_device_policy(self, rules: tuple[DeviceRule, ...]) -> None:
        fd = self.v2_fd
        if fd is None:
            raise UnsupportedError("--device-policy", "the cgroup is not in the v2 hierarchy")
        try:
            device_policy.attach(fd, rules)
            attached = device_policy.count(fd)
        except PermissionError as exc:
            raise AccessError(f"--device-policy: {exc.strerror}", capability="CAP_BPF and CAP_NET_ADMIN") from exc
        except OSError as exc:
            raise UnsupportedError("--device-policy", f"this kernel takes no device program: {exc.strerror}") from exc
        if not attached:
            raise UnsupportedError("--device-policy", "the program is not on the cgroup after it was attached")

    def _write(self, hierarchy: Hierarchy, setting: Setting) -> None:
        place = self.places.get(hierarchy)
        reason = self.missing.get(hierarchy.key) or self.missing.get(setting.controller)
        if place is None or reason:
            raise UnsupportedError(
                setting.flag,
                f"the {setting.controller} controller cannot be used: {reason or 'the cgroup is not in its hierarchy'}",
                hint=f"leave {setting.flag} out, or run where {hierarchy.mountpoint} is writable and delegated",
            )
        write_setting(place, setting)

    def attach_fds(self) -> list[int]:
        """Return a descriptor of `tasks` in each v1 hierarchy. A single-threaded child that writes b"0" to each is in.

        They are close-on-exec and belong to this group: `close` closes them.
        """
        return [
            self._descriptor(f"{place}/tasks", os.O_WRONLY) for hierarchy, place in self.places.items() if hierarchy.version == 1
        ]

    @property
    def v2_fd(self) -> int | None:
        """A descriptor of the v2 directory, for CLONE_INTO_CGROUP; None without one. `close` closes it."""
        place = next((place for hierarchy, place in self.places.items() if hierarchy.version == 2), None)
        return None if place is None else self._descriptor(place, os.O_RDONLY | os.O_DIRECTORY)

    def attach(self, pid: int) -> None:
        """Move a process (all its threads) here. Slow, 11 ms a hierarchy: for processes that run already."""
        for place in self.places.values():
            try:
                write(f"{place}/cgroup.procs", str(pid))
            except OSError as exc:
                raise translate(exc, f"process {pid} cannot be moved to {place}") from exc

    def stats(self) -> CgroupStats:
        """Read what it and its descendants have used; parts are None where this host does not count them."""
        counting = any("blkio" in h.controllers and read_text(f"{p}/{v1.COUNTING_FILES[0]}") for h, p in self.places.items())
        from nsagent.cgroups.reader import Reader  # CMD need not wait for it: see nsagent.launch.launcher

        found = CgroupStats()
        reader = Reader(self.layout)
        for prefix in {hierarchy.prefix for hierarchy in self.places}:  # the mounts may show different parts
            stats = reader.read(f"{prefix}/{self.path}", counting=counting)
            found = found._replace(**{part: new for part, new in stats._asdict().items() if new is not None})
        return found

    def meter(self) -> Meter:
        """Return what reads its CPU time and memory again and again; close it before `remove`."""
        return Meter(self.places)

    def pids(self) -> set[int]:
        """Return the processes in it and its descendants, over all hierarchies; as this pid namespace numbers them."""
        return ending.read_pids(self.places.values())

    def freeze(self, deadline: float = 10.0) -> None:
        """Stop all its processes; return when the kernel says that they are. Raises NsagentError after `deadline` seconds."""
        ending.freeze(self.places, deadline)

    def thaw(self) -> None:
        """Let them go on."""
        ending.thaw(self.places)

    @property
    def frozen(self) -> bool:
        """Whether the kernel says that all its processes stand still."""
        return ending.is_frozen(self.places)

    def kill(self, deadline: float = 10.0) -> None:
        """End every process in it and in its descendants, fork bombs too; from then on none can be forked.

        Raises NsagentError, with the processes that are left, after `deadline` seconds.
        """
        ending.kill(self.places, deadline)

    def remove(self, deadline: float = 10.0) -> None:
        """Remove it and its descendants from every hierarchy. Raises NsagentError if it is still busy after `deadline` s."""
        self.close()
        ending.remove(self.places.values(), deadline)

    def _descriptor(self, path: str, flags: int) -> int:
        if path not in self._descriptors:
            try:
                self._descriptors[path] = os.open(path, flags | os.O_CLOEXEC)
            except OSError as exc:
                raise translate(exc, path) from exc
        return self._descriptors[path]

    def _make(self, hierarchy: Hierarchy, names: list[str]) -> None:
        if not hierarchy.writable:
            self.missing[hierarchy.key] = "mounted read-only"
            return
        place = hierarchy.mountpoint
        for depth, name in enumerate(names, 1):
            if hierarchy.version == 2:
                self._enable(place, _WANTED & hierarchy.controllers)
            place = f"{place}/{name}"
            try:
                os.mkdir(place)
            except FileExistsError:
                if depth == len(names):
                    raise NsagentError(f"the cgroup {place} exists already") from None
            except OSError as exc:
                if exc.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise translate(exc, f"the cgroup {place} cannot be made") from exc
                self.missing[hierarchy.key] = f"{place}: {os.strerror(exc.errno)}"
                return
            if depth == len(names):
                self.places[hierarchy] = place
            if hierarchy.version == 1:
                _prepare_v1(hierarchy, place, leaf=depth == len(names))

    def _enable_above(self, controllers: set[str]) -> None:
        for hierarchy in self.places if controllers else ():
            if hierarchy.version == 2:
                place = hierarchy.mountpoint
                for name in self.path.split("/"):
                    self._enable(place, controllers & hierarchy.controllers)
                    place = f"{place}/{name}"

    def _enable(self, place: str, controllers: frozenset[str] | set[str]) -> None:
        """Enable v2 controllers for the children of `place`; what cannot be is noted.

        Never in a cgroup that holds processes, the root excepted, which has no cgroup.type: the kernel refuses memory and io
        there, but takes cpu, cpuset and pids, and thereby makes its children threaded ones that no process may enter.
        """
        wanted = sorted(controllers - set(read_text(f"{place}/cgroup.subtree_control").split())) if controllers else []
        busy = bool(wanted) and bool(read_text(f"{place}/cgroup.procs")) and os.path.exists(f"{place}/cgroup.type")
        for controller in wanted:
            reason = "it holds processes"
            if not busy:
                try:
                    write(f"{place}/cgroup.subtree_control", f"+{controller}")
                    continue
                except OSError as exc:
                    reason = os.strerror(exc.errno or 0)
            self.missing.setdefault(controller, f"{place} cannot pass it on: {reason}")

    def _unmake(self) -> None:
        for place in self.places.values():
            with contextlib.suppress(OSError):
                os.rmdir(place)


def _names(path: str) -> list[str]:
    """Split a relative path. An empty one would be the hierarchy's root, which is never ours to kill and remove."""
    names = path.split("/")
    if not all(names) or not {".", ".."}.isdisjoint(names) or "\n" in path:
        raise UsageError(f"{path!r} is no relative path of a cgroup")
    return names


def _prepare_v1(hierarchy: Hierarchy, place: str, *, leaf: bool) -> None:
    """Make a fresh v1 cgroup usable: cpuset takes no process (ENOSPC) before it has CPUs and nodes; blkio counts by rule only."""
    above = os.path.dirname(place)
    if "cpuset" in hierarchy.controllers:
        for name in ("cpuset.cpus", "cpuset.mems"):
            if not read_text(f"{place}/{name}"):
                try_write(f"{place}/{name}", read_text(f"{above}/{name}"))
    if "memory" in hierarchy.controllers and read_text(f"{place}/memory.use_hierarchy") == "0":
        try_write(f"{place}/memory.use_hierarchy", "1")  # always so since 5.11
    if "blkio" in hierarchy.controllers and leaf:
        for device in _disks():
            for name in v1.COUNTING_FILES:
                try_write(f"{place}/{name}", f"{device} {v1.COUNTING_BPS}")


def _disks() -> Iterator[str]:
    """Yield ``major:minor`` of the whole disks that have a size."""
    try:
        whole = set(os.listdir("/sys/block"))
    except OSError:
        return
    for line in read_text("/proc/partitions").splitlines()[2:]:
        major, minor, _, name = line.split()
        if name.replace("/", "!") in whole:
            yield f"{major}:{minor}"
