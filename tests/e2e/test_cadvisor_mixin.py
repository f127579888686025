"""The Kubernetes mixin's rules on cAdvisor's metrics, as they are, in a Prometheus that scrapes a live agent beside pods.

They join with kube-state-metrics' kube_pod_info, which is served here for the pods that were made.
"""

from __future__ import annotations

import contextlib
import http.server
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Final

import pytest
import yaml

from tests.e2e import prometheus
from tests.engine import containerd
from tests.engine.pods import Pods
from tests.kernel import agents
from tests.support import ROOT, cgroup_mounts, require_root, wait_for

pytestmark = [pytest.mark.e2e, pytest.mark.engine]

RULES: Final = ROOT / "tests/fixtures/kubernetes-mixin/cadvisor.rules.yml"
CONFIG: Final = """\
global: {{scrape_interval: {interval}s, scrape_timeout: {interval}s, evaluation_interval: 1s}}
rule_files: ["@rules@"]
scrape_configs:
  - job_name: cadvisor
    honor_labels: true
    static_configs: [{{targets: ["{target}"]}}]
  - job_name: kube-state-metrics
    honor_labels: true
    static_configs: [{{targets: ["@state@"]}}]
"""
QUIET, BUSY = "11111111-2222-3333-4444-555555555551", "11111111-2222-3333-4444-555555555552"
PODS: Final = {"web-0": (QUIET, "main"), "batch-0": (BUSY, "spinner")}  # uid and container
THROTTLED: Final = (100_000, 2_000, 2, 64 << 20)  # 2 % of a CPU


@contextlib.contextmanager
def serving(exposition: str) -> Iterator[str]:
    """Serve it on a free port of 127.0.0.1; yield the address."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write(exposition.encode())

        def log_message(self, format: str, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def pods() -> Iterator[tuple[str, str]]:
    """Run the pods; yield the runtime's socket and the cgroup they are all in."""
    with (
        tempfile.TemporaryDirectory(prefix="nsagent-test-") as directory,
        containerd.running(Path(directory), cri=True) as engine,
        contextlib.closing(Pods(engine.socket)) as runtime,
        contextlib.ExitStack() as stack,
    ):
        for pod, (uid, container) in PODS.items():
            parent = f"/{engine.name}/burstable/pod{uid}"
            if uid == BUSY:
                made = runtime.run(parent, uid, pod, "shop", container, argument="spin", resources=THROTTLED)
            else:
                made = runtime.run(parent, uid, pod, "shop", container)
            stack.callback(runtime.remove, made[0])
        yield engine.socket, f"/{engine.name}"


def accounts_swap() -> bool:
    """Tell whether cgroups here have swap at all."""
    names = ("memory.memsw.usage_in_bytes", "*/memory.swap.current")
    return any(list(mount.glob(name)) for mount in cgroup_mounts() for name in names)


def of_containers(server: prometheus.Prometheus, record: str) -> dict[tuple[str, ...], float]:
    """Return a recording rule's values, by namespace, pod, container and node; nothing before there are as many as containers."""
    found = server.query(record)
    labels = ("namespace", "pod", "container", "node")
    values = {tuple(each["metric"].get(label, "") for label in labels): float(each["value"][1]) for each in found}
    assert len(values) == len(found)
    return values if len(found) >= len(PODS) else {}


def test_every_rule_has_data(world: list[str], tmp_path: Path) -> None:
    require_root()
    rules = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
    records = {rule["record"] for rule in rules if "record" in rule}
    assert len(records) == 6
    if not accounts_swap():
        records.discard("node_namespace_pod_container:container_memory_swap")
    info = [f'kube_pod_info{{namespace="shop",pod="{pod}",node="node-1",uid="{uid}"}} 1\n' for pod, (uid, _) in PODS.items()]
    wanted = {("shop", pod, container, "node-1") for pod, (_, container) in PODS.items()}
    with (
        pods() as (socket, parent),
        agents.running(world, "--compat", "cadvisor", "--runtime", socket, "--cgroup-include", parent) as agent,
        serving("".join(info)) as state,
        prometheus.running(
            tmp_path, agent.facts["listen"], 5, config=CONFIG.replace("@rules@", str(RULES)).replace("@state@", state)
        ) as server,
    ):
        for record in sorted(records):
            values = wait_for(partial(of_containers, server, record), 300, record)
            assert values.keys() == wanted, record
            if "swap" not in record and "cache" not in record:
                assert values["shop", "batch-0", "spinner", "node-1"] > 0, record
        throttled = wait_for(server.alerts, 300, "CPUThrottlingHigh")
        assert [(each["labels"]["alertname"], each["labels"]["pod"], each["labels"]["container"]) for each in throttled] == [
            ("CPUThrottlingHigh", "batch-0", "spinner")
        ]
