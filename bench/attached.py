"""The BPF programs attached under pins of the bench's own, for as long as a block lasts."""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import fcntl
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench.measure import PREFIX
from nsagent import libc
from nsagent.agent import RingThread
from nsagent.events import KernelEvents
from nsagent.kernel import bpf, create, mounts
from nsagent.kernel.attach import Attached, attach, find_object

PINS = f"/sys/fs/bpf/{PREFIX}-attached"
_cache = tempfile.TemporaryDirectory(prefix=PREFIX)


def charged_controller() -> str | None:
    """Return the v1 controller whose cgroups are charged, or None for the v2 tree."""
    v1 = any(" - cgroup " in line and "cpuacct" in line for line in Path("/proc/self/mountinfo").read_text().splitlines())
    return "cpuacct" if v1 else None


@contextlib.contextmanager
def programs(*, trace: bool = True) -> Iterator[Attached]:
    """Attach the programs, compiled at the first call; on leaving unload them."""
    attached = attach(PINS, _cache.name, subsystem=charged_controller(), trace=trace)
    try:
        yield attached
    finally:
        attached.unload()
        shutil.rmtree(PINS, ignore_errors=True)


@contextlib.contextmanager
def reading(source: contextlib.AbstractContextManager[Attached]) -> Iterator[Attached]:
    """Have the ring buffer of events read by a thread of the agent's kind."""
    with source as attached, contextlib.closing(KernelEvents(attached)) as events:
        thread = RingThread("ring", events.fileno(), events.read)
        thread.start()
        try:
            yield attached
        finally:
            thread.close()


def programs_of_others() -> int:
    """Return how many programs are attached to the two ends of unshare(2) while none of the bench's are."""
    count = 0
    for end in ("enter", "exit"):
        number = int(Path(f"{mounts.find_tracefs()}/events/syscalls/sys_{end}_unshare/id").read_text())
        event = bpf.perf_event_tracepoint(number, min(os.sched_getaffinity(0)), counting=False)
        try:
            answer = bytearray(struct.pack("=64I", 62, *[0] * 63))  # struct perf_event_query_bpf: room, how many there are, ids
            fcntl.ioctl(event, 0xC008240A, answer)  # PERF_EVENT_IOC_QUERY_BPF
            count += struct.unpack_from("=I", answer, 4)[0]
        finally:
            os.close(event)
    return count


@contextlib.contextmanager
def empty_programs(*ends: str) -> Iterator[None]:
    """Attach a program that does nothing at these ends of unshare(2), `enter` or `exit`: the least that any tracing costs it."""
    targets = [f"syscalls/sys_{end}_unshare" for end in ends]
    found, _ = find_object(_cache.name, charged_controller())
    nothing = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 1, 0x95, 0, 0, 0)  # r0 = 1; exit: as PASS_ON of bpf/trace.c
    with contextlib.ExitStack() as stack:
        for program in found.programs:
            if program.target in targets:
                empty = dataclasses.replace(program, insns=nothing, relocations=(), same_as="")
                loaded = create.load_program(empty, {})
                stack.callback(os.close, loaded)
                stack.callback(os.close, create.attach(empty, loaded))
        yield


class RunTime(NamedTuple):
    """How often a program ran, and for how long together."""

    calls: int
    ns: int


@contextlib.contextmanager
def run_times_kept() -> Iterator[None]:
    """Have the kernel measure each run of a BPF program (BPF_ENABLE_STATS), which itself costs some 50 ns a run."""
    kept = libc.raw_syscall("bpf", 32, ctypes.create_string_buffer(8), 8)
    try:
        yield
    finally:
        os.close(kept)


def run_times(attached: Attached, call: str) -> tuple[RunTime, RunTime]:
    """Return those of the programs at the entry and at the end of a traced call."""
    found = {
        program.name.partition("_")[0]: RunTime(program.run_cnt or 0, program.run_time_ns or 0)
        for program in attached.status().programs
        if program.name.endswith(f"_{call}")
    }
    entry, end = ("enter", "leave") if attached.traced_by == "tracepoints" else ("fentry", "fexit")
    return found[entry], found[end]
