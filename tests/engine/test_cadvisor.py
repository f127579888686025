"""cAdvisor's names for a pod of a real containerd: labels as the kubelet gives them, numbers as the kernel's files have them."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import pytest

from tests.engine import containerd
from tests.engine.pods import IMAGE, Pods
from tests.kernel import agents
from tests.kernel.agents import Agent, Samples
from tests.support import cgroup_mounts, require_root, wait_for

pytestmark = [pytest.mark.kernel, pytest.mark.engine]

UID: Final = "11111111-2222-3333-4444-555555555553"
LIMITED: Final = (100_000, 2_000, 102, 64 << 20)  # CPU period and quota in usec, shares, bytes of memory
OUT, IN, BYTES = 23, 42, 700
# Frames of a length, from both ends of the pod's pair of devices: what eth0 has sent and what it has received.
TRAFFIC: Final = f"""
import socket
for device, frames in (("eth0", {OUT}), ("peer0", {IN})):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((device, 0))
        for _ in range(frames):
            sender.send(bytes({BYTES}))
"""
# families of a container: its value, from the files of its cgroup under v1, or v2
COUNTERS: Final[dict[str, Callable[[Callable[[str], str]], float]]] = {
    "container_cpu_usage_seconds_total": lambda file: int(file("cpuacct.usage")) / 1e9,
    "container_cpu_cfs_periods_total": lambda file: flat(file("cpu.stat"))["nr_periods"],
    "container_cpu_cfs_throttled_periods_total": lambda file: flat(file("cpu.stat"))["nr_throttled"],
    "container_cpu_cfs_throttled_seconds_total": lambda file: flat(file("cpu.stat"))["throttled_time"] / 1e9,
    "container_memory_max_usage_bytes": lambda file: int(file("memory.max_usage_in_bytes")),
}
GAUGES: Final[dict[str, Callable[[Callable[[str], str]], float]]] = {
    "container_memory_usage_bytes": lambda file: int(file("memory.usage_in_bytes")),
    "container_memory_rss": lambda file: flat(file("memory.stat"))["total_rss"],
    "container_memory_cache": lambda file: flat(file("memory.stat"))["total_cache"],
    "container_memory_working_set_bytes": lambda file: max(
        0, int(file("memory.usage_in_bytes")) - flat(file("memory.stat"))["total_inactive_file"]
    ),
    "container_threads": lambda file: int(file("pids.current")),
    "container_spec_cpu_quota": lambda file: int(file("cpu.cfs_quota_us")),
    "container_spec_cpu_period": lambda file: int(file("cpu.cfs_period_us")),
    "container_spec_cpu_shares": lambda file: int(file("cpu.shares")),
    "container_spec_memory_limit_bytes": lambda file: int(file("memory.limit_in_bytes")),
}


def flat(text: str) -> dict[str, int]:
    """Parse a file of words and numbers."""
    return {key: int(value) for key, value in (line.split() for line in text.splitlines())}


class Pod(NamedTuple):
    """A running pod: its cgroup, and the ids of its sandbox and its container."""

    path: str
    sandbox: str
    container: str

    def file(self, name: str, child: str = "") -> str:
        """Return a file of the cgroup, or of one below, from the v1 hierarchy that has it."""
        v1 = [mount for mount in cgroup_mounts() if not (mount / "cgroup.controllers").exists()]
        return next(path for mount in v1 if (path := mount / self.path[1:] / child / name).exists()).read_text()


@pytest.fixture
def pod() -> Iterator[tuple[Pod, str]]:
    """A pod whose container uses the CPU that it gets, with a network of its own; and the runtime's socket."""
    require_root()
    with (
        tempfile.TemporaryDirectory(prefix="nsagent-test-") as directory,
        containerd.running(Path(directory), cri=True) as engine,
        contextlib.closing(Pods(engine.socket)) as runtime,
    ):
        path = f"/{engine.name}/burstable/pod{UID}"
        ids = runtime.run(path, UID, "web-0", "shop", "main", network=True, argument="spin", resources=LIMITED)
        try:
            yield Pod(path, *ids), engine.socket
        finally:
            runtime.remove(ids[0])


def of(samples: Samples, name: str, path: str) -> list[tuple[dict[str, str], float]]:
    """Return the series of a family of one cgroup: labels and value."""
    every = ((dict(labels), value) for (family, labels), value in samples.items() if family == name)
    return [(labels, value) for labels, value in every if labels["id"] == path]


def value(agent: Agent, name: str, path: str) -> float:
    """Scrape one value."""
    ((_, found),) = of(agent.scrape(), name, path)
    return found


def check_figures(agent: Agent, pod: Pod) -> None:
    path = f"{pod.path}/{pod.container}"

    def file(name: str) -> str:
        return pod.file(name, pod.container)

    def is_equal(name: str) -> bool:
        return value(agent, name, path) == GAUGES[name](file)

    for name, read in COUNTERS.items():
        before = read(file)
        found = value(agent, name, path)
        assert 0 < before <= found <= read(file), name
    for name in GAUGES:
        wait_for(partial(is_equal, name), 120, name)
    for name, wanted in zip(("cpu_period", "cpu_quota", "cpu_shares", "memory_limit_bytes"), LIMITED, strict=True):
        assert value(agent, f"container_spec_{name}", path) == wanted


def check_traffic(agent: Agent, pod: Pod) -> None:
    pid = pod.file("tasks", pod.sandbox).split()[0]
    subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", TRAFFIC], check=True)
    lines = (line.split(":") for line in Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:])
    words = {name.strip(): list(map(int, rest.split())) for name, rest in lines}["eth0"]
    assert (words[0], words[1], words[8], words[9]) == (IN * BYTES, IN, OUT * BYTES, OUT)
    named = zip(("bytes", "packets", "errors", "packets_dropped"), (0, 1, 2, 3), strict=True)
    wanted = {
        f"container_network_{to}_{n}_total": words[at + by] for n, at in named for to, by in (("receive", 0), ("transmit", 8))
    }

    def told() -> bool:
        samples = agent.scrape()
        found = {name: of(samples, name, f"{pod.path}/{pod.sandbox}") for name in wanted}
        return {name: v for name, each in found.items() for labels, v in each if labels["interface"] == "eth0"} == wanted

    wait_for(told, 120, "the traffic of the pod")
    samples = agent.scrape()
    assert of(samples, "container_network_receive_bytes_total", f"{pod.path}/{pod.container}") == [], "counted once"
    of_pod = {dict(labels)["interface"] for (name, labels) in samples if name in wanted and dict(labels)["pod"] == "web-0"}
    assert of_pod == {"eth0", "peer0"}


def test_a_pod_under_cadvisors_names(world: list[str], pod: tuple[Pod, str]) -> None:
    (path, sandbox, container), socket = pod
    if not any((mount / path[1:] / "cpuacct.usage").exists() for mount in cgroup_mounts()):
        pytest.skip("the controllers are not v1's")
    inside = [f"{path}/{container}", f"{path}/{sandbox}", path]
    with agents.running(world, "--compat", "cadvisor", "--runtime", socket, "--cgroup-include", path) as agent:

        def named() -> list[dict[str, str]]:
            samples = agent.scrape()
            found = [labels for each in inside for labels, _ in of(samples, "container_threads", each)]
            return found if len(found) == len(inside) and all(labels["pod"] for labels in found) else []

        about = {"namespace": "shop", "pod": "web-0"}
        assert wait_for(named, 120, "the pod's names") == [
            about | {"id": inside[0], "name": container, "container": "main", "image": IMAGE},
            about | {"id": inside[1], "name": sandbox, "container": "", "image": ""},
            about | {"id": inside[2], "name": "", "container": "", "image": ""},
        ]
        check_figures(agent, pod[0])
        check_traffic(agent, pod[0])
