/* SPDX-License-Identifier: GPL-2.0 OR Apache-2.0 */
/*
 * Events: which are wanted, and how one is written. A full ring buffer loses the event and counts it; the kernel never waits.
 */
#ifndef NSAGENT_EVENT_H
#define NSAGENT_EVENT_H

#include "common.h"

/* All bits where two words differ, else none; without a branch, each of which would double the states the verifier walks. */
INLINE u64 differ(u64 a, u64 b)
{
	u64 bits = a ^ b, negative = -bits;
	asm volatile("" : "+r"(negative)); /* the compiler would see a comparison, and make it a branch */
	return -((bits | negative) >> 63);
}

/* The kinds in which two contexts differ, as CLONE_NEW* flags. */
INLINE u64 differences(u64 *a, u64 *b)
{
	u64 flags = 0;
#define DIFFERENCE(kind, flag) flags |= flag & differ(a[kind], b[kind]);
	DIFFERENCE(NSAGENT_CGROUP, CLONE_NEWCGROUP)
	DIFFERENCE(NSAGENT_IPC, CLONE_NEWIPC)
	DIFFERENCE(NSAGENT_MNT, CLONE_NEWNS)
	DIFFERENCE(NSAGENT_NET, CLONE_NEWNET)
	DIFFERENCE(NSAGENT_PID, CLONE_NEWPID)
	DIFFERENCE(NSAGENT_TIME, CLONE_NEWTIME)
	DIFFERENCE(NSAGENT_USER, CLONE_NEWUSER)
	DIFFERENCE(NSAGENT_UTS, CLONE_NEWUTS)
	return flags;
}

/* Whether `task` is or descends from the process whose tree is asked for. */
#define MAX_DEPTH 16
INLINE int descends(struct task_struct *task, u32 from)
{
	u64 at = (u64)task;
	for (int depth = 0; depth < MAX_DEPTH && at; depth++) {
		u32 pid = READ(struct task_struct, at, tgid);
		if (pid == from)
			return 1;
		if (pid <= 1)
			return 0;
		at = (u64)READ(struct task_struct, at, real_parent);
	}
	return 0;
}

/* Whether the accounting cgroup of `task` is or lies below the one asked for. */
INLINE int lies_below(struct task_struct *task, u64 cgroup)
{
	u64 css = cgroup_of(task) + OFFSET(struct cgroup, self);
	for (int depth = 0; depth < MAX_DEPTH && css; depth++) {
		if (cgroup_id((u64)READ(struct cgroup_subsys_state, css, cgroup)) == cgroup)
			return 1;
		css = (u64)READ(struct cgroup_subsys_state, css, parent);
	}
	return 0;
}

/* The filters of the one reader. `kinds`: what the call asked for or changed. */
INLINE int wanted(struct task_struct *task, u64 kinds, u64 changed, s64 result)
{
	u64 value = configured(NSAGENT_CONFIG_KINDS);
	if (value && !(kinds & value))
		return 0;
	if (result >= 0 && configured(NSAGENT_CONFIG_FAILED))
		return 0;
	if (result >= 0 && !changed && !configured(NSAGENT_CONFIG_ALL))
		return 0;
	value = configured(NSAGENT_CONFIG_PID);
	if (value && !descends(task, value))
		return 0;
	value = configured(NSAGENT_CONFIG_CGROUP);
	return !value || lies_below(task, value);
}

/* At most so many events a second from one cgroup: what is cut is counted. */
INLINE int within_rate(u64 cgroup, u64 now)
{
	u64 limit = configured(NSAGENT_CONFIG_RATE);
	if (!limit)
		return 1;
	struct nsagent_rate *rate = map_lookup(RATES, &cgroup), first = {now, 1};
	if (!rate) {
		map_update(RATES, &cgroup, &first, 0);
		return 1;
	}
	if (now - rate->since_ns >= 1000000000ULL) {
		rate->since_ns = now;
		rate->events = 0;
	}
	if (__sync_fetch_and_add(&rate->events, 1) < limit)
		return 1;
	count(NSAGENT_STAT_EVENTS_LIMITED);
	return 0;
}

/* The two lie side by side, but where a kernel shuffles its structs (CONFIG_RANDSTRUCT): one probe read of 25 ns less. */
INLINE u64 tgid_and_parent(u64 task, u32 *tgid)
{
	u64 words[3], between = OFFSET(struct task_struct, real_parent) - OFFSET(struct task_struct, pid);
	if (between == 16 && OFFSET(struct task_struct, tgid) == OFFSET(struct task_struct, pid) + 4) {
		read_kernel(words, sizeof(words), (void *)(task + OFFSET(struct task_struct, pid)));
		*tgid = words[0] >> 32;
		return words[2];
	}
	*tgid = READ(struct task_struct, task, tgid);
	return (u64)READ(struct task_struct, task, real_parent);
}

/* Reserve an event and fill in who it is about, or count why there is none. */
INLINE struct nsagent_event *new_event(struct task_struct *task, u64 cgroup, u64 cred)
{
	u64 now = boot_ns();
	if (!within_rate(cgroup, now))
		return NULL;
	struct nsagent_event *event = ring_reserve(EVENTS, sizeof(*event), 0);
	if (!event) {
		count(NSAGENT_STAT_EVENTS_LOST);
		return NULL;
	}
	event->time_ns = now;
	event->cgroup = cgroup;
	event->pid = task->tgid;
	event->tid = task->pid;
	event->uid = READ(struct cred, cred, uid.val);
	__builtin_memcpy(event->comm, task->comm, sizeof(event->comm));
	event->arguments_bytes = 0;
	u64 at = (u64)READ(struct task_struct, task, real_parent);
#define ANCESTOR(index)                                                                                                \
	read_kernel(event->ancestor_comm[index], 16, (void *)(at + OFFSET(struct task_struct, comm)));                 \
	at = tgid_and_parent(at, &event->ancestor[index]);
	ANCESTOR(0)
	ANCESTOR(1)
	ANCESTOR(2)
	ANCESTOR(3)
	return event;
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

INLINE void send(struct nsagent_event *event)
{
	ring_submit(event, 0);
	count(NSAGENT_STAT_EVENTS);
}

/* Have the storage of a task remember its namespaces and those for its children, where it has no row that does. */
INLINE void remember(struct task_struct *task, struct nsagent_task *mine, struct nsagent_context *found)
{
	u64 proxy = (u64)READ(struct task_struct, task, nsproxy);
	u64 pid = (u64)READ(struct nsproxy, proxy, pid_ns_for_children);
	u64 time = (u64)READ(struct nsproxy, proxy, time_ns_for_children);
	copy_namespaces(mine->ns, found->ns);
	mine->ns[NSAGENT_PID] = identify_at(NSAGENT_PID, pid + OFFSET(struct pid_namespace, ns));
	mine->ns[NSAGENT_TIME] = identify_at(NSAGENT_TIME, time + OFFSET(struct time_namespace, ns));
	mine->cred = (u64)READ(struct task_struct, task, real_cred);
}

/*
 * A settle outside any traced call found other namespaces than were remembered: a call that passes by the hooks (int 0x80 on
 * x86-64 passes by the syscalls: tracepoints). The change is told late, but it is told. Who has no row, because all are taken, is
 * remembered as of its birth, its last traced call or the last such settle. `entered_ns`: of its last call before the settle.
 */
INLINE void note_unseen(struct task_struct *task, struct nsagent_task *mine, u64 was, u64 now,
			struct nsagent_context *found, u64 entered_ns)
{
	struct nsagent_row *row = row_at(was);
	if ((was && was == now) || (!was && !mine->cred) || !row || !found->cgroup || !configured(NSAGENT_CONFIG_TRACE))
		return;
	struct nsagent_context before;
	if (was) {
		before = row->context;
	} else {
		copy_namespaces(before.ns, mine->ns);
		/* Those are for its children: an own pid namespace never changes, a time namespace only at exec. */
		before.ns[NSAGENT_PID] = found->ns[NSAGENT_PID];
		before.ns[NSAGENT_TIME] = found->ns[NSAGENT_TIME];
	}
	u64 changed = forget(differences(before.ns, found->ns));
	if (!changed || mine->call || mine->entered_ns != entered_ns)
		return;
	count(NSAGENT_STAT_UNSEEN);
	mine->cred = 0;
	if (!now)
		remember(task, mine, found);
	if (!wanted(task, changed, changed, 0))
		return;
	struct nsagent_event *event = new_event(task, found->cgroup, (u64)READ(struct task_struct, task, real_cred));
	if (!event)
		return;
	event->latency_ns = event->argument = event->target = 0;
	event->flags = changed;
	event->result = 0;
	event->syscall = NSAGENT_SYSCALLS;
	event->child = 0;
	copy_namespaces(event->before, before.ns);
	copy_namespaces(event->after, found->ns);
	send(event);
}

#endif
