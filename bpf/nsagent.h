/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * What the programs and their reader share; nsagent/kernel/abi.py is its mirror and a test compares the two.
 * Plain C types only. Every word is 64 bits, native order.
 */
#ifndef NSAGENT_H
#define NSAGENT_H

/* The kinds of namespaces, in alphabetical order. */
enum nsagent_kind {
	NSAGENT_CGROUP,
	NSAGENT_IPC,
	NSAGENT_MNT,
	NSAGENT_NET,
	NSAGENT_PID,
	NSAGENT_TIME,
	NSAGENT_USER,
	NSAGENT_UTS,
	NSAGENT_KINDS,
};

/* A task's own counters, in the kernel's units. */
enum nsagent_counter {
	NSAGENT_CPU_NS,
	NSAGENT_USER_NS,
	NSAGENT_SYSTEM_NS,
	NSAGENT_RUN_QUEUE_NS,
	NSAGENT_IO_DELAY_NS,
	NSAGENT_VOLUNTARY_SWITCHES,
	NSAGENT_INVOLUNTARY_SWITCHES,
	NSAGENT_MINOR_FAULTS,
	NSAGENT_MAJOR_FAULTS,
	NSAGENT_READ_CHARS,
	NSAGENT_WRITE_CHARS,
	NSAGENT_READ_SYSCALLS,
	NSAGENT_WRITE_SYSCALLS,
	NSAGENT_READ_BYTES,
	NSAGENT_WRITE_BYTES,
	NSAGENT_CANCELLED_WRITE_BYTES,
	NSAGENT_COUNTERS,
};

/* Who consumes: an accounting cgroup and eight namespaces. A namespace is (id << 32 | inum), 0 one that is gone. */
struct nsagent_context {
	unsigned long long cgroup;
	unsigned long long ns[NSAGENT_KINDS];
};

/* One row of the map `rows`: a context and all that its tasks have used. Row 0 takes what finds no row. */
struct nsagent_row {
	struct nsagent_context context;
	unsigned long long counters[NSAGENT_COUNTERS];
	unsigned long long processes_created;
	unsigned long long processes_exited;
	unsigned long long threads_created;
	unsigned long long threads_exited;
	unsigned long long threads_freed;
	unsigned long long oom_kills_memcg; /* at the limit of a memory cgroup */
	unsigned long long oom_kills_unknown;
	/* Gauges: true for the pass `epoch`, stale in any other. */
	unsigned long long epoch;
	unsigned long long threads;
	unsigned long long processes;
	unsigned long long running;
	unsigned long long sleeping;
	unsigned long long disk_sleep;
	unsigned long long stopped;
	unsigned long long zombie;
	unsigned long long idle;
	unsigned long long rss_anon_bytes;
	unsigned long long rss_file_bytes;
	unsigned long long rss_shmem_bytes;
	unsigned long long swap_bytes;
	unsigned long long pagetables_bytes;
};

enum nsagent_told {
	NSAGENT_TOLD_BIRTH = 1,
	NSAGENT_TOLD_EXIT = 2,
	NSAGENT_TOLD_FREE = 4,
	NSAGENT_TOLD_PROCESS_EXIT = 8, /* of a leader: its process has ended */
};

/* Task storage: lives as long as the task_struct, so also between exit and free. */
struct nsagent_task {
	unsigned long long state; /* 0 new, 1 its first settle is under way, 2 ready */
	unsigned long long row;	  /* what the task uses next is charged here; NSAGENT_WAITING | n: see `context` */
	unsigned long long told;  /* nsagent_told: which of its birth, exit and free are counted */
	unsigned long long last[NSAGENT_COUNTERS];
	/* The traced system call it is in; `call` 0 is none, else nsagent_syscall + 1. */
	unsigned long long call;
	unsigned long long flags;
	unsigned long long argument;
	unsigned long long target;
	unsigned long long entered_ns;
	unsigned long long
		child; /* host pid of the child just made; << 32: CLONE_NEW* flags of what differs from its parent */
	/* Its namespaces, and those for its children, as of the last unshare or setns while `cred` is not 0. While it forks: those
	 * of the child, where they differ. */
	unsigned long long cred;
	unsigned long long ns[NSAGENT_KINDS];
	/* What the task is in since its n-th change, while it has used nothing there: most have no row and never need one. */
	unsigned long long changes;
	struct nsagent_context context;
};

/* Alone in `row`: `context` is being written. */
#define NSAGENT_WAITING (1ULL << 63)

/* What a pass has seen of a task; by the lowest bits of its pid. */
struct nsagent_seen {
	unsigned long long task; /* its address */
	unsigned long long set;	 /* its css_set's */
	unsigned long long cpu_ns;
	unsigned int row;
	unsigned int epoch; /* which pass it was */
};

#define NSAGENT_SEEN 65536

/* What a thread had used when its process moved to another cgroup; valid for the task that started then. */
struct nsagent_note {
	unsigned long long start_time;
	unsigned long long counters[NSAGENT_COUNTERS];
};

/* The middle of a struct nsagent_task, from `row` on: what a task that is leaving was charged for. */
struct nsagent_leaving {
	unsigned long long row;
	unsigned long long told;
	unsigned long long last[NSAGENT_COUNTERS];
};

/* Elements of the map `config`, written by user space but for NEXT_ROW. */
enum nsagent_config {
	NSAGENT_CONFIG_T0,	 /* tasks started before it (CLOCK_MONOTONIC ns) have a past that is nobody's */
	NSAGENT_CONFIG_EPOCH,	 /* the pass under way */
	NSAGENT_CONFIG_NEXT_ROW, /* highest row ever used */
	NSAGENT_CONFIG_ROWS,	 /* size of `rows` */
	NSAGENT_CONFIG_ALL,	 /* emit calls that changed nothing, too */
	NSAGENT_CONFIG_TRACE,	 /* system calls are traced */
	NSAGENT_CONFIG_CPUS,	 /* how many elements of `cpu_offsets` are valid; 0: per-CPU parts cannot be read */
	NSAGENT_CONFIG_PAGE,	 /* bytes of a page */
	/* Filters on events, 0 for none; counters count all the same. */
	NSAGENT_CONFIG_KINDS,  /* CLONE_NEW* flags: asked for or changed */
	NSAGENT_CONFIG_FAILED, /* failures alone */
	NSAGENT_CONFIG_PID,    /* this process and those below it */
	NSAGENT_CONFIG_CGROUP, /* this accounting cgroup and those below it */
	NSAGENT_CONFIG_RATE,   /* events a second from one cgroup at most */
	NSAGENT_CONFIG_LANE,   /* records of the walk under way */
	NSAGENT_CONFIGS,
};

/* Elements of the map `stats`: what the programs did and what went wrong. */
enum nsagent_stat {
	NSAGENT_STAT_ROWS_FULL,	     /* contexts that found no row */
	NSAGENT_STAT_NO_STORAGE,     /* settles that got no task storage */
	NSAGENT_STAT_EVENTS,	     /* events written */
	NSAGENT_STAT_EVENTS_LOST,    /* events that found the ring buffer full */
	NSAGENT_STAT_EVENTS_LIMITED, /* events that exceeded the rate of their cgroup */
	NSAGENT_STAT_PASSES,	     /* tasks visited by passes */
	NSAGENT_STAT_UNSEEN,	     /* changes no traced call explains */
	NSAGENT_STAT_LATE,	     /* tasks met by another hook before their birth was told */
	NSAGENT_STAT_CGROUPS_LOST,   /* births and ends of cgroups that found their ring buffer full */
	NSAGENT_STATS,
};

enum nsagent_syscall {
	NSAGENT_CLONE,
	NSAGENT_CLONE3,
	NSAGENT_FORK,
	NSAGENT_VFORK,
	NSAGENT_UNSHARE,
	NSAGENT_SETNS,
	NSAGENT_SYSCALLS,
};

/* Results of a call: 0 ok, 1..254 an errno, 255 any larger one. */
#define NSAGENT_RESULTS 256

#define NSAGENT_ANCESTORS 4
#define NSAGENT_ARGUMENTS_BYTES 128

/* An event of the ring buffer `events`. In `before` and `after` the pid and time entries are those for children. */
struct nsagent_event {
	unsigned long long time_ns; /* CLOCK_BOOTTIME, at the end of the call */
	unsigned long long latency_ns;
	unsigned long long flags; /* clone flags; setns: nstype */
	long long result;
	unsigned long long cgroup; /* accounting cgroup id */
	unsigned long long before[NSAGENT_KINDS];
	unsigned long long after[NSAGENT_KINDS];
	unsigned long long target;   /* setns: namespace behind the descriptor, 0 unknown */
	unsigned long long argument; /* setns: the descriptor */
	unsigned int syscall;	     /* nsagent_syscall; NSAGENT_SYSCALLS: no traced call explains the change */
	unsigned int pid;	     /* thread group, in the initial pid namespace, as all of these */
	unsigned int tid;
	unsigned int child; /* host pid of the new process or thread */
	unsigned int uid;   /* in the initial user namespace */
	unsigned int arguments_bytes;
	unsigned int ancestor[NSAGENT_ANCESTORS]; /* parent, its parent, ... */
	char comm[16];
	char ancestor_comm[NSAGENT_ANCESTORS][16];
	char arguments[NSAGENT_ARGUMENTS_BYTES]; /* argv as the process has it in memory, NUL after each */
};

/* What a struct nsagent_cgroup_record tells of: a cgroup that was made, or one that ended. */
enum nsagent_cgroup_kind {
	NSAGENT_CGROUP_MADE,
	NSAGENT_CGROUP_ENDED,
};

/* Which of the last values of a cgroup this kernel and this hierarchy have. */
enum nsagent_cgroup_have {
	NSAGENT_HAVE_CPU = 1,
	NSAGENT_HAVE_MEMORY_PEAK = 2,
	NSAGENT_HAVE_OOM_KILLS = 4,
	NSAGENT_HAVE_PIDS_PEAK = 8,
};

#define NSAGENT_MAX_CPUS 64
#define NSAGENT_PATH_BYTES 1024 /* TRACE_CGROUP_PATH_LEN of kernel/cgroup/cgroup-internal.h */

/* A record of the ring buffer `cgroup_events`, of one hierarchy; cut off after `path_bytes` of the path. */
struct nsagent_cgroup_record {
	unsigned long long time_ns; /* CLOCK_BOOTTIME */
	unsigned long long cgroup;
	unsigned long long parent;
	unsigned long long cpu_ns; /* v1: with descendants, living and dead; v2: without */
	unsigned long long memory_peak_bytes;
	unsigned long long oom_kills;
	unsigned long long pids_peak;
	unsigned int kind;
	unsigned int hierarchy; /* as in /proc/PID/cgroup: 0 is v2 */
	unsigned int level;
	unsigned int have;
	unsigned int path_bytes; /* with the NUL */
	unsigned int padding;
	char path[NSAGENT_PATH_BYTES];
	char room[944]; /* to a power of two, for the verifier */
};

/* Events of one cgroup in the second that began at `since_ns`. */
struct nsagent_rate {
	unsigned long long since_ns;
	unsigned long long events;
};

/* What a walk through one hierarchy says of one cgroup; `present` has bits of nsagent_lane_has, all else is 0. */
enum nsagent_lane_has {
	NSAGENT_LANE_CPUACCT,
	NSAGENT_LANE_SHARES,
	NSAGENT_LANE_BANDWIDTH,
	NSAGENT_LANE_BURST,
	NSAGENT_LANE_MEMORY,
	NSAGENT_LANE_KMEM,
	NSAGENT_LANE_SOFT_LIMIT,
	NSAGENT_LANE_PIDS,
	NSAGENT_LANE_PIDS_PEAK,
	NSAGENT_LANE_PIDS_EVENTS,
	NSAGENT_LANE_STATE,
	NSAGENT_LANE_FREEZER,
	NSAGENT_LANE_CPUSET,
	NSAGENT_LANE_NO_IO, /* no device is listed */
	NSAGENT_LANE_CPU_PRESSURE,
	NSAGENT_LANE_MEMORY_PRESSURE,
	NSAGENT_LANE_IO_PRESSURE,
	NSAGENT_LANE_IRQ_PRESSURE,
	NSAGENT_LANE_MEMORY_STAT,
};

struct nsagent_lane {
	unsigned long long id;	   /* of kernfs */
	unsigned long long digest; /* of what follows: of records that differ, too */
	unsigned long long present;
	unsigned long long usage_ns;
	unsigned long long user_ns;
	unsigned long long system_ns;
	unsigned long long shares; /* scaled by 1024 */
	unsigned long long quota_ns;
	unsigned long long period_ns;
	unsigned long long periods;
	unsigned long long throttled_periods;
	unsigned long long throttled_ns;
	unsigned long long bursts;
	unsigned long long burst_ns;
	unsigned long long memory_pages;
	unsigned long long memory_peak_pages;
	unsigned long long memory_max_pages;
	unsigned long long memory_high_pages;
	unsigned long long memory_low_pages;
	unsigned long long memory_min_pages;
	unsigned long long memory_failures;
	unsigned long long swap_pages; /* on v1 memory and swap */
	unsigned long long swap_max_pages;
	unsigned long long swap_failures;
	unsigned long long memory_events[6]; /* low, high, max, oom, oom_kill, oom_group_kill */
	unsigned long long kernel_pages;
	unsigned long long soft_limit_pages;
	unsigned long long pids;
	unsigned long long pids_limit;
	unsigned long long pids_peak;
	unsigned long long pids_refused;      /* by the limits of this cgroup, in it and below */
	unsigned long long pids_refused_here; /* forks of this cgroup, by whatever limit */
	unsigned long long populated;
	unsigned long long frozen; /* on v1 by the freezer */
	unsigned long long descendants;
	unsigned long long dying_descendants;
	unsigned long long cpus; /* a bit each */
	unsigned long long memory_nodes;
	unsigned long long pressure_ns[7]; /* cpu some and full, memory, io; irq full */
	unsigned long long memory_stat;	   /* a hash of all that memory.stat is made of */
};

#endif
