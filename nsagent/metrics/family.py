"""What a row of the catalogue is. The tables are in cgroup, namespace, syscalls and agent; `catalogue` has them together."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple

Number = int | float | None  # None: not reported, so no series
Values = str | tuple[str, ...]  # of a family's labels; of a single one it may be that alone
Each = Iterable[tuple[tuple[str, ...], Number]]

NS_PER_S: Final = 10**9


# What can be switched off, each with its families and the reading of its files. CPU, memory, events and pids of cgroups, what
# namespaces use and the traced calls always belong to it.
COLLECTORS: Final[dict[str, str]] = {
    "memory-stat": "memory by type, faults, reclaim and the working set of cgroups",
    "io": "IO of cgroups by device",
    "pressure": "pressure of cgroups",
    "cpuset": "CPUs and memory nodes of cgroups",
    "hugetlb": "huge pages of cgroups",
    "rdma": "RDMA objects of cgroups",
    "misc": "scarce resources of cgroups",
    "state": "frozen, populated and descendants of cgroups",
    "tasks": "what the tasks of cgroups used: run queue, IO, context switches, states; OOM kills",
    "network": "traffic, sockets and connections of net namespaces",
    "namespaces": "mounts, highest pid, depth, clock offsets and limits of namespaces",
}

COMPAT: Final = ("cadvisor",)  # whose names the same sample can have beside ours


class Histogram(NamedTuple):
    """`buckets`: (upper bound in the family's unit, how many up to there); `number` of all; `total`, their sum, unscaled."""

    buckets: tuple[tuple[float, int], ...]
    number: int
    total: int


class Scope(enum.Enum):
    """What a family has one series (or some) of."""

    CGROUP = "cgroup"  # of a part of a CgroupStats: the kernel's own files
    CGROUP_USAGE = "cgroup usage"  # of a Usage: what its tasks used, summed up the tree
    CONTAINER = "container"  # of a part of nsagent.metrics.containers.Reading: a cgroup as cAdvisor has it
    NAMESPACE = "namespace"  # of a Usage
    NODE = "node"  # of the whole NodeSample


class Container(NamedTuple):
    """The labels of a cgroup as cAdvisor has it, in the order they are written. `id` is its path."""

    container: str
    id: str
    image: str
    name: str
    namespace: str
    pod: str


SCOPE_LABELS: Final[dict[Scope, tuple[str, ...]]] = {
    Scope.CGROUP: ("cgroup",),
    Scope.CGROUP_USAGE: ("cgroup",),
    Scope.CONTAINER: Container._fields,
    Scope.NAMESPACE: ("kind", "inum", "id"),
    Scope.NODE: (),
}


@dataclass(frozen=True, slots=True)
class Family:
    """One row: all of a family but its numbers.

    `parts` has the values of `labels` and where the number stands: a field of the scope's thing (one of Usage is left out where
    the source lacks it), or a function of the NodeSample. In their place a family of the node can have `each`, which yields label
    values and numbers; another `by`, which returns a mapping of the numbers there are, of the fields `shown`; one of type
    histogram has `histograms`, which yields label values and histograms. A number in ns (`scale` NS_PER_S) is written in
    seconds. In a family of a `limit` infinity is none, and no series. `final` gauges are kept with what has ended.
    A family of Scope.CGROUP (CONTAINER) reads one `part` of CgroupStats (Reading): its fields are that part's, and only where
    there is one.
    `collector` is one of COLLECTORS, or empty where the family is always there.
    """

    name: str
    type: Literal["counter", "gauge", "info", "histogram"]
    scope: Scope
    help: str
    source: str
    labels: tuple[str, ...] = ()
    parts: tuple[tuple[tuple[str, ...], Callable[[Any], Number] | str], ...] = ()
    each: Callable[[Any], Each] | None = None
    by: Callable[[Any], Mapping[Values, Number]] | None = None
    shown: tuple[str, ...] = ()
    histograms: Callable[[Any], Iterable[tuple[tuple[str, ...], Histogram]]] | None = None
    scale: int = 1
    limit: bool = False
    final: bool = False
    part: str = ""
    collector: str = ""

    @property
    def all_labels(self) -> tuple[str, ...]:
        """The labels in the order they are written."""
        return (*SCOPE_LABELS[self.scope], *self.labels)

    @property
    def fields(self) -> tuple[str, ...]:
        """The fields of the scope's thing, or of what a mapping of it has, whose numbers are shown."""
        return self.shown or tuple(field for _, field in self.parts if isinstance(field, str))

    @property
    def unit(self) -> str:
        """The unit, as the name has it at its end; empty for a plain number."""
        word = self.name.removesuffix("_total").rsplit("_", 1)[-1]
        return word if word in {"seconds", "bytes", "cores"} else ""
