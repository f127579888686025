"""Write a NodeSample in Prometheus' text format 0.0.4 or in OpenMetrics 1.0.

The loop over families and things is the hot path of a scrape: a thing's labels are formatted once in its life, a number by
one f-string. Sources: prometheus.io/docs/instrumenting/exposition_formats, prometheus.io/docs/specs/om/open_metrics_spec.
"""

from __future__ import annotations

import functools
import math
import re
import threading
from collections.abc import Callable, Iterable, Sequence
from operator import itemgetter
from typing import Any, Final

from nsagent.metrics.agent import SCRAPE_SAMPLES
from nsagent.metrics.family import NS_PER_S, Family, Number, Scope
from nsagent.namespaces import NamespaceId
from nsagent.sample import NodeSample
from nsagent.usage import Usage

TEXT: Final = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS: Final = "application/openmetrics-text; version=1.0.0; charset=utf-8"

# Invalid UTF-8 (as os.fsdecode leaves it) and control characters; and a backslash that could be taken for our own escape.
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]|\\(?=[0-7]{3})")
_SPECIAL: Final = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n"})
_CACHE: Final = 1 << 16  # label texts kept: some 10 MB of them

Things = Sequence[tuple[str, Any]]


def printable(name: str) -> str:
    r"""Make a name from the kernel printable: each byte that is not is written ``\ooo`` (octal), as in /proc/mounts.

    Two names never become one: a backslash that three octal digits follow is itself written ``\134``. systemd's
    ``\x2d`` stays as it is.
    """
    return _UNPRINTABLE.sub(lambda match: f"\\{ord(match[0]) & 0xFF:03o}", name)


def label(name: str, value: str) -> str:
    """Return ``name="value"``, escaped."""
    return f'{name}="{printable(value).translate(_SPECIAL)}"'


@functools.lru_cache(_CACHE)
def _labels(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    """Return the labels as they are written, with commas between: the same few come again in each scrape."""
    return ",".join(map(label, names, values))


def seconds(ns: int) -> str:
    """Write ns as seconds, every digit kept: a float would lose them after 104 days."""
    return f"{ns // NS_PER_S}.{ns % NS_PER_S:09d}"


def number(value: int | float) -> str:
    """Write a number as Go's ParseFloat reads it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if isinstance(value, int) or (value.is_integer() and abs(value) < 1 << 53) else repr(value)


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
    """Writes samples; keeps the label texts of what it has seen, and the last exposition for those who share its sample."""

    def __init__(self, families: Iterable[Family], process: Callable[[bool], bytes] | None = None) -> None:
        """`process` returns the exposition of process_* (of OpenMetrics, if its argument is true)."""
        rows = tuple(families)
        self._families = [family for family in rows if family.name != SCRAPE_SAMPLES]
        self._samples = next((family for family in rows if family.name == SCRAPE_SAMPLES), None)
        self._process = process
        self._labels: dict[str | NamespaceId, str] = {}
        self._lock = threading.Lock()
        self._last: tuple[NodeSample, dict[bool, bytes]] | None = None

    def encode(self, sample: NodeSample, openmetrics: bool = False) -> bytes:
        """Return the exposition. Safe from any thread; one that was made already for this sample is returned again."""
        with self._lock:
            if self._last is None or self._last[0] is not sample:
                self._last = (sample, {})
            if openmetrics not in self._last[1]:
                self._last[1][openmetrics] = self._encode(sample, openmetrics)
            return self._last[1][openmetrics]

    def _encode(self, sample: NodeSample, openmetrics: bool) -> bytes:
        body = bytearray()
        samples = 0
        things = self._things(sample)
        for family in self._families:
            lines = [header(family, openmetrics)]
            write(lines, family, things[family.scope, family.type == "counter" or family.final], sample.missing)
            if len(lines) > 1:
                samples += len(lines) - 1
                body += "".join(lines).encode()  # family by family: all lines of a big node at once took 3 times the memory
        process = self._process(openmetrics) if self._process else b""
        if self._samples:
            samples += 1 + sum(not line.startswith(b"#") for line in process.splitlines())
            body += f"{header(self._samples, openmetrics)}{SCRAPE_SAMPLES} {samples}\n".encode()
        body += process
        return bytes(body + b"# EOF\n" if openmetrics else body)

    def _things(self, sample: NodeSample) -> dict[tuple[Scope, bool], Things]:
        """Return what there is of each scope, with its labels; True: also what has ended."""
        if len(self._labels) > _CACHE:
            self._labels.clear()
        cgroups = [(self._text(path), stats) for path, stats in sample.cgroups.items()]
        usage = [(self._text(path), used) for path, used in sample.cgroup_usage.items()]
        namespaces = [(self._text(namespace), used) for namespace, used in sample.namespaces.items()]
        node = [("", sample)]
        return {
            (Scope.CGROUP, False): cgroups,
            (Scope.CGROUP, True): cgroups + [(self._text(path), stats) for path, stats in sample.cgroups_ended.items()],
            (Scope.CGROUP_USAGE, False): usage,
            (Scope.CGROUP_USAGE, True): usage + [(self._text(path), used) for path, used in sample.cgroup_usage_ended.items()],
            (Scope.NAMESPACE, False): namespaces,
            (Scope.NAMESPACE, True): namespaces + [(self._text(ns), used) for ns, used in sample.namespaces_ended.items()],
            (Scope.NODE, False): node,
            (Scope.NODE, True): node,
        }

    def _text(self, key: str | NamespaceId) -> str:
        text = self._labels.get(key)
        if text is None:
            inside = label("cgroup", key) if isinstance(key, str) else f'kind="{key.kind}",inum="{key.inum}",id="{key.id}"'
            text = self._labels[key] = "{" + inside
        return text


def header(family: Family, openmetrics: bool) -> str:
    """Return the HELP and TYPE lines (and UNIT). OpenMetrics names a counter without _total, an info without _info."""
    name, kind = family.name, family.type
    if not openmetrics:
        return f"# HELP {name} {family.help}\n# TYPE {name} {'gauge' if kind == 'info' else kind}\n"
    name = name.removesuffix("_total" if kind == "counter" else "_info" if kind == "info" else "")
    unit = f"# UNIT {name} {family.unit}\n" if family.unit and kind != "info" else ""
    return f"# HELP {name} {family.help}\n# TYPE {name} {kind}\n{unit}"


def write(lines: list[str], family: Family, things: Things, missing: frozenset[str]) -> None:
    """Append one line a sample of `family`."""
    name, append, scale = family.name, lines.append, family.scale
    node = family.scope is Scope.NODE
    opening = "{" if node else ","
    if family.each is not None:
        text: Callable[[Any], str] = seconds if scale == NS_PER_S else number
        for prefix, thing in things:
            for values, value in family.each(thing):
                if value is not None:
                    append(f"{name}{prefix}{opening}{_labels(family.labels, values)}}} {text(value)}\n")
        return
    for values, getter in family.parts:
        if isinstance(getter, str) and getter in missing:
            continue
        read: Callable[[Any], Number] = itemgetter(Usage._fields.index(getter)) if isinstance(getter, str) else getter
        labels = _labels(family.labels, values)
        tail = f"{opening}{labels}}} " if labels else " " if node else "} "
        for prefix, thing in things:
            value = read(thing)
            if value is None:
                continue
            if scale == NS_PER_S:
                append(f"{name}{prefix}{tail}{value // NS_PER_S}.{value % NS_PER_S:09d}\n")
            else:
                append(f"{name}{prefix}{tail}{value if value.__class__ is int else number(value)}\n")
