"""Put an object into the kernel: maps, programs, links, pins. What is pinned goes on counting when nobody runs.

    load                                        what a crash leaves
    1  lock <pin_dir>                           nothing
    2  maps and programs, pinned in new/        new/, which the next load removes; nothing is attached
    3  before_attach(maps)
    4  links, in the object's order             new/ with programs that run and that nobody reads, until the next load
    5  after_attach(maps)
    6  swap new/ and abi<N>/                    complete pins, which the next agent adopts; new/ now has the old ones
    7  remove new/                              as above: the next load or adoption ends what runs a second time

An upgrade keeps the maps, and so what was counted: the new programs get them instead of new ones (`carry_on`). From 4 to 7 both
sets run on the same maps, so programs that are carried on must add nothing the second time: see tell_once in bpf/account.c.
Then nothing is lost and nothing is counted twice.

A program's bytes depend on the kernel build (BTF ids) and on nothing else; descriptors are filled in here.
Sources: include/uapi/linux/bpf.h, kernel/bpf/syscall.c, kernel/bpf/bpf_iter.c, kernel/bpf/inode.c.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import struct
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final

from nsagent.errors import LoadError, NsagentError
from nsagent.kernel import bpf, create, pins
from nsagent.kernel.maps import Map
from nsagent.kernel.objfile import (
    META,
    MapSpec,
    Object,
    ObjectKey,
    ProgramSpec,
    kernel_build_id,
    parse_object,
    read_object,
)
from nsagent.kernel.pins import DEFAULT_PIN_DIR, Lock, live_dir, locked, own, owner, unload

__all__ = [
    "DEFAULT_PIN_DIR",
    "Loaded",
    "Lock",
    "Map",
    "Object",
    "ObjectKey",
    "adopt",
    "kernel_build_id",
    "load",
    "locked",
    "own",
    "owner",
    "parse_object",
    "read_object",
    "unload",
]

log = logging.getLogger(__name__)

Maps = Mapping[str, Map]
Step = Callable[[Maps], None]

# source, build id, its length, maps, programs, links, CLOCK_MONOTONIC ns of the load, hash of the lineage
_META: Final = struct.Struct("=32s20sIIII4xQ16s")


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """A loaded program. Run figures are None while the kernel does not keep them (kernel.bpf_stats_enabled=0)."""

    name: str
    attach: str
    run_cnt: int | None
    run_time_ns: int | None
    recursion_misses: int
    verified_insns: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class MapStatus:
    """A map; `entries` is None where counting has no meaning or no cheap way."""

    name: str
    type: str
    entries: int | None
    max_entries: int
    memory_bytes: int | None


@dataclass(frozen=True, slots=True)
class Status:
    """All that one pin directory keeps in the kernel; `age_s` is the time since the load."""

    pin_dir: str
    source: str
    build_id: str
    age_s: float
    programs: tuple[ProgramStatus, ...]
    maps: tuple[MapStatus, ...]
    pins: tuple[str, ...]


class Loaded:
    """Descriptors of everything an object became. Closing them ends nothing: the pins hold it.

    `adopted` tells that this call found it loaded, `carried` that it replaced other programs and kept their maps.
    `loaded_ns` is the CLOCK_MONOTONIC time of the load.
    """

    def __init__(self, pin_dir: str) -> None:
        self.pin_dir = pin_dir
        self.maps: dict[str, Map] = {}
        self.programs: dict[str, int] = {}
        self.links: dict[str, int] = {}
        self.object_key = ObjectKey("", "")
        self.loaded_ns = 0
        self.lineage = bytes(16)
        self.adopted = False
        self.carried = False

    def iterate(self, name: str) -> bytes:
        """Run the iterator program `name` once over everything, and return what it printed.

        Raises:
            LoadError: the kernel broke the walk off.
        """
        try:
            fd = bpf.iter_create(self.links[name])
        except OSError as exc:
            raise bpf.translate(exc, f"iterator {name}") from exc
        printed: list[bytes] = []
        try:
            while True:
                try:
                    chunk = os.read(fd, 1 << 16)
                except BlockingIOError:  # after a million objects the kernel lets others run: read on (bpf_seq_read)
                    continue
                if not chunk:
                    return b"".join(printed)
                printed.append(chunk)
        except OSError as exc:
            raise LoadError(f"iterator {name}: {exc.strerror}") from exc
        finally:
            os.close(fd)

    def status(self) -> Status:
        """Describe programs, maps and pins as the kernel has them now."""
        try:
            programs = tuple(self._program_status(name, fd) for name, fd in self.programs.items())
            live = live_dir(self.pin_dir)
            paths = tuple(f"{live}/{name}" for name in sorted(os.listdir(live))) if os.path.isdir(live) else ()
        except OSError as exc:
            raise bpf.translate(exc, "status of the loaded programs") from exc
        age_s = (time.clock_gettime_ns(time.CLOCK_MONOTONIC) - self.loaded_ns) / 1e9
        return Status(self.pin_dir, *self.object_key, age_s, programs, self.map_status(), paths)

    def map_status(self) -> tuple[MapStatus, ...]:
        """Describe the maps alone, for each scrape: some 15 us one that is counted."""
        try:
            return tuple(MapStatus(m.name, m.type, m.entries(), m.max_entries, m.memory_bytes()) for m in self.maps.values())
        except OSError as exc:
            raise bpf.translate(exc, "status of the maps") from exc

    def runs(self) -> dict[str, tuple[int, int]]:
        """Return how often each program has run and for how long, ns, while the kernel kept such figures."""
        try:
            infos = {name: bpf.prog_info(fd) for name, fd in self.programs.items()}
        except OSError as exc:
            raise bpf.translate(exc, "status of the loaded programs") from exc
        return {name: (info.run_cnt, info.run_time_ns) for name, info in infos.items()}

    def _program_status(self, name: str, fd: int) -> ProgramStatus:
        info = bpf.prog_info(fd)
        attach = _describe_link(self.links[name]) if name in self.links else "none"
        counted = info.run_cnt > 0 or _stats_enabled()
        return ProgramStatus(
            name,
            attach,
            info.run_cnt if counted else None,
            info.run_time_ns if counted else None,
            info.recursion_misses,
            info.verified_insns,
            bpf.memlock_bytes(fd),
        )

    def close(self) -> None:
        """Close all descriptors; harmless twice."""
        for one in self.maps.values():
            one.close()
        for fd in (*self.programs.values(), *self.links.values()):
            os.close(fd)
        self.maps, self.programs, self.links = {}, {}, {}

    def unload(self) -> bool:
        """Close, and remove the pins: the programs end as soon as no other process has them open."""
        self.close()
        return unload(self.pin_dir)


def load(
    obj: Object,
    pin_dir: str = DEFAULT_PIN_DIR,
    *,
    groups: Collection[str] | None = None,
    before_attach: Step | None = None,
    after_attach: Step | None = None,
    carry_on: Step | None = None,
    lineage: str = "",
    exact: bool = False,
) -> Loaded:
    """Load the programs of `groups` (default: all), or adopt them if this very object is loaded with all of these.

    Pins of another object, or that lack one of the programs, are replaced: the new programs run before the old end. With
    `exact` those that have more programs are replaced too. With `carry_on` the new programs take over the maps there are,
    if all of them that hold something are of the layout this object states and the load before was of the same `lineage` (a word
    for what rows mean beside their layout); `carry_on(maps)` is then called in place of both other callbacks.
    On any failure, the callbacks' included, everything this call made is removed, and what was there stays.

    Raises:
        LoadError: the object is for another kernel build; the verifier refused a program (`log` has its words).
        AccessError: no CAP_BPF, CAP_PERFMON.
        UnsupportedError: this kernel lacks a type of map or program, a tracepoint, or there is no bpffs or tracefs.
        NsagentError: somebody else has been loading for too long.
    """
    running = kernel_build_id()
    if obj.key.build_id != running:
        raise LoadError(
            f"the object is for the kernel with build id {obj.key.build_id}, this one has {running}",
            hint="compile it again: BTF ids are valid for one build of the kernel only",
        )
    programs = [program for program in obj.programs if groups is None or program.group in groups]
    names, tag = {program.name for program in programs}, hashlib.sha256(lineage.encode()).digest()[:16]
    with locked(pin_dir):
        _sweep(pin_dir)
        existing = _open(pin_dir)
        maps, carried = _wanted_maps(obj, programs), {}
        if existing is not None:
            there = existing.programs.keys() | existing.links.keys()
            if existing.object_key == obj.key and (names == there if exact else names <= there):
                return existing
            if carry_on and existing.lineage == tag:
                carried = _carry(existing, obj.maps, maps)
        try:
            before, after = (carry_on, None) if carried else (before_attach, after_attach)
            loaded = _build(obj.key, maps, programs, pin_dir, lineage=tag, carried=carried, before=before, after=after)
        except BaseException:
            if existing is not None:
                existing.close()
            raise
        if existing is not None:
            existing.maps = {name: one for name, one in existing.maps.items() if name not in carried}
            existing.close()
    log.info(
        "event=loaded pin_dir=%s programs=%d source=%.12s carried_maps=%d",
        pin_dir,
        len(loaded.programs),
        obj.key.source,
        len(carried),
    )
    return loaded


def adopt(pin_dir: str = DEFAULT_PIN_DIR) -> Loaded | None:
    """Open what is loaded under `pin_dir`; None where there is nothing, or not all of it.

    Raises:
        AccessError: the pins may not be looked for, or not be opened.
        NsagentError: a load has been going on for too long.
    """
    if not pins.exists(pin_dir):
        return None
    with locked(pin_dir):
        _sweep(pin_dir)
        return _open(pin_dir)


def _sweep(pin_dir: str) -> None:
    """End what a loader left that died in the middle. The caller has the load lock."""
    new = f"{pin_dir}/new"
    try:
        if pins.remove_dir(new):
            log.warning("event=leftover_removed path=%s", new)
    except OSError as exc:
        raise bpf.translate(exc, f"pins in {pin_dir}") from exc


def _carry(existing: Loaded, specs: Mapping[str, MapSpec], wanted: Collection[str]) -> dict[str, Map]:
    """Return the maps that go on, with those that no program wants now but one may want later; none where a layout differs.

    All or none: one map has the other's indexes. But for ring buffers, which hold no totals: a wanted one of another size is
    made anew, and one that is not wanted goes.
    """
    carried: dict[str, Map] = {}
    for name, one in existing.maps.items():
        spec = specs.get(name)
        if spec is None:
            continue
        theirs = (one.type, one.key_size, one.value_size, one.max_entries, one.flags)
        ours = (spec.type, spec.key_size, spec.value_size, spec.max_entries, sum(bpf.MAP_FLAGS[flag] for flag in set(spec.flags)))
        if theirs == ours and (spec.type != "ringbuf" or name in wanted):
            carried[name] = one
        elif theirs != ours and spec.type != "ringbuf":
            log.warning("event=counters_restart reason=map %s was %s, is %s", name, theirs, ours)
            return {}
    return carried


def _wanted_maps(obj: Object, programs: list[ProgramSpec]) -> dict[str, MapSpec]:
    """Leave out the maps that only programs of other groups use: a ring buffer takes memory."""
    used = {name for program in programs for _, name in program.relocations}
    others = {name for program in obj.programs for _, name in program.relocations} - used
    return {name: spec for name, spec in obj.maps.items() if name not in others}


def _build(
    key: ObjectKey,
    maps: dict[str, MapSpec],
    programs: list[ProgramSpec],
    pin_dir: str,
    *,
    lineage: bytes,
    carried: dict[str, Map],
    before: Step | None,
    after: Step | None,
) -> Loaded:
    """Steps 2 to 7; on failure the `carried` maps are left open and pinned where they were."""
    new = f"{pin_dir}/new"
    loaded = Loaded(pin_dir)
    loaded.object_key, loaded.lineage, loaded.carried = key, lineage, bool(carried)

    def close() -> None:
        loaded.maps = {name: one for name, one in loaded.maps.items() if name not in carried}
        loaded.close()

    with contextlib.ExitStack() as undo:
        try:
            os.mkdir(new, 0o700)
            undo.callback(pins.remove_dir, new)
            undo.callback(close)
            loaded.maps.update(carried)
            for name, spec in maps.items():
                if name not in carried:
                    loaded.maps[name] = create.create_map(name, spec)
            for name, one in loaded.maps.items():
                bpf.obj_pin(one.fd, f"{new}/map_{name}")
            fds = {name: one.fd for name, one in loaded.maps.items()}
            for program in (program for program in programs if not program.same_as):
                loaded.programs[program.name] = create.load_program(program, fds)
                bpf.obj_pin(loaded.programs[program.name], f"{new}/prog_{program.name}")
            if before:
                before(loaded.maps)
            for program in programs:
                if program.attach not in ("none", "iter_of"):
                    loaded.links[program.name] = create.attach(program, loaded.programs[program.same_as or program.name])
                    bpf.obj_pin(loaded.links[program.name], f"{new}/link_{program.name}")
            if after:
                after(loaded.maps)
            _write_meta(loaded, new)
            pins.publish(pin_dir)
        except OSError as exc:
            raise bpf.translate(exc, f"pins in {pin_dir}") from exc
        undo.pop_all()
    return loaded


def _write_meta(loaded: Loaded, directory: str) -> None:
    loaded.loaded_ns = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    source, build_id = (bytes.fromhex(part) for part in loaded.object_key)
    counts = (len(loaded.maps), len(loaded.programs), len(loaded.links))
    fd = bpf.map_create(bpf.MAP_TYPES["array"], "nsagent_meta", key_size=4, value_size=_META.size, max_entries=1)
    try:
        value = _META.pack(source, build_id, len(build_id), *counts, loaded.loaded_ns, loaded.lineage)
        bpf.map_update(fd, bytes(4), value)
        bpf.map_freeze(fd)
        bpf.obj_pin(fd, f"{directory}/map_{META}")
    finally:
        os.close(fd)


def _open(pin_dir: str) -> Loaded | None:
    """Open the pins of this ABI; None where one is missing. The caller has the load lock."""
    live = live_dir(pin_dir)
    if not os.path.isdir(live):
        return None
    loaded = Loaded(pin_dir)
    loaded.adopted = True
    try:
        for name in sorted(os.listdir(live)):
            kind, _, rest = name.partition("_")
            fd = bpf.obj_get(f"{live}/{name}")
            if kind == "map":
                loaded.maps[rest] = Map(fd, rest)
            elif kind in ("prog", "link"):
                (loaded.programs if kind == "prog" else loaded.links)[rest] = fd
            else:
                os.close(fd)
        meta = loaded.maps.pop(META, None)
        raw = meta.lookup(bytes(4)) if meta is not None and meta.value_size == _META.size else None
        if meta is not None:
            meta.close()
        counts = (len(loaded.maps), len(loaded.programs), len(loaded.links))
        if raw is not None:
            source, build_id, length, *noted, loaded.loaded_ns, loaded.lineage = _META.unpack(raw)
            loaded.object_key = ObjectKey(source.hex(), build_id[:length].hex())
            if tuple(noted) == counts:
                return loaded
        log.warning("event=pins_incomplete path=%s", live)
        loaded.close()
        return None
    except BaseException as exc:
        loaded.close()
        if isinstance(exc, OSError) and not isinstance(exc, NsagentError):
            raise bpf.translate(exc, f"pins in {pin_dir}") from exc
        raise


def _describe_link(fd: int) -> str:
    """Return what a link is attached to, in the words of its fdinfo, such as ``raw_tracepoint sched_process_exit``."""
    with open(f"/proc/self/fdinfo/{fd}", encoding="ascii", errors="replace") as file:
        words = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
    name = next((words[k] for k in ("tp_name", "target_name", "name") if k in words), "")
    return f"{words.get('link_type', 'link')} {name}".strip()


def _stats_enabled() -> bool:
    try:
        with open("/proc/sys/kernel/bpf_stats_enabled", encoding="ascii") as file:
            return file.read().strip() == "1"
    except OSError:
        return False
