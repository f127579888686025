"""A clean Debian in a directory, and a shell in it: debootstrap's, in a mount namespace of its own with a bpffs of its own.

Its processes are the host's (an agent wants the host's PID namespace), its cgroups too; its /run, /sys/fs/bpf and files are not.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from tests.support import ROOT, require, require_root
from tests.vm import kernels

SUITES = ("bookworm", "trixie")
_CACHE = Path("/var/tmp/nsagent-test-debian")  # a tar of each, as debootstrap made it
_MOUNTS = """
set -e
mount --bind {root} {root}  # a job's mounts want a / that is one
mount --rbind /proc {root}/proc
mount --rbind /sys {root}/sys
mount --make-rslave {root}/sys
mount --bind /dev {root}/dev
mount -t tmpfs -o mode=755 tmpfs {root}/run
mount -t bpf bpf {root}/sys/fs/bpf
mkdir -p {root}/packages && mount --bind {packages} {root}/packages
cp -L /etc/resolv.conf {root}/etc/resolv.conf 2>/dev/null || true
echo ready
exec sleep infinity
"""


def _bootstrapped(suite: str) -> Path:
    """Return a tar of a minimal Debian of the suite, made where it is not there yet."""
    tar = _CACHE / f"{suite}.tar"
    if not tar.exists():
        require(shutil.which("debootstrap"), "debootstrap is not installed (make deb)")
        _CACHE.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as work:
            own = ["unshare", "--mount", "--propagation", "private"]  # what it mounts in there goes with it
            argv = [*own, "debootstrap", "--variant=minbase", suite, f"{work}/root", kernels.mirror()]
            done = subprocess.run(argv, capture_output=True, text=True, timeout=1800, check=False)
            require(done.returncode == 0, f"debootstrap {suite}: {done.stdout[-500:]}{done.stderr[-500:]}")
            subprocess.run(["tar", "-C", f"{work}/root", "-cf", f"{work}/tar", "."], check=True)
            os.rename(f"{work}/tar", tar)
    return tar


class Root:
    """A Debian that can be used as a host of its own."""

    def __init__(self, path: Path, holder: int) -> None:
        self.path = path
        self._holder = holder

    def argv(self, script: str) -> list[str]:
        """Return how to run a line of shell in it, as root, with an environment of its own."""
        variables = ["PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]
        kept = [f"{name}={value}" for name, value in os.environ.items() if name.lower().endswith("_proxy")]
        inside = ["chroot", str(self.path), "/usr/bin/env", "-i", *variables, *kept, "/bin/sh", "-c", script]
        return ["nsenter", "-m", "-t", str(self._holder), *inside]

    def run(self, script: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        argv = self.argv(script)
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=1800, check=False)

    def good(self, script: str) -> str:
        """Run what must be well; return what it printed."""
        done = self.run(script)
        assert done.returncode == 0, f"{script}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}"
        return done.stdout


@contextlib.contextmanager
def debian(suite: str, packages: Path) -> Iterator[Root]:
    """Make one, which goes at the end; `packages` of the host is /packages in it."""
    require_root()
    tar = _bootstrapped(suite)
    with tempfile.TemporaryDirectory(prefix="root-", dir=_CACHE) as work:
        root = Path(work) / "root"
        root.mkdir()
        subprocess.run(["tar", "-C", str(root), "-xf", str(tar)], check=True)
        script = _MOUNTS.format(root=root, packages=packages)
        argv = ["unshare", "--mount", "--propagation", "private", "bash", "-c", script]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
            try:
                assert holder.stdout is not None
                assert holder.stdout.readline() == "ready\n"
                yield Root(root, holder.pid)
            finally:
                holder.kill()
