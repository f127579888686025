"""The plan of a job as `--dry-run` prints it: what would be made, written and mounted. Nothing is."""

from __future__ import annotations

import shlex

from nsagent.cgroups.group import plan
from nsagent.cgroups.layout import Layout
from nsagent.launch import security
from nsagent.launch.mounts import MountPlan
from nsagent.launch.prepare import device_rules, id_maps, mount_plan
from nsagent.launch.spec import RunSpec
from nsagent.namespaces import KINDS, NamespaceKind


def describe(spec: RunSpec, layout: Layout, parent: str = "") -> str:
    """Return the plan of `spec` for people, a line a subject. Raises UnsupportedError for a limit this host has not."""
    made = [kind for kind in KINDS if kind in spec.isolate]
    shared = [kind for kind in KINDS if kind not in spec.isolate | spec.joined]
    rows = [("command", shlex.join(spec.argv)), ("name", spec.name)]
    rows.append(("namespaces", f"new: {' '.join(made) or 'none'}; of this process: {' '.join(shared) or 'none'}"))
    rows += [("joined", f"{each.kind}: {each.path}") for each in spec.join]
    rows += [("clock", f"{each.clock}: {each.offset_ns / 1e9:+g} s") for each in spec.clock_offsets]
    if maps := id_maps(spec):
        rows.append(("ids", maps.describe()))
    if spec.user:
        rows.append(("user", spec.user))
    below = f"{parent}nsagent/{spec.name}-..."
    rows += [("cgroup", f"{hierarchy.mountpoint}/{below}") for hierarchy in layout.hierarchies if hierarchy.writable]
    rows += [
        ("limit", f"{setting.flag}: {hierarchy.mountpoint}/{below}/{setting.file} = {setting.value}")
        for hierarchy, setting in plan(layout, spec.limits)
    ]
    rules = device_rules(spec)
    if rules is not None:
        how = "" if layout.of("devices") is not None else "a BPF program that "
        rows.append(("limit", f"--device-policy: {how}lets {', '.join(map(str, rules))}"))
    rows += [("limit", f"{flag}: {value}") for flag, value in spec.tuning.describe()]
    if NamespaceKind.MNT in spec.isolate:
        rows += [("mounts", line) for line in _mounts(mount_plan(spec, layout, maps))]
    if NamespaceKind.NET in spec.isolate:
        rows.append(("network", "lo, up"))
    for subject, value in (("hostname", spec.hostname), ("directory", spec.workdir)):
        if value:
            rows.append((subject, value))
    rows.append(("environment", " ".join(["empty" if spec.clean_env else "inherited", *(key for key, _ in spec.env)])))
    rows.append(("capabilities", security.describe(spec.security.capabilities)))
    rows.append(("seccomp", (spec.security.seccomp or "default") if spec.security.filtered else "unconfined"))
    rows.append(("PID 1", _pid_one(spec)))
    if spec.timeout_ns is not None:
        rows.append(("timeout", f"SIGTERM after {spec.timeout_ns / 1e9:g} s, SIGKILL {spec.stop_timeout_ns / 1e9:g} s later"))
    rows += [("note", note) for note in spec.notes]
    return "".join(f"{subject:<13}{value}\n" for subject, value in rows)


def _pid_one(spec: RunSpec) -> str:
    if NamespaceKind.PID in spec.isolate:
        return "a small init" if spec.init else "the command"
    return "of this PID namespace" + ("; a small init reaps" if spec.init else "")


def _mounts(mounts: MountPlan) -> list[str]:
    rows = ["private propagation" + (f"; {mounts.root} becomes the root" if mounts.root else "")]
    rows[0] += ("; read-only" if mounts.read_only else "") + ("; no device nodes but those of /dev" if mounts.sealed else "")
    rows += [f"{each.source} at {each.target}{' read-only' if each.read_only else ''}" for each in mounts.volumes]
    rows += [f"tmpfs at {each.target} {each.data}".rstrip() for each in mounts.tmpfs]
    kernel = mounts.kernel
    for path, kind in (("/proc", kernel.proc), ("/sys", kernel.sys), ("/dev", kernel.dev)):
        words = {"new": f"a fresh {path}", "host": f"{path} of the host", "keep": f"{path} as it is"}
        rows.append(words[kind] + ("; paths that tell or change the host covered" if kernel.covered and path != "/dev" else ""))
    return rows
