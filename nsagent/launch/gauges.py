"""A job's report as metrics of its last run: a file for node_exporter's textfile collector, or a push to a Pushgateway.

Gauges only: a job has no memory of its earlier runs. The counters over all runs are the agent's (`nsagent_workload_*`).
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Iterator, Mapping
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from nsagent.errors import AccessError, NsagentError, UsageError
from nsagent.launch.report import RunResult

OUTCOMES: Final = ("success", "failure", "signal", "oom", "timeout")
_PUSH_SECONDS: Final = 10.0
_MODE: Final = 0o644  # node_exporter is another user


class Gauge(NamedTuple):
    """One metric, with its values by its one label's value; `label` is "" for one without, whose only key is ""."""

    name: str
    help: str
    label: str
    values: Mapping[str, float]


def gauges(result: RunResult) -> Iterator[Gauge]:
    """Yield the metrics of a job, in seconds and bytes; what nobody measured is left out."""
    usage = result.usage
    pressure = {name: waited.waiting_ns for name, waited in usage.pressure.items()}
    yield from _each("exit_code", "Exit code of the last run.", result.exit_code)
    yield Gauge(
        "nsagent_run_outcome",
        "1 for how the last run ended.",
        "outcome",
        {outcome: float(outcome == result.outcome) for outcome in OUTCOMES},
    )
    yield from _each("start_timestamp_seconds", "When the last run began, since the epoch.", result.start)
    yield from _each("end_timestamp_seconds", "When the last run ended, since the epoch.", result.end)
    yield from _each("duration_seconds", "How long the last run took.", result.wall_ns, 1e9)
    yield from _by("cpu_seconds", "CPU time of the last run.", "mode", {"user": usage.user_ns, "system": usage.system_ns}, 1e9)
    yield from _each("cpu_efficiency_ratio", "Part used of the CPU time that the last run could have had.", result.cpu_efficiency)
    yield from _each("memory_peak_bytes", "Most memory charged at once in the last run.", usage.memory_peak_bytes)
    yield from _each("max_rss_bytes", "Peak of the largest process of the last run.", usage.max_rss_bytes)
    io = {"read": usage.io_read_bytes, "write": usage.io_write_bytes}
    yield from _by("io_bytes", "Bytes that the tasks of the last run moved from and to storage.", "operation", io)
    faults = {"minor": usage.minor_faults, "major": usage.major_faults}
    yield from _by("page_faults", "Page faults of the last run.", "type", faults)
    yield from _each("throttled_seconds", "How long the CPU limit stopped the last run.", usage.throttled_ns, 1e9)
    yield from _by(
        "pressure_waiting_seconds", "How long some task of the last run waited for a resource.", "resource", pressure, 1e9
    )
    yield from _each("pids_peak", "Most processes and threads at once in the last run.", usage.pids_peak)
    yield from _each("oom_kills", "Processes of the last run that were killed for lack of memory.", usage.oom_kills)


def _each(name: str, text: str, value: float | None, scale: float = 1) -> Iterator[Gauge]:
    return _by(name, text, "", {"": value}, scale)


def _by(name: str, text: str, label: str, values: Mapping[str, float | None], scale: float = 1) -> Iterator[Gauge]:
    known = {key: value / scale if scale != 1 else value for key, value in values.items() if value is not None}
    if known:
        yield Gauge(f"nsagent_run_{name}", text, label, known)


def exposition(result: RunResult) -> str:
    """Return the metrics in Prometheus' text format, with the label `workload`."""
    lines = []
    for gauge in gauges(result):
        lines += [f"# HELP {gauge.name} {gauge.help}", f"# TYPE {gauge.name} gauge"]
        for key, value in gauge.values.items():
            more = f',{gauge.label}="{key}"' if gauge.label else ""
            lines.append(f'{gauge.name}{{workload="{_escape(result.name)}"{more}}} {value!r}')
    return "\n".join(lines) + "\n"


def _escape(text: str) -> str:
    plain = text.encode("utf-8", "backslashreplace").decode()
    return plain.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def check_textfile(directory: str) -> None:
    """Refuse a directory where no file could be made, before the job runs. Raises AccessError."""
    if not os.access(directory, os.W_OK | os.X_OK) or not os.path.isdir(directory):
        raise AccessError(
            f"--report textfile:{directory}: no file can be made there",
            hint="name the directory of node_exporter's --collector.textfile.directory",
        )


def write_textfile(result: RunResult, directory: str) -> str:
    """Write nsagent_run_NAME.prom into `directory`, in place of that of the last run; return its path.

    A reader has the old or the new one, whole. Raises AccessError.
    """
    word = re.sub(r"[^A-Za-z0-9_.-]+", "_", result.name)
    path = os.path.join(directory, f"nsagent_run_{word}.prom")
    hidden = os.path.join(directory, f".nsagent_run_{word}.{os.getpid()}.new")  # the collector takes what ends in .prom
    try:
        with contextlib.suppress(FileNotFoundError):  # the directory may be another user's, who may have put a link there
            os.unlink(hidden)
        with open(os.open(hidden, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as out:
            out.write(exposition(result))
            os.fchmod(out.fileno(), _MODE)
        os.replace(hidden, path)
    except OSError as exc:
        raise AccessError(f"--report textfile:{directory}: {exc.strerror}", hint="the directory must be writable") from exc
    return path


def check_push(url: str) -> None:
    """Refuse what is no address of a Pushgateway. Raises UsageError."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UsageError(f"--push {url!r} is not the address of a Pushgateway", hint="such as http://127.0.0.1:9091")


def push(result: RunResult, url: str) -> None:
    """Replace the group {job=nsagent, instance=HOST, workload=NAME} of a Pushgateway. Raises NsagentError."""
    from urllib.error import URLError

    from prometheus_client import CollectorRegistry, push_to_gateway
    from prometheus_client import Gauge as Metric

    registry = CollectorRegistry()
    for gauge in gauges(result):
        metric = Metric(gauge.name, gauge.help, [gauge.label] if gauge.label else [], registry=registry)
        for key, value in gauge.values.items():
            (metric.labels(key) if gauge.label else metric).set(value)
    group = {"instance": socket.gethostname(), "workload": result.name}
    try:
        push_to_gateway(url, job="nsagent", registry=registry, grouping_key=group, timeout=_PUSH_SECONDS)
    except OSError as exc:  # urllib's errors are
        cause = exc.reason if type(exc) is URLError else exc  # an HTTPError, which is one too, says it best itself
        raise NsagentError(
            f"--push {url}: {getattr(cause, 'strerror', None) or cause}",
            hint="the job itself has run: see its exit code and report",
        ) from exc
