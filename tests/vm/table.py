"""Judge what the machines found, and make docs/support-matrix.md of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tests.vm.kernels import Kernel

Report = dict[str, Any]
Found = tuple[Kernel, str, Report]  # the kernel, the layout, the report of tests/vm/inside.py

ROUNDING_NS = {"v2": 1000, "v1": 1, "hybrid": 1}  # v2 tells whole microseconds, cut off
YES, NO = "yes", "-"

HEAD = """# What works on which kernel

Written by `make test-vm`, which boots Debian's kernels in qemu and tries everything there: do not edit.
Layouts: v2 is one cgroup v2 tree with pressure (PSI) on; v1 is one hierarchy a controller; hybrid is v1 with a v2 tree that has
no controller. Where the programs do not load the agent reads /proc, approximately, and `nsagent doctor` says why. Times are of
emulated machines, and are no measure of anything.

"""


def judge(layout: str, report: Report, error: str) -> list[str]:
    """Return what is not as it must be, in words. A kernel without task storage must refuse the programs, and say why."""
    if error:
        return [error.strip()]
    faults = [] if report.get("done") else ["it ended before the report did"]
    refusal = report.get("programs", {}).get("error", "")
    if not available(report, "task_storage"):
        return faults + (
            [] if refusal.startswith("UnsupportedError: map tasks") else [f"no task storage, but: {refusal or 'loaded'}"]
        )
    if refusal:
        return [*faults, refusal]
    # The two ways a hook is lost on these kernels are counted, so the agent can tell: tests/vm/README.md.
    lost = report.get("misses", {}).get("no_storage", 0)
    for name, (difference, kernel, unseen, status) in report.get("accounting", {}).items():
        low, high = -ROUNDING_NS[layout], (0.02 * kernel if 0 < unseen <= lost else 0)
        if status or unseen > lost or not low < difference <= high:
            faults.append(f"accounting of {name}: {difference} ns, {unseen} frees unseen, exit status {status}")
    if report.get("identities", {}).get("namespaces", 5) != 5:
        faults.append(f"five namespaces are {report['identities']['namespaces']}")
    for name, (outcome, _, text) in report.get("tests", {}).items():
        if outcome == "failed":
            faults.append(f"{name}: {(text.strip().splitlines() or [''])[-1]}")
    return faults


def available(report: Report, feature: str) -> bool:
    """Tell whether the kernel has a feature of nsagent.kernel.features."""
    return bool(report.get("features", {}).get(feature, [False])[0])


def _feature(name: str) -> Callable[[str, Report], str]:
    return lambda layout, report: YES if available(report, name) else NO


def _programs(layout: str, report: Report) -> str:
    found = report.get("programs", {})
    if "verified_insns" not in found:
        return NO
    return f"{len(found['verified_insns'])}, {sum(found['verified_insns'].values())} insns"


def _exact(layout: str, report: Report) -> str:
    rows = list(report.get("accounting", {}).values())
    if not rows:
        return NO
    worst = max((abs(row[0]) for row in rows), default=0)
    exact = worst < ROUNDING_NS[layout] and not any(row[2] for row in rows)
    return ("exact" if exact else "not exact") + f", <= {worst} ns"


def _lost(layout: str, report: Report) -> str:
    lost = report.get("misses")
    return NO if lost is None else ", ".join(f"{name} {count}" for name, count in lost.items()) or "none"


def _tests(layout: str, report: Report) -> str:
    outcomes = [row[0] for row in report.get("tests", {}).values()]
    failed = outcomes.count("failed")
    return f"{outcomes.count('passed')} passed" + (f", {failed} failed" if failed else "") if outcomes else NO


def _one(name: str, yes: str = YES) -> Callable[[str, Report], str]:
    """What the one test whose name contains `name` says."""

    def cell(layout: str, report: Report) -> str:
        outcomes = {row[0] for test, row in report.get("tests", {}).items() if name in test}
        return NO if not outcomes or outcomes == {"skipped"} else "no" if "failed" in outcomes else yes

    return cell


def _namespace_ids(layout: str, report: Report) -> str:
    found = report.get("identities", {})
    if not found:
        return NO
    how = "ns_id" if available(report, "ns_id") else "generations"
    return f"{how}: {found['namespaces']} of 5, {found['inums']} inums"


def _traced(layout: str, report: Report) -> str:
    return str(report.get("programs", {}).get("traced_by") or NO)


ROWS: tuple[tuple[str, Callable[[str, Report], str]], ...] = (
    ("BTF", _feature("btf")),
    ("task storage for tracing programs", _feature("task_storage")),
    ("programs loaded, instructions the verifier walked", _programs),
    ("CPU of contexts against the cgroup's own, worst of 7 workloads", _exact),
    ("hooks lost in those", _lost),
    ("threads split when their process moves", _one("test_threads_that_move_with_their_process")),
    ("identity of a reused inum", _namespace_ids),
    ("tracing attached to", _traced),
    ("kernel tests", _tests),
    ("fentry", _feature("fentry")),
    ("kprobe", _feature("kprobe")),
    ("bpf_iter/cgroup", _feature("iter_cgroup")),
    ("PSI", _feature("psi")),
    ("CLONE_INTO_CGROUP", _feature("clone_into_cgroup")),
    ("cgroup.kill", _feature("cgroup_kill")),
    ("time namespaces", _feature("time_namespaces")),
)


def document(found: Sequence[Found]) -> str:
    """Return the Markdown text: one table a kernel, a column a layout, and what each kernel lacks with the reason."""
    parts = [HEAD]
    for release in dict.fromkeys(kernel.release for kernel, _, _ in found):
        columns = [(kernel, layout, report) for kernel, layout, report in found if kernel.release == release]
        kernel = columns[0][0]
        parts.append(f"## Linux {release} (Debian {kernel.suite}, {kernel.version})\n\n")
        parts.append(f"| | {' | '.join(layout for _, layout, _ in columns)} |\n{'|---' * (1 + len(columns))}|\n")
        for title, cell in ROWS:
            parts.append(f"| {title} | {' | '.join(cell(layout, report) for _, layout, report in columns)} |\n")
        parts.append("\n" + "".join(f"- {line}\n" for line in _lacks(columns)) + "\n")
    return "".join(parts).rstrip("\n") + "\n"


def _lacks(columns: Sequence[Found]) -> list[str]:
    """Each "no" once, with its reason and the layouts it holds for where not all."""
    reasons: dict[str, list[str]] = {}
    for _, layout, report in columns:
        programs = report.get("programs", {})
        lines = [f"{name}: {row[1]}" for name, row in report.get("features", {}).items() if not row[0]]
        lines += [f"{name}: {reason}" for name, reason in programs.get("missing", {}).items()]
        if "error" in programs:
            lines.append(f"programs: {programs['error']}")
        for line in lines:
            reasons.setdefault(line, []).append(layout)
    return [line if len(layouts) == len(columns) else f"{line} ({', '.join(layouts)})" for line, layouts in reasons.items()]
