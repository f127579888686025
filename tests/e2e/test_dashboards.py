"""Every expression of every dashboard and rule, evaluated by Debian's Prometheus over a live agent, has data while the node
does what the dashboard is about; and the figures are those of what the node did.

Grafana's part is done by hand: its variables get what their own queries find.
"""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from tests import promql
from tests.conftest import BPFFS
from tests.e2e import prometheus, workload
from tests.e2e.prometheus import Prometheus
from tests.e2e.workload import JOBS, Workload
from tests.engine import containerd
from tests.engine.pods import Pods
from tests.kernel import agents
from tests.support import require_root, unique_name, wait_for

pytestmark = pytest.mark.e2e

POD, UID = {"container": "main", "pod": "web-0", "pod_namespace": "shop"}, "11111111-2222-3333-4444-555555555555"
BOARDS = promql.boards()
INTERVAL_S = 4  # and as long for a scrape: a machine may be slow
PATIENCE_S = 240
WINDOW = {"__rate_interval": "40s", "__range": "5m", "__range_s": "300"}


class Scene(NamedTuple):
    """A node under work, and who looks at it."""

    server: Prometheus
    work: Workload
    instance: str
    container: str  # its cgroup


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    require_root()
    pins = BPFFS / unique_name("pins")
    with tempfile.TemporaryDirectory(prefix="nsagent-test-", dir="/var/tmp") as made:
        directory, world = Path(made), ["--state-dir", f"{made}/state", "--pin-dir", str(pins)]
        selected = [f"--cgroup-include=/{pattern}" for pattern in ("nsagent", f"nsagent-test-{os.getpid()}-*")]
        with (
            containerd.running(directory, cri=True) as engine,
            agents.running(world, "--runtime", engine.socket, *selected) as agent,
            prometheus.running(directory, agent.facts["listen"], INTERVAL_S) as server,
            workload.running(directory, f"{made}/state") as work,
        ):
            pods, parent = Pods(engine.socket), f"/{engine.name}/burstable/pod{UID}"
            wait_for(lambda: server.query("nsagent_build_info"), PATIENCE_S, "the first scrape")
            sandbox, number = pods.run(parent, UID, POD["pod"], POD["pod_namespace"], POD["container"])
            try:
                work.limit(f"{parent[1:]}/{number}")
                work.burn(f"{parent[1:]}/{number}")
                yield Scene(server, work, agent.facts["listen"], f"{parent}/{number}")
            finally:
                pods.remove(sandbox)
                pods.close()
    if pins.exists():
        shutil.rmtree(pins)


def values_of(board: dict[str, Any], scene: Scene) -> dict[str, str]:
    """Return a value for each variable: one that its query finds, as Grafana writes it."""
    values = WINDOW | {"datasource": "", "cluster": ".*"}  # a label of who scrapes: this one sets none
    wanted = {"cgroup": f"/{scene.work.group}", "kind": "pid", "node": scene.instance, "workload": "fine", "namespace": "shop"}
    for name, selector, label in promql.variable_queries(board):
        if name != "cluster":
            query = f"group by ({label}) ({promql.filled(selector, values)})"

            def there(query: str = query, name: str = name, label: str = label) -> bool:
                return wanted[name] in [each["metric"].get(label) for each in scene.server.query(query)]

            wait_for(there, PATIENCE_S, f"{wanted[name]}, a value of ${name} ({query})")
            values[name] = wanted[name] if name == "kind" else promql.quoted(wanted[name])
    if "workload" in values:
        values["workload"] += "|stays"  # which has not ended, so that no query finds it: Grafana's All would
    return values


def without_data(scene: Scene, uid: str) -> list[str]:
    """Return the expressions of a dashboard that find nothing."""
    values = values_of(BOARDS[uid], scene)
    return [
        f"{target.panel}: {filled}"
        for target in promql.targets({uid: BOARDS[uid]})
        if not scene.server.query(filled := promql.filled(target.expression, values))
    ]


def rules() -> Iterator[tuple[str, str]]:
    """Yield name and expression of every rule: recorded ones first."""
    for path in sorted(promql.rule_files(), key=lambda path: "alerts" in path.name):
        for group in yaml.safe_load(path.read_text())["groups"]:
            for rule in group["rules"]:
                yield rule.get("record") or rule["alert"], rule["expr"]


@pytest.mark.parametrize("uid", BOARDS)
def test_every_expression_of_a_dashboard_has_data(uid: str, scene: Scene) -> None:
    missing: list[str] = []

    def complete() -> bool:
        missing[:] = without_data(scene, uid)
        return not missing

    try:
        wait_for(complete, PATIENCE_S)
    finally:
        print("\n".join((scene.server.trouble(), *missing)))


@pytest.mark.parametrize(("name", "expression"), list(rules()), ids=lambda value: value if " " not in value else "")
def test_every_rule_has_data(name: str, expression: str, scene: Scene) -> None:
    """Of a recording rule all of it; of an alert, which is quiet here, each family that it is about."""
    queries = [expression] if ":" in name else sorted({selector.name for selector in promql.selectors(expression)})
    for query in queries:
        wait_for(functools.partial(scene.server.query, query), PATIENCE_S, query)


def test_what_has_no_data_is_found(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """The positive control of the tests above."""
    panels = [
        {"type": "stat", "title": "x", "targets": [{"expr": f"nsagent_cgroup_cpu_usage_seconds_total{{cgroup=~'{path}'}}"}]}
        for path in ("/", "/nowhere")
    ]
    monkeypatch.setitem(BOARDS, "x", {"panels": panels, "templating": {"list": []}})
    assert without_data(scene, "x") == ["x: nsagent_cgroup_cpu_usage_seconds_total{cgroup=~'/nowhere'}"]


def value(scene: Scene, uid: str, title: str, part: int = 0) -> float:
    """Evaluate an expression of a panel that has one result."""
    (target, *_) = [each for each in promql.targets({uid: BOARDS[uid]}) if each.panel == title][part:]
    return scene.server.value(promql.filled(target.expression, values_of(BOARDS[uid], scene)))


def test_figures_of_the_limited_group(scene: Scene) -> None:
    """One process below it that burns as much CPU as it may."""
    wait_for(lambda: value(scene, "nsagent-cgroups", "Throttled") > 0, PATIENCE_S, "throttling")
    assert value(scene, "nsagent-cgroups", "CPU and its limit", 1) == workload.CPUS
    assert 0 < value(scene, "nsagent-cgroups", "CPU and its limit") < 1.5 * workload.CPUS
    assert value(scene, "nsagent-cgroups", "Memory and its limit", 2) == workload.MEMORY
    assert workload.HELD <= value(scene, "nsagent-cgroups", "Memory and its limit", 1) < workload.MEMORY
    assert value(scene, "nsagent-cgroups", "Tasks and their limit", 1) == workload.PIDS
    assert value(scene, "nsagent-cgroups", "Tasks and their limit") == 1


def test_figures_of_a_container(scene: Scene) -> None:
    """By the names of its pod, and with its own limit."""
    values = values_of(BOARDS["nsagent-containers"], scene)
    (memory,) = [each for each in promql.targets(BOARDS) if (each.board, each.panel) == ("nsagent-containers", "Memory")]
    found = [each for each in scene.server.query(promql.filled(memory.expression, values)) if "container" in each["metric"]]
    (ours,) = found
    assert POD.items() <= ours["metric"].items()
    assert ours["metric"]["cgroup"] == scene.container
    assert workload.HELD <= float(ours["value"][1]) < workload.MEMORY


def test_figures_of_jobs(scene: Scene) -> None:
    """Last: it ends the rounds, and what was counted is what was run."""
    scene.work.finish()
    counted = "sum by (outcome) (nsagent_workload_runs_total)"

    def all_counted() -> bool:
        found = {each["metric"]["outcome"]: float(each["value"][1]) for each in scene.server.query(counted)}
        return found == {outcome: float(number) for outcome, number in scene.work.outcomes.items()}

    wait_for(all_counted, PATIENCE_S, f"{scene.work.outcomes} in {counted}")
    assert scene.server.value(counted.replace("sum by (outcome)", "sum")) == scene.work.rounds * len(JOBS)
    for name, spent in scene.work.cpu_ns.items():
        found = scene.server.value(f'sum(nsagent_workload_cpu_seconds_total{{workload="{name}"}})')
        assert found == pytest.approx(spent / 1e9, abs=1e-6)
    assert value(scene, "nsagent-node", "Failing jobs") == sum(code != 0 for code, _, _ in JOBS.values())
    assert scene.server.value("sum(nsagent_workloads_running)") == 1
    assert scene.server.value('sum(nsagent_findings_total{rule="to_host"})') >= scene.work.rounds
    failed = scene.server.value('sum(nsagent_syscalls_total{syscall="setns", result="EINVAL"})')
    assert failed >= scene.work.rounds
    created = scene.server.value('nsagent_namespaces_created_total{kind="ipc"}')
    assert created >= scene.work.rounds * (1 + len(JOBS))  # the calls', and one of each job
