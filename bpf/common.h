/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * settle(): the one function that brings a task's account up to date, and what it stands on.
 *
 * A task's own kernel counters are exact, so nothing runs on the scheduler's path. settle() keeps, in task storage, the
 * counters as of the last settle and the row of the context the task was in then, and does always the same: what the
 * counters gained goes to the remembered row; only then is the context read again and remembered. It is called at birth,
 * exec, exit, free, a move between cgroups, after unshare and setns, and for each task when a pass walks bpf_iter/task.
 *
 * Maps stand here as 64-bit markers that nsagent/kernel/objects.py replaces by descriptors, not as BCC tables: BCC would
 * create those while it compiles, which takes privileges. Helpers are declared here, because BCC's own names differ by version.
 */
#ifndef NSAGENT_COMMON_H
#define NSAGENT_COMMON_H

#include "nsagent.h"

#define INLINE static inline __attribute__((always_inline))
#define barrier() asm volatile("" ::: "memory")
/* Have the compiler know nothing of a number: it would make one test for inequality of a loop's two bounds, and 6.1's verifier,
 * which cannot bound that, walk until its stack is full. */
#define HIDE(number) asm volatile("" : "+r"(number))
#define OFFSET(type, member) ((unsigned long)&((type *)0)->member)
/*
 * Read a member by address. The verifier searches all of BTF by name, several times over, for each pointer it sees loaded from
 * a trusted one (btf_nested_type_is_trusted() of kernel/bpf/btf.c): 3 ms of loading a load, in each program. A probe read
 * costs 10 ns and no search. Only the pass, which runs for thousands of tasks in a row, loads directly.
 */
#define READ(type, from, member)                                                                                       \
	({                                                                                                             \
		typeof(((type *)0)->member) value_ = 0;                                                                \
		read_kernel(&value_, sizeof(value_), (void *)((u64)(from) + OFFSET(type, member)));                    \
		value_;                                                                                                \
	})

/* Markers lie 2^32 apart, so that the compiler never derives one from another. nsagent/kernel/compile.py knows the form. */
#define MAP(index) ((void *)(0x4e53410000004d41ULL + ((unsigned long long)(index) << 32)))
enum nsagent_map {
	NSAGENT_MAP_TASKS,
	NSAGENT_MAP_IDS,
	NSAGENT_MAP_ROWS,
	NSAGENT_MAP_SPARE,
	NSAGENT_MAP_CONFIG,
	NSAGENT_MAP_STATS,
	NSAGENT_MAP_GENERATIONS,
	NSAGENT_MAP_EVENTS,
	NSAGENT_MAP_SYSCALLS,
	NSAGENT_MAP_NAMESPACE_SYSCALLS,
	NSAGENT_MAP_CPU_OFFSETS,
	NSAGENT_MAP_HERE,
	NSAGENT_MAP_RATES,
	NSAGENT_MAP_NOTES,
	NSAGENT_MAP_LEAVING,
	NSAGENT_MAP_CGROUP_EVENTS,
	NSAGENT_MAP_CGROUP_SCRATCH,
	NSAGENT_MAP_LANE,
	NSAGENT_MAP_OOM_KILLS,
	NSAGENT_MAP_SEEN,
};
#define TASKS MAP(NSAGENT_MAP_TASKS)
#define IDS MAP(NSAGENT_MAP_IDS)
#define ROWS MAP(NSAGENT_MAP_ROWS)
#define SPARE MAP(NSAGENT_MAP_SPARE)
#define CONFIG MAP(NSAGENT_MAP_CONFIG)
#define STATS MAP(NSAGENT_MAP_STATS)
#define GENERATIONS MAP(NSAGENT_MAP_GENERATIONS)
#define EVENTS MAP(NSAGENT_MAP_EVENTS)
#define SYSCALLS MAP(NSAGENT_MAP_SYSCALLS)
#define NAMESPACE_SYSCALLS MAP(NSAGENT_MAP_NAMESPACE_SYSCALLS)
#define CPU_OFFSETS MAP(NSAGENT_MAP_CPU_OFFSETS)
#define HERE MAP(NSAGENT_MAP_HERE)
#define RATES MAP(NSAGENT_MAP_RATES)
#define NOTES MAP(NSAGENT_MAP_NOTES)
#define LEAVING MAP(NSAGENT_MAP_LEAVING)
#define CGROUP_EVENTS MAP(NSAGENT_MAP_CGROUP_EVENTS)
#define CGROUP_SCRATCH MAP(NSAGENT_MAP_CGROUP_SCRATCH)
#define LANE MAP(NSAGENT_MAP_LANE)
#define OOM_KILLS MAP(NSAGENT_MAP_OOM_KILLS)
#define SEEN MAP(NSAGENT_MAP_SEEN)

/* include/uapi/linux/bpf.h, enum bpf_func_id */
static void *(*map_lookup)(void *map, const void *key) = (void *)1;
static long (*map_update)(void *map, const void *key, const void *value, u64 flags) = (void *)2;
static long (*map_delete)(void *map, const void *key) = (void *)3;
static long (*map_push)(void *map, const void *value, u64 flags) = (void *)87;
static long (*map_pop)(void *map, void *value) = (void *)88;
static long (*read_kernel)(void *to, u32 size, const void *from) = (void *)113;
static u64 (*boot_ns)(void) = (void *)125;
static long (*read_user)(void *to, u32 size, const void *from) = (void *)112;
static void *(*ring_reserve)(void *ring, u64 size, u64 flags) = (void *)131;
static void (*ring_submit)(void *record, u64 flags) = (void *)132;
static void *(*task_storage)(void *map, struct task_struct *task, void *value, u64 flags) = (void *)156;
static struct task_struct *(*current_task)(void) = (void *)158;

#define NOEXIST 1	 /* BPF_NOEXIST */
#define STORAGE_CREATE 1 /* BPF_LOCAL_STORAGE_GET_F_CREATE */

enum settle_at { AT_BIRTH, AT_PASS, AT_EXEC, AT_MOVE, AT_CALL, AT_EXIT, AT_FREE };

/* Have the verifier forget what it knows of a number: paths that differ by nothing else become one. */
INLINE u64 forget(u64 number)
{
	u64 forgotten;
	read_kernel(&forgotten, sizeof(forgotten), &number);
	return forgotten;
}

INLINE u64 *config(u32 element)
{
	return map_lookup(CONFIG, &element);
}

INLINE u64 configured(u32 element)
{
	u64 *value = config(element);
	return value ? *value : 0;
}

INLINE void count(u32 stat)
{
	u64 *value = map_lookup(STATS, &stat);
	if (value)
		__sync_fetch_and_add(value, 1);
}

INLINE struct nsagent_row *row_at(u64 index)
{
	u32 element = index & NSAGENT_WAITING ? ~0U : index;
	return map_lookup(ROWS, &element);
}

/* Identity: ns_id where the kernel has it, else a generation counted a birth, because inums are reused at once. */
struct generation_key {
	u32 kind;
	u32 inum;
};

#ifdef HAVE_ns_common_ns_id
#define IDENTIFY(kind, common) ((common).ns_id << 32 | (common).inum)
#else
#define IDENTIFY(kind, common) identify(kind, (common).inum)
INLINE u64 identify(u32 kind, u32 inum)
{
	struct generation_key key = {kind, inum};
	u64 *generation = map_lookup(GENERATIONS, &key);
	return (generation ? *generation : 0) << 32 | inum;
}

INLINE void born(u32 kind, u32 inum)
{
	struct generation_key key = {kind, inum};
	u64 zero = 0, *generation = map_lookup(GENERATIONS, &key);
	if (!generation) {
		map_update(GENERATIONS, &key, &zero, NOEXIST);
		generation = map_lookup(GENERATIONS, &key);
	}
	if (generation)
		__sync_fetch_and_add(generation, 1);
}
#endif

/* include/uapi/linux/sched.h */
#define CLONE_THREAD 0x00010000
#define CLONE_NEWTIME 0x00000080
#define CLONE_NEWNS 0x00020000
#define CLONE_NEWCGROUP 0x02000000
#define CLONE_NEWUTS 0x04000000
#define CLONE_NEWIPC 0x08000000
#define CLONE_NEWUSER 0x10000000
#define CLONE_NEWPID 0x20000000
#define CLONE_NEWNET 0x40000000
#define CLONE_NEW                                                                                                      \
	(CLONE_NEWTIME | CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWUSER | CLONE_NEWPID |  \
	 CLONE_NEWNET)

/* Note the namespaces that `flags` of a clone or an unshare have just made for `task`. Not inferred from changed inums:
 * pid and time would count twice, at the call for the children and in the child. */
INLINE void note_births(struct task_struct *task, u64 flags)
{
#ifndef HAVE_ns_common_ns_id
	struct nsproxy *proxy = task->nsproxy;
	if (!(flags & CLONE_NEW) || !proxy)
		return;
#define BORN(flags, kind, flag, space)                                                                                 \
	if ((flags) & (flag))                                                                                          \
		born(kind, (space)->ns.inum);
	BORN(flags, NSAGENT_CGROUP, CLONE_NEWCGROUP, proxy->cgroup_ns)
	BORN(flags, NSAGENT_IPC, CLONE_NEWIPC, proxy->ipc_ns)
	BORN(flags, NSAGENT_MNT, CLONE_NEWNS, proxy->mnt_ns)
	BORN(flags, NSAGENT_NET, CLONE_NEWNET, proxy->net_ns)
	BORN(flags, NSAGENT_PID, CLONE_NEWPID, proxy->pid_ns_for_children)
	BORN(flags, NSAGENT_TIME, CLONE_NEWTIME, proxy->time_ns_for_children)
	BORN(flags, NSAGENT_USER, CLONE_NEWUSER, task->real_cred->user_ns)
	BORN(flags, NSAGENT_UTS, CLONE_NEWUTS, proxy->uts_ns)
#endif
}

/* Identity of the namespace whose ns_common is at this address. */
INLINE u64 identify_at(u32 kind, u64 common)
{
	u32 inum = READ(struct ns_common, common, inum);
#ifdef HAVE_ns_common_ns_id
	return READ(struct ns_common, common, ns_id) << 32 | inum;
#else
	return identify(kind, inum);
#endif
}

/* The address of the cgroup that is charged: of the hierarchy NSAGENT_SUBSYS, a subsys id, or of v2 where that is undefined. */
INLINE u64 cgroup_of(struct task_struct *task)
{
	u64 set = (u64)READ(struct task_struct, task, cgroups);
#ifdef NSAGENT_SUBSYS
	u64 css = (u64)READ(struct css_set, set, subsys[NSAGENT_SUBSYS]);
	return (u64)READ(struct cgroup_subsys_state, css, cgroup);
#else
	return (u64)READ(struct css_set, set, dfl_cgrp);
#endif
}

#ifdef NSAGENT_SUBSYS
#define DIRECT_CGROUP(task) ((task)->cgroups->subsys[NSAGENT_SUBSYS]->cgroup)
#else
#define DIRECT_CGROUP(task) ((task)->cgroups->dfl_cgrp)
#endif

INLINE u64 cgroup_id(u64 cgroup)
{
	u64 node = (u64)READ(struct cgroup, cgroup, kn);
	return READ(struct kernfs_node, node, id);
}

/* The state of one controller for the cgroup at an address; 0 where the hierarchy or the cgroup has it not. */
#define STATE_OF(cgroup, subsystem) ((u64)READ(struct cgroup, cgroup, subsys[subsystem]))

INLINE u64 user_namespace_of(struct task_struct *task)
{
	u64 cred = (u64)READ(struct task_struct, task, real_cred);
	return (u64)READ(struct cred, cred, user_ns);
}

INLINE void read_proxy(struct nsproxy *proxy, u64 *ns)
{
	ns[NSAGENT_CGROUP] = IDENTIFY(NSAGENT_CGROUP, proxy->cgroup_ns->ns);
	ns[NSAGENT_IPC] = IDENTIFY(NSAGENT_IPC, proxy->ipc_ns->ns);
	ns[NSAGENT_MNT] = IDENTIFY(NSAGENT_MNT, proxy->mnt_ns->ns);
	ns[NSAGENT_NET] = IDENTIFY(NSAGENT_NET, proxy->net_ns->ns);
	ns[NSAGENT_TIME] = IDENTIFY(NSAGENT_TIME, proxy->time_ns->ns);
	ns[NSAGENT_UTS] = IDENTIFY(NSAGENT_UTS, proxy->uts_ns->ns);
}

/*
 * Read the context but for the pid namespace. Returns 0 where there is none (the task is past exit_task_namespaces) or it
 * changed meanwhile: an unshare on another CPU frees the old nsproxy at once, without RCU.
 */
INLINE int read_context(struct task_struct *task, struct nsagent_context *to, enum settle_at at)
{
	struct nsproxy *proxy = task->nsproxy;
	if (!proxy)
		return 0;
	if (at == AT_PASS) {
		to->cgroup = DIRECT_CGROUP(task)->kn->id;
		to->ns[NSAGENT_USER] = IDENTIFY(NSAGENT_USER, task->real_cred->user_ns->ns);
	} else {
		to->cgroup = cgroup_id(cgroup_of(task));
		to->ns[NSAGENT_USER] =
			identify_at(NSAGENT_USER, user_namespace_of(task) + OFFSET(struct user_namespace, ns));
	}
	read_proxy(proxy, to->ns);
	return (at == AT_PASS ? task->nsproxy : READ(struct task_struct, task, nsproxy)) == proxy;
}

/*
 * A task's own pid namespace is that of its struct pid, not nsproxy->pid_ns_for_children, and never changes after fork.
 * numbers[] has a variable offset, which the verifier allows only to a probe read.
 */
INLINE int read_pid_namespace(struct task_struct *task, struct nsagent_context *to)
{
	u64 pid = (u64)READ(struct task_struct, task, thread_pid), ns = 0;
	if (!pid)
		return 0;
	u32 level = READ(struct pid, pid, level) & 31; /* MAX_PID_NS_LEVEL is 32 */
	ns = (u64)READ(struct upid, pid + OFFSET(struct pid, numbers) + level * sizeof(struct upid), ns);
	if (!ns)
		return 0;
	to->ns[NSAGENT_PID] = identify_at(NSAGENT_PID, ns + OFFSET(struct pid_namespace, ns));
	return 1;
}

/* The whole context, for an event: not by way of a row, because contexts that found none share row 0. */
INLINE int read_namespaces(struct task_struct *task, struct nsagent_context *to)
{
	return read_context(task, to, AT_CALL) && read_pid_namespace(task, to);
}

/* Whether two contexts are the same; the pid namespace of one task always is. */
INLINE int same(struct nsagent_context *a, struct nsagent_context *b)
{
	return a->cgroup == b->cgroup && a->ns[NSAGENT_MNT] == b->ns[NSAGENT_MNT] &&
	       a->ns[NSAGENT_NET] == b->ns[NSAGENT_NET] && a->ns[NSAGENT_UTS] == b->ns[NSAGENT_UTS] &&
	       a->ns[NSAGENT_IPC] == b->ns[NSAGENT_IPC] && a->ns[NSAGENT_USER] == b->ns[NSAGENT_USER] &&
	       a->ns[NSAGENT_CGROUP] == b->ns[NSAGENT_CGROUP] && a->ns[NSAGENT_TIME] == b->ns[NSAGENT_TIME];
}

/*
 * The row of a context, made where it has none: one that was given back, else the next never used, else 0, the overflow.
 * Inserted with NOEXIST: an update could replace the row another CPU has just made.
 */
INLINE u64 row_of(struct nsagent_context *context)
{
	u64 index = 0, *known = map_lookup(IDS, context);
	if (known)
		return *known;
	if (map_pop(SPARE, &index)) {
		u64 *next = config(NSAGENT_CONFIG_NEXT_ROW);
		if (!next || *next + 1 >= configured(NSAGENT_CONFIG_ROWS)) {
			count(NSAGENT_STAT_ROWS_FULL);
			return 0;
		}
		index = __sync_fetch_and_add(next, 1) + 1;
	}
	struct nsagent_row *row = row_at(index);
	if (!row) {
		count(NSAGENT_STAT_ROWS_FULL);
		return 0;
	}
	row->context = *context;
	if (map_update(IDS, context, &index, NOEXIST)) {
		known = map_lookup(IDS, context);
		map_push(SPARE, &index, 0);
		return known ? *known : 0;
	}
	return index;
}

/*
 * The row a task is charged to, asked before its context is read again: who changes it meanwhile has the last word. A context
 * that waits for its first use gets its row here. NSAGENT_WAITING, which is no row: another CPU changes it all the time.
 */
INLINE u64 row_for(struct nsagent_task *mine)
{
	u64 was = mine->row, waits = was / NSAGENT_WAITING;
	HIDE(waits); /* of the verifier too, or what it learns of `was` would double its states */
	if (!waits)
		return was;
	struct nsagent_context context;
	u64 index = NSAGENT_WAITING;
	for (int tries = 0; tries < 4; tries++) {
		was = __sync_val_compare_and_swap(&mine->row, 0, 0); /* a load before those that follow, on arm64 too */
		context = mine->context;
		if (__sync_val_compare_and_swap(&mine->row, was, was) == was && was != NSAGENT_WAITING) {
			index = was; /* of another CPU, which was quicker */
			if (was & NSAGENT_WAITING) {
				index = row_of(&context);
				__sync_val_compare_and_swap(&mine->row, was, index);
			}
			break;
		}
	}
	return forget(index);
}

#ifdef HAVE_sched_info_run_delay
#define RUN_QUEUE(task) ((task)->sched_info.run_delay)
#else
#define RUN_QUEUE(task) 0
#endif
#ifdef HAVE_task_delay_info_blkio_delay
#define IO_DELAY(task) io_delay(task)
INLINE u64 io_delay(struct task_struct *task)
{
	u64 delays = (u64)READ(struct task_struct, task, delays); /* 0 without kernel.task_delayacct */
	return delays ? READ(struct task_delay_info, delays, blkio_delay) : 0;
}
#else
#define IO_DELAY(task) 0
#endif
#ifdef HAVE_task_io_accounting_rchar
#define CHARS(task, member) ((task)->ioac.member)
#else
#define CHARS(task, member) 0
#endif
#ifdef HAVE_task_io_accounting_read_bytes
#define BYTES(task, member) ((task)->ioac.member)
#else
#define BYTES(task, member) 0
#endif

#define EACH_COUNTER(DO, task)                                                                                         \
	DO(NSAGENT_CPU_NS, (task)->se.sum_exec_runtime)                                                                \
	DO(NSAGENT_USER_NS, (task)->utime)                                                                             \
	DO(NSAGENT_SYSTEM_NS, (task)->stime)                                                                           \
	DO(NSAGENT_RUN_QUEUE_NS, RUN_QUEUE(task))                                                                      \
	DO(NSAGENT_IO_DELAY_NS, IO_DELAY(task))                                                                        \
	DO(NSAGENT_VOLUNTARY_SWITCHES, (task)->nvcsw)                                                                  \
	DO(NSAGENT_INVOLUNTARY_SWITCHES, (task)->nivcsw)                                                               \
	DO(NSAGENT_MINOR_FAULTS, (task)->min_flt)                                                                      \
	DO(NSAGENT_MAJOR_FAULTS, (task)->maj_flt)                                                                      \
	DO(NSAGENT_READ_CHARS, CHARS(task, rchar))                                                                     \
	DO(NSAGENT_WRITE_CHARS, CHARS(task, wchar))                                                                    \
	DO(NSAGENT_READ_SYSCALLS, CHARS(task, syscr))                                                                  \
	DO(NSAGENT_WRITE_SYSCALLS, CHARS(task, syscw))                                                                 \
	DO(NSAGENT_READ_BYTES, BYTES(task, read_bytes))                                                                \
	DO(NSAGENT_WRITE_BYTES, BYTES(task, write_bytes))                                                              \
	DO(NSAGENT_CANCELLED_WRITE_BYTES, BYTES(task, cancelled_write_bytes))

/*
 * Move one counter forward. Passes and hooks race on two CPUs: the compare-and-swap lets one of them take the delta, and
 * the loser adds nothing; what it saw beyond is taken at the next settle.
 */
INLINE void take(struct nsagent_task *mine, struct nsagent_row *row, u32 counter, u64 now)
{
	u64 last = mine->last[counter];
	if (now > last && __sync_val_compare_and_swap(&mine->last[counter], last, now) == last)
		__sync_fetch_and_add(&row->counters[counter], now - last);
}

#ifndef HAVE_bpf_iter_task_new
/*
 * Before v6.7 a program cannot visit the other threads of a process that moves (bpf/account.c, on_move): it leaves a note of
 * their counters instead, by the task's address. The first settle after the move charges the old row up to the note.
 * Returns the row for the rest.
 */
INLINE struct nsagent_row *split_at_note(struct task_struct *task, struct nsagent_task *mine, struct nsagent_row *row,
					 u64 now)
{
	u64 key = (u64)task;
	struct nsagent_note *note = map_lookup(NOTES, &key);
	if (!note || note->start_time != task->start_time)
		return row;
#define TAKE_NOTED(counter, value) take(mine, row, counter, note->counters[counter]);
	EACH_COUNTER(TAKE_NOTED, task)
	map_delete(NOTES, &key);
	row = row_at(now);
	return row;
}
#else
#define split_at_note(task, mine, row, now) (row)
#endif

/* A task's storage. Two CPUs that create it at once: one gets NULL, and finds the other's by asking again. */
INLINE struct nsagent_task *storage_of(struct task_struct *task)
{
	struct nsagent_task *mine = task_storage(TASKS, task, 0, STORAGE_CREATE);
	if (!mine)
		mine = task_storage(TASKS, task, 0, STORAGE_CREATE);
	if (!mine)
		count(NSAGENT_STAT_NO_STORAGE);
	return mine;
}

/*
 * Charge what the task has used to the row it `was` in, as row_for() said. Returns the row it is now in, 0 where that is unknown.
 * `found`, all 0 before, is what it is in; with no cgroup where that cannot be read, without the pid namespace where it is in `was`.
 */
INLINE u64 settle_to(struct task_struct *task, struct nsagent_task *mine, u64 was, enum settle_at at,
		     struct nsagent_context *found)
{
	barrier();
	struct nsagent_row *row = row_at(was);
	u64 now = 0;
	int known = 0;

	if (!row)
		return 0;
	if (at != AT_FREE && read_context(task, found, at)) {
		if (was && same(found, &row->context)) {
			now = was;
			known = 1;
		} else {
			/* The remembered row has the pid namespace, unless it is the overflow. */
			known = 1;
			if (was)
				found->ns[NSAGENT_PID] = row->context.ns[NSAGENT_PID];
			else
				known = read_pid_namespace(task, found);
			if (known)
				now = row_of(found);
		}
	}
	if (!known)
		found->cgroup = 0;
	/* A pass can meet a task before task_newtask does, when its css_set still is the root's: birth has the last word. */
	if (at == AT_BIRTH) {
		__sync_lock_test_and_set(&mine->row, now);
		row = row_at(now);
		if (!row)
			return 0;
		was = now;
	}
	if (mine->state != 2) {
		if (__sync_val_compare_and_swap(&mine->state, 0, 1))
			return known ? now
				     : was; /* another CPU is at it: what the task has used comes with the next settle */
		__sync_val_compare_and_swap(&mine->row, 0, now);
		if (at == AT_BIRTH) {
			/* its past is empty */
		} else if (task->start_time < configured(NSAGENT_CONFIG_T0)) {
			/* alive at load: its past is nobody's */
#define BASELINE(counter, value) mine->last[counter] = (value);
			EACH_COUNTER(BASELINE, task)
		} else {
			count(NSAGENT_STAT_LATE);
		}
		__sync_lock_test_and_set(&mine->state, 2);
		row = row_at(mine->row);
		if (!row)
			return 0;
	}
	if (known && was && was != now)
		row = split_at_note(task, mine, row, now);
	if (!row)
		return 0;
#define TAKE(counter, value) take(mine, row, counter, value);
	EACH_COUNTER(TAKE, task)
	if (known && was != now)
		__sync_val_compare_and_swap(&mine->row, was, now);
	return forget(known ? now : was);
}

INLINE u64 settle(struct task_struct *task, struct nsagent_task *mine, u64 was, enum settle_at at)
{
	struct nsagent_context found = {};
	return settle_to(task, mine, was, at, &found);
}

#endif
