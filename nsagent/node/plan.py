"""What an agent would do on this node, as `nsagent agent --dry-run` prints it: modes, files, series, memory. It loads nothing.

The node is read twice without BPF, all it keeps in a directory that is thrown away, and the sample written as it would be
with BPF where the kernel's features allow that. So each family's series are counted by the catalogue on what there is here.
"""

from __future__ import annotations

import dataclasses
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from nsagent.cgroups.layout import Layout
from nsagent.cgroups.sources import find_sources
from nsagent.config import AgentConfig
from nsagent.kernel import abi
from nsagent.kernel.features import NOTHING_TO_DO, Feature, probe
from nsagent.kernel.maps import map_bytes
from nsagent.metrics import catalogue
from nsagent.metrics.encode import Encoder
from nsagent.metrics.family import COLLECTORS
from nsagent.node import facts
from nsagent.node.node import Node, open_node
from nsagent.sample import MapFigures, NodeSample
from nsagent.watch import read_about, read_members

_NO_TRACING: Final = "no tracing"  # in the consequence of what tracing needs
_APPROXIMATE: Final = "approximate"  # and of what exact accounting needs


@dataclass(frozen=True, slots=True)
class Plan:
    """`series` is by family; `memory_bytes` what an agent takes, `kernel_bytes` what it has the kernel take."""

    config: AgentConfig
    layout: Layout | None
    features: tuple[Feature, ...]
    exact: bool
    traced: bool
    walks: bool
    cgroups: int
    skipped: int
    namespaces: int
    series: Mapping[str, int]
    memory_bytes: int | None
    kernel_bytes: int


def make(config: AgentConfig) -> Plan:
    """Return the plan of an agent with these settings. Raises NsagentError where none could run."""
    features = probe()
    lacking = [feature.consequence for feature in features if feature.needed and not feature.available]
    exact = config.bpf and not any(_APPROXIMATE in consequence for consequence in lacking)
    traced = exact and config.trace and not any(_NO_TRACING in consequence for consequence in lacking)
    walks = exact and any(feature.name == "iter_cgroup" and feature.available for feature in features)
    with tempfile.TemporaryDirectory(prefix="nsagent-") as directory:
        without = dataclasses.replace(config, bpf=False, ephemeral=False, state_dir=directory)
        with open_node(without, keep_history=True) as node:
            first, sample = _read(node)
            if exact:
                sample = _as_with_bpf(sample, config)
            chunks = Encoder(catalogue.families(config.compat)).chunks(sample)
            files = first.files if walks else sample.files  # the descriptors of directories, or those of files too
            return Plan(
                config=config,
                layout=node.layout,
                features=features,
                exact=exact,
                traced=traced,
                walks=walks,
                cgroups=len(sample.cgroups),
                skipped=sum(sample.files.skipped.values()) if sample.files else 0,
                namespaces=len(sample.namespaces),
                series=count(b"".join(chunks)),
                memory_bytes=_pss_bytes(),
                kernel_bytes=sum(figures.memory_bytes or 0 for figures in sample.maps)
                + (files.kernel_memory_bytes if files else 0),
            )


def _read(node: Node) -> tuple[NodeSample, NodeSample]:
    """Take a sample, and that of an agent that has been there for some time: it knows who is in each namespace."""
    assert node.history is not None
    first = node.sampler.read()
    node.history.describe(read_members(node.history.living()))
    node.history.tell(*read_about(node.history.oldest()))
    return first, node.sampler.read()


def _as_with_bpf(sample: NodeSample, config: AgentConfig) -> NodeSample:
    """Return the sample with what BPF has besides: each number of what tasks use, and the maps."""
    missing = frozenset[str]() if facts.keeps_delays() else frozenset({"io_delay_ns"})
    maps = tuple(
        MapFigures(name, 0 if "hash" in spec["type"] else None, spec["max_entries"], map_bytes(**spec))
        for name, spec in abi.map_specs(config.contexts, config.ring_bytes).items()
    )
    return dataclasses.replace(sample, missing=missing, readable=None, maps=maps, cpu_error=0.0)


def count(exposition: bytes) -> dict[str, int]:
    """Return how many samples each family has."""
    found: dict[str, int] = {}
    family = ""
    for line in exposition.splitlines():
        if line.startswith(b"# TYPE "):
            family = line.split()[2].decode()
        elif not line.startswith(b"#"):
            found[family] = found.get(family, 0) + 1
    return found


def _pss_bytes() -> int | None:
    """Return the memory of this process, its share of what is shared; None where the kernel does not say."""
    try:
        with open("/proc/self/smaps_rollup", encoding="ascii") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("Pss:")), None)
    except OSError:
        return None


def describe(plan: Plan) -> str:
    """Return the plan for people, a line a subject."""
    return "".join(f"{subject:<13}{value}\n" for subject, value in _rows(plan))


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    config = plan.config
    layout = f"cgroups {plan.layout.mode}" if plan.layout else "no cgroups"
    accounting = "accounting exact, by BPF" if plan.exact else "accounting approximate, from /proc"
    yield "mode", f"{layout}; {accounting}; {'' if plan.traced else 'no '}tracing of clone, unshare and setns"
    for feature in plan.features:
        if not feature.available and feature.remedy != NOTHING_TO_DO:
            yield "lacking", f"{feature.name.replace('_', ' ')}: {feature.reason}; {feature.consequence}; {feature.remedy}"
    if not config.bpf or not config.trace:
        yield "off", "BPF (--no-bpf)" if not config.bpf else "tracing (--no-trace)"
    if config.collectors_off:
        yield "off", ", ".join(name for name in COLLECTORS if name in config.collectors_off)
    yield "listens", config.socket_path or f"{config.host or '*'}:{config.port}"
    yield "state", f"{config.state_dir}; pins {config.pin_dir}; cache {config.cache_dir}"
    yield from _reads(plan)
    yield "asks", ", ".join(path for path in config.runtimes if os.path.exists(path)) or "no container runtime"
    skipped = f", {plan.skipped} more not shown" if plan.skipped else ""
    yield "node", f"{plan.cgroups} cgroups{skipped}, {plan.namespaces} namespaces"
    total = sum(plan.series.values())
    limit = f"; --max-series {config.max_series}" if config.max_series else ""
    yield "series", f"about {total}{limit}" + (", so some are left out" if 0 < config.max_series < total else "")
    for family, number in sorted(plan.series.items(), key=lambda item: (-item[1], item[0])):
        yield "", f"{number:>8} {family}"
    if config.retain_ns:
        yield "not in it", f"what ends: it is shown for {config.retain_ns / 10**9:g} s more (--retain)"
    memory = f"about {plan.memory_bytes >> 20} MiB, and " if plan.memory_bytes is not None else ""
    yield "memory", f"{memory}{plan.kernel_bytes / (1 << 20):.1f} MiB of the kernel's"


def _reads(plan: Plan) -> Iterator[tuple[str, str]]:
    """Say which files of which hierarchy are read of each cgroup."""
    files: dict[str, list[str]] = {}
    for source in find_sources(plan.layout, plan.config.collectors_off) if plan.layout else ():
        files.setdefault(source.hierarchy.mountpoint, []).extend(source.files or (f"{source.part}.*",))
    for mountpoint, names in files.items():
        yield "reads", f"{mountpoint}/**: {' '.join(dict.fromkeys(names))}"
    if plan.walks:
        yield "reads", "bpf_iter/cgroup, which stands for most of these files"
    yield "reads", "/proc: namespaces of processes" + ("" if plan.exact else ", and what these use")
