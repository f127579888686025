"""What a node does while its dashboards are looked at: a limited group, jobs of each outcome, namespaces, a finding."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT, cgroup_mounts, nsagent_argv, remove_cgroups, unique_name

CPUS, MEMORY, HELD, PIDS = 0.2, 128 << 20, 32 << 20, 50
# A limit is set in the hierarchy that has one of these files.
_LIMITS = (
    {"cpu.cfs_quota_us": f"{CPUS * 100_000:.0f}", "cpu.max": f"{CPUS * 100_000:.0f} 100000"},
    {"memory.limit_in_bytes": f"{MEMORY}", "memory.max": f"{MEMORY}"},
    {"memory.soft_limit_in_bytes": f"{MEMORY}", "memory.high": f"{MEMORY}"},
    {"pids.max": f"{PIDS}"},
)
# Goes into the cgroups it is told, holds memory, and then burns CPU, writes to a disk past the page cache and reads from it.
_BUSY = """
import contextlib, mmap, os, sys
path, held, *groups = sys.argv[1:]
for group in groups:
    with contextlib.suppress(OSError), open(group, "w") as file:  # the cpuset of v1 takes none before it has CPUs
        file.write("0")
held, block = bytearray(b"x" * int(held)), mmap.mmap(-1, 1 << 20)
fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_DIRECT)
while True:
    os.pwrite(fd, block, 0)
    os.preadv(fd, [block], 0)
    sum(range(200_000))
"""
# Joins the mount namespace of the host from another: a finding. The last call fails: it is not a UTS namespace.
_CALLS = """
import contextlib, os
from nsagent.libc import *
host = os.open("/proc/self/ns/mnt", os.O_RDONLY)
unshare(CLONE_NEWUTS | CLONE_NEWIPC)
unshare(CLONE_NEWNS)
setns(host, CLONE_NEWNS)
with contextlib.suppress(OSError):
    setns(host, CLONE_NEWUTS)
"""
JOBS = {
    "fine": (0, "success", ["--", "sh", "-c", 'exec dd if=/dev/zero of="$0" bs=1M count=4 oflag=direct status=none']),
    "failing": (3, "failure", ["--", "sh", "-c", "exit 3"]),
    "greedy": (137, "oom", ["--memory", "24M", "--", sys.executable, "-c", "b'x' * (64 << 20)"]),
    "late": (124, "timeout", ["--timeout", "300ms", "--", "sh", "-c", "exec sleep 1000"]),
}


class Workload:
    """Names, and what was done until now."""

    def __init__(self, directory: Path, state_dir: str) -> None:
        self.group = unique_name("group")
        self.rounds = 0
        self.outcomes: Counter[str] = Counter()
        self.cpu_ns: Counter[str] = Counter()  # by job
        self.wrong: list[str] = []
        self._directory, self._state_dir = directory, state_dir
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._rounds)
        self._processes: list[subprocess.Popen[bytes]] = []

    def burn(self, group: str) -> None:
        """Run the busy program in a cgroup of all hierarchies that have it."""
        places = [mount / group / "cgroup.procs" for mount in cgroup_mounts() if (mount / group).is_dir()]
        data = self._directory / unique_name("data")
        argv = [sys.executable, "-c", _BUSY, str(data), str(HELD), *map(str, places)]
        self._processes.append(subprocess.Popen(argv, stdin=subprocess.DEVNULL))

    def limit(self, group: str) -> None:
        """Set the limits of a cgroup."""
        for mount in cgroup_mounts():
            for choice in _LIMITS:
                for name, text in choice.items():
                    if (mount / group / name).exists():
                        (mount / group / name).write_text(text)

    def start(self) -> None:
        """Make the group and its child, busy both, a job that stays, and begin the rounds."""
        for group in (self.group, f"{self.group}/child"):
            for mount in cgroup_mounts():
                (mount / group).mkdir()
                if (mount / group / "cgroup.subtree_control").exists() and group == self.group:
                    enabled = (mount / group / "cgroup.controllers").read_text().split()
                    (mount / group / "cgroup.subtree_control").write_text(" ".join(f"+{name}" for name in enabled))
            self.limit(group)
        self.burn(f"{self.group}/child")
        stays = self._argv("stays", ["--report", "none", "--", "sleep", "3600"])
        self._processes.append(subprocess.Popen(stays, stdin=subprocess.DEVNULL))
        self._thread.start()

    def finish(self) -> None:
        """Have the round at hand be the last."""
        self._stop.set()
        self._thread.join()
        assert not self.wrong, self.wrong

    def close(self) -> None:
        """End and remove all of it."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(60)
        remove_cgroups(self.group)

    def _argv(self, name: str, args: list[str]) -> list[str]:
        return [*nsagent_argv(), "run", "--state-dir", self._state_dir, "--name", name, *args]

    def _rounds(self) -> None:
        while not self._stop.is_set():
            subprocess.run([sys.executable, "-c", _CALLS], cwd=ROOT, check=True)
            for name, (code, outcome, args) in JOBS.items():
                report = self._directory / f"{name}.json"
                how = ["--report", "json", "--report-file", str(report)]
                argv = self._argv(name, [*how, *args, str(self._directory / "written")])
                done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
                found = json.loads(report.read_text())
                if (done.returncode, found["outcome"]) != (code, outcome):
                    self.wrong.append(f"{name}: {done.returncode}, {found['reason']}: {done.stderr}")
                self.outcomes[found["outcome"]] += 1
                self.cpu_ns[name] += found["usage"]["cpu_ns"]
            self.rounds += 1


@contextlib.contextmanager
def running(directory: Path, state_dir: str) -> Iterator[Workload]:
    """Run it; what it writes is below `directory`, its jobs are registered in `state_dir`."""
    workload = Workload(directory, state_dir)
    try:
        workload.start()
        yield workload
    finally:
        workload.close()
