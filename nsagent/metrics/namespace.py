"""Families of namespaces. A process counts in its own (innermost) namespace of each kind, so one kind's series add up.

What a namespace's tasks used is settled from the tasks' own counters, see bpf/common.h; without BPF it is sampled from
/proc and approximate, as `nsagent_mode_info` says.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, Final

from nsagent.history import About
from nsagent.metrics.family import NS_PER_S, Each, Family, Scope
from nsagent.namespaces import KINDS
from nsagent.nsfigures import Device
from nsagent.sample import NodeSample

_NS: Final = Scope.NAMESPACE


def _count(sample: NodeSample) -> Each:
    if not sample.has_usage:
        return
    found = Counter(namespace.kind for namespace, usage in sample.namespaces.items() if usage.threads)
    for kind in KINDS:
        if kind in found:  # a kernel without time namespaces has no row of that kind
            yield (kind,), found[kind]


def _created(sample: NodeSample) -> Each:
    """Sum the calls that made namespaces: counted in the kernel, so no event can be missing here."""
    if not sample.syscalls:
        return
    made: Counter[str] = Counter()
    for (syscall, kind, result), count in sample.syscalls.namespace_syscalls.items():
        if result == "ok" and syscall != "setns":
            made[kind] += count
    for kind in KINDS:
        yield (kind,), made[kind]


def _ended(sample: NodeSample) -> Each:
    return (((kind,), sample.history.ended.get(kind, 0)) for kind in KINDS) if sample.history else iter(())


def _joins(sample: NodeSample) -> Each:
    return iter(sample.history.joins.items()) if sample.history and sample.syscalls else iter(())


def _created_at(sample: NodeSample) -> Each:
    for namespace, time_ns in sample.history.created_ns.items() if sample.history else ():
        yield (namespace.kind, str(namespace.inum), str(namespace.id)), time_ns


def _about(sample: NodeSample) -> Each:
    for namespace, about in sample.history.about.items() if sample.history else ():
        yield (namespace.kind, str(namespace.inum), str(namespace.id), *about), 1


def _gone(**values: str) -> Callable[[NodeSample], Each]:
    """Return what yields fields of `namespaces_gone` by kind, with the label value of each; none for a single one."""

    def each(sample: NodeSample) -> Each:
        for kind, used in sample.namespaces_gone.items():
            for value, field in values.items():
                if field not in sample.missing:
                    yield (kind, value) if len(values) > 1 else (kind,), used[field]

    return each


def _read(field: str) -> Callable[[NodeSample], Each]:
    """Return what yields a field of NamespaceFigures; None, of other kinds, is no series."""

    def each(sample: NodeSample) -> Each:
        for namespace, figures in sample.namespace_figures.namespaces.items() if sample.namespace_figures else ():
            if (value := getattr(figures, field)) is not None:
                yield (namespace.kind, str(namespace.inum), str(namespace.id)), value

    return each


def _read_by(field: str) -> Callable[[NodeSample], Each]:
    """Return what yields a field of NamespaceFigures that is a mapping, by its keys."""

    def each(sample: NodeSample) -> Each:
        for namespace, figures in sample.namespace_figures.namespaces.items() if sample.namespace_figures else ():
            if values := getattr(figures, field):
                labels = (namespace.kind, str(namespace.inum), str(namespace.id))
                for key, value in values.items():
                    yield (*labels, key), value

    return each


def _device(field: str) -> Callable[[NodeSample], Each]:
    at, devices = Device._fields.index(field), _read_by("devices")
    return lambda sample: ((labels, device[at]) for labels, device in devices(sample))  # type: ignore[index]


def _limits(sample: NodeSample) -> Each:
    return iter([((kind,), value) for kind, value in sample.namespace_figures.limits.items()] if sample.namespace_figures else ())


def _figure(
    name: str, help_: str, source: str, each: Callable[[NodeSample], Each], *, label: str = "", type_: Any = "gauge"
) -> Family:
    labels = ("kind", "inum", "id", label) if label else ("kind", "inum", "id")
    return Family(f"nsagent_namespace_{name}", type_, Scope.NODE, help_, source, labels, each=each, collector=_collector(source))


def _collector(source: str) -> str:
    return "network" if source.startswith("/proc/PID/net/") else "namespaces"


def _traffic() -> Iterator[Family]:
    for direction in ("receive", "transmit"):
        done = f"{direction}d".replace("transmitd", "transmitted")
        for unit, text in (
            ("bytes", f"Bytes {done} by a network device of the namespace since it was made."),
            ("packets", f"Packets {done} by the device."),
            ("errors", f"Packets not {done} because of an error."),
            ("drops", f"Packets the device or its queue dropped, to be {done}."),
        ):
            each = _device(f"{direction}_{unit}")
            yield _figure(
                f"network_{direction}_{unit}_total", text, "/proc/PID/net/dev of a member", each, label="device", type_="counter"
            )


def _seconds(name: str, help_: str, source: str, value: str) -> Family:
    return Family(f"nsagent_namespace_{name}", "counter", _NS, help_, source, parts=(((), value),), scale=NS_PER_S)


def _split(name: str, label: str, help_: str, source: str, *, gauge: bool = False, **values: str) -> Family:
    return Family(
        f"nsagent_namespace_{name}",
        "gauge" if gauge else "counter",
        _NS,
        help_,
        source,
        (label,),
        tuple(((value,), field) for value, field in values.items()),
    )


def _plain(name: str, help_: str, source: str, value: str, *, gauge: bool = False) -> Family:
    return Family(f"nsagent_namespace_{name}", "gauge" if gauge else "counter", _NS, help_, source, parts=(((), value),))


FAMILIES: Final[tuple[Family, ...]] = (
    _seconds(
        "cpu_seconds_total",
        "CPU time the tasks of the namespace used while they were in it, from the scheduler's own count.",
        "BPF: task_struct se.sum_exec_runtime; /proc: stat utime + stime",
        "cpu_ns",
    ),
    Family(
        "nsagent_namespace_cpu_mode_seconds_total",
        "counter",
        _NS,
        "CPU time by mode, as the timer tick or context tracking splits it: their sum may differ from cpu_seconds.",
        "BPF: task_struct utime, stime; /proc: stat",
        ("mode",),
        ((("user",), "user_ns"), (("system",), "system_ns")),
        scale=NS_PER_S,
    ),
    _seconds(
        "run_queue_seconds_total",
        "Time tasks were runnable and waited for a CPU.",
        "BPF: sched_info.run_delay; /proc: schedstat. Needs CONFIG_SCHED_INFO",
        "run_queue_ns",
    ),
    _seconds(
        "io_delay_seconds_total",
        "Time tasks waited for block IO to complete; absent unless the kernel accounts it (sysctl kernel.task_delayacct=1).",
        "BPF: delays.blkio_delay; /proc: stat delayacct_blkio_ticks",
        "io_delay_ns",
    ),
    _split(
        "memory_rss_bytes",
        "type",
        "Resident memory of the processes in the namespace, each address space once; pages that several map count in each.",
        "BPF: mm_struct rss_stat; /proc: status RssAnon, RssFile, RssShmem",
        gauge=True,
        anon="rss_anon_bytes",
        file="rss_file_bytes",
        shmem="rss_shmem_bytes",
    ),
    _plain(
        "memory_swap_bytes",
        "Anonymous memory of the processes in the namespace that is swapped out.",
        "BPF: mm_struct rss_stat; /proc: status VmSwap",
        "swap_bytes",
        gauge=True,
    ),
    _plain(
        "memory_pagetables_bytes",
        "Page tables of the processes in the namespace.",
        "BPF: mm_struct pgtables_bytes; /proc: status VmPTE",
        "pagetables_bytes",
        gauge=True,
    ),
    _split(
        "storage_bytes_total",
        "operation",
        "Bytes that tasks caused to be read from or written to storage; writes are charged when a page is dirtied.",
        "BPF: task_struct ioac.read_bytes, write_bytes; /proc: io. Needs CONFIG_TASK_IO_ACCOUNTING",
        read="read_bytes",
        write="write_bytes",
    ),
    _plain(
        "cancelled_write_bytes_total",
        "Bytes counted as written that never reached storage, because the dirty pages were dropped (a truncated file).",
        "BPF: task_struct ioac.cancelled_write_bytes; /proc: io",
        "cancelled_write_bytes",
    ),
    _split(
        "io_chars_total",
        "operation",
        "Bytes passed through read and write calls, whatever was behind the descriptor (cache, pipe, terminal).",
        "BPF: task_struct ioac.rchar, wchar; /proc: io. Needs CONFIG_TASK_XACCT",
        read="read_chars",
        write="write_chars",
    ),
    _split(
        "io_syscalls_total",
        "operation",
        "Read and write calls.",
        "BPF: task_struct ioac.syscr, syscw; /proc: io. Needs CONFIG_TASK_XACCT",
        read="read_syscalls",
        write="write_syscalls",
    ),
    _split(
        "page_faults_total",
        "type",
        "Page faults: minor ones needed no IO, major ones did.",
        "BPF: task_struct min_flt, maj_flt; /proc: stat",
        minor="minor_faults",
        major="major_faults",
    ),
    _split(
        "context_switches_total",
        "type",
        "Context switches: voluntary ones by tasks that had to wait, involuntary ones of tasks that could have gone on.",
        "BPF: task_struct nvcsw, nivcsw; /proc: status",
        voluntary="voluntary_switches",
        involuntary="involuntary_switches",
    ),
    _plain("processes", "Processes in the namespace, zombies included.", "BPF: bpf_iter/task; /proc", "processes", gauge=True),
    _split(
        "threads",
        "state",
        "Threads in the namespace, by state.",
        "BPF: task_struct __state, exit_state; /proc: stat",
        gauge=True,
        running="running",
        sleeping="sleeping",
        disk_sleep="disk_sleep",
        stopped="stopped",
        zombie="zombie",
        idle="idle",
    ),
    _plain(
        "processes_created_total",
        "Processes born in the namespace: each fork, vfork and clone that made one, however short it lived.",
        "BPF: tp_btf task_newtask; without BPF absent",
        "processes_created",
    ),
    _plain(
        "processes_exited_total",
        "Processes that ended in the namespace.",
        "BPF: tp_btf sched_process_exit; without BPF absent",
        "processes_exited",
    ),
    Family(
        "nsagent_namespaces",
        "gauge",
        Scope.NODE,
        "Namespaces of a kind that have at least one task; those that only a mount or a descriptor keeps are not in it.",
        "BPF: bpf_iter/task; /proc: PID/ns",
        ("kind",),
        each=_count,
    ),
    Family(
        "nsagent_namespaces_created_total",
        "counter",
        Scope.NODE,
        "Namespaces made by clone, clone3 and unshare since the programs were loaded.",
        "BPF: the calls that asked for a new namespace and succeeded",
        ("kind",),
        each=_created,
    ),
    Family(
        "nsagent_namespaces_ended_total",
        "counter",
        Scope.NODE,
        "Times that the last task of a namespace was gone; a mount or a descriptor may keep it, and it be entered again.",
        "BPF: rows of contexts; /proc: PID/ns",
        ("kind",),
        each=_ended,
    ),
    Family(
        "nsagent_namespace_joins_total",
        "counter",
        Scope.NODE,
        "Moves into an existing namespace: to_host from a container into an initial namespace (an escape looks like that), "
        "into_container out of an initial one, sibling between others.",
        "BPF: events of setns, and of changes that no traced call explains; those lost are not in it",
        ("kind", "crossing"),
        each=_joins,
    ),
    Family(
        "nsagent_namespace_created_timestamp_seconds",
        "gauge",
        Scope.NODE,
        "When the namespace was made, in seconds since the epoch; absent of those whose making was not seen.",
        "BPF: event of clone, clone3 or unshare",
        ("kind", "inum", "id"),
        each=_created_at,
        scale=NS_PER_S,
    ),
    Family(
        "nsagent_namespace_info",
        "info",
        Scope.NODE,
        "What names a namespace: whose it is, where it is mounted, its oldest process and that one's cgroup, and who made it. "
        "Renewed every 15 s.",
        "ioctl_ns(2); /proc: PID/ns, comm, cgroup, mountinfo; BPF: events",
        ("kind", "inum", "id", *About._fields),
        each=_about,
    ),
    Family(
        "nsagent_namespace_ended_cpu_seconds_total",
        "counter",
        Scope.NODE,
        "CPU time used in namespaces that ended and whose own series are gone: with those, nothing of a kind's sum is lost.",
        "BPF: rows of contexts; /proc: stat",
        ("kind",),
        each=_gone(cpu="cpu_ns"),
        scale=NS_PER_S,
    ),
    Family(
        "nsagent_namespace_ended_storage_bytes_total",
        "counter",
        Scope.NODE,
        "Storage IO in namespaces that ended and whose own series are gone.",
        "BPF: rows of contexts; /proc: io",
        ("kind", "operation"),
        each=_gone(read="read_bytes", write="write_bytes"),
    ),
    Family(
        "nsagent_namespace_ended_page_faults_total",
        "counter",
        Scope.NODE,
        "Page faults in namespaces that ended and whose own series are gone.",
        "BPF: rows of contexts; /proc: stat",
        ("kind", "type"),
        each=_gone(minor="minor_faults", major="major_faults"),
    ),
    *_traffic(),
    _figure(
        "tcp_retransmitted_segments_total",
        "TCP segments that were sent again, IPv4 and IPv6.",
        "/proc/PID/net/snmp of a member",
        _read("tcp_retransmitted_segments"),
        type_="counter",
    ),
    _figure(
        "sockets",
        "Internet sockets in use by protocol (tcp, udp, udplite, raw; with a 6 at the end those of IPv6); none in TIME-WAIT.",
        "/proc/PID/net/sockstat, sockstat6 of a member",
        _read_by("sockets"),
        label="protocol",
    ),
    _figure(
        "conntrack_entries",
        "Connections tracked in a net namespace; absent without connection tracking.",
        "/proc/PID/net/stat/nf_conntrack of a member",
        _read("conntrack_entries"),
    ),
    _figure(
        "mounts",
        "Mounts in a mount namespace, as far as its oldest member can reach them from its root.",
        "lines of /proc/PID/mountinfo of a member",
        _read("mounts"),
    ),
    _figure(
        "highest_pid",
        "Largest process id in use in a PID namespace, as that namespace counts; processes below it have a number in it too, "
        "threads are not looked at. Renewed every 15 s.",
        "NSpid of /proc/PID/status of all processes",
        _read("highest_pid"),
    ),
    _figure(
        "userns_depth",
        "User namespaces above a user namespace: 0 of the first. The kernel allows 32.",
        "ioctl_ns(2) NS_GET_PARENT",
        _read("userns_depth"),
    ),
    _figure(
        "clock_offset_seconds",
        "What a time namespace adds to a clock (monotonic, boottime).",
        "/proc/PID/timens_offsets of a member",
        _read_by("clock_offsets"),
        label="clock",
    ),
    Family(
        "nsagent_namespace_limit",
        "gauge",
        Scope.NODE,
        "How many namespaces of a kind a user may make, in the user namespace of the agent.",
        "/proc/sys/user/max_*_namespaces",
        ("kind",),
        each=_limits,
        collector="namespaces",
    ),
    Family(
        "nsagent_accounting_error_ratio",
        "gauge",
        Scope.NODE,
        "How much more CPU time than the kernel counted for the node was added to the namespaces of a kind (below 0: less), as a "
        "part of it, since the sample before; absent until a second of it was used, or more where reading took long, and without "
        "BPF.",
        "pid namespaces, those gone with them, against the root's cpuacct.usage, else /proc/stat (by tick, interrupts in it)",
        ("resource",),
        parts=((("cpu",), lambda sample: sample.cpu_error),),
    ),
    Family(
        "nsagent_namespace_history_records",
        "gauge",
        Scope.NODE,
        "Namespaces whose history the agent remembers, the ended ones included.",
        "the agent",
        parts=(((), lambda sample: sample.history.records if sample.history else None),),
    ),
    Family(
        "nsagent_namespace_history_dropped_total",
        "counter",
        Scope.NODE,
        "Histories forgotten because there were too many; of namespaces that ended first.",
        "the agent",
        parts=(((), lambda sample: sample.history.evicted if sample.history else None),),
    ),
)
