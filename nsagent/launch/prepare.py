"""The launcher's decisions about the child: a RunSpec and the launch's descriptors to a `ChildPlan`, before the clone."""

from __future__ import annotations

import os

from nsagent.launch.child import ChildPlan
from nsagent.launch.execute import Command
from nsagent.launch.spec import DEFAULT_PATH, RunSpec
from nsagent.namespaces import NamespaceKind


def child_plan(
    spec: RunSpec, *, channel: int, release: int, parents: tuple[int, ...], tasks: tuple[int, ...], ignored: frozenset[int]
) -> ChildPlan:
    """Return what the child of `spec` does; the descriptors and `ignored` are those of ChildPlan and Command."""
    return ChildPlan(
        command=command(spec, ignored),
        channel=channel,
        release=release,
        parents=parents,
        tasks=tasks,
        new_cgroup_namespace=NamespaceKind.CGROUP in spec.isolate,
        private_mounts=NamespaceKind.MNT in spec.isolate,
        mount_proc=spec.new_proc,
        loopback=NamespaceKind.NET in spec.isolate,
        hostname=spec.hostname,
        workdir=spec.workdir,
        become_root=NamespaceKind.USER in spec.isolate,
        drop_groups=NamespaceKind.USER in spec.isolate and os.geteuid() == 0,
        init=spec.init,
    )


def command(spec: RunSpec, ignored: frozenset[int]) -> Command:
    """Return CMD with its variables and where it is looked for."""
    environment = spec.environment(os.environ)
    return Command(
        argv=tuple(map(os.fsencode, spec.argv)),
        environment={os.fsencode(key): os.fsencode(value) for key, value in environment.items()},
        search_path=tuple(map(os.fsencode, environment.get("PATH", DEFAULT_PATH).split(":"))),
        ignored=ignored,
    )
