"""The child's stage of mounts: what CMD finds at /, /proc, /sys and /dev, and the volumes. `MountPlan` says all of it.

    sources   detached copies of what is taken from the host, resolved in the host's root
    root      private propagation, pivot_root into the new root, the old one detached; then nothing names the host
    targets   mount points that the new root lacks, while it can be written
    seal      nodev (a device node made by the job is none), and read-only where asked for
    volumes   in their order; before /proc and /sys, so that a symlink in the root cannot lead one into these
    kernel    /proc, /sys with the cgroup hierarchies, /dev; paths that tell or change too much covered

Sources: man 2 pivot_root, open_tree, move_mount, mount_setattr, openat2.
"""

from __future__ import annotations

import os
import stat
from typing import Final, NamedTuple

from nsagent import libc
from nsagent.launch import kernelfs
from nsagent.launch.filesystem import Tmpfs, Volume, plain
from nsagent.launch.handshake import Step
from nsagent.launch.kernelfs import KernelPlan

Mount = tuple[Tmpfs | Volume, int]  # with the detached mount of a volume's source; a tmpfs has none, -1

_INSIDE: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_MAGICLINKS
_REAL: Final = libc.RESOLVE_IN_ROOT | libc.RESOLVE_NO_SYMLINKS  # for /proc, /sys, /dev: paths below them must mean what they say


_MOST_LINKS: Final = 40  # as the kernel's own MAXSYMLINKS


class MountPlan(NamedTuple):
    """All mounts of the job. `root` "" stays in the host's root. `sealed`: device nodes are of /dev alone."""

    root: str = ""
    read_only: bool = False
    sealed: bool = True
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    kernel: KernelPlan = KernelPlan()


class Sources(NamedTuple):
    """Descriptors of detached mounts, taken before the root changes."""

    root: tuple[int, int] | None  # of the new root, and its directory
    volumes: tuple[int, ...]
    kernel: dict[str, int]


def open_sources(plan: MountPlan, step: Step) -> Sources:
    """Take copies of what the host gives, with the rights of whoever runs the launcher."""
    step("mounts", "mount(MS_PRIVATE)", "/")  # before any mount: none may propagate to the host
    libc.mount("none", "/", None, libc.MS_REC | libc.MS_PRIVATE)
    root = None
    if plan.root:
        step("rootfs", "open_tree", plan.root)
        root = libc.open_tree(plan.root), os.open(plan.root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    volumes = []
    for volume in plan.volumes:
        step("volume", "open_tree", volume.source)
        volumes.append(libc.open_tree(os.path.realpath(volume.source)))
    return Sources(root, tuple(volumes), kernelfs.open_sources(plan.kernel, step))


def build(plan: MountPlan, sources: Sources, step: Step) -> None:
    """Make the mounts of `plan`; with a root in it, leave the host's. Raises OSError where `step` says."""
    mounts: list[Mount] = [*((each, -1) for each in plan.tmpfs), *zip(plan.volumes, sources.volumes, strict=True)]
    mounts.sort(key=lambda mount: plain(mount[0].target).count("/"))  # /a before /a/b
    late = [mount for mount in mounts if _is_below("/dev", mount[0].target)]
    early = [mount for mount in mounts if mount not in late]
    if sources.root is not None:
        _enter_root(*sources.root, plan.root, step)
        for path in plan.kernel.places:
            os.close(_target(path, True, True, step, _REAL))
        for what, tree in early:
            os.close(_target(what.target, _is_directory(tree), True, step))
    if plan.sealed or plan.read_only:
        attributes = (libc.MOUNT_ATTR_NODEV if plan.sealed else 0) | (libc.MOUNT_ATTR_RDONLY if plan.read_only else 0)
        root = os.open("/", os.O_PATH | os.O_CLOEXEC)
        kernelfs.seal(root, "/", attributes, step)
        os.close(root)
    for mount in early:
        _attach(mount, plan, step)
    kernelfs.build(plan.kernel, sources.kernel, step)
    for mount in late:
        _attach(mount, plan, step)


def _is_below(directory: str, target: str) -> bool:
    return plain(target).startswith(directory + "/")


def _is_directory(tree: int) -> bool:
    return tree < 0 or stat.S_ISDIR(os.fstat(tree).st_mode)


def _enter_root(tree: int, directory: int, root: str, step: Step) -> None:
    """Make `root` the root, and the old one unreachable; chroot(2) would leave it in reach of who has CAP_SYS_CHROOT."""
    step("rootfs", "move_mount", root)  # pivot_root asks for a mount point
    libc.move_mount(tree, directory)
    os.fchdir(tree)
    step("rootfs", "pivot_root", root)
    libc.pivot_root(".", ".")  # the old root lies on top of the new one now: man 2 pivot_root, NOTES
    step("rootfs", "umount2(MNT_DETACH)", "/")
    libc.umount(".", libc.MNT_DETACH)
    os.chdir("/")
    for fd in (tree, directory):
        os.close(fd)


def _target(path: str, directory: bool, make: bool, step: Step, resolve: int = _INSIDE) -> int:
    """Open a mount point inside the root, whatever symlinks and `..` are in `path`; `make` what is missing of it."""
    step("mounts", "openat2", path)
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    current, so_far = os.dup(root), ""
    words = [word for word in path.split("/") if word not in ("", ".")]
    links = 0
    while words:
        word = words.pop(0)
        try:
            following = libc.openat2(root, f"{so_far}/{word}", os.O_PATH, resolve)
        except FileNotFoundError:
            if not make:
                raise
            try:
                _make(word, directory or bool(words), current)
            except FileExistsError:  # a symlink to what is missing: make that, inside
                links += 1
                if links > _MOST_LINKS:
                    raise
                link = os.readlink(word, dir_fd=current)
                words = [*(part for part in link.split("/") if part not in ("", ".")), *words]
                if link.startswith("/"):
                    os.close(current)
                    current, so_far = os.dup(root), ""
                continue
            following = libc.openat2(root, f"{so_far}/{word}", os.O_PATH, resolve)
        os.close(current)
        current, so_far = following, f"{so_far}/{word}"
    os.close(root)
    return current


def _make(name: str, directory: bool, parent: int) -> None:
    if directory:
        os.mkdir(name, 0o755, dir_fd=parent)
    else:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644, dir_fd=parent))


def _attach(mount: Mount, plan: MountPlan, step: Step) -> None:
    """Mount one volume or tmpfs. In the host's root a mount point is made only inside of another mount of the job."""
    what, tree = mount
    others = ("/dev", *(each.target for each in plan.tmpfs), *(each.target for each in plan.volumes))
    make = bool(plan.root) or any(_is_below(plain(other), what.target) for other in others)
    target = _target(what.target, _is_directory(tree), make, step)
    if isinstance(what, Tmpfs):
        step("tmpfs", "mount", what.target)
        flags = libc.MS_NOSUID | libc.MS_NODEV | (0 if what.executable else libc.MS_NOEXEC)
        libc.mount("tmpfs", what.target, "tmpfs", flags | (libc.MS_RDONLY if what.read_only else 0), what.data)
    else:
        step("volume", "move_mount", what.target)
        libc.move_mount(tree, target)
        device = stat.S_IFMT(os.fstat(tree).st_mode) in (stat.S_IFCHR, stat.S_IFBLK)  # named by the user: it may be used
        attributes = libc.MOUNT_ATTR_RDONLY if what.read_only else 0
        attributes |= libc.MOUNT_ATTR_NODEV if plan.sealed and not device else 0
        if attributes:
            kernelfs.seal(tree, what.target, attributes, step)
        os.close(tree)
    os.close(target)
