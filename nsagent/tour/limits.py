"""The experiments on cgroups: a limit that bites, and a group that hands its limit on to its members."""

from __future__ import annotations

import os
from typing import Final

from nsagent.cgroups.limits import Limits
from nsagent.cgroups.plan import plan
from nsagent.launch import launcher
from nsagent.launch.report import RunResult
from nsagent.tour.stage import NotShownError, Stage

_CPUS: Final = 0.05
_PERIODS: Final = 10
_MEMORY: Final = 32 << 20
_RATE: Final = 1 << 20  # bytes a second
_WRITTEN: Final = 2 << 20
_SPIN: Final = "while :; do :; done"


def cgroup(stage: Stage) -> None:
    """CPU: throttled, and bounded; memory: out of it; a group of jobs, one of which has a limit of IO too."""
    stage.say("cgroup.about")
    if not launcher.parent_cgroup(stage.layout) and os.geteuid() != 0:
        raise stage.not_shown("cgroup.user")
    for part in (_cpu, _memory, _group):
        stage.attempt(part)


def _cpu(stage: Stage) -> None:
    stage.say("cgroup.cpu", cpus=_CPUS)
    stage.nsagent(f"run --name tour-cpu --detach --cpus {_CPUS} -- sh -c", _SPIN)
    stage.differs("tour-cpu", "cgroup")
    stage.say("cgroup.wait", count=_PERIODS)
    stage.wait(lambda: stage.throttled("tour-cpu") >= _PERIODS)
    stage.nsagent("stop tour-cpu")
    stage.used("tour-cpu", whole=True)
    result = stage.result("tour-cpu")
    stage.claim("cgroup.throttled", (result.usage.throttled_periods or 0) >= _PERIODS, count=result.usage.throttled_periods)
    stage.claim("cgroup.bounded", _bounded(result), used=_part(result), cpus=_CPUS)


def _part(result: RunResult) -> str:
    return "-" if result.usage.cpu_ns is None else f"{result.usage.cpu_ns / result.wall_ns:.3f}"


def _bounded(result: RunResult) -> bool:
    """Whether it kept to its limit: of the first and the last period a whole quota may have been used."""
    return result.usage.cpu_ns is not None and result.usage.cpu_ns <= 2 * _CPUS * result.wall_ns


def _memory(stage: Stage) -> None:
    stage.say("cgroup.memory")
    done = stage.nsagent(f"run --name tour-memory --memory {_MEMORY >> 20}M -- tail /dev/zero")
    stage.used("tour-memory", whole=True)
    result = stage.result("tour-memory")
    stage.claim("cgroup.oom", (done.code, result.outcome) == (137, "oom") and bool(result.usage.oom_kills))
    peak = result.usage.memory_peak_bytes
    stage.claim("cgroup.peak", peak is not None and peak <= _MEMORY * 1.1, limit=f"{_MEMORY >> 20} MiB")


def _group(stage: Stage) -> None:
    name = f"{launcher.parent_cgroup(stage.layout)}nsagent-tour-{os.getpid()}"
    limits = Limits(cpus=_CPUS)
    writes = plan(stage.layout, limits)
    stage.say("cgroup.group", cpus=_CPUS)
    for top in {hierarchy.mountpoint: hierarchy for hierarchy, _ in writes}.values():
        enable = f"echo +cpu > {top.mountpoint}/cgroup.subtree_control; " if top.version == 2 else ""
        stage.typed(f"{enable}mkdir {top.mountpoint}/{name}")
    for top, setting in writes:
        stage.typed(f"echo {setting.value} > {top.mountpoint}/{name}/{setting.file}")
    group = stage.group(name)
    group.apply(limits)
    stage.nsagent(f"run --name tour-member --detach --parent {name} -- sh -c", _SPIN)
    stage.nsagent(f"cgroup tree {name}")

    def throttled() -> int:
        cpu = group.stats().cpu
        return 0 if cpu is None else cpu.throttled_periods or 0

    stage.wait(lambda: throttled() >= _PERIODS)
    stage.nsagent("stop tour-member")
    result = stage.result("tour-member")
    stage.used("tour-member")
    stage.claim("cgroup.below", result.cgroup.startswith(f"{name}/"), cgroup=result.cgroup)
    stage.claim("cgroup.inherited", throttled() >= _PERIODS and _bounded(result), used=_part(result), cpus=_CPUS)
    stage.attempt(lambda stage: _io(stage, name))


def _io(stage: Stage, group: str) -> None:
    place = disk_place()
    if place is None:
        raise stage.not_shown("cgroup.disk")
    file = f"{stage.directory(place)}/written"
    stage.say("cgroup.io")
    options = f"--parent {group} --io-max {file.rpartition('/')[0]}:wbps={_RATE >> 20}M"
    done = stage.nsagent(f"run --name tour-io {options} -- dd if=/dev/zero of={file} bs=64K count={_WRITTEN >> 16} oflag=direct")
    if done.code != 0:
        raise NotShownError(done.lines[0])
    result = stage.result("tour-io")
    stage.used("tour-io", whole=True)
    stage.claim("cgroup.both", result.cgroup.startswith(f"{group}/"), cgroup=result.cgroup)
    seconds = result.wall_ns / 1e9
    stage.claim("cgroup.slow", seconds >= _WRITTEN / _RATE / 2, size=f"{_WRITTEN >> 20} MiB", seconds=f"{seconds:.1f}")


def disk_place() -> str | None:
    """Return a directory that can be written to, on a device with a number of its own, which IO can be limited of."""
    places = ("/var/tmp", os.getcwd(), "/")
    return next((each for each in places if os.access(each, os.W_OK) and os.major(os.stat(each).st_dev)), None)
