"""The ring buffer's consumer, on a file laid out as the kernel's: what a test of the real one cannot hold still."""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest

from nsagent.errors import ParseError
from nsagent.kernel.maps import Map
from nsagent.kernel.ring import RingBuffer

PAGE = mmap.PAGESIZE
BUSY, DISCARD = 1 << 31, 1 << 30


class FakeKernel:
    """Writes a ring's producer side into a file: the data area twice, as it is mapped."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("nsagent-test-ring")
        self.size = PAGE
        os.ftruncate(self.fd, 2 * PAGE + 2 * self.size)
        self.produced = 0

    def put(self, data: bytes, bits: int = 0) -> int:
        """Append a record; return its position."""
        at, raw = self.produced, struct.pack("=II", len(data) | bits, 0) + data + bytes(-len(data) % 8)
        for i, byte in enumerate(raw):
            for copy in (0, self.size):
                os.pwrite(self.fd, bytes([byte]), 2 * PAGE + copy + (at + i) % self.size)
        self.produced += len(raw)
        os.pwrite(self.fd, struct.pack("=Q", self.produced), PAGE)
        return at

    def mark(self, at: int, word: int) -> None:
        """Replace a record's length and bits: what a submit does."""
        for copy in (0, self.size):
            os.pwrite(self.fd, struct.pack("=I", word), 2 * PAGE + copy + at % self.size)

    def consumed(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.fd, 8, 0))[0])


@pytest.fixture
def kernel() -> Iterator[FakeKernel]:
    fake = FakeKernel()
    yield fake
    os.close(fake.fd)


def consumer(kernel: FakeKernel) -> RingBuffer:
    ring: Any = SimpleNamespace(fd=kernel.fd, max_entries=kernel.size, name="events")
    return RingBuffer(cast(Map, ring))


def test_stops_at_a_record_being_written_and_goes_on_after_it(kernel: FakeKernel) -> None:
    ring = consumer(kernel)
    kernel.put(b"first")
    at = kernel.put(b"second", BUSY)
    kernel.put(b"third")
    assert ring.read() == [b"first"]
    assert kernel.consumed() == at
    assert ring.read() == []
    kernel.mark(at, len(b"second"))
    assert ring.read() == [b"second", b"third"]
    assert kernel.consumed() == kernel.produced
    assert ring.pending_bytes() == 0
    ring.close()


def test_discarded_records_are_passed_over(kernel: FakeKernel) -> None:
    ring = consumer(kernel)
    kernel.put(b"gone", DISCARD)
    assert ring.read() == []
    assert kernel.consumed() == kernel.produced
    kernel.put(b"a")
    kernel.put(b"gone", DISCARD)
    kernel.put(b"b")
    assert ring.read() == [b"a", b"b"]


def test_records_wrap_whole_for_ten_rounds(kernel: FakeKernel) -> None:
    ring = consumer(kernel)
    for n in range(10 * PAGE // 1112):
        kernel.put(bytes([n % 251]) * 1100)
        assert ring.read() == [bytes([n % 251]) * 1100]
    assert kernel.produced > 9 * PAGE


def test_a_limit_leaves_the_rest(kernel: FakeKernel) -> None:
    ring = consumer(kernel)
    for n in range(5):
        kernel.put(bytes([n]))
    assert ring.read(0) == []
    assert ring.read(2) == [b"\0", b"\1"]
    assert kernel.consumed() == 32
    assert ring.read(99) == [b"\2", b"\3", b"\4"]


def test_a_failing_handler_loses_nothing(kernel: FakeKernel) -> None:
    ring = consumer(kernel)
    for n in range(4):
        kernel.put(bytes([n]))
    seen: list[bytes] = []
    interrupts = [b"\2"]

    def handle(record: memoryview) -> None:
        if bytes(record) in interrupts:
            interrupts.clear()
            raise KeyboardInterrupt
        seen.append(bytes(record))

    with pytest.raises(KeyboardInterrupt):
        ring.consume(handle)
    assert kernel.consumed() == 32
    assert ring.consume(handle) == 2
    assert seen == [b"\0", b"\1", b"\2", b"\3"]


def test_a_second_consumer_goes_on_where_the_first_was(kernel: FakeKernel) -> None:
    kernel.put(b"a")
    kernel.put(b"b")
    first = consumer(kernel)
    assert first.read(1) == [b"a"]
    first.close()
    assert consumer(kernel).read() == [b"b"]


def test_the_view_is_of_the_buffer_and_dies_with_the_call(kernel: FakeKernel) -> None:
    ring = consumer(kernel)
    kept: list[memoryview] = []
    kernel.put(b"abc")
    ring.consume(kept.append)
    with pytest.raises(ValueError, match="released"):
        kept[0].tobytes()
    ring.close()


def test_a_length_past_the_producer_is_an_error(kernel: FakeKernel) -> None:
    ring = consumer(kernel)
    kernel.mark(kernel.put(b"abc"), 1 << 20)
    with pytest.raises(ParseError, match="past the producer"):
        ring.read()
