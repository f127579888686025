"""`make bench`: run every bench_*.py of this directory and write docs/performance.md; with names, print those only.

Each module has a `TITLE`, a docstring that says how it measures, and `measure() -> Result`.
"""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nsagent
from bench.measure import Result, Row
from nsagent.errors import NsagentError

HERE = Path(__file__).parent
OUTPUT = HERE.parent / "docs/performance.md"


def machine() -> list[str]:
    """Describe the machine in lines of `name: value`."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":", 1)[1].strip() for line in cpuinfo if line.startswith("model name")), platform.machine())
    release = dict(line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return [
        f"processor: {model}, {os.cpu_count()} CPUs, {memory:.0f} GiB",
        f"kernel: {platform.release()} ({platform.machine()})",
        f"userland: {release.get('PRETTY_NAME', 'unknown').strip(chr(34))}, Python {platform.python_version()}",
        f"nsagent: {nsagent.__version__}, measured {datetime.date.today().isoformat()}, load average {os.getloadavg()[0]:.1f}",
    ]


def table(rows: list[Row]) -> Iterator[str]:
    """Yield the lines of a Markdown table."""
    yield "| what | median | rounds | ratio |"
    yield "|---|---:|---:|---|"
    for row in rows:
        ratio = f"{row.ratio:.3g} × {row.baseline}" if row.ratio is not None and row.name != row.baseline else ""
        yield f"| {row.name} | {row.median:,.4g} {row.unit} | {row.rounds} | {ratio} |"


def section(module: Any) -> Iterator[str]:
    """Measure one module and yield its part of the page; what cannot be measured here is a sentence instead."""
    print(f"bench: {module.TITLE} ...", file=sys.stderr, flush=True)
    try:
        result: Result = module.measure()
    except NsagentError as exc:
        result = Result(notes=[f"Not measured: {exc.message}"])
    yield f"## {module.TITLE}"
    yield ""
    yield (module.__doc__ or "").strip()
    yield ""
    if result.rows:
        yield from table(result.rows)
        yield ""
    for note in result.notes:
        yield f"{note}"
        yield ""


def main(names: list[str]) -> int:
    """Run the modules named (without the `bench_`), or all of them; only all of them replace the page."""
    known = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    unknown = sorted(set(names) - set(known))
    if unknown:
        print(f"error: no such bench: {', '.join(unknown)}\nhint: there are {', '.join(known)}", file=sys.stderr)
        return 2
    if os.geteuid() != 0:
        print("error: the benches make cgroups and load BPF programs\nhint: sudo make bench", file=sys.stderr)
        return 1
    lines = ["# Performance", "", "Written by `make bench`. Medians and ratios of one run on one machine:", ""]
    lines += [f"- {line}" for line in machine()]
    if os.getloadavg()[0] > 1:
        lines += ["", "**The machine was not idle:** run `make bench` again on one that is before quoting anything here."]
    lines += ["", "Cases are measured in turns, so that a slow moment hits all of them. Ratios carry over, times do not.", ""]
    for name in names or known:
        lines += section(importlib.import_module(f"bench.bench_{name}"))
    page = "\n".join(lines).rstrip() + "\n"
    if names:
        print(page)
    else:
        OUTPUT.write_text(page)
        print(f"wrote {OUTPUT}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
