"""Wall time from start to end of a command that does nothing, launched in new cgroup, IPC, mount, PID and UTS namespaces
(each launcher as near to that as it comes) and, by those that do so, in a cgroup of its own. nsagent, runc, docker and runexec
isolate as they do by default; docker is Debian's, with a daemon of its own and an image of one static program; runexec is that of
benchexec on PyPI, with a read-only root. Python's are started from bytecode, as installed ones are."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import pytest

from bench.measure import PREFIX, Result, fails, interleaved, run
from tests.engine import docker

TITLE = "Starting a job"
ROUNDS = 40
BASELINE = "python -c 'import click'"
OURS = "nsagent run"
BOUNDS: Final = {"runc run": 3.0, "docker run": 1 / 3, "runexec": 1 / 3}  # OURS to each, at most


def runc_bundle(directory: Path) -> list[str]:
    """Make a runc bundle whose root holds the host's /usr, read-only, and return the command that runs it."""
    subprocess.run(["runc", "spec"], cwd=directory, check=True)
    root = directory / "rootfs"
    (root / "usr").mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    path = directory / "config.json"
    spec = json.loads(path.read_text())
    spec["process"] |= {"terminal": False, "args": ["/bin/true"]}
    spec["mounts"] += [{"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]}]
    path.write_text(json.dumps(spec))
    return ["runc", "--root", str(directory / "state"), "run", "--bundle", str(directory), PREFIX]


def runexec(directory: Path) -> list[str]:
    """Install benchexec below `directory`, and return the command of its runexec. Raises RuntimeError: it does not work here."""
    pip = [sys.executable, "-m", "pip", "--python", str(directory / "bin/python"), "install", "--quiet", "benchexec"]
    argv = [
        str(directory / "bin/runexec"),
        "--quiet",
        "--read-only-dir",
        "/",
        "--dir",
        "/",
        "--output",
        "/dev/null",
        "--",
        "/bin/true",
    ]
    for step in ([sys.executable, "-m", "venv", "--without-pip", str(directory)], pip, argv):
        try:
            done = subprocess.run(step, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600, check=False)
        except (OSError, subprocess.TimeoutExpired) as exc:
            raise RuntimeError(str(exc)) from exc
        if done.returncode or (step is argv and "returnvalue=0" not in done.stdout):
            raise RuntimeError((done.stderr.strip().splitlines() or ["it failed"])[-1])
    return argv


@contextlib.contextmanager
def dockers(result: Result) -> Iterator[Mapping[str, Callable[[], object]]]:
    """Have a dockerd, and yield its case; without one yield none, and note why."""
    with tempfile.TemporaryDirectory(prefix="nsagent-bench-", dir="/tmp") as directory, contextlib.ExitStack() as stack:
        try:
            engine = stack.enter_context(docker.running(Path(directory)))
            argv = ("run", "--rm", "--network", "none", docker.IMAGE, "/bin/waiter", "once")
            engine.docker(*argv)
        except (pytest.skip.Exception, pytest.fail.Exception, AssertionError, OSError) as exc:
            result.notes.append(f"Not measured: docker run ({(str(exc).splitlines() or ['no reason'])[0]}).")
            yield {}
            return
        yield {"docker run": functools.partial(engine.docker, *argv)}


def commands(directory: Path) -> dict[str, list[str]]:
    """Return each launcher's command line, those that are not installed too; but for docker's and runexec's."""
    nsagent = str(Path(sys.executable).with_name("nsagent"))
    isolation = ["--cgroup", "--ipc", "--mount", "--pid", "--uts", "--fork"]
    every = {
        "/bin/true, not launched": ["/bin/true"],
        BASELINE: [sys.executable, "-c", "import click"],
        OURS: [nsagent, "run", "--state-dir", str(directory / "jobs"), "--report", "none", "--", "/bin/true"],
        "unshare(1)": ["unshare", *isolation, "--mount-proc", "/bin/true"],
        "bwrap": ["bwrap", "--unshare-all", "--share-net", "--dev-bind", "/", "/", "--proc", "/proc", "/bin/true"],
    }
    if shutil.which("runc"):
        every["runc run"] = runc_bundle(directory)
    return every


def verdicts(samples: Mapping[str, Sequence[float]]) -> Iterator[str]:
    """Say how OURS compares to those it has a bound to."""
    ours = statistics.median(samples[OURS])
    for name, most in BOUNDS.items():
        if name in samples:
            ratio = ours / statistics.median(samples[name])
            yield f"`{OURS}` takes {ratio:.2f} times as long as `{name}`; {'within' if ratio <= most else 'ABOVE'} {most:.2g}."


def measure() -> Result:
    """Run each launcher that works here ROUNDS times."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    result = Result()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory, dockers(result) as cases:
        every = commands(Path(directory))
        try:
            every["runexec"] = runexec(Path(directory) / "benchexec")
        except RuntimeError as exc:
            result.notes.append(f"Not measured: runexec ({exc}).")
        actions: dict[str, Callable[[], object]] = dict(cases)
        for name, argv in every.items():
            why = "not installed" if shutil.which(argv[0]) is None else fails(argv)
            if why is None:
                actions[name] = functools.partial(run, argv)
            elif name == OURS:
                raise RuntimeError(f"nsagent run does not work here: {why}")
            else:
                result.notes.append(f"Not measured: {name} ({why}).")
        samples = interleaved(actions, ROUNDS)
        result.add(samples, "ms", BASELINE)
        result.notes += verdicts(samples)
    return result
