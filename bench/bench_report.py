"""A job that burns two seconds of CPU in two processes, alone in a cgroup: the CPU time of its report, and what the kernel has
counted for that cgroup when the job is gone, which includes it."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.measure import PREFIX, Result
from nsagent.cgroups.group import Group
from nsagent.cgroups.layout import read_layout
from nsagent.errors import UnsupportedError

TITLE = "The CPU time of a report"
ROUNDS = 5
WITHIN = 0.005
_BURN = "import os, time\nos.fork()\nend = time.process_time() + 1\nwhile time.process_time() < end: pass\n"
_COMMAND = f"{_BURN}os.getpid() == 1 and os.wait()"


def usage_ns(group: Group) -> int:
    """Return what the kernel has counted for a cgroup, of its file."""
    hierarchy = group.layout.of("cpuacct") or group.layout.v2
    if hierarchy is None:
        raise UnsupportedError("the CPU time of a report", "no cgroup here counts CPU time")
    if hierarchy.version == 1:
        return int(Path(group.places[hierarchy], "cpuacct.usage").read_text())
    return int(Path(group.places[hierarchy], "cpu.stat").read_text().split()[1]) * 1000  # usage_usec comes first


def measure() -> Result:
    """Run the job ROUNDS times, each in a cgroup of its own."""
    result, reported, counted = Result(), [], []
    nsagent = str(Path(sys.executable).with_name("nsagent"))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        file = Path(directory, "report.json")
        argv = [nsagent, "run", "--state-dir", f"{directory}/jobs", "--report", "json", "--report-file", str(file)]
        for number in range(ROUNDS):
            group = Group.create(read_layout(), f"{PREFIX}-{number}")
            try:
                job = [*argv, "--parent", group.path, "--", sys.executable, "-c", _COMMAND]
                subprocess.run(job, check=True, stdin=subprocess.DEVNULL)
                counted.append(usage_ns(group) / 1e9)
            finally:
                group.kill()
                group.remove()
            reported.append(json.loads(file.read_text())["usage"]["cpu_ns"] / 1e9)
    result.add({"its cgroup": counted, "the report": reported}, "s", "its cgroup")
    worst = max(abs(mine / theirs - 1) for mine, theirs in zip(reported, counted, strict=True))
    result.notes.append(f"The greatest difference is {worst:.3%}: {'within' if worst <= WITHIN else 'ABOVE'} {WITHIN:.1%}.")
    return result
