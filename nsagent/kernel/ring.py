"""Consume a BPF ring buffer: records in order, without a copy, by mmap alone.

    file offset 0            consumer position   one page, ours to write
    page                     producer position   one page, the kernel's
    2 * page                 data, mapped twice in a row: a record that wraps is contiguous all the same

A record is an 8-byte header {u32 length and BUSY, DISCARD bits; u32 page offset} and its data, rounded up to 8.
Positions only grow; their remainder by the size is the offset.

Memory order. The kernel publishes a record by xchg on its header and reads our position with acquire. Python has no
fences, but a lock's release followed by its acquire is one (a full barrier on x86, STLR and LDAXR on arm64). There is one
after reading the producer position (a header may be stale before it), one after reading headers (so may the data), one
before our position is stored (the data has been read), and one after it: the kernel sends no wake-up while it sees us
behind, so our next look at the producer must not come first.
Sources: Documentation/bpf/ringbuf.rst, kernel/bpf/ringbuf.c. Since Linux kernel commit 457f44363a88 (in v5.8).
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Callable
from typing import Final

from nsagent.errors import ParseError
from nsagent.kernel import bpf
from nsagent.kernel.maps import Map

_BUSY: Final = 1 << 31
_DISCARD: Final = 1 << 30
_HEADER_BYTES: Final = 8
_CHUNK: Final = 256  # records between two stores of the position: space comes free that often


class RingBuffer:
    """The one consumer of the ring buffer `ring`, whose descriptor it borrows: pollable, see `fileno`. Not thread-safe.

    Raises:
        AccessError, UnsupportedError, LoadError: it cannot be mapped.
    """

    def __init__(self, ring: Map) -> None:
        page = mmap.PAGESIZE
        self._fd = ring.fd
        self._size = ring.max_entries
        self._fence_lock = threading.Lock()
        try:
            self._consumer_page = mmap.mmap(ring.fd, page, flags=mmap.MAP_SHARED)
            self._pages = mmap.mmap(ring.fd, page + 2 * self._size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=page)
        except OSError as exc:
            raise bpf.translate(exc, f"mmap of ring buffer {ring.name}") from exc
        # memoryview items are read and written by one load or store of their size
        self._consumer = memoryview(self._consumer_page).cast("Q")
        self._producer = memoryview(self._pages)[:page].cast("Q")
        self._data = memoryview(self._pages)[page:]
        self._headers = self._data.cast("I")

    def fileno(self) -> int:
        """Return the descriptor, for poll or epoll: readable while there is a record not consumed."""
        return self._fd

    def pending_bytes(self) -> int:
        """Return how much of the buffer is taken, in bytes with headers."""
        return int(self._producer[0] - self._consumer[0])

    def consume(self, handle: Callable[[memoryview], object], limit: int | None = None) -> int:
        """Call `handle` with each record there is, in order, at most `limit`; return how many.

        The view is of the buffer itself, and valid only during the call: keep bytes(view). If `handle` raises, what came
        before that record is consumed, and it comes again with the next call. Sleep in epoll only after a call that
        returned less than `limit`: there is no wake-up for a record that was written while we were behind.
        """
        done = 0
        while limit is None or done < limit:
            spans, end = self._scan(_CHUNK if limit is None else min(_CHUNK, limit - done))
            if end == self._consumer[0]:
                break
            self._fence()
            position = self._consumer[0]
            try:
                for start, length, following in spans:
                    with self._data[start : start + length] as record:
                        handle(record)
                    position = following
                    done += 1
                position = end
            finally:
                self._fence()
                self._consumer[0] = position
                self._fence()
        return done

    def read(self, limit: int | None = None) -> list[bytes]:
        """Return copies of the records there are, at most `limit`, and consume them."""
        records: list[bytes] = []
        self.consume(lambda record: records.append(bytes(record)), limit)
        return records

    def close(self) -> None:
        """Unmap; the map's descriptor and the position, which the kernel keeps, stay."""
        for view in (self._consumer, self._producer, self._headers, self._data):
            view.release()
        self._consumer_page.close()
        self._pages.close()

    def _scan(self, limit: int) -> tuple[list[tuple[int, int, int]], int]:
        """Return (offset, length, next position) of up to `limit` complete records, and the position after them.

        Stops at the first that is still being written; discarded ones are passed over and not returned.
        """
        position, produced, mask = self._consumer[0], self._producer[0], self._size - 1
        headers = self._headers
        spans: list[tuple[int, int, int]] = []
        if position < produced:
            self._fence()
        while position < produced and len(spans) < limit:
            start = position & mask
            word = headers[start >> 2]
            if word & _BUSY:
                break
            length = word & ~_DISCARD
            position += (length + _HEADER_BYTES + 7) & ~7
            if position > produced:
                raise ParseError(f"ring buffer: a record of {length} bytes reaches past the producer")
            if not word & _DISCARD:
                spans.append((start + _HEADER_BYTES, length, position))
        return spans, position

    def _fence(self) -> None:
        lock = self._fence_lock
        lock.acquire()
        lock.release()
        lock.acquire()
        lock.release()
