"""The exposition of the agent's own process: process_* and python_info, named as all client libraries name them.

Not by prometheus_client: that lists /proc/self/fd, 15 ms of a scrape where 10,000 descriptors are kept, and takes 8 MB.
Sources: prometheus.io/docs/instrumenting/writing_clientlibs (process metrics); man 5 proc_pid_stat, proc_pid_statm, proc_pid_fd.
"""

from __future__ import annotations

import contextlib
import os
import platform
import resource
import time
from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final, NamedTuple

from nsagent import procfs
from nsagent.errors import NsagentError
from nsagent.metrics.encode import header, node_lines
from nsagent.metrics.family import NS_PER_S, Each, Family, Number, Scope


class _Reading(NamedTuple):
    """The process at one moment; None: not to be read here."""

    cpu_ns: int
    started: float | None  # CLOCK_REALTIME, s
    virtual_bytes: int | None
    resident_bytes: int | None
    open_fds: int | None
    max_fds: int | None


def _family(name: str, text: str, source: str, read: Callable[[Any], Number], **more: Any) -> Family:
    kind: Any = "counter" if name.endswith("_total") else "gauge"
    return Family(f"process_{name}", kind, Scope.NODE, text, source, (), (((), read),), **more)


def _python(_: _Reading) -> Each:
    version = platform.python_version_tuple()
    yield (platform.python_implementation(), *version, ".".join(version)), 1


_FAMILIES: Final = (
    _family("cpu_seconds_total", "CPU time of the process.", "clock_gettime", attrgetter("cpu_ns"), scale=NS_PER_S),
    _family("virtual_memory_bytes", "Virtual memory of the process.", "statm", attrgetter("virtual_bytes")),
    _family("resident_memory_bytes", "Resident memory of the process.", "statm", attrgetter("resident_bytes")),
    _family("start_time_seconds", "When the process was started, since the epoch.", "stat", attrgetter("started")),
    _family("open_fds", "Open file descriptors.", "fd", attrgetter("open_fds")),
    _family("max_fds", "Most open file descriptors; absent without a limit.", "getrlimit", attrgetter("max_fds")),
    Family(
        "python_info",
        "info",
        Scope.NODE,
        "The Python that runs it.",
        "sys",
        ("implementation", "major", "minor", "patchlevel", "version"),
        each=_python,
    ),
)


class Process:
    """The exposition of process_* and python_info."""

    def __init__(self) -> None:
        self._started = _started()

    def __call__(self, openmetrics: bool) -> bytes:
        """Return it in one of the two formats, without the EOF line. 0.1 ms."""
        reading: Any = self._read()  # in place of a sample
        lines = ((family, "".join(node_lines(family, reading))) for family in _FAMILIES)
        return "".join(header(family, openmetrics) + text for family, text in lines if text).encode()

    def _read(self) -> _Reading:
        virtual = resident = None
        with contextlib.suppress(OSError, ValueError), open("/proc/self/statm", "rb") as file:
            virtual, resident = (int(word) * resource.getpagesize() for word in file.read().split()[:2])
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        limit = None if most == resource.RLIM_INFINITY else most
        return _Reading(time.process_time_ns(), self._started, virtual, resident, count_descriptors(), limit)


def count_descriptors(directory: str = "/proc/self/fd") -> int | None:
    """Count the open descriptors; None where they cannot be seen.

    Since Linux kernel commit f1f1f2569901 ("proc: report open files as size in stat() for /proc/pid/fd") (in v6.2) no list is
    needed; before, the size is 0.
    """
    try:
        return os.stat(directory).st_size or len(os.listdir(directory)) - 1  # the list has the descriptor that reads it
    except OSError:
        return None


def _started() -> float | None:
    try:
        boot = time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
        return round(boot + procfs.read_stat("self").start_ticks / procfs.TICKS_PER_SECOND, 2)
    except (NsagentError, OSError):
        return None
