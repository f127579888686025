// SPDX-License-Identifier: GPL-2.0 OR Apache-2.0
/*
 * The births and ends of cgroups, in every hierarchy, and at an end the last values: user space is too late for those, a
 * manager that removes a cgroup at once leaves it no time to read a file.
 * cgroup_mkdir(cgrp, path), cgroup_rmdir(cgrp, path): include/trace/events/cgroup.h. Both fire under cgroup_mutex
 * (TRACE_CGROUP_PATH of kernel/cgroup/cgroup-internal.h), so that one buffer serves all; at rmdir the controllers' states
 * are still there, because the work that takes them away needs that mutex.
 */
#include "common.h"

#ifdef HAVE_cgroup_root_hierarchy_id

static long (*ring_output)(void *ring, void *data, u64 size, u64 flags) = (void *)130;
static u64 (*ring_query)(void *ring, u64 what) = (void *)134;
static long (*read_kernel_string)(void *to, u32 size, const void *from) = (void *)115;

/* include/uapi/linux/bpf.h */
#define RING_NO_WAKEUP 1
#define RING_FORCE_WAKEUP 2
#define RING_AVAILABLE 0
#define RING_SIZE 1

/* The per-CPU u64 that counts the cgroup's CPU time in ns, 0 where there is none. On v2 it is of its own tasks alone. */
INLINE u64 cpu_time_of(u64 cgroup, u32 hierarchy)
{
	if (!hierarchy) {
#if defined(HAVE_cgroup_rstat_base_cpu) && defined(HAVE_cgroup_rstat_base_cpu_bstat)
		/* since v6.16 */
		u64 base = (u64)READ(struct cgroup, cgroup, rstat_base_cpu);
		return base ? base + OFFSET(struct cgroup_rstat_base_cpu, bstat.cputime.sum_exec_runtime) : 0;
#elif defined(HAVE_cgroup_rstat_cpu_bstat) && defined(HAVE_cgroup_rstat_cpu)
		u64 base = (u64)READ(struct cgroup, cgroup, rstat_cpu);
		return base ? base + OFFSET(struct cgroup_rstat_cpu, bstat.cputime.sum_exec_runtime) : 0;
#endif
	}
#if defined(NSAGENT_cpuacct_cgrp_id) && defined(HAVE_cpuacct_cpuusage)
	u64 state = STATE_OF(cgroup, NSAGENT_cpuacct_cgrp_id);
	return state ? (u64)READ(struct cpuacct, state - OFFSET(struct cpuacct, css), cpuusage) : 0;
#else
	return 0;
#endif
}

/* Sum a per-CPU u64, or two side by side: 5.10 keeps user and system time apart (struct cpuacct_usage). */
INLINE int sum_cpus(u64 pointer, int both, u64 *sum)
{
	u64 cpus = configured(NSAGENT_CONFIG_CPUS), parts[2];
	if (!pointer || !cpus)
		return 0;
	for (u64 cpu = 0; cpu < NSAGENT_MAX_CPUS && cpu < cpus; cpu++) {
		HIDE(cpu);
		u32 key = cpu; /* a copy, see read_memory() */
		u64 *offset = map_lookup(CPU_OFFSETS, &key);
		parts[0] = parts[1] = 0;
		if (!offset)
			break;
		read_kernel(parts, both ? 16 : 8, (void *)(pointer + *offset));
		*sum += parts[0] + parts[1];
	}
	return 1;
}

INLINE void read_last_values(u64 cgroup, struct nsagent_cgroup_record *record)
{
	u64 sum = 0, state;
	int both = 0;
#ifdef HAVE_cpuacct_usage_usages
	both = record->hierarchy != 0;
#endif
	if (sum_cpus(cpu_time_of(cgroup, record->hierarchy), both, &sum)) {
		record->cpu_ns = sum;
		record->have |= NSAGENT_HAVE_CPU;
	}
#if defined(NSAGENT_memory_cgrp_id) && defined(HAVE_mem_cgroup_memory)
	state = STATE_OF(cgroup, NSAGENT_memory_cgrp_id);
	if (state) {
		state -= OFFSET(struct mem_cgroup, css);
		record->memory_peak_bytes =
			READ(struct mem_cgroup, state, memory.watermark) * configured(NSAGENT_CONFIG_PAGE);
		record->have |= NSAGENT_HAVE_MEMORY_PEAK;
#if defined(HAVE_mem_cgroup_memory_events) && defined(NSAGENT_MEMCG_OOM_KILL)
		record->oom_kills = READ(struct mem_cgroup, state, memory_events[NSAGENT_MEMCG_OOM_KILL].counter);
		record->have |= NSAGENT_HAVE_OOM_KILLS;
#endif
	}
#endif
#if defined(NSAGENT_pids_cgrp_id) && defined(HAVE_pids_cgroup_watermark) /* with pids.peak (in v6.1) */
	state = STATE_OF(cgroup, NSAGENT_pids_cgrp_id);
	if (state) {
		record->pids_peak = READ(struct pids_cgroup, state - OFFSET(struct pids_cgroup, css), watermark);
		record->have |= NSAGENT_HAVE_PIDS_PEAK;
	}
#endif
}

INLINE int tell_cgroup(u64 cgroup, const void *path, u32 kind)
{
	u32 zero = 0;
	struct nsagent_cgroup_record *record = map_lookup(CGROUP_SCRATCH, &zero);
	if (!record)
		return 0;
	u64 above = (u64)READ(struct cgroup, cgroup, self.parent);
	record->time_ns = boot_ns();
	record->cgroup = cgroup_id(cgroup);
	record->parent = above ? cgroup_id((u64)READ(struct cgroup_subsys_state, above, cgroup)) : 0;
	record->cpu_ns = record->memory_peak_bytes = record->oom_kills = record->pids_peak = 0;
	record->kind = kind;
	record->hierarchy = READ(struct cgroup_root, READ(struct cgroup, cgroup, root), hierarchy_id);
	record->level = READ(struct cgroup, cgroup, level);
	record->have = 0;
	if (kind == NSAGENT_CGROUP_ENDED)
		read_last_values(cgroup, record);
	u64 length = read_kernel_string(record->path, NSAGENT_PATH_BYTES, path);
	if (length > NSAGENT_PATH_BYTES)
		length = 0;
	record->path_bytes = length;
	/* Whoever samples looks here first; the reader is woken only so that it never fills. */
	u64 flags = 2 * ring_query(CGROUP_EVENTS, RING_AVAILABLE) > ring_query(CGROUP_EVENTS, RING_SIZE)
			    ? RING_FORCE_WAKEUP
			    : RING_NO_WAKEUP;
	u64 bytes = forget(OFFSET(struct nsagent_cgroup_record, path) + length) &
		    (sizeof(struct nsagent_cgroup_record) - 1);
	if (ring_output(CGROUP_EVENTS, record, bytes, flags))
		count(NSAGENT_STAT_CGROUPS_LOST);
	return 0;
}

int on_cgroup_mkdir(u64 *ctx)
{
	return tell_cgroup(ctx[0], (void *)ctx[1], NSAGENT_CGROUP_MADE);
}

int on_cgroup_rmdir(u64 *ctx)
{
	return tell_cgroup(ctx[0], (void *)ctx[1], NSAGENT_CGROUP_ENDED);
}
#endif
