"""A seccomp profile, in the JSON form of docker and the OCI, to a BPF program; and the default profile.

The default lets every call through that was known when it was reviewed, but those that reach outside of the job or that
few programs need and many exploits did; most of these are open to who has the capability they are about. It refuses
what docker's does. A call that is newer than the review is not known to this kernel, as far as CMD can tell (ENOSYS), so
that a C library falls back to an older one.

Imported only where a program is not kept already. Sources: man 2 seccomp, man 3 seccomp_rule_add; the documentation of
docker's profiles.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import json
import os
import struct
import tempfile
from typing import Any, Final

from nsagent.errors import AccessError, NsagentError, UnsupportedError, UsageError
from nsagent.launch.security import NAMES

_REVIEWED: Final = 466  # removexattrat(2), the last call of Linux 6.13; numbers are one on all machines since 424
_NEW_NAMESPACES: Final = 0x7E020000  # CLONE_NEW* in the flags of clone(2), all that fit there

# Refused whatever CMD may do: keys are not in a namespace; replacing the kernel; other processes' pages; what exploits
# liked (userfaultfd, io_uring); calls that are obsolete, or of old machines.
_NEVER: Final = (
    "add_key keyctl request_key kexec_load kexec_file_load create_module get_kernel_syms query_module nfsservctl "
    "migrate_pages move_pages swapon swapoff pivot_root userfaultfd io_uring_setup io_uring_enter io_uring_register "
    "_sysctl sysfs ustat uselib vm86 vm86old afs_syscall tuxcall vserver security getpmsg putpmsg bdflush idle"
)
_WITH: Final[dict[str, str]] = {
    "BPF": "bpf",
    "DAC_READ_SEARCH": "open_by_handle_at",
    "PERFMON": "perf_event_open",
    "SYSLOG": "syslog",
    "SYS_ADMIN": "bpf clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie mount mount_setattr move_mount "
    "open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare "
    "lsm_get_self_attr lsm_set_self_attr lsm_list_modules",
    "SYS_BOOT": "reboot",
    "SYS_CHROOT": "chroot",
    "SYS_MODULE": "delete_module finit_module init_module",
    "SYS_NICE": "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    "SYS_PACCT": "acct",
    "SYS_PTRACE": "kcmp pidfd_getfd process_madvise",
    "SYS_RAWIO": "ioperm iopl",
    "SYS_TIME": "clock_settime clock_settime64 settimeofday stime",
    "SYS_TTY_CONFIG": "vhangup",
}
_PERSONALITIES: Final = (0, 0x8, 0x20000, 0x20008, 0xFFFFFFFF)  # PER_LINUX32, UNAME26; the last only asks
_ARCHES: Final = {  # uname -m: libseccomp's name of it, of the others it can run, and docker's name
    "x86_64": ("X86_64", ("X86", "X32"), "amd64"),
    "aarch64": ("AARCH64", ("ARM",), "arm64"),
    "s390x": ("S390X", ("S390",), "s390x"),
    "ppc64le": ("PPC64LE", (), "ppc64le"),
    "riscv64": ("RISCV64", (), "riscv64"),
}


def compile_profile(path: str, capabilities: int) -> bytes:
    """Return the program of the profile at `path` ("": the default one) for a job with these capabilities (a bit mask).

    Raises: UnsupportedError without libseccomp or its binding; UsageError, AccessError of the file.
    """
    try:
        pyseccomp = _import_binding()
    except (ImportError, RuntimeError) as exc:  # RuntimeError: the binding is there, libseccomp.so is not
        raise UnsupportedError(
            "seccomp filter",
            f"{exc}",
            hint="pip install pyseccomp (Debian: python3-seccomp), or choose --seccomp unconfined",
        ) from exc
    machine = os.uname().machine
    if machine not in _ARCHES:
        raise UnsupportedError("seccomp filter", f"no profile for {machine}", hint="--seccomp unconfined")
    names = frozenset(f"CAP_{name}" for number, name in enumerate(NAMES) if capabilities >> number & 1)
    profile = _read(path) if path else default(pyseccomp, machine, names)
    try:
        made = _Compiler(pyseccomp, machine, names).compile(profile)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise UsageError(
            f"--seccomp {path}: no seccomp profile of docker's form: {exc!r}", hint="see 'Seccomp' of docker's manual"
        ) from exc
    except OSError as exc:
        raise NsagentError(f"libseccomp refuses the profile {path or 'of nsagent'}: {exc}") from exc
    return made if path else _newer_is_unknown() + made


def _import_binding() -> Any:
    """Return PyPI's pyseccomp, else libseccomp's own binding, which has the same names: distributions have that one alone."""
    with contextlib.suppress(ImportError):
        return importlib.import_module("pyseccomp")
    return importlib.import_module("seccomp")


def _read(path: str) -> Any:
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as exc:
        raise AccessError(f"--seccomp {path}: {exc.strerror}", hint="name a file that can be read") from exc
    except ValueError as exc:
        raise UsageError(f"--seccomp {path}: not JSON: {exc}", hint="a profile in docker's JSON form, or 'unconfined'") from exc


def default(pyseccomp: Any, machine: str, capabilities: frozenset[str]) -> dict[str, Any]:
    """Return the default profile, in the form of a file, of the calls that this libseccomp knows."""
    arch, others, _ = _ARCHES[machine]
    known = set()
    for each in (arch, *others):
        for number in range(_REVIEWED + 1):
            try:
                known.add(pyseccomp.resolve_syscall(getattr(pyseccomp.Arch, each), number).decode())
            except ValueError:
                continue
    closed = set(_NEVER.split())
    for words in _WITH.values():
        closed |= set(words.split())
    for name, words in _WITH.items():
        if f"CAP_{name}" in capabilities:
            closed -= set(words.split())
    closed |= {"socket", "personality", "clone3"}
    rules: list[dict[str, Any]] = [
        _rule("socket", 0, 38, "LT"),  # not AF_ALG, whose kernel code few use; not AF_VSOCK, which is in no namespace
        _rule("socket", 0, 39, "EQ"),
        _rule("socket", 0, 40, "GT"),
        *(_rule("personality", 0, value, "EQ") for value in _PERSONALITIES),
    ]
    if "CAP_SYS_ADMIN" in capabilities:
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ALLOW"})
    else:
        closed.add("clone")
        flags = 1 if machine == "s390x" else 0
        rules.append(_rule("clone", flags, _NEW_NAMESPACES, "MASKED_EQ"))
        # its flags lie in memory, where no filter can look: without it libc takes clone
        rules.append({"names": ["clone3"], "action": "SCMP_ACT_ERRNO", "errnoRet": errno.ENOSYS})
    rules.append({"names": sorted(known - closed), "action": "SCMP_ACT_ALLOW"})
    return {"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": errno.EPERM, "syscalls": rules}


def _rule(name: str, index: int, value: int, operation: str) -> dict[str, Any]:
    argument = {"index": index, "value": value, "valueTwo": 0, "op": f"SCMP_CMP_{operation}"}
    return {"names": [name], "action": "SCMP_ACT_ALLOW", "args": [argument]}


def _newer_is_unknown() -> bytes:
    """Return instructions to stand before a program: calls above _REVIEWED answer ENOSYS, but those of x32 (bit 30)."""
    steps = (
        (0x20, 0, 0, 0),  # BPF_LD | BPF_W | BPF_ABS: the number of the call
        (0x25, 0, 2, _REVIEWED),  # BPF_JGT: else to the program
        (0x35, 1, 0, 1 << 30),  # BPF_JGE: to the program
        (0x06, 0, 0, 0x50000 | errno.ENOSYS),  # BPF_RET: SECCOMP_RET_ERRNO
    )
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


class _Compiler:
    """One profile through libseccomp."""

    def __init__(self, pyseccomp: Any, machine: str, capabilities: frozenset[str]) -> None:
        self._lib = pyseccomp
        self._arch, self._others, self._docker_arch = _ARCHES[machine]
        self._capabilities = capabilities

    def compile(self, profile: Any) -> bytes:
        default = self._action(profile["defaultAction"], profile.get("defaultErrnoRet"))
        rules = self._lib.SyscallFilter(default)
        for arch in self._others:
            rules.add_arch(getattr(self._lib.Arch, arch))
        try:
            rules.set_attr(self._lib.Attr.CTL_OPTIMIZE, 2)  # a tree, not a list; since libseccomp 2.5
        except OSError:
            pass
        for entry in profile.get("syscalls") or ():
            if self._applies(entry):
                self._add(rules, entry, default)
        with tempfile.TemporaryFile() as file:
            rules.export_bpf(file)
            file.seek(0)
            return file.read()

    def _add(self, rules: Any, entry: Any, default: int) -> None:
        action = self._action(entry["action"], entry.get("errnoRet"))
        if action == default:
            return
        arguments = [
            self._lib.Arg(arg["index"], self._operation(arg["op"]), arg["value"], arg.get("valueTwo") or 0)
            for arg in entry.get("args") or ()
        ]
        for name in entry.get("names") or [entry["name"]]:
            if self._lib.resolve_syscall(self._lib.Arch.NATIVE, name) == -1:  # __NR_SCMP_ERROR: libseccomp does not know it
                continue
            rules.add_rule(action, name, *arguments)

    def _applies(self, entry: Any) -> bool:
        wanted, unwanted = entry.get("includes") or {}, entry.get("excludes") or {}
        if wanted.get("minKernel") and _kernel() < _version(wanted["minKernel"]):
            return False
        if unwanted.get("minKernel") and _kernel() >= _version(unwanted["minKernel"]):
            return False
        if wanted.get("arches") and self._docker_arch not in wanted["arches"]:
            return False
        if self._docker_arch in (unwanted.get("arches") or ()):
            return False
        if not set(wanted.get("caps") or ()) <= self._capabilities:
            return False
        return not set(unwanted.get("caps") or ()) & self._capabilities

    def _action(self, name: str, errno_value: int | None) -> int:
        kind = name.removeprefix("SCMP_ACT_")
        if kind in ("ERRNO", "TRACE"):
            return int(getattr(self._lib, kind)(errno.EPERM if errno_value is None else errno_value))
        return int(getattr(self._lib, {"KILL_THREAD": "KILL"}.get(kind, kind)))

    def _operation(self, name: str) -> int:
        return int(getattr(self._lib, name.removeprefix("SCMP_CMP_")))


def _kernel() -> tuple[int, ...]:
    return _version(os.uname().release)


def _version(text: str) -> tuple[int, ...]:
    major, minor = text.split(".")[:2]
    return int(major), int("".join(char for char in minor if char.isdigit()) or 0)
