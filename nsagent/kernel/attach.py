"""Bring the programs into the kernel, or adopt those an earlier agent left there, and speak to them.

`attach` is cold (compile, write the object, then load it like any other), warm (load the cached object) or an adoption (the
pins hold the same programs already: the kernel went on counting). What the words of a row mean is in `nsagent.kernel.abi`.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import struct
import time
from collections.abc import Iterator, Sequence

from nsagent.errors import LoadError, NsagentError, UnsupportedError
from nsagent.kernel import abi, bpf, build, create, objects
from nsagent.kernel.cgroups import CgroupRing
from nsagent.kernel.lane import CgroupLane
from nsagent.kernel.maps import possible_cpus
from nsagent.kernel.ring import RingBuffer

log = logging.getLogger(__name__)

ROWS = 10240  # contexts: 3.6 MB
RING_BYTES = 1 << 20  # 3,600 events
_WORD = struct.Struct("=Q")
_BEFORE_ALL = (1 << 64) - 1
_CREATED = abi.KEY_WORDS + abi.ROW_FIELDS.index("processes_created")
# Which words of a row a missing feature leaves empty.
_FIELDS = {
    "run_queue": ("run_queue_ns",),
    "io_delay": ("io_delay_ns",),
    "storage": ("read_bytes", "write_bytes", "cancelled_write_bytes"),
    "io_chars": ("read_chars", "write_chars", "read_syscalls", "write_syscalls"),
    "rss": ("rss_anon_bytes", "rss_file_bytes", "rss_shmem_bytes", "swap_bytes", "pagetables_bytes"),
    "pagetables": ("pagetables_bytes",),
    "oom_kills": ("oom_kills_memcg", "oom_kills_unknown"),
}
# What goes without where the verifier refuses it: how its programs' names begin, their group, the feature.
_OPTIONAL = (("on_cgroup_", "cgroups", "cgroup_ends"), ("on_oom_", "oom", "oom_kills"))


def find_object(
    cache_dir: str, subsystem: str | None, *, rows: int = ROWS, ring_bytes: int = RING_BYTES, object_dir: str = ""
) -> tuple[objects.Object, bool]:
    """Return the object for this kernel, and whether it was there already: in `object_dir`, made elsewhere, or in the cache.

    Raises as `build.compile_object`.
    """
    build_id = objects.kernel_build_id()
    key = build.source_key(build.read_sources(), subsystem)
    for directory in filter(None, (object_dir, cache_dir)):
        path = build.cached_path(directory, build_id, key)
        try:
            found = objects.read_object(path)
            if found.key == (key, build_id):
                return _sized(found, rows, ring_bytes), True
            log.warning("event=object_refused path=%s reason=it is for other sources or another kernel", path)
        except FileNotFoundError:
            pass
        except NsagentError as error:
            log.warning("event=object_refused path=%s reason=%s", path, error)
    document = build.make_object(build_id, subsystem, log_dir=cache_dir, rows=rows, ring_bytes=ring_bytes)
    text = build.store(build.cached_path(cache_dir, build_id, key), document)
    return objects.parse_object(text, "the object just compiled"), False


def _sized(found: objects.Object, rows: int, ring_bytes: int) -> objects.Object:
    """Sizes are options of the agent and no part of the object's key."""
    specs = abi.map_specs(rows, ring_bytes)
    for name in ("ids", "rows", "spare", "events"):
        found.maps[name] = dataclasses.replace(found.maps[name], max_entries=specs[name]["max_entries"])
    return found


def attach(
    pin_dir: str,
    cache_dir: str,
    *,
    subsystem: str | None,
    trace: bool = True,
    rows: int = ROWS,
    ring_bytes: int = RING_BYTES,
    object_dir: str = "",
    rate: int = 0,
    as_found: bool = False,
) -> Attached:
    """Load or adopt the programs under `pin_dir`.

    `subsystem` is the v1 controller whose hierarchy's cgroups are charged (``cpuacct``), None for the v2 tree. `object_dir` may
    hold an object made elsewhere. `rate` is how many events a second one cgroup may have, 0 any number.

    Programs of another version, or with tracing where none is wanted or the other way round, are replaced and what was
    counted stays: the maps go on, as long as their layout and the hierarchy are the same. Both sets run for some
    milliseconds meanwhile, and each birth, exit, free and call is counted by one of them: nothing is lost, nothing is
    counted twice. With `as_found` tracing that is on stays on, and filters stay: for a reader outside an agent's life.

    Raises:
        UnsupportedError: no BTF, no bcc to compile with, no bpffs, or a kernel without what the programs stand on.
        AccessError: no CAP_BPF and CAP_PERFMON.
        LoadError: the compiler or the verifier refused.
    """
    found, cached = find_object(cache_dir, subsystem, rows=rows, ring_bytes=ring_bytes, object_dir=object_dir)
    groups = {"account", "cgroups", "oom"}
    if trace:
        groups.add("trace_functions" if _fentry_works(found) else "trace_tracepoints")

    def load() -> objects.Loaded:
        return objects.load(
            found,
            pin_dir,
            groups=groups,
            before_attach=_before_attach(rows, trace),
            after_attach=_after_attach,
            carry_on=_carry_on(trace),
            lineage=f"cgroups of {subsystem}",
            exact=not as_found,
        )

    try:
        while True:
            try:
                loaded = load()
                break
            except LoadError as error:
                refused = [row for row in _OPTIONAL if row[0] in str(error) and row[1] in groups]
                if not refused:
                    raise
                ((_, group, feature),) = refused
                log.warning("event=degraded feature=%s reason=%s", feature, error)
                found.missing[feature] = str(error)
                groups.remove(group)
    except LoadError as error:
        if error.log and (path := build.keep_log(cache_dir, "verifier.log", error.log)):
            error.hint = f"{error.hint}; the verifier's text is in {path}"
        raise
    attached = Attached(loaded, found, warm=cached, adopted=loaded.adopted)
    if not as_found:
        attached.trace_all(False)  # an agent that was killed may have left it on, and its filters
        attached.filter_events(rate=rate)
    attached.find_cpu_offsets()
    if not attached.adopted:
        attached.settle()  # everybody alive gets a context, so that their next call has a "before"
    return attached


def _fentry_works(found: objects.Object) -> bool:
    """Tell whether this kernel lets a program be attached to the traced calls' own functions, by doing it once.

    It may lack them (no CONFIG_DYNAMIC_FTRACE_WITH_DIRECT_CALLS, no BTF of the functions) or refuse (locked-down ftrace).
    """
    program = next((program for program in found.programs if program.name == "fexit_setns"), None)
    if program is None:
        return False
    nothing = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 0, 0x95, 0, 0, 0)  # r0 = 0; exit
    try:
        trial = create.load_program(dataclasses.replace(program, insns=nothing, relocations=()), {})
    except NsagentError as error:
        log.debug("event=no_fentry reason=%s", error)
        return False
    try:
        os.close(create.attach(program, trial))
    except NsagentError as error:
        log.debug("event=no_fentry reason=%s", error)
        return False
    finally:
        os.close(trial)
    return True


def _before_attach(rows: int, trace: bool) -> objects.Step:
    def set_up(maps: objects.Maps) -> None:
        _put(maps, "t0", _BEFORE_ALL)  # until every program is attached, whoever is met was alive at load
        _put(maps, "rows", rows)
        _carry_on(trace)(maps)

    return set_up


def _carry_on(trace: bool) -> objects.Step:
    """Of maps that have a past only what may be another now. t0 stays: whoever was born since is accounted from birth."""

    def set_up(maps: objects.Maps) -> None:
        _put(maps, "page", os.sysconf("SC_PAGE_SIZE"))
        _put(maps, "trace", int(trace))

    return set_up


def _after_attach(maps: objects.Maps) -> None:
    _put(maps, "t0", time.clock_gettime_ns(time.CLOCK_MONOTONIC))


def _put(maps: objects.Maps, element: str, value: int) -> None:
    maps["config"].update(struct.pack("=I", abi.CONFIG.index(element)), _WORD.pack(value))


class Attached:
    """The programs in the kernel. One caller at a time; `close` leaves them running, `unload` ends them.

    `traced_by`: ``functions`` (fentry: costs only the traced calls), ``tracepoints`` (costs every call of the node) or empty.
    `warm`: no compiler was needed; `adopted`: they were running already; `carried`: they replaced others and count on.
    `missing` names each feature this kernel lacks, with the reason, `missing_fields` the words of a row that mean nothing here.
    """

    def __init__(self, loaded: objects.Loaded, found: objects.Object, *, warm: bool, adopted: bool) -> None:
        self._loaded = loaded
        self._statistics: int | None = None
        self._maps = loaded.maps
        self.warm = warm
        self.adopted = adopted
        self.carried = loaded.carried
        self.compiler = found.compiler
        self.missing = dict(found.missing)
        self.traced_by = "functions" if "fexit_setns" in loaded.links else "tracepoints" if "leave_setns" in loaded.links else ""
        self.traces = bool(self.traced_by)  # the maps stay when tracing is switched off
        self.epoch = self._config("epoch")

    @property
    def missing_fields(self) -> frozenset[str]:
        fields = {field for feature in self.missing for field in _FIELDS.get(feature, ())}
        if not _delay_accounting():
            fields.add("io_delay_ns")
        return frozenset(fields)

    def _config(self, element: str) -> int:
        value = self._maps["config"].lookup(struct.pack("=I", abi.CONFIG.index(element)))
        return int(_WORD.unpack(value)[0]) if value else 0

    def find_cpu_offsets(self) -> None:
        """Tell the programs where each CPU's per-CPU memory is; without it RSS lacks what the CPUs have not folded in."""
        cpus = possible_cpus()
        if cpus > abi.MAX_CPUS:
            self.missing["rss_exact"] = f"more than {abi.MAX_CPUS} CPUs: summing each one's part would make a pass slow"
            return
        try:
            for cpu in sorted(os.sched_getaffinity(0) | set(_online_cpus())):
                bpf.prog_test_run(self._loaded.programs["find_cpu_offset"], _WORD.pack(cpu), cpu=cpu)
        except OSError as error:
            self.missing["rss_exact"] = f"per-CPU memory cannot be found: {error.strerror}"
            return
        _put(self._maps, "cpus", cpus)

    def settle(self) -> None:
        """Walk all tasks once: bring every account up to date and sum the gauges anew. 45 us for 170 tasks, 4 ms for 5,000."""
        self.epoch += 1
        _put(self._maps, "epoch", self.epoch)
        self._loaded.iterate("on_pass")

    def rows(self) -> Iterator[tuple[int, ...]]:
        """Yield each row that was ever used, by index from 0; a row given back has cgroup and namespaces all 0."""
        return abi.ROW.iter_unpack(self._maps["rows"].read_array(0, self._config("next_row") + 1))

    def created(self) -> Iterator[tuple[int, int]]:
        """Yield (cgroup, processes created in it) of each row, as `rows` does; 2 of its 46 words, and a tenth of its time."""
        step = abi.ROW.size // _WORD.size
        count = self._config("next_row") + 1
        with memoryview(self._maps["rows"].mmap(count)) as memory, memory.cast("Q") as words:
            end = count * step
            return zip(words[:end:step].tolist(), words[_CREATED:end:step].tolist(), strict=True)

    @property
    def capacity(self) -> int:
        """How many contexts there are rows for."""
        return self._maps["rows"].max_entries

    def drop_key(self, row: int, key: Sequence[int]) -> None:
        """Let nobody find this row any more: the next task in its context gets a new one."""
        packed = struct.pack(f"={abi.KEY_WORDS}Q", *key)
        if (now := self._maps["ids"].lookup(packed)) and _WORD.unpack(now)[0] == row:
            self._maps["ids"].delete(packed)

    def fold(self, row: int, key: Sequence[int]) -> bool:
        """Add what `row` holds to the row of context `key` and give it back, in one step of the kernel's."""
        context = struct.pack(f"={1 + abi.KEY_WORDS}Q", row, *key)
        try:
            return bool(bpf.prog_test_run(self._loaded.programs["fold_row"], context))
        except OSError as error:
            raise bpf.translate(error, "fold a row") from error

    def statistic(self, name: str) -> int:
        """One of `abi.STATS`."""
        value = self._maps["stats"].lookup(struct.pack("=I", abi.STATS.index(name)))
        return int(_WORD.unpack(value)[0]) if value else 0

    def syscall_cells(self) -> list[int]:
        """Calls, [syscall][result]; empty where nothing is traced."""
        return self._cells("syscalls")

    def namespace_syscall_cells(self) -> list[int]:
        """Calls by requested kind, [syscall][kind][result]; empty where nothing is traced."""
        return self._cells("namespace_syscalls")

    def _cells(self, name: str) -> list[int]:
        return memoryview(self._maps[name].read_array()).cast("Q").tolist() if self.traces else []

    def ring(self) -> RingBuffer | None:
        """The ring buffer of events, for its one reader; None where nothing is traced."""
        return RingBuffer(self._maps["events"]) if self.traces else None

    def cgroup_ring(self) -> CgroupRing | None:
        """The births and ends of cgroups, for their one reader; None where they are not told."""
        return CgroupRing(self._maps["cgroup_events"]) if "on_cgroup_rmdir" in self._loaded.links else None

    def trace_all(self, on: bool) -> None:
        """Have an event for every call, forks that change nothing included."""
        _put(self._maps, "all", int(on))

    def filter_events(self, *, kinds: int = 0, failed: int = 0, pid: int = 0, cgroup: int = 0, rate: int = 0) -> None:
        """Have the kernel write only these events; 0 asks for any, and the counters count all.

        `kinds`: CLONE_NEW* flags asked for or changed; `failed`: failures alone; `pid`: a process and those below it (16 deep);
        `cgroup`: an accounting cgroup's id and those below it; `rate`: at most so many a second from one cgroup.
        """
        for element, value in (("kinds", kinds), ("failed", failed), ("pid", pid), ("cgroup", cgroup), ("rate", rate)):
            _put(self._maps, element, value)

    def lane(self) -> CgroupLane | None:
        """What walks the cgroups of a hierarchy; None where this kernel has no bpf_iter/cgroup. For the caller to close."""
        program = self._loaded.programs.get("on_cgroup")
        return CgroupLane(program, self._maps) if program is not None else None

    def status(self) -> objects.Status:
        """Programs, maps, their memory and pins."""
        return self._loaded.status()

    def map_status(self) -> tuple[objects.MapStatus, ...]:
        """The maps and their memory."""
        return self._loaded.map_status()

    def keep_runs(self) -> None:
        """Have `runs` count from now on until this is closed, at a cost to each program of the host.

        Raises AccessError, UnsupportedError: the kernel refuses.
        """
        try:
            self._statistics = bpf.enable_stats()
        except OSError as exc:
            raise bpf.translate(exc, "statistics of programs") from exc

    def runs(self) -> dict[str, tuple[int, int]]:
        """How often each program has run and for how long, ns; nothing where nobody asked for it."""
        return {} if self._statistics is None else self._loaded.runs()

    def _forget_runs(self) -> None:
        if self._statistics is not None:
            os.close(self._statistics)
            self._statistics = None

    def close(self) -> None:
        """Let go; the pins keep the kernel counting."""
        self._forget_runs()
        self._loaded.close()

    def unload(self) -> None:
        """End the programs and remove the pins."""
        self._forget_runs()
        self._loaded.unload()


def _delay_accounting() -> bool:
    """Since Linux kernel commit 0cd7c741f01d ("delayacct: Add sysctl to enable at runtime") (in v5.14) off by default."""
    try:
        with open("/proc/sys/kernel/task_delayacct", encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False


def _online_cpus(path: str = "/sys/devices/system/cpu/online") -> list[int]:
    try:
        with open(path, encoding="ascii") as file:
            ranges = file.read().strip().split(",")
    except OSError as error:
        raise UnsupportedError("sysfs", f"{path}: {error.strerror}") from error
    cpus: list[int] = []
    for part in ranges:
        first, _, last = part.partition("-")
        cpus += range(int(first), int(last or first) + 1)
    return cpus
