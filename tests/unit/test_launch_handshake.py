"""Messages of the launch: whole ones in any pieces, and nothing else."""

from __future__ import annotations

import select

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsagent.launch.handshake import Began, Decoder, Ended, Failed, Message, Ready, encode

words = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=40)
paths = st.binary(max_size=300).map(lambda raw: raw.replace(b"\0", b"/").decode("utf-8", "surrogateescape"))
messages = st.one_of(
    st.just(Ready()),
    st.builds(Began),
    st.builds(Ended, st.integers(0, 0xFFFF)),
    st.builds(Failed, words, words, st.integers(0, 133), paths),
)


@given(st.lists(messages, max_size=5), st.lists(st.integers(1, 9), min_size=1))
def test_messages_survive_any_cut(sent: list[Message], sizes: list[int]) -> None:
    stream = b"".join(encode(message) for message in sent)
    decoder, got = Decoder(), []
    position = turn = 0
    while position < len(stream):
        size = sizes[turn % len(sizes)]
        got += decoder.feed(stream[position : position + size])
        position, turn = position + size, turn + 1
    assert got == sent


def test_a_message_is_never_torn_by_the_pipe() -> None:
    longest = encode(Failed("mounts", "mount(MS_PRIVATE)", 2, "/" + "x" * 100_000))
    assert len(longest) <= select.PIPE_BUF
    (message,) = Decoder().feed(longest)
    assert isinstance(message, Failed)
    assert message.path.startswith("/xxx")


def test_foreign_bytes_are_refused() -> None:
    assert Decoder().feed(encode(Ready())) == [Ready()]
    with pytest.raises(ValueError, match="no message"):
        Decoder().feed(b"\x05\x00hello")
