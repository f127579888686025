"""Containers and pods, by the names their runtimes gave them."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import Column, Query, board, choice, detail, fill, graph, listing, row_detail
from dashboards.query import NODE, container_named, gained, of, of_memory_limit, rate, throttled, top

_LEGEND = "{{pod}} {{container}} {{short}}"


def _of_each(expression: str) -> str:
    return top(10, container_named(expression))


def build() -> Dashboard:
    """Return the dashboard."""
    names = 'label_values(nsagent_cgroup_info{cluster=~"$cluster", instance=~"$node"}, pod_namespace)'
    to_cgroup = [detail("Cgroup ${__field.labels.cgroup}", "nsagent-cgroups", ("cgroup", "cgroup"))]
    info = of("nsagent_cgroup_info", 'pod_uid!=""', 'container_id=""', 'pod_namespace=~"$namespace"')
    of_pod = f"* on ({NODE}, cgroup) group_left (pod, pod_namespace, pod_uid) {info}"
    return fill(
        board(
            "containers",
            "Containers and pods",
            "What each container uses against its limits. A container without a name is shown by the beginning of its id.",
            choice("namespace", "Namespace of pods", names, all_value=".*"),
        ),
        (
            "Containers",
            (
                graph(
                    "CPU",
                    "none",
                    "CPUs that each container uses. Click a line for its limit and what it waits for.",
                    Query(_of_each(rate("nsagent_cgroup_cpu_usage_seconds_total")), _LEGEND),
                    stacked=True,
                    links=to_cgroup,
                ),
                graph(
                    "Throttled",
                    "percentunit",
                    "Part of the periods in which the CPU limit stopped it. Above 25 % raise limits.cpu, or use fewer threads.",
                    Query(_of_each(throttled()), _LEGEND),
                    most=1,
                    links=to_cgroup,
                ),
                graph(
                    "Memory",
                    "bytes",
                    "Working set, the figure that the kubelet evicts by. One that only grows will meet its limit.",
                    Query(_of_each(of("nsagent_cgroup_memory_working_set_bytes")), _LEGEND),
                    stacked=True,
                    links=to_cgroup,
                ),
                graph(
                    "Memory of its limit",
                    "percentunit",
                    "Working set as a part of limits.memory. From 90 % on it will be killed soon: raise the limit, or find the "
                    "leak.",
                    Query(_of_each(of_memory_limit()), _LEGEND),
                    most=1,
                    links=to_cgroup,
                ),
                graph(
                    "OOM kills",
                    "none",
                    "Processes that the kernel killed for memory. Each is a crash somebody saw: raise limits.memory, or find "
                    "the leak.",
                    Query(_of_each(gained("nsagent_cgroup_memory_events_total", 'event="oom_kill"')), _LEGEND),
                    bars=True,
                    links=to_cgroup,
                ),
                graph(
                    "Storage IO",
                    "Bps",
                    "Bytes a second that its tasks caused to be read or written. The greatest line is the noisy neighbour.",
                    Query(_of_each(f"sum without (operation) ({rate('nsagent_cgroup_storage_bytes_total')})"), _LEGEND),
                    stacked=True,
                    links=to_cgroup,
                ),
            ),
        ),
        (
            "All of them",
            (
                listing(
                    "Containers",
                    "Every container of the chosen nodes. Click its cgroup for all that is known of it.",
                    Column("CPU", container_named(rate("nsagent_cgroup_cpu_usage_seconds_total")), "none"),
                    Column("Memory", container_named(of("nsagent_cgroup_memory_working_set_bytes")), "bytes"),
                    Column("Tasks", container_named(of("nsagent_cgroup_pids")), "none"),
                    labels=("cluster", "instance", "pod_namespace", "pod", "container", "short", "cgroup"),
                    links=("cgroup", [row_detail("Cgroup", "nsagent-cgroups", "cgroup", "cgroup")]),
                ),
                listing(
                    "Pods",
                    "CPU and memory of each pod: its cgroup has all its containers. Click it to see them one by one.",
                    Column("CPU", f"{rate('nsagent_cgroup_cpu_usage_seconds_total')} {of_pod}", "none"),
                    Column("Memory", f"{of('nsagent_cgroup_memory_working_set_bytes')} {of_pod}", "bytes"),
                    Column("Tasks", f"{of('nsagent_cgroup_pids')} {of_pod}", "none"),
                    labels=("cluster", "instance", "pod_namespace", "pod", "pod_uid", "cgroup"),
                    links=("cgroup", [row_detail("Cgroup", "nsagent-cgroups", "cgroup", "cgroup")]),
                ),
            ),
        ),
    )
