"""Limits beside those of one cgroup file: swap and high, rlimits, nice, OOM score, a parent group, --best-effort."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from nsagent.cgroups.layout import read_layout
from nsagent.launch.spec import read_capabilities
from tests import support
from tests.kernel.launching import Jobs

pytestmark = pytest.mark.kernel

CAP_SYS_RESOURCE = 1 << 24
PATH_OF = "path=$(grep '{}' /proc/self/cgroup | cut -d: -f3); cat {}/$path/{}"


def memory_file(v1_file: str, v2_file: str) -> str:
    """A script that prints a file of the job's memory cgroup."""
    hierarchy = read_layout().of("memory")
    support.require(hierarchy, "no memory controller")
    assert hierarchy is not None
    line = ":.*memory.*:" if hierarchy.version == 1 else "^0::"
    return PATH_OF.format(line, hierarchy.mountpoint, v1_file if hierarchy.version == 1 else v2_file)


def test_swap_as_docker_means_it(jobs: Jobs) -> None:
    hierarchy = read_layout().of("memory")
    support.require(hierarchy, "no memory controller")
    assert hierarchy is not None
    file = "memory.memsw.limit_in_bytes" if hierarchy.version == 1 else "memory.swap.max"
    probe = Path(hierarchy.mountpoint) / (file if hierarchy.version == 1 else "")
    if hierarchy.version == 1 and not probe.exists():
        pytest.skip("this kernel does not account swap")
    page = os.sysconf("SC_PAGE_SIZE")
    script = memory_file("memory.memsw.limit_in_bytes", "memory.swap.max")
    words = ["--isolate", "pid", "--memory", "64M"]
    done = jobs.run(*words, "--memory-swap", "96M", "--", "sh", "-c", script)
    assert int(done.out) == ((96 << 20) + page if hierarchy.version == 1 else 32 << 20), done.err
    anything = jobs.run(*words, "--memory-swap", "-1", "--", "sh", "-c", script).out.strip()
    assert anything == "max" or int(anything) > 1 << 62
    for wrong, said in ((["--memory-swap", "1G"], "give --memory too"), ([*words, "--memory-swap", "32M"], "less than --memory")):
        refused = jobs.run(*wrong, "--", "true")
        assert (refused.code, said in refused.err) == (2, True)


def test_memory_high(jobs: Jobs) -> None:
    hierarchy = read_layout().of("memory")
    support.require(hierarchy, "no memory controller")
    assert hierarchy is not None
    words = ["--isolate", "pid", "--memory-high", "64M"]
    if hierarchy.version == 2:
        assert jobs.run(*words, "--", "sh", "-c", memory_file("", "memory.high")).out == f"{64 << 20}\n"
        return
    refused = jobs.run(*words, "--", "true")
    assert refused.code == 125
    assert "--memory-high: cgroup v1" in refused.err
    script = memory_file("memory.limit_in_bytes", "memory.max")
    tried = jobs.run(*words, "--best-effort", "--memory", "128M", "--", "sh", "-c", script)
    assert (tried.code, tried.out) == (0, f"{128 << 20}\n"), tried.err
    assert [note for note in tried.report["notes"] if "--memory-high" in note]
    plan = jobs.run(*words, "--best-effort", "--dry-run", "--", "true")
    assert "not limited: --memory-high" in plan.out


def test_rlimits(jobs: Jobs) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    support.require(hard == resource.RLIM_INFINITY or hard >= 512, "fewer than 512 files may be open")
    script = "ulimit -Sn; ulimit -Hn; ulimit -Sc; ulimit -Hc; ulimit -Sv"
    words = ["--ulimit", "nofile=100:200", "--ulimit", "core=0", "--ulimit", "as=64M"]
    for more in ([], ["--isolate", "all"], ["--init"], ["--user", "65534"]):
        done = jobs.run(*words, *more, "--workdir", "/", "--", "bash", "-c", script)
        assert done.out.split() == ["100", "200", "0", "0", "65536"], (more, done.err)
    control = jobs.run("--", "bash", "-c", script).out.split()
    assert control[1] == ("unlimited" if hard == resource.RLIM_INFINITY else str(hard))
    assert "--ulimit: nofile=100:200" in jobs.run(*words, "--dry-run", "--", "true").out
    for wrong in ("files=3", "nofile", "nofile=x", "nofile=5:4", "nofile=4k"):
        assert jobs.run("--ulimit", wrong, "--", "true").code == 2


def test_a_hard_limit_above_ours(jobs: Jobs) -> None:
    name, most = "sigpending", resource.getrlimit(resource.RLIMIT_SIGPENDING)[1]
    support.require(0 < most < 1 << 40, "signals are not limited")
    words = ["--ulimit", f"{name}={most + 5}", "--", "bash", "-c", "ulimit -Hi"]
    done = jobs.run(*words)
    if read_capabilities() & CAP_SYS_RESOURCE:
        assert done.out == f"{most + 5}\n"
        assert jobs.run("--isolate", "all", *words).out == f"{most + 5}\n"
        return
    assert (done.code, done.out) == (125, "")
    assert f"--ulimit {name}={most + 5}" in done.err
    assert "CAP_SYS_RESOURCE" in done.err
    tried = jobs.run("--best-effort", *words)
    assert tried.out == f"{most}\n"
    assert [note for note in tried.report["notes"] if f"--ulimit {name}" in note]


def test_nice_and_the_oom_score(jobs: Jobs) -> None:
    show = ["sh", "-c", "cut -d' ' -f19 /proc/self/stat; cat /proc/self/oom_score_adj"]
    before = os.getpriority(os.PRIO_PROCESS, 0), int(Path("/proc/self/oom_score_adj").read_text())
    assert jobs.run("--", *show).out.split() == [str(number) for number in before]
    for more in ([], ["--isolate", "all"], ["--init"]):
        done = jobs.run("--nice", "7", "--oom-score-adj", "900", *more, "--", *show)
        assert done.out.split() == ["7", "900"], done.err
    assert jobs.run("--nice", "20", "--", "true").code == 2
    if not read_capabilities() & CAP_SYS_RESOURCE and before[1] > -1000:
        refused = jobs.run("--oom-score-adj", "-1000", "--", "true")
        assert refused.code == 125
        assert "--oom-score-adj" in refused.err
        tried = jobs.run("--best-effort", "--oom-score-adj", "-1000", "--nice", "3", "--", *show)
        assert tried.out.split() == ["3", str(before[1])]
        assert [note for note in tried.report["notes"] if "--oom-score-adj" in note]


@pytest.fixture
def group() -> Iterator[str]:
    """A cgroup of ours with a limit of 20 processes."""
    name = support.unique_name("group")
    hierarchy = read_layout().of("pids")
    support.require(hierarchy, "no pids controller")
    assert hierarchy is not None
    place = Path(hierarchy.mountpoint) / name
    if hierarchy.version == 2:
        (Path(hierarchy.mountpoint) / "cgroup.subtree_control").write_text("+pids")
    place.mkdir()
    (place / "pids.max").write_text("20")
    yield name
    support.remove_cgroups(name)


def test_a_group_binds_its_members(jobs: Jobs, group: str) -> None:
    script = "for i in $(seq 30); do sleep 1000 & done; echo all"
    assert jobs.run("--", "sh", "-c", script).out == "all\n"  # the control
    bound = jobs.run("--parent", group, "--", "sh", "-c", script)
    assert bound.report["cgroup"].startswith(f"{group}/nsagent/")
    assert (bound.out, "fork" in bound.err.lower()) == ("", True)
    assert bound.report["usage"]["pids_peak"] <= 21  # the one that was refused was counted below
    own = jobs.run("--parent", f"/{group}/", "--pids", "5", "--", "sh", "-c", script)
    assert own.report["usage"]["pids_peak"] <= 5
    for mount in support.cgroup_mounts():
        if (mount / group / "nsagent").is_dir():
            assert [entry for entry in (mount / group / "nsagent").iterdir() if entry.is_dir()] == []


def test_a_group_that_is_not_there(jobs: Jobs) -> None:
    done = jobs.run("--parent", "nsagent-test-no-such-group", "--", "true")
    assert done.code == 2
    assert "no hierarchy has this cgroup" in done.err
    assert not any((mount / "nsagent-test-no-such-group").exists() for mount in support.cgroup_mounts())
    assert jobs.run("--parent", "../x", "--", "true").code == 2
