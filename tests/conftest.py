"""Fixtures that give a test a world of its own: state directory, pin directory, cgroup names; all gone when it ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

from tests import support

# tmp_path on a disk, for tests that count what reaches it: Debian 13 has a tmpfs on /tmp.
os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", "/var/tmp")

BPFFS = Path("/sys/fs/bpf")

hypothesis.settings.register_profile("nsagent", deadline=None)  # 200 ms are no fault on a busy machine
hypothesis.settings.load_profile("nsagent")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the long forms (`slow`) unless `-m` names them: each has a short form beside it."""
    if "slow" in config.option.markexpr:
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in slow]


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """A private --state-dir, empty; its agent.sock stays below the 108 bytes of a Unix socket's path."""
    path = tmp_path / "state"
    path.mkdir(mode=0o700)
    return path


@pytest.fixture
def pin_dir() -> Iterator[Path]:
    """A private --pin-dir on bpffs that does not exist yet; what a test leaves there is unpinned."""
    support.require_root()
    support.require(BPFFS.is_mount(), f"bpffs is not mounted on {BPFFS} (make setup mounts it)")
    path = BPFFS / support.unique_name("pins")
    yield path
    if path.exists():
        shutil.rmtree(path)


@pytest.fixture
def cgroup_name() -> Iterator[str]:
    """A cgroup name that is unused in every hierarchy; what a test leaves there is killed and removed."""
    support.require_root()
    name = support.unique_name("cgroup")
    yield name
    support.remove_cgroups(name)


@pytest.fixture
def world(state_dir: Path, pin_dir: Path) -> list[str]:
    """Flags that keep an agent, or a command that talks to one, in a world of its own."""
    return ["--state-dir", str(state_dir), "--pin-dir", str(pin_dir)]


@pytest.fixture
def nsagent() -> Callable[..., object]:
    """The real command line: `nsagent("run", "--", "true").returncode`. See support.run_nsagent."""
    return support.run_nsagent
