"""Two clusters' worth of Prometheus over one agent: what is recorded reaches the centre both ways, and does not grow with a node.

The one at the edge scrapes as the PodMonitor says.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import prometheus
from tests.e2e.prometheus import Prometheus
from tests.kernel import agents
from tests.support import ROOT, cgroup_mounts, remove_cgroups, require_root, unique_name, wait_for

pytestmark = pytest.mark.e2e

DEPLOY = ROOT / "deploy"
MANY = 100
RULES = yaml.safe_load((DEPLOY / "prometheus/nsagent-recording.rules.yml").read_text())
RECORDED = {rule["record"] for group in RULES["groups"] for rule in group["rules"]}
TARGET = {"namespace": "nsagent", "pod": "nsagent-x7k2p", "container": "nsagent", "endpoint": "metrics"}  # the operator's labels


def config(directory: Path, name: str, interval_s: int, change: Callable[[dict[str, Any]], None]) -> str:
    """Return a file of deploy/prometheus, quick, with its rules found, and changed."""
    found = yaml.safe_load((DEPLOY / "prometheus" / name).read_text())
    found["global"] |= {"scrape_interval": f"{interval_s}s", "evaluation_interval": f"{interval_s}s"}
    found["rule_files"] = [str(DEPLOY / "prometheus" / each) for each in found.get("rule_files", [])]
    change(found)
    directory.mkdir()
    return str(yaml.safe_dump(found)).replace("{", "{{").replace("}", "}}")


def scrape_config(target: str) -> dict[str, Any]:
    """Return what the Prometheus operator makes of the PodMonitor, for one pod on node-1."""
    monitor = yaml.safe_load((DEPLOY / "kubernetes/base/podmonitor.yaml").read_text())
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    relabel = [
        {re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", key): each[key] for key in each} for each in endpoint["relabelings"]
    ]
    labels = TARGET | {"__meta_kubernetes_pod_node_name": "node-1"}
    return {
        "job_name": f"{monitor['metadata']['namespace']}/{monitor['metadata']['name']}",
        "metrics_path": endpoint["path"],
        "honor_labels": endpoint["honorLabels"],
        "relabel_configs": relabel,
        "static_configs": [{"targets": [target], "labels": labels}],
    }


def recorded(server: Prometheus, name: str) -> dict[tuple[tuple[str, str], ...], float]:
    """Return the recorded series by their labels, without those of a cluster, and of other cgroups than `name`."""
    series = server.query(f'{{__name__=~".+:nsagent_.+", cgroup=~"|/{name}"}}')
    found = {}
    for each in series:
        labels = {key: value for key, value in each["metric"].items() if key != "cluster"}
        found[tuple(sorted(labels.items()))] = float(each["value"][1])
    assert len(found) == len(series)
    return found


def test_what_is_recorded_reaches_the_centre_and_nothing_else(world: list[str], tmp_path: Path) -> None:
    require_root()
    name = unique_name("federation")
    groups = [mount / name for mount in cgroup_mounts()]
    with agents.running(world, "--no-runtimes", "--no-collector", "all", "--collector", "cpuset") as agent:
        began = time.monotonic()
        agent.get()
        interval_s = math.ceil(max(2, 10 * (time.monotonic() - began)))  # a scrape takes as long as this machine needs

        def edge(found: dict[str, Any]) -> None:
            found["scrape_configs"] = [scrape_config(agent.facts["listen"])]
            found["remote_write"][0]["url"] = f"{received.url}/api/v1/write"

        def fetching(found: dict[str, Any]) -> None:
            found["scrape_configs"][0]["static_configs"] = [{"targets": [local.url.removeprefix("http://")]}]

        nothing = "global: {{scrape_interval: 1m}}\n"
        for group in groups:
            group.mkdir()
        (tmp_path / "received").mkdir()
        try:
            with (
                prometheus.running(
                    tmp_path / "received", config=nothing, flags=["--web.enable-remote-write-receiver"]
                ) as received,
                prometheus.running(
                    tmp_path / "edge", config=config(tmp_path / "edge", "edge.prometheus.yml", interval_s, edge)
                ) as local,
                prometheus.running(
                    tmp_path / "centre", config=config(tmp_path / "centre", "central.prometheus.yml", interval_s, fetching)
                ) as fetched,
            ):
                follow(local, (received, fetched), name, groups, 300 + 60 * interval_s)
        finally:
            remove_cgroups(name)


def follow(local: Prometheus, centres: tuple[Prometheus, ...], name: str, groups: list[Path], patience_s: float) -> None:
    def arrived() -> bool:
        there = recorded(local, name).keys()
        names = {dict(labels)["__name__"] for labels in there}
        return len(names) > len(RECORDED) / 2 and all(recorded(centre, name).keys() >= there for centre in centres)

    try:
        wait_for(arrived, patience_s)
    except pytest.fail.Exception:
        missing = [recorded(local, name).keys() - recorded(centre, name).keys() for centre in centres]
        pytest.fail(f"of {len(recorded(local, name))} recorded series the centres lack {missing}; {local.trouble()}")
    before = [len(recorded(centre, name)) for centre in centres]
    of_node = local.value(f'count({{cgroup=~"/{name}(/.*)?"}})')
    for group in groups:
        for number in range(MANY):
            (group / str(number)).mkdir()
    wait_for(
        lambda: local.query(f'count({{cgroup=~"/{name}(/.*)?"}}) > {of_node + 5 * MANY}'), patience_s, "the cgroups at the edge"
    )
    since = time.time()
    for centre, had in zip(centres, before, strict=True):
        newest = 'max(timestamp(instance:nsagent_cpus:sum{instance="node-1"}))'
        try:
            wait_for(lambda: centre.query(f"{newest} > {since}"), patience_s)  # noqa: B023
        except pytest.fail.Exception:
            found = [each.query(newest) for each in (local, *centres)]
            pytest.fail(f"nothing was recorded after {since}: {found}; {local.trouble()}; {centre.trouble()}")
        # Some rules find their first data late; a series a cgroup it is not.
        assert len(recorded(centre, name)) < had + MANY / 4
        assert centre.query('{__name__=~"nsagent_.+"}') == []
        assert {each["metric"]["cluster"] for each in centre.query('{__name__=~".+:nsagent_.+"}')} == {"one"}
        assert centre.value("instance:nsagent_cpus:sum") == local.value("instance:nsagent_cpus:sum")
        assert centre.query('instance:nsagent_cpus:sum{instance="node-1"}')
    # The PodMonitor: the target's labels are the node's, and not those of the pod that happens to read it.
    (build,) = local.query("nsagent_build_info")
    assert (build["metric"]["instance"], build["metric"]["job"]) == ("node-1", "nsagent/nsagent")
    assert build["metric"].keys().isdisjoint(TARGET)
    assert local.query('nsagent_cgroup_info{exported_container=~".+"}') == []


def test_the_configurations_are_right() -> None:
    for name in ("edge", "central"):
        code, said = prometheus.promtool(DEPLOY / "prometheus", "check", "config", f"{name}.prometheus.yml")
        assert code == 0, said
