"""Run tests/vm/inside.py on every kernel and layout, judge what it found, and write docs/support-matrix.md: `make test-vm`.

    python -m tests.vm.matrix [--jobs N] [--keep DIRECTORY] [KERNEL[:LAYOUT]...]

All machines run one copy of the sources, taken at the start: a run lasts long enough for somebody to edit them meanwhile.
With names of kernels or layouts only those are run, and nothing is written.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nsagent.errors import NsagentError
from nsagent.kernel import abi, build
from nsagent.kernel.attach import RING_BYTES, ROWS
from tests.support import ROOT
from tests.vm import kernels, machine, table
from tests.vm.kernels import Kernel

# Emulated, minutes each; or with bounds in ms, which hold only where the machine's clock counts instructions.
SLOW = "storm or that_race or never_fall or rows_come_back or spawns or counters_count"
TIMED = "splits or five_namespaces"
# What differs by layout.
CGROUPS = "moves or move_ or one_thread or zombies or memory or burn"
DOCUMENT = "docs/support-matrix.md"


@dataclass(frozen=True)
class Plan:
    """One boot. `compile_inside`: with the guest's own bcc, else the objects are made on this host from the kernel's BTF."""

    kernel: str
    layout: str
    tests: tuple[str, ...] = ()
    accounting: bool = True
    compile_inside: bool = False
    disk_mib: int = 0
    icount: bool = False
    deadline_s: float = 900


@dataclass(frozen=True)
class Result:
    """What one boot found: the report of tests/vm/inside.py, or why there is none."""

    plan: Plan
    kernel: Kernel
    seconds: float
    report: dict[str, Any] = field(default_factory=dict)
    error: str = ""


def plan_all() -> list[Plan]:
    """Return every boot of the full matrix. Where the other layouts differ is accounting; tracing has its tests on v2."""
    plans = []
    for layout, kernel in itertools.product(machine.LAYOUTS, kernels.SUITES):
        icount = kernel == "newest"
        without = f"not ({SLOW})" if icount else f"not ({SLOW} or {TIMED})"
        tests: tuple[str, ...] = ("tests/kernel/test_settle.py", "tests/kernel/test_trace.py", "-k", without)
        if layout != "v2":
            tests = ("tests/kernel/test_settle.py", "-k", f"({CGROUPS}) and {without}")
        inside = (kernel, layout) == ("6.12", "hybrid")
        plans.append(Plan(kernel, layout, tests, compile_inside=inside, disk_mib=64, icount=icount))
    return plans


def controller(layout: str) -> str | None:
    """Return the hierarchy that init.sh's layouts account in: cpuacct's, or the v2 tree."""
    return None if layout == "v2" else "cpuacct"


def prebuild(kernel: Kernel, layout: str, directory: Path) -> None:
    """Compile the programs for another kernel on this host, into an object cache."""
    subsystem = controller(layout)
    key = build.source_key(build.read_sources(), subsystem)
    document = build.compile_object(kernel.build_id, subsystem, btf=str(kernel.btf))
    document |= {"abi": abi.ABI_VERSION, "maps": abi.map_specs(ROWS, RING_BYTES)}
    build.store(build.cached_path(str(directory), kernel.build_id, key), document)


def run(plan: Plan, out: Path) -> Result:
    """Boot one machine and return what it found; `out` keeps its files."""
    kernel = kernels.fetch(plan.kernel)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "report.json"
    path.unlink(missing_ok=True)
    if not plan.compile_inside:
        try:
            prebuild(kernel, plan.layout, out / "objects")
        except NsagentError as exc:
            return Result(plan, kernel, 0.0, error=f"{exc}\n{getattr(exc, 'log', '')[-3000:]}")
    objects = None if plan.compile_inside else "/run/out/objects"
    request = {"objects": objects, "tests": plan.tests, "accounting": plan.accounting}
    (out / "request.json").write_text(json.dumps(request))
    python = Path(sys.executable).absolute()
    command = f"cd {ROOT} && PYTHONPATH={ROOT} {python} -m tests.vm.inside /run/out/request.json /run/out/report.json"
    error, seconds = "", 0.0
    try:
        outcome = machine.run(
            kernel,
            command,
            out,
            layout=plan.layout,
            deadline_s=plan.deadline_s,
            disk_mib=plan.disk_mib,
            icount=plan.icount,
        )
        seconds = outcome.seconds
        if outcome.status:
            error = f"exit status {outcome.status}\n{outcome.output[-4000:]}"
    except machine.MachineError as exc:
        error = str(exc)
    report = json.loads(path.read_text()) if path.exists() else {}
    return Result(plan, kernel, seconds, report, error)


def _in_a_copy(arguments: list[str]) -> int:
    """Run this module again in a copy of what it needs of the project."""
    with tempfile.TemporaryDirectory(prefix="nsagent-vm-tree-") as directory:
        tree = Path(directory)
        tree.chmod(0o755)  # the compile child reads it as nobody
        for name in ("nsagent", "bpf", "tests", "pyproject.toml"):
            source = ROOT / name
            if source.is_dir():
                shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("fixtures", "golden"))
            else:
                shutil.copy(source, tree / name)
        argv = [sys.executable, "-m", "tests.vm.matrix", "--here", *arguments]
        return subprocess.run(argv, cwd=tree, env=os.environ | {"PYTHONPATH": directory}, check=False).returncode


def main() -> int:
    """Run the matrix; exit status 1 if a machine ended badly or a finding is not as expected."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.matrix")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--jobs", type=int, default=min(os.cpu_count() or 1, 4), help="machines at once, each busy on one CPU")
    parser.add_argument("--keep", type=Path, help="keep each machine's files under this directory")
    parser.add_argument("--write", type=Path, default=ROOT / DOCUMENT, help=argparse.SUPPRESS)
    parser.add_argument("names", nargs="*", help="such as 6.1, or 6.1:v2")
    options = parser.parse_args()
    if lack := machine.missing():
        print(f"error: {lack}", file=sys.stderr)
        return 1
    if not options.here:
        return _in_a_copy([f"--write={options.write}", *sys.argv[1:]])
    plans = [plan for plan in plan_all() if not options.names or {plan.kernel, f"{plan.kernel}:{plan.layout}"} & {*options.names}]
    known = {name for plan in plans for name in (plan.kernel, f"{plan.kernel}:{plan.layout}")}
    if unknown := sorted({*options.names} - known):
        print(f"error: no such machine: {', '.join(unknown)}", file=sys.stderr)
        print(f"hint: {', '.join(kernels.SUITES)}, each with or without :{', :'.join(machine.LAYOUTS)}", file=sys.stderr)
        return 2
    started = time.monotonic()
    for name in sorted({plan.kernel for plan in plans}):
        print(f"kernel {name}: {kernels.fetch(name).version}", flush=True)
    print(f"kernels ready after {time.monotonic() - started:.0f} s; {len(plans)} machines, {options.jobs} at once", flush=True)
    results, bad = [], 0
    with tempfile.TemporaryDirectory(prefix="nsagent-vm-out-") as directory:
        top = options.keep or Path(directory)
        with ThreadPoolExecutor(options.jobs) as pool:
            for result in pool.map(lambda plan: run(plan, top / f"{plan.kernel}-{plan.layout}"), plans):
                faults = table.judge(result.plan.layout, result.report, result.error)
                bad += bool(faults)
                results.append(result)
                print(
                    f"{result.kernel.release} {result.plan.layout}: {result.seconds:.0f} s, {'; '.join(faults) or 'ok'}",
                    flush=True,
                )
    if not options.names:
        options.write.write_text(table.document([(r.kernel, r.plan.layout, r.report) for r in results]))
        print(f"wrote {options.write}")
    print(f"{len(results) - bad} of {len(results)} machines as expected, {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
