"""Is this node well, and which part of it is not: where everybody begins."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import Column, Query, board, detail, figure, fill, graph, listing, row_detail
from dashboards.query import NODE, of, of_memory_limit, oom_kills, rate, throttled, top, total

_SLICE = 'cgroup=~"/[^/]+"'
_ROOT = 'cgroup="/"'


def _memory() -> str:
    """Return the memory of each node: cgroup v2's root does not say, so there it is what the slices have."""
    slices = total(of("nsagent_cgroup_memory_working_set_bytes", _SLICE), "cluster", "instance")
    return f"{of('nsagent_cgroup_memory_working_set_bytes', _ROOT)} or on ({NODE}) {slices}"


def build() -> Dashboard:
    """Return the dashboard."""
    to_cgroup = [detail("Cgroup ${__field.labels.cgroup}", "nsagent-cgroups", ("cgroup", "cgroup"))]
    cpus = total(of("nsagent_cgroup_cpuset_cpus", _ROOT))
    per_slice = ("cluster", "instance", "cgroup")
    return fill(
        board("node", "Node overview", "Is this node well, and if not: which slice, job or container is it?"),
        (
            "Now",
            (
                figure(
                    "CPU in use",
                    "percentunit",
                    "Part of the CPUs that is busy. Near 100 % with pressure below: find the slice in the graph of CPU and "
                    "limit or move it.",
                    f"{total(rate('nsagent_cgroup_cpu_usage_seconds_total', _ROOT))} / {cpus}",
                    warn=0.8,
                    bad=0.95,
                ),
                figure(
                    "Memory in use",
                    "bytes",
                    "Working set: what cannot be given back without IO. Compare with the node's memory before you place more "
                    "work on it.",
                    total(_memory()),
                ),
                figure(
                    "Throttled cgroups",
                    "none",
                    "Cgroups that their CPU limit stopped in more than a quarter of the periods. Open the cgroup, and raise the "
                    "limit or "
                    "use fewer threads.",
                    f"sum(({throttled()}) > bool 0.25)",
                    warn=1,
                    links=[detail("Cgroups", "nsagent-cgroups")],
                ),
                figure(
                    "Fullest memory limit",
                    "percentunit",
                    "The cgroup nearest to its own memory limit. From 90 % on a small allocation can end in an OOM kill: the "
                    "table below names it.",
                    f"max({of_memory_limit()})",
                    warn=0.8,
                    bad=0.9,
                    links=[detail("Cgroups", "nsagent-cgroups")],
                ),
                figure(
                    "Cgroups with OOM kills",
                    "none",
                    "Cgroups in which the kernel killed for memory in the time shown; on cgroup v2 those above count too. Raise "
                    "memory.max, or find the leak.",
                    f"sum(({oom_kills('$__range', '$__range_s')}) > bool 0)",
                    warn=1,
                    bad=1,
                    links=[detail("Cgroups", "nsagent-cgroups")],
                ),
                figure(
                    "Failing jobs",
                    "none",
                    "Names of jobs whose last run did not end with 0. Open Jobs: the outcome tells a failure from a timeout or "
                    "an OOM kill.",
                    f"sum({of('nsagent_workload_last_exit_code')} != bool 0)",
                    warn=1,
                    bad=1,
                    links=[detail("Jobs", "nsagent-jobs")],
                ),
            ),
        ),
        (
            "Who uses it",
            (
                graph(
                    "CPU by slice",
                    "none",
                    "CPUs that each cgroup below the root uses, all below it included. Click a line to see what is in it.",
                    Query(top(10, total(rate("nsagent_cgroup_cpu_usage_seconds_total", _SLICE), "cgroup")), "{{cgroup}}"),
                    stacked=True,
                    links=to_cgroup,
                ),
                graph(
                    "Memory by slice",
                    "bytes",
                    "Working set of each cgroup below the root. One that only grows is a leak, or a cache without a limit: "
                    "click it.",
                    Query(top(10, total(of("nsagent_cgroup_memory_working_set_bytes", _SLICE), "cgroup")), "{{cgroup}}"),
                    stacked=True,
                    links=to_cgroup,
                ),
                graph(
                    "Storage IO by slice",
                    "Bps",
                    "Bytes a second that tasks caused to be read from or written to storage. Together with IO pressure: this is "
                    "who to slow down.",
                    Query(
                        top(10, total(rate("nsagent_cgroup_storage_bytes_total", _SLICE), "cgroup", "operation")),
                        "{{cgroup}} {{operation}}",
                    ),
                    stacked=True,
                    links=to_cgroup,
                ),
                graph(
                    "Pressure of the node",
                    "percentunit",
                    "Part of the time in which some task waited for CPU, memory or IO. What is busy and waits for nothing is "
                    "well used; "
                    "10 % of memory is already slow.",
                    Query(rate("nsagent_cgroup_pressure_waiting_seconds_total", _ROOT), "{{instance}} {{resource}}"),
                    most=1,
                ),
            ),
        ),
        (
            "Slices",
            (
                listing(
                    "Slices of the node",
                    "Each cgroup below the root: what it uses now, and how near its limits are. Click one to go down to the "
                    "leaf.",
                    Column("CPU", total(rate("nsagent_cgroup_cpu_usage_seconds_total", _SLICE), *per_slice), "none"),
                    Column("Throttled", total(throttled(_SLICE), *per_slice), "percentunit"),
                    Column("Memory", total(of("nsagent_cgroup_memory_working_set_bytes", _SLICE), *per_slice), "bytes"),
                    Column("Of its limit", total(of_memory_limit(_SLICE), *per_slice), "percentunit"),
                    Column("Storage IO", total(rate("nsagent_cgroup_storage_bytes_total", _SLICE), *per_slice), "Bps"),
                    Column("Tasks", total(of("nsagent_cgroup_pids", _SLICE), *per_slice), "none"),
                    labels=per_slice,
                    links=("cgroup", [row_detail("Cgroup", "nsagent-cgroups", "cgroup", "cgroup")]),
                ),
            ),
        ),
    )
