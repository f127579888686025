"""The launcher's decisions about the child: a RunSpec and the launch's descriptors to a `ChildPlan`, before the clone."""

from __future__ import annotations

import os
from typing import Any

from nsagent.cgroups import plan
from nsagent.cgroups.device_policy import BASIC, DeviceRule, rules_of
from nsagent.cgroups.layout import CGROUPFS, Layout
from nsagent.errors import AccessError, LaunchError, UnsupportedError
from nsagent.launch import idmaps, seccomp, tuning, users
from nsagent.launch.child import ChildPlan
from nsagent.launch.confine import Confinement
from nsagent.launch.entry import Entry
from nsagent.launch.execute import Command
from nsagent.launch.identity import Identity
from nsagent.launch.idmaps import Extent, IdMaps, has
from nsagent.launch.joining import Join, timens_offsets
from nsagent.launch.kernelfs import Hierarchy, KernelPlan
from nsagent.launch.mounts import MountPlan
from nsagent.launch.security import ALL, describe
from nsagent.launch.spec import DEFAULT_PATH, RunSpec, read_capabilities
from nsagent.launch.stdio import StdioPlan
from nsagent.launch.users import User
from nsagent.namespaces import NamespaceKind


def child_plan(
    spec: RunSpec,
    layout: Layout,
    maps: IdMaps | None,
    *,
    channel: int,
    release: int,
    parents: tuple[int, ...],
    tasks: tuple[int, ...],
    ignored: frozenset[int],
    state_dir: str,
    notes: list[str],
    entry: Entry | None = None,
    stdio: StdioPlan | None = None,
) -> ChildPlan:
    """Return what the child of `spec` does; the descriptors, `ignored` and `stdio` are those of ChildPlan and Command.

    `maps` are those of a new user namespace.
    `state_dir` has the compiled seccomp filters. `notes` gets what cannot be had here and was not asked for by name.
    Raises: AccessError, UnsupportedError where it was.
    """
    user = users.resolve(spec.user, spec.filesystem.rootfs) if spec.user else None
    return ChildPlan(
        command=command(spec, ignored, user),
        channel=channel,
        release=release,
        parents=parents,
        tasks=tasks,
        entry=entry,
        ulimits=spec.tuning.ulimits,
        new_cgroup_namespace=NamespaceKind.CGROUP in spec.isolate,
        mounts=mount_plan(spec, layout, maps, stdio.fds[0] if stdio else 0) if NamespaceKind.MNT in spec.isolate else None,
        loopback=NamespaceKind.NET in spec.isolate,
        hostname=spec.hostname,
        workdir=workdir(spec),
        identity=identity(spec, maps, user),
        init=spec.init,
        stdio=stdio,
        confinement=confinement(spec, state_dir, notes),
        hidden=os.geteuid() == 0,
        foreign_root=spec.foreign_root,
    )


def feasible(spec: RunSpec, layout: Layout) -> RunSpec:
    """Return the spec with what this host can give of its limits, if that is enough: the rest is a note in it.

    Raises AccessError where it is not.
    """
    tuned, notes = spec.tuning, list[str]()
    if tuned.ulimits:
        tuned, notes = tuning.feasible(tuned, read_capabilities(), best_effort=spec.best_effort)
    if not spec.best_effort:
        return spec
    limits, refused = plan.feasible(layout, spec.limits)
    return spec._replace(
        limits=limits, tuning=tuned, notes=(*spec.notes, *notes, *(f"not limited: {reason}" for reason in refused))
    )


def device_rules(spec: RunSpec) -> tuple[DeviceRule, ...] | None:
    """Return the devices that a job may open: those of every /dev, its terminals, those that volumes name; None: any."""
    if not spec.guards_devices:
        return None
    terminals = [f"/proc/self/fd/{fd}" for fd in (0, 1, 2) if _is_terminal(fd)]
    return (*BASIC, *rules_of([*terminals, *(each.source for each in spec.filesystem.volumes)]))


def _is_terminal(fd: int) -> bool:
    try:
        return os.isatty(fd)
    except OSError:
        return False


def entry(spec: RunSpec, joins: tuple[tuple[Join, int], ...], born: int) -> Entry | None:
    """Return what the process in between does, where one is needed; `joins` are opened, `born` is where it tells a pid."""
    if not joins and not spec.clock_offsets:
        return None
    unshared = sum(k.flag for k in spec.isolate & {NamespaceKind.USER, NamespaceKind.TIME}) if spec.clock_offsets else 0
    return Entry(joins, spec.clone_flags & ~unshared, born, unshared, timens_offsets(spec.clock_offsets))


def confinement(spec: RunSpec, state_dir: str, notes: list[str]) -> Confinement:
    """Return what is taken from CMD. Raises AccessError for a capability that was asked for and is not to be had."""
    security = spec.security
    if security.cap_add not in (0, ALL) and not spec.foreign_user:
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


def id_maps(spec: RunSpec) -> IdMaps | None:
    """Return the maps of a new user namespace; None where there is none."""
    if NamespaceKind.USER not in spec.isolate:
        return None
    inside = users.resolve(spec.user, spec.filesystem.rootfs)[:2] if spec.user and os.geteuid() else (0, 0)
    return idmaps.choose(os.geteuid(), os.getegid(), uids=spec.uid_map, gids=spec.gid_map, inside=inside)


def identity(spec: RunSpec, maps: IdMaps | None, user: User | None) -> Identity:
    """Return who the child becomes. Raises LaunchError for ids that do not exist in its user namespace."""
    if user is not None and maps is not None and not (has(maps.uids, user.uid) and has(maps.gids, user.gid)):
        raise LaunchError(
            f"--user {spec.user}: {user.uid}:{user.gid} is not in the user namespace ({maps.describe()})",
            stage="user",
            hint="--map-uid and --map-gid map it; an ordinary user has more than one id with newuidmap and /etc/subuid",
        )
    joined = NamespaceKind.USER in spec.joined
    return Identity(
        maker=(0, 0) if joined else maps and (_lowest(maps.uids), _lowest(maps.gids)),
        set_groups=maps is None or maps.setgroups,
        user=None if user is None else (user.uid, user.gid, tuple(g for g in user.groups if maps is None or has(maps.gids, g))),
        joined=joined,
    )


def _lowest(extents: tuple[Extent, ...]) -> int:
    return min(extent.inside for extent in extents)


def command(spec: RunSpec, ignored: frozenset[int], user: User | None) -> Command:
    """Return CMD with its variables and where it is looked for; HOME is that of the user it runs as."""
    environment = spec.environment(os.environ)
    if user is not None and "HOME" not in dict(spec.env):
        environment["HOME"] = user.home
    return Command(
        real_path=spec.foreign_root,
        argv=tuple(map(os.fsencode, spec.argv)),
        environment={os.fsencode(key): os.fsencode(value) for key, value in environment.items()},
        search_path=tuple(map(os.fsencode, environment.get("PATH", DEFAULT_PATH).split(":"))),
        ignored=ignored,
    )


def workdir(spec: RunSpec) -> str:
    """Return where CMD starts, "" for where the launcher is: in the host's root, unless a mount of the job covers that."""
    files = spec.filesystem
    if spec.workdir or spec.foreign_root:
        return spec.workdir or "/"
    try:
        here = os.getcwd()
    except OSError:  # it was removed
        return ""
    return here if any(here == target or here.startswith(f"{target}/") for target in files.targets) else ""


def mount_plan(spec: RunSpec, layout: Layout, maps: IdMaps | None, stdin: int = 0) -> MountPlan:
    """Return what a new mnt namespace holds; where `stdin` is a terminal, that is its /dev/console."""
    files = spec.filesystem
    return MountPlan(
        root=files.rootfs,
        read_only=files.read_only,
        sealed=not spec.security.privileged,
        volumes=files.volumes,
        tmpfs=files.tmpfs,
        kernel=_kernel_plan(spec, layout, maps, stdin),
    )


def _kernel_plan(spec: RunSpec, layout: Layout, maps: IdMaps | None, stdin: int) -> KernelPlan:
    """Choose /proc, /sys and /dev. What a user namespace does not own (a shared PID or net namespace's) it cannot mount."""
    new, user = spec.isolate, spec.foreign_user
    root = spec.filesystem.rootfs
    proc = "new" if spec.new_proc or (spec.mount_proc and root and not user) else "host" if spec.mount_proc and root else "keep"
    dev = "new" if not spec.security.privileged else "host" if root else "keep"
    # sysfs shows the net namespace of its mounter; a second time at its own place it is refused (EBUSY)
    other_net = NamespaceKind.NET in new or (NamespaceKind.NET in spec.joined and not user)
    sys = "new" if other_net or (root and not user) else "host" if root else "keep"
    try:
        terminal = os.ttyname(stdin) if dev == "new" else ""
    except OSError:
        terminal = ""
    return KernelPlan(
        proc=proc,
        sys=sys,
        dev=dev,
        covered=not spec.security.privileged,
        cgroups=_hierarchies(layout) if NamespaceKind.CGROUP in new else None,
        terminal=terminal,
        pts_data="newinstance,ptmxmode=0666,mode=0620" + (",gid=5" if maps is None or has(maps.gids, 5) else ""),
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


def given(plan: ChildPlan, spec: RunSpec) -> dict[str, Any]:
    """Return what a job was given, as its file keeps it while it runs for nsagent.launch.inside."""
    home = {} if plan.identity.user is None else {"HOME": os.fsdecode(plan.command.environment[b"HOME"])}
    return {
        "identity": plan.identity._asdict(),
        "capabilities": plan.confinement.capabilities,
        "no_new_privileges": plan.confinement.no_new_privileges,
        "filter": None if plan.confinement.filter is None else plan.confinement.filter.hex(),
        "tuning": spec.tuning._replace(ulimits=plan.ulimits)._asdict(),
        "workdir": plan.workdir or _here(),
        "env": home | dict(spec.env),
        "clean_env": spec.clean_env,
    }


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # it was removed
        return "/"
