"""The launcher's decisions about the child: a RunSpec and the launch's descriptors to a `ChildPlan`, before the clone."""

from __future__ import annotations

import os

from nsagent.cgroups.layout import CGROUPFS, Layout
from nsagent.errors import AccessError, UnsupportedError
from nsagent.launch import seccomp
from nsagent.launch.child import ChildPlan
from nsagent.launch.confine import Confinement
from nsagent.launch.execute import Command
from nsagent.launch.kernelfs import Hierarchy, KernelPlan
from nsagent.launch.mounts import MountPlan
from nsagent.launch.security import ALL, describe
from nsagent.launch.spec import DEFAULT_PATH, RunSpec, read_capabilities
from nsagent.namespaces import NamespaceKind


def child_plan(
    spec: RunSpec,
    layout: Layout,
    *,
    channel: int,
    release: int,
    parents: tuple[int, ...],
    tasks: tuple[int, ...],
    ignored: frozenset[int],
    state_dir: str,
    notes: list[str],
) -> ChildPlan:
    """Return what the child of `spec` does; the descriptors and `ignored` are those of ChildPlan and Command.

    `state_dir` has the compiled seccomp filters. `notes` gets what cannot be had here and was not asked for by name.
    Raises: AccessError, UnsupportedError where it was.
    """
    return ChildPlan(
        command=command(spec, ignored),
        channel=channel,
        release=release,
        parents=parents,
        tasks=tasks,
        new_cgroup_namespace=NamespaceKind.CGROUP in spec.isolate,
        mounts=mount_plan(spec, layout) if NamespaceKind.MNT in spec.isolate else None,
        loopback=NamespaceKind.NET in spec.isolate,
        hostname=spec.hostname,
        workdir=workdir(spec),
        become_root=NamespaceKind.USER in spec.isolate,
        drop_groups=NamespaceKind.USER in spec.isolate and os.geteuid() == 0,
        init=spec.init,
        confinement=confinement(spec, state_dir, notes),
        hidden=os.geteuid() == 0,
    )


def confinement(spec: RunSpec, state_dir: str, notes: list[str]) -> Confinement:
    """Return what is taken from CMD. Raises AccessError for a capability that was asked for and is not to be had."""
    security = spec.security
    if security.cap_add not in (0, ALL) and NamespaceKind.USER not in spec.isolate:
        lacking = security.cap_add & ~read_capabilities()
        if lacking:
            raise AccessError(
                f"--cap-add {describe(lacking)}: this process does not have it itself",
                hint="give it to nsagent too, or use --isolate all: root of a user namespace has all there",
            )
    program = None
    if security.filtered:
        try:
            program = seccomp.program(security, state_dir)
        except UnsupportedError as exc:
            if security.seccomp:
                raise
            notes.append(f"no seccomp filter: {exc.reason}; {exc.hint}")
    return Confinement(security.capabilities, security.no_new_privileges, program)


def command(spec: RunSpec, ignored: frozenset[int]) -> Command:
    """Return CMD with its variables and where it is looked for."""
    environment = spec.environment(os.environ)
    return Command(
        real_path=bool(spec.filesystem.rootfs),
        argv=tuple(map(os.fsencode, spec.argv)),
        environment={os.fsencode(key): os.fsencode(value) for key, value in environment.items()},
        search_path=tuple(map(os.fsencode, environment.get("PATH", DEFAULT_PATH).split(":"))),
        ignored=ignored,
    )


def workdir(spec: RunSpec) -> str:
    """Return where CMD starts, "" for where the launcher is: in the host's root, unless a mount of the job covers that."""
    files = spec.filesystem
    if spec.workdir or files.rootfs:
        return spec.workdir or "/"
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return ""
    return here if any(here == target or here.startswith(f"{target}/") for target in files.targets) else ""


def mount_plan(spec: RunSpec, layout: Layout) -> MountPlan:
    """Return what a new mnt namespace holds."""
    files = spec.filesystem
    return MountPlan(
        root=files.rootfs,
        read_only=files.read_only,
        sealed=not spec.security.privileged,
        volumes=files.volumes,
        tmpfs=files.tmpfs,
        kernel=_kernel_plan(spec, layout),
    )


def _kernel_plan(spec: RunSpec, layout: Layout) -> KernelPlan:
    """Choose /proc, /sys and /dev. What a user namespace does not own (a shared PID or net namespace's) it cannot mount."""
    new, user = spec.isolate, NamespaceKind.USER in spec.isolate
    root = spec.filesystem.rootfs
    proc = "new" if spec.new_proc or (spec.mount_proc and root and not user) else "host" if spec.mount_proc and root else "keep"
    dev = "new" if not spec.security.privileged else "host" if root else "keep"
    # sysfs shows the net namespace of its mounter; a second time at its own place it is refused (EBUSY)
    sys = "new" if NamespaceKind.NET in new or (root and not user) else "host" if root else "keep"
    try:
        terminal = os.ttyname(0) if dev == "new" else ""
    except OSError:
        terminal = ""
    return KernelPlan(
        proc=proc,
        sys=sys,
        dev=dev,
        covered=not spec.security.privileged,
        cgroups=_hierarchies(layout) if NamespaceKind.CGROUP in new else None,
        terminal=terminal,
        pts_data="newinstance,ptmxmode=0666,mode=0620" + (",gid=5" if not user or os.geteuid() == 0 else ""),
        own_ipc=NamespaceKind.IPC in new,
    )


def _hierarchies(layout: Layout) -> tuple[Hierarchy, ...]:
    """Return what is mounted at or below /sys/fs/cgroup of the host, to be mounted anew as the job's cgroup namespace has it."""
    found = []
    for hierarchy in layout.hierarchies:
        name = hierarchy.mountpoint.removeprefix(CGROUPFS).lstrip("/")
        if not hierarchy.mountpoint.startswith(CGROUPFS) or "/" in name:
            continue
        if hierarchy.version == 2:
            found.append(Hierarchy(name, "cgroup2"))
        else:
            options = [*sorted(hierarchy.controllers), *([f"name={hierarchy.name}"] if hierarchy.name else [])]
            found.append(Hierarchy(name, "cgroup", ",".join(options if hierarchy.controllers else ["none", *options])))
    return tuple(found)
