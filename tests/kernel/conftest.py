"""What the kernel tests share: the workload, the programs attached once, and cgroups whose own accounting is the truth."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nsagent.kernel import mounts
from nsagent.kernel.attach import Attached, attach
from nsagent.usage import KernelUsage, NodeUsage, Usage, total
from tests import support
from tests.kernel.launching import Jobs
from tests.kernel.terminal import Shell

SOURCE = Path(__file__).with_name("load.c")


@pytest.fixture(scope="session")
def load(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Path of the compiled workload (load.c); readable and executable by anybody."""
    support.require(shutil.which("gcc"), "gcc is not installed (make setup)")
    directory = tmp_path_factory.mktemp("load")
    program = directory / "load"
    subprocess.run(["gcc", "-O1", "-Wall", "-Werror", "-o", str(program), str(SOURCE), "-lpthread"], check=True)
    return str(program)


@pytest.fixture
def loop(tmp_path: Path) -> Iterator[str]:
    """A block device of our own: before the group, which has what there is counted."""
    if not os.path.exists("/dev/loop-control") or not shutil.which("losetup"):
        pytest.skip("no loop devices")
    (tmp_path / "disk").write_bytes(bytes(2 << 20))
    made = subprocess.run(["losetup", "--find", "--show", str(tmp_path / "disk")], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop device is to be had: {made.stderr}")
    yield made.stdout.strip()
    subprocess.run(["losetup", "--detach", made.stdout.strip()], check=True)


@pytest.fixture
def jobs(tmp_path: Path) -> Iterator[Jobs]:
    """`nsagent run` with a state directory of its own; what it left is removed."""
    support.require_root()
    made = Jobs(tmp_path)
    yield made
    made.tidy()


@pytest.fixture
def shell() -> Iterator[Shell]:
    """An interactive shell that has shown its first prompt."""
    opened = Shell()
    opened.expect("OUT> ")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One object cache for all tests: the programs are compiled once."""
    return str(tmp_path_factory.mktemp("cache"))


def accounting() -> tuple[str | None, Path]:
    """The controller whose hierarchy is charged (None on v2) and where it is mounted."""
    v1, v2 = {}, None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ", 2)
        point = Path(fields.split(" ")[4])
        if kind == "cgroup2":
            v2 = point
        elif kind == "cgroup":
            v1.update(dict.fromkeys(options.split(" ")[-1].split(","), point))
    for controller in ("cpuacct", "cpu", "memory"):
        if controller in v1:
            return controller, v1[controller]
    support.require(v2, "no cgroup hierarchy is mounted")
    assert v2 is not None
    return None, v2


@dataclass
class AccountedCgroup:
    """A cgroup of the accounting hierarchy, with the kernel's own figure for it."""

    path: Path
    reader: KernelUsage
    brought: dict[str, int] = field(default_factory=dict)  # /proc/PID/io of the last `run` as it moved in: not this cgroup's

    @property
    def id(self) -> int:
        return self.path.stat().st_ino

    def kernel_ns(self) -> int:
        """What the kernel says its tasks have used. v1: in ns; v2: in us, truncated."""
        usage = self.path / "cpuacct.usage"
        if usage.exists():
            return int(usage.read_text())
        return int((self.path / "cpu.stat").read_text().split()[1]) * 1000

    def ours(self, node: NodeUsage | None = None) -> Usage:
        """What the contexts of this cgroup have used, after a pass."""
        return (node or self.reader.read()).cgroups.get(self.id, Usage())

    def run(self, argv: list[str], **popen: object) -> subprocess.Popen[str]:
        """Start a program whose every instruction after exec is in this cgroup.

        It is moved while it is stopped. A task that runs takes up to a tick of its past along on v2: only after the move
        does the cpu controller's attach bring its clock up to date (kernel/sched/core.c, sched_move_task).
        """
        process: subprocess.Popen[str] = subprocess.Popen(  # type: ignore[call-overload]
            ["sh", "-c", 'kill -STOP $$; exec "$@"', "sh", *argv],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            **popen,
        )
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        lines = Path(f"/proc/{process.pid}/io").read_text().splitlines()
        self.brought = {key: int(value) for key, value in (line.split(": ") for line in lines)}
        (self.path / "cgroup.procs").write_text(str(process.pid))
        process.send_signal(signal.SIGCONT)
        return process

    def complete(self) -> Usage:
        """Wait until every exit was followed by its free, or none has come in forty looks; return what there is then.

        A free that runs in softirq on top of PID 1 of some hosts is never seen by BPF: exits - frees tells how many.
        """
        state: list[Usage] = []

        def settled() -> bool:
            state.append(self.ours())
            last = state[-1]
            still = len(state) > 40 and last.threads_freed == state[-41].threads_freed
            return still or last.threads_exited == last.threads_freed

        support.wait_for(settled, what="the frees of all exited threads")
        return state[-1]


@pytest.fixture(scope="session")
def attached(cache_dir: str) -> Iterator[Attached]:
    """The programs, in a pin directory of this test session."""
    support.require_root()
    support.require(os.path.exists("/sys/kernel/btf/vmlinux"), "this kernel has no BTF")
    mounts.mount_bpffs()
    mounts.mount_tracefs()
    pins = f"{mounts.BPFFS}/{support.unique_name('kernel')}"
    programs = attach(pins, cache_dir, subsystem=accounting()[0])
    yield programs
    programs.unload()


@pytest.fixture(scope="session")
def usage(attached: Attached) -> KernelUsage:
    """The one reader of the session's programs; forgets ended namespaces soon, so that tests do not wade through rows."""
    return KernelUsage(attached, retain_s=5)


@pytest.fixture
def cgroup(usage: KernelUsage, cgroup_name: str) -> AccountedCgroup:
    """A fresh cgroup in the accounting hierarchy; removed by cgroup_name."""
    path = accounting()[1] / cgroup_name
    path.mkdir()
    return AccountedCgroup(path, usage)


@pytest.fixture
def new_cgroup(usage: KernelUsage, cgroup_name: str) -> Callable[[str], AccountedCgroup]:
    """Make children of one fresh cgroup, by name."""

    def make(name: str) -> AccountedCgroup:
        path = accounting()[1] / cgroup_name / name
        path.mkdir(parents=True)
        return AccountedCgroup(path, usage)

    return make


def expect_ready(process: subprocess.Popen[str]) -> None:
    """Wait for a workload that holds."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", f"the workload said {line!r}"


def go_on(process: subprocess.Popen[str]) -> None:
    """Let a holding workload go on."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


__all__ = ["AccountedCgroup", "accounting", "expect_ready", "go_on", "total"]
