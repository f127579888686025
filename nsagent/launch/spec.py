"""What was asked for: RunSpec, checked when it is made. Data only; nothing here changes anything."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Final, NamedTuple

from nsagent.cgroups.limits import Limits
from nsagent.errors import UsageError
from nsagent.launch.filesystem import Filesystem
from nsagent.launch.idmaps import Extent
from nsagent.launch.joining import ClockOffset, Join
from nsagent.launch.security import Security, mask
from nsagent.launch.tuning import Tuning
from nsagent.namespaces import NamespaceKind

DEFAULT_KINDS: Final = frozenset(
    {NamespaceKind.CGROUP, NamespaceKind.IPC, NamespaceKind.MNT, NamespaceKind.PID, NamespaceKind.UTS}
)
DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
STOP_TIMEOUT_NS: Final = 10 * 10**9
LEAST_SAMPLE_NS: Final = 10**6
_CAP_SYS_ADMIN: Final = 21  # include/uapi/linux/capability.h


class RunSpec(NamedTuple):
    """One job as asked for; `checked` says whether that makes sense. Times are ns.

    `name` is the job's name, by default the base name of the command. `join`: namespaces of others, in place of new ones.
    `clock_offsets`: of a new time namespace, which they bring about. `device_policy`: closed, open, auto: see `guards_devices`.
    `parent`: the cgroup to be in, a path below the root of each hierarchy; "" for the root, or for what was delegated.
    `best_effort`: limits that this host cannot enforce are notes.
    `user`: USER[:GROUP], "" for root of a new user namespace, else the caller. `userns`: `auto` makes one, `none` never does, ""
    where the caller needs one. `mount_proc`: a fresh /proc, where mnt is new and pid not ours. `timeout_ns`: SIGTERM after it,
    SIGKILL to all `stop_timeout_ns` later; `cpu_timeout_ns`: the same after so much CPU time of all its processes. `sample_ns`:
    how often its timeline is read. `notes` tell what was changed against the words of the user, and why.
    """

    argv: tuple[str, ...]
    name: str = ""
    isolate: frozenset[NamespaceKind] = DEFAULT_KINDS
    join: tuple[Join, ...] = ()
    clock_offsets: tuple[ClockOffset, ...] = ()
    limits: Limits = Limits()
    tuning: Tuning = Tuning()
    device_policy: str = "auto"
    parent: str = ""
    best_effort: bool = False
    filesystem: Filesystem = Filesystem()
    security: Security = Security()
    user: str = ""
    userns: str = ""
    uid_map: tuple[Extent, ...] = ()
    gid_map: tuple[Extent, ...] = ()
    hostname: str = ""
    workdir: str = ""
    env: tuple[tuple[str, str], ...] = ()
    clean_env: bool = False
    mount_proc: bool = True
    init: bool = False
    timeout_ns: int | None = None
    cpu_timeout_ns: int | None = None
    stop_timeout_ns: int = STOP_TIMEOUT_NS
    sample_ns: int | None = None
    notes: tuple[str, ...] = ()

    def checked(self) -> RunSpec:
        """Return it with what follows: a name, and the namespaces that ids and clocks ask for. Raises UsageError for nonsense."""
        isolate = self.isolate
        self.filesystem.check()
        if not self.argv or not self.argv[0]:
            raise UsageError("there is no command", hint="nsagent run [options] -- CMD")
        if any("\0" in word for word in self.argv):
            raise UsageError("a NUL character cannot be in a command", hint="execve(2) ends a word there")
        if self.userns == "none" and (NamespaceKind.USER in isolate or self.uid_map or self.gid_map):
            raise UsageError("--userns none contradicts a user namespace that is asked for", hint="leave one of them out")
        if self.userns == "auto" or self.uid_map or self.gid_map:
            isolate |= {NamespaceKind.USER}
        if self.parent and not {"", ".", ".."}.isdisjoint(self.parent.split("/")):
            raise UsageError(f"--parent {self.parent!r} is no path of a cgroup", hint="such as batch or user.slice/batch")
        if self.clock_offsets:
            isolate |= {NamespaceKind.TIME}
        self._check_joins(isolate)
        if self.hostname and NamespaceKind.UTS not in isolate:
            raise UsageError("--hostname without a new uts namespace would rename the host", hint="add uts to --isolate")
        if self.filesystem and NamespaceKind.MNT not in isolate:
            raise UsageError("mounts without a new mnt namespace would be the host's", hint="add mnt to --isolate")
        if len(os.fsencode(self.hostname)) > 64:
            raise UsageError(f"--hostname {self.hostname!r} is longer than 64 bytes", hint="sethostname(2) takes no more")
        if self.sample_ns is not None and self.sample_ns < LEAST_SAMPLE_NS:
            raise UsageError("--sample is too short", hint="at least 1ms: a reading takes some 50 us")
        for key, value in self.env:
            if not key or "=" in key or "\0" in key + value:
                raise UsageError(f"--env {key!r} is not a variable", hint="--env NAME=VALUE, or --env NAME to pass one on")
        name = self.name or os.path.basename(self.argv[0].rstrip("/")) or "job"
        if not name.isprintable() or len(name) > 200:
            raise UsageError(f"--name {name!r} does not name a job", hint="printable characters, at most 200")
        return self._replace(name=name, isolate=isolate)

    def _check_joins(self, isolate: frozenset[NamespaceKind]) -> None:
        kinds = [each.kind for each in self.join]
        for each in self.join:
            if each.kind in isolate:
                clock = each.kind is NamespaceKind.TIME and self.clock_offsets
                what = "--clock-offset" if clock else f"--isolate {each.kind}"
                raise UsageError(
                    f"--join {each.word} contradicts {what}", hint=f"a job has one {each.kind} namespace: new, joined, or ours"
                )
            if kinds.count(each.kind) > 1:
                raise UsageError(f"--join {each.word}: {each.kind} is joined twice", hint="a process is in one of each kind")
        clocks = [each.clock for each in self.clock_offsets]
        if len(clocks) != len(set(clocks)):
            raise UsageError(f"--clock-offset {clocks[0]} is given twice", hint="one offset a clock")

    @property
    def joined(self) -> frozenset[NamespaceKind]:
        """The kinds that are joined."""
        return frozenset(each.kind for each in self.join)

    @property
    def foreign_user(self) -> bool:
        """Whether the job is in another user namespace than the launcher."""
        return NamespaceKind.USER in self.isolate | self.joined

    @property
    def foreign_root(self) -> bool:
        """Whether what is at / is not the host's, but somebody's who is not trusted."""
        return bool(self.filesystem.rootfs) or NamespaceKind.MNT in self.joined

    @property
    def guards_devices(self) -> bool:
        """Whether it may open the devices of every job, its terminals and volumes, and no others.

        By itself where it has mounts of its own, which are nodev, and a mknod(2) of its own would name a device of the host.
        """
        if self.device_policy != "auto":
            return self.device_policy == "closed"
        own = NamespaceKind.MNT in self.isolate and not self.security.privileged
        return own and not self.foreign_user and bool(self.security.capabilities & mask(("MKNOD",)))

    @property
    def must_guard_devices(self) -> bool:
        """Whether it is not to run without: it was asked for, or nodev is no guard against a job that may mount."""
        return self.guards_devices and (self.device_policy == "closed" or bool(self.security.capabilities & mask(("SYS_ADMIN",))))

    @property
    def clone_flags(self) -> int:
        """The CLONE_NEW* flags of the job's clone3; the cgroup namespace comes after it (see nsagent.launch.child)."""
        return sum(kind.flag for kind in self.isolate if kind is not NamespaceKind.CGROUP)

    @property
    def new_proc(self) -> bool:
        """Whether /proc is mounted anew: it shows the PID namespace of its mounter, who must own that; the mounts are new."""
        if not self.mount_proc or NamespaceKind.MNT not in self.isolate:
            return False
        return NamespaceKind.PID in self.isolate or (NamespaceKind.PID in self.joined and NamespaceKind.USER not in self.isolate)

    def for_capabilities(self, effective: int) -> RunSpec:
        """Return the spec as a process with these capabilities can run it: without CAP_SYS_ADMIN, `user` is added."""
        if not self.isolate or self.userns == "none" or self.foreign_user or effective >> _CAP_SYS_ADMIN & 1:
            return self
        note = "a user namespace was added: without CAP_SYS_ADMIN the others are made in one of one's own"
        return self._replace(isolate=self.isolate | {NamespaceKind.USER}, notes=(*self.notes, note))

    def environment(self, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return CMD's variables: those inherited (with `clean_env`: none), then `env` over them."""
        return ({} if self.clean_env else dict(inherited)) | dict(self.env)


def read_capabilities(procfs: str = "/proc") -> int:
    """Return the caller's effective capabilities as a bit mask, capabilities(7)."""
    with open(f"{procfs}/self/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("CapEff:"):
                return int(line.split()[1], 16)
    return 0


def split_env(word: str) -> tuple[str, str] | None:
    """Return (name, value) of NAME=VALUE, or of NAME with the value here; None where a NAME to pass on is not set."""
    name, given, value = word.partition("=")
    if given:
        return name, value
    return (name, os.environ[name]) if name in os.environ else None
