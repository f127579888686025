"""Conservation: over each kind, the growth of all namespaces plus the ended is the growth of the node's own CPU counter."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from nsagent.kernel.attach import Attached
from nsagent.namespaces import NamespaceKind
from nsagent.usage import KernelUsage
from tests.kernel.conftest import accounting

pytestmark = pytest.mark.kernel


def node_ns() -> int:
    """CPU of all tasks. v1: root cpuacct.usage in ns; v2: user, nice and system of /proc/stat, in ticks."""
    controller, mount = accounting()
    if controller:
        return int((mount / "cpuacct.usage").read_text())
    fields = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return sum(map(int, fields[1:4])) * (10**9 // os.sysconf("SC_CLK_TCK"))


def _sees_pid_1(node: KernelUsage) -> bool:
    """Tell whether as many threads are counted as /proc lists, PID 1's among them."""
    counted = sum(used.threads for key, used in node.read().namespaces.items() if key.kind is NamespaceKind.USER)
    listed = sum(len(list(path.iterdir())) for path in Path("/proc").glob("[0-9]*/task"))
    return counted > listed - len(list(Path("/proc/1/task").iterdir()))


@pytest.mark.parametrize("seconds", [pytest.param(10, id="short"), pytest.param(60, id="minute", marks=pytest.mark.slow)])
def test_nothing_of_the_node_is_lost(attached: Attached, load: str, seconds: int) -> None:
    reader = KernelUsage(attached, retain_s=4)  # namespaces end and are folded within the run
    hidden = not _sees_pid_1(reader)

    def all_ns() -> tuple[dict[NamespaceKind, int], int, int]:
        low = node_ns()
        node = reader.read()
        high = node_ns()
        extra = sum(int(p.read_text().split()[0]) for p in Path("/proc/1/task").glob("*/schedstat")) if hidden else 0
        sums = {kind: node.namespaces_ended[kind].cpu_ns for kind in NamespaceKind}
        for key, used in node.namespaces.items():
            sums[key.kind] += used.cpu_ns
        return {kind: value + extra for kind, value in sums.items()}, low, high

    first, *start = all_ns()
    script = f"while :; do {load} storm 2 20; unshare -u -i {load} forks 20 2000; done"
    with subprocess.Popen(["sh", "-c", script], start_new_session=True) as busy:
        try:
            while node_ns() - start[1] < seconds * 10**9:  # of CPU time: a busy or a slow machine takes longer
                time.sleep(1)
                reader.read()
        finally:
            os.killpg(busy.pid, 9)
    time.sleep(1)  # the last frees
    last, *stop = all_ns()
    # the kernel's figure is read before and after ours, both times: between these two is the truth
    least, most = stop[0] - start[1], stop[1] - start[0]
    tolerance = 0.005 if accounting()[0] else 0.01
    for kind in NamespaceKind:
        assert (1 - tolerance) * least <= last[kind] - first[kind] <= (1 + tolerance) * most, kind
    assert len({last[kind] - first[kind] for kind in NamespaceKind}) == 1  # each kind has all of it
