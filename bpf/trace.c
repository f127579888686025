// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * Tracing: clone, clone3, fork, vfork, unshare and setns, each with its flags, its result, and the namespaces before and
 * after. The truth about a change is those namespaces, not the caller's arguments. Every call is counted; an event is
 * written for a change and for a failure, and for every call while somebody asks for all.
 */
#include "common.h"

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
#define ERESTARTNOINTR 513 /* include/linux/errno.h: the kernel restarts the call, the caller never sees this end of it */
#define NSFS_MAGIC 0x6e736673

INLINE void for_children(struct task_struct *task, u64 *pid, u64 *time)
{
	struct nsproxy *proxy = task->nsproxy;
	*pid = *time = 0;
	if (!proxy)
		return;
	*pid = IDENTIFY(NSAGENT_PID, proxy->pid_ns_for_children->ns);
	*time = IDENTIFY(NSAGENT_TIME, proxy->time_ns_for_children->ns);
}

/* The namespace behind a descriptor of the task: an nsfs inode keeps its ns_common in i_private. 0 where it is none. */
INLINE u64 namespace_behind(struct task_struct *task, u32 descriptor, u32 *type)
{
	struct files_struct *files = task->files;
	u64 table, slot = 0, file = 0, inode = 0, super = 0, magic = 0, common = 0;
	u32 size = 0, inum = 0;
	if (!files)
		return 0;
	table = (u64)files->fdt;
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
	return inum;
#endif
}

INLINE int enter(u32 syscall, u64 flags, u64 argument)
{
	struct task_struct *task = current_task();
	struct nsagent_task *mine = storage_of(task);
	if (!mine)
		return 0;
	mine->flags = flags;
	mine->argument = argument;
	mine->target = 0;
	mine->child = 0;
	mine->entered_ns = boot_ns();
	if (syscall == NSAGENT_UNSHARE || syscall == NSAGENT_SETNS) {
		settle(task, mine, AT_CALL);
		mine->before = mine->row;
		for_children(task, &mine->pid_for_children, &mine->time_for_children);
		if (syscall == NSAGENT_SETNS) {
			u32 type = 0;
			mine->target = namespace_behind(task, argument, &type);
			if (!flags)
				mine->flags = type; /* nstype 0 asks for whatever the descriptor is */
		}
	}
	mine->call = syscall + 1;
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

INLINE void copy_namespaces(u64 *to, u64 *from)
{
	to[NSAGENT_CGROUP] = from[NSAGENT_CGROUP];
	to[NSAGENT_IPC] = from[NSAGENT_IPC];
	to[NSAGENT_MNT] = from[NSAGENT_MNT];
	to[NSAGENT_NET] = from[NSAGENT_NET];
	to[NSAGENT_PID] = from[NSAGENT_PID];
	to[NSAGENT_TIME] = from[NSAGENT_TIME];
	to[NSAGENT_USER] = from[NSAGENT_USER];
	to[NSAGENT_UTS] = from[NSAGENT_UTS];
}

INLINE int leave(u32 syscall, s64 result)
{
	struct task_struct *task = current_task();
	struct nsagent_task *mine = task_storage(TASKS, task, 0, 0);
	if (!mine || mine->call != syscall + 1)
		return 0; /* the child's return from clone, or a call that began before the programs were attached */
	u64 flags = mine->flags, child = mine->child, changed = 0, pid = 0, time = 0;
	int forks = syscall < NSAGENT_UNSHARE;

	mine->call = 0;
	if (result == -ERESTARTNOINTR)
		return 0;
	if (!forks) {
		if (!result && syscall == NSAGENT_UNSHARE)
			note_births(task, flags);
		settle(task, mine, AT_CALL);
		for_children(task, &pid, &time);
		changed = mine->row != mine->before || pid != mine->pid_for_children || time != mine->time_for_children;
	} else {
		changed = child >> 32;
	}
	count_call(syscall, flags, result_of(result));
	if (!changed && result >= 0 && !configured(NSAGENT_CONFIG_ALL))
		return 0;

	struct nsagent_row *now = row_at(mine->row), *before = row_at(forks ? mine->row : mine->before);
	if (!now || !before)
		return 0;
	struct nsagent_event *event = ring_reserve(EVENTS, sizeof(*event), 0);
	if (!event) {
		count(NSAGENT_STAT_EVENTS_LOST);
		if (changed && forks)
			map_delete(CHILDREN, &(u64){(u32)child});
		return 0;
	}
	event->time_ns = boot_ns();
	event->latency_ns = event->time_ns - mine->entered_ns;
	event->flags = flags;
	event->result = result;
	event->cgroup = now->context.cgroup;
	event->target = mine->target;
	event->argument = mine->argument;
	event->syscall = syscall;
	event->pid = task->tgid;
	event->tid = task->pid;
	event->parent = task->real_parent->tgid;
	event->child = child;
	event->uid = current_uid_gid();
	__builtin_memcpy(event->comm, task->comm, sizeof(event->comm));
	copy_namespaces(event->before, before->context.ns);
	copy_namespaces(event->after, now->context.ns);
	if (!forks) {
		event->before[NSAGENT_PID] = mine->pid_for_children;
		event->before[NSAGENT_TIME] = mine->time_for_children;
		event->after[NSAGENT_PID] = pid;
		event->after[NSAGENT_TIME] = time;
	} else if (changed) {
		u64 key = (u32)child;
		struct nsagent_context *made = map_lookup(CHILDREN, &key);
		if (made)
			copy_namespaces(event->after, made->ns);
		map_delete(CHILDREN, &key);
	}
	ring_submit(event, 0);
	count(NSAGENT_STAT_EVENTS);
	return 0;
}

int enter_clone(struct entry *ctx)
{
	return enter(NSAGENT_CLONE, ctx->argument[0], 0);
}

/* Its flags are in the caller's memory; birth replaces them by the kernel's own, a failed call keeps these. */
int enter_clone3(struct entry *ctx)
{
	u64 flags = 0;
	read_user(&flags, sizeof(flags), (void *)ctx->argument[0]);
	return enter(NSAGENT_CLONE3, flags, 0);
}

int enter_fork(struct entry *ctx)
{
	return enter(NSAGENT_FORK, 0, 0);
}

int enter_vfork(struct entry *ctx)
{
	return enter(NSAGENT_VFORK, 0, 0);
}

int enter_unshare(struct entry *ctx)
{
	return enter(NSAGENT_UNSHARE, ctx->argument[0], 0);
}

int enter_setns(struct entry *ctx)
{
	return enter(NSAGENT_SETNS, (u32)ctx->argument[1], (u32)ctx->argument[0]);
}

int leave_clone(struct leave *ctx)
{
	return leave(NSAGENT_CLONE, ctx->result);
}

int leave_clone3(struct leave *ctx)
{
	return leave(NSAGENT_CLONE3, ctx->result);
}

int leave_fork(struct leave *ctx)
{
	return leave(NSAGENT_FORK, ctx->result);
}

int leave_vfork(struct leave *ctx)
{
	return leave(NSAGENT_VFORK, ctx->result);
}

int leave_unshare(struct leave *ctx)
{
	return leave(NSAGENT_UNSHARE, ctx->result);
}

int leave_setns(struct leave *ctx)
{
	return leave(NSAGENT_SETNS, ctx->result);
}
