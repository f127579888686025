"""What a job was and what it used: RunResult, and its forms for people (text) and for programs (JSON).

A value that nobody could report is None, absent in JSON and in the text; it is never shown as 0.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, NamedTuple

SCHEMA_VERSION: Final = 1


class JobUsage(NamedTuple):
    """What the job used, read after its last process ended and before its cgroup was removed. ns and bytes.

    The `_source` fields say who counted: "cgroup" is the kernel's accounting of the whole job; "wait" is getrusage of CMD
    and of what it waited for; "tasks" is /proc/PID/io of CMD, which has in it all that it (as PID 1: everything) waited
    for. `memory_peak_bytes` from "wait" is the peak of the largest process. `io_devices`: bytes (read, written) by
    major:minor, as the cgroup has them; empty where it counts none.
    """

    cpu_ns: int | None = None
    user_ns: int | None = None
    system_ns: int | None = None
    cpu_source: str | None = None
    memory_peak_bytes: int | None = None
    memory_source: str | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    io_source: str | None = None
    io_devices: Mapping[str, tuple[int, int]] = MappingProxyType({})
    pids_peak: int | None = None
    throttled_ns: int | None = None
    throttled_periods: int | None = None
    periods: int | None = None
    oom_kills: int | None = None


class NamespaceRef(NamedTuple):
    """A namespace the job ran in. `id` is the kernel's number of it, never used again, where it has one; `new`: made for it."""

    inum: int
    id: int | None
    new: bool


@dataclass(frozen=True, slots=True)
class RunResult:
    """One job from start to end. Times are seconds since the epoch; `wall_ns` is on the monotonic clock.

    `outcome`: success, failure, signal, oom, timeout. `exit_code` is what `nsagent run` ends with; `reason` says it in
    words. `cgroup` is the path it had below the root of each hierarchy, or "" where it had none. `notes`: what was not
    done as asked, and why.
    """

    id: str
    name: str
    command: tuple[str, ...]
    start: float
    end: float
    wall_ns: int
    outcome: str
    exit_code: int
    reason: str
    cgroup: str
    namespaces: dict[str, NamespaceRef]
    usage: JobUsage
    notes: tuple[str, ...] = field(default=())


def to_dict(result: RunResult) -> dict[str, Any]:
    """Return the result as JSON has it: `schema`, then the fields by name, None left out."""
    usage = result.usage._asdict()
    namespaces = {
        kind: {"inum": ref.inum, "new": ref.new} | ({} if ref.id is None else {"id": ref.id})
        for kind, ref in result.namespaces.items()
    }
    return {
        "schema": SCHEMA_VERSION,
        "id": result.id,
        "name": result.name,
        "command": list(result.command),
        "start": result.start,
        "end": result.end,
        "wall_ns": result.wall_ns,
        "outcome": result.outcome,
        "exit_code": result.exit_code,
        "reason": result.reason,
        "cgroup": result.cgroup,
        "namespaces": namespaces,
        "usage": {key: value for key, value in usage.items() if value not in (None, {})},
        "notes": list(result.notes),
    }


def to_json(result: RunResult) -> str:
    """Return the report as one JSON document."""
    return json.dumps(to_dict(result), indent=2) + "\n"


def to_text(result: RunResult) -> str:
    """Return the report for people: a line a subject, those that nobody could measure left out."""
    width = 12
    lines = [f"job {result.id}: {result.reason}"]
    lines += [f"  {subject:<{width}}{text}" for subject, text in _rows(result)]
    return "\n".join(lines) + "\n"


def _rows(result: RunResult) -> Iterator[tuple[str, str]]:
    usage = result.usage
    yield "wall", _seconds(result.wall_ns)
    if usage.cpu_ns is not None:
        parts = []
        if usage.user_ns is not None and usage.system_ns is not None:
            parts.append(f"user {_seconds(usage.user_ns)}, system {_seconds(usage.system_ns)}")
        if result.wall_ns:
            parts.append(f"{usage.cpu_ns / result.wall_ns:.0%} of one CPU")
        if usage.cpu_source == "wait":
            parts.append("only what was waited for")
        yield "cpu", f"{_seconds(usage.cpu_ns)} ({', '.join(parts)})"
    if usage.memory_peak_bytes is not None:
        whose = " (the largest process)" if usage.memory_source == "wait" else ""
        yield "memory", f"peak {_size(usage.memory_peak_bytes)}{whose}"
    if usage.io_read_bytes is not None and usage.io_write_bytes is not None:
        whose = " (counted by its tasks)" if usage.io_source == "tasks" else ""
        yield "io", f"read {_size(usage.io_read_bytes)}, written {_size(usage.io_write_bytes)}{whose}"
    for device, (read, written) in usage.io_devices.items():
        if read or written:
            yield f"  {device}", f"read {_size(read)}, written {_size(written)} (counted by its cgroup)"
    if usage.pids_peak is not None:
        yield "pids", f"peak {usage.pids_peak}"
    if usage.throttled_ns is not None and usage.throttled_periods:
        yield "throttled", f"{_seconds(usage.throttled_ns)} in {usage.throttled_periods} of {usage.periods} periods"
    if usage.oom_kills:
        yield "oom", f"{usage.oom_kills} killed for lack of memory"
    made = [f"{kind} {ref.inum}" for kind, ref in result.namespaces.items() if ref.new]
    if made:
        yield "namespaces", ", ".join(made)
    for note in result.notes:
        yield "note", note


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:.3f} s"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


class Verdict(NamedTuple):
    """`outcome`, `exit_code` and `reason` of a RunResult."""

    outcome: str
    exit_code: int
    reason: str


def judge(status: int, *, timeout_ns: int | None, carried_out: int | None, oom_kills: int) -> Verdict:
    """Say how a job ended. `status`: CMD's wait status; `timeout_ns`: the timeout if it was over; `carried_out`: see Ending.

    SIGKILL of CMD is the OOM killer's where it killed in this cgroup; a shell says 137 when the process it ran was.
    """
    if timeout_ns is not None:
        return Verdict("timeout", 124, f"stopped after its timeout of {timeout_ns / 1e9:g} s")
    if carried_out is not None:
        return Verdict("signal", 128 + carried_out, f"ended by {describe_signal(carried_out)}")
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    code = 128 + number if number else os.WEXITSTATUS(status)
    if oom_kills and code == 128 + signal.SIGKILL:
        return Verdict("oom", code, "killed for lack of memory: its limit was reached")
    if number:
        core = ", core dumped" if os.WCOREDUMP(status) else ""
        return Verdict("signal", code, f"ended by {describe_signal(number)}{core}")
    return Verdict("failure" if code else "success", code, f"exited with {code}")


def describe_signal(number: int) -> str:
    """Return a signal's name, such as SIGTERM, or its number where it has none."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
