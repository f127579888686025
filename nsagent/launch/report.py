"""What a job was and what it used: RunResult, and its form for programs (docs/report.md). For people: nsagent.launch.text.

A value that nobody could report is None, absent in JSON and in the text; it is never shown as 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, NamedTuple

from nsagent.cgroups.stats import IoDevice, Pressure
from nsagent.launch.timeline import Timeline

SCHEMA_VERSION: Final = 1
_NONE: Final[Mapping[str, Any]] = MappingProxyType({})


class JobUsage(NamedTuple):
    """What the job used, read after its last process ended and before its cgroup was removed. ns and bytes.

    The `_source` fields say who counted: "cgroup" is the kernel's accounting of the whole job; "wait" is getrusage of CMD
    and of what it waited for (as PID 1: everything); "tasks" is /proc/PID/io of CMD, which has in it all that it waited for.
    `memory_peak_bytes` from "wait" is the peak of the largest process, as `max_rss_bytes` always is. Faults and context
    switches are those of "wait". `run_queue_ns` is how long CMD's first thread was ready and had no CPU. `io_devices` is
    by the device's name (nsagent.cgroups.devices); empty where it counts none. `pressure` is by resource: cpu, memory, io, irq.
    """

    cpu_ns: int | None = None
    user_ns: int | None = None
    system_ns: int | None = None
    cpu_source: str | None = None
    memory_peak_bytes: int | None = None
    memory_source: str | None = None
    max_rss_bytes: int | None = None
    io_read_bytes: int | None = None
    io_write_bytes: int | None = None
    io_source: str | None = None
    io_devices: Mapping[str, IoDevice] = _NONE
    minor_faults: int | None = None
    major_faults: int | None = None
    voluntary_switches: int | None = None
    involuntary_switches: int | None = None
    run_queue_ns: int | None = None
    pids_peak: int | None = None
    throttled_ns: int | None = None
    throttled_periods: int | None = None
    periods: int | None = None
    pressure: Mapping[str, Pressure] = _NONE
    oom_kills: int | None = None


class NamespaceRef(NamedTuple):
    """A namespace the job ran in. `id` is the kernel's number of it, never used again, where it has one.

    `new`: made for it; `joined`: another one's.
    """

    inum: int
    id: int | None
    new: bool
    joined: bool = False


class RunResult(NamedTuple):
    """One job from start to end. Times are seconds since the epoch; `wall_ns` is on the monotonic clock.

    `outcome`: success, failure, signal, oom, timeout. `exit_code` is what `nsagent run` ends with; `reason` says it in
    words. `cgroup` is the path it had below the root of each hierarchy, or "" where it had none. `cpus`: how many it could
    use at once. `notes`: what was not done as asked, and why.
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
    namespaces: Mapping[str, NamespaceRef]
    usage: JobUsage
    cpus: float | None = None
    timeline: Timeline | None = None
    notes: tuple[str, ...] = ()

    @property
    def cpu_efficiency(self) -> float | None:
        """The part of the CPU time it could have had, all its CPUs from start to end, that it used: 1 is all."""
        if self.usage.cpu_ns is None or not self.cpus or not self.wall_ns:
            return None
        return self.usage.cpu_ns / (self.wall_ns * self.cpus)


def _known(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None and value != {}}


def usage_to_dict(found: JobUsage) -> dict[str, Any]:
    """Return a usage as JSON has it: what nobody reported is left out."""
    usage = found._asdict()
    for field_name in ("io_devices", "pressure"):
        usage[field_name] = {key: _known(each._asdict()) for key, each in usage[field_name].items()}
    return _known(usage)


def to_dict(result: RunResult) -> dict[str, Any]:
    """Return the result as JSON has it: `schema`, then the fields by name, None left out."""
    efficiency = result.cpu_efficiency
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
        "namespaces": {kind: _known(ref._asdict()) for kind, ref in result.namespaces.items()},
        **_known({"cpus": result.cpus, "cpu_efficiency": None if efficiency is None else round(efficiency, 4)}),
        "usage": usage_to_dict(result.usage),
        **({} if result.timeline is None else {"timeline": result.timeline._asdict()}),
        "notes": list(result.notes),
    }


def from_dict(document: Mapping[str, Any]) -> RunResult:
    """Return what `to_dict` was given. Fields of a later schema are left out. Raises KeyError, TypeError or AttributeError
    where the document is none of ours."""
    usage = _fields(JobUsage, document["usage"])
    usage["io_devices"] = {key: IoDevice(**_fields(IoDevice, each)) for key, each in usage.get("io_devices", {}).items()}
    usage["pressure"] = {key: Pressure(**_fields(Pressure, each)) for key, each in usage.get("pressure", {}).items()}
    timeline = document.get("timeline")
    lists = {key: tuple(value) if isinstance(value, list) else value for key, value in (timeline or {}).items()}
    plain = ("id", "name", "start", "end", "wall_ns", "outcome", "exit_code", "reason", "cgroup")
    return RunResult(
        **{key: document[key] for key in plain},
        command=tuple(document["command"]),
        namespaces={
            kind: NamespaceRef(ref["inum"], ref.get("id"), ref["new"], ref.get("joined", False))
            for kind, ref in document["namespaces"].items()
        },
        usage=JobUsage(**usage),
        cpus=document.get("cpus"),
        timeline=Timeline(**_fields(Timeline, lists)) if timeline is not None else None,
        notes=tuple(document["notes"]),
    )


def _fields(kind: Any, values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key in kind._fields}
