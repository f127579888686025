"""What many tests need: a requirement that CI cannot skip, waiting for a condition, and the real command line."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pytest

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
_counter = itertools.count()


def require(condition: object, reason: str) -> None:
    """Skip the test unless `condition`; with NSAGENT_REQUIRE_KERNEL=1 (CI) fail it. `reason` names what is missing.

    For what every host of CI has. What only some kernels have (kprobes, PSI) is a plain `pytest.skip`.
    """
    if condition:
        return
    if os.environ.get("NSAGENT_REQUIRE_KERNEL") == "1":
        pytest.fail(f"NSAGENT_REQUIRE_KERNEL=1, but {reason}")
    pytest.skip(reason)


def require_root() -> None:
    """Require uid 0."""
    require(os.geteuid() == 0, "this test needs root")


def wait_for(fn: Callable[[], T], deadline: float = 120.0, what: str = "") -> T:
    """Call `fn` until it returns something true, and return that; fail after `deadline` s with the last result.

    The deadline is for what never comes, on a machine of any speed and however busy: do not shorten it.
    """
    end = time.monotonic() + deadline
    pause = 0.001
    while True:
        result = fn()
        if result:
            return result
        if time.monotonic() >= end:
            pytest.fail(f"waited {deadline:g} s for {what or getattr(fn, '__name__', 'a condition')}; last result: {result!r}")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)


def unique_name(word: str = "x") -> str:
    """Return a name no other test has, for cgroups, pins and hosts; without dots, which bpffs refuses."""
    return f"nsagent-test-{os.getpid()}-{next(_counter)}-{word}"


def nsagent_argv() -> list[str]:
    """Return how to call the `nsagent` that belongs to this interpreter."""
    script = Path(sys.executable).with_name("nsagent")
    found = str(script) if script.exists() else shutil.which("nsagent")
    require(found, "the nsagent command is not installed (make setup)")
    return [str(found)]


def _environment(extra: Mapping[str, str] | None) -> dict[str, str]:
    """Return the environment without NSAGENT_* settings of the person who runs the tests, plus `extra`."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("NSAGENT_") or k == "NSAGENT_BCC_PYTHON"}
    return kept | dict(extra or {})


def run_nsagent(
    *args: str, env: Mapping[str, str] | None = None, stdin: str = "", timeout: float = 120, **popen: Any
) -> subprocess.CompletedProcess[str]:
    """Run one `nsagent` command to its end; text output is captured, the exit code is not checked."""
    argv = [*nsagent_argv(), *args]
    return subprocess.run(
        argv, env=_environment(env), input=stdin, capture_output=True, text=True, timeout=timeout, check=False, **popen
    )


@contextlib.contextmanager
def nsagent_running(*args: str, env: Mapping[str, str] | None = None, **popen: Any) -> Iterator[subprocess.Popen[str]]:
    """Start an `nsagent` command with piped text output; on leaving: SIGTERM, after 60 s SIGKILL, and reap it."""
    argv = [*nsagent_argv(), *args]
    options: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "stdin": subprocess.DEVNULL,
    } | popen
    process = subprocess.Popen(argv, env=_environment(env), text=True, **options)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def cgroup_mounts() -> list[Path]:
    """Return the mount points of all cgroup hierarchies, v1 and v2, from /proc/self/mountinfo."""
    mounts = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        left, _, right = line.partition(" - ")
        if right.split(" ", 1)[0] in {"cgroup", "cgroup2"}:
            mounts.append(Path(left.split(" ")[4]))
    return mounts


def remove_cgroups(name: str) -> None:
    """Kill what is left in the cgroups `name` of every hierarchy and remove them with their children: to tidy up."""
    for top in (mount / name for mount in cgroup_mounts()):
        groups = sorted((Path(d) for d, _, _ in os.walk(top)), reverse=True)
        for group in groups:
            wait_for(lambda group=group: _emptied(group), what=f"the end of all processes in {group}")  # type: ignore[misc]
            with contextlib.suppress(FileNotFoundError):
                group.rmdir()


def _emptied(group: Path) -> bool:
    try:
        pids = (group / "cgroup.procs").read_text().split()
    except FileNotFoundError:
        return True
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    return not pids
