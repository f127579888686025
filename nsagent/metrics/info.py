"""The families that say what people call a cgroup, to be joined with the others on `cgroup`."""

from __future__ import annotations

from typing import Final

from nsagent.identity import CgroupInfo
from nsagent.metrics.family import Each, Family, Scope
from nsagent.sample import NodeSample


def _cgroups(sample: NodeSample) -> Each:
    return (((path, *about), 1) for path, about in sample.cgroup_info.items())


def _labels(sample: NodeSample) -> Each:
    return (((path, *pair), 1) for path, labels in sample.cgroup_labels.items() for pair in labels)


FAMILIES: Final = (
    Family(
        "nsagent_cgroup_info",
        "info",
        Scope.NODE,
        "What people call a cgroup: unit, container, pod, job; only where one of them is known, and empty what is not.",
        "its path, as systemd, docker, containerd, CRI-O, podman, the kubelet and nsagent make it; container, image and pod "
        "from the sockets of docker, podman and CRI runtimes (--runtime)",
        ("cgroup", *CgroupInfo._fields),
        each=_cgroups,
    ),
    Family(
        "nsagent_cgroup_label_info",
        "info",
        Scope.NODE,
        "A label of the container of a cgroup, or of its pod: those that --label-allow names, one series each, so that no two "
        "labels become one, whatever they are called.",
        "the sockets of docker, podman and CRI runtimes (--runtime)",
        ("cgroup", "label", "value"),
        each=_labels,
    ),
)
