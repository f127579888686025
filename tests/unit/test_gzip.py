"""What web/gzip.py makes of pieces, against the standard library's own reading of it."""

from __future__ import annotations

import gzip
import zlib

from hypothesis import given
from hypothesis import strategies as st

from nsagent.web.gzip import Compressor

PIECES = st.lists(st.one_of(st.binary(max_size=300), st.builds(lambda n: b"# HELP x\n" + b"x 1\n" * n, st.integers(0, 30_000))))


@given(st.lists(PIECES, max_size=5))
def test_every_stream_is_what_was_put_in(expositions: list[list[bytes]]) -> None:
    compressor = Compressor()
    for pieces in expositions:
        assert gzip.decompress(b"".join(compressor.compress(pieces))) == b"".join(pieces)


def test_one_member_and_nothing_after_it() -> None:
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    assert stream.decompress(b"".join(Compressor().compress([b"a 1\n"] * 1000))) == b"a 1\n" * 1000
    assert stream.eof
    assert not stream.unused_data


def test_what_did_not_change_is_not_compressed_again() -> None:
    families = [(f"# HELP f{n}\n".encode(), *(f'f{n}{{c="{row}"}} 1\n'.encode() * 100 for row in range(64))) for n in range(20)]
    pieces = [piece for family in families for piece in family]
    compressor = Compressor()
    first = compressor.compress(pieces)
    kept = set(map(id, first[:-1]))
    assert {*map(id, compressor.compress(pieces)[:-1])} == kept
    changed = [*pieces[:700], b'f10{c="new"} 2\n', *pieces[701:]]
    second = compressor.compress(changed)
    assert gzip.decompress(b"".join(second)) == b"".join(changed)
    assert 1 <= sum(id(part) not in kept for part in second[:-1]) <= 2
