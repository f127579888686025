"""Project the few kernel structs the programs read, with this kernel's exact offsets, into a header tree BCC accepts.

BCC normally needs the headers of the running kernel, and reads wrong offsets silently when given others. Here each struct is
a union of one padded struct a member, so that every offset is the one BTF states. The structs must not be packed: the
verifier would see byte loads and refuse them. Standard library only: this runs in the compile child.
"""

from __future__ import annotations

import os
import re
from typing import NamedTuple

from nsagent.errors import UnsupportedError
from nsagent.kernel.btf import FUNC, PTR, STRUCT, TYPEDEF, VAR, Btf

# Every member the programs read: struct -> member -> C type. The one list to extend when a program reads more.
STRUCTS: dict[str, dict[str, str]] = {
    "task_struct": {
        "pid": "int",
        "tgid": "int",
        "flags": "u32",
        "exit_state": "int",
        "__state": "u32",  # `state`, a long, before commit 2f064a59a11f ("sched: Change task_struct::state") (in v5.14)
        "state": "long",
        "comm": "char[16]",
        "start_time": "u64",  # CLOCK_MONOTONIC ns
        "nsproxy": "struct nsproxy *",
        "real_cred": "struct cred *",
        "cgroups": "struct css_set *",
        "thread_pid": "struct pid *",
        "group_leader": "struct task_struct *",
        "real_parent": "struct task_struct *",
        "signal": "struct signal_struct *",
        "pid_links": "u64[2]",  # struct hlist_node, by enum pid_type
        "thread_node": "u64[2]",  # struct list_head, next first
        "sighand": "struct sighand_struct *",
        "files": "struct files_struct *",
        "mm": "struct mm_struct *",
        "delays": "struct task_delay_info *",
        "se": "struct sched_entity",
        "sched_info": "struct sched_info",
        "ioac": "struct task_io_accounting",
        "utime": "u64",
        "stime": "u64",
        "min_flt": "unsigned long",
        "maj_flt": "unsigned long",
        "nvcsw": "unsigned long",
        "nivcsw": "unsigned long",
    },
    "sched_entity": {"sum_exec_runtime": "u64"},
    "sched_info": {"run_delay": "u64"},
    "task_io_accounting": dict.fromkeys(
        ("rchar", "wchar", "syscr", "syscw", "read_bytes", "write_bytes", "cancelled_write_bytes"), "u64"
    ),
    "task_delay_info": {"blkio_delay": "u64"},
    "sighand_struct": {},
    "signal_struct": {"live": "atomic_t", "thread_head": "u64[2]"},
    "mm_struct": {
        "owner": "struct task_struct *",
        "rss_stat": "",  # see _rss_stat
        "pgtables_bytes": "atomic_long_t",
        "arg_start": "unsigned long",
        "arg_end": "unsigned long",
    },
    "percpu_counter": {"count": "s64", "counters": "s32 *"},
    "mm_rss_stat": {"count": "atomic_long_t[4]"},
    "nsproxy": {
        "uts_ns": "struct uts_namespace *",
        "ipc_ns": "struct ipc_namespace *",
        "mnt_ns": "struct mnt_namespace *",
        "pid_ns_for_children": "struct pid_namespace *",
        "net_ns": "struct net *",
        "cgroup_ns": "struct cgroup_namespace *",
        "time_ns": "struct time_namespace *",  # Since commit 769071ac9f20 ("ns: Introduce Time Namespace") (in v5.6)
        "time_ns_for_children": "struct time_namespace *",
    },
    "ns_common": {"inum": "u32", "ns_id": "u64", "ns_type": "u32", "ops": "struct proc_ns_operations *"},
    "proc_ns_operations": {"type": "int"},
    **{
        name: {"ns": "struct ns_common"}
        for name in (
            "uts_namespace",
            "ipc_namespace",
            "mnt_namespace",
            "net",
            "cgroup_namespace",
            "time_namespace",
            "user_namespace",
        )
    },
    "pid_namespace": {"ns": "struct ns_common", "idr": "struct idr"},
    "idr": {"idr_rt": "struct xarray"},
    "xarray": {"xa_head": "void *"},
    "xa_node": {"shift": "u8", "slots": "u64[64]"},
    "cred": {"uid": "kuid_t", "user_ns": "struct user_namespace *"},
    "upid": {"nr": "int", "ns": "struct pid_namespace *"},
    "pid": {"level": "u32", "numbers": "struct upid[1]", "tasks": "u64[1]"},
    "css_set": {"dfl_cgrp": "struct cgroup *", "subsys": "struct cgroup_subsys_state *[16]"},
    "cgroup_subsys_state": {
        "cgroup": "struct cgroup *",
        "parent": "struct cgroup_subsys_state *",
        "nr_populated_csets": "int",  # in 7.3; in 6.18 the cgroup's
    },
    "cgroup": {
        "self": "struct cgroup_subsys_state",
        "kn": "struct kernfs_node *",
        "level": "int",
        "root": "struct cgroup_root *",
        "subsys": "struct cgroup_subsys_state *[16]",
        "rstat_base_cpu": "struct cgroup_rstat_base_cpu *",  # per CPU, as is rstat_cpu, which had it before v6.16
        "rstat_cpu": "struct cgroup_rstat_cpu *",
        "psi": "struct psi_group *",  # not a pointer in old kernels
        "flags": "unsigned long",
        **dict.fromkeys(("nr_descendants", "nr_dying_descendants"), "int"),
        **dict.fromkeys(("nr_populated_csets", "nr_populated_domain_children", "nr_populated_threaded_children"), "int"),
    },
    "mutex": {"owner": "atomic_long_t"},
    "psi_group": {"avgs_lock": "struct mutex", "enabled": "bool", "pcpu": "struct psi_group_cpu *", "total": "u64[1]"},
    "psi_group_cpu": {"state_mask": "u32", "times": "u32[1]", "times_prev": "u32[1]"},
    "freezer": {"css": "struct cgroup_subsys_state", "state": "u32"},
    "cpuset": {"css": "struct cgroup_subsys_state", "effective_cpus": "", "effective_mems": "u64[1]"},
    "blkcg": {"css": "struct cgroup_subsys_state", "blkg_list": "u64"},  # struct hlist_head
    "cgroup_root": {"hierarchy_id": "int"},
    "cgroup_rstat_base_cpu": {"bstat": "struct cgroup_base_stat"},
    "cgroup_rstat_cpu": {"bstat": "struct cgroup_base_stat"},
    "cgroup_base_stat": {"cputime": "struct task_cputime"},
    "task_cputime": {"sum_exec_runtime": "u64"},
    "cpuacct": {"css": "struct cgroup_subsys_state", "cpuusage": "u64 *", "cpustat": "void *"},  # per CPU
    "task_group": {"css": "struct cgroup_subsys_state", "shares": "unsigned long", "cfs_bandwidth": "struct cfs_bandwidth"},
    "cfs_bandwidth": {
        "quota": "u64",
        "period": "s64",
        "nr_periods": "int",
        "nr_throttled": "int",
        "throttled_time": "u64",
        "nr_burst": "int",  # Since commit bcb1704a1ed2 ("sched/fair: Add cfs bandwidth burst statistics") (in v5.16)
        "burst_time": "u64",
    },
    "cpuacct_usage": {"usages": "u64[2]"},
    "mem_cgroup": {
        "css": "struct cgroup_subsys_state",
        "memory": "struct page_counter",
        "swap": "struct page_counter",  # the same as `memsw`
        "kmem": "struct page_counter",
        "soft_limit": "unsigned long",
        "memory_events": "atomic_long_t[8]",
        "memory_events_local": "atomic_long_t[8]",
        "oom_lock": "bool",  # Since v6.11 only with CONFIG_MEMCG_V1
        "vmstats": "struct memcg_vmstats *",
    },
    "memcg_vmstats": {
        **dict.fromkeys(("state", "events", "state_local", "events_local", "state_pending"), "u64[1]"),
        "stats_updates": "",  # atomic64_t, atomic_t in newer kernels
    },
    "page_counter": dict.fromkeys(("usage", "watermark", "max", "high", "low", "min", "failcnt"), "unsigned long"),
    "pids_cgroup": {
        "css": "struct cgroup_subsys_state",
        "counter": "s64",
        "limit": "s64",
        "watermark": "s64",
        "events_limit": "s64",
        "events": "u64[2]",
        "events_local": "u64[2]",
    },
    "kernfs_node": {"id": "u64"},
    "files_struct": {"fdt": "struct fdtable *"},
    "fdtable": {"max_fds": "u32", "fd": "struct file **"},
    "file": {"f_inode": "struct inode *"},
    "inode": {"i_sb": "struct super_block *", "i_private": "void *"},
    "super_block": {"s_magic": "unsigned long"},
    "pt_regs": {"di": "unsigned long", "si": "unsigned long", "regs": "u64[31]"},  # x86-64; arm64
    "bpf_array": {"pptrs": "u64[1]"},
}


class Need(NamedTuple):
    """What a feature needs: any one of `members` (struct.member), and what a kernel without them lacks."""

    members: tuple[str, ...]
    reason: str


# Without these there is no accounting at all.
REQUIRED = (
    "task_struct.nsproxy",
    "task_struct.real_cred",
    "task_struct.thread_pid",
    "task_struct.cgroups",
    "task_struct.signal",
    "task_struct.se",
    "task_struct.utime",
    "task_struct.stime",
    "task_struct.start_time",
    "ns_common.inum",
    "kernfs_node.id",
)

FEATURES: dict[str, Need] = {
    "run_queue": Need(("sched_info.run_delay",), "the kernel was built without CONFIG_SCHED_INFO"),
    "io_delay": Need(("task_delay_info.blkio_delay",), "the kernel was built without CONFIG_TASK_DELAY_ACCT"),
    "storage": Need(("task_io_accounting.read_bytes",), "the kernel was built without CONFIG_TASK_IO_ACCOUNTING"),
    "io_chars": Need(("task_io_accounting.rchar",), "the kernel was built without CONFIG_TASK_XACCT"),
    "rss": Need(("mm_struct.owner",), "the kernel was built without CONFIG_MEMCG: an mm has no owner to count it at"),
    "pagetables": Need(("mm_struct.pgtables_bytes",), "mm_struct has no pgtables_bytes"),
    "time_namespaces": Need(("nsproxy.time_ns",), "the kernel has no time namespaces (they came with v5.6)"),
    "cgroup_ends": Need(("cgroup_root.hierarchy_id",), "the kernel's BTF does not tell of which hierarchy a cgroup is"),
    "oom_kills": Need(("mem_cgroup.memory_events_local",), "the kernel was built without CONFIG_MEMCG"),
    "namespace_id": Need(("ns_common.ns_id",), "ns_common has no ns_id: nsagent counts births of an inum itself"),
}

_SIZES = {
    "bool": 1,
    "int": 4,
    "u32": 4,
    "s32": 4,
    "u64": 8,
    "s64": 8,
    "long": 8,
    "unsigned long": 8,
    "atomic_t": 4,
    "kuid_t": 4,
    "atomic_long_t": 8,
}

# Enums whose values the programs use; one without a name goes by one of its values.
ENUMS = ("cgroup_subsys_id", "memcg_memory_event", "psi_states", "psi_aggregators", "freezer_state_flags", "CGRP_FROZEN")

# Function prototypes in BTF tell what a tracepoint passes; a kfunc is called by its BTF id.
# A storage operation that interrupts another on its CPU was refused (the flag), until tracing programs got a variant that is not,
# in v6.2 ("bpf: Add new bpf_task_storage_get proto with no deadlock detection"); newer kernels have neither.
STORAGE_BUSY = (VAR, "bpf_task_storage_busy")
STORAGE_RECUR = (FUNC, "bpf_task_storage_get_recur")
KFUNCS = ("bpf_iter_task_new", "bpf_iter_task_next", "bpf_iter_task_destroy")

_TYPES = """#pragma once
typedef signed char s8; typedef unsigned char u8; typedef short s16; typedef unsigned short u16;
typedef int s32; typedef unsigned int u32; typedef long long s64; typedef unsigned long long u64;
typedef s8 __s8; typedef u8 __u8; typedef s16 __s16; typedef u16 __u16; typedef s32 __s32; typedef u32 __u32;
typedef s64 __s64; typedef u64 __u64; typedef u16 __le16; typedef u16 __be16; typedef u32 __be32; typedef u64 __be64;
typedef u32 __wsum; typedef u16 __sum16;
typedef _Bool bool; typedef unsigned long size_t; typedef int pid_t; typedef unsigned long uintptr_t; typedef int gfp_t;
typedef struct { u32 val; } kuid_t; typedef struct { int counter; } atomic_t; typedef struct { s64 counter; } atomic_long_t;
#define true 1
#define false 0
#define NULL ((void *)0)
#define __aligned_u64 u64 __attribute__((aligned(8)))
"""

# BCC's own prologue includes these; only their existence matters.
_EMPTY = ("linux/log2.h", "linux/bpf_common.h", "uapi/linux/bpf.h", "uapi/linux/if_packet.h", "uapi/linux/if_ether.h",
          "uapi/linux/ptrace.h")  # fmt: skip
_ARCH = {"x86_64": "x86", "aarch64": "arm64"}


class Projection(NamedTuple):
    """The C text of the projected structs, the features this kernel lacks with reasons, and the kfuncs it has."""

    text: str
    missing: dict[str, str]
    kfuncs: dict[str, int]


def _declaration(name: str, ctype: str) -> str:
    base, array, count = ctype.partition("[")
    return f"{base}{'' if base.endswith('*') else ' '}{name}{array}{count}"


def _width(ctype: str) -> int | None:
    """Return the size in bytes the C type must have in BTF, None where only BTF knows it (a struct)."""
    base, _, count = ctype.partition("[")
    size = 8 if base.endswith("*") else 1 if base == "char" else _SIZES.get(base)
    return size if not count else None


def _chosen(btf: Btf, struct: str, type_id: int) -> str:
    """Return the C type of a member that kernels declare in different ways; "" for a way that is not known."""
    if struct == "mm_struct":
        return _rss_stat(btf, type_id)
    if struct == "cpuset":  # cpumask_var_t
        return "void *" if btf.head(btf.strip(type_id))[0] == PTR else "u64[1]"
    return {4: "u32", 8: "u64"}.get(btf.size(btf.strip(type_id)), "")


def _rss_stat(btf: Btf, type_id: int) -> str:
    """struct percpu_counter[4] since commit f1a7941243c1 ("mm: convert mm's rss stats into percpu_counter") (in v6.2)."""
    name = btf.head(btf.element(type_id))[1]
    return {"percpu_counter": "struct percpu_counter[4]", "mm_rss_stat": "struct mm_rss_stat"}.get(name, "")


def _order() -> list[str]:
    """Structs in the order C needs them: those embedded by value before those that embed them."""
    order: list[str] = []

    def visit(struct: str) -> None:
        if struct in order:
            return
        for ctype in STRUCTS[struct].values():
            embedded = re.match(r"struct (\w+)(\[|$)", ctype)
            if embedded and embedded[1] in STRUCTS:
                visit(embedded[1])
        order.append(struct)

    for first in ("percpu_counter", "mm_rss_stat", *STRUCTS):
        visit(first)
    return order


def project(btf: Btf) -> Projection:
    """Return what the programs are compiled against on the kernel that `btf` describes.

    Raises:
        UnsupportedError: a member without which nothing can be accounted is missing.
        ParseError: `btf` is broken.
    """
    have: set[str] = set()
    lines = [f"struct {struct};" for struct in STRUCTS]
    extra: list[str] = []
    for struct in _order():
        type_id = btf.ids.get((STRUCT, struct))
        if type_id is None:
            continue
        body = []
        for name, declared in STRUCTS[struct].items():
            member = btf.member(type_id, name)
            if member is None or member.bit_width or member.bit_offset % 8:
                continue
            ctype = declared or _chosen(btf, struct, member.type)
            width, stripped = _width(ctype), btf.strip(member.type)
            if not ctype or (btf.head(stripped)[0] != PTR if ctype.endswith("*") else width and btf.size(stripped) != width):
                continue
            if struct == "cpuset" and ctype == "void *":
                extra.append("#define HAVE_cpumask_elsewhere 1")
            if struct == "mm_struct" and name == "rss_stat":
                extra.append(f"#define HAVE_rss_{'percpu' if 'percpu' in ctype else 'atomic'} 1")
            have.add(f"{struct}.{name}")
            pad = f"char __pad_{name}[{member.bit_offset // 8}]; " if member.bit_offset else ""
            body.append(f"  struct {{ {pad}{_declaration(name, ctype)}; }};")
        lines += [f"struct {struct} {{ union {{ char __size[{btf.size(type_id)}];", *body, "}; };"]
    if absent := [member for member in REQUIRED if member not in have]:
        raise UnsupportedError(
            "accounting", f"this kernel's BTF lacks {', '.join(absent)}", hint="please report the kernel and this line"
        )
    missing = {feature: need.reason for feature, need in FEATURES.items() if not any(m in have for m in need.members)}
    kfuncs = {name: btf.ids[FUNC, name] for name in KFUNCS if (FUNC, name) in btf.ids}
    for enum in ENUMS:
        extra += [f"#define NSAGENT_{name} {value}" for name, value in btf.values(btf.enum(enum)).items()]
    extra += [f"#define HAVE_{name} 1" for name in kfuncs]
    if STORAGE_BUSY in btf.ids and STORAGE_RECUR not in btf.ids:
        extra.append("#define STORAGE_REFUSED_WHEN_BUSY 1")
    exit_trace = btf.ids.get((TYPEDEF, "btf_trace_sched_process_exit"))
    if exit_trace is not None and btf.parameters(exit_trace) == 3:  # void *data, task, group_dead
        extra.append("#define HAVE_exit_group_dead 1")
    mark_victim = btf.ids.get((TYPEDEF, "btf_trace_mark_victim"))
    if mark_victim is not None and btf.parameters(mark_victim) == 3:  # void *data, task, uid; before v6.9 void *data, pid
        extra.append("#define HAVE_mark_victim_task 1")
    lines = [f"#define HAVE_{member.replace('.', '_')} 1" for member in sorted(have)] + extra + lines
    return Projection("\n".join(lines) + "\n", missing, kfuncs)


def write_tree(tree: str, structs: str, machine: str) -> None:
    """Write under `tree` the header tree that BCC_KERNEL_SOURCE points at."""

    def write(path: str, text: str) -> None:
        path = os.path.join(tree, path)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="ascii") as file:
            file.write(text)

    write("include/linux/types.h", _TYPES)
    write("include/linux/kernel_structs.h", "#pragma once\n" + structs)
    write(
        "include/linux/kconfig.h",
        "#pragma once\n#include <linux/types.h>\n#define CONFIG_BPF_SYSCALL 1\n#define PAGE_SIZE 4096\n"
        "#include <linux/kernel_structs.h>\n",
    )
    # BCC refuses a tree without a version; no program of ours looks at it.
    write(
        "include/linux/version.h",
        "#define LINUX_VERSION_CODE 0\n#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n",
    )
    for path in _EMPTY:
        write(f"include/{path}", "")
    arch = _ARCH.get(machine, machine)
    write(f"arch/{arch}/include/asm/page.h", "")
    os.makedirs(os.path.join(tree, f"arch/{arch}/include/generated"), exist_ok=True)
