"""The exposition of recorded trees, byte for byte. After a change that is meant, `python -m tests.unit.test_exposition` writes
tests/golden/exposition-*.txt anew: read what the diff says. tests/fixtures/cgroups/record.py records the trees."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsagent.cgroups.layout import read_layout
from nsagent.cgroups.reader import Reader
from nsagent.cgroups.tree import Tree
from nsagent.metrics import catalogue
from nsagent.metrics.encode import Encoder
from nsagent.metrics.family import Scope
from nsagent.sample import Facts, NodeSample
from tests.support import ROOT

LAYOUTS = ("v1", "v2", "hybrid")


def golden(name: str) -> Path:
    """Return where the exposition of a recorded tree is."""
    return ROOT / f"tests/golden/exposition-{name}.txt"


def exposition(name: str) -> str:
    """Return what an agent shows of a recorded tree, without what it says of itself."""
    fixture = ROOT / "tests/fixtures/cgroups" / name
    tree = Tree(read_layout(f"{fixture}/proc", f"{fixture}/sys/fs/cgroup"))
    tree.scan()
    reader = Reader(tree.layout, sysfs=f"{fixture}/sys")
    found = reader.read_all(tree)
    reader.close()
    sample = NodeSample(0, Facts(), {path: found[path] for path in sorted(found)})
    return Encoder(catalogue.FAMILIES).encode(sample).decode()


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_recorded_tree_gives_the_golden_exposition(name: str) -> None:
    assert exposition(name).splitlines() == golden(name).read_text().splitlines()


def test_what_no_recorded_kernel_has_files_of() -> None:
    """Their other families are there: rdma and misc, without such devices, are in no file."""
    shown = "".join(golden(name).read_text() for name in LAYOUTS)
    families = {family.name for family in catalogue.FAMILIES if family.scope is Scope.CGROUP}
    lacking = {name for name in families if f"\n{name}{{" not in shown}
    assert {name.removeprefix("nsagent_cgroup_").split("_")[0] for name in lacking} <= {"rdma", "misc", "hugetlb"}


if __name__ == "__main__":
    for layout in LAYOUTS:
        golden(layout).write_text(exposition(layout))
