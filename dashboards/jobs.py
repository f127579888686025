"""What `nsagent run` ran: how it ended, how long it took, what it cost."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import Column, Query, board, choice, detail, figure, fill, graph, listing
from dashboards.query import NODE, gained, of, rate, top, total

_THESE = 'workload=~"$workload"'
_NAME = ("cluster", "instance", "workload")
# Of all runs: to PromQL the first run of a name is no increase.
_BUCKETS = total(of("nsagent_workload_duration_seconds_bucket", _THESE), "le", "workload")
_START = of("nsagent_workload_last_start_timestamp_seconds", _THESE)


def _a_run(counter: str, *matchers: str) -> str:
    """Return what a run of each name cost on average, in all the runs that are counted."""
    runs = total(of("nsagent_workload_runs_total", _THESE), "workload")
    return f"{total(of(counter, _THESE, *matchers), 'workload')} / {runs}"


def build() -> Dashboard:
    """Return the dashboard."""
    names = 'label_values(nsagent_workload_runs_total{cluster=~"$cluster", instance=~"$node"}, workload)'
    of_job = f"* on ({NODE}, cgroup) group_left (workload) {of('nsagent_cgroup_info', _THESE)}"
    to_cgroup = [detail("Cgroup ${__field.labels.cgroup}", "nsagent-cgroups", ("cgroup", "cgroup"))]
    return fill(
        board(
            "jobs",
            "Jobs",
            "How the jobs of `nsagent run` end, how long they take and what they cost.",
            choice("workload", "Workload", names, all_value=".+"),
        ),
        (
            "Now",
            (
                figure(
                    "Running",
                    "none",
                    "Jobs that have not ended. Their use is in the last row.",
                    total(of("nsagent_workloads_running")),
                ),
                figure(
                    "Failing",
                    "none",
                    "Names whose last run did not end with 0. The list of outcomes says how; the job's own output says why.",
                    f"sum({of('nsagent_workload_last_exit_code', _THESE)} != bool 0)",
                    warn=1,
                    bad=1,
                ),
                graph(
                    "Runs that ended",
                    "none",
                    "Runs by outcome. oom: raise --memory; timeout: raise --timeout or find what hangs; launch_error: the "
                    "command was never started.",
                    Query(total(gained("nsagent_workload_runs_total", _THESE), "outcome"), "{{outcome}}"),
                    width=16,
                    bars=True,
                ),
            ),
        ),
        (
            "Time and cost",
            (
                graph(
                    "Duration",
                    "s",
                    "How long the last run took, and what one run in twenty exceeds of all that were counted. A last run far "
                    "above it: "
                    "more data, or a slower node. Set --timeout well above both.",
                    Query(
                        f"{of('nsagent_workload_last_end_timestamp_seconds', _THESE)} - {_START}",
                        "{{instance}} {{workload}} last",
                    ),
                    Query(f"histogram_quantile(0.95, {_BUCKETS})", "{{workload}} 95 %"),
                ),
                graph(
                    "CPU time spent",
                    "s",
                    "CPU time of the runs that ended, by name: what a schedule costs. A step up is a change in the job or in "
                    "its data.",
                    Query(top(10, total(gained("nsagent_workload_cpu_seconds_total", _THESE), "workload")), "{{workload}}"),
                    bars=True,
                ),
                graph(
                    "Memory peak of the last run",
                    "bytes",
                    "Most memory at once. Set --memory some tenths above it; a peak that grows from run to run will end in an "
                    "OOM kill.",
                    Query(top(10, of("nsagent_workload_memory_peak_bytes", _THESE)), "{{instance}} {{workload}}"),
                ),
                graph(
                    "Storage IO of runs",
                    "bytes",
                    "Bytes that the runs that ended had read and written. Compare with the node's IO pressure at the same time.",
                    Query(
                        total(gained("nsagent_workload_io_bytes_total", _THESE), "workload", "operation"),
                        "{{workload}} {{operation}}",
                    ),
                    bars=True,
                ),
            ),
        ),
        (
            "Names",
            (
                listing(
                    "Last run",
                    "Each name's last run. A job that should run every night and has no recent end did not run.",
                    Column(
                        "Exit code",
                        total(of("nsagent_workload_last_exit_code", _THESE), *_NAME),
                        "none",
                    ),
                    Column(
                        "Ended",
                        f"1000 * {total(of('nsagent_workload_last_end_timestamp_seconds', _THESE), *_NAME)}",
                        "dateTimeFromNow",
                    ),
                    labels=_NAME,
                    width=8,
                ),
                listing(
                    "Outcomes",
                    "Runs that the agents have counted, by outcome. Much else than success: the reason is in the outcome's name.",
                    Column("Runs", total(of("nsagent_workload_runs_total", _THESE), "workload", "outcome"), "none"),
                    labels=("workload", "outcome"),
                    width=8,
                ),
                listing(
                    "Cost of a run",
                    "CPU time and bytes of an average run: what to multiply when you plan more of them.",
                    Column("CPU", _a_run("nsagent_workload_cpu_seconds_total"), "s"),
                    Column("Read", _a_run("nsagent_workload_io_bytes_total", 'operation="read"'), "bytes"),
                    Column("Written", _a_run("nsagent_workload_io_bytes_total", 'operation="write"'), "bytes"),
                    labels=("workload",),
                    width=8,
                ),
            ),
        ),
        (
            "Running now",
            (
                graph(
                    "CPU of running jobs",
                    "none",
                    "CPUs that each job uses while it runs. Click to see its throttling and memory.",
                    Query(top(10, f"{rate('nsagent_cgroup_cpu_usage_seconds_total')} {of_job}"), "{{workload}}"),
                    stacked=True,
                    links=to_cgroup,
                ),
                graph(
                    "Memory of running jobs",
                    "bytes",
                    "Working set of each job while it runs. Click to compare it with its limit.",
                    Query(top(10, f"{of('nsagent_cgroup_memory_working_set_bytes')} {of_job}"), "{{workload}}"),
                    stacked=True,
                    links=to_cgroup,
                ),
            ),
        ),
    )
