"""Cgroups as cAdvisor has them: all of them by id, and with names those that are a container's or a pod's own.

The labels are those that the kubelet gives them: containerPrometheusLabelsFunc in kubernetes, pkg/kubelet/server/server.go. The
devices left out are cAdvisor's: ignoredDevicePrefixes in lib/container/libcontainer/handler.go.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

from nsagent.cgroups.stats import CgroupStats, CpuStats, IoStats, MemoryStats, PidsStats, PressureStats
from nsagent.identity import CgroupInfo
from nsagent.metrics.family import Container
from nsagent.namespaces import NamespaceKind
from nsagent.nsfigures import Device
from nsagent.sample import NodeSample
from nsagent.usage import Usage

_IGNORED: Final = ("lo", "veth", "docker", "nerdctl")  # how names of devices begin whose traffic is no container's own
_NOBODY: Final = CgroupInfo()
_NOTHING: Final = CgroupStats()

Devices = Mapping[str, Device]


class Times(NamedTuple):
    """CLOCK_REALTIME ns; `created_ns` None: the making was not seen."""

    created_ns: int | None
    seen_ns: int


class Reading(NamedTuple):
    """What a sample has of a cgroup; None where there is nothing. `network` is of the net namespace that is its own."""

    cpu: CpuStats | None
    memory: MemoryStats | None
    io: IoStats | None
    pids: PidsStats | None
    pressure: PressureStats | None
    usage: Usage | None
    network: Devices | None
    times: Times | None


def read(sample: NodeSample, *, ended: bool = False) -> dict[Container, Reading]:
    """Return what a sample has, of what lives or of what has ended."""
    stats, used = (sample.cgroups_ended, sample.cgroup_usage_ended) if ended else (sample.cgroups, sample.cgroup_usage)
    networks = {} if ended else read_networks(sample)
    found = {}
    for path in dict.fromkeys((*stats, *used)):
        each = stats.get(path, _NOTHING)
        times = None if ended else Times(sample.cgroups_created.get(path), sample.time_ns)
        found[label(path, sample.cgroup_info.get(path, _NOBODY))] = Reading(
            each.cpu, each.memory, each.io, each.pids, each.pressure, used.get(path), networks.get(path), times
        )
    return found


def label(path: str, info: CgroupInfo = _NOBODY) -> Container:
    """Return the labels of a cgroup, of which `info` is known.

    A container of a pod has its id as name, any other the name its runtime gave it. What lies below a container, or beside it in
    its pod (a monitor), has an id alone: a sum over a pod's containers counts each once.
    """
    base, number = path.rpartition("/")[2], info.container_id
    if number and (base == number or (len(number) == 64 and number in base)):
        if info.pod:
            return Container(info.container, path, info.image, number, info.pod_namespace, info.pod)
        return Container("", path, info.image, info.container or number, "", "")
    if info.pod_uid and base.removesuffix(".slice").replace("_", "-").endswith(f"pod{info.pod_uid}"):
        return Container("", path, "", "", info.pod_namespace, info.pod)
    return Container("", path, "", "", "", "")


def read_networks(sample: NodeSample) -> dict[str, Devices]:
    """Return the devices of each net namespace, by the cgroup of its oldest member's container, which in a pod is the sandbox.

    The host's is the root's. Of several that are one container's, the first that was made is its own.
    """
    if sample.namespace_figures is None or sample.history is None:
        return {}
    own: dict[str, tuple[tuple[int, int], Devices]] = {}
    for namespace, figures in sample.namespace_figures.namespaces.items():
        about = sample.history.about.get(namespace)
        if namespace.kind is not NamespaceKind.NET or about is None or not about.root_pid:
            continue
        path = "/" if about.root_pid == "1" else _container(about.cgroup, sample.cgroup_info)
        made = sample.history.created_ns.get(namespace, 0), int(about.root_pid)
        if path and (path not in own or made < own[path][0]):
            own[path] = made, figures.devices
    return {path: {n: d for n, d in devices.items() if not n.lower().startswith(_IGNORED)} for path, (_, devices) in own.items()}


def _container(path: str, known: Mapping[str, CgroupInfo]) -> str:
    """Return the cgroup of the container in which a process of this cgroup is, "" if it is in none."""
    while path and not label(path, known.get(path, _NOBODY)).name:
        path = path.rpartition("/")[0]
    return path
