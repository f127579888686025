// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * OOM kills, counted in the row of the victim's context: they outlive victim and cgroup, as all that a row holds.
 * mark_victim(task, uid); without commit 72ba14deb40a ("mm: update mark_victim tracepoints fields") (in v6.9, and in stable
 * ones) mark_victim(pid). It fires under oom_lock, while the victim still has its mm (__oom_kill_process() of mm/oom_kill.c);
 * but also for a task that was dying anyway, and again for threads of a victim that ask for memory on their way out
 * (task_will_free_mem()). Whether it was a kill the memory cgroup's own count tells.
 */
#include "common.h"

#if defined(NSAGENT_memory_cgrp_id) && defined(NSAGENT_MEMCG_OOM_KILL) && defined(HAVE_mem_cgroup_memory_events_local)

/* The task of a pid of the initial namespace, as find_pid_ns() finds it: in an xarray, 64 slots a node, where an entry that ends
 * in binary 10 is a node (include/linux/xarray.h). 0 if there is none. */
#define MAX_NODES 4 /* PID_MAX_LIMIT is 2^22 */
INLINE u64 task_of(u32 number)
{
#if defined(HAVE_xa_node_slots) && defined(HAVE_task_struct_pid_links)
	u64 pid = (u64)READ(struct task_struct, current_task(), thread_pid);
	u64 first = (u64)READ(struct upid, pid + OFFSET(struct pid, numbers), ns);
	u64 entry = (u64)READ(struct pid_namespace, first, idr.idr_rt.xa_head);
	for (int depth = 0; depth < MAX_NODES && (entry & 3) == 2; depth++) {
		u64 node = entry - 2, slot = number >> READ(struct xa_node, node, shift) & 63;
		entry = (u64)READ(struct xa_node, node, slots[slot]);
	}
	u64 link = entry && !(entry & 3) ? READ(struct pid, entry, tasks[0]) : 0; /* PIDTYPE_PID */
	return link ? link - OFFSET(struct task_struct, pid_links) : 0;
#else
	return 0;
#endif
}

/* The memory cgroup a task's memory is charged to: that of its mm's owner, whichever thread was chosen. */
INLINE u64 memory_of(u64 task)
{
	u64 mm = (u64)READ(struct task_struct, task, mm);
	u64 owner = mm ? (u64)READ(struct mm_struct, mm, owner) : 0;
	u64 set = (u64)READ(struct task_struct, owner ? owner : task, cgroups);
	return (u64)READ(struct css_set, set, subsys[NSAGENT_memory_cgrp_id]) - OFFSET(struct mem_cgroup, css);
}

/* How often the kernel has killed in a memory cgroup, without those below it, since this was asked last. */
INLINE u64 new_kills(u64 memory)
{
	u64 state = memory + OFFSET(struct mem_cgroup, css);
	u64 id = cgroup_id((u64)READ(struct cgroup_subsys_state, state, cgroup));
	u64 now = READ(struct mem_cgroup, memory, memory_events_local[NSAGENT_MEMCG_OOM_KILL].counter);
	u64 *last = map_lookup(OOM_KILLS, &id);
	u64 kills = last ? now - *last : now != 0; /* the first that is seen: those before the load are nobody's */
	map_update(OOM_KILLS, &id, &now, 0);
	return kills;
}

/* The same context as read_context() of common.h reads, of a task that may be known by its address alone. */
INLINE void read_victim(u64 task, struct nsagent_context *to)
{
	u64 proxy = (u64)READ(struct task_struct, task, nsproxy);
	to->cgroup = cgroup_id(cgroup_of((struct task_struct *)task));
	to->ns[NSAGENT_USER] = identify_at(NSAGENT_USER, user_namespace_of((struct task_struct *)task) +
								 OFFSET(struct user_namespace, ns));
	read_pid_namespace((struct task_struct *)task, to);
	if (!proxy)
		return;
#define READ_NAMESPACE(kind, member, type)                                                                             \
	to->ns[kind] = identify_at(kind, (u64)READ(struct nsproxy, proxy, member) + OFFSET(struct type, ns));
	READ_NAMESPACE(NSAGENT_CGROUP, cgroup_ns, cgroup_namespace)
	READ_NAMESPACE(NSAGENT_IPC, ipc_ns, ipc_namespace)
	READ_NAMESPACE(NSAGENT_MNT, mnt_ns, mnt_namespace)
	READ_NAMESPACE(NSAGENT_NET, net_ns, net)
	READ_NAMESPACE(NSAGENT_TIME, time_ns, time_namespace)
	READ_NAMESPACE(NSAGENT_UTS, uts_ns, uts_namespace)
}

int on_oom_kill(u64 *ctx)
{
#ifdef HAVE_mark_victim_task
	u64 task = ctx[0];
#else
	u64 task = task_of(ctx[0]);
#endif
	u64 memory = task ? memory_of(task) : 0, kills = memory ? new_kills(memory) : 1;
	if (!kills)
		return 0;
	struct nsagent_context context = {};
	if (task)
		read_victim(task, &context);
	struct nsagent_row *row = row_at(task ? row_of(&context) : 0);
	if (!row)
		return 0;
#ifdef HAVE_mem_cgroup_oom_lock
	/* Held by whoever looks for a victim in this cgroup or in one above it, because of a limit: mem_cgroup_oom_trylock(). */
	if (memory && READ(struct mem_cgroup, memory, oom_lock)) {
		__sync_fetch_and_add(&row->oom_kills_memcg, kills);
		return 0;
	}
#endif
	__sync_fetch_and_add(&row->oom_kills_unknown, kills);
	return 0;
}
#endif
