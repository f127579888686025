"""What the tests of `nsagent run` share: one job of a known name, its report, and what it left behind."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests import support

KINDS = ("cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts")
LINKS = "for k in cgroup ipc mnt net pid time user uts; do readlink /proc/self/ns/$k; done"


class Done(NamedTuple):
    """One job that ended: its name, exit code, output, and the report as JSON has it (empty where none was written)."""

    name: str
    code: int
    out: str
    err: str
    report: dict[str, Any]


class Jobs:
    """Runs jobs in one state directory, each with a name that no other test has."""

    def __init__(self, directory: Path) -> None:
        self.state = directory / "state"
        self._directory = directory
        self._names: list[str] = []

    def argv(self, *args: str, report: bool = True) -> tuple[str, list[str]]:
        """Return (name, command line) of a job; `args` are options, `--` and the command."""
        name = support.unique_name("job")
        self._names.append(name)
        words = [*support.nsagent_argv(), "run", "--state-dir", str(self.state), "--name", name]
        if report:
            words += ["--report", "json", "--report-file", str(self._directory / f"{name}.json")]
        return name, [*words, *args]

    def run(self, *args: str, stdin: str | None = "", timeout: float = 120, **popen: Any) -> Done:
        """Run one job to its end."""
        name, argv = self.argv(*args)
        given: Mapping[str, Any] = {"stdin": subprocess.DEVNULL} if stdin is None else {"input": stdin}
        done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, check=False, **given, **popen)
        return Done(name, done.returncode, done.stdout, done.stderr, self.report(name))

    def start(self, *args: str, **popen: Any) -> tuple[str, subprocess.Popen[str]]:
        """Start a job whose CMD prints ``ready`` when it is, and wait for that."""
        name, argv = self.argv(*args)
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return name, process

    def detach(self, *args: str) -> tuple[str, dict[str, Any]]:
        """Start a detached job; return its name and its record, when CMD runs."""
        name, argv = self.argv("--detach", *args)
        job_id = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=True).stdout
        record: dict[str, Any] = json.loads((self.state / "jobs" / f"{job_id.rstrip()}.json").read_text())
        return name, record

    def command(self, name: str, *args: str, **run: Any) -> subprocess.CompletedProcess[str]:
        """Run a command about jobs, such as ``ps``, in the same state directory."""
        return support.run_nsagent(name, "--state-dir", str(self.state), *args, **run)

    def report(self, name: str) -> dict[str, Any]:
        """Return the report of a job that ended."""
        path = self._directory / f"{name}.json"
        text = path.read_text() if path.exists() else ""
        parsed: dict[str, Any] = json.loads(text) if text else {}
        return parsed

    def cgroups(self, name: str = "") -> list[Path]:
        """Return the cgroups that jobs of this name (or of all names used here) still have, in every hierarchy."""
        names = [name] if name else self._names
        return [
            entry
            for mount in support.cgroup_mounts()
            if (mount / "nsagent").is_dir()
            for entry in (mount / "nsagent").iterdir()
            if any(entry.name.startswith(word) for word in names)
        ]

    def tidy(self) -> None:
        """Remove what a failed test left."""
        for name in {path.name for path in self.cgroups()}:
            support.remove_cgroups(f"nsagent/{name}")

    def pid_of(self, name: str) -> int:
        """Return the pid of a running job."""
        return int(next(job["pid"] for job in self.registered() if job["name"] == name))

    def registered(self, kind: str = "") -> list[dict[str, Any]]:
        """Return the job files: live ones, or those under `ended`."""
        return [json.loads(path.read_text()) for path in (self.state / "jobs" / kind).glob("*.json")]


def make_rootfs(directory: Path) -> Path:
    """Make a directory that serves as --rootfs with USR beside it: empty but for mount points and links into /usr."""
    root = directory / "rootfs"
    for name in ("usr", "proc", "sys", "dev", "tmp", "etc"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "sbin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    return root


USR = ("--volume", "/usr:/usr:ro")


def running(marker: str) -> list[int]:
    """Return the pids of this host whose command line has `marker` as a word, zombies not among them."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if marker.encode() in words:
                found.append(int(entry))
    return found


def host_inums() -> dict[str, int]:
    """Return the namespaces of this process, by kind."""
    return inums_of("self")


def inums_of(pid: int | str) -> dict[str, int]:
    """Return the namespaces of a process, by kind."""
    return {kind: os.stat(f"/proc/{pid}/ns/{kind}").st_ino for kind in KINDS}


def inums(text: str) -> dict[str, int]:
    """Return what LINKS printed, by kind."""
    return {kind: int(inum) for kind, inum in re.findall(r"(\w+):\[(\d+)\]", text)}
