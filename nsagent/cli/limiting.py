"""The options of `nsagent run` that bound what CMD uses: their words, and the limits they mean."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from nsagent.cgroups.limits import UNLIMITED, Limits
from nsagent.cli.option import Option
from nsagent.errors import UsageError
from nsagent.launch import quantities, tuning
from nsagent.launch.tuning import Tuning

_IO_MAX: Final = "rbps, wbps (bytes a second), riops, wiops of a disk; may be repeated."
OPTIONS: Final = (
    Option("--cpus", metavar="N", help="CPU time: 0.5 is half of one CPU."),
    Option("--cpuset", metavar="LIST", help="CPUs that may be used, such as 0-1."),
    Option("--cpu-weight", metavar="N", help="Share of CPU against others, 1 to 10000; 100 is normal."),
    Option("--memory", metavar="SIZE", help="Memory, such as 256M; swap is not added to it."),
    Option("--memory-swap", metavar="SIZE", help="Memory and swap together; -1: any swap.  [default: no swap]"),
    Option("--memory-high", metavar="SIZE", help="Memory above which it is slowed down, not killed (cgroup v2)."),
    Option("--pids", metavar="N", help="Processes and threads."),
    Option("--io-max", metavar="DEVICE:KEY=N,...", multiple=True, help=_IO_MAX),
    Option("--hugetlb", metavar="SIZE=N", multiple=True, help="Huge pages of a size, such as 2MB=64M; may be repeated."),
    Option("--io-weight", metavar="N", help="Share of IO against others, 1 to 10000; 100 is normal."),
    Option(
        "--device-policy",
        choices=("auto", "closed", "open"),
        help="closed: no devices but null, random, terminals and such, and those of --volume.  [default: auto: so by own mounts]",
    ),
    Option("--ulimit", metavar="NAME=SOFT[:HARD]", multiple=True, help="An rlimit, such as nofile=1024; may be repeated."),
    Option("--nice", metavar="N", help="Nice value, -20 to 19."),
    Option("--oom-score-adj", metavar="N", help="Rather killed when memory is short (up to 1000), or rather not (-1000)."),
    Option("--parent", metavar="GROUP", help="Cgroup to be in, whose limits hold too, such as batch or user.slice/batch."),
    Option("--best-effort", help="Run without the limits this host cannot enforce; the report names them."),
)


def make_bounds(words: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a RunSpec that bound what CMD uses. Raises UsageError."""
    nice, score = words["nice"], words["oom_score_adj"]
    return {
        "limits": make_limits(words),
        "tuning": Tuning(
            tuple(map(tuning.parse_ulimit, words["ulimit"])),
            None if nice is None else tuning.parse_whole(nice, "--nice", -20, 19),
            None if score is None else tuning.parse_whole(score, "--oom-score-adj", -1000, 1000),
        ),
        "device_policy": words["device_policy"] or "auto",
        "parent": (words["parent"] or "").strip("/"),
        "best_effort": words["best_effort"],
    }


def make_limits(words: dict[str, Any]) -> Limits:
    """Return the limits that were asked for; what was not is None."""

    def parsed(key: str, parse: Callable[[str], Any]) -> Any:
        return None if words[key] is None else parse(words[key])

    memory_bytes = parsed("memory", lambda text: quantities.parse_bytes(text, "--memory"))
    return Limits(
        cpus=parsed("cpus", quantities.parse_cpus),
        memory_bytes=memory_bytes,
        swap_bytes=parsed("memory_swap", lambda text: _parse_swap(text, memory_bytes)),
        memory_high_bytes=parsed("memory_high", lambda text: quantities.parse_bytes(text, "--memory-high")),
        pids=parsed("pids", lambda text: quantities.parse_count(text, "--pids", 1, 4 << 20)),
        io_max=tuple(quantities.parse_io_max(text) for text in words["io_max"]),
        hugetlb=tuple(map(quantities.parse_hugetlb, words["hugetlb"])),
        cpuset=parsed("cpuset", lambda text: quantities.parse_cpuset(text, quantities.read_online_cpus())),
        cpu_weight=parsed("cpu_weight", lambda text: quantities.parse_count(text, "--cpu-weight", 1, 10_000)),
        io_weight=parsed("io_weight", lambda text: quantities.parse_count(text, "--io-weight", 1, 10_000)),
    )


def _parse_swap(text: str, memory_bytes: int | None) -> int:
    """Return the swap that docker's --memory-swap leaves: it is the sum of both."""
    if memory_bytes is None:
        raise UsageError("--memory-swap is memory and swap together", hint="give --memory too")
    if text == "-1":
        return UNLIMITED
    total_bytes = quantities.parse_bytes(text, "--memory-swap")
    if total_bytes < memory_bytes:
        raise UsageError(f"--memory-swap {text} is less than --memory", hint="it is memory and swap together; as much is no swap")
    return total_bytes - memory_bytes
