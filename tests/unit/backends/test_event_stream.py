"""Server-sent events out of bytes cut anywhere."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.backends.event_stream import EventDecoder

STREAM = (
    b': comment\n\ndata: {"a": 1}\n\nevent: x\nid: 3\ndata:one\ndata:  two\n\n\n\nid: 4\n\ndata: [DONE]\n\n'
)
EVENTS = [b'{"a": 1}', b"one\n two", b"[DONE]"]


def decode(pieces: list[bytes]) -> list[bytes]:
    decoder = EventDecoder()
    found = [data for piece in pieces for data in decoder.feed(piece)]
    assert decoder.held_size == 0
    return found + decoder.flush()


@given(st.lists(st.integers(0, len(STREAM))), st.booleans())
def test_events_do_not_depend_on_the_cuts(cuts: list[int], crlf: bool) -> None:
    stream = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    edges = [0, *sorted(cuts), len(stream)]
    assert decode([stream[a:b] for a, b in itertools.pairwise(edges)]) == EVENTS


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_the_last_blank_line_may_be_missing(end: bytes) -> None:
    decoder = EventDecoder()
    assert decoder.feed(b"data: [DONE]" + end) == []
    assert decoder.flush() == [b"[DONE]"]
    assert decoder.flush() == []
