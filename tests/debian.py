"""Programs of Debian packages for a test, unpacked and not installed: a package can start a service of the host."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.support import require


def search_path(cache: Path, packages: Sequence[str], programs: Sequence[str]) -> str:
    """Return a PATH that has `programs`; where the host has not, the packages are fetched by apt and unpacked into `cache`.

    Skips the test (in CI: fails) where they cannot be had. Remove `cache` to get newer ones.
    """
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    if all(shutil.which(name, path=path) for name in programs):
        return path
    inside = f"{cache}/usr/bin:{cache}/usr/sbin"
    if not all(shutil.which(name, path=f"{inside}:{path}") for name in programs):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{cache.name}-", dir=cache.parent) as work:
            # Lists of its own: the machine's are often absent or old, and are not for a test to renew.
            apt = ["apt-get", "-qq", "-o", f"Dir::State::lists={work}/lists", "-o", f"Dir::Cache={work}/cache"]
            os.makedirs(f"{work}/lists/partial")
            for action in (["update"], ["download", *packages]):
                got = subprocess.run([*apt, *action], cwd=work, capture_output=True, text=True, check=False)
            require(got.returncode == 0, f"{packages} are not installed, and apt cannot fetch them: {got.stderr.strip()}")
            for package in Path(work).glob("*.deb"):
                subprocess.run(["dpkg-deb", "-x", str(package), f"{work}/tree"], check=True)
            with contextlib.suppress(OSError):  # another run was faster
                os.rename(f"{work}/tree", cache)
    return f"{inside}:{path}"
