"""How each feature of `nsagent.kernel.features` is tried: by the smallest real use of it.

Nothing is left behind: programs and maps made to try are closed at once, nothing is mounted, clone3 makes no process.
Sources: Documentation/bpf/*, man 2 bpf, man 2 perf_event_open, man 2 clone, man 7 cgroups, man 7 kernel_lockdown.
"""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import struct
import subprocess
from typing import Final, NamedTuple

from nsagent import libc
from nsagent.kernel import bpf, btf, build, mounts


class Paths(NamedTuple):
    """Where the kernel's filesystems are looked for (`--path.procfs`, `--path.sysfs`, `--path.cgroupfs`)."""

    procfs: str = "/proc"
    sysfs: str = "/sys"
    cgroupfs: str = "/sys/fs/cgroup"


class No(Exception):
    """A probe's "no": the reason, and a remedy where it knows a better one than the table's."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.remedy = remedy


_EXIT: Final = struct.pack("<BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)  # r0 = 0; exit
_TASK_STORAGE_GET: Final = 156  # enum bpf_func_id
# BTF: 1 = int, the key; 2 = u64, the value
_STORAGE_BTF: Final = struct.pack(
    "=HBBIIIII8I", 0xEB9F, 1, 0, 24, 0, 32, 32, 9, 1, 1 << 24, 4, 1 << 24 | 32, 5, 1 << 24, 8, 64
) + b"\0int\0u64\0"  # fmt: skip
_NEEDS_CAPS: Final = "run as root, or with CAP_BPF and CAP_PERFMON (CAP_SYS_ADMIN before v5.8)"
_ROW_BYTES, _ROWS = 368, 10240  # the biggest map of bpf/common.h


def find_btf_ids(data: bytes, wanted: dict[str, int]) -> dict[str, int]:
    """Return the ids of a few types, name -> kind in, name -> id out: a walk without btf.Btf's 20 MB of names."""
    _, _, _, header, type_off, type_len, str_off, _ = struct.unpack_from("<HBBIIIII", data)
    strings = header + str_off
    names = {}
    for name, kind in wanted.items():
        at = data.find(b"\0%s\0" % name.encode(), strings)
        if at >= 0:
            names[at + 1 - strings] = (name, kind)
    fixed = {btf.INT: 16, btf.ARRAY: 24, btf.VAR: 16, btf.DECL_TAG: 16}
    each = {btf.STRUCT: 12, btf.UNION: 12, btf.ENUM: 8, btf.FUNC_PROTO: 8, btf.DATASEC: 12, btf.ENUM64: 12}
    found: dict[str, int] = {}
    at, end, number, unpack = header + type_off, header + type_off + type_len, 0, struct.Struct("<II").unpack_from
    while at < end and len(found) < len(names):
        number += 1
        name_off, info = unpack(data, at)
        kind = info >> 24 & 0x1F
        if name_off in names and names[name_off][1] == kind:
            found.setdefault(names[name_off][0], number)
        at += fixed.get(kind, 12) + each.get(kind, 0) * (info & 0xFFFF)
    return found


def from_errno(exc: OSError) -> No:
    """Make a "no" of an errno; a lack of privilege has its own remedy."""
    lacks = exc.errno in (errno.EPERM, errno.EACCES)
    return No(f"refused: {bpf.strerror(exc.errno or 0)}", _NEEDS_CAPS if lacks else "")


def _text(path: str) -> str:
    """Return a small file's text, stripped. Raises No."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read().strip()
    except OSError as exc:
        raise No(f"{path}: {exc.strerror}") from exc


class Probes:
    """The tests, named as the features. Each returns the fact it found, or raises No or OSError."""

    def __init__(self, paths: Paths) -> None:
        self.paths = paths
        self._bpf_says = ""
        self._ids: dict[str, int] | None = None

    # -- BPF ----------------------------------------------------------------------------------------------------------

    def btf(self) -> str:
        path = f"{self.paths.sysfs}/kernel/btf/vmlinux"
        if not os.path.exists(path):
            raise No(f"no {path}")
        self._ids = self._read_btf(path)
        return path

    def _read_btf(self, path: str) -> dict[str, int]:
        try:
            with open(path, "rb") as file:
                wanted = {"btf_trace_task_newtask": btf.TYPEDEF, "bpf_iter_task": btf.FUNC, "bpf_iter_cgroup": btf.FUNC}
                return find_btf_ids(file.read(), wanted | {"bpf_fentry_test1": btf.FUNC})
        except OSError as exc:
            raise No(f"{path}: {exc.strerror}") from exc
        except struct.error as exc:
            raise No(f"{path} is broken: {exc}") from exc

    def bpf(self) -> str:
        try:
            os.close(bpf.prog_load(bpf.PROG_TYPES["tracepoint"], "probe", _EXIT))
        except OSError as exc:
            self._bpf_says = "no bpf(2) in this kernel" if exc.errno == errno.ENOSYS else "bpf(2) is refused"
            raise
        return "programs can be loaded"

    def _target(self, name: str) -> int:
        """Return a BTF id to attach to."""
        if self._bpf_says:
            raise No(self._bpf_says, _NEEDS_CAPS)
        if self._ids is None:
            raise No("no BTF")
        if name not in self._ids:
            raise No(f"this kernel has no {name}")
        return self._ids[name]

    def _load_tracing(self, target: str, attach_type: int, insns: bytes = _EXIT) -> int:
        btf_id = self._target(target)
        return bpf.prog_load(bpf.PROG_TYPES["tracing"], "probe", insns, attach_type=attach_type, btf_id=btf_id)

    def tp_btf(self) -> str:
        os.close(self._load_tracing("btf_trace_task_newtask", bpf.TRACE_RAW_TP))
        return "trusted task pointers at tracepoints"

    def task_storage(self) -> str:
        self._target("btf_trace_task_newtask")
        fds = [bpf.btf_load(_STORAGE_BTF)]
        try:
            flags = bpf.MAP_FLAGS["no_prealloc"]
            kind, types = bpf.MAP_TYPES["task_storage"], (fds[0], 1, 2)
            fds.append(bpf.map_create(kind, "probe", key_size=4, value_size=8, max_entries=0, flags=flags, btf=types))
            insns = struct.pack("<BBhi", 0x79, 0x12, 0, 0)  # r2 = *(u64 *)(r1 + 0): the new task
            insns += struct.pack("<BBhiBBhi", 0x18, 0x11, 0, fds[1], 0, 0, 0, 0)  # r1 = map
            insns += struct.pack("<BBhiBBhi", 0xB7, 3, 0, 0, 0xB7, 4, 0, 0)  # r3 = r4 = 0
            insns += struct.pack("<BBhi", 0x85, 0, 0, _TASK_STORAGE_GET) + _EXIT
            fds.append(self._load_tracing("btf_trace_task_newtask", bpf.TRACE_RAW_TP, insns))
        finally:
            for fd in fds:
                os.close(fd)
        return "tracing programs keep their own words on a task"

    def _iterator(self, target: str) -> str:
        fd = self._load_tracing(target, bpf.TRACE_ITER)
        os.close(fd)
        return f"{target} can be loaded"

    def iter_task(self) -> str:
        return self._iterator("bpf_iter_task")

    def iter_cgroup(self) -> str:
        return self._iterator("bpf_iter_cgroup")

    def ringbuf(self) -> str:
        return self._map("ringbuf", 0, 0, os.sysconf("SC_PAGE_SIZE"))

    def memlock(self) -> str:
        try:
            self._map("array", 4, _ROW_BYTES, _ROWS)
        except PermissionError as exc:  # before v5.11 maps count against the limit; later against the memory cgroup
            limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
            raise No(f"a map of {_ROW_BYTES * _ROWS >> 10} KiB is refused, RLIMIT_MEMLOCK is {limit >> 10} KiB") from exc
        return f"a map of {_ROW_BYTES * _ROWS >> 10} KiB can be made"

    def _map(self, kind: str, key: int, value: int, entries: int) -> str:
        if self._bpf_says:
            raise No(self._bpf_says, _NEEDS_CAPS)
        os.close(bpf.map_create(bpf.MAP_TYPES[kind], "probe", key_size=key, value_size=value, max_entries=entries))
        return f"{kind} maps can be made"

    def fentry(self) -> str:
        self._target("bpf_fentry_test1")  # a function that only the kernel's own tests call
        try:
            fd = self._load_tracing("bpf_fentry_test1", bpf.TRACE_FENTRY)
            try:
                os.close(bpf.raw_tracepoint_open(fd))
            finally:
                os.close(fd)
        except OSError as exc:  # privilege is not what lacks: other programs were loaded
            raise No(f"function tracing is refused: {bpf.strerror(exc.errno or 0)}") from exc
        return "calls are traced at their own functions: no other call costs more"

    def kprobe(self) -> str:
        path = f"{self.paths.sysfs}/bus/event_source/devices/kprobe/type"
        if not os.path.exists(path):
            raise No("CONFIG_KPROBE_EVENTS is off")
        return f"perf event type {_text(path)}"

    def bpf_jit(self) -> str:
        path = f"{self.paths.procfs}/sys/net/core/bpf_jit_enable"
        try:
            value = _text(path)
        except No:
            return "not readable by this user" if os.path.exists(path) else "no such sysctl: always on, or no JIT"
        if value == "0":
            raise No("net.core.bpf_jit_enable is 0")
        return f"net.core.bpf_jit_enable is {value}"

    def kernel_reads(self) -> str:
        try:
            text = _text(f"{self.paths.sysfs}/kernel/security/lockdown")
        except No:
            return "no lockdown"
        if "[confidentiality]" in text:
            raise No("lockdown=confidentiality")
        return f"lockdown: {text}"

    def bcc(self) -> str:
        tried = []
        for python in build.interpreters():
            code = "import importlib.util as u; s = u.find_spec('bcc'); print(s.origin if s else '')"
            command = [python, "-I", "-c", code]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
            except (OSError, subprocess.SubprocessError) as exc:
                tried.append(f"{python} does not run ({type(exc).__name__})")
                continue
            origin = done.stdout.strip()
            if origin and os.path.exists(os.path.join(os.path.dirname(origin), "libbcc.py")):
                return f"{os.path.dirname(origin)} of {python}"
            tried.append(f"{origin} is another library" if origin else f"no module named bcc for {python}")
        raise No("; ".join(tried) or "no Python to look in")

    # -- filesystems and tracepoints ----------------------------------------------------------------------------------

    def _mountable(self, fstype: str, place: str) -> str:
        if f"\t{fstype}\n" not in _text(f"{self.paths.procfs}/filesystems") + "\n":
            raise No("not in this kernel")
        if not os.path.isdir(place):
            raise No(f"no directory {place}")
        status = _text(f"{self.paths.procfs}/self/status")
        caps = int(status.partition("CapEff:")[2].split()[0], 16)
        if not caps >> 21 & 1:  # CAP_SYS_ADMIN
            raise No("not mounted, and this user may not mount it")
        return "not mounted; the agent mounts it"

    def bpffs(self) -> str:
        place = f"{self.paths.sysfs}/fs/bpf"
        return place if mounts.is_bpffs(place) else self._mountable("bpf", place)

    def tracefs(self) -> str:
        found = mounts.find_tracefs()
        return found or self._mountable("tracefs", f"{self.paths.sysfs}/kernel/tracing")

    def syscall_tracepoints(self) -> str:
        tracefs = mounts.find_tracefs()
        if tracefs is None:
            return "told by tracefs once it is mounted"
        path = f"{tracefs}/events/syscalls/sys_exit_unshare/id"
        try:
            os.stat(path)
        except PermissionError as exc:
            raise No(f"{tracefs} is closed to this user", "run as root") from exc
        except OSError as exc:
            raise No("CONFIG_FTRACE_SYSCALLS is off") from exc
        return f"{tracefs}/events/syscalls"

    def perf_event_open(self) -> str:
        attr = bytearray(64)
        struct.pack_into("=IIQ", attr, 0, 1, len(attr), 9)  # PERF_TYPE_SOFTWARE, PERF_COUNT_SW_DUMMY
        try:  # every task of CPU 0
            os.close(libc.raw_syscall("perf_event_open", bytes(attr), -1, 0, -1, 8))
        except PermissionError as exc:
            raise No(f"refused: {exc.strerror}", "run as root, or with CAP_PERFMON") from exc
        return "events of all tasks can be opened"

    # -- accounting ---------------------------------------------------------------------------------------------------

    def psi(self) -> str:
        path = f"{self.paths.procfs}/pressure/cpu"
        if not os.path.exists(path):
            raise No(f"no {path}")
        try:
            _text(path)
        except No as exc:
            raise No("switched off at boot") from exc
        return path

    def task_delayacct(self) -> str:
        path = f"{self.paths.procfs}/sys/kernel/task_delayacct"
        if not os.path.exists(path):
            raise No("this kernel has no kernel.task_delayacct", "a newer kernel (v5.14 has it)")
        value = _text(path)
        if value != "1":
            raise No(f"kernel.task_delayacct is {value}")
        return "kernel.task_delayacct is 1"

    def ns_id(self) -> str:
        fd = os.open(f"{self.paths.procfs}/self/ns/uts", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, 2 << 30 | 8 << 16 | 0xB7 << 8 | 13, bytearray(8))  # NS_GET_ID
        except OSError as exc:
            raise No("the kernel has no NS_GET_ID") from exc
        finally:
            os.close(fd)
        return "NS_GET_ID"

    # -- launching ----------------------------------------------------------------------------------------------------

    def clone3(self) -> str:
        try:
            libc.raw_syscall("clone3", None, 0)  # a size of 0 is EINVAL where the call exists
        except OSError as exc:
            if exc.errno != errno.EINVAL:
                raise
        return "clone3(2)"

    def clone_into_cgroup(self) -> str:
        args = struct.pack("=11Q", libc.CLONE_INTO_CGROUP, *[0] * 3, 17, *[0] * 5, 0x7FFFFFFF)
        try:  # that descriptor is not open: no child is made
            libc.raw_syscall("clone3", args, len(args))
        except OSError as exc:
            if exc.errno != errno.EBADF:
                raise
        if self._v2() is None:
            raise No("no v2 tree is mounted")
        return "a job begins in its v2 cgroup"

    def _v2(self) -> str | None:
        """Return where the v2 tree is mounted, as mountinfo lists it."""
        for line in _text(f"{self.paths.procfs}/self/mountinfo").splitlines():
            left, _, right = line.partition(" - ")
            place = left.split(" ")[4]
            if right.startswith("cgroup2 ") and (place + "/").startswith(self.paths.cgroupfs + "/"):
                return place
        return None

    def cgroup_kill(self) -> str:
        top = self._v2()
        if top is None:
            raise No("no v2 tree is mounted")
        with os.scandir(top) as entries:
            group = next((entry.path for entry in entries if entry.is_dir(follow_symlinks=False)), None)
        if group is None:
            return "told once there is a v2 cgroup"
        if not os.path.exists(f"{group}/cgroup.kill"):
            raise No("cgroups have no cgroup.kill")
        return "cgroup.kill"

    def time_namespaces(self) -> str:
        return self._kind("time")

    def user_namespaces(self) -> str:
        fact = self._kind("user")
        limit = _text(f"{self.paths.procfs}/sys/user/max_user_namespaces")
        if limit == "0":
            raise No("user.max_user_namespaces is 0", "sysctl user.max_user_namespaces=10000")
        if os.geteuid():
            for name, closed in (("unprivileged_userns_clone", "0"), ("apparmor_restrict_unprivileged_userns", "1")):
                path = f"{self.paths.procfs}/sys/kernel/{name}"
                if os.path.exists(path) and _text(path) == closed:
                    raise No(f"kernel.{name} is {closed}", f"sysctl kernel.{name}={1 - int(closed)}")
        return f"{fact}, at most {limit}"

    def _kind(self, kind: str) -> str:
        if not os.path.lexists(f"{self.paths.procfs}/self/ns/{kind}"):
            raise No(f"the kernel has no {kind} namespaces")
        return f"{kind} namespaces"
