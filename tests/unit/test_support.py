"""The tests' own ground: a skip that CI turns into a failure, waiting, and tidying up."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.support import cgroup_mounts, nsagent_running, remove_cgroups, require, require_root, unique_name, wait_for


@pytest.mark.parametrize("setting", ["", "0", None])
def test_require_skips_on_a_laptop(monkeypatch: pytest.MonkeyPatch, setting: str | None) -> None:
    monkeypatch.delenv("NSAGENT_REQUIRE_KERNEL", raising=False)
    if setting is not None:
        monkeypatch.setenv("NSAGENT_REQUIRE_KERNEL", setting)
    with pytest.raises(pytest.skip.Exception, match="no BTF here"):
        require(False, "no BTF here")


def test_require_fails_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSAGENT_REQUIRE_KERNEL", "1")
    with pytest.raises(pytest.fail.Exception, match="no BTF here"):
        require(False, "no BTF here")
    require(True, "never said")


def test_wait_for_returns_what_it_waited_for() -> None:
    values = iter([0, [], "yes"])
    assert wait_for(lambda: next(values)) == "yes"


def test_wait_for_fails_with_the_last_result() -> None:
    with pytest.raises(pytest.fail.Exception, match=r"waited 0.01 s for the moon; last result: \[\]"):
        wait_for(list, 0.01, "the moon")


@pytest.mark.kernel
def test_a_running_command_is_ended_and_reaped() -> None:
    require_root()
    with nsagent_running("unshare", "uts", "--", "sleep", "1000") as process:
        assert process.poll() is None
    assert process.returncode == -signal.SIGTERM


@pytest.mark.kernel
def test_cgroups_are_removed_with_their_processes() -> None:
    require_root()
    name = unique_name()
    tops = [mount / name / "child" for mount in cgroup_mounts() if (mount / "cgroup.procs").exists()]
    for top in tops:
        top.mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        written = 0
        for top in tops:
            try:
                (top / "cgroup.procs").write_text(str(sleeper.pid))
                written += 1
            except OSError:  # a v1 cpuset without CPUs
                continue
        assert written > 0
        remove_cgroups(name)
        assert sleeper.wait(120) == -signal.SIGKILL
    assert not any(Path(top).parent.exists() for top in tops)
