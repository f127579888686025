"""Calls that make and enter namespaces, and what in them deserves a look."""

from __future__ import annotations

from grafana_foundation_sdk.builders.dashboard import Dashboard

from dashboards.panels import Query, board, figure, fill, graph
from dashboards.query import gained, of, rate, top, total


def _findings(rule: str) -> str:
    findings = of("nsagent_findings_total", f'rule="{rule}"')
    return f"round(sum(increase({findings}[$__range])))"


def build() -> Dashboard:
    """Return the dashboard."""
    return fill(
        board(
            "tracing",
            "Tracing and findings",
            "Who makes and enters namespaces, which calls fail, and what looks like an escape or a leak.",
        ),
        (
            "Findings in the time shown",
            (
                figure(
                    "Entered the host",
                    "none",
                    "A container's process in a mount or user namespace of the host. Find it with `nsagent trace` or in the "
                    "events, and know why.",
                    _findings("to_host"),
                    warn=1,
                    bad=1,
                    width=6,
                ),
                figure(
                    "Unprivileged user namespaces",
                    "none",
                    "An ordinary user made a mount or network namespace in a user namespace. Expected of rootless engines and "
                    "browsers, of nobody else.",
                    _findings("unprivileged_userns"),
                    warn=1,
                    width=6,
                ),
                figure(
                    "Orphans",
                    "none",
                    "Namespaces without a process for an hour that a mount or a descriptor keeps. `nsagent ns list` names what "
                    "keeps each.",
                    _findings("orphan"),
                    warn=1,
                    width=6,
                ),
                figure(
                    "Clone storms",
                    "none",
                    "A cgroup that made more than 1,000 processes a second. Give it a pids limit, or stop the loop.",
                    _findings("clone_storm"),
                    warn=1,
                    width=6,
                ),
            ),
        ),
        (
            "Calls",
            (
                graph(
                    "Calls",
                    "cps",
                    "clone, fork, unshare and setns calls a second. A step that no deployment explains is a loop that forks.",
                    Query(total(rate("nsagent_syscalls_total"), "syscall"), "{{syscall}}"),
                ),
                graph(
                    "Calls that failed",
                    "cps",
                    "By errno. EPERM: a program without the right; ENOSPC: a namespace limit; EAGAIN: a pids limit; EINVAL: a "
                    "program that is wrong.",
                    Query(total(rate("nsagent_syscalls_total", 'result!="ok"'), "syscall", "result"), "{{syscall}} {{result}}"),
                ),
                graph(
                    "Namespaces asked for",
                    "cps",
                    "By kind and call. Container starts ask for five or six kinds at once; a kind alone is a tool, a sandbox, "
                    "or something new.",
                    Query(top(10, total(rate("nsagent_namespace_syscalls_total"), "syscall", "kind")), "{{syscall}} {{kind}}"),
                ),
                graph(
                    "Joins",
                    "none",
                    "Moves into existing namespaces. into_container is an exec into a container, to_host the way out of one.",
                    Query(total(gained("nsagent_namespace_joins_total"), "crossing"), "{{crossing}}"),
                    bars=True,
                ),
            ),
        ),
        (
            "Is all of it here?",
            (
                graph(
                    "Events",
                    "cps",
                    "Events a second that the agents received. The more, the nearer the ring buffer is to its end.",
                    Query(total(rate("nsagent_trace_events_total"), "instance"), "{{instance}}"),
                ),
                graph(
                    "Events lost",
                    "cps",
                    "ringbuf_full: raise --ring-size; rate_limited: --rate did its work; queue_full: one client of `nsagent "
                    "trace` was slow. Counters above are still exact.",
                    Query(total(rate("nsagent_trace_lost_events_total"), "instance", "reason"), "{{instance}} {{reason}}"),
                ),
            ),
        ),
    )
