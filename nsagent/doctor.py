"""The host's features and this process's means: facts, then what follows from them, then what to do about it."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from nsagent import __version__, namespaces, procfs
from nsagent.cgroups import layout
from nsagent.errors import NsagentError, addressed
from nsagent.kernel import features, mounts, pins
from nsagent.kernel.probes import Paths

# include/uapi/linux/capability.h, by number
CAPABILITIES: Final = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap",
    "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw", "ipc_lock", "ipc_owner",
    "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct", "sys_admin", "sys_boot", "sys_nice",
    "sys_resource", "sys_time", "sys_tty_config", "mknod", "lease", "audit_write", "audit_control", "setfcap",
    "mac_override", "mac_admin", "syslog", "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf",
    "checkpoint_restore",
)  # fmt: skip
# The initial namespaces' inums are fixed: include/linux/proc_ns.h, PROC_PID_INIT_INO and PROC_USER_INIT_INO
_FIRST_PID: Final = 0xEFFFFFFC
_FIRST_USER: Final = 0xEFFFFFFD
_ENGINES: Final = ("kubepods", "docker", "containerd", "crio", "libpod", "lxc", "buildkit", "garden")


@dataclass(frozen=True, slots=True)
class Finding:
    """One line: `consequence` and `remedy` are empty where all is well. `needed`: the main job wants it."""

    name: str
    ok: bool
    fact: str
    consequence: str = ""
    remedy: str = ""
    needed: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """All findings, the host's first."""

    versions: dict[str, str]
    findings: tuple[Finding, ...]

    @property
    def lacking(self) -> tuple[Finding, ...]:
        """What the main job needs and does not have; empty: exact accounting, tracing and launching work here."""
        return tuple(finding for finding in self.findings if finding.needed and not finding.ok)


def decode_capabilities(mask: int) -> list[str]:
    """Return the names of the capabilities in a CapEff mask; those without a name here by number."""
    names = dict(enumerate(CAPABILITIES))
    return [names.get(bit, f"cap_{bit}") for bit in range(mask.bit_length()) if mask >> bit & 1]


def examine(paths: Paths = Paths(), pin_dir: str = pins.DEFAULT_PIN_DIR) -> Report:  # noqa: B008 - immutable
    """Look at this host. Changes nothing; never raises for what is lacking."""
    uname = os.uname()
    versions = {"nsagent": __version__, "python": platform.python_version(), "kernel": uname.release, "machine": uname.machine}
    host = [*_host(paths), *_cgroups(paths), _pins(pin_dir)]
    probed = [Finding(f.name, f.available, f.reason, f.consequence, addressed(f.remedy), f.needed) for f in features.probe(paths)]
    return Report(versions, (*host, *probed))


def _host(paths: Paths) -> Iterator[Finding]:
    yield _user(paths.procfs)
    yield _place(paths.procfs)
    inums = _inums(paths.procfs)
    pid, user = inums.get(namespaces.NamespaceKind.PID), inums.get(namespaces.NamespaceKind.USER)
    yield Finding(
        "pid_namespace", pid == _FIRST_PID, "the host's" if pid == _FIRST_PID else f"not the host's (inum {pid})",
        *() if pid == _FIRST_PID else (
            "only the processes of this namespace are seen", "hostPID: true, or docker run --pid host", True),
    )  # fmt: skip
    yield Finding(
        "user_namespace", user == _FIRST_USER, "the host's" if user == _FIRST_USER else f"not the host's (inum {user})",
        *() if user == _FIRST_USER else (
            "the kernel refuses BPF here, whatever the capabilities", "run outside of user namespaces", True),
    )  # fmt: skip
    yield _processes(paths.procfs)


def _inums(root: str) -> dict[namespaces.NamespaceKind, int]:
    try:
        return namespaces.read_inums("self", root)
    except NsagentError:
        return {}


def _user(root: str) -> Finding:
    try:
        mask = procfs.read_status("self", root).capabilities
    except NsagentError as exc:
        return Finding("user", False, exc.message, "nothing can be read", f"mount -t proc proc {root}", True)
    last = int(procfs.read_sysctl("kernel/cap_last_cap", root) or len(CAPABILITIES) - 1)
    held, every = decode_capabilities(mask), decode_capabilities((1 << last + 1) - 1)
    lacks = [name for name in every if name not in held]
    if len(lacks) <= len(held):
        words = "every capability" + (f" but {', '.join(lacks)}" if lacks else "")
    else:
        words = f"only {', '.join(held)}" if held else "no capability"
    fact = f"uid {os.geteuid()}, {words}"
    wanted = [name for name in ("sys_admin", "bpf", "perfmon", "sys_ptrace") if name in lacks]
    if not wanted or ("sys_admin" in held and "sys_ptrace" in held):  # sys_admin implies bpf and perfmon
        return Finding("user", True, fact)
    remedy = addressed(f"run as root, or with {', '.join('CAP_' + name.upper() for name in wanted)}")
    return Finding("user", False, fact, "jobs need a user namespace; other users' processes are not accounted", remedy, True)


def _place(root: str) -> Finding:
    """Say whether this is a container or a virtual machine: a hint, from what both leave lying about."""
    signs = [name for name in ("/.dockerenv", "/run/.containerenv") if os.path.exists(name)]
    try:
        own = {part for member in procfs.read_cgroup("self", root) for part in member.path.split("/")}
        signs += sorted({part[:24] for part in own for engine in _ENGINES if engine in part})
    except NsagentError:
        pass
    if engine := dict(os.environ).get("container"):  # in lower case: systemd's Container Interface
        signs.append(f"container={engine}")
    fact = f"looks like a container ({', '.join(signs)})" if signs else "no sign of a container"
    try:
        with open(f"{root}/cpuinfo", encoding="ascii", errors="replace") as file:
            fact += ", virtual machine" if " hypervisor" in file.read(8192) else ""
    except OSError:
        pass
    return Finding("place", True, fact)


def _processes(root: str) -> Finding:
    readable = total = 0
    closed: list[int] = []
    try:
        for pid in namespaces.walk_pids(root):
            total += 1
            try:
                os.readlink(f"{root}/{pid}/ns/pid")
                readable += 1
            except FileNotFoundError:
                total -= 1  # ended
            except OSError:
                closed.append(pid)
    except NsagentError as exc:
        return Finding("processes", False, exc.message, "no process can be accounted", f"mount -t proc proc {root}", True)
    fact = f"{readable} of {total} readable"
    if readable == total:
        return Finding("processes", True, fact)
    if len(closed) == 1:
        fact += f", not process {closed[0]}"
    return Finding(
        "processes", False, fact, "without BPF, the others are in no total", addressed("run as root, or with CAP_SYS_PTRACE")
    )


def _pins(pin_dir: str) -> Finding:
    live = pins.live_dir(pin_dir)
    if not mounts.is_bpffs(os.path.dirname(os.path.abspath(pin_dir))):
        return Finding("pins", True, f"none in {pin_dir}: not on a bpffs yet")
    try:
        os.listdir(os.path.dirname(pin_dir))
        loaded = os.path.isdir(live)
        links = set(os.listdir(live)) if loaded else set()
    except PermissionError:
        return Finding("pins", True, f"{pin_dir} is closed to this user")
    except OSError:
        loaded, links = False, set()
    agent = pins.owner(pin_dir)
    who = "no agent runs" if agent is None else f"their agent is process {agent}" if agent else "their agent is hidden"
    if loaded:
        traced = "functions" if "link_fexit_setns" in links else "tracepoints" if "link_leave_setns" in links else ""
        how = f"trace at {traced}" if traced else "do not trace"
        return Finding("pins", True, f"programs are loaded in {pin_dir} and {how}, {who}")
    return Finding("pins", True, f"nothing is loaded in {pin_dir}" + ("" if agent is None else f", {who}"))


def _cgroups(paths: Paths) -> Iterator[Finding]:
    """Say which controller lives in which hierarchy, and whether this user may make cgroups there."""
    try:
        found = layout.read_layout(paths.procfs, None if paths.cgroupfs == layout.CGROUPFS else paths.cgroupfs)
    except NsagentError as exc:
        remedy = exc.hint or f"mount -t proc proc {paths.procfs}"
        yield Finding("cgroup_layout", False, exc.message, "no cgroup metrics, no jobs", remedy, True)
        return
    by_version = {
        f"v{version}": sorted(c for h in found.hierarchies if h.version == version for c in h.controllers) for version in (1, 2)
    }
    parts = [f"{', '.join(words)}: {name}" for name, words in by_version.items() if words]
    yield Finding("cgroup_layout", True, f"{found.mode} ({'; '.join(parts) or 'no controllers'})")
    closed = [h.mountpoint for h in found.hierarchies if not h.writable or not os.access(h.mountpoint, os.W_OK)]
    if closed:
        remedy = "run as root, or in a delegated scope: systemd-run --user --scope -p Delegate=yes"
        if os.geteuid() == 0:
            remedy = "mount the cgroup trees read-write"
        fact = f"not in {closed[0]}" + (f" and {len(closed) - 1} more" if len(closed) > 1 else "")
        yield Finding("cgroup_write", False, fact, "jobs cannot be limited or accounted", remedy, True)
    else:
        yield Finding("cgroup_write", True, "cgroups can be made in every tree")


def to_json(report: Report) -> str:
    """Return the report as JSON: ok, versions, lacking (names), findings."""
    document = {
        "ok": not report.lacking,
        "versions": report.versions,
        "lacking": [finding.name for finding in report.lacking],
        "findings": [dataclasses.asdict(finding) for finding in report.findings],
    }
    return json.dumps(document, indent=2)


def to_text(report: Report) -> str:
    """Return the report as a table of facts, consequences and remedies, and the verdict below it."""
    findings = report.findings
    name_width = max(len(finding.name) for finding in findings) + 2
    fact_width = min(max(len(finding.fact) for finding in findings), 56) + 2
    lines = [" ".join(f"{name} {version}" for name, version in report.versions.items())]
    said: dict[str, str] = {}
    for finding in findings:
        name = finding.name.replace("_", " ")
        end = "; ".join(filter(None, (finding.consequence, finding.remedy))) or "ok"
        if not finding.ok:
            first = said.setdefault(end, name)
            end = ("LACKING: " if finding.needed else "") + (end if first == name else f"as {first}")
        lines.append(f"{name:{name_width}}{finding.fact + '  ':{fact_width}}{end}")
    names = ", ".join(finding.name.replace("_", " ") for finding in report.lacking)
    verdict = f"nsagent cannot do all of its job here: {names}" if names else "nsagent can do its whole job here"
    return "\n".join((*lines, "", verdict))
