"""One BPF map, whatever its kind: typed access by descriptor, and the whole of an mmapable array in one copy.

Source: include/uapi/linux/bpf.h, kernel/bpf/arraymap.c.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from typing import Final

from nsagent.kernel import bpf

_TYPE_NAMES: Final = {number: name for name, number in bpf.MAP_TYPES.items()}
_BATCHED: Final = frozenset({"hash", "lru_hash", "array", "percpu_array", "percpu_hash"})
_FIRST_BATCH: Final = 256  # most maps hold few elements, and the buffers are zeroed and copied whole
_BATCH: Final = 4096


def possible_cpus(path: str = "/sys/devices/system/cpu/possible") -> int:
    """Return how many CPUs a per-CPU value has parts for: those that could ever be plugged in."""
    with open(path, encoding="ascii") as file:
        return int(file.read().replace(",", "-").rsplit("-", 1)[-1]) + 1


def map_bytes(type: str, key_size: int, value_size: int, max_entries: int, flags: object = ()) -> int:
    """Estimate the kernel memory of a map of that specification, bytes: within 2 % of its memlock from a page on.

    Source: kernel/bpf/hashtab.c, htab_map_mem_usage(); a storage's elements are its tasks'.
    """
    key, value = (key_size + 7) & ~7, (value_size + 7) & ~7
    if "hash" in type:
        return max_entries * (key + value + 48) + 16 * (1 << (max_entries - 1).bit_length())
    if type == "task_storage":
        return 0
    return max_entries * value if value else max_entries  # that of a ring buffer is in bytes


class Map:
    """A map behind `fd`, which it owns. Sizes in bytes; `stride_bytes` is what an element takes in mmap().

    Methods raise nsagent's AccessError, UnsupportedError or LoadError; what is merely not there is None or False.
    """

    def __init__(self, fd: int, name: str = "") -> None:
        self.fd = fd
        info = bpf.map_info(fd)
        self.name = name or info.name
        self.type = _TYPE_NAMES.get(info.type, str(info.type))
        self.key_size = info.key_size
        self.value_size = info.value_size
        self.max_entries = info.max_entries
        self.flags = info.flags
        rounded = (info.value_size + 7) & ~7  # the kernel's arrays and per-CPU parts are 8-byte aligned
        self.stride_bytes = rounded * possible_cpus() if self.type.startswith("percpu") else rounded
        self._value_bytes = self.stride_bytes if self.type.startswith("percpu") else info.value_size
        self._memory: mmap.mmap | None = None
        self._memory_bytes: int | None = None  # of a map that has all its memory from the start

    def __repr__(self) -> str:
        return f"Map({self.name!r}, {self.type}, {self.key_size} -> {self.value_size} x {self.max_entries})"

    def lookup(self, key: bytes) -> bytes | None:
        """Return the value of `key` (a per-CPU map: every possible CPU's, each rounded up to 8 bytes), or None."""
        try:
            return bpf.map_lookup(self.fd, key, self._value_bytes)
        except OSError as exc:
            self._absent(exc)
        return None

    def update(self, key: bytes, value: bytes, flags: int = bpf.ANY) -> bool:
        """Set a value (queue: push, key b""); False where `flags` forbid it (EEXIST, ENOENT) or the map is full."""
        self._sized(key, value)
        try:
            bpf.map_update(self.fd, key, value, flags)
        except OSError as exc:
            if exc.errno in (errno.EEXIST, errno.ENOENT, errno.E2BIG):
                return False
            raise bpf.translate(exc, f"map {self.name}") from exc
        return True

    def delete(self, key: bytes) -> bool:
        """Delete a key; False where it was not there."""
        try:
            bpf.map_delete(self.fd, key)
        except OSError as exc:
            self._absent(exc)
            return False
        return True

    def pop(self) -> bytes | None:
        """Take the head of a queue, or None when it is empty."""
        try:
            return bpf.map_pop(self.fd, self._value_bytes)
        except OSError as exc:
            self._absent(exc)
        return None

    def keys(self) -> Iterator[bytes]:
        """Walk the keys, a call each; deleting the current key restarts the kernel's walk, so some may come twice."""
        key: bytes | None = None
        while True:
            try:
                key = bpf.map_next_key(self.fd, key, self.key_size)
            except OSError as exc:
                raise bpf.translate(exc, f"map {self.name}") from exc
            if key is None:
                return
            yield key

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """Walk keys and values, thousands a call."""
        for got, keys, values in self._batches():
            for i in range(got):
                yield (
                    keys[i * self.key_size : (i + 1) * self.key_size],
                    values[i * self._value_bytes : (i + 1) * self._value_bytes],
                )

    def _batches(self) -> Iterator[tuple[int, bytes, bytes]]:
        token: bytes | None = None
        count = min(self.max_entries, _FIRST_BATCH)
        while True:
            try:
                token, got, keys, values = bpf.map_lookup_batch(self.fd, token, self.key_size, self._value_bytes, count)
            except OSError as exc:
                if exc.errno == errno.ENOSPC and count < self.max_entries:  # one hash bucket holds more than that
                    count = min(2 * count, self.max_entries)
                    continue
                raise bpf.translate(exc, f"map {self.name}") from exc
            yield got, keys, values
            if token is None:
                return
            count = min(2 * count, self.max_entries, _BATCH)

    def entries(self) -> int | None:
        """Count the elements; None where that has no meaning (arrays) or no cheap way (queues, storage, rings)."""
        if self.type not in _BATCHED or self.type.endswith("array"):
            return None
        return sum(got for got, _, _ in self._batches())

    def mmap(self, count: int | None = None) -> mmap.mmap:
        """Return the array's own memory, read-only, its first `count` elements (default: all) or more: element i is at
        i * stride_bytes. Kept mapped until more is asked for, by this object until close().

        The kernel maps each page at once (remap_vmalloc_range), and what is mapped counts as memory of this process.
        """
        wanted = self.max_entries if count is None else min(count, self.max_entries)
        if self._memory is None or len(self._memory) < wanted * self.stride_bytes:
            some_more = max(min(wanted + wanted // 4, self.max_entries), 1)  # or each element more would be another mapping
            try:
                length = some_more * self.stride_bytes
                self._memory = mmap.mmap(self.fd, length, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
            except OSError as exc:
                raise bpf.translate(exc, f"mmap of map {self.name}") from exc
        return self._memory

    def read_array(self, first: int = 0, count: int | None = None) -> bytes:
        """Copy `count` elements (default: all) from `first`. A word is whole; two words may be of two moments."""
        last = self.max_entries if count is None else min(first + count, self.max_entries)
        return self.mmap(last)[first * self.stride_bytes : last * self.stride_bytes]

    def memory_bytes(self) -> int | None:
        """Return the kernel memory of the map in bytes, from fdinfo; None where the kernel does not say.

        An estimate, 0 for a ring buffer, before Linux kernel commit 90a5527d7686 ("bpf: add new map ops ->map_mem_usage")
        (in v6.4).
        """
        if self._memory_bytes is None:
            found = bpf.memlock_bytes(self.fd) or None
            if self.flags & bpf.MAP_FLAGS["no_prealloc"]:
                return found
            self._memory_bytes = found
        return self._memory_bytes

    def close(self) -> None:
        """Give up the mapping and the descriptor; a pinned map lives on."""
        if self._memory is not None:
            self._memory.close()
            self._memory = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _sized(self, key: bytes, value: bytes) -> None:
        if len(key) != self.key_size or len(value) != self._value_bytes:  # the kernel would read past our buffers
            raise ValueError(f"{self!r}: key of {len(key)}, value of {len(value)} bytes")

    def _absent(self, exc: OSError) -> None:
        if exc.errno != errno.ENOENT:
            raise bpf.translate(exc, f"map {self.name}") from exc
