"""Write a NodeSample in Prometheus' text format 0.0.4 or in OpenMetrics 1.0.

The tables of cgroups and namespaces are kept from scrape to scrape (`columns`); what is of the whole node is written anew.
Sources: prometheus.io/docs/instrumenting/exposition_formats, prometheus.io/docs/specs/om/open_metrics_spec.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, Final

from nsagent.cgroups.stats import CgroupStats
from nsagent.metrics.agent import SCRAPE_SAMPLES, SERIES_DROPPED
from nsagent.metrics.budget import Budget, Key, labels_of
from nsagent.metrics.columns import Table
from nsagent.metrics.family import NS_PER_S, SCOPE_LABELS, Container, Each, Family, Number, Scope
from nsagent.metrics.text import label, label_text, number, seconds
from nsagent.sample import NodeSample

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"
_MANY: Final = 200  # lines of a cgroup, hardly ever more
_AT_A_TIME: Final = 512


def accepts_openmetrics(accept: str) -> bool:
    """Tell whether an Accept header likes OpenMetrics 1.0.0 at least as much as any other form (RFC 9110, 12.5.1)."""
    best = {"openmetrics": 0.0, "text": 0.0}
    for item in accept.split(","):
        kind, *parameters = (word.strip().lower() for word in item.split(";"))
        given = dict(parameter.split("=", 1) for parameter in parameters if "=" in parameter)
        try:
            quality = float(given.get("q", "1"))
        except ValueError:
            continue
        if kind == "application/openmetrics-text" and given.get("version", "1.0.0") == "1.0.0":
            best["openmetrics"] = max(best["openmetrics"], quality)
        elif kind in ("text/plain", "text/*", "*/*"):
            best["text"] = max(best["text"], quality)
    return best["openmetrics"] > 0 and best["openmetrics"] >= best["text"]


class Encoder:
    """Writes samples; keeps the lines of the last, and its exposition for those who share the sample."""

    def __init__(
        self, families: Iterable[Family], process: Callable[[bool], bytes] | None = None, *, max_series: int = 0
    ) -> None:
        """`process` returns the exposition of process_* (of OpenMetrics, if its argument is true); `max_series` is without it."""
        rows = tuple(families)
        self._own = [family for family in rows if family.name in (SERIES_DROPPED, SCRAPE_SAMPLES)]  # what only the encoder knows
        self._families = [family for family in rows if family not in self._own]
        self._process = process
        self._budget = Budget(max_series)
        self._node: dict[str, list[str]] = {}  # lines of the families of the whole node; what they say, without which, and they
        self._said: dict[str, tuple[list[tuple[tuple[str, ...], Number]], Collection[tuple[str, ...]], list[str]]] = {}
        self._lock = threading.Lock()
        self._missing: frozenset[str] | None = None
        self._tables: dict[tuple[Scope, bool], Table[Any]] = {}
        self._last: tuple[NodeSample, dict[tuple[bool, bool], tuple[bytes, ...]]] | None = None

    def encode(self, sample: NodeSample, openmetrics: bool = False) -> bytes:
        """Return the exposition in one piece, which nobody shares."""
        return b"".join(self.chunks(sample, openmetrics))

    def chunks(self, sample: NodeSample, openmetrics: bool = False, *, process: bool = True) -> tuple[bytes, ...]:
        """Return the exposition in pieces. Safe from any thread; that of the last sample is returned again.

        In pieces, because a big node's has 25 MB: both formats and the next scrape share the pieces that are the same.
        Without `process` it has the families of the catalogue alone.
        """
        with self._lock:
            if self._last is None or self._last[0] is not sample:
                self._last = None  # what has changed is let go before it is made anew
                self._update(sample)
                self._last = (sample, {})
            form = (openmetrics, process)
            if form not in self._last[1]:
                self._last[1][form] = tuple(self._write(openmetrics, self._process if process else None))
            return self._last[1][form]

    def limit(self, max_series: int) -> None:
        """Show at most so many series from now on; what is not shown is chosen anew. 0 is no limit."""
        with self._lock:
            self._budget.most, self._budget.hidden, self._last = max_series, frozenset(), None

    def _update(self, sample: NodeSample) -> None:
        if sample.missing != self._missing:
            self._missing = sample.missing
            scopes = {family.scope for family in self._families} - {Scope.NODE}
            self._tables = {(scope, ended): self._table(scope, ended) for scope in scopes for ended in (False, True)}
        things = {place: _things(sample, *place) for place in self._tables}
        if self._budget.most:  # a container's key is its cgroup's
            new = self._budget.see(key for (scope, _), found in things.items() if scope is not Scope.CONTAINER for key in found)
            if new > self._budget.most // _MANY:
                self._foresee(sample, things)
        self._fill(sample, things)
        if self._budget.most and self._samples > self._budget.most:
            self._budget.drop(*self._series(sample, self._tables.values()))
            self._fill(sample, things)

    def _foresee(self, sample: NodeSample, things: Mapping[tuple[Scope, bool], Mapping[Any, Any]]) -> None:
        """Choose what is not shown before its lines stand in memory beside those of all else: some are written at a time, and
        counted. Of what malloc has had for them it keeps much, as holes between the lines that are shown."""
        self._write_node(sample)
        series, total = self._series(sample, self._in_pieces(things))
        if total > self._budget.most:
            self._budget.drop(series, total)

    def _in_pieces(self, things: Mapping[tuple[Scope, bool], Mapping[Any, Any]]) -> Iterator[Table[Any]]:
        """Yield tables that have all there is, a part in each."""
        for place, found in things.items():
            keys = [key for key in found if _owner(key) not in self._budget.hidden]
            for start in range(0, len(keys), _AT_A_TIME):
                table = self._table(*place)
                table.update({key: found[key] for key in keys[start : start + _AT_A_TIME]})
                yield table

    def _fill(self, sample: NodeSample, things: Mapping[tuple[Scope, bool], Mapping[Any, Any]]) -> None:
        hidden = self._budget.hidden
        for place, table in self._tables.items():
            found = things[place]
            table.update({key: thing for key, thing in found.items() if _owner(key) not in hidden} if hidden else found)
        self._write_node(sample)

    def _write_node(self, sample: NodeSample) -> None:
        labels = frozenset(map(labels_of, self._budget.hidden))
        self._node = {f.name: self._node_lines(f, sample, labels) for f in self._families if f.scope is Scope.NODE}

    def _node_lines(self, family: Family, sample: NodeSample, hidden: Collection[tuple[str, ...]]) -> list[str]:
        """Return the lines of a family of the whole node: those of last time where that is what they would be."""
        if family.histograms:
            return list(node_lines(family, sample, hidden))
        found = list(_node_values(family, sample))
        last = self._said.get(family.name)
        if last is None or last[:2] != (found, hidden):
            last = self._said[family.name] = found, hidden, list(_lines(family, found, hidden))
        return last[2]

    @property
    def _samples(self) -> int:
        """All samples but the process's."""
        return sum(table.samples for table in self._tables.values()) + sum(map(len, self._node.values())) + len(self._own)

    def _series(self, sample: NodeSample, tables: Iterable[Table[Any]]) -> tuple[Counter[Key], int]:
        """Return how many samples each cgroup and namespace has of those in `tables`, and how many there are in all."""
        found: Counter[Key] = Counter()
        total = sum(map(len, self._node.values())) + len(self._own)
        for table in tables:
            total += table.samples
            for key, samples in table.series():
                found[_owner(key)] += samples
        more = Counter(
            values[: _key(f)] for f in self._families if _key(f) for values, n in _node_values(f, sample) if n is not None
        )
        for key in found:
            found[key] += more[labels_of(key)]
        return found, total

    def _table(self, scope: Scope, ended: bool) -> Table[Any]:
        families = [f for f in self._families if f.scope is scope and (not ended or f.type == "counter" or f.final)]
        return Table(families, _parts(scope), _labels, self._missing or frozenset())

    def _write(self, openmetrics: bool, write_process: Callable[[bool], bytes] | None) -> Iterable[bytes]:
        for family in self._families:
            if family.scope is Scope.NODE:
                pieces = ["".join(self._node[family.name]).encode()]
            else:
                pieces = [piece for ended in (False, True) for piece in self._tables[family.scope, ended].pieces(family.name)]
            if any(pieces):
                yield header(family, openmetrics).encode()
                yield from filter(None, pieces)
        process = write_process(openmetrics) if write_process else b""
        samples = self._samples + sum(not line.startswith(b"#") for line in process.splitlines())
        own = {SCRAPE_SAMPLES: f" {samples}", SERIES_DROPPED: f'{{reason="max_series"}} {self._budget.dropped}'}
        for family in self._own:
            yield f"{header(family, openmetrics)}{family.name}{own[family.name]}\n".encode()
        yield process + b"# EOF\n" if openmetrics else process


def _parts(scope: Scope) -> tuple[str, ...]:
    if scope is Scope.CONTAINER:
        from nsagent.metrics import containers  # only who asked for such names pays for them

        return containers.Reading._fields
    return CgroupStats._fields if scope is Scope.CGROUP else ()


def _things(sample: NodeSample, scope: Scope, ended: bool) -> Mapping[Any, Any]:
    if scope is Scope.CONTAINER:
        from nsagent.metrics import containers

        return containers.read(sample, ended=ended)
    if scope is Scope.CGROUP:
        return sample.cgroups_ended if ended else sample.cgroups
    if scope is Scope.CGROUP_USAGE:
        return sample.cgroup_usage_ended if ended else sample.cgroup_usage
    return sample.namespaces_ended if ended else sample.namespaces


def _owner(key: Key | Container) -> Key:
    return key.id if isinstance(key, Container) else key


def _labels(key: Key | Container) -> str:
    """Return the labels that say which one it is."""
    if isinstance(key, Container):
        return ",".join(map(label, key._fields, key))
    return label("cgroup", key) if isinstance(key, str) else f'kind="{key.kind}",inum="{key.inum}",id="{key.id}"'


def header(family: Family, openmetrics: bool) -> str:
    """Return the HELP and TYPE lines (and UNIT). OpenMetrics names a counter without _total, an info without _info."""
    name, kind = family.name, family.type
    if not openmetrics:
        return f"# HELP {name} {family.help}\n# TYPE {name} {'gauge' if kind == 'info' else kind}\n"
    if kind == "counter" and not name.endswith("_total"):  # one of cAdvisor's; OpenMetrics has no such counter
        return f"# HELP {name} {family.help}\n# TYPE {name} unknown\n"
    name = name.removesuffix("_total" if kind == "counter" else "_info" if kind == "info" else "")
    unit = f"# UNIT {name} {family.unit}\n" if family.unit and kind != "info" else ""
    return f"# HELP {name} {family.help}\n# TYPE {name} {kind}\n{unit}"


def _key(family: Family) -> int:
    """Return how many labels of a family of the whole node say which cgroup or namespace a series is about."""
    return next((len(names) for names in SCOPE_LABELS.values() if names and family.labels[: len(names)] == names), 0)


def _node_values(family: Family, sample: NodeSample) -> Each:
    return family.each(sample) if family.each else ((v, read(sample)) for v, read in family.parts if not isinstance(read, str))


def node_lines(family: Family, sample: NodeSample, hidden: Collection[tuple[str, ...]] = ()) -> Iterable[str]:
    """Yield the lines of a family of the whole node, without those about a cgroup or namespace of these label values."""
    text: Callable[[Any], str] = seconds if family.scale == NS_PER_S else number
    for values, histogram in family.histograms(sample) if family.histograms else ():
        labels = label_text(family.labels, values)
        for bound, count in [*histogram.buckets, (math.inf, histogram.number)]:
            yield f'{family.name}_bucket{{{labels},le="{number(float(bound))}"}} {count}\n'
        yield f"{family.name}_sum{{{labels}}} {text(histogram.total)}\n"
        yield f"{family.name}_count{{{labels}}} {histogram.number}\n"
    yield from _lines(family, _node_values(family, sample), hidden)


def _lines(family: Family, found: Each, hidden: Collection[tuple[str, ...]]) -> Iterable[str]:
    text: Callable[[Any], str] = seconds if family.scale == NS_PER_S else number
    key = _key(family)
    for values, value in found:
        if value is not None and not (hidden and values[:key] in hidden):
            labels = label_text(family.labels, values)
            yield f"{family.name}{{{labels}}} {text(value)}\n" if labels else f"{family.name} {text(value)}\n"
