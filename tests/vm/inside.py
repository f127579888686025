"""What runs inside a machine: find out what this kernel gives nsagent, run kernel tests, and write all of it as JSON.

    python -m tests.vm.inside REQUEST REPORT

The request: {"objects": directory with compiled objects or null to compile here, "tests": pytest arguments, "accounting": bool}.
The report grows step by step, so that a kernel that dies leaves what was found until then.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nsagent.errors import LoadError, NsagentError
from nsagent.kernel import build, features, mounts
from nsagent.kernel.attach import Attached, attach
from nsagent.namespaces import NamespaceKind
from nsagent.usage import KernelUsage
from tests.kernel.conftest import SOURCE, AccountedCgroup, accounting

COMPILE_DEADLINE_S = 540.0  # the compile child takes seconds on a host and a minute or two here

# name: arguments of tests/kernel/load.c. Each ends by itself.
WORKLOADS = {
    "burn": ("burn", "50000"),
    "forks": ("forks", "200", "200"),
    "threads": ("threads", "30", "200"),
    "vforks": ("vforks", "60"),
    "leader first": ("leader-first", "20000"),
    "exec by thread": ("exec-by-thread",),
    "storm": ("storm", "2", "15"),
}


class Report:
    """The report file; each `put` writes it anew."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.content: dict[str, Any] = {"release": os.uname().release, "seconds": {}}

    def put(self, **fields: Any) -> None:
        self.content |= fields
        temporary = self.path.with_suffix(".new")
        temporary.write_text(json.dumps(self.content, indent=1))
        os.replace(temporary, self.path)

    def step(self, name: str, function: Callable[[], dict[str, Any]]) -> None:
        """Run a step; what it returns goes into the report under its name, with its duration; an error is a finding."""
        started = time.monotonic()
        try:
            found = function()
        except NsagentError as error:
            found = {"error": f"{type(error).__name__}: {error}"}
            if isinstance(error, LoadError):
                found["log"] = error.log[-6000:]
        self.content["seconds"][name] = round(time.monotonic() - started, 1)
        self.put(**{name: found})


def probe() -> dict[str, Any]:
    """Every feature of nsagent.kernel.features: [available, reason]."""
    return {feature.name: [feature.available, feature.reason] for feature in features.probe()}


def give_time_to_compile() -> None:
    """Emulated, the compiler needs longer than the agent gives it."""
    compile_object = build.compile_object

    def patient(*args: Any, **options: Any) -> dict[str, Any]:
        return compile_object(*args, **options | {"deadline": COMPILE_DEADLINE_S})

    pytest.MonkeyPatch().setattr(build, "compile_object", patient)


def programs(attached: Attached) -> dict[str, Any]:
    """What was loaded, what the verifier walked for it, and what this kernel lacks."""
    return {
        "verified_insns": {program.name: program.verified_insns for program in attached.status().programs},
        "missing": attached.missing,
        "traced_by": attached.traced_by,
        "warm": attached.warm,
        "compiler": attached.compiler,
    }


def differences(attached: Attached) -> dict[str, Any]:
    """Kernel's figure less ours in ns, the kernel's figure, and frees not seen, for each workload."""
    with tempfile.TemporaryDirectory() as directory:
        load = f"{directory}/load"
        subprocess.run(["gcc", "-O1", "-o", load, str(SOURCE), "-lpthread"], check=True)
        reader = KernelUsage(attached)
        found = {}
        for name, arguments in WORKLOADS.items():
            path = accounting()[1] / f"nsagent-test-{name.replace(' ', '-')}"
            path.mkdir()
            cgroup = AccountedCgroup(path, reader)
            status = cgroup.run([load, *arguments]).wait(120)
            ours = cgroup.complete()
            for _ in range(9):  # frees wait for RCU, which takes its time on an emulated CPU
                if ours.threads_exited == ours.threads_freed:
                    break
                ours = cgroup.complete()
            kernel = cgroup.kernel_ns()
            found[name] = [kernel - ours.cpu_ns, kernel, ours.threads_exited - ours.threads_freed, status]
            path.rmdir()
        return found


def identities(attached: Attached) -> dict[str, Any]:
    """Five `unshare -u` in a row: how many inode numbers the kernel gave them, and how many namespaces they are to us."""
    reader = KernelUsage(attached)
    before = set(reader.read().namespaces)
    inums = set()
    for _ in range(5):
        argv = ["unshare", "-u", "readlink", "/proc/self/ns/uts"]
        inums.add(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip())
    found = {key for key in reader.read().namespaces if key.kind is NamespaceKind.UTS and key not in before}
    return {"inums": len(inums), "namespaces": len(found)}


def misses(attached: Attached) -> dict[str, Any]:
    """Runs the kernel left out because the program was running on that CPU already, and what the programs count as lost."""
    runs = {program.name: program.recursion_misses for program in attached.status().programs if program.recursion_misses}
    return runs | {name: lost for name in ("no_storage", "late", "rows_full") if (lost := attached.statistic(name))}


class Plugin:
    """Seed the tests' object cache, and keep each test's outcome."""

    def __init__(self, objects: str | None, report: Report) -> None:
        self.objects = objects
        self.report = report
        self.outcomes: dict[str, list[Any]] = {}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        outcome: Any = yield
        if fixturedef.argname == "cache_dir" and self.objects:
            shutil.copytree(self.objects, outcome.get_result(), dirs_exist_ok=True)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or report.outcome != "passed":
            name = report.nodeid.rpartition("/")[2]
            self.outcomes[name] = [report.outcome, round(report.duration, 1), report.longreprtext[-3000:]]
            self.report.put(tests=self.outcomes)


def main(request_path: str, report_path: str) -> None:
    request = json.loads(Path(request_path).read_text())
    report = Report(Path(report_path))
    give_time_to_compile()
    report.step("features", probe)
    cache = tempfile.mkdtemp()
    if request["objects"]:
        shutil.copytree(request["objects"], cache, dirs_exist_ok=True)
    mounts.mount_bpffs()
    mounts.mount_tracefs()
    pins = f"{mounts.BPFFS}/nsagent-test-inside"
    loaded: list[Attached] = []

    def load() -> dict[str, Any]:
        loaded.append(attach(pins, cache, subsystem=accounting()[0]))
        return programs(loaded[0])

    report.step("programs", load)
    if loaded and request["accounting"]:
        report.step("accounting", lambda: differences(loaded[0]))
        report.step("identities", lambda: identities(loaded[0]))
        report.step("misses", lambda: misses(loaded[0]))
    for one in loaded:
        one.unload()
    if loaded and request["tests"]:
        started = time.monotonic()
        plugin = Plugin(cache, report)
        status = pytest.main(
            ["-q", "-p", "no:cacheprovider", "-o", "addopts=", "--basetemp=/run/disk/pytest", *request["tests"]], plugins=[plugin]
        )
        report.content["seconds"]["tests"] = round(time.monotonic() - started, 1)
        report.put(pytest=int(status))
    report.put(done=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
