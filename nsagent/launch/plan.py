"""The plan of a job as `--dry-run` prints it: what would be made, written and mounted. Nothing is."""

from __future__ import annotations

import os
import shlex

from nsagent.cgroups.group import plan
from nsagent.cgroups.layout import Layout
from nsagent.launch import idmaps
from nsagent.launch.spec import RunSpec
from nsagent.namespaces import KINDS, NamespaceKind


def describe(spec: RunSpec, layout: Layout, parent: str = "") -> str:
    """Return the plan of `spec` for people, a line a subject. Raises UnsupportedError for a limit this host has not."""
    made = [kind for kind in KINDS if kind in spec.isolate]
    shared = [kind for kind in KINDS if kind not in spec.isolate]
    rows = [("command", shlex.join(spec.argv)), ("name", spec.name)]
    rows.append(("namespaces", f"new: {' '.join(made) or 'none'}; of this process: {' '.join(shared) or 'none'}"))
    if NamespaceKind.USER in spec.isolate:
        rows.append(("ids", idmaps.choose(os.geteuid(), os.getegid()).describe()))
    below = f"{parent}nsagent/{spec.name}-..."
    rows += [("cgroup", f"{hierarchy.mountpoint}/{below}") for hierarchy in layout.hierarchies if hierarchy.writable]
    rows += [
        ("limit", f"{setting.flag}: {hierarchy.mountpoint}/{below}/{setting.file} = {setting.value}")
        for hierarchy, setting in plan(layout, spec.limits)
    ]
    if NamespaceKind.MNT in spec.isolate:
        rows.append(("mounts", "private propagation" + ("; a fresh /proc" if spec.new_proc else "")))
    if NamespaceKind.NET in spec.isolate:
        rows.append(("network", "lo, up"))
    for subject, value in (("hostname", spec.hostname), ("directory", spec.workdir)):
        if value:
            rows.append((subject, value))
    rows.append(("environment", " ".join(["empty" if spec.clean_env else "inherited", *(key for key, _ in spec.env)])))
    rows.append(("PID 1", _pid_one(spec)))
    if spec.timeout_ns is not None:
        rows.append(("timeout", f"SIGTERM after {spec.timeout_ns / 1e9:g} s, SIGKILL {spec.stop_timeout_ns / 1e9:g} s later"))
    rows += [("note", note) for note in spec.notes]
    return "".join(f"{subject:<13}{value}\n" for subject, value in rows)


def _pid_one(spec: RunSpec) -> str:
    if NamespaceKind.PID in spec.isolate:
        return "a small init" if spec.init else "the command"
    return "of this PID namespace" + ("; a small init reaps" if spec.init else "")
