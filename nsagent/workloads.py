"""What the jobs of `nsagent run` have used, by name: each job that ended is counted once, whoever is killed when.

A job has ended when its report has its place in the registry, by one rename(2) of its launcher or of a sweep
(nsagent.jobs.ended). It has been counted when <state-dir>/workloads.json names it: that file has the totals and the ids that
are in them, and is replaced by one rename too. An agent that dies before it finds the report again and the totals without
it, one that dies after it finds both. Only what is counted is removed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from nsagent.jobs.ended import Counting
from nsagent.jobs.live import count_live
from nsagent.jobs.record import JobRecord

log = logging.getLogger(__name__)

OUTCOMES: Final = ("success", "failure", "signal", "oom", "timeout", "launch_error", "abandoned")
BOUNDS_S: Final = (0.01, 0.1, 1, 10, 60, 300, 900, 3600, 6 * 3600, 24 * 3600)
MOST_NAMES: Final = 1000
_VERSION: Final = 1


@dataclass(slots=True)
class Workload:
    """All runs of one name. Times are ns; `last_*` are of the run that ended last, seconds since the epoch; None: not known.

    `durations` has how many runs were in each bucket of BOUNDS_S, and above the last; runs that never began are in none.
    """

    runs: dict[str, int] = field(default_factory=dict)
    durations: list[int] = field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    wall_ns: int = 0
    user_ns: int = 0
    system_ns: int = 0
    read_bytes: int = 0
    write_bytes: int = 0
    last_exit_code: int | None = None
    last_start: float | None = None
    last_end: float | None = None
    last_memory_peak_bytes: int | None = None

    def add(self, job: JobRecord) -> None:
        """Count a job that ended."""
        usage: Mapping[str, Any] = job.report.get("usage", {})
        outcome = job.outcome if job.outcome in OUTCOMES else "abandoned"
        self.runs[outcome] = self.runs.get(outcome, 0) + 1
        self.user_ns += _whole(usage.get("user_ns"))
        self.system_ns += _whole(usage.get("system_ns"))
        self.read_bytes += _whole(usage.get("io_read_bytes"))
        self.write_bytes += _whole(usage.get("io_write_bytes"))
        wall_ns = job.report.get("wall_ns")
        if isinstance(wall_ns, int):
            self.wall_ns += wall_ns
            self.durations[sum(wall_ns > bound * 1e9 for bound in BOUNDS_S)] += 1
        if (job.end or 0) >= (self.last_end or 0):
            self.last_exit_code, self.last_start, self.last_end = job.exit_code, job.start, job.end
            peak = usage.get("memory_peak_bytes")
            self.last_memory_peak_bytes = peak if isinstance(peak, int) else None


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value > 0 else 0


@dataclass(frozen=True, slots=True)
class Workloads:
    """The jobs of a node: those that ended, by name, and how many run."""

    by_name: Mapping[str, Workload]
    running: int


class WorkloadCounter:
    """Counts the jobs of one state directory. Safe from any thread."""

    def __init__(self, state_dir: str) -> None:
        """Raises AccessError where the directory cannot be written."""
        self._state_dir = state_dir
        self._path = os.path.join(state_dir, "workloads.json")
        self._lock = threading.Lock()
        self._counting = Counting(state_dir)
        self._totals: dict[str, Workload] = {}
        self._counted: set[str] = set()
        self._load()

    def close(self) -> None:
        """Let another process count."""
        self._counting.close()

    def read(self) -> Workloads:
        """Count what has ended since the last call, and return all. What could not be written is counted again next time."""
        with self._lock:
            there = self._counting.ids()
            new = [job for job_id in there.keys() - self._counted if (job := self._counting.read(there[job_id]))]
            if new:
                self._count(new)
            counted = {job_id: name for job_id, name in there.items() if job_id in self._counted}
            self._counted.difference_update(self._counting.prune(counted))
            return Workloads(dict(self._totals), count_live(self._state_dir, there))

    def _count(self, new: list[JobRecord]) -> None:
        totals = dict(self._totals)
        for name in {job.name for job in new}:
            old = totals.get(name, Workload())
            totals[name] = dataclasses.replace(old, runs=dict(old.runs), durations=list(old.durations))
        for job in new:
            totals[job.name].add(job)
        if len(totals) > MOST_NAMES:
            totals = dict(sorted(totals.items(), key=lambda item: item[1].last_end or 0)[-MOST_NAMES:])
        counted = self._counted | {job.id for job in new}
        if self._save(totals, counted):
            self._totals, self._counted = totals, counted

    def _save(self, totals: Mapping[str, Workload], counted: set[str]) -> bool:
        document = {
            "version": _VERSION,
            "workloads": {name: dataclasses.asdict(workload) for name, workload in totals.items()},
            "counted": sorted(counted),
        }
        try:
            with open(f"{self._path}.new", "w", encoding="utf-8") as out:
                json.dump(document, out)
            os.replace(f"{self._path}.new", self._path)
        except OSError as error:
            log.warning("event=workloads_not_written path=%s reason=%s", self._path, error.strerror)
            with contextlib.suppress(OSError):
                os.unlink(f"{self._path}.new")
            return False
        return True

    def _load(self) -> None:
        try:
            with open(self._path, encoding="utf-8") as file:
                document = json.load(file)
            if document["version"] != _VERSION:
                raise ValueError(f"version {document['version']}")
            self._totals = {str(name): Workload(**each) for name, each in document["workloads"].items()}
            self._counted = {job_id for job_id in map(str, document["counted"]) if self._counting.has(job_id)}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("event=state_refused path=%s reason=%r", self._path, error)
