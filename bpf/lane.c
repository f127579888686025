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

/* 7.3 counts them in each css of a cgroup, its own too; 6.18 in the cgroup. */
#ifdef HAVE_cgroup_subsys_state_nr_populated_csets
#define POPULATED_CSETS(cgroup)                                                                                        \
	READ(struct cgroup_subsys_state, (cgroup) + OFFSET(struct cgroup, self), nr_populated_csets)
#elif defined(HAVE_cgroup_nr_populated_csets)
#define POPULATED_CSETS(cgroup) READ(struct cgroup, cgroup, nr_populated_csets)
#endif

/* kernel/cgroup/cgroup.c, cgroup_events_show() and cgroup_stat_show(): cgroup.events, cgroup.stat */
INLINE void read_state(u64 cgroup, struct nsagent_lane *to)
{
#if defined(POPULATED_CSETS) && defined(HAVE_cgroup_nr_populated_domain_children) &&                                   \
	defined(HAVE_cgroup_nr_populated_threaded_children) && defined(HAVE_cgroup_flags) &&                           \
	defined(NSAGENT_CGRP_FROZEN) && defined(HAVE_cgroup_nr_descendants) &&                                         \
	defined(HAVE_cgroup_nr_dying_descendants)
	to->populated = POPULATED_CSETS(cgroup) + READ(struct cgroup, cgroup, nr_populated_domain_children) +
				READ(struct cgroup, cgroup, nr_populated_threaded_children) !=
			0;
	to->frozen = READ(struct cgroup, cgroup, flags) >> NSAGENT_CGRP_FROZEN & 1;
	to->descendants = READ(struct cgroup, cgroup, nr_descendants);
	to->dying_descendants = READ(struct cgroup, cgroup, nr_dying_descendants);
	PRESENT(to, NSAGENT_LANE_STATE);
#endif
}

/*
 * kernel/cgroup/legacy_freezer.c, freezer_read(): freezer.state. Reading the file finds out whether what freezes is frozen by now;
 * of a cgroup that is on its way the file must be read.
 */
INLINE void read_freezer(u64 css, struct nsagent_lane *to)
{
#if defined(HAVE_freezer_state) && defined(NSAGENT_CGROUP_FREEZING) && defined(NSAGENT_CGROUP_FROZEN)
	u32 state = READ(struct freezer, css - OFFSET(struct freezer, css), state);
	to->frozen = (state & NSAGENT_CGROUP_FROZEN) != 0;
	if (to->frozen || !(state & NSAGENT_CGROUP_FREEZING))
		PRESENT(to, NSAGENT_LANE_FREEZER);
#endif
}

/* kernel/cgroup/cpuset.c: cpuset.effective_cpus and _mems, cpuset.cpus.effective and mems.effective */
INLINE void read_cpuset(u64 css, struct nsagent_lane *to)
{
#if defined(HAVE_cpuset_effective_cpus) && defined(HAVE_cpuset_effective_mems)
	u64 set = css - OFFSET(struct cpuset, css), cpus = set + OFFSET(struct cpuset, effective_cpus);
	if (!configured(NSAGENT_CONFIG_CPUS)) /* more than a word has bits */
		return;
#ifdef HAVE_cpumask_elsewhere /* CONFIG_CPUMASK_OFFSTACK */
	cpus = (u64)READ(struct cpuset, set, effective_cpus);
#endif
	if (read_kernel(&to->cpus, sizeof(to->cpus), (void *)cpus) ||
	    read_kernel(&to->memory_nodes, sizeof(to->memory_nodes),
			(void *)(set + OFFSET(struct cpuset, effective_mems))))
		return;
	PRESENT(to, NSAGENT_LANE_CPUSET);
#endif
}

/* block/blk-cgroup.c, blkcg_print_blkgs() and blkcg_print_stat(): io.stat and v1's files list what is in blkg_list */
INLINE void read_io(u64 css, struct nsagent_lane *to)
{
#ifdef HAVE_blkcg_blkg_list
	if (!READ(struct blkcg, css - OFFSET(struct blkcg, css), blkg_list))
		PRESENT(to, NSAGENT_LANE_NO_IO);
#endif
}

#if defined(HAVE_cgroup_psi) && defined(HAVE_psi_group_pcpu) && defined(HAVE_psi_group_total) &&                       \
	defined(HAVE_psi_group_enabled) && defined(HAVE_mutex_owner) && defined(HAVE_psi_group_avgs_lock) &&           \
	defined(HAVE_psi_group_cpu_times_prev) && defined(HAVE_psi_group_cpu_state_mask) &&                            \
	defined(NSAGENT_PSI_NONIDLE) && defined(NSAGENT_PSI_AVGS)
/* The states that the group's totals lack something of: a CPU is in one, or was since the totals were brought up to date. */
INLINE u32 unsummed_states(u64 group)
{
	u64 parts = (u64)READ(struct psi_group, group, pcpu), cpus = configured(NSAGENT_CONFIG_CPUS);
	u32 found = 0, times[NSAGENT_PSI_NONIDLE] = {}, summed[NSAGENT_PSI_NONIDLE] = {};
	if (!cpus || !parts)
		return ~0U;
	for (u64 cpu = 0; cpu < NSAGENT_MAX_CPUS && cpu < cpus; cpu++) {
		HIDE(cpu);
		u32 key = cpu; /* a copy: see read_memory() of account.c */
		u64 *offset = map_lookup(CPU_OFFSETS, &key);
		if (!offset)
			return ~0U;
		u64 part = parts + *offset;
		/* In this order: a state that has ended by the first is in the second by then; see record_times(). */
		found |= READ(struct psi_group_cpu, part, state_mask);
		read_kernel(times, sizeof(times), (void *)(part + OFFSET(struct psi_group_cpu, times)));
		read_kernel(summed, sizeof(summed),
			    (void *)(part + OFFSET(struct psi_group_cpu, times_prev) +
				     NSAGENT_PSI_AVGS * NSAGENT_NR_PSI_STATES * sizeof(u32)));
#pragma unroll
		for (u32 state = 0; state < NSAGENT_PSI_NONIDLE; state++)
			found |= (times[state] != summed[state]) << state;
		found = forget(found);
	}
	return found;
}

/*
 * kernel/sched/psi.c, psi_show(): RESOURCE.pressure. Reading the file adds to the totals what the CPUs have seen since the last
 * time, each CPU weighted by how long it was busy until that very moment. Where there is nothing to add the totals are what the
 * file would say; elsewhere it must be read. Whoever adds holds the lock, from before the CPUs' parts change until the totals have.
 */
INLINE void read_pressure(u64 cgroup, struct nsagent_lane *to)
{
	u64 group = (u64)READ(struct cgroup, cgroup, psi), again[NSAGENT_PSI_NONIDLE] = {},
	    total[NSAGENT_PSI_NONIDLE] = {};
	if (!group || !READ(struct psi_group, group, enabled) || READ(struct psi_group, group, avgs_lock.owner.counter))
		return;
	void *totals = (void *)(group + OFFSET(struct psi_group, total) +
				NSAGENT_PSI_AVGS * (NSAGENT_NR_PSI_STATES - 1) * sizeof(u64));
	u32 unsummed = unsummed_states(group);
	read_kernel(total, sizeof(total), totals);
	if (READ(struct psi_group, group, avgs_lock.owner.counter))
		return;
	read_kernel(again, sizeof(again), totals);
#define TAKE(state, at)                                                                                                \
	to->pressure_ns[at] = total[state];                                                                            \
	unsummed |= (total[state] != again[state]) << (state);
	TAKE(NSAGENT_PSI_CPU_SOME, 0)
	TAKE(NSAGENT_PSI_CPU_FULL, 1)
	TAKE(NSAGENT_PSI_MEM_SOME, 2)
	TAKE(NSAGENT_PSI_MEM_FULL, 3)
	TAKE(NSAGENT_PSI_IO_SOME, 4)
	TAKE(NSAGENT_PSI_IO_FULL, 5)
	if (!(unsummed & (1U << NSAGENT_PSI_CPU_SOME | 1U << NSAGENT_PSI_CPU_FULL)))
		PRESENT(to, NSAGENT_LANE_CPU_PRESSURE);
	if (!(unsummed & (1U << NSAGENT_PSI_MEM_SOME | 1U << NSAGENT_PSI_MEM_FULL)))
		PRESENT(to, NSAGENT_LANE_MEMORY_PRESSURE);
	if (!(unsummed & (1U << NSAGENT_PSI_IO_SOME | 1U << NSAGENT_PSI_IO_FULL)))
		PRESENT(to, NSAGENT_LANE_IO_PRESSURE);
#ifdef NSAGENT_PSI_IRQ_FULL
	TAKE(NSAGENT_PSI_IRQ_FULL, 6)
	if (!(unsummed & 1U << NSAGENT_PSI_IRQ_FULL))
		PRESENT(to, NSAGENT_LANE_IRQ_PRESSURE);
#endif
}
#else
INLINE void read_pressure(u64 cgroup, struct nsagent_lane *to)
{
}
#endif

#define MIX(hash, word)                                                                                                \
	hash = ((hash) ^ (word)) * 0x9e3779b97f4a7c15ULL;                                                              \
	hash ^= hash >> 29

/*
 * mm/memcontrol.c, memory_stat_format(), and memcg1_stat_format(): memory.stat is made of the vmstats, which only a flush moves,
 * and on v1 of those of the cgroup alone and of the limits of all above, too. Which number is which only the kernel knows; but
 * where they have the hash of last time, the file has the bytes of last time. A read of the file flushes where updates wait in
 * numbers; those come in batches, so where none waits it does not flush. Per cgroup since commit 8d59d2214c23 ("mm: memcg: make
 * stats flushing threshold per-memcg") (in v6.8).
 */
#define LIMITS_ABOVE 24
#define CHUNK 24

INLINE void read_memory_stat(u64 css, int v2, struct nsagent_lane *to)
{
#if defined(HAVE_mem_cgroup_vmstats) && defined(HAVE_memcg_vmstats_stats_updates) &&                                   \
	defined(HAVE_memcg_vmstats_state_local) && defined(HAVE_memcg_vmstats_events_local) &&                         \
	defined(HAVE_memcg_vmstats_state_pending) && defined(HAVE_mem_cgroup_memory)
	u64 stats = (u64)READ(struct mem_cgroup, css - OFFSET(struct mem_cgroup, css), vmstats);
	u64 hash = 0, words[CHUNK], local = OFFSET(struct memcg_vmstats, state_local);
	if (v2) /* no test has shown there yet that equal hashes are equal bytes: the file is read */
		return;
	if (!stats ||
	    READ(struct memcg_vmstats, stats, stats_updates)) /* first: what waits later a read now would not show */
		return;
	if (OFFSET(struct memcg_vmstats, state) > local || OFFSET(struct memcg_vmstats, events) > local ||
	    local > OFFSET(struct memcg_vmstats, events_local) ||
	    OFFSET(struct memcg_vmstats, events_local) > OFFSET(struct memcg_vmstats, state_pending))
		return;
	/* Into what is pending, too: it is zero but where a flush of the parent is due. */
	for (u64 at = 0; at < OFFSET(struct memcg_vmstats, state_pending) && !(v2 && at >= local);
	     at += sizeof(words)) {
		if (read_kernel(words, sizeof(words), (void *)(stats + at)))
			return;
#pragma unroll
		for (int word = 0; word < CHUNK; word++) {
			MIX(hash, words[word]);
		}
		hash = forget(hash);
	}
	for (int level = 0; css && !v2; level++) {
		if (level == LIMITS_ABOVE)
			return;
		u64 memory = css - OFFSET(struct mem_cgroup, css);
		MIX(hash, READ(struct mem_cgroup, memory, memory.max));
		MIX(hash, READ(struct mem_cgroup, memory, swap.max));
		hash = forget(hash);
		css = (u64)READ(struct cgroup_subsys_state, css, parent);
	}
	to->memory_stat = hash;
	PRESENT(to, NSAGENT_LANE_MEMORY_STAT);
#endif
}

#ifdef HAVE_cgroup_subsys
#define WITH(subsystem, read, ...)                                                                                     \
	if (states[NSAGENT_##subsystem##_cgrp_id])                                                                     \
		read(states[NSAGENT_##subsystem##_cgrp_id], ##__VA_ARGS__, to);

/* What the controllers hold that the hierarchy has. */
INLINE void read_controllers(u64 cgroup, int v2, struct nsagent_lane *to)
{
	u64 states[16] = {};
	read_kernel(states, NSAGENT_CGROUP_SUBSYS_COUNT * sizeof(u64),
		    (void *)(cgroup + OFFSET(struct cgroup, subsys)));
#ifdef NSAGENT_cpuacct_cgrp_id
	WITH(cpuacct, read_cpuacct)
#endif
#ifdef NSAGENT_cpu_cgrp_id
	WITH(cpu, read_cpu)
#endif
#ifdef NSAGENT_memory_cgrp_id
	WITH(memory, read_memory_of)
	WITH(memory, read_memory_stat, v2)
#endif
#ifdef NSAGENT_pids_cgrp_id
	WITH(pids, read_pids)
#endif
#ifdef NSAGENT_freezer_cgrp_id
	WITH(freezer, read_freezer)
#endif
#ifdef NSAGENT_cpuset_cgrp_id
	WITH(cpuset, read_cpuset)
#endif
#ifdef NSAGENT_io_cgrp_id
	WITH(io, read_io)
#endif
}
#else
INLINE void read_controllers(u64 cgroup, int v2, struct nsagent_lane *to)
{
}
#endif

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
	*to = (struct nsagent_lane){};
	to->id = cgroup_id(cgroup);
	int v2 = 0;
#ifdef HAVE_cgroup_root_hierarchy_id
	v2 = !READ(struct cgroup_root, READ(struct cgroup, cgroup, root), hierarchy_id);
	if (v2) {
		read_state(cgroup, to);
		read_pressure(cgroup, to);
	}
#endif
	read_controllers(cgroup, v2, to);
	u64 *words = (u64 *)to, digest = 0;
	for (int word = 2; word < sizeof(*to) / sizeof(u64); word++) {
		MIX(digest, words[word]);
	}
	to->digest = digest;
	return 0;
}
