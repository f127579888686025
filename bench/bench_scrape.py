"""One GET /metrics of a real agent, over HTTP, with 100 and then 1,000 cgroups added to those of the host, a sleeping
process in every tenth: wall time, CPU of the agent (its process clock), samples. `all else` is the same agent
before any cgroup was added."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from bench.agent import Agent, running_agent
from bench.measure import PREFIX, Result, elapsed, herd

TITLE = "A scrape"
ROUNDS = 30
SIZES = (100, 1000)


def hierarchies() -> list[Path]:
    """Return the mount points of the cgroup hierarchies that have controllers."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        kind, options = fields[fields.index("-") + 1], fields[-1]
        if (kind == "cgroup" and "name=" not in options) or kind == "cgroup2":
            mounts.append(Path(fields[4]))
    return mounts


@contextlib.contextmanager
def cgroups(count: int) -> Iterator[None]:
    """Have `count` cgroups in every hierarchy, with a sleeping process in every tenth."""
    tops = [mount / PREFIX for mount in hierarchies()]
    names = [f"{number}" for number in range(count)]
    made: list[Path] = []
    try:
        with herd(count // 10) as group:
            pids = [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _group(pid) == group]
            for top in tops:
                for path in (top, *(top / name for name in names)):
                    path.mkdir()
                    made.append(path)
                _settle_cpuset(top, names)
                for pid, name in zip(pids, names[::10], strict=True):
                    (top / name / "cgroup.procs").write_text(str(pid))
            yield
    finally:
        for path in reversed(made):
            path.rmdir()


def _settle_cpuset(top: Path, names: list[str]) -> None:
    """A v1 cpuset takes no process before it has CPUs and memory nodes."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (top / file).exists() and not (top.parent / "cgroup.controllers").exists():
            value = (top.parent / file).read_text()
            for path in (top, *(top / name for name in names)):
                (path / file).write_text(value)


def _group(pid: int) -> int:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return -1


def measure_scrapes(agent: Agent) -> tuple[list[float], list[float], int]:
    """Scrape ROUNDS times; return wall times, CPU times, and the samples of the last scrape."""
    agent.scrape()  # to see what is new
    wall, cpu = [], []
    text = b""
    for _ in range(ROUNDS):
        before = agent.cpu_ms()
        wall.append(elapsed(agent.scrape))
        cpu.append(agent.cpu_ms() - before)
    text = agent.scrape()
    return wall, cpu, sum(not line.startswith(b"#") for line in text.splitlines())


def measure() -> Result:
    """Scrape with growing numbers of cgroups."""
    result = Result()
    with running_agent() as agent:
        walls, cpus = {}, {}
        for size in (0, *SIZES):
            name = f"{size:,} cgroups" if size else "all else"
            with cgroups(size) if size else contextlib.nullcontext():
                walls[f"wall, {name}"], cpus[f"agent CPU, {name}"], samples = measure_scrapes(agent)
            result.notes.append(f"{name}: {samples:,} samples, PSS of the agent {agent.pss_mib():.1f} MiB.")
    result.add(walls, "ms", "wall, all else")
    result.add(cpus, "ms", "agent CPU, all else")
    return result
