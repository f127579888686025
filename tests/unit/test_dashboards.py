"""The dashboards: generated, lawful to grafana/dashboard-linter's rules, and of families that exist."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from nsagent.metrics import catalogue
from tests import promql
from tests.support import ROOT, require

BOARDS = promql.boards()
TARGETS = list(promql.targets(BOARDS))
# What Prometheus adds to each series, and what the agent has beside its catalogue.
TARGET_LABELS = {"cluster", "instance", "job", "__name__"}
OTHERS = {"process_cpu_seconds_total", "process_resident_memory_bytes", "scrape_duration_seconds", "up"}
# A counter as it is, not what it gains: PromQL sees no increase in a counter's first value.
RAW_COUNTERS = {
    "nsagent_workload_runs_total": "a name's only run is its counter's first value",
    "nsagent_workload_cpu_seconds_total": "by the runs, as they are",
    "nsagent_workload_io_bytes_total": "by the runs, as they are",
    "nsagent_cgroup_memory_events_total": "of a cgroup that was made in the window",
}
UNITS = {"none", "short", "percentunit", "bytes", "Bps", "s", "cps", "dateTimeFromNow"}  # those of Grafana's that are used


def families() -> dict[str, set[str]]:
    """Return the labels of each series' name that the agent can export."""
    named = {family.name: set(family.all_labels) for family in catalogue.FAMILIES}
    for family in catalogue.FAMILIES:
        if family.type == "histogram":
            labels = named.pop(family.name)
            named |= {f"{family.name}_bucket": labels | {"le"}, f"{family.name}_count": labels, f"{family.name}_sum": labels}
    return named | {name: set() for name in OTHERS}


def check_names(expression: str, known: dict[str, set[str]]) -> None:
    """Fail unless all families of an expression, and all labels it names, exist."""
    found = promql.selectors(expression)
    assert found, expression
    labels = TARGET_LABELS | promql.made_labels(expression)
    for selector in found:
        assert selector.name in known, f"{selector.name} is in no catalogue"
        assert set(selector.matchers) <= known[selector.name] | TARGET_LABELS, selector
        labels |= known[selector.name]
    assert promql.grouping_labels(expression) <= labels, expression


def test_they_are_generated() -> None:
    require(importlib.util.find_spec("grafana_foundation_sdk"), "grafana-foundation-sdk is not installed (make setup)")
    from dashboards.__main__ import render

    written = {path.name: path.read_text() for path in (ROOT / "dashboards/json").glob("*.json")}
    assert written == render(), "run: make dashboards"


def test_the_agent_does_not_need_the_sdk() -> None:
    users = [path for path in (ROOT / "nsagent").rglob("*.py") if re.search(r"grafana_foundation|dashboards", path.read_text())]
    assert [path for path in users if path.name != "catalogue.py"] == []


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: f"{target.board}-{target.panel}")
def test_expressions_are_of_families_that_exist(target: promql.Target) -> None:
    check_names(target.expression, families())


@pytest.mark.parametrize("uid", BOARDS)
def test_variables_are_of_families_that_exist(uid: str) -> None:
    known = families()
    for _, selector, label in promql.variable_queries(BOARDS[uid]):
        name = selector.split("{")[0]
        assert label in known[name] | TARGET_LABELS
        if "{" in selector:
            check_names(selector, known)


def test_what_does_not_exist_is_found() -> None:
    known = families()
    for wrong in (
        'nsagent_cgroup_cpu_usage_total{cgroup="/"}',
        'nsagent_cgroup_cpu_usage_seconds_total{pod="x"}',
        "sum by (kind) (nsagent_cgroup_pids{})",
        "nsagent_cgroup_pidz",
        "1 + 1",
    ):
        with pytest.raises(AssertionError):
            check_names(wrong, known)


Rule = Callable[[dict[str, Any]], Iterator[str]]


def _template_datasource(board: dict[str, Any]) -> Iterator[str]:
    found = [(v["name"], v["label"], v["query"]) for v in board["templating"]["list"] if v["type"] == "datasource"]
    if found != [("datasource", "Data source", "prometheus")]:
        yield f"data source variable: {found}"


def _template_named(name: str) -> Rule:
    def rule(board: dict[str, Any]) -> Iterator[str]:
        if name not in [variable["name"] for variable in board["templating"]["list"]]:
            yield f"no variable {name}"

    return rule


def _template_reload(board: dict[str, Any]) -> Iterator[str]:
    for variable in board["templating"]["list"]:
        if variable["type"] == "query" and variable["refresh"] != 2:
            yield f"{variable['name']} is not read again when the time changes"


def _panel_datasource(board: dict[str, Any]) -> Iterator[str]:
    for panel in promql.panels(board):
        if {t["datasource"]["uid"] for t in panel["targets"]} | {panel["datasource"]["uid"]} != {"$datasource"}:
            yield f"{panel['title']}: data source"


def _panel_title_description(board: dict[str, Any]) -> Iterator[str]:
    titles = [panel["title"] for panel in promql.panels(board)]
    yield from (f"{panel['title']}: no description" for panel in promql.panels(board) if not panel.get("description"))
    if not all(titles) or len(set(titles)) != len(titles):
        yield f"titles: {titles}"


def _panel_units(board: dict[str, Any]) -> Iterator[str]:
    for panel in promql.panels(board):
        units = {panel["fieldConfig"]["defaults"].get("unit")}
        units |= {p["value"] for o in panel["fieldConfig"]["overrides"] for p in o["properties"] if p["id"] == "unit"}
        if not units <= UNITS:
            yield f"{panel['title']}: units {units}"


def _panel_no_targets(board: dict[str, Any]) -> Iterator[str]:
    yield from (f"{panel['title']}: no targets" for panel in promql.panels(board) if not panel["targets"])


def _target_rate_interval(board: dict[str, Any]) -> Iterator[str]:
    for target in promql.targets({board["uid"]: board}):
        for selector in promql.selectors(target.expression):
            if selector.function in ("rate", "irate") and selector.window != "$__rate_interval":
                yield f"{target.panel}: {selector}"


def _target_matcher(label: str) -> Rule:
    def rule(board: dict[str, Any]) -> Iterator[str]:
        for target in promql.targets({board["uid"]: board}):
            for selector in promql.selectors(target.expression):
                if selector.matchers.get(label) != f'=~"${label}"':
                    yield f"{target.panel}: {selector.name} without {label}"

    return rule


def _target_counter(board: dict[str, Any]) -> Iterator[str]:
    for target in promql.targets({board["uid"]: board}):
        for selector in promql.selectors(target.expression):
            if (
                selector.name.endswith("_total")
                and selector.function not in ("rate", "increase")
                and selector.name not in RAW_COUNTERS
            ):
                yield f"{target.panel}: {selector.name} as it is"


def _uneditable(board: dict[str, Any]) -> Iterator[str]:
    if board["editable"]:
        yield "it is editable"


# By the names that grafana/dashboard-linter has for them; target-promql-rule is promtool's (tests/e2e).
RULES: dict[str, Rule] = {
    "template-datasource-rule": _template_datasource,
    "template-job-rule": _template_named("job"),
    "template-instance-rule": _template_named("instance"),
    "template-on-time-change-reload-rule": _template_reload,
    "panel-datasource-rule": _panel_datasource,
    "panel-title-description-rule": _panel_title_description,
    "panel-units-rule": _panel_units,
    "panel-no-targets-rule": _panel_no_targets,
    "target-rate-interval-rule": _target_rate_interval,
    "target-job-rule": _target_matcher("job"),
    "target-instance-rule": _target_matcher("instance"),
    "target-counter-agg-rule": _target_counter,
    "uneditable-dashboard": _uneditable,
}
EXCLUDED: dict[str, dict[str, str]] = yaml.safe_load((ROOT / "dashboards/json/.lint").read_text())["exclusions"]


@pytest.mark.parametrize("rule", RULES)
def test_the_linters_rules_hold(rule: str) -> None:
    found = [f"{uid}: {fault}" for uid, board in BOARDS.items() for fault in RULES[rule](board)]
    if rule in EXCLUDED:
        assert found, "it holds: it need not be excluded"
        assert EXCLUDED[rule]["reason"]
    else:
        assert found == []


@pytest.mark.parametrize("uid", BOARDS)
def test_a_dashboard_keeps_our_rules(uid: str) -> None:
    board = BOARDS[uid]
    assert board["uid"] == uid
    assert board["description"].endswith(("?", "."))
    variables = [variable["name"] for variable in board["templating"]["list"]]
    assert variables[:3] == ["datasource", "cluster", "node"]
    ids = [panel["id"] for panel in board["panels"]]
    assert ids == list(range(1, len(ids) + 1))
    assert len(promql.panels(board)) <= 16, "who looks at more?"
    for panel in promql.panels(board):
        assert panel["description"].endswith("."), panel["title"]
        assert panel["type"] in ("timeseries", "stat", "table")
        for target in panel["targets"]:
            assert panel["type"] == "table" or target["legendFormat"], panel["title"]
    for target in promql.targets({uid: board}):
        for selector in promql.selectors(target.expression):
            assert {"cluster": '=~"$cluster"', "instance": '=~"$node"'}.items() <= selector.matchers.items(), target


def test_panels_fill_the_grid() -> None:
    """Nothing overlaps and nothing hangs out: the rows of a screen are 24 wide."""
    for uid, board in BOARDS.items():
        taken: set[tuple[int, int]] = set()
        for panel in board["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, (uid, panel["title"])
            assert place["x"] + place["w"] <= 24
            taken |= cells


def test_links_lead_to_dashboards_and_their_variables() -> None:
    seen = set()
    for board in BOARDS.values():
        for address in re.findall(r'"/d/([^"]*)"', json.dumps(board)):
            uid, _, arguments = address.partition("?")
            names = re.findall(r"var-(\w+)=", arguments)
            assert {"${datasource:queryparam}", "${cluster:queryparam}", "${node:queryparam}"} <= set(arguments.split("&"))
            assert set(names) <= {variable["name"] for variable in BOARDS[uid]["templating"]["list"]}, address
            seen.add((board["uid"], uid))
    assert {("nsagent-node", "nsagent-cgroups"), ("nsagent-cgroups", "nsagent-cgroups"), ("nsagent-node", "nsagent-jobs")} <= seen
    assert {("nsagent-namespaces", "nsagent-cgroups"), ("nsagent-containers", "nsagent-cgroups")} <= seen


def test_variables_of_the_issue_are_there() -> None:
    names = {variable["name"] for board in BOARDS.values() for variable in board["templating"]["list"]}
    assert {"datasource", "cluster", "node", "kind", "cgroup", "workload"} <= names


def test_the_documentation_has_every_dashboard() -> None:
    text = Path(ROOT / "docs/dashboards.md").read_text()
    assert [board["title"] for board in BOARDS.values() if board["title"].removeprefix("nsagent / ") not in text] == []
