"""The kernel's own filesystems inside: /proc, /sys with the cgroup hierarchies, /dev; and what of them is covered.

The paths covered are those of runc and docker. Sources: man 5 proc, sysfs, tmpfs; man 4 pts; man 7 mq_overview,
cgroup_namespaces; Documentation/filesystems/devpts.rst.
"""

from __future__ import annotations

import errno
import os
from typing import Final, NamedTuple

from nsagent import libc
from nsagent.cgroups.layout import CGROUPFS
from nsagent.launch.handshake import Step

_PLAIN: Final = libc.MS_NOSUID | libc.MS_NODEV | libc.MS_NOEXEC  # and these are the values of MOUNT_ATTR_* too
_DEVICES: Final = ("null", "zero", "full", "random", "urandom", "tty")
_LINKS: Final = (
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("ptmx", "pts/ptmx"),
)
MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READ_ONLY: Final = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


class Hierarchy(NamedTuple):
    """A cgroup hierarchy to mount below /sys/fs/cgroup: `name` there ("" for the directory itself), type and options."""

    name: str
    fstype: str
    data: str = ""


class KernelPlan(NamedTuple):
    """What lies at /proc, /sys and /dev: `new`, `host` (a copy of the host's mounts) or `keep` (what is there)."""

    proc: str = "keep"
    sys: str = "keep"
    dev: str = "keep"
    covered: bool = True  # not for a privileged job: masked and read-only paths
    cgroups: tuple[Hierarchy, ...] | None = None  # of a new cgroup namespace; None: those of the host, with its /sys
    terminal: str = ""  # of the host; becomes /dev/console
    pts_data: str = "newinstance,ptmxmode=0666,mode=0620"
    own_ipc: bool = True  # /dev/shm and /dev/mqueue belong to an IPC namespace

    @property
    def places(self) -> tuple[str, ...]:
        """The directories that something is mounted on."""
        kinds = (("/proc", self.proc), ("/sys", self.sys), ("/dev", self.dev))
        return tuple(path for path, kind in kinds if kind != "keep")


def open_sources(plan: KernelPlan, step: Step) -> dict[str, int]:
    """Return detached mounts, by path: copies of what is taken from the host, and new ones of proc and sysfs.

    Those are made here because a user namespace may mount them only while those of the host can be seen.
    """
    trees: dict[str, int] = {}
    for path, kind, fstype in (("/proc", plan.proc, "proc"), ("/sys", plan.sys, "sysfs"), ("/dev", plan.dev, "")):
        if kind == "new" and fstype:
            step("mounts", f"fsmount({fstype})", path)
            trees[path] = libc.new_mount(fstype, _PLAIN)
        elif kind == "host":
            step("mounts", "open_tree", path)
            trees[path] = libc.open_tree(path)
    if plan.dev == "new":
        kept = () if plan.own_ipc else ("shm", "mqueue")
        for path in [f"/dev/{name}" for name in (*_DEVICES, *kept)]:
            step("devices", "open_tree", path)
            if os.path.exists(path):
                trees[path] = libc.open_tree(path)
        if plan.terminal:
            step("devices", "open_tree", plan.terminal)
            trees["/dev/console"] = libc.open_tree(plan.terminal)
    if plan.cgroups is None and plan.sys == "new" and os.path.isdir(CGROUPFS):
        trees[CGROUPFS] = libc.open_tree(CGROUPFS)
    return trees


def build(plan: KernelPlan, trees: dict[str, int], step: Step) -> None:
    """Mount all of it over what the root has."""
    if plan.proc != "keep":
        _move(step, trees["/proc"], "/proc")
    if plan.sys != "keep" or plan.covered:
        _build_sys(plan, trees, step)
    if plan.dev == "new":
        _build_dev(plan, trees, step)
    elif plan.dev == "host":
        _move(step, trees["/dev"], "/dev")
    if plan.covered:
        _cover(plan, step)


def _mount(step: Step, fstype: str, path: str, flags: int, data: str | None = None) -> None:
    step("mounts", f"mount({fstype})", path)
    libc.mount(fstype, path, fstype, flags, data)


def _move(step: Step, tree: int, path: str, *, read_only: bool = False) -> None:
    """Attach a copy at `path`, which is ours or a real directory: a symlink there could lead the mounts of /proc astray."""
    step("mounts", "move_mount", path)
    target = libc.openat2(libc.AT_FDCWD, path, os.O_PATH, libc.RESOLVE_NO_SYMLINKS)
    libc.move_mount(tree, target)
    os.close(target)
    if read_only:
        seal(tree, path, libc.MOUNT_ATTR_RDONLY, step)
    os.close(tree)


def seal(tree: int, path: str, attributes: int, step: Step, below: tuple[str, ...] = ()) -> None:
    """Set MOUNT_ATTR_RDONLY or _NODEV on the mount `tree` at `path`, and on all below it.

    Before Linux 5.12 on this mount and those at `below` alone.
    """
    step("mounts", "mount_setattr", path)
    try:
        libc.mount_setattr(tree, attributes)
    except OSError as exc:
        if exc.errno != errno.ENOSYS:
            raise
        # MOUNT_ATTR_RDONLY and _NODEV have the values of MS_RDONLY and MS_NODEV, and f_flag those of all four; a remount
        # must repeat them, for those from outside a user namespace are locked.
        for each in (path, *below):
            kept = os.statvfs(each).f_flag & (_PLAIN | libc.MS_RDONLY)
            libc.mount("none", each, None, libc.MS_REMOUNT | libc.MS_BIND | kept | attributes)


def _build_sys(plan: KernelPlan, trees: dict[str, int], step: Step) -> None:
    if plan.sys != "keep":
        _move(step, trees["/sys"], "/sys")
    below = []
    if plan.cgroups is None and CGROUPFS in trees:
        _move(step, trees[CGROUPFS], CGROUPFS)
    elif plan.cgroups is not None:
        below = _mount_cgroups(plan.cgroups, step)
    if plan.covered:
        # Of each mount: MS_RDONLY at mount(2) would be of the filesystem, which the host has mounted writable.
        sys = os.open("/sys", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        seal(sys, "/sys", libc.MOUNT_ATTR_RDONLY, step, tuple(below))
        os.close(sys)


def _mount_cgroups(hierarchies: tuple[Hierarchy, ...], step: Step) -> list[str]:
    """Mount the hierarchies as the job's cgroup namespace has them, the job's own cgroup at the top. Return where."""
    below = []
    if any(hierarchy.name for hierarchy in hierarchies):
        _mount(step, "tmpfs", CGROUPFS, _PLAIN, "mode=755")
        below.append(CGROUPFS)
    for hierarchy in hierarchies:
        path = f"{CGROUPFS}/{hierarchy.name}".rstrip("/")
        if hierarchy.name:
            os.mkdir(path, 0o755)
        try:
            _mount(step, hierarchy.fstype, path, _PLAIN, hierarchy.data or None)
        except OSError:  # as old kernels in a user namespace; that it is not there opens nothing
            continue
        below.append(path)
    return below


def _build_dev(plan: KernelPlan, trees: dict[str, int], step: Step) -> None:
    """Make /dev of a few nodes. It is nodev itself, and the nodes are mounts of the host's: no others can be made there."""
    _mount(step, "tmpfs", "/dev", _PLAIN, "mode=755,size=64k")
    for name in ("pts", "shm", "mqueue"):
        os.mkdir(f"/dev/{name}", 0o755)
    for name, target in _LINKS:
        os.symlink(target, f"/dev/{name}")
    for path, tree in trees.items():
        if path.startswith("/dev/"):
            if not os.path.isdir(path):
                os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o666))
            _move(step, tree, path)
    _mount(step, "devpts", "/dev/pts", libc.MS_NOSUID | libc.MS_NOEXEC, plan.pts_data)
    if plan.own_ipc:
        _mount(step, "tmpfs", "/dev/shm", _PLAIN, "mode=1777")
        _mount(step, "mqueue", "/dev/mqueue", _PLAIN)


def _cover(plan: KernelPlan, step: Step) -> None:
    for path in MASKED:
        step("mounts", "mount(MS_BIND)", path)
        try:
            libc.mount("/dev/null", path, None, libc.MS_BIND)
        except FileNotFoundError:
            continue
        except NotADirectoryError:  # that is: the path is one
            _mount(step, "tmpfs", path, _PLAIN | libc.MS_RDONLY, "size=0k")
    for path in READ_ONLY:
        step("mounts", "open_tree", path)
        try:
            tree = libc.open_tree(path)
        except FileNotFoundError:
            continue
        _move(step, tree, path, read_only=True)
