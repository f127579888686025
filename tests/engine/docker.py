"""Debian's docker.io for a test: data, state, socket and cgroups of its own, and nothing of the host's network.

Where it is not installed, its packages are fetched by apt and unpacked into a cache (130 MB): see tests/debian.py.
$NSAGENT_DOCKER_CACHE or ~/.cache/nsagent-docker; remove it to get newer ones.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import debian
from tests.engine import rootfs
from tests.support import remove_cgroups, unique_name, wait_for

PROGRAMS = ("dockerd", "docker", "containerd", "containerd-shim-runc-v2", "runc")
IMAGE = "nsagent-test:1"


def search_path() -> str:
    """Return a PATH that has the engine's programs; skip the test (in CI: fail) where they cannot be had."""
    cache = Path(os.environ.get("NSAGENT_DOCKER_CACHE") or Path.home() / ".cache" / "nsagent-docker")
    return debian.search_path(cache, ["docker.io", "containerd", "runc"], PROGRAMS)


class Docker:
    """A running dockerd with its own containerd; its containers' cgroups are below the cgroup `name`."""

    def __init__(self, directory: Path, path: str, flags: Sequence[str] = ("--storage-driver", "vfs")) -> None:
        self.name = unique_name("docker")
        self.socket = f"{directory}/d.sock"
        self._directory = directory
        self._environment = os.environ | {
            "PATH": path,
            "DOCKER_CONFIG": str(directory / "cli"),
            "DOCKER_HOST": f"unix://{self.socket}",
        }
        (directory / "daemon.json").write_text("{}")
        self.process = subprocess.Popen(
            ["dockerd", "--config-file", str(directory / "daemon.json"), "--host", f"unix://{self.socket}",
             "--data-root", str(directory / "data"), "--exec-root", str(directory / "exec"), "--pidfile", str(directory / "pid"),
             *flags, "--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", f"/{self.name}",
             "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false", "--userland-proxy=false"],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(directory / "log").open("w"),
        )  # fmt: skip

    def docker(self, *args: str, check: bool = True, deadline: float = 120) -> str:
        """Run docker(1) on it; return its output, of `logs` also what went to standard error."""
        argv, errors = ["docker", *args], subprocess.STDOUT if args[0] == "logs" else subprocess.PIPE
        done = subprocess.run(
            argv, env=self._environment, stdout=subprocess.PIPE, stderr=errors, text=True, check=False, timeout=deadline
        )
        assert not check or done.returncode == 0, f"{args}: {done.stdout}{done.stderr}\n{(self._directory / 'log').read_text()}"
        return done.stdout.strip()

    def wait_ready(self) -> None:
        """Wait until it answers, and give it its image."""
        wait_for(lambda: self.docker("version", "--format", "{{.Server.Version}}", check=False), what="dockerd to answer")
        archive = self._directory / "rootfs.tar"
        subprocess.run(["tar", "-C", str(rootfs.make(self._directory)), "-cf", str(archive), "."], check=True)
        self.docker("import", str(archive), IMAGE)

    def run(self, name: str, *options: str) -> tuple[str, int]:
        """Start a container; return its id and the host pid of its first process."""
        number = self.docker("run", "--detach", "--network", "none", "--name", name, *options, IMAGE, "/bin/waiter")
        return number, int(self.docker("inspect", "--format", "{{.State.Pid}}", name))

    def execute(self, name: str) -> None:
        """Run a second process in the container, to its end."""
        self.docker("exec", name, "/bin/waiter", "once")

    def remove(self, name: str) -> None:
        """Kill the container's processes and delete it."""
        self.docker("rm", "--force", name)

    def close(self) -> None:
        """End all that is left of it: containers, daemon and its containerd, cgroups."""
        for container in self.docker("ps", "--all", "--quiet", check=False).split():
            self.docker("rm", "--force", container, check=False)
        self.process.terminate()
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        for line in Path("/proc/self/mountinfo").read_text().splitlines():  # it leaves the network namespace of --network host
            if line.split(" ")[4].startswith(f"{self._directory}/"):
                subprocess.run(["umount", line.split(" ")[4]], check=True)
        remove_cgroups(self.name)


@contextlib.contextmanager
def running(directory: Path, *flags: str) -> Iterator[Docker]:
    """Run a dockerd below `directory` (its path must be short: sockets). The driver vfs works on any file system, and copies."""
    engine = Docker(directory, search_path(), flags or ("--storage-driver", "vfs"))
    try:
        engine.wait_ready()
        yield engine
    finally:
        engine.close()
