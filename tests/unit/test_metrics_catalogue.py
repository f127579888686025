"""The catalogue against its contract (tests/golden/families.txt) and its reference (docs/metrics.md)."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import pytest

from nsagent.cgroups import stats
from nsagent.metrics import catalogue
from nsagent.metrics.family import COLLECTORS, COMPAT, Family, Scope
from nsagent.usage import Usage
from tests.support import ROOT


def contract() -> tuple[set[str], set[str]]:
    """Return the rows that hold now, and those of later."""
    lines = (ROOT / "tests/golden/families.txt").read_text().splitlines()
    rows = {line for line in lines if line and not line.startswith("#")}
    later = {row for row in rows if row.startswith("later ")}
    return rows - later, {row.removeprefix("later ") for row in later}


def row_of(family: Family) -> str:
    """Return a family as a row of the contract."""
    return f"{family.type} {family.name} {','.join(family.all_labels)}".rstrip()


EVERYTHING = catalogue.families(COMPAT)


def test_the_catalogue_is_the_contract() -> None:
    now, _ = contract()
    assert {row_of(family) for family in EVERYTHING} == now


def test_names_of_later_are_not_taken() -> None:
    _, later = contract()
    assert later
    assert {row.split()[1] for row in later} & {family.name for family in EVERYTHING} == set()


def test_the_reference_is_generated() -> None:
    argv = [sys.executable, "-m", "nsagent.metrics.catalogue"]
    written = subprocess.run(argv, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert (ROOT / "docs/metrics.md").read_text() == written, "run: python -m nsagent.metrics.catalogue > docs/metrics.md"
    assert all(f"### {family.name}\n" in written for family in EVERYTHING)


@pytest.mark.parametrize("family", EVERYTHING, ids=lambda family: family.name)
def test_a_row_keeps_the_rules(family: Family) -> None:
    prefix = "nsagent" if family in catalogue.FAMILIES else "(container|machine)"
    assert re.fullmatch(rf"{prefix}_[a-z][a-z0-9_]*", family.name)
    assert family.name.endswith(("_total", "_memory_failcnt")) == (family.type == "counter")
    assert family.name.endswith("_info") == (family.type == "info")
    assert all(re.fullmatch(r"[a-z][a-z0-9_]*", label) and label not in ("job", "instance", "le") for label in family.all_labels)
    assert len(set(family.all_labels)) == len(family.all_labels)
    assert family.help.endswith(".")
    assert not set(family.help) & {'"', "\\", "\n"}, "HELP would need escaping"
    assert family.source
    assert family.collector in ("", *COLLECTORS)
    sources = (bool(family.parts), family.each is not None, family.by is not None, family.histograms is not None)
    assert sources.count(True) == 1
    assert (family.histograms is not None) == (family.type == "histogram")
    assert (family.scale != 1) <= (family.unit == "seconds")
    for values, field in family.parts:
        assert len(values) == len(family.labels)
        assert isinstance(field, str) == (family.scope is not Scope.NODE)
        if isinstance(field, str):
            assert family.scope in (Scope.CGROUP, Scope.CONTAINER) or field in Usage._fields
            assert field.endswith("_ns") == (family.scale != 1)


def test_each_collector_has_families() -> None:
    assert {family.collector for family in EVERYTHING} == {"", *COLLECTORS}


def test_names_are_unique() -> None:
    names = [family.name for family in EVERYTHING]
    assert len(set(names)) == len(names)


def test_each_number_that_is_read_is_exported() -> None:
    """A field that a reader fills and no family shows would be work for nothing, or a row that was forgotten."""
    used = [family for family in catalogue.FAMILIES if family.scope in (Scope.NAMESPACE, Scope.CGROUP_USAGE)]
    exported = {field for family in used for _, field in family.parts}
    inner = {"threads", "threads_created", "threads_exited", "threads_freed"}  # `threads` is exported by state
    assert exported == set(Usage._fields) - inner
    full = stats.CgroupStats(
        stats.CpuStats(*range(1, 11)),
        stats.MemoryStats(*range(11, 28))._replace(detail={"anon": 28}, events={"oom": 29}),
        stats.IoStats({"8:0": stats.IoDevice(*range(30, 36))}),
        stats.PidsStats(*range(36, 40)),
        stats.CpusetStats(40, 41),
        stats.PressureStats({"cpu": stats.Pressure(42, 43)}),
        stats.HugetlbStats({"2MB": stats.HugetlbSize(44, 45, 46)}),
        stats.RdmaStats({("mlx5_0", "hca_handle"): stats.Countable(47, 48)}),
        stats.MiscStats({"sev": stats.Countable(49, 50)}, {"sev": 51}),
        stats.StateStats(False, True, 54, 55),
    )
    families = [family for family in catalogue.FAMILIES if family.scope is Scope.CGROUP]
    assert {family.part for family in families} == set(stats.CgroupStats._fields)
    shown: list[Any] = [getattr(getattr(full, f.part), str(field)) for f in families for _, field in f.parts]
    shown += [value for f in families if f.by for value in f.by(getattr(full, f.part)).values()]
    assert sorted(shown) == sorted([*range(1, 52), False, True, 54, 55])
    assert len(stats.MemoryStats._fields) == 19
    assert stats.CpuStats._fields[10:] == ("period_ns", "shares")  # only under cAdvisor's names
