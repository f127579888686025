"""The BPF programs attached under pins of the bench's own, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from bench.measure import PREFIX
from nsagent.kernel.attach import Attached, attach

PINS = f"/sys/fs/bpf/{PREFIX}-attached"
_cache = tempfile.TemporaryDirectory(prefix=PREFIX)


def charged_controller() -> str | None:
    """Return the v1 controller whose cgroups are charged, or None for the v2 tree."""
    v1 = any(" - cgroup " in line and "cpuacct" in line for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return "cpuacct" if v1 else None


@contextlib.contextmanager
def programs(*, trace: bool = True) -> Iterator[Attached]:
    """Attach the programs, compiled at the first call; on leaving unload them."""
    attached = attach(PINS, _cache.name, subsystem=charged_controller(), trace=trace)
    try:
        yield attached
    finally:
        attached.unload()
        shutil.rmtree(PINS, ignore_errors=True)
