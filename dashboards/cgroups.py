"""One cgroup and what is in it: from a slice down to the leaf that does it."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import Column, Query, board, choice, detail, fill, graph, listing, row_detail
from dashboards.query import gained, of, of_memory_limit, rate, throttled, top, total

_THIS = 'cgroup=~"$cgroup"'
_BELOW = 'cgroup=~"$cgroup/[^/]+"'
_EACH = ("cluster", "instance", "cgroup")


def build() -> Dashboard:
    """Return the dashboard."""
    # The root is no choice: what is below it is in the node overview.
    names = 'label_values(nsagent_cgroup_cpu_usage_seconds_total{cluster=~"$cluster", instance=~"$node", cgroup!="/"}, cgroup)'
    down = [detail("Down to ${__field.labels.cgroup}", "nsagent-cgroups", ("cgroup", "cgroup"))]
    return fill(
        board(
            "cgroups",
            "Cgroups",
            "What one cgroup uses against its limits, what it waits for, and which child does it.",
            choice("cgroup", "Cgroup", names),
        ),
        (
            "$cgroup",
            (
                graph(
                    "CPU and its limit",
                    "none",
                    "CPUs in use, against the limit if it has one. A line on the limit is throttled; far below for days: lower "
                    "the limit.",
                    Query(rate("nsagent_cgroup_cpu_usage_seconds_total", _THIS), "{{cgroup}} used"),
                    Query(of("nsagent_cgroup_cpu_limit_cores", _THIS), "{{cgroup}} limit"),
                    width=8,
                ),
                graph(
                    "Throttled",
                    "percentunit",
                    "Part of the periods in which the CPU limit stopped it. Above 25 % it is slower than it need be: raise the "
                    "limit, or use fewer threads.",
                    Query(throttled(_THIS), "{{cgroup}}"),
                    width=8,
                    most=1,
                ),
                graph(
                    "Waiting for a CPU",
                    "none",
                    "Tasks that were ready and had no CPU, on average. High without throttling: the node is full, or its weight "
                    "is too low.",
                    Query(rate("nsagent_cgroup_run_queue_seconds_total", _THIS), "{{cgroup}}"),
                    width=8,
                ),
                graph(
                    "Memory and its limit",
                    "bytes",
                    "Working set against the limits. Near the limit the kernel reclaims, then kills; `high` slows it down "
                    "before that.",
                    Query(of("nsagent_cgroup_memory_working_set_bytes", _THIS), "{{cgroup}} working set"),
                    Query(of("nsagent_cgroup_memory_usage_bytes", _THIS), "{{cgroup}} with cache"),
                    Query(of("nsagent_cgroup_memory_limit_bytes", _THIS), "{{cgroup}} limit"),
                    Query(of("nsagent_cgroup_memory_high_bytes", _THIS), "{{cgroup}} high"),
                    width=8,
                ),
                graph(
                    "What its memory is",
                    "bytes",
                    "Anonymous memory is the program's own, file is cache, shmem is tmpfs and shared memory (part of file). "
                    "Only anon and shmem cannot be dropped.",
                    Query(of("nsagent_cgroup_memory_bytes", _THIS, 'type=~"anon|file|shmem|kernel"'), "{{cgroup}} {{type}}"),
                    width=8,
                ),
                graph(
                    "Limits met",
                    "none",
                    "How often the memory limit was met (max, high) or killed for (oom_kill), and forks were refused (pids). "
                    "Each is a reason to raise a limit.",
                    Query(
                        gained("nsagent_cgroup_memory_events_total", _THIS, 'event=~"high|max|oom_kill"'), "{{cgroup}} {{event}}"
                    ),
                    Query(gained("nsagent_cgroup_pids_limit_hits_total", _THIS), "{{cgroup}} pids"),
                    width=8,
                    bars=True,
                ),
                graph(
                    "Storage IO",
                    "Bps",
                    "Bytes a second that its tasks caused to be read from or written to storage, whatever the device.",
                    Query(rate("nsagent_cgroup_storage_bytes_total", _THIS), "{{cgroup}} {{operation}}"),
                    width=8,
                ),
                graph(
                    "IO by device",
                    "Bps",
                    "Bytes a second at each device. Absent on cgroup v1 where the kernel does not count without a throttle rule.",
                    Query(rate("nsagent_cgroup_io_bytes_total", _THIS), "{{cgroup}} {{device}} {{operation}}"),
                    width=8,
                ),
                graph(
                    "Pressure",
                    "percentunit",
                    "Part of the time in which all its tasks stood still for want of a resource. From 10 % on give it more of "
                    "that resource.",
                    Query(rate("nsagent_cgroup_pressure_stalled_seconds_total", _THIS), "{{cgroup}} {{resource}}"),
                    width=8,
                    most=1,
                ),
                graph(
                    "Tasks and their limit",
                    "none",
                    "Processes and threads. At the limit fork fails: a leak of threads, or a limit that is too low.",
                    Query(of("nsagent_cgroup_pids", _THIS), "{{cgroup}} tasks"),
                    Query(of("nsagent_cgroup_pids_limit", _THIS), "{{cgroup}} limit"),
                ),
                graph(
                    "What its tasks do",
                    "none",
                    "Threads by state. disk_sleep waits for IO and cannot be killed, zombie waits for its parent, running "
                    "beyond the CPUs queues.",
                    Query(total(of("nsagent_cgroup_tasks", _THIS), "state"), "{{state}}"),
                    stacked=True,
                ),
            ),
        ),
        (
            "Directly below $cgroup",
            (
                graph(
                    "CPU by child",
                    "none",
                    "CPUs of each cgroup below. Click a line to go down; no line means that this is the leaf.",
                    Query(top(10, total(rate("nsagent_cgroup_cpu_usage_seconds_total", _BELOW), "cgroup")), "{{cgroup}}"),
                    stacked=True,
                    links=down,
                ),
                graph(
                    "Memory by child",
                    "bytes",
                    "Working set of each cgroup below. Click a line to go down.",
                    Query(top(10, total(of("nsagent_cgroup_memory_working_set_bytes", _BELOW), "cgroup")), "{{cgroup}}"),
                    stacked=True,
                    links=down,
                ),
                listing(
                    "Children",
                    "Every cgroup below with what it uses and how near its limits are. Click one to go down.",
                    Column("CPU", total(rate("nsagent_cgroup_cpu_usage_seconds_total", _BELOW), *_EACH), "none"),
                    Column("Throttled", total(throttled(_BELOW), *_EACH), "percentunit"),
                    Column("Memory", total(of("nsagent_cgroup_memory_working_set_bytes", _BELOW), *_EACH), "bytes"),
                    Column("Of its limit", total(of_memory_limit(_BELOW), *_EACH), "percentunit"),
                    Column("Tasks", total(of("nsagent_cgroup_pids", _BELOW), *_EACH), "none"),
                    labels=_EACH,
                    links=("cgroup", [row_detail("Down", "nsagent-cgroups", "cgroup", "cgroup")]),
                ),
            ),
        ),
    )
