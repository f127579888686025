"""Families of the traced calls: clone, clone3, fork, vfork, unshare and setns. All are absent where nothing is traced."""

from __future__ import annotations

from typing import Final

from nsagent.metrics.family import Each, Family, Number, Scope
from nsagent.sample import NodeSample


def _calls(sample: NodeSample) -> Each:
    return iter(sample.syscalls.syscalls.items()) if sample.syscalls else iter(())


def _calls_by_kind(sample: NodeSample) -> Each:
    return iter(sample.syscalls.namespace_syscalls.items()) if sample.syscalls else iter(())


def _events(sample: NodeSample) -> Number:
    return sample.syscalls.events if sample.syscalls else None


def _lost(sample: NodeSample) -> Each:
    return (((reason,), count) for reason, count in sample.syscalls.lost.items()) if sample.syscalls else iter(())


def _findings(sample: NodeSample) -> Each:
    return (((rule,), count) for rule, count in sample.findings.items())


_SOURCE: Final = "BPF: tracepoints syscalls:sys_enter_*, sys_exit_*"

FAMILIES: Final[tuple[Family, ...]] = (
    Family(
        "nsagent_syscalls_total",
        "counter",
        Scope.NODE,
        "Calls since the programs were loaded, one a call; the result is ok or the name of the errno.",
        _SOURCE,
        ("syscall", "result"),
        each=_calls,
    ),
    Family(
        "nsagent_namespace_syscalls_total",
        "counter",
        Scope.NODE,
        "Calls by the kind of namespace they asked for: one call may count in several kinds, a plain fork counts in none.",
        _SOURCE,
        ("syscall", "kind", "result"),
        each=_calls_by_kind,
    ),
    Family(
        "nsagent_trace_events_total",
        "counter",
        Scope.NODE,
        "Events in the ring buffer: calls that change, or fail to change, namespaces; all calls while a client wants them.",
        "BPF: the map stats",
        parts=(((), _events),),
    ),
    Family(
        "nsagent_trace_lost_events_total",
        "counter",
        Scope.NODE,
        "Events that did not arrive: ringbuf_full (the agent read too slowly or did not run) and rate_limited (more than --rate "
        "from one cgroup) nobody saw; queue_full one client of nsagent trace or one sink, which took them too slowly.",
        "BPF: the map stats; the agent",
        ("reason",),
        each=_lost,
    ),
    Family(
        "nsagent_findings_total",
        "counter",
        Scope.NODE,
        "Findings by rule, as docs/findings.md explains them; rules that are switched off are absent.",
        "the agent, from the events, the rows and /proc",
        ("rule",),
        each=_findings,
    ),
)
