"""The ring buffer on the real kernel: 1,000 records in, the same 1,000 out, in order; overflow counted; position never lost."""

from __future__ import annotations

import os
import select
import struct
from pathlib import Path
from typing import Any

import pytest

from nsagent.kernel import mounts, objects
from nsagent.kernel.objects import Loaded
from nsagent.kernel.ring import RingBuffer
from tests import support
from tests.kernel import bpf_asm as asm

pytestmark = pytest.mark.kernel


@pytest.fixture(autouse=True)
def _needs_bpf() -> None:
    support.require_root()
    support.require(Path("/sys/kernel/btf/vmlinux").exists(), "no BTF: /sys/kernel/btf/vmlinux")
    support.require(mounts.find_tracefs(), "tracefs is not mounted (make setup mounts it)")


def load(pin_dir: Path, ring_bytes: int, body: list[Any] | None = None) -> Loaded:
    document = asm.document(ring_bytes)
    document["programs"] = [asm.program("on_call", "tracepoint", "syscalls/sys_enter_getpgid", body or asm.on_call())]

    def watch(maps: objects.Maps) -> None:
        assert maps["cfg"].update(bytes(4), struct.pack("=Q", os.getpid()))

    obj = objects.parse_object(asm.encoded(document))
    return objects.load(obj, str(pin_dir), before_attach=watch)


def calls(number: int) -> None:
    for _ in range(number):
        os.getpgid(0)


def numbers(records: list[bytes]) -> list[int]:
    words = [struct.unpack("=5Q", record) for record in records]
    assert all(len(set(record)) == 1 for record in words), "a torn record"
    return [record[0] for record in words]


def lost(loaded: Loaded) -> int:
    return int(struct.unpack("=4Q", loaded.maps["counts"].read_array())[2])


def test_a_thousand_records_in_order_through_a_small_ring(pin_dir: Path) -> None:
    """48 bytes a record in 4,096: a record wraps in most rounds."""
    loaded = load(pin_dir, 4096)
    ring = RingBuffer(loaded.maps["events"])
    seen: list[int] = []
    for burst in (1, 84, 15) * 10:
        calls(burst)
        seen += numbers(ring.read())
    assert seen == list(range(1000))
    assert lost(loaded) == 0
    ring.close()
    loaded.unload()


def test_overflow_is_counted_by_the_program_and_the_ring_goes_on(pin_dir: Path) -> None:
    loaded = load(pin_dir, 4096)
    ring = RingBuffer(loaded.maps["events"])
    calls(300)
    got = numbers(ring.read())
    assert got == list(range(85))  # 4096 // 48
    assert lost(loaded) == 300 - 85
    calls(3)
    assert numbers(ring.read()) == [300, 301, 302]
    ring.close()
    loaded.unload()


def test_the_next_consumer_goes_on_where_the_last_one_stopped(pin_dir: Path) -> None:
    """The position is the kernel's: neither a new reader nor one after an adoption reads twice or skips."""
    loaded = load(pin_dir, 1 << 16)
    calls(10)
    first = RingBuffer(loaded.maps["events"])
    assert numbers(first.read(4)) == [0, 1, 2, 3]
    first.close()
    loaded.close()
    adopted = objects.adopt(str(pin_dir))
    assert adopted is not None
    second = RingBuffer(adopted.maps["events"])
    assert second.pending_bytes() == 6 * 48
    assert numbers(second.read()) == [4, 5, 6, 7, 8, 9]
    second.close()
    adopted.unload()


def test_epoll_wakes_for_each_burst(pin_dir: Path) -> None:
    loaded = load(pin_dir, 1 << 16)
    ring = RingBuffer(loaded.maps["events"])
    with select.epoll() as epoll:
        epoll.register(ring, select.EPOLLIN)
        assert epoll.poll(0) == []
        for burst in range(1, 6):
            calls(burst)
            assert epoll.poll(120) == [(ring.fileno(), select.EPOLLIN)]
            assert len(ring.read()) == burst
            assert epoll.poll(0) == []
    ring.close()
    loaded.unload()


def test_discarded_records_are_not_seen(pin_dir: Path) -> None:
    loaded = load(pin_dir, 4096, asm.on_call_reserving())
    ring = RingBuffer(loaded.maps["events"])
    seen: list[int] = []
    for _ in range(10):
        calls(100)
        seen += [struct.unpack("=2Q", record)[0] for record in ring.read()]
    assert seen == list(range(0, 1000, 2))
    ring.close()
    loaded.unload()


def test_a_consumer_beside_a_busy_producer_loses_and_repeats_nothing(pin_dir: Path) -> None:
    """Another process produces until this one has read 20,000: what was not counted as lost comes once, whole, in order."""
    loaded = load(pin_dir, 1 << 14)
    ring = RingBuffer(loaded.maps["events"])
    read_end, write_end = os.pipe()
    producer = os.fork()
    if producer == 0:
        os.close(write_end)
        while not select.select([read_end], [], [], 0)[0]:
            calls(100)
        os._exit(0)
    seen: list[int] = []
    try:
        loaded.maps["cfg"].update(bytes(4), struct.pack("=Q", producer))
        with select.epoll() as epoll:
            epoll.register(ring, select.EPOLLIN)
            while len(seen) < 20_000:
                assert epoll.poll(120), "no wake-up although the producer goes on"
                seen += numbers(ring.read())
    finally:
        os.close(write_end)
        os.close(read_end)
        os.waitpid(producer, 0)
    seen += numbers(ring.read())
    total = struct.unpack("=4Q", loaded.maps["counts"].read_array())[1]
    assert len(seen) + lost(loaded) == total
    assert seen == sorted(set(seen))
    ring.close()
    loaded.unload()
