// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Tracing: clone, clone3, fork, vfork, unshare and setns, each with its flags, its result, and the namespaces before and
 * after. The truth about a change is those namespaces, not the caller's arguments. Every call is counted; an event is
 * written for a change and for a failure, and for every call while somebody asks for all.
 */
#include "event.h"

/* Tracepoints syscalls:sys_enter_* and sys_exit_*: the first word is the kernel's own. */
struct entry {
	u64 common;
	u64 nr;
	u64 argument[6];
};
struct leave {
	u64 common;
	u64 nr;
	s64 result;
};

#define MAX_ERRNO 4095
#define ERESTARTNOINTR                                                                                                 \
	513 /* include/linux/errno.h: the kernel restarts the call, the caller never sees this end of it */
#define NSFS_MAGIC 0x6e736673

/* unshare and setns change the pid and time namespaces for children, and setns its own time namespace. */
INLINE void turn_to_children(struct nsproxy *proxy, u64 *ns)
{
	ns[NSAGENT_PID] = IDENTIFY(NSAGENT_PID, proxy->pid_ns_for_children->ns);
	ns[NSAGENT_TIME] = IDENTIFY(NSAGENT_TIME, proxy->time_ns_for_children->ns);
}

INLINE u64 user_namespace_behind(u64 cred)
{
	return identify_at(NSAGENT_USER, (u64)READ(struct cred, cred, user_ns) + OFFSET(struct user_namespace, ns));
}

#ifndef HAVE_ns_common_ns_id
INLINE u32 kind_of(u32 type)
{
	return type == CLONE_NEWCGROUP ? NSAGENT_CGROUP
	       : type == CLONE_NEWIPC  ? NSAGENT_IPC
	       : type == CLONE_NEWNS   ? NSAGENT_MNT
	       : type == CLONE_NEWNET  ? NSAGENT_NET
	       : type == CLONE_NEWPID  ? NSAGENT_PID
	       : type == CLONE_NEWTIME ? NSAGENT_TIME
	       : type == CLONE_NEWUSER ? NSAGENT_USER
				       : NSAGENT_UTS;
}
#endif

/* The namespace behind a descriptor of the task: an nsfs inode keeps its ns_common in i_private. 0 where it is none. */
INLINE u64 namespace_behind(struct task_struct *task, u32 descriptor, u32 *type)
{
	u64 files = (u64)READ(struct task_struct, task, files);
	u64 table, slot = 0, file = 0, inode = 0, super = 0, magic = 0, common = 0;
	u32 size = 0, inum = 0;
	if (!files)
		return 0;
	table = (u64)READ(struct files_struct, files, fdt);
	read_kernel(&size, sizeof(size), (void *)(table + OFFSET(struct fdtable, max_fds)));
	if (descriptor >= size)
		return 0;
	read_kernel(&slot, sizeof(slot), (void *)(table + OFFSET(struct fdtable, fd)));
	read_kernel(&file, sizeof(file), (void *)(slot + descriptor * 8ULL));
	if (!file)
		return 0;
	read_kernel(&inode, sizeof(inode), (void *)(file + OFFSET(struct file, f_inode)));
	read_kernel(&super, sizeof(super), (void *)(inode + OFFSET(struct inode, i_sb)));
	read_kernel(&magic, sizeof(magic), (void *)(super + OFFSET(struct super_block, s_magic)));
	if (magic != NSFS_MAGIC)
		return 0;
	read_kernel(&common, sizeof(common), (void *)(inode + OFFSET(struct inode, i_private)));
	read_kernel(&inum, sizeof(inum), (void *)(common + OFFSET(struct ns_common, inum)));
#ifdef HAVE_ns_common_ns_type
	read_kernel(type, sizeof(*type), (void *)(common + OFFSET(struct ns_common, ns_type)));
#else
	u64 ops = 0;
	read_kernel(&ops, sizeof(ops), (void *)(common + OFFSET(struct ns_common, ops)));
	read_kernel(type, sizeof(*type), (void *)(ops + OFFSET(struct proc_ns_operations, type)));
#endif
#ifdef HAVE_ns_common_ns_id
	u64 id = 0;
	read_kernel(&id, sizeof(id), (void *)(common + OFFSET(struct ns_common, ns_id)));
	return id << 32 | inum;
#else
	return identify(kind_of(*type), inum);
#endif
}

INLINE void open_a_call(struct nsagent_task *mine, u32 syscall, u64 flags, u64 argument)
{
	mine->flags = flags;
	mine->argument = argument;
	mine->target = 0;
	mine->child = 0;
	mine->entered_ns = boot_ns();
	mine->call = syscall + 1;
}

INLINE int enter_a_fork(u32 syscall, u64 flags)
{
	struct nsagent_task *mine = storage_of(current_task());
	if (mine)
		open_a_call(mine, syscall, flags, 0);
	return 0;
}

INLINE u32 result_of(s64 result)
{
	if (result >= 0)
		return 0;
	return result > -(NSAGENT_RESULTS - 1) ? -result : NSAGENT_RESULTS - 1;
}

INLINE void count_kind(u32 syscall, u32 kind, u64 asked, u32 result)
{
	u32 element = (syscall * NSAGENT_KINDS + kind) * NSAGENT_RESULTS + result;
	if (!asked)
		return;
	u64 *value = map_lookup(NAMESPACE_SYSCALLS, &element);
	if (value)
		__sync_fetch_and_add(value, 1);
}

INLINE void count_call(u32 syscall, u64 flags, u32 result)
{
	u32 element = syscall * NSAGENT_RESULTS + result;
	u64 *value = map_lookup(SYSCALLS, &element);
	if (value)
		__sync_fetch_and_add(value, 1);
	if (!(flags & CLONE_NEW))
		return;
	count_kind(syscall, NSAGENT_CGROUP, flags & CLONE_NEWCGROUP, result);
	count_kind(syscall, NSAGENT_IPC, flags & CLONE_NEWIPC, result);
	count_kind(syscall, NSAGENT_MNT, flags & CLONE_NEWNS, result);
	count_kind(syscall, NSAGENT_NET, flags & CLONE_NEWNET, result);
	count_kind(syscall, NSAGENT_PID, flags & CLONE_NEWPID, result);
	count_kind(syscall, NSAGENT_TIME, flags & CLONE_NEWTIME, result);
	count_kind(syscall, NSAGENT_USER, flags & CLONE_NEWUSER, result);
	count_kind(syscall, NSAGENT_UTS, flags & CLONE_NEWUTS, result);
}

#define ARGUMENTS_MASK (NSAGENT_ARGUMENTS_BYTES - 1)

/* argv of the current process, as far as it is in memory: no fault is taken here. */
INLINE void copy_arguments(struct task_struct *task, struct nsagent_event *event)
{
	u64 mm = (u64)READ(struct task_struct, task, mm);
	if (!mm)
		return;
	u64 start = READ(struct mm_struct, mm, arg_start), bytes = READ(struct mm_struct, mm, arg_end) - start;
	if (bytes > ARGUMENTS_MASK)
		bytes = ARGUMENTS_MASK;
	if (!read_user(event->arguments, bytes & ARGUMENTS_MASK, (void *)start))
		event->arguments_bytes = bytes;
}

/* The end of a call: from these namespaces to those. */
INLINE void tell(struct task_struct *task, struct nsagent_task *mine, s64 result, u64 cgroup, u64 cred, u64 *before,
		 u64 *after)
{
	struct nsagent_event *event = new_event(task, cgroup, cred);
	if (!event)
		return;
	event->latency_ns = event->time_ns - mine->entered_ns;
	event->flags = mine->flags;
	event->result = result;
	event->target = mine->target;
	event->argument = mine->argument;
	event->syscall = mine->call - 1;
	event->child = mine->child;
	copy_namespaces(event->before, before);
	copy_namespaces(event->after, after);
	copy_arguments(task, event);
	send(event);
}

/* The child's return from clone, or that of a call that began before the programs were attached, has no open call. */
INLINE struct nsagent_task *open_call(struct task_struct *task, s64 result)
{
	struct nsagent_task *mine = task_storage(TASKS, task, 0, 0);
	if (!mine || !mine->call)
		return NULL;
	if (result != -ERESTARTNOINTR)
		return mine;
	mine->call = 0;
	return NULL;
}

/* The end of clone, clone3, fork and vfork: which one it is, the entry has noted. */
INLINE int leave_a_fork(s64 result)
{
	struct task_struct *task = current_task();
	struct nsagent_task *mine = open_call(task, result);
	if (!mine)
		return 0;
	u64 changed = mine->child >> 32;

	count_call(mine->call - 1, mine->flags, result_of(result));
	if (wanted(task, (mine->flags | changed) & CLONE_NEW, changed, result)) {
		struct nsagent_context own = {};
		read_namespaces(task, &own);
		if (!changed)
			copy_namespaces(mine->ns, own.ns);
		mine->cred = 0;
		tell(task, mine, result, own.cgroup, (u64)READ(struct task_struct, task, real_cred), own.ns, mine->ns);
	}
	mine->call = 0;
	return 0;
}

/* Whether the task has used anything since the last settle. Nothing waits for IO without a voluntary switch. */
INLINE u64 has_gained(struct task_struct *task, struct nsagent_task *mine)
{
	u64 gained = mine->state ^ 2;
#define GAINED(counter, value)                                                                                         \
	if (counter != NSAGENT_IO_DELAY_NS)                                                                            \
		gained |= mine->last[counter] ^ (value);
	EACH_COUNTER(GAINED, task)
	return gained;
}

/* The end of unshare and setns. */
INLINE int leave_a_change(s64 result)
{
	struct task_struct *task = current_task();
	struct nsproxy *proxy = task->nsproxy;
	struct nsagent_task *mine = open_call(task, result);
	if (!mine || !proxy)
		return 0;
	if (!result && mine->call == NSAGENT_UNSHARE + 1)
		note_births(task, mine->flags);

	struct nsagent_context now = {};
	u64 was = mine->row, cred = (u64)READ(struct task_struct, task, real_cred);
	struct nsagent_row *row = row_at(was);
	struct nsagent_context *old = was & NSAGENT_WAITING ? &mine->context : was && row ? &row->context : NULL;
	read_proxy(proxy, now.ns);
	/* An address comes back: who asks for another user namespace may have new credentials where its last ones were. */
	if (cred == mine->cred && !(mine->flags & CLONE_NEWUSER))
		now.ns[NSAGENT_USER] = mine->ns[NSAGENT_USER];
	else
		now.ns[NSAGENT_USER] = user_namespace_behind(cred);
#ifdef HAVE_bpf_iter_task_new /* else the threads of a process that moved learn of it at their next settle: see note_threads() */
	if (old)
		now.cgroup = old->cgroup;
	else
#endif
		now.cgroup = cgroup_id(cgroup_of(task));
	if (!result) {
		/* What it has used up to here, it used in the old context. Where that is nothing, the new one waits for its first
		 * use: a row costs more than the call itself, and as the scheduler adds to sum_exec_runtime at ticks and switches,
		 * most namespaces made in a loop never need one. */
		if (task->pid != task->tgid || has_gained(task, mine)) {
			settle(task, mine, row_for(mine), AT_CALL);
		} else if (old ? !same(&now, old) : read_pid_namespace(task, &now)) {
			if (old)
				now.ns[NSAGENT_PID] = old->ns[NSAGENT_PID];
			__sync_lock_test_and_set(&mine->row, NSAGENT_WAITING);
			mine->context = now;
			__sync_lock_test_and_set(&mine->row, NSAGENT_WAITING | ++mine->changes);
		}
	}
	turn_to_children(proxy, now.ns);
	u64 changed = forget(differences(mine->ns, now.ns));
	count_call(mine->call - 1, mine->flags, result_of(result));
	if (wanted(task, (mine->flags | changed) & CLONE_NEW, changed, result))
		tell(task, mine, result, now.cgroup, cred, mine->ns, now.ns);
	copy_namespaces(mine->ns, now.ns);
	mine->cred = cred;
	mine->call = 0;
	return 0;
}

/* A call's own arguments; clone3's flags are in the caller's memory: birth replaces them by the kernel's own. */
INLINE u64 clone3_flags(u64 arguments)
{
	u64 flags = 0;
	read_user(&flags, sizeof(flags), (void *)arguments);
	return flags;
}

/* No settle here: the remembered row is the one before the call, and what the task has used since goes to it at the end. */
INLINE struct nsagent_task *enter_a_change(struct task_struct *task, u32 syscall, u64 flags, u64 argument)
{
	struct nsagent_task *mine = storage_of(task);
	if (!mine)
		return NULL;
	struct nsproxy *proxy = task->nsproxy;
	open_a_call(mine, syscall, flags, argument);
	if (!mine->cred && proxy) {
		u64 cred = (u64)READ(struct task_struct, task, real_cred);
		read_proxy(proxy, mine->ns);
		turn_to_children(proxy, mine->ns);
		mine->ns[NSAGENT_USER] = user_namespace_behind(cred);
		mine->cred = cred;
	}
	return mine;
}

INLINE int enter_a_setns(u32 descriptor, u32 nstype)
{
	struct task_struct *task = current_task();
	struct nsagent_task *mine = enter_a_change(task, NSAGENT_SETNS, nstype, descriptor);
	u32 type = 0;
	if (!mine)
		return 0;
	mine->target = namespace_behind(task, descriptor, &type);
	if (!nstype)
		mine->flags = type; /* nstype 0 asks for whatever the descriptor is */
	return 0;
}

/*
 * By the tracepoints syscalls:sys_enter_* and sys_exit_*: they are everywhere, and slow every system call of the node.
 * They return 1: after a 0, perf_trace_run_bpf_submit() of kernel/events/core.c hides the call from all who count or record
 * the same tracepoint by perf.
 */
#define PASS_ON(call)                                                                                                  \
	({                                                                                                             \
		call;                                                                                                  \
		return 1;                                                                                              \
	})

int enter_clone(struct entry *ctx)
{
	PASS_ON(enter_a_fork(NSAGENT_CLONE, ctx->argument[0]));
}

int enter_clone3(struct entry *ctx)
{
	PASS_ON(enter_a_fork(NSAGENT_CLONE3, clone3_flags(ctx->argument[0])));
}

int enter_fork(struct entry *ctx)
{
	PASS_ON(enter_a_fork(NSAGENT_FORK, 0));
}

int enter_vfork(struct entry *ctx)
{
	PASS_ON(enter_a_fork(NSAGENT_VFORK, 0));
}

int enter_unshare(struct entry *ctx)
{
	PASS_ON(enter_a_change(current_task(), NSAGENT_UNSHARE, ctx->argument[0], 0));
}

int enter_setns(struct entry *ctx)
{
	PASS_ON(enter_a_setns(ctx->argument[0], ctx->argument[1]));
}

int leave_fork(struct leave *ctx)
{
	PASS_ON(leave_a_fork(ctx->result));
}

int leave_change(struct leave *ctx)
{
	PASS_ON(leave_a_change(ctx->result));
}

/*
 * By fentry and fexit of the calls' own functions (__x64_sys_unshare(regs), ...): nothing is added to any other call.
 * Not by kretprobes: they have a fixed number of instances, and a vfork keeps one until its child execs.
 */
#ifdef HAVE_pt_regs_di
#define FIRST(ctx) (((struct pt_regs *)(ctx)[0])->di)
#define SECOND(ctx) (((struct pt_regs *)(ctx)[0])->si)
#else
#define FIRST(ctx) (((struct pt_regs *)(ctx)[0])->regs[0])
#define SECOND(ctx) (((struct pt_regs *)(ctx)[0])->regs[1])
#endif
#if defined(HAVE_pt_regs_di) || defined(HAVE_pt_regs_regs)

int fentry_clone(u64 *ctx)
{
	return enter_a_fork(NSAGENT_CLONE, FIRST(ctx));
}

int fentry_clone3(u64 *ctx)
{
	return enter_a_fork(NSAGENT_CLONE3, clone3_flags(FIRST(ctx)));
}

int fentry_fork(u64 *ctx)
{
	return enter_a_fork(NSAGENT_FORK, 0);
}

int fentry_vfork(u64 *ctx)
{
	return enter_a_fork(NSAGENT_VFORK, 0);
}

int fentry_unshare(u64 *ctx)
{
	enter_a_change(current_task(), NSAGENT_UNSHARE, FIRST(ctx), 0);
	return 0;
}

int fentry_setns(u64 *ctx)
{
	return enter_a_setns(FIRST(ctx), SECOND(ctx));
}

int fexit_fork(u64 *ctx)
{
	return leave_a_fork(ctx[1]);
}

int fexit_change(u64 *ctx)
{
	return leave_a_change(ctx[1]);
}

#endif
