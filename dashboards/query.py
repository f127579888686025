"""PromQL of the chosen nodes: every selector of every dashboard comes from here.

`instance` is the node: a scrape configuration sets it to the node's name (docs/dashboards.md). `cluster` may be absent.
"""

from __future__ import annotations

from typing import Final

HERE: Final = 'cluster=~"$cluster", instance=~"$node"'
NODE: Final = "cluster, instance"
_NAMESPACE: Final = f"{NODE}, kind, inum, id"


def of(family: str, *matchers: str) -> str:
    """Return the series of a family on the chosen nodes."""
    return f"{family}{{{', '.join((HERE, *matchers))}}}"


def rate(family: str, *matchers: str) -> str:
    """Return what a counter gains in a second."""
    return f"rate({of(family, *matchers)}[$__rate_interval])"


def gained(family: str, *matchers: str) -> str:
    """Return what a counter gained between two points of a graph, and a little before."""
    return f"increase({of(family, *matchers)}[$__rate_interval])"


def total(expression: str, *labels: str) -> str:
    """Return the sum by these labels; by none, of all."""
    return f"sum by ({', '.join(labels)}) ({expression})" if labels else f"sum({expression})"


def top(number: int, expression: str) -> str:
    """Return the greatest ones."""
    return f"topk({number}, {expression})"


def throttled(*matchers: str) -> str:
    """Return the part of its periods in which a cgroup was stopped; absent where no period passed, for lack of a limit."""
    periods = rate("nsagent_cgroup_cpu_periods_total", *matchers)
    return f"{rate('nsagent_cgroup_cpu_throttled_periods_total', *matchers)} / ({periods} > 0)"


def of_memory_limit(*matchers: str) -> str:
    """Return the part of a cgroup's own memory limit that is in use; absent without a limit."""
    used = of("nsagent_cgroup_memory_working_set_bytes", *matchers)
    return f"{used} / {of('nsagent_cgroup_memory_limit_bytes', *matchers)}"


def oom_kills(window: str, seconds: str) -> str:
    """Return the OOM kills in each cgroup in a window of time.

    A counter's first value is no increase to PromQL: for a cgroup that was made in the window it is the figure itself.
    """
    kills = of("nsagent_cgroup_memory_events_total", 'event="oom_kill"')
    made = of("nsagent_cgroup_created_timestamp_seconds")
    return f"({kills} and on ({NODE}, cgroup) {made} > time() - {seconds}) or increase({kills}[{window}])"


def namespace_named(expression: str) -> str:
    """Add to figures of namespaces the program of the oldest member and its cgroup; those without a member fall out."""
    return f"({expression}) * on ({_NAMESPACE}) group_left (comm, cgroup) {of('nsagent_namespace_info')}"


def container_named(expression: str) -> str:
    """Add to figures of cgroups what the container of that cgroup is called, `short` its id's beginning; leave out the others."""
    info = of("nsagent_cgroup_info", 'container_id!=""', 'pod_namespace=~"$namespace"')
    short = f'label_replace({info}, "short", "$1", "container_id", "(.{{1,12}}).*")'
    return f"({expression}) * on ({NODE}, cgroup) group_left (short, container, pod, pod_namespace) {short}"


def agents(expression: str) -> str:
    """Leave of what many exporters have (`process_*`, `scrape_*`) the agents'."""
    return f"{expression} and on ({NODE}, job) {of('nsagent_build_info')}"
