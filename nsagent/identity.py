r"""What people call a cgroup: the unit, container, pod or job that its path shows, and the names its runtime has for them.

Paths are read as their makers write them, with no IO. The innermost thing counts: a unit of a user's manager, not the manager's.

    systemd       /system.slice/nginx.service, /user.slice/user-1000.slice/user@1000.service/app.slice/x.scope (systemd.slice(5))
    docker        /docker/ID, /system.slice/docker-ID.scope
    containerd    /default/NAME (ctr), /k8s.io/ID, .../cri-containerd-ID.scope, .../kubepods-podUID.slice:cri-containerd:ID
    CRI-O         .../crio-ID.scope, .../crio-ID          podman    /machine.slice/libpod-ID.scope, /libpod_parent/libpod-ID
    Kubernetes    /kubepods/burstable/podUID, /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podUID.slice
    nsagent       /nsagent/NAME-xxxxxxxx

The QoS class is not among the labels: Kubernetes has no level for guaranteed pods, and who wants it has it in `cgroup`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final, NamedTuple

from nsagent.origins import container_of, job_of

# unit_name_is_valid of systemd. Of the types, those that have cgroups: systemd.resource-control(5).
_UNIT: Final = re.compile(r"[A-Za-z0-9:_.\\@-]{1,248}\.(?:service|scope|slice|socket|mount|swap)")
# A pod's uid, which for a static pod is a hash. In a slice's name "-" means "below", so the kubelet writes "_".
_POD: Final = re.compile(
    r"[/-]pod([0-9a-f]{8}(?:([-_])[0-9a-f]{4}(?:\2[0-9a-f]{4}){2}\2[0-9a-f]{12})|[0-9a-f]{32})(?=\.slice|[/:]|$)"
)
# containerd's default: its namespace, then the id, which is any name to ctr(8).
_NAMED: Final = re.compile(r"^/(?:default|k8s\.io)/([A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*)(?=/|$)")


class CgroupInfo(NamedTuple):
    """What is known of a cgroup, "" what is not. `cgroup_id` is its kernfs id in the accounting hierarchy, in decimal.

    `workload` is a job's name as its id has it: `nsagent run` writes what is no letter, digit, `_`, `.` or `-` as `_`.
    """

    cgroup_id: str = ""
    unit: str = ""
    slice: str = ""
    container_id: str = ""
    container: str = ""
    pod_uid: str = ""
    pod: str = ""
    pod_namespace: str = ""
    image: str = ""
    workload: str = ""


Labels = tuple[tuple[str, str], ...]  # (label, value), sorted


class Names(NamedTuple):
    """What a runtime calls a container, or a pod; "" what it does not say. `labels`: what its maker has labelled it with."""

    container: str = ""
    image: str = ""
    pod_uid: str = ""
    pod: str = ""
    pod_namespace: str = ""
    labels: Labels = ()


def identify(path: str) -> CgroupInfo:
    """Return what a cgroup's path shows. Never fails: a path is anybody's bytes."""
    unit, slice_ = _unit(path)
    pods = [match[1] for match in _POD.finditer(path)]
    container = container_of(path)
    if not container and (named := _NAMED.match(path)):
        container = named[1]
    return CgroupInfo(
        unit=unit,
        slice=slice_,
        container_id=container,
        pod_uid=pods[-1].replace("_", "-") if pods else "",
        workload=job_of(path)[: -len("-xxxxxxxx")],
    )


def _unit(path: str) -> tuple[str, str]:
    """Return the innermost unit and the innermost slice. systemd puts "_" before a name that a kernel's file could have."""
    unit = slice_ = ""
    for name in (component.removeprefix("_") for component in path.split("/")):
        if _UNIT.fullmatch(name):
            if name.endswith(".slice"):
                slice_ = name
            else:
                unit = name
    return unit, slice_


def _named(info: CgroupInfo, names: Mapping[str, Names]) -> CgroupInfo:
    """Return `info` with what the runtimes say; what they do not say any more stays."""
    container, pod = names.get(info.container_id, Names()), names.get(info.pod_uid, Names())
    return info._replace(
        container=container.container or info.container,
        image=container.image or info.image,
        pod_uid=info.pod_uid or container.pod_uid,
        pod=container.pod or pod.pod or info.pod,
        pod_namespace=container.pod_namespace or pod.pod_namespace or info.pod_namespace,
    )


def _labelled(info: CgroupInfo, names: Mapping[str, Names], before: Labels) -> Labels:
    """Return the labels of a cgroup's container, else of its pod; what they were where the runtimes know neither (any more)."""
    known = names.get(info.container_id) or names.get(info.pod_uid)
    return known.labels if known else before


class Identities:
    """The info of each cgroup, worked out once in its life, and again when the runtimes' names change.

    `labels` has those of containers and pods, by path, of the cgroups shown last.
    """

    def __init__(
        self, names: Callable[[], Mapping[str, Names]] = dict, want: Callable[[frozenset[str]], None] = lambda ids: None
    ) -> None:
        """`names` returns what the runtimes say, by container id and by pod uid: the same object until something changes.
        `want` is told the container ids that have no name. Neither may block.
        """
        self._read_names = names
        self._want = want
        self._names: Mapping[str, Names] = {}
        self._known: dict[str, tuple[int | None, CgroupInfo, Labels]] = {}
        self._last: tuple[Mapping[str, int], list[str], dict[str, CgroupInfo], frozenset[str]] = {}, [], {}, frozenset()
        self.labels: Mapping[str, Labels] = {}

    def update(self, ids: Mapping[str, int], shown: Iterable[str]) -> dict[str, CgroupInfo]:
        """Return, by path, the info of the cgroups `shown` of which more than an id is known.

        `ids` has the ids of those that live. What ended keeps its info for as long as it is shown.
        """
        names, paths = self._read_names(), list(shown)
        changed = names is not self._names
        self._names = names
        if changed or (ids, paths) != self._last[:2]:
            self._last = ids, paths, *self._identify(ids, paths, changed=changed)
        found, unnamed = self._last[2:]
        if unnamed:
            self._want(unnamed)
        return found

    def _identify(
        self, ids: Mapping[str, int], paths: Iterable[str], *, changed: bool
    ) -> tuple[dict[str, CgroupInfo], frozenset[str]]:
        """Return the infos, and the container ids without a name. `changed`: the runtimes say something else than last time."""
        names = self._names
        before, known, unnamed = self._known, {}, set()
        for path in paths:
            entry, number = before.get(path), ids.get(path)
            if entry is None or (number is not None and number != entry[0]):  # a new one, maybe under the path of an old one
                info = identify(path)._replace(cgroup_id="" if number is None else str(number))
                entry = number, _named(info, names), _labelled(info, names, ())
            elif changed and (entry[1].container_id or entry[1].pod_uid):
                entry = entry[0], _named(entry[1], names), _labelled(entry[1], names, entry[2])
            known[path] = entry
            if entry[1].container_id and entry[1].container_id not in names:
                unnamed.add(entry[1].container_id)
        self._known = known
        self.labels = {path: labels for path, (_, _, labels) in known.items() if labels}
        return {path: info for path, (_, info, _) in known.items() if any(info[1:])}, frozenset(unnamed)
