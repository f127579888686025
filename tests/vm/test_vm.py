"""One other kernel, in short: Debian's 6.1 on pure cgroup v2, in plain emulation. `make test-vm` runs them all.

6.1 because it differs most from what tests run on: namespaces without ids, no kfunc that walks threads, RSS not per CPU.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests import support
from tests.vm import kernels, machine, matrix, table

TESTS = (
    "burn or a_process_that_moves or zombies or counts_every_unshare or failed_setns or setns_names or count_once_a_call "
    "or histogram"
)


def test_judge_finds_faults() -> None:
    """A judge that finds nothing would keep the machines green."""
    good = {"done": True, "features": {"task_storage": [True, ""]}, "programs": {}, "accounting": {"burn": [-999, 5, 0, 0]}}
    assert table.judge("v2", good, "") == []
    assert table.judge("v1", good, "")
    changes: tuple[dict[str, Any], ...] = (
        {"done": False},
        {"programs": {"error": "LoadError: refused"}},
        {"accounting": {"burn": [1, 5, 0, 0]}},
        {"accounting": {"burn": [0, 5, 1, 0]}},
        {"identities": {"namespaces": 4, "inums": 1}},
        {"tests": {"t": ["failed", 0.1, "E"]}},
        {"features": {}},
    )
    for change in changes:
        assert table.judge("v2", good | change, ""), change
    refused = good | {"features": {}, "programs": {"error": "UnsupportedError: map tasks (task_storage): refused"}}
    assert table.judge("v2", refused, "") == []


@pytest.mark.vm
def test_exact_and_traced_on_another_kernel(tmp_path: Path) -> None:
    support.require(not machine.missing(), machine.missing())
    support.require_root()
    if not kernels.cached("6.1") and os.environ.get("NSAGENT_REQUIRE_KERNEL") != "1":
        pytest.skip("the kernel is not here and only CI fetches it (make test-vm does)")
    try:
        kernels.fetch("6.1")
    except kernels.FetchError as error:
        support.require(False, f"the kernel cannot be fetched: {error}")
    tests = ("tests/kernel/test_settle.py", "tests/kernel/test_trace.py", "-k", TESTS)
    result = matrix.run(matrix.Plan("6.1", "v2", tests, disk_mib=64), tmp_path)
    assert table.judge("v2", result.report, result.error) == []
    report = result.report
    assert table.available(report, "psi")
    assert report["programs"]["traced_by"] == "functions"
    assert not report["features"]["ns_id"][0]
    assert len(report["accounting"]) == 7
    assert [row[0] for row in report["tests"].values()] == ["passed"] * 8
