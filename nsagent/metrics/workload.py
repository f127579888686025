"""Families of the jobs that `nsagent run` launched, by their name: `workload`, for `job` is Prometheus' own label."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import accumulate
from typing import Final

from nsagent.metrics.family import NS_PER_S, Each, Family, Histogram, Number, Scope
from nsagent.sample import NodeSample
from nsagent.workloads import BOUNDS_S, OUTCOMES, Workload

_REPORT: Final = "the reports of jobs in the state directory (docs/report.md), each counted once"


def _of_each(number: Callable[[Workload], Number]) -> Callable[[NodeSample], Each]:
    return lambda sample: (((name,), number(each)) for name, each in sample.workloads.by_name.items()) if sample.workloads else ()


def _by(*values: tuple[str, Callable[[Workload], Number]]) -> Callable[[NodeSample], Each]:
    def each(sample: NodeSample) -> Each:
        for name, workload in sample.workloads.by_name.items() if sample.workloads else ():
            for value, number in values:
                yield (name, value), number(workload)

    return each


def _runs(sample: NodeSample) -> Each:
    for name, workload in sample.workloads.by_name.items() if sample.workloads else ():
        for outcome in OUTCOMES:
            if outcome in workload.runs:
                yield (name, outcome), workload.runs[outcome]


def _durations(sample: NodeSample) -> Iterable[tuple[tuple[str, ...], Histogram]]:
    for name, workload in sample.workloads.by_name.items() if sample.workloads else ():
        counts = tuple(accumulate(workload.durations))
        yield (name,), Histogram(tuple(zip(BOUNDS_S, counts[:-1], strict=True)), counts[-1], workload.wall_ns)


def _running(sample: NodeSample) -> Number:
    return sample.workloads.running if sample.workloads else None


FAMILIES: Final = (
    Family(
        "nsagent_workload_runs_total",
        "counter",
        Scope.NODE,
        "Jobs of this name that ended, by how: success, failure (another exit code than 0), signal, oom, timeout, launch_error "
        "(it never began), abandoned (its launcher was killed). Of the 1,000 names that ended last.",
        _REPORT,
        ("workload", "outcome"),
        each=_runs,
    ),
    Family(
        "nsagent_workload_last_exit_code",
        "gauge",
        Scope.NODE,
        "Exit code of the job of this name that ended last; absent where its launcher was killed.",
        _REPORT,
        ("workload",),
        each=_of_each(lambda workload: workload.last_exit_code),
    ),
    Family(
        "nsagent_workload_last_start_timestamp_seconds",
        "gauge",
        Scope.NODE,
        "When the job of this name that ended last began, since the epoch.",
        _REPORT,
        ("workload",),
        each=_of_each(lambda workload: workload.last_start),
    ),
    Family(
        "nsagent_workload_last_end_timestamp_seconds",
        "gauge",
        Scope.NODE,
        "When the job of this name that ended last did so, since the epoch.",
        _REPORT,
        ("workload",),
        each=_of_each(lambda workload: workload.last_end),
    ),
    Family(
        "nsagent_workload_duration_seconds",
        "histogram",
        Scope.NODE,
        "How long jobs of this name took, from the release of the command to its end.",
        _REPORT,
        ("workload",),
        histograms=_durations,
        scale=NS_PER_S,
    ),
    Family(
        "nsagent_workload_cpu_seconds_total",
        "counter",
        Scope.NODE,
        "CPU time of the jobs of this name that ended, all their processes together.",
        _REPORT,
        ("workload", "mode"),
        each=_by(("user", lambda workload: workload.user_ns), ("system", lambda workload: workload.system_ns)),
        scale=NS_PER_S,
    ),
    Family(
        "nsagent_workload_memory_peak_bytes",
        "gauge",
        Scope.NODE,
        "Most memory charged at once to the job of this name that ended last, file pages included.",
        _REPORT,
        ("workload",),
        each=_of_each(lambda workload: workload.last_memory_peak_bytes),
    ),
    Family(
        "nsagent_workload_io_bytes_total",
        "counter",
        Scope.NODE,
        "Bytes that the jobs of this name that ended moved from and to storage.",
        _REPORT,
        ("workload", "operation"),
        each=_by(("read", lambda workload: workload.read_bytes), ("write", lambda workload: workload.write_bytes)),
    ),
    Family(
        "nsagent_workloads_running",
        "gauge",
        Scope.NODE,
        "Jobs that have not ended.",
        "the registry of jobs in the state directory",
        parts=(((), _running),),
    ),
)
