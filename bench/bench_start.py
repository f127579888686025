"""Wall time from start to end of a command that does nothing, launched in new cgroup, IPC, mount, PID and UTS namespaces
(each launcher as near to that as it comes) and, by those that do so, in a cgroup of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.measure import PREFIX, Result, fails, interleaved, run

TITLE = "Starting a job"
ROUNDS = 40
BASELINE = "python -c 'import click'"


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


def commands(directory: Path) -> dict[str, list[str]]:
    """Return each launcher's command line, those that are not installed too."""
    nsagent = str(Path(sys.executable).with_name("nsagent"))
    isolation = ["--cgroup", "--ipc", "--mount", "--pid", "--uts", "--fork"]
    every = {
        "/bin/true, not launched": ["/bin/true"],
        BASELINE: [sys.executable, "-c", "import click"],
        "nsagent run": [nsagent, "run", "--report", "none", "--", "/bin/true"],
        "unshare(1)": ["unshare", *isolation, "--mount-proc", "/bin/true"],
        "bwrap": ["bwrap", "--unshare-all", "--share-net", "--dev-bind", "/", "/", "--proc", "/proc", "/bin/true"],
        "docker run": ["docker", "run", "--rm", "--network", "none", "busybox", "true"],
    }
    if shutil.which("runc"):
        every["runc run"] = runc_bundle(directory)
    return every


def measure() -> Result:
    """Run each launcher that works here ROUNDS times."""
    result = Result()
    with tempfile.TemporaryDirectory(prefix=PREFIX) as directory:
        cases = {}
        for name, argv in commands(Path(directory)).items():
            why = "not installed" if shutil.which(argv[0]) is None else fails(argv)
            if why is None:
                cases[name] = lambda argv=argv: run(argv)
            elif name == "nsagent run":
                raise RuntimeError(f"nsagent run does not work here: {why}")
            else:
                result.notes.append(f"Not measured: {name} ({why}).")
        result.add(interleaved(cases, ROUNDS), "ms", BASELINE)
    return result
