"""A pod of a real containerd, started over CRI: what its cgroups are called."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine import containerd
from tests.engine.containerd import Containerd
from tests.engine.pods import IMAGE, Pods
from tests.kernel import agents
from tests.support import require_root, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.engine]

UID = "11111111-2222-3333-4444-555555555555"


@pytest.fixture
def engine() -> Iterator[Containerd]:
    require_root()
    with tempfile.TemporaryDirectory(prefix="nsagent-test-") as directory, containerd.running(Path(directory), cri=True) as found:
        yield found


def test_names_of_a_pod(world: list[str], engine: Containerd) -> None:
    parent = f"/{engine.name}/burstable/pod{UID}"
    pods = Pods(engine.socket)
    with agents.running(world, "--no-bpf", "--runtime", engine.socket) as agent:
        sandbox, number = pods.run(parent, UID, "web-0", "shop", "main")
        wanted = (parent, f"{parent}/{sandbox}", f"{parent}/{number}")

        def named() -> dict[str, dict[str, str]]:
            every = [dict(labels) for series, labels in agent.scrape() if series == "nsagent_cgroup_info"]
            found = {labels["cgroup"]: labels for labels in every if labels["cgroup"] in wanted}
            return found if len(found) == len(wanted) and all(labels["pod"] for labels in found.values()) else {}

        try:
            found = wait_for(named, what="the pod's names")
        finally:
            pods.remove(sandbox)
            pods.close()
        for labels in found.values():
            assert (labels["pod_uid"], labels["pod"], labels["pod_namespace"]) == (UID, "web-0", "shop")
        shown = [tuple(found[path][label] for label in ("container_id", "container", "image")) for path in wanted]
        assert shown == [("", "", ""), (sandbox, "", ""), (number, "main", IMAGE)]
