// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The fast lane: one walk of bpf_iter/cgroup through a hierarchy writes what its controllers hold of every cgroup, which takes a
 * microsecond each where opening and reading one file takes ten, takes no kernfs lock and flushes no statistics.
 * Each number is the one that the file in the comment shows; on v2 cpu.stat's times are not here, because they need a flush.
 */
#include "common.h"

#define PRESENT(to, bit) ((to)->present |= 1ULL << (bit))

/* kernel/sched/cpuacct.c, cpuacct_cpuusage_read(): cpuacct.usage, usage_user, usage_sys */
enum { CPUTIME_USER, CPUTIME_NICE, CPUTIME_SYSTEM, CPUTIME_SOFTIRQ, CPUTIME_IRQ, CPUTIMES };

INLINE void read_cpuacct(u64 css, struct nsagent_lane *to)
{
#if defined(HAVE_cpuacct_cpuusage) && defined(HAVE_cpuacct_cpustat)
	u64 account = css - OFFSET(struct cpuacct, css), cpus = configured(NSAGENT_CONFIG_CPUS);
	u64 usage = (u64)READ(struct cpuacct, account, cpuusage), modes = (u64)READ(struct cpuacct, account, cpustat);
	if (!cpus)
		return;
	for (u64 cpu = 0; cpu < NSAGENT_MAX_CPUS && cpu < cpus; cpu++) {
		HIDE(cpu);
		u32 key = cpu; /* a copy: see read_memory() of account.c */
		u64 *offset = map_lookup(CPU_OFFSETS, &key), used = 0, mode[CPUTIMES] = {};
		if (!offset)
			break;
		read_kernel(&used, sizeof(used), (void *)(usage + *offset));
		read_kernel(mode, sizeof(mode), (void *)(modes + *offset));
		to->usage_ns += used;
		to->user_ns += mode[CPUTIME_USER] + mode[CPUTIME_NICE];
		to->system_ns += mode[CPUTIME_SYSTEM] + mode[CPUTIME_IRQ] + mode[CPUTIME_SOFTIRQ];
	}
	PRESENT(to, NSAGENT_LANE_CPUACCT);
#endif
}

/* kernel/sched/core.c: cpu.stat, cpu.cfs_quota_us, cpu.cfs_period_us, cpu.shares; cpu.max, cpu.weight */
INLINE void read_cpu(u64 css, struct nsagent_lane *to)
{
	u64 group = css - OFFSET(struct task_group, css);
#ifdef HAVE_task_group_shares
	to->shares = READ(struct task_group, group, shares);
	PRESENT(to, NSAGENT_LANE_SHARES);
#endif
#ifdef HAVE_task_group_cfs_bandwidth
	u64 bandwidth = group + OFFSET(struct task_group, cfs_bandwidth);
	to->quota_ns = READ(struct cfs_bandwidth, bandwidth, quota);
	to->period_ns = READ(struct cfs_bandwidth, bandwidth, period);
	to->periods = READ(struct cfs_bandwidth, bandwidth, nr_periods);
	to->throttled_periods = READ(struct cfs_bandwidth, bandwidth, nr_throttled);
	to->throttled_ns = READ(struct cfs_bandwidth, bandwidth, throttled_time);
	PRESENT(to, NSAGENT_LANE_BANDWIDTH);
#ifdef HAVE_cfs_bandwidth_nr_burst
	to->bursts = READ(struct cfs_bandwidth, bandwidth, nr_burst);
	to->burst_ns = READ(struct cfs_bandwidth, bandwidth, burst_time);
	PRESENT(to, NSAGENT_LANE_BURST);
#endif
#endif
}

/* mm/memcontrol.c: memory.current, .peak, .max, .high, .low, .min, .swap.*, .events; mm/memcontrol-v1.c: usage_in_bytes and so on */
INLINE void read_memory_of(u64 css, struct nsagent_lane *to)
{
#if defined(HAVE_mem_cgroup_memory) && defined(HAVE_mem_cgroup_memory_events)
	u64 memory = css - OFFSET(struct mem_cgroup, css), counter = memory + OFFSET(struct mem_cgroup, memory);
	to->memory_pages = READ(struct page_counter, counter, usage);
	to->memory_peak_pages = READ(struct page_counter, counter, watermark);
	to->memory_max_pages = READ(struct page_counter, counter, max);
	to->memory_high_pages = READ(struct page_counter, counter, high);
	to->memory_low_pages = READ(struct page_counter, counter, low);
	to->memory_min_pages = READ(struct page_counter, counter, min);
	to->memory_failures = READ(struct page_counter, counter, failcnt);
	counter = memory + OFFSET(struct mem_cgroup, swap); /* of v1: memsw, memory and swap */
	to->swap_pages = READ(struct page_counter, counter, usage);
	to->swap_max_pages = READ(struct page_counter, counter, max);
	to->swap_failures = READ(struct page_counter, counter, failcnt);
	read_kernel(to->memory_events, sizeof(to->memory_events),
		    (void *)(memory + OFFSET(struct mem_cgroup, memory_events)));
	PRESENT(to, NSAGENT_LANE_MEMORY);
#ifdef HAVE_mem_cgroup_kmem
	to->kernel_pages = READ(struct page_counter, memory + OFFSET(struct mem_cgroup, kmem), usage);
	PRESENT(to, NSAGENT_LANE_KMEM);
#endif
#ifdef HAVE_mem_cgroup_soft_limit
	to->soft_limit_pages = READ(struct mem_cgroup, memory, soft_limit);
	PRESENT(to, NSAGENT_LANE_SOFT_LIMIT);
#endif
#endif
}

/* kernel/cgroup/pids.c: pids.current, .max, .peak, .events */
INLINE void read_pids(u64 css, struct nsagent_lane *to)
{
#if defined(HAVE_pids_cgroup_counter) && defined(HAVE_pids_cgroup_limit)
	u64 pids = css - OFFSET(struct pids_cgroup, css);
	to->pids = READ(struct pids_cgroup, pids, counter);
	to->pids_limit = READ(struct pids_cgroup, pids, limit);
	PRESENT(to, NSAGENT_LANE_PIDS);
#ifdef HAVE_pids_cgroup_watermark
	to->pids_peak = READ(struct pids_cgroup, pids, watermark);
	PRESENT(to, NSAGENT_LANE_PIDS_PEAK);
#endif
	/* Hierarchical ones, and those of v1, since commit 73e75e6fc352 ("cgroup/pids: Separate semantics of pids.events related
	 * to pids.max") (in v6.11) */
#ifdef HAVE_pids_cgroup_events_limit
	to->pids_refused = READ(struct pids_cgroup, pids, events_limit);
	to->pids_refused_here = to->pids_refused;
	PRESENT(to, NSAGENT_LANE_PIDS_EVENTS);
#elif defined(HAVE_pids_cgroup_events) && defined(HAVE_pids_cgroup_events_local)
	to->pids_refused = READ(struct pids_cgroup, pids, events[0]);
	to->pids_refused_here = READ(struct pids_cgroup, pids, events_local[1]);
	PRESENT(to, NSAGENT_LANE_PIDS_EVENTS);
#endif
#endif
}

int on_cgroup(u64 *ctx)
{
	/* Into a map: what a walk prints must fit the reader's buffer, because it cannot be resumed (cgroup_iter_seq_start()). */
	u64 cgroup = ctx[1], *next = config(NSAGENT_CONFIG_LANE);
	if (!cgroup || !next)
		return 0;
	u32 index = __sync_fetch_and_add(next, 1);
	struct nsagent_lane *to = map_lookup(LANE, &index);
	if (!to)
		return 0;
	struct nsagent_lane record = {};
	record.id = cgroup_id(cgroup);
	u64 above = (u64)READ(struct cgroup_subsys_state, cgroup + OFFSET(struct cgroup, self), parent);
	if (above)
		record.parent = cgroup_id((u64)READ(struct cgroup_subsys_state, above, cgroup));
#ifdef HAVE_cgroup_subsys
	u64 css;
#ifdef NSAGENT_cpuacct_cgrp_id
	if ((css = STATE_OF(cgroup, NSAGENT_cpuacct_cgrp_id)))
		read_cpuacct(css, &record);
#endif
#ifdef NSAGENT_cpu_cgrp_id
	if ((css = STATE_OF(cgroup, NSAGENT_cpu_cgrp_id)))
		read_cpu(css, &record);
#endif
#ifdef NSAGENT_memory_cgrp_id
	if ((css = STATE_OF(cgroup, NSAGENT_memory_cgrp_id)))
		read_memory_of(css, &record);
#endif
#ifdef NSAGENT_pids_cgrp_id
	if ((css = STATE_OF(cgroup, NSAGENT_pids_cgrp_id)))
		read_pids(css, &record);
#endif
#endif
	*to = record;
	return 0;
}
