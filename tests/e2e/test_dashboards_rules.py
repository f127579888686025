"""The rules under Debian's promtool: they are right, every alert fires when it should, and stays quiet when it should."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import yaml

from tests import promql
from tests.e2e.prometheus import promtool
from tests.support import ROOT

pytestmark = pytest.mark.e2e

DIRECTORY = ROOT / "deploy/prometheus"


def test_the_rules_are_right() -> None:
    code, said = promtool(DIRECTORY, "check", "rules", *(path.name for path in promql.rule_files()))
    assert code == 0, said
    assert said.count("SUCCESS") == 2


@pytest.mark.parametrize("name", ["nsagent-alerts.test.yml", "nsagent-recording.test.yml"])
def test_alerts_fire_and_stay_quiet(name: str) -> None:
    code, said = promtool(DIRECTORY, "test", "rules", name)
    assert code == 0, said


@pytest.mark.parametrize(("expression", "fails"), [("vector(1)", ""), ("vector(0) > 1", " fires: ")])
def test_every_case_can_fail(tmp_path: Path, expression: str, fails: str) -> None:
    """With alerts that always fire, for no series in particular, no case holds; with alerts that never fire the quiet ones."""
    for path in DIRECTORY.iterdir():
        shutil.copy(path, tmp_path)
    rules = tmp_path / "nsagent-alerts.rules.yml"
    content = yaml.safe_load(rules.read_text())
    for group in content["groups"]:
        for rule in group["rules"]:
            rule["expr"] = expression
            rule.pop("for", None)
    rules.write_text(yaml.safe_dump(content))
    cases = [case["name"] for case in yaml.safe_load((DIRECTORY / "nsagent-alerts.test.yml").read_text())["tests"]]
    _, said = promtool(tmp_path, "test", "rules", "nsagent-alerts.test.yml")
    assert {name for name in cases if name in said} == {name for name in cases if fails in name}


@pytest.mark.parametrize("uid", promql.boards())
def test_expressions_are_promql(uid: str, tmp_path: Path) -> None:
    """target-promql-rule of grafana/dashboard-linter."""
    values = {"__rate_interval": "5m", "__range": "1h", "__range_s": "3600"}
    names = ["cluster", "node", "kind", "cgroup", "workload", "namespace", "datasource"]
    values |= dict.fromkeys(names, "x")
    rules = [
        {"record": f"x{number}", "expr": promql.filled(target.expression, values)}
        for number, target in enumerate(promql.targets({uid: promql.boards()[uid]}))
    ]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "x", "rules": rules}]}))
    code, said = promtool(tmp_path, "check", "rules", "rules.yml")
    assert code == 0, said
