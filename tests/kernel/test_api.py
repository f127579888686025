"""`from nsagent import run, RunSpec`, from a program with threads and from one without."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.kernel.launching import Jobs

pytestmark = pytest.mark.kernel

PROGRAM = """
import json, sys, threading
from nsagent import RunResult, RunSpec, run
from nsagent.cgroups.limits import Limits
from nsagent.errors import LaunchError
if sys.argv[2] == "threads":
    threading.Thread(target=threading.Event().wait, daemon=True).start()
found = run(RunSpec(argv=("sh", "-c", "cat; exit 3"), name="nsagent-test-api", limits=Limits(pids=50)), state_dir=sys.argv[1])
assert isinstance(found, RunResult)
try:
    run(["nosuch-command"], state_dir=sys.argv[1])
    code = 0
except LaunchError as error:
    code = error.exit_code
print(json.dumps([found.outcome, found.exit_code, found.usage.cpu_source, found.usage.pids_peak >= 1, code]))
"""


@pytest.mark.parametrize("threads", ["threads", "none"])
def test_a_job_from_python(jobs: Jobs, threads: str) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(jobs.state), threads]
    done = subprocess.run(argv, input="typed\n", capture_output=True, text=True, timeout=120, check=True, cwd="/")
    typed, answer = done.stdout.splitlines()
    assert typed == "typed"
    assert json.loads(answer) == ["failure", 3, "cgroup", True, 127]
    assert sorted(job["outcome"] for job in jobs.registered("ended")) == ["failure", "launch_error"]
    assert jobs.cgroups("nsagent-test-api") == []
