"""One GET /metrics of a real agent, over HTTP, with 100, 1,000 and 5,000 cgroups added to those of the host, a sleeping process
in each: wall time, CPU of the agent (its process clock), samples. `all else` is the same agent before any cgroup was added.
`gzip` is what a Prometheus asks for. `core alone` is an agent with --no-collector all. `bare reads` opens, reads and closes those
files of the same cgroups that the agent reads, and does nothing with them: what a scrape in which nothing changed is measured
against. Memory is the agent's after the last scrape, in 10**6 bytes."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import statistics
import urllib.request
from collections.abc import Iterator
from pathlib import Path

from bench.agent import Agent, running_agent
from bench.measure import PREFIX, Result, elapsed
from nsagent.cgroups import v1, v2

TITLE = "A scrape"
ROUNDS = {0: 30, 100: 30, 1000: 30, 5000: 10}
PSS_LIMITS_MB = {100: 45, 5000: 110}
KERNEL_LIMITS_MB = {5000: 64}
WHOLE = ("--max-series", "0")  # 5,000 cgroups have more than its default lets through


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
def cgroups(count: int) -> Iterator[list[Path]]:
    """Have `count` cgroups in every hierarchy with a sleeping process in each of v1's; yields their directories."""
    tops = [mount / PREFIX for mount in hierarchies()]
    names = [f"{number}" for number in range(count)]
    made: list[Path] = []
    try:
        for top in tops:
            for path in (top, *(top / name for name in names)):
                path.mkdir()
                made.append(path)
            _settle_cpuset(top, names)
        with _sleepers(tops, names):
            yield [path for path in made if path not in tops]
    finally:
        for path in reversed(made):
            path.rmdir()


@contextlib.contextmanager
def _sleepers(tops: list[Path], names: list[str]) -> Iterator[None]:
    """Have a process in each cgroup of v1. It moves itself: `tasks` written with 0 waits for nobody, which cgroup.procs does."""
    pids = []
    try:
        for name in names:
            ready, told = os.pipe()
            pid = os.fork()
            if pid == 0:
                try:
                    for tasks in (top / name / "tasks" for top in tops):
                        if tasks.exists():
                            tasks.write_text("0")
                    os.closerange(3, 256)
                    while True:
                        signal.pause()
                finally:
                    os._exit(1)
            pids.append(pid)
            os.close(told)
            os.read(ready, 1)
            os.close(ready)
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def _settle_cpuset(top: Path, names: list[str]) -> None:
    """A v1 cpuset takes no process before it has CPUs and memory nodes."""
    for file in ("cpuset.cpus", "cpuset.mems"):
        if (top / file).exists() and not (top.parent / "cgroup.controllers").exists():
            value = (top.parent / file).read_text()
            for path in (top, *(top / name for name in names)):
                (path / file).write_text(value)


def scrape_gzip(agent: Agent) -> bytes:
    """GET /metrics as Prometheus does; return it compressed."""
    request = urllib.request.Request(f"{agent.url}/metrics", headers={"Accept-Encoding": "gzip"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return bytes(response.read())


def measure_scrapes(agent: Agent, rounds: int) -> tuple[dict[str, list[float]], int]:
    """Scrape so many times in each form; return times by what they are of, and the samples of the last scrape."""
    agent.scrape()  # to see what is new
    times: dict[str, list[float]] = {"wall": [], "wall, gzip": [], "agent CPU": []}
    for _ in range(rounds):
        before = agent.cpu_ms()
        times["wall"].append(elapsed(agent.scrape))
        times["agent CPU"].append(agent.cpu_ms() - before)
        times["wall, gzip"].append(elapsed(lambda: scrape_gzip(agent)))
    return times, sum(not line.startswith(b"#") for line in agent.scrape().splitlines())


def memory_of(agent: Agent, size: int) -> str:
    """Say what memory the agent has, and its kernel memory, with their limits at so many cgroups."""
    found = (("PSS", agent.pss_mb(), PSS_LIMITS_MB), ("kernel memory pinned", agent.kernel_mb(), KERNEL_LIMITS_MB))
    return ", ".join(f"{what} {mb:.1f} MB" + (f" (limit {limits[size]})" if size in limits else "") for what, mb, limits in found)


def read_bare(directories: list[tuple[int, list[str]]]) -> int:
    """Read the files of each directory; return how many there were."""
    done = 0
    for directory, names in directories:
        for name in names:
            file = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
            with contextlib.suppress(OSError):  # EOPNOTSUPP: the kernel keeps no pressure
                os.read(file, 65536)
            os.close(file)
            done += 1
    return done


def files_of(paths: list[Path]) -> list[tuple[int, list[str]]]:
    """Open the directories; return with each the files in it that the agent may read."""
    known = {name for files in (*v1.FILES.values(), *v2.FILES.values()) for name in files}
    return [(os.open(path, os.O_RDONLY | os.O_DIRECTORY), sorted(known & set(os.listdir(path)))) for path in paths]


def measure_bare(paths: list[Path], rounds: int) -> list[float]:
    """Time bare reads of those cgroups' files."""
    directories = files_of(paths)
    try:
        return [elapsed(lambda: read_bare(directories)) for _ in range(rounds)]
    finally:
        for directory, _ in directories:
            os.close(directory)


@contextlib.contextmanager
def raised_file_limit() -> Iterator[None]:
    """Have as many descriptors as this process may, for itself and for the agent."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 1 << 16)), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def measure() -> Result:
    """Scrape with growing numbers of cgroups."""
    result = Result()
    with raised_file_limit(), running_agent(*WHOLE) as agent:
        series: dict[str, list[float]] = {}
        for size, rounds in ROUNDS.items():
            name = f"{size:,} cgroups" if size else "all else"
            with cgroups(size) as paths:
                times, samples = measure_scrapes(agent, rounds)
                series |= {f"{what}, {name}": values for what, values in times.items()}
                worst = f"p99 {statistics.quantiles(times['wall'], n=100)[98]:.0f} ms"
                result.notes.append(f"{name}: {samples:,} samples, {worst}, {memory_of(agent, size)}.")
                if size == 1000:
                    with running_agent("--no-collector", "all") as core:
                        times, samples = measure_scrapes(core, rounds)
                    series |= {f"{what}, core alone, {name}": values for what, values in times.items()}
                    result.notes.append(f"Core alone, {name}: {samples:,} samples.")
                if size in (100, 1000):
                    series[f"bare reads, {name}"] = measure_bare(paths, rounds)
    result.add(series, "ms", "wall, 1,000 cgroups")
    return result
