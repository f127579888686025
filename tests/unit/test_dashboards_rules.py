"""The rules for Prometheus: of families that exist, each alert with its runbook and its cases."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from tests import promql
from tests.support import ROOT
from tests.unit.test_dashboards import check_names, families

RULES: list[dict[str, Any]] = [
    rule for path in promql.rule_files() for group in yaml.safe_load(path.read_text())["groups"] for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]
RUNBOOKS = ROOT / "docs/runbooks"


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule["record"])
def test_rules_are_of_families_that_exist(rule: dict[str, Any]) -> None:
    check_names(rule["expr"], families())


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_is_complete(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("warning", "critical")
    assert "$labels.instance" in rule["annotations"]["summary"]
    assert rule["annotations"]["runbook"] == f"docs/runbooks/{rule['alert']}.md"
    text = (RUNBOOKS / f"{rule['alert']}.md").read_text()
    assert re.findall(r"^#+ (.*)$", text, re.M) == [rule["alert"], "Look at", "Do", "When it is no trouble"]
    cases = yaml.safe_load((ROOT / "deploy/prometheus/nsagent-alerts.test.yml").read_text())["tests"]
    words = {
        case["name"].removeprefix(rule["alert"]).split(":")[0] for case in cases if case["name"].startswith(rule["alert"] + " ")
    }
    assert words == {" fires", " stays quiet"}


def test_runbooks_name_panels_that_exist() -> None:
    titles = {panel["title"] for board in promql.boards().values() for panel in promql.panels(board)}
    for path in RUNBOOKS.glob("*.md"):
        assert path.stem in {rule["alert"] for rule in ALERTS}, "a runbook of no alert"
        assert set(re.findall(r'"([^"]*)"', path.read_text())) <= titles, path.name


def test_recorded_names_are_levels_metrics_and_operations() -> None:
    for rule in RULES:
        if "record" in rule:
            assert re.fullmatch(r"[a-z_]+:nsagent_\w+:(sum|rate5m)", rule["record"])
            level = set(rule["record"].split(":")[0].split("_")) | {"cluster"}
            assert promql.grouping_labels(rule["expr"]) == level, rule["record"]


def test_the_documentation_has_every_alert() -> None:
    text = (ROOT / "docs/dashboards.md").read_text()
    assert [rule["alert"] for rule in ALERTS if f"runbooks/{rule['alert']}.md" not in text] == []
