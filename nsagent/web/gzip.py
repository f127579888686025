"""gzip streams of expositions, most of which were compressed for the scrape before.

Of a thousand cgroups the lines of nine hundred are those of last time, and compressing them anew is a fifth of a scrape. A run of
pieces is compressed by itself: what follows a full flush refers to nothing before it, so it may stand in any other stream too.
Sources: RFC 1951, RFC 1952; zlib.h, deflate() with Z_FULL_FLUSH.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from typing import Final

_LEVEL: Final = 1  # the higher ones cost several times as much for little
_HEAD: Final = b"\x1f\x8b\x08\0\0\0\0\0\x04\xff"  # deflate, no name, no time, the fastest level, no particular system
_LAST: Final = b"\x03\0"  # an empty block which says that it is the last one
_TAIL: Final = struct.Struct("<II")
_PIECES: Final = 32  # of a run, on average
_RUN: Final = 1 << 16  # bytes; a run of fewer does not end with a family


class Compressor:
    """Compresses one thing again and again, and keeps what it made of it last. Safe from any thread."""

    def __init__(self) -> None:
        self._known: dict[int, bytes] = {}

    def compress(self, pieces: Iterable[bytes]) -> tuple[bytes, ...]:
        """Return the gzip stream of all pieces, in pieces of its own."""
        stream = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
        before, known = self._known, dict[int, bytes]()
        body, crc, size = [_HEAD], 0, 0
        for run in _runs(pieces):
            number = hash(run)  # of bytes, which keep theirs: another run has another, but for chance, 2**-64
            for piece in run:
                crc = zlib.crc32(piece, crc)
                size += len(piece)
            if (found := before.get(number)) is None:
                found = stream.compress(b"".join(run)) + stream.flush(zlib.Z_FULL_FLUSH)
            known[number] = found
            body.append(found)
        self._known = known
        return (*body, _LAST, _TAIL.pack(crc, size & 0xFFFFFFFF))


def _runs(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, ...]]:
    """Cut where pieces themselves say so, and where a family begins: what changes changes the run it is in, and no other."""
    run: list[bytes] = []
    size = 0
    for piece in pieces:
        if size >= _RUN and piece.startswith(b"#"):
            yield tuple(run)
            run, size = [], 0
        run.append(piece)
        size += len(piece)
        if hash(piece) % _PIECES == 0:
            yield tuple(run)
            run, size = [], 0
    if run:
        yield tuple(run)
