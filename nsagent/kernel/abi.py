"""Mirror of bpf/nsagent.h: what the BPF programs and their reader share. tests/kernel/test_abi.py compares the two.

A *row* is one context (an accounting cgroup and eight namespaces) and all that the tasks in it have used. All words are
64 bits, native order: 9 words of key, then `ROW_FIELDS`.
"""

from __future__ import annotations

import struct
from typing import Final

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
