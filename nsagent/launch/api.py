"""`from nsagent import run, RunSpec`: a job from Python.

    from nsagent import RunSpec, run
    from nsagent.cgroups.limits import Limits

    result = run(RunSpec(argv=("make", "-j8"), limits=Limits(cpus=2, memory_bytes=1 << 30), timeout_ns=600 * 10**9))
    print(result.outcome, result.usage.cpu_ns)

A launch is a fork, which must not copy the locks of other threads: where the caller has threads, a process in between launches.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence

from nsagent import errors, jobs
from nsagent.errors import LaunchError, NsagentError
from nsagent.launch import descriptors, launcher
from nsagent.launch.report import RunResult, from_dict, to_dict
from nsagent.launch.spec import RunSpec, read_capabilities


def run(spec: RunSpec | Sequence[str], *, state_dir: str | None = None) -> RunResult:
    """Run a job to its end, and return what it was and used. CMD has the caller's standard input, output and error.

    `spec`: a RunSpec, or the words of a command with all else as `nsagent run` has it. `state_dir`: where the job is registered,
    by default as `nsagent run` does. However CMD ends, there is a result: see its `outcome` and `exit_code`.

    Raises: UsageError, AccessError, UnsupportedError, LaunchError: CMD did not run, and nothing is left.
    """
    wanted = (spec if isinstance(spec, RunSpec) else RunSpec(argv=tuple(spec))).checked()
    directory = state_dir or jobs.default_state_dir()
    descriptors.open_standard()
    if len(os.listdir("/proc/self/task")) > 1:
        return _run_apart(wanted, directory)
    return launcher.run(wanted.for_capabilities(read_capabilities()), directory)


def _run_apart(spec: RunSpec, state_dir: str) -> RunResult:
    asked, asking = os.pipe()
    answer, answering = os.pipe()
    argv = [sys.executable, "-m", __name__, str(asked), str(answering)]
    try:
        process = subprocess.Popen(argv, pass_fds=(asked, answering))
    finally:
        os.close(asked)
        os.close(answering)
    with process, open(answer, "rb") as pipe:
        with open(asking, "wb") as out:
            pickle.dump((spec, state_dir), out)
        text = pipe.read()
    if not text:
        raise LaunchError("the launching process was killed", stage="launch")
    found = json.loads(text)
    if "error" in found:
        kind = getattr(errors, found["error"])
        error: NsagentError = kind.__new__(kind)
        error.args = (found["fields"]["message"],)
        error.__dict__.update(found["fields"])
        raise error
    return from_dict(found)


def _launch(asked: int, answering: int) -> None:
    os.set_inheritable(answering, False)
    with open(asked, "rb") as pipe:
        spec, state_dir = pickle.load(pipe)
    try:
        found = to_dict(run(spec, state_dir=state_dir))
    except NsagentError as exc:
        found = {"error": type(exc).__name__, "fields": exc.__dict__}
    with open(answering, "w", encoding="utf-8") as out:
        json.dump(found, out)


if __name__ == "__main__":
    _launch(int(sys.argv[1]), int(sys.argv[2]))
