"""Who uses what, by kind of namespace; who made, joined and left them; what of them runs out."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import Column, Query, board, choice, detail, fill, graph, listing, row_detail
from dashboards.query import namespace_named, of, rate, top, total

_KIND = 'kind="$kind"'
_ONE = ("cluster", "instance", "kind", "inum", "id")
_LEGEND = "{{comm}} {{inum}}"


def _named(expression: str) -> str:
    return namespace_named(total(expression, *_ONE))


def _of_each(expression: str) -> str:
    return top(10, _named(expression))


def build() -> Dashboard:
    """Return the dashboard."""
    kind = choice("kind", "Kind", 'label_values(nsagent_namespaces{instance=~"$node"}, kind)', multi=False, first="pid")
    to_cgroup = [detail("Cgroup ${__field.labels.cgroup}", "nsagent-cgroups", ("cgroup", "cgroup"))]
    return fill(
        board("namespaces", "Namespaces", "Which namespaces there are, what each uses, and what happens to them.", kind),
        (
            "All kinds",
            (
                graph(
                    "Namespaces",
                    "none",
                    "Namespaces with at least one task. A line that only rises is a leak: look at who makes them, in the list "
                    "below.",
                    Query(total(of("nsagent_namespaces"), "kind"), "{{kind}}"),
                    width=8,
                ),
                graph(
                    "Of the limit",
                    "percentunit",
                    "Namespaces as a part of /proc/sys/user/max_*_namespaces. At 100 % clone and unshare fail with ENOSPC: "
                    "raise it, or end the leak.",
                    Query(
                        f"max by (kind) ({of('nsagent_namespaces')} / {of('nsagent_namespace_limit')})",
                        "{{kind}}",
                    ),
                    width=8,
                ),
                graph(
                    "Created and ended",
                    "cps",
                    "Namespaces made a second, and those whose last task went. The two lines of a kind should be one; a gap is "
                    "what is left behind.",
                    Query(total(rate("nsagent_namespaces_created_total"), "kind"), "{{kind}} created"),
                    Query(total(rate("nsagent_namespaces_ended_total"), "kind"), "{{kind}} ended"),
                    width=8,
                ),
                graph(
                    "Joined",
                    "cps",
                    "Moves into a namespace that was there. to_host is a container's process in a namespace of the host: know "
                    "why, or see Findings.",
                    Query(total(rate("nsagent_namespace_joins_total"), "kind", "crossing"), "{{kind}} {{crossing}}"),
                    width=8,
                    links=[detail("Tracing and findings", "nsagent-tracing")],
                ),
                graph(
                    "Processes started",
                    "cps",
                    "Processes born a second, however short they live, by PID namespace. Thousands are a loop that forks: the "
                    "line's cgroup has it.",
                    Query(_of_each(rate("nsagent_namespace_processes_created_total", 'kind="pid"')), _LEGEND),
                    width=8,
                    links=to_cgroup,
                ),
                graph(
                    "Network",
                    "Bps",
                    "Bytes a second received and sent by each network namespace, without its loopback. Click to see whose it is.",
                    Query(_of_each(rate("nsagent_namespace_network_receive_bytes_total", 'device!="lo"')), f"{_LEGEND} received"),
                    Query(_of_each(rate("nsagent_namespace_network_transmit_bytes_total", 'device!="lo"')), f"{_LEGEND} sent"),
                    width=8,
                    links=to_cgroup,
                ),
            ),
        ),
        (
            "Kind $kind",
            (
                graph(
                    "CPU by $kind namespace",
                    "none",
                    "CPUs that each namespace uses, exactly, with all processes that lived only between two scrapes. Click to "
                    "see the cgroup.",
                    Query(_of_each(rate("nsagent_namespace_cpu_seconds_total", _KIND)), _LEGEND),
                    stacked=True,
                    links=to_cgroup,
                ),
                graph(
                    "Resident memory by $kind namespace",
                    "bytes",
                    "Memory that the processes of each namespace have in RAM. What several of them share counts in each.",
                    Query(_of_each(of("nsagent_namespace_memory_rss_bytes", _KIND)), _LEGEND),
                    stacked=True,
                    links=to_cgroup,
                ),
                graph(
                    "Storage IO by $kind namespace",
                    "Bps",
                    "Bytes a second that its tasks caused to be read or written. The greatest line is the one to limit when IO "
                    "pressure is high.",
                    Query(_of_each(rate("nsagent_namespace_storage_bytes_total", _KIND)), _LEGEND),
                    stacked=True,
                    links=to_cgroup,
                ),
                graph(
                    "Processes by $kind namespace",
                    "none",
                    "Processes in each namespace, zombies too. One that only rises is a process whose children nobody waits for.",
                    Query(_of_each(of("nsagent_namespace_processes", _KIND)), _LEGEND),
                    links=to_cgroup,
                ),
                listing(
                    "The $kind namespaces",
                    "Every namespace of this kind with its oldest process, that one's cgroup, and who made it. `nsagent ns "
                    "show` on the node says more.",
                    Column("Processes", _named(of("nsagent_namespace_processes", _KIND)), "none"),
                    Column("CPU", _named(rate("nsagent_namespace_cpu_seconds_total", _KIND)), "none"),
                    Column("Memory", _named(of("nsagent_namespace_memory_rss_bytes", _KIND)), "bytes"),
                    labels=("cluster", "instance", "kind", "inum", "id", "comm", "cgroup"),
                    links=("cgroup", [row_detail("Cgroup", "nsagent-cgroups", "cgroup", "cgroup")]),
                ),
            ),
        ),
    )
