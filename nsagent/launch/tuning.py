"""What a process is given beside its cgroup's limits: rlimits, a nice value, an OOM score. All that it starts has them too.

The launcher gives what takes privileges, before CMD is released; the rlimits themselves are set by the child at the last, for
some of them would stop the making of the job. Each is read back. Sources: man 2 getrlimit, setpriority; man 5
proc_pid_oom_score_adj; the names of rlimits are docker's.
"""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable
from typing import Final, NamedTuple

from nsagent.errors import AccessError, LaunchError, NsagentError, UsageError, VanishedError
from nsagent.launch.handshake import Step
from nsagent.launch.quantities import parse_bytes

RESOURCES: Final = {  # include/uapi/asm-generic/resource.h
    "cpu": 0,
    "fsize": 1,
    "data": 2,
    "stack": 3,
    "core": 4,
    "rss": 5,
    "nproc": 6,
    "nofile": 7,
    "memlock": 8,
    "as": 9,
    "locks": 10,
    "sigpending": 11,
    "msgqueue": 12,
    "nice": 13,
    "rtprio": 14,
    "rttime": 15,
}
_BYTES: Final = frozenset({"fsize", "data", "stack", "core", "rss", "memlock", "as", "msgqueue"})
_UNLIMITED: Final = frozenset({"unlimited", "-1"})
_CAP_SYS_RESOURCE: Final = 24


class Ulimit(NamedTuple):
    """Limits of one resource, in the kernel's units; resource.RLIM_INFINITY is none."""

    name: str
    soft: int
    hard: int


class Tuning(NamedTuple):
    """None: as the launcher has it."""

    ulimits: tuple[Ulimit, ...] = ()
    nice: int | None = None
    oom_score_adj: int | None = None

    def describe(self) -> list[tuple[str, str]]:
        """Return what is asked for, by flag."""
        rows = [("--ulimit", f"{each.name}={_text(each.soft)}:{_text(each.hard)}") for each in self.ulimits]
        rows += [("--nice", str(self.nice))] if self.nice is not None else []
        return rows + ([("--oom-score-adj", str(self.oom_score_adj))] if self.oom_score_adj is not None else [])


def parse_ulimit(text: str) -> Ulimit:
    """Parse NAME=SOFT[:HARD]; bytes may have K, M, G. Raises UsageError."""
    name, separator, values = text.partition("=")
    if name not in RESOURCES or not separator:
        raise UsageError(f"--ulimit {text!r} is not NAME=SOFT[:HARD]", hint=f"the names are {' '.join(RESOURCES)}")
    soft, _, hard = values.partition(":")
    limit = Ulimit(name, _parse(name, soft, text), _parse(name, hard or soft, text))
    if _order(limit.soft) > _order(limit.hard):
        raise UsageError(f"--ulimit {text!r}: the soft limit is above the hard one", hint="NAME=SOFT:HARD")
    return limit


def _parse(name: str, word: str, text: str) -> int:
    if word in _UNLIMITED:
        return resource.RLIM_INFINITY
    if word.isascii() and word.isdecimal() and int(word) < 1 << 63:
        return int(word)
    if name in _BYTES:
        return parse_bytes(word, f"--ulimit {name}")
    raise UsageError(f"--ulimit {text!r}: {word!r} is no limit", hint="a whole number, or unlimited")


def parse_whole(text: str, flag: str, least: int, most: int) -> int:
    """Return a whole number of any sign between `least` and `most`. Raises UsageError."""
    try:
        number = int(text)
    except ValueError:
        number = most + 1
    if not least <= number <= most:
        raise UsageError(f"{flag} {text!r} is not a possible number", hint=f"a whole one from {least} to {most}")
    return number


def _order(limit: int) -> float:
    return float("inf") if limit == resource.RLIM_INFINITY else limit


def _text(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def feasible(tuning: Tuning, capabilities: int, *, best_effort: bool) -> tuple[Tuning, list[str]]:
    """Return what can be had of the rlimits here, and what cannot; without `best_effort` that raises AccessError."""
    if capabilities >> _CAP_SYS_RESOURCE & 1:
        return tuning, []
    had, notes = [], []
    for each in tuning.ulimits:
        most = resource.getrlimit(RESOURCES[each.name])[1]
        if _order(each.hard) <= _order(most):
            had.append(each)
            continue
        what = (
            f"--ulimit {each.name}={_text(each.soft)}:{_text(each.hard)} is above {_text(most)}, the hard limit of the launcher"
        )
        if not best_effort:
            raise AccessError(what, capability="CAP_SYS_RESOURCE")
        had.append(Ulimit(each.name, min(each.soft, most, key=_order), most))
        notes.append(f"{what}, which it is")
    return tuning._replace(ulimits=tuple(had)), notes


def prepare(pid: int, tuning: Tuning, *, best_effort: bool, procfs: str = "/proc") -> list[str]:
    """Give a child what it may not take itself; return what failed. Raises AccessError, LaunchError unless `best_effort`."""
    failures = []
    gifts: tuple[tuple[str, Callable[[], None]], ...] = (
        ("--ulimit", lambda: _raise_hard_limits(pid, tuning.ulimits)),
        ("--nice", lambda: _set_nice(pid, tuning.nice)),
        ("--oom-score-adj", lambda: _set_oom_score_adj(pid, tuning.oom_score_adj, procfs)),
    )
    for flag, give in gifts:
        try:
            give()
        except ProcessLookupError as exc:
            raise VanishedError("the child") from exc
        except OSError as exc:
            what = f"{flag}: {exc.strerror}"
            error: NsagentError = LaunchError(what, stage="limits", errno=exc.errno or 0)
            if isinstance(exc, PermissionError):
                error = AccessError(what, capability="CAP_SYS_NICE" if flag == "--nice" else "CAP_SYS_RESOURCE")
            if not best_effort:
                raise error from exc
            failures.append(what)
    return failures


def _raise_hard_limits(pid: int, ulimits: tuple[Ulimit, ...]) -> None:
    for each in ulimits:
        number = RESOURCES[each.name]
        soft, hard = resource.prlimit(pid, number)
        if _order(each.hard) > _order(hard):
            resource.prlimit(pid, number, (soft, each.hard))


def _set_nice(pid: int, nice: int | None) -> None:
    if nice is not None:
        os.setpriority(os.PRIO_PROCESS, pid, nice)
        if os.getpriority(os.PRIO_PROCESS, pid) != nice:
            raise OSError(errno.EOPNOTSUPP, "the kernel has made another of it")


def _set_oom_score_adj(pid: int, score: int | None, procfs: str) -> None:
    if score is None:
        return
    fd = os.open(f"{procfs}/{pid}/oom_score_adj", os.O_RDWR | os.O_CLOEXEC)
    try:
        os.write(fd, str(score).encode())
        if int(os.pread(fd, 32, 0)) != score:
            raise OSError(errno.EOPNOTSUPP, "the kernel has made another of it")
    finally:
        os.close(fd)


def limit(ulimits: tuple[Ulimit, ...], step: Step) -> None:
    """Set the rlimits of the caller. Raises OSError."""
    for each in ulimits:
        step("ulimit", "prlimit", each.name)
        resource.prlimit(0, RESOURCES[each.name], (each.soft, each.hard))
        if resource.getrlimit(RESOURCES[each.name]) != (each.soft, each.hard):
            raise OSError(errno.EOPNOTSUPP, "the kernel has made another of it")
