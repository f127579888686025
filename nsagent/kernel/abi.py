"""Mirror of bpf/nsagent.h: what the BPF programs and their reader share. tests/kernel/test_abi.py compares the two.

A *row* is one context (an accounting cgroup and eight namespaces) and all that the tasks in it have used. All words are
64 bits, native order: 9 words of key, then `ROW_FIELDS`.
"""

from __future__ import annotations

import struct
from typing import Any, Final

ABI_VERSION: Final = 1

# The task's own counters, in kernel units: ns, counts, bytes. Source: struct task_struct and its se, sched_info, ioac, delays.
COUNTERS: Final = (
    "cpu_ns",  # se.sum_exec_runtime
    "user_ns",  # utime
    "system_ns",  # stime
    "run_queue_ns",  # sched_info.run_delay
    "io_delay_ns",  # delays->blkio_delay; moves only with kernel.task_delayacct=1
    "voluntary_switches",  # nvcsw
    "involuntary_switches",  # nivcsw
    "minor_faults",  # min_flt
    "major_faults",  # maj_flt
    "read_chars",  # ioac.rchar
    "write_chars",  # ioac.wchar
    "read_syscalls",  # ioac.syscr
    "write_syscalls",  # ioac.syscw
    "read_bytes",  # ioac.read_bytes
    "write_bytes",  # ioac.write_bytes
    "cancelled_write_bytes",  # ioac.cancelled_write_bytes
)

# Counted by the programs themselves.
EVENTS: Final = (
    "processes_created",  # task_newtask without CLONE_THREAD
    "processes_exited",  # sched_process_exit of a thread group's last task
    "threads_created",
    "threads_exited",
    "threads_freed",  # sched_process_free: from here on the thread's counters are final
    "oom_kills_memcg",  # oom:mark_victim, at the limit of a memory cgroup
    "oom_kills_unknown",  # for whatever other reason
)

# Valid only in the pass whose epoch stands in the row; else zero.
GAUGES: Final = (
    "threads",
    "processes",
    "running",
    "sleeping",
    "disk_sleep",
    "stopped",
    "zombie",
    "idle",
    "rss_anon_bytes",
    "rss_file_bytes",
    "rss_shmem_bytes",
    "swap_bytes",
    "pagetables_bytes",
)

ROW_FIELDS: Final = (*COUNTERS, *EVENTS, "epoch", *GAUGES)
KEY_WORDS: Final = 9  # cgroup id, then one (id << 32 | inum) a kind in alphabetical order
ROW: Final = struct.Struct(f"={KEY_WORDS + len(ROW_FIELDS)}Q")

# struct nsagent_task: state, row, told, last[], the six words of the call it is in, cred, ns[], changes, context.
TASK_WORDS: Final = 3 + len(COUNTERS) + 6 + 1 + 8 + 1 + KEY_WORDS

# struct nsagent_seen, and how many there are
SEEN_BYTES: Final = 32
SEEN: Final = 65536

# enum nsagent_config
CONFIG: Final = (
    "t0",
    "epoch",
    "next_row",
    "rows",
    "all",
    "trace",
    "cpus",
    "page",
    "kinds",
    "failed",
    "pid",
    "cgroup",
    "rate",
    "lane",
)
# enum nsagent_stat
STATS: Final = (
    "rows_full",
    "no_storage",
    "events",
    "events_lost",
    "events_limited",
    "passes",
    "unseen",
    "late",
    "cgroups_lost",
)
# enum nsagent_syscall; the last stands for "no traced call explains the change"
SYSCALLS: Final = ("clone", "clone3", "fork", "vfork", "unshare", "setns")
UNSEEN: Final = len(SYSCALLS)
RESULTS: Final = 256
MAX_CPUS: Final = 64

# struct nsagent_event
ANCESTORS: Final = 4
EVENT: Final = struct.Struct("=QQQqQ8Q8QQQIIIIIIIIII16s16s16s16s16s128s")

# struct nsagent_cgroup_record, up to its path; enum nsagent_cgroup_kind; enum nsagent_cgroup_have, bit by bit
CGROUP: Final = struct.Struct("=7Q6I")
CGROUP_BYTES: Final = 2048
CGROUP_RING_BYTES: Final = 1 << 20
PATH_BYTES: Final = 1024
CGROUP_KINDS: Final = ("made", "ended")
CGROUP_HAVE: Final = ("cpu_ns", "memory_peak_bytes", "oom_kills", "pids_peak")


# struct nsagent_lane, and of how many cgroups one hierarchy may have for the lane: 6.7 MB
LANE_FIELDS: Final = (
    "id", "digest", "present", "usage_ns", "user_ns", "system_ns", "shares", "quota_ns", "period_ns", "periods",
    "throttled_periods", "throttled_ns", "bursts", "burst_ns", "memory_pages", "memory_peak_pages", "memory_max_pages",
    "memory_high_pages", "memory_low_pages", "memory_min_pages", "memory_failures", "swap_pages", "swap_max_pages",
    "swap_failures", "low", "high", "max", "oom", "oom_kill", "oom_group_kill", "kernel_pages", "soft_limit_pages", "pids",
    "pids_limit", "pids_peak", "pids_refused", "pids_refused_here", "populated", "frozen", "descendants", "dying_descendants",
    "cpus", "memory_nodes", "cpu_some_ns", "cpu_full_ns", "memory_some_ns", "memory_full_ns", "io_some_ns", "io_full_ns",
    "irq_full_ns", "memory_stat",
)  # fmt: skip
LANE: Final = struct.Struct(f"={len(LANE_FIELDS)}Q")
LANE_RECORDS: Final = 16384


def map_specs(rows: int, ring_bytes: int) -> dict[str, dict[str, Any]]:
    """Return the maps of bpf/common.h (enum nsagent_map) for the loader; sizes in bytes, `rows` contexts at most."""

    def spec(kind: str, key: int, value: int, entries: int, *flags: str) -> dict[str, Any]:
        return {"type": kind, "key_size": key, "value_size": value, "max_entries": entries, "flags": list(flags)}

    return {
        "tasks": spec("task_storage", 4, 8 * TASK_WORDS, 0, "no_prealloc"),
        "ids": spec("hash", 8 * KEY_WORDS, 8, rows),
        "rows": spec("array", 4, ROW.size, rows, "mmapable"),
        "spare": spec("queue", 0, 8, rows),
        "config": spec("array", 4, 8, len(CONFIG)),
        "stats": spec("array", 4, 8, len(STATS)),
        "generations": spec("hash", 8, 8, 16384),
        "events": spec("ringbuf", 0, 0, ring_bytes),
        "syscalls": spec("array", 4, 8, len(SYSCALLS) * RESULTS, "mmapable"),
        "namespace_syscalls": spec("array", 4, 8, len(SYSCALLS) * 8 * RESULTS, "mmapable"),
        "cpu_offsets": spec("array", 4, 8, MAX_CPUS),
        "here": spec("percpu_array", 4, 8, 1),
        "rates": spec("lru_hash", 8, 16, 1024),
        "leaving": spec("hash", 8, 8 * (2 + len(COUNTERS)), 8192),
        "cgroup_events": spec("ringbuf", 0, 0, CGROUP_RING_BYTES),
        "cgroup_scratch": spec("array", 4, CGROUP_BYTES, 1),
        "lane": spec("array", 4, LANE.size, LANE_RECORDS, "mmapable"),
        "oom_kills": spec("lru_hash", 8, 8, 1024),
        "seen": spec("array", 4, SEEN_BYTES, SEEN),
        "notes": spec("lru_hash", 8, 8 * (1 + len(COUNTERS)), 4096),
    }
