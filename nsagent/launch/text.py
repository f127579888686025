"""A job's report for people: a line a subject, those that nobody could measure left out; and as one JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

from nsagent.launch.report import RunResult, to_dict
from nsagent.launch.timeline import Timeline, sparkline

_SETUP_SHOWS_NS: Final = 500_000_000  # of CPU: of that the child's work before it is CMD, some 10 ms, is 2 %


def to_json(result: RunResult) -> str:
    """Return the report as one JSON document."""
    return json.dumps(to_dict(result), indent=2) + "\n"


def to_text(result: RunResult) -> str:
    """Return the report for people."""
    width = 11
    lines = [f"job {result.id}: {result.reason}"]
    lines += [f"  {subject:<{width}} {text}" for subject, text in _rows(result)]
    return "\n".join(lines) + "\n"


def _rows(result: RunResult) -> Iterator[tuple[str, str]]:
    usage = result.usage
    yield "wall", seconds(result.wall_ns)
    if usage.cpu_ns is not None:
        yield "cpu", f"{seconds(usage.cpu_ns)} ({', '.join(_cpu(result))})"
    yield from _memory(result)
    if usage.io_read_bytes is not None and usage.io_write_bytes is not None:
        whose = " (counted by its tasks)" if usage.io_source == "tasks" else ""
        yield "io", f"read {size(usage.io_read_bytes)}, written {size(usage.io_write_bytes)}{whose}"
    for device, io in usage.io_devices.items():
        if io.read_bytes or io.write_bytes:
            read, written = size(io.read_bytes or 0), size(io.write_bytes or 0)
            yield f"  {device}", f"read {read}, written {written} (counted by its cgroup)"
    if usage.minor_faults is not None and usage.major_faults is not None:
        yield "faults", f"{usage.minor_faults} minor, {usage.major_faults} major"
    if usage.voluntary_switches is not None and usage.involuntary_switches is not None:
        yield "switches", f"{usage.voluntary_switches} voluntary, {usage.involuntary_switches} involuntary"
    if usage.run_queue_ns is not None:
        yield "run queue", f"{seconds(usage.run_queue_ns)} without a CPU (its first thread)"
    if usage.throttled_ns is not None and usage.throttled_periods:
        yield "throttled", f"{seconds(usage.throttled_ns)} in {usage.throttled_periods} of {usage.periods} periods"
    waited = [f"{name} {seconds(p.waiting_ns)}" for name, p in usage.pressure.items() if p.waiting_ns]
    if waited:
        yield "pressure", f"some task waited for {', '.join(waited)}"
    if usage.pids_peak is not None:
        yield "pids", f"peak {usage.pids_peak}"
    if usage.oom_kills:
        yield "oom", f"{usage.oom_kills} killed for lack of memory"
    if result.timeline is not None and result.timeline.elapsed_ns:
        yield from _timeline(result.timeline)
    made = [f"{kind} {ref.inum}" for kind, ref in result.namespaces.items() if ref.new]
    if made:
        yield "namespaces", ", ".join(made)
    joined = [f"{kind} {ref.inum}" for kind, ref in result.namespaces.items() if ref.joined]
    if joined:
        yield "joined", ", ".join(joined)
    for note in result.notes:
        yield "note", note


def _cpu(result: RunResult) -> Iterator[str]:
    usage, efficiency = result.usage, result.cpu_efficiency
    if usage.user_ns is not None and usage.system_ns is not None:
        yield f"user {seconds(usage.user_ns)}, system {seconds(usage.system_ns)}"
    if usage.cpu_ns is not None and result.wall_ns:
        yield f"{usage.cpu_ns / result.wall_ns:.0%} of one CPU"
    if efficiency is not None and result.cpus != 1:
        yield f"{efficiency:.0%} of the {result.cpus:g} it had"
    if usage.cpu_ns is not None and usage.cpu_ns < _SETUP_SHOWS_NS:
        yield "its set-up included"
    if usage.cpu_source == "wait":
        yield "only what was waited for"


def _memory(result: RunResult) -> Iterator[tuple[str, str]]:
    usage = result.usage
    largest = "" if usage.max_rss_bytes is None else f"largest process {size(usage.max_rss_bytes)}"
    if usage.memory_source == "cgroup" and usage.memory_peak_bytes is not None:
        yield "memory", f"peak {size(usage.memory_peak_bytes)}" + (f" ({largest})" if largest else "")
    elif largest:
        yield "memory", f"peak of the {largest}"


def _timeline(timeline: Timeline) -> Iterator[tuple[str, str]]:
    every = f"every {timeline.interval_ns / 1e9:g} s"
    cores, memory = timeline.cores(), timeline.memory_bytes
    if any(each is not None for each in cores):
        top = max(each for each in cores if each is not None)
        yield "cpu / time", f"{sparkline(cores)} up to {top:.2f} CPUs, {every}"
    if any(each is not None for each in memory):
        top = max(each for each in memory if each is not None)
        yield "mem / time", f"{sparkline(memory)} up to {size(int(top))}"


def seconds(ns: int | None) -> str:
    """Return a time with the unit."""
    return f"{(ns or 0) / 1e9:.3f} s"


def size(count: int) -> str:
    """Return bytes in the largest unit that fits."""
    left = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if left < 1024:
            return f"{count} B" if unit == "B" else f"{left:.1f} {unit}"
        left /= 1024
    return f"{left:.1f} TiB"
