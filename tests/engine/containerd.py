"""Debian's containerd for a test: root, state, socket and cgroups of its own; a container is one static program.

Where containerd is not installed, its package is fetched by apt and unpacked into a cache (26 MB; runc with it), so that a
test never starts a service of the host. $NSAGENT_ENGINE_CACHE or ~/.cache/nsagent-engine; remove it to get newer ones.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests import debian
from tests.engine import cni, pods, rootfs
from tests.support import remove_cgroups, unique_name, wait_for

PROGRAMS = ("containerd", "ctr", "runc")
_CONFIG = """\
version = 2
root = "{0}/root"
state = "{0}/state"
disabled_plugins = [{1}]
[grpc]
  address = "{0}/containerd.sock"
[ttrpc]
  address = "{0}/containerd.sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{2}"
  restrict_oom_score_adj = true  # else runc needs CAP_SYS_RESOURCE
  disable_tcp_service = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{0}/cni/bin"
    conf_dir = "{0}/cni/conf"
"""


def search_path() -> str:
    """Return a PATH that has the engine's programs; skip the test (in CI: fail) where they cannot be had."""
    cache = Path(os.environ.get("NSAGENT_ENGINE_CACHE") or Path.home() / ".cache" / "nsagent-engine")
    return debian.search_path(cache, ["containerd", "runc"], PROGRAMS)


class Containerd:
    """A running containerd. Its namespace is also the cgroup its containers are in."""

    def __init__(self, directory: Path, path: str, *, cri: bool = False) -> None:
        self.name = unique_name("engine")
        self.socket = f"{directory}/containerd.sock"
        self._cri = cri
        self._directory = directory
        self._environment = os.environ | {"PATH": path}
        self._rootfs = rootfs.make(directory)
        (directory / "config.toml").write_text(
            _CONFIG.format(directory, "" if cri else '"io.containerd.grpc.v1.cri"', pods.IMAGE)
        )
        cni.install(directory / "cni")
        self.process = subprocess.Popen(
            ["containerd", "--config", str(directory / "config.toml")],
            env=self._environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=(directory / "log").open("w"),
        )  # fmt: skip

    def ctr(self, *args: str, check: bool = True) -> str:
        """Run ctr(8) on it."""
        argv = ["ctr", "--address", f"{self._directory}/containerd.sock", "--namespace", self.name, *args]
        done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, check=False, timeout=120)
        assert not check or done.returncode == 0, f"{argv}: {done.stderr}\n{(self._directory / 'log').read_text()}"
        return done.stdout

    def wait_ready(self) -> None:
        """Wait until it answers."""
        wait_for(lambda: self.ctr("version", check=False), what="containerd to answer")
        if self._cri:
            archive = self._directory / "image.tar"
            pods.make_archive(self._rootfs, archive)
            self.ctr("--namespace", "k8s.io", "images", "import", str(archive))

    def run(self, container: str) -> int:
        """Start a container; return the host pid of its first process."""
        self.ctr("run", "--detach", "--rootfs", str(self._rootfs), container, "/bin/waiter")
        (pid,) = [int(line.split()[1]) for line in self.ctr("tasks", "ls").splitlines() if line.split()[0] == container]
        return pid

    def execute(self, container: str) -> None:
        """Run a second process in the container, to its end."""
        self.ctr("tasks", "exec", "--exec-id", unique_name("exec"), container, "/bin/waiter", "once")

    def remove(self, container: str) -> None:
        """Kill the container's first process, wait for its end, and delete task and container."""
        self.ctr("tasks", "kill", "--signal", "SIGKILL", container, check=False)
        self.ctr("tasks", "delete", "--force", container, check=False)
        self.ctr("containers", "delete", container, check=False)

    def close(self) -> None:
        """End all that is left of it: containers, daemon, cgroups."""
        for container in self.ctr("containers", "ls", "--quiet", check=False).split():
            self.remove(container)
        self.process.terminate()
        try:
            self.process.wait(120)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        remove_cgroups(self.name)


@contextlib.contextmanager
def running(directory: Path, *, cri: bool = False) -> Iterator[Containerd]:
    """Run a containerd below `directory` (its path must be short: sockets); `cri`: one that runs pods of `pods.IMAGE`."""
    path = search_path()
    engine = Containerd(directory, path, cri=cri)
    try:
        engine.wait_ready()
        yield engine
    finally:
        engine.close()
