"""Families of the agent itself. Those of its process (process_*, python_info) are in `process`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from nsagent.cgroups.pace import BOUNDS_S
from nsagent.metrics import cgroup
from nsagent.metrics.family import NS_PER_S, Each, Family, Histogram, Number, Scope
from nsagent.sample import NodeSample

SCRAPE_SAMPLES: Final = "nsagent_scrape_samples"
SERIES_DROPPED: Final = "nsagent_series_dropped_total"
BUILD: Final = ("version", "python", "bcc", "libbpf", "kernel")
MODE: Final = ("cgroup", "bpf", "accounting", "psi", "delayacct")


def _build(sample: NodeSample) -> Each:
    yield tuple(sample.facts.build.get(label, "") for label in BUILD), 1


def _mode(sample: NodeSample) -> Each:
    yield tuple(sample.facts.mode.get(label, "") for label in MODE), 1


def _available(sample: NodeSample) -> Each:
    for feature, reason in sample.facts.features.items():
        yield (feature,), int(reason is None)


def _unavailable(sample: NodeSample) -> Each:
    for feature, reason in sample.facts.features.items():
        if reason is not None:
            yield (feature, reason), 1


def _success(sample: NodeSample) -> Each:
    return (((name,), int(outcome.success)) for name, outcome in sample.collectors.items())


def _duration(sample: NodeSample) -> Each:
    return (((name,), outcome.seconds) for name, outcome in sample.collectors.items())


def _maps(number: Callable[[tuple[Number, Number, Number]], Number]) -> Callable[[NodeSample], Each]:
    return lambda sample: (((name,), number(figures)) for name, *rest in sample.maps for figures in [(rest[0], rest[1], rest[2])])


def _runs(at: int) -> Callable[[NodeSample], Each]:
    return lambda sample: (((name,), runs[at]) for name, runs in sample.program_runs.items())


def _readable(sample: NodeSample) -> Each:
    if sample.readable is not None:
        readable, processes = sample.readable
        yield ("yes",), readable
        yield ("no",), processes - readable


def _full(sample: NodeSample) -> Each:
    return (((figures.name,), figures.full) for figures in sample.maps)


def _created(sample: NodeSample) -> Each:
    return (((path,), ns / NS_PER_S) for path, ns in sample.cgroups_created.items())


def _final_reads(sample: NodeSample) -> Each:
    return (((outcome,), count) for outcome, count in sample.final_reads.items())


def _reload_success(sample: NodeSample) -> Each:
    if sample.reload:
        yield (), int(sample.reload.success)


def _reload_time(sample: NodeSample) -> Each:
    if sample.reload:
        yield (), sample.reload.time_ns / NS_PER_S


def _kernel_memory(sample: NodeSample) -> Each:
    maps = sum(figures.memory_bytes or 0 for figures in sample.maps)
    if sample.files or maps:
        yield (), maps + (sample.files.kernel_memory_bytes if sample.files else 0)


def _backoffs(sample: NodeSample) -> Each:
    return (((file,), count) for file, count in sample.files.backoffs.items()) if sample.files else iter(())


def _file_reads(sample: NodeSample) -> Iterable[tuple[tuple[str], Histogram]]:
    for file, reads in sample.files.reads.items() if sample.files else ():
        yield (file,), Histogram(tuple(zip(BOUNDS_S, reads.within, strict=True)), reads.number, reads.total_ns)


def _regressions(sample: NodeSample) -> Each:
    falls = sample.files.falls if sample.files else {}
    for family in cgroup.FAMILIES if falls else ():
        number = sum(falls.get((family.part, field), 0) for field in family.fields)
        if number and family.scope is Scope.CGROUP and family.type == "counter":
            yield (family.name,), number


def _skipped(sample: NodeSample) -> Each:
    return (((reason,), count) for reason, count in sample.files.skipped.items()) if sample.files else iter(())


def _family(name: str, help_: str, source: str, labels: tuple[str, ...], each: Callable[[NodeSample], Each]) -> Family:
    return Family(name, "info" if name.endswith("_info") else "gauge", Scope.NODE, help_, source, labels, each=each)


FAMILIES: Final[tuple[Family, ...]] = (
    _family(
        "nsagent_build_info",
        "The agent, what it runs on, and the compiler of its BPF programs (bcc); libbpf is empty: programs are loaded by bpf(2).",
        "the agent; uname(2)",
        BUILD,
        _build,
    ),
    _family(
        "nsagent_mode_info",
        "How this node is accounted: its cgroup layout; whether BPF is loaded; exact (BPF) or approximate (/proc) usage; whether "
        "the kernel keeps pressure (psi) and IO delays (delayacct).",
        "/proc/self/mountinfo, /proc/pressure, /proc/sys/kernel/task_delayacct",
        MODE,
        _mode,
    ),
    _family(
        "nsagent_feature_available",
        "1 where this host has the feature, 0 where what needs it is absent or approximate.",
        "the kernel's BTF; what bpf(2) and the cgroup files answered",
        ("feature",),
        _available,
    ),
    _family(
        "nsagent_feature_info",
        "Why a feature is not available; nsagent doctor has the remedy.",
        "the kernel's BTF; what bpf(2) and the cgroup files answered",
        ("feature", "reason"),
        _unavailable,
    ),
    _family(
        "nsagent_processes_readable",
        "Processes this user can read in full, and those it cannot, whose usage counts nowhere; absent where BPF accounts all.",
        "/proc",
        ("readable",),
        _readable,
    ),
    _family(
        "nsagent_collector_success",
        "1 where the collector could read in this scrape; with 0 its families are absent from it.",
        "the agent",
        ("collector",),
        _success,
    ),
    _family(
        "nsagent_collector_duration_seconds",
        "How long the collector took in this scrape.",
        "the agent, CLOCK_MONOTONIC",
        ("collector",),
        _duration,
    ),
    _family(
        "nsagent_bpf_map_entries",
        "Elements in a BPF map; absent for maps that cannot be counted (arrays, queues, storage, the ring buffer).",
        "bpf(2) BPF_MAP_LOOKUP_BATCH",
        ("map",),
        _maps(lambda figures: figures[0]),
    ),
    _family(
        "nsagent_bpf_map_max_entries",
        "Room in a BPF map, in elements (in bytes for the ring buffer); absent for storage, which has no limit.",
        "bpf(2) BPF_OBJ_GET_INFO_BY_FD",
        ("map",),
        _maps(lambda figures: figures[1] or None),
    ),
    _family(
        "nsagent_bpf_map_memory_bytes",
        "Kernel memory of a BPF map.",
        "/proc/self/fdinfo memlock",
        ("map",),
        _maps(lambda figures: figures[2]),
    ),
    Family(
        "nsagent_bpf_program_runs_total",
        "counter",
        Scope.NODE,
        "How often a BPF program of the agent has run; only with --bpf-stats, which slows every BPF program of the host.",
        "bpf(2) BPF_OBJ_GET_INFO_BY_FD run_cnt",
        ("program",),
        each=_runs(0),
    ),
    Family(
        "nsagent_bpf_program_run_seconds_total",
        "counter",
        Scope.NODE,
        "How long a BPF program of the agent has run in all; only with --bpf-stats.",
        "bpf(2) BPF_OBJ_GET_INFO_BY_FD run_time_ns",
        ("program",),
        each=_runs(1),
        scale=NS_PER_S,
    ),
    Family(
        "nsagent_bpf_map_full_total",
        "counter",
        Scope.NODE,
        "How often no element was left: of rows, for a context, whose usage then counts in no namespace and in no cgroup but "
        "the root; --contexts makes room.",
        "BPF: the map stats",
        ("map",),
        each=_full,
    ),
    _family(
        "nsagent_cgroup_created_timestamp_seconds",
        "When the cgroup was made, since the epoch; absent of those made before the BPF programs or the agent were there.",
        "BPF: tracepoint cgroup:cgroup_mkdir",
        ("cgroup",),
        _created,
    ),
    Family(
        "nsagent_cgroup_final_reads_total",
        "counter",
        Scope.NODE,
        "Cgroups that ended, by how their last values were had: complete, from the kernel at the removal, all that their "
        "controllers keep; partial, some of them so; late, none: what is shown is the last reading before the end.",
        "BPF: tracepoint cgroup:cgroup_rmdir",
        ("outcome",),
        each=_final_reads,
    ),
    _family(
        "nsagent_kernel_memory_bytes",
        "Kernel memory that the agent pins: its BPF maps, and some 5 KiB for each file of a cgroup that it keeps open.",
        "/proc/self/fdinfo memlock; the agent's count of descriptors",
        (),
        _kernel_memory,
    ),
    Family(
        "nsagent_file_backoffs_total",
        "counter",
        Scope.NODE,
        "How often a file of cgroups was too slow to read, 50 ms for one or 2 s for all, so that the next 2, 4, .. 64 scrapes "
        "leave it out. Time without a CPU does not count.",
        "the agent, CLOCK_MONOTONIC",
        ("file",),
        each=_backoffs,
    ),
    Family(
        "nsagent_file_read_seconds",
        "histogram",
        Scope.NODE,
        "How long reading a file of a cgroup took, by file: of one cgroup; bpf_iter/cgroup is a walk, of all of them at once.",
        "the agent, CLOCK_MONOTONIC",
        ("file",),
        histograms=_file_reads,
        scale=NS_PER_S,
    ),
    Family(
        "nsagent_counter_regressions_total",
        "counter",
        Scope.NODE,
        "How often a counter in a file of a living cgroup fell, as v1's blkio does when a cgroup below is removed, and "
        "cpuacct.usage when it is set to 0. What is exported does not fall: it goes on by what is counted from then on.",
        "the agent",
        ("family",),
        each=_regressions,
    ),
    Family(
        "nsagent_cgroups_skipped_total",
        "counter",
        Scope.NODE,
        "Cgroups that a scrape found and that are neither read nor shown, each once: excluded (--cgroup-exclude), not_included "
        "(--cgroup-include), too_deep (--max-depth), path_too_long (beyond PATH_MAX; it stands for all below). What they use is "
        "in the figures of the cgroups above them.",
        "the agent",
        ("reason",),
        each=_skipped,
    ),
    _family(
        "nsagent_config_last_reload_success",
        "1 where the configuration was good when it was last read, at the start, by SIGHUP or by POST /-/reload; with 0 the one "
        "before is in force.",
        "the agent",
        (),
        _reload_success,
    ),
    _family(
        "nsagent_config_last_reload_success_timestamp_seconds",
        "When the configuration in force was read, since the epoch.",
        "the agent, CLOCK_REALTIME",
        (),
        _reload_time,
    ),
    Family(
        SERIES_DROPPED,
        "counter",
        Scope.NODE,
        "Series not shown because there were more than --max-series: all those of a cgroup or namespace, for the rest of its "
        "life, as many as it had when it was dropped.",
        "the agent",
        ("reason",),
        parts=((("max_series",), lambda _: None),),  # the encoder counts
    ),
    Family(
        SCRAPE_SAMPLES,
        "gauge",
        Scope.NODE,
        "Samples in this exposition, this one included.",
        "the agent",
        parts=(((), lambda _: None),),  # the encoder counts
    ),
)
