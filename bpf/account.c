// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Accounting: every place where a task's account must be brought up to date, and the pass that brings up all of them.
 * The tp_btf arguments are trusted task pointers, so task storage works on them, at exit and at free too; the arguments of
 * a raw tracepoint would be refused. Source of each hook's arguments: include/trace/events/{task,sched,cgroup}.h.
 */
#include "event.h"

/*
 * Whether this is to be counted now. While an upgrade swaps the programs both sets run, on the same maps: what settle does
 * twice adds nothing, what is counted is counted once. A task's birth, exit and free come one after the other: no race.
 */
INLINE int tell_once(struct nsagent_task *mine, u64 what)
{
	return mine && !(__sync_fetch_and_or(&mine->told, what) & what);
}

INLINE void count_birth(struct nsagent_row *row, int process)
{
	__sync_fetch_and_add(&row->threads_created, 1);
	if (process)
		__sync_fetch_and_add(&row->processes_created, 1);
}

INLINE void count_exit(struct nsagent_row *row, int process)
{
	__sync_fetch_and_add(&row->threads_exited, 1);
	if (process)
		__sync_fetch_and_add(&row->processes_exited, 1);
}

int on_birth(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	u64 flags = ctx[1]; /* the kernel's own view: clone3's buffer in user memory can change under us */
	struct nsagent_task *mine = storage_of(task);
	if (!tell_once(mine, NSAGENT_TOLD_BIRTH))
		return 0;
	note_births(task, flags);
	struct nsagent_context made = {};
	u64 index = settle_to(task, mine, 0, AT_BIRTH, &made); /* 0: whatever a pass has remembered of it */
	struct nsagent_row *row = row_at(index);
	if (!row)
		return 0;
	if (!index && made.cgroup)
		remember(task, mine, &made);
	count_birth(row, !(flags & CLONE_THREAD));

	/* The parent is in a traced call: tell its end which child this was, and in which namespaces where they differ. Rows
	 * tell that nothing differs; not that something does: two contexts without a row share row 0. */
	struct task_struct *maker = current_task();
	struct nsagent_task *parent = task_storage(TASKS, maker, 0, 0);
	if (!parent || !parent->call)
		return 0;
	u64 changed = 0;
	parent->flags = flags;
	if (!index || parent->row != index) {
		struct nsagent_context from = {};
		if (made.cgroup && read_namespaces(maker, &from))
			changed = differences(from.ns, made.ns);
		if (changed) {
			copy_namespaces(parent->ns, made.ns);
			parent->cred = 0;
		}
	}
	parent->child = changed << 32 | (u32)task->pid;
	return 0;
}

/* A pending time namespace takes effect at exec. */
int on_exec(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct nsagent_task *mine = storage_of(task);
	if (mine)
		settle(task, mine, row_for(mine), AT_EXEC);
	return 0;
}

/*
 * Before v6.2 ("bpf: Add new bpf_task_storage_get proto with no deadlock detection") a free that
 * interrupts a storage operation on its CPU gets no storage. So what a leaving task was charged for is kept by its address
 * too, and such a free takes the rest from there. Only the dying are in it, and a free takes each out.
 */
#ifdef STORAGE_REFUSED_WHEN_BUSY
INLINE void keep_for_free(struct task_struct *task, struct nsagent_task *mine)
{
	u64 key = (u64)task;
	map_update(LEAVING, &key, &mine->row, 0);
}

INLINE void forget_kept(struct task_struct *task)
{
	u64 key = (u64)task;
	map_delete(LEAVING, &key);
}

INLINE void free_without_storage(struct task_struct *task)
{
	u64 key = (u64)task;
	struct nsagent_leaving *left = map_lookup(LEAVING, &key);
	struct nsagent_row *row = left ? row_at(left->row) : NULL;
	if (!row)
		return;
#define TAKE_LEFT(counter, value)                                                                                      \
	{                                                                                                              \
		u64 now = (value);                                                                                     \
		if (now > left->last[counter])                                                                         \
			__sync_fetch_and_add(&row->counters[counter], now - left->last[counter]);                      \
	}
	EACH_COUNTER(TAKE_LEFT, task)
	__sync_fetch_and_add(&row->threads_freed, 1);
	map_delete(LEAVING, &key);
}
#else
#define keep_for_free(task, mine)
#define forget_kept(task)
#define free_without_storage(task)
#endif

int on_exit(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct nsagent_task *mine = storage_of(task);
	if (!tell_once(mine, NSAGENT_TOLD_EXIT))
		return 0;
	struct nsagent_context found = {};
	u64 was = row_for(mine), now = settle_to(task, mine, was, AT_EXIT, &found);
	note_unseen(task, mine, was, now, &found, mine->entered_ns);
	struct nsagent_row *row = row_at(now);
#ifdef HAVE_exit_group_dead /* since the argument in include/trace/events/sched.h (in v6.16) */
	int last = (u8)ctx[1];
#else
	/* Two threads that end at once can both find nobody else alive: the first to say so at their leader is counted. */
	int last = READ(struct signal_struct, READ(struct task_struct, task, signal), live.counter) == 0;
	struct nsagent_task *leader = last ? task_storage(TASKS, task->group_leader, 0, 0) : NULL;
	if (leader)
		last = tell_once(leader, NSAGENT_TOLD_PROCESS_EXIT);
#endif
	if (!row)
		return 0;
	count_exit(row, last);
	keep_for_free(task, mine);
	return 0;
}

/* Two thirds of a short process's CPU comes after the exit hook: it is final only when the task is freed. */
int on_free(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[0];
	struct nsagent_task *mine = storage_of(task);
	if (!mine) {
		free_without_storage(task);
		return 0;
	}
	forget_kept(task);
	if (!tell_once(mine, NSAGENT_TOLD_FREE))
		return 0;
	struct nsagent_row *row = row_at(settle(task, mine, row_for(mine), AT_FREE));
	if (!row)
		return 0;
	__sync_fetch_and_add(&row->threads_freed, 1);
	/* Hooks are preemptible since commit a46023d5616e (in v7.0), and one that preempts itself on a CPU is skipped: what a
	 * skipped birth or exit would have counted is counted here. */
	int process = task->pid == task->tgid;
	if (task->start_time < configured(NSAGENT_CONFIG_T0))
		return 0;
	if (tell_once(mine, NSAGENT_TOLD_BIRTH))
		count_birth(row, process);
	if (tell_once(mine, NSAGENT_TOLD_EXIT))
		count_exit(row, process);
	return 0;
}

#ifdef HAVE_bpf_iter_task_new
/* Since commit c68a78ffe2cb ("bpf: Introduce task open coded iterator kfuncs") (in v6.7). compile.py makes these calls kfuncs. */
struct bpf_iter_task {
	u64 opaque[3];
};
static int (*bpf_iter_task_new)(struct bpf_iter_task *iterator, struct task_struct *task, u32 flags) = (void *)90001;
static struct task_struct *(*bpf_iter_task_next)(struct bpf_iter_task *iterator) = (void *)90002;
static void (*bpf_iter_task_destroy)(struct bpf_iter_task *iterator) = (void *)90003;
#define PROC_THREADS 2 /* BPF_TASK_ITER_PROC_THREADS */

/* take() without branches: in a loop each would multiply the states the verifier walks. */
INLINE void take_flat(struct nsagent_task *mine, struct nsagent_row *row, u32 counter, u64 now)
{
	u64 last = mine->last[counter], delta = now - last;
	delta &= ~(u64)((s64)delta >> 63);
	u64 lost = __sync_val_compare_and_swap(&mine->last[counter], last, last + delta) ^ last;
	delta &= ((lost | -lost) >> 63) - 1;
	__sync_fetch_and_add(&row->counters[counter], delta);
}
#endif

#ifndef HAVE_bpf_iter_task_new
#define MAX_THREADS 256 /* further ones are charged to the old cgroup up to their next settle */

/* Note the counters of the threads of the process of `task` but itself. By address: these pointers are not trusted. */
INLINE void note_threads(struct task_struct *task)
{
	u64 head = 0, node = 0;
	read_kernel(&head, sizeof(head), (void *)((u64)task + OFFSET(struct task_struct, signal)));
	head += OFFSET(struct signal_struct, thread_head);
	read_kernel(&node, sizeof(node), (void *)head);
	for (int i = 0; i < MAX_THREADS && node && node != head; i++) {
		u64 key = node - OFFSET(struct task_struct, thread_node), delays = 0;
		struct task_struct *thread = (struct task_struct *)key;
		struct nsagent_note note = {};
#define NOTE(index, member) read_kernel(&note.counters[index], 8, (void *)(key + OFFSET(struct task_struct, member)));
		read_kernel(&note.start_time, 8, (void *)(key + OFFSET(struct task_struct, start_time)));
		NOTE(NSAGENT_CPU_NS, se.sum_exec_runtime)
		NOTE(NSAGENT_USER_NS, utime)
		NOTE(NSAGENT_SYSTEM_NS, stime)
#ifdef HAVE_sched_info_run_delay
		NOTE(NSAGENT_RUN_QUEUE_NS, sched_info.run_delay)
#endif
#ifdef HAVE_task_delay_info_blkio_delay
		read_kernel(&delays, 8, (void *)(key + OFFSET(struct task_struct, delays)));
		if (delays)
			read_kernel(&note.counters[NSAGENT_IO_DELAY_NS], 8,
				    (void *)(delays + OFFSET(struct task_delay_info, blkio_delay)));
#endif
		NOTE(NSAGENT_VOLUNTARY_SWITCHES, nvcsw)
		NOTE(NSAGENT_INVOLUNTARY_SWITCHES, nivcsw)
		NOTE(NSAGENT_MINOR_FAULTS, min_flt)
		NOTE(NSAGENT_MAJOR_FAULTS, maj_flt)
#ifdef HAVE_task_io_accounting_rchar
		NOTE(NSAGENT_READ_CHARS, ioac.rchar)
		NOTE(NSAGENT_WRITE_CHARS, ioac.wchar)
		NOTE(NSAGENT_READ_SYSCALLS, ioac.syscr)
		NOTE(NSAGENT_WRITE_SYSCALLS, ioac.syscw)
#endif
#ifdef HAVE_task_io_accounting_read_bytes
		NOTE(NSAGENT_READ_BYTES, ioac.read_bytes)
		NOTE(NSAGENT_WRITE_BYTES, ioac.write_bytes)
		NOTE(NSAGENT_CANCELLED_WRITE_BYTES, ioac.cancelled_write_bytes)
#endif
		if (thread != task)
			map_update(NOTES, &key, &note, 0);
		read_kernel(&node, sizeof(node), (void *)node);
	}
}
#endif

/*
 * cgroup_attach_task(dst_cgrp, path, task, threadgroup) fires after the switch, once a process: settle charges the
 * remembered cgroup. The other threads moved too and are charged here, or their next settle would take all to the old one.
 */
int on_move(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[2];
	struct nsagent_task *mine = storage_of(task);
	if (!mine)
		return 0;
	u64 index = settle(task, mine, row_for(mine), AT_MOVE);
#ifdef HAVE_bpf_iter_task_new
	/* It unshared at this moment, on its own CPU, and kept the cgroup it knew. */
	if (mine->row & NSAGENT_WAITING)
		mine->context.cgroup = cgroup_id(cgroup_of(task));
	if (!(u8)ctx[3])
		return 0;
	u64 proxy = (u64)READ(struct task_struct, task, nsproxy), user = user_namespace_of(task);
	struct bpf_iter_task iterator;
	bpf_iter_task_new(&iterator, task, PROC_THREADS);
	while ((task = bpf_iter_task_next(&iterator))) {
		mine = task_storage(TASKS, task, 0, 0);
		if (!mine || mine->state != 2)
			continue;
		struct nsagent_row *row = row_at(mine->row);
		if (!row)
			continue;
#define TAKE_FLAT(counter, value) take_flat(mine, row, counter, value);
		EACH_COUNTER(TAKE_FLAT, task)
		if ((u64)READ(struct task_struct, task, nsproxy) == proxy && user_namespace_of(task) == user)
			__sync_lock_test_and_set(&mine->row, index);
	}
	bpf_iter_task_destroy(&iterator);
#else
	if ((u8)ctx[3])
		note_threads(task);
#endif
	return 0;
}

/* include/linux/sched.h */
#define TASK_INTERRUPTIBLE 0x0001
#define TASK_UNINTERRUPTIBLE 0x0002
#define TASK_STOPPED_OR_TRACED 0x000c
#define TASK_PARKED 0x0040
#define TASK_NOLOAD 0x0400
#define TASK_FROZEN 0x8000

#ifdef HAVE_task_struct___state
#define STATE(task) ((task)->__state)
#else
#define STATE(task) ((task)->state)
#endif

INLINE void count_state(struct task_struct *task, struct nsagent_row *row)
{
	u64 state = STATE(task);
	if (task->exit_state)
		row->zombie++;
	else if (state & TASK_INTERRUPTIBLE)
		row->sleeping++;
	else if (state & TASK_STOPPED_OR_TRACED)
		row->stopped++;
	else if (state & (TASK_NOLOAD | TASK_PARKED))
		row->idle++;
	else if (state & (TASK_UNINTERRUPTIBLE | TASK_FROZEN))
		row->disk_sleep++;
	else
		row->running++;
}

/* mm_struct's rss_stat: MM_FILEPAGES, MM_ANONPAGES, MM_SWAPENTS, MM_SHMEMPAGES (include/linux/mm_types_task.h) */
enum { FILE_PAGES, ANON_PAGES, SWAP_ENTRIES, SHMEM_PAGES };

struct memory {
	s64 pages[4];
	s64 pagetables_bytes;
};

/*
 * An mm is counted once, at the task that owns it, however many threads or vfork children share it.
 * Since v6.2 its counters are per CPU, and `count` lacks what the CPUs have not folded in: that is added where it can be read.
 */
INLINE void read_memory(struct task_struct *task, struct memory *to)
{
#if defined(HAVE_mm_struct_owner) && defined(HAVE_mm_struct_rss_stat)
	struct mm_struct *mm = task->mm;
	if (!mm || mm->owner != task)
		return;
#ifdef HAVE_mm_struct_pgtables_bytes
	to->pagetables_bytes = mm->pgtables_bytes.counter;
#endif
#ifdef HAVE_rss_percpu
	struct percpu_counter stats[4];
	u64 cpus = configured(NSAGENT_CONFIG_CPUS), first, together;
	read_kernel(stats, sizeof(stats), (void *)((u64)mm + OFFSET(struct mm_struct, rss_stat)));
	first = (u64)stats[0].counters;
	/* Since commit 14ef95be6f55 ("kernel/fork: group allocation/free of per-cpu counters for mm struct") (in v6.6) the
	 * four lie side by side, and one read has them all. On 6.2 to 6.5 they do not, and what the CPUs hold is left out. */
	together = (u64)stats[1].counters == first + 4 && (u64)stats[2].counters == first + 8 &&
		   (u64)stats[3].counters == first + 12;
	if (!together)
		cpus = 0;
	for (u32 cpu = 0; cpu < NSAGENT_MAX_CPUS && cpu < cpus; cpu++) {
		/* A copy: before commit 37cce22dbd51 ("bpf: verifier: Refactor helper access type tracking") (in v6.14) the
		 * verifier forgets the value of what a helper is shown, and calls the loop infinite. */
		u32 key = cpu;
		u64 *offset = map_lookup(CPU_OFFSETS, &key);
		s32 parts[4] = {};
		if (!offset)
			break;
		read_kernel(parts, sizeof(parts), (void *)(first + *offset));
		to->pages[0] += parts[0];
		to->pages[1] += parts[1];
		to->pages[2] += parts[2];
		to->pages[3] += parts[3];
	}
	to->pages[0] += stats[0].count;
	to->pages[1] += stats[1].count;
	to->pages[2] += stats[2].count;
	to->pages[3] += stats[3].count;
#else
	/* A probe read, because 6.1's verifier does not look through the typedef of an array's elements: btf_struct_walk()
	 * of kernel/bpf/btf.c says "Type 'atomic_long_t' is not a struct". */
	read_kernel(to->pages, sizeof(to->pages), (void *)((u64)mm + OFFSET(struct mm_struct, rss_stat.count)));
#endif
#endif
}

INLINE u64 bytes_of(s64 pages, u64 page)
{
	return pages > 0 ? pages * page : 0;
}

/*
 * The row that the last pass found a task in, 0 where it has to settle. Who sleeps and has used no CPU time since then has
 * not run: it has used nothing, and a task changes its namespaces by running; its cgroup others change, and with that its
 * css_set. Most tasks sleep, and to look here, in the order of pids, costs a tenth of a look at their storage. An address may
 * be another task's by now, but not with the same bits of its pid, in the same css_set, and with the same nanoseconds.
 */
INLINE u64 seen_in(struct task_struct *task, struct nsagent_seen *seen, u64 epoch)
{
	if (seen->task != (u64)task || seen->set != (u64)task->cgroups || seen->cpu_ns != task->se.sum_exec_runtime ||
	    seen->epoch != (u32)(epoch - 1) || !STATE(task) || task->exit_state)
		return 0;
	seen->epoch = epoch;
	return seen->row;
}

/* Settle a task that a pass meets. Returns its row. */
INLINE u64 settle_at_pass(struct task_struct *task, struct nsagent_seen *seen, u64 epoch)
{
	/* Never create storage for a released task: its free event may be past, and nothing would settle it again. */
	struct nsagent_task *mine = task->sighand ? storage_of(task) : task_storage(TASKS, task, 0, 0);
	if (!mine)
		return ~0U; /* no row */
	struct nsagent_context found = {};
	u64 set = (u64)task->cgroups, cpu_ns = task->se.sum_exec_runtime, was = row_for(mine),
	    entered_ns = mine->entered_ns;
	barrier(); /* first: what changes from here on, the next pass finds changed */
	u64 now = settle_to(task, mine, was, AT_PASS, &found);
	note_unseen(task, mine, was, now, &found, entered_ns);
	/* From its exit hook on, not from exit_state on: what a pass takes in between would be taken again at the free. */
	if (task->exit_state || mine->told & NSAGENT_TOLD_EXIT)
		keep_for_free(task, mine);
	if (mine->last[NSAGENT_CPU_NS] >= cpu_ns) /* else another CPU is at its first settle */
		*seen = (struct nsagent_seen){(u64)task, set, cpu_ns, now, epoch};
	return now;
}

/* bpf_iter/task: settle every task, and sum the gauges of this pass. User space runs one pass at a time. */
int on_pass(u64 *ctx)
{
	struct task_struct *task = (struct task_struct *)ctx[1];
	if (!task)
		return 0;
	u32 place = (u32)task->pid % NSAGENT_SEEN;
	struct nsagent_seen *seen = map_lookup(SEEN, &place);
	if (!seen)
		return 0;
	/* Before settle: the verifier walks the loop over the CPUs once for each state it comes with. */
	struct memory memory = {};
	read_memory(task, &memory);
	count(NSAGENT_STAT_PASSES);
	u64 epoch = configured(NSAGENT_CONFIG_EPOCH), index = seen_in(task, seen, epoch);
	if (!index)
		index = settle_at_pass(task, seen, epoch);
	struct nsagent_row *row = row_at(forget(index));
	if (!row)
		return 0;
	if (row->epoch != epoch) {
		row->epoch = epoch;
		row->threads = row->processes = 0;
		row->running = row->sleeping = row->disk_sleep = row->stopped = row->zombie = row->idle = 0;
		row->rss_anon_bytes = row->rss_file_bytes = row->rss_shmem_bytes = 0;
		row->swap_bytes = row->pagetables_bytes = 0;
	}
	row->threads++;
	if (task->pid == task->tgid)
		row->processes++;
	count_state(task, row);
	u64 page = configured(NSAGENT_CONFIG_PAGE);
	row->rss_file_bytes += bytes_of(memory.pages[FILE_PAGES], page);
	row->rss_anon_bytes += bytes_of(memory.pages[ANON_PAGES], page);
	row->swap_bytes += bytes_of(memory.pages[SWAP_ENTRIES], page);
	row->rss_shmem_bytes += bytes_of(memory.pages[SHMEM_PAGES], page);
	row->pagetables_bytes += memory.pagetables_bytes;
	return 0;
}

/*
 * Run on each CPU by user space (BPF_PROG_TEST_RUN): the offset of that CPU's per-CPU memory, without kallsyms. It is the
 * address of a per-CPU array's element here less the array's per-CPU pointer. Stored and loaded again, a pointer is a number.
 */
int find_cpu_offset(u64 *ctx)
{
	u32 zero = 0, cpu = ctx[0];
	u64 *slot = map_lookup(CPU_OFFSETS, &cpu), *element = map_lookup(HERE, &zero), pointer = 0;
	if (!slot || !element)
		return 0;
	*slot = (u64)HERE;
	barrier();
	u64 array = *slot;
	read_kernel(&pointer, sizeof(pointer), (void *)(array + OFFSET(struct bpf_array, pptrs)));
	*slot = (u64)element;
	barrier();
	*slot -= pointer;
	return 1;
}

/*
 * Run by user space with (row, context): fold a row that no task is left in into the row of `context`, which has 0 for
 * each namespace that is gone, and give the row back. One call in the kernel, so that no death of the agent in between
 * can lose or double what the row holds. User space has removed the row's key from `ids` two passes before, so nobody finds
 * the row any more; a task that came back to the same context has a row of its own.
 */
int fold_row(u64 *ctx)
{
	u64 from = ctx[0];
	struct nsagent_context context = {ctx[1], {ctx[2], ctx[3], ctx[4], ctx[5], ctx[6], ctx[7], ctx[8], ctx[9]}};
	struct nsagent_row *row = row_at(from);
	if (!row || !from)
		return 0;
	u64 to = row_of(&context);
	struct nsagent_row *sum = row_at(to);
	if (!sum || to == from)
		return 0;
#define FOLD(member) __sync_fetch_and_add(&sum->member, __sync_lock_test_and_set(&row->member, 0));
#define FOLD_COUNTER(counter, value) FOLD(counters[counter])
	EACH_COUNTER(FOLD_COUNTER, 0)
	FOLD(processes_created)
	FOLD(processes_exited)
	FOLD(threads_created)
	FOLD(threads_exited)
	FOLD(threads_freed)
	FOLD(oom_kills_memcg)
	FOLD(oom_kills_unknown)
	row->epoch = 0;
	row->context.cgroup = 0;
	map_push(SPARE, &from, 0);
	return 1;
}
