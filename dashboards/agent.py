"""The agent itself: what it costs, what it lost, what this node lacks."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import Column, Query, board, figure, fill, graph, listing
from dashboards.query import agents, gained, of, rate, total


def build() -> Dashboard:
    """Return the dashboard."""
    filled = f"{of('nsagent_bpf_map_entries')} / {of('nsagent_bpf_map_max_entries')}"
    return fill(
        board("agent", "The agent", "Can the figures be trusted, and what do they cost?"),
        (
            "Trust",
            (
                figure(
                    "Agents",
                    "none",
                    "Agents that answer. Fewer than nodes: see NsagentDown.",
                    f"count({of('nsagent_build_info')})",
                ),
                figure(
                    "Collectors that failed",
                    "none",
                    "Collectors without success in the last scrape: their families are absent. The agent's log has the reason.",
                    f"sum({of('nsagent_collector_success')} == bool 0)",
                    warn=1,
                    bad=1,
                ),
                graph(
                    "Error of CPU accounting",
                    "percentunit",
                    "CPU time added to all namespaces against what the kernel counted for the node. Beyond 1 % for minutes: "
                    "contexts overflow, or BPF is blind to something.",
                    Query(f"abs({of('nsagent_accounting_error_ratio')})", "{{instance}}"),
                    width=8,
                ),
                graph(
                    "Lost",
                    "none",
                    "What was not seen in full: events, rows of contexts, histories. ringbuf_full: --ring-size; rows: "
                    "--contexts.",
                    Query(
                        total(gained("nsagent_trace_lost_events_total"), "instance", "reason"), "{{instance}} events {{reason}}"
                    ),
                    Query(total(gained("nsagent_bpf_map_full_total"), "instance", "map"), "{{instance}} {{map}}"),
                    Query(total(gained("nsagent_namespace_history_dropped_total"), "instance"), "{{instance}} histories"),
                    width=8,
                    bars=True,
                ),
            ),
        ),
        (
            "Cost of a scrape",
            (
                graph(
                    "Scrape",
                    "s",
                    "How long a scrape takes, as Prometheus sees it. Near the scrape timeout: fewer cgroups (--max-depth, "
                    "--cgroup-exclude) or a longer interval.",
                    Query(agents(of("scrape_duration_seconds")), "{{instance}}"),
                    width=8,
                ),
                graph(
                    "By collector",
                    "s",
                    "Where the time of a scrape goes. cgroups grows with their number, usage with rows of contexts, namespaces "
                    "with processes.",
                    Query(f"max by (collector) ({of('nsagent_collector_duration_seconds')})", "{{collector}}"),
                    width=8,
                ),
                graph(
                    "Samples",
                    "none",
                    "Samples in one scrape: what Prometheus has to store. Mostly cgroups times families.",
                    Query(of("nsagent_scrape_samples"), "{{instance}}"),
                    width=8,
                ),
            ),
        ),
        (
            "Cost of the agent",
            (
                graph(
                    "CPU",
                    "percentunit",
                    "Of one CPU. More than a percent or two: a shorter scrape interval than needed, or very many cgroups.",
                    Query(agents(rate("process_cpu_seconds_total")), "{{instance}}"),
                    width=8,
                ),
                graph(
                    "Memory",
                    "bytes",
                    "Resident memory of the process, and kernel memory that its BPF maps and open files pin. The second follows "
                    "--contexts and --ring-size.",
                    Query(agents(of("process_resident_memory_bytes")), "{{instance}} process"),
                    Query(of("nsagent_kernel_memory_bytes"), "{{instance}} kernel"),
                    width=8,
                ),
                graph(
                    "BPF maps",
                    "percentunit",
                    "How full the maps are. At 100 % of ids new contexts count in no namespace: raise --contexts.",
                    Query(f"max by (map) ({filled})", "{{map}}"),
                    width=8,
                    most=1,
                ),
            ),
        ),
        (
            "Nodes",
            (
                listing(
                    "Agents and their nodes",
                    "Version and kernel of each. More than one version for days is an upgrade that stopped half way.",
                    Column("Up", of("nsagent_build_info"), "none"),
                    labels=("cluster", "instance", "version", "kernel", "python", "bcc"),
                    width=12,
                ),
                listing(
                    "What a node lacks",
                    "Features that are absent or approximate, and why. `nsagent doctor` on the node has the remedy.",
                    Column("Lacks", of("nsagent_feature_info"), "none"),
                    labels=("cluster", "instance", "feature", "reason"),
                    width=12,
                ),
            ),
        ),
    )
