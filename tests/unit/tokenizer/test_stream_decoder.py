"""Streaming text equals text decoded at once, however it is cut."""

from __future__ import annotations

import itertools
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.core.errors import InputError
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.tokenizer.bpe import TiktokenTokenizer
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.tokenizer.stream import StopMatcher, StreamDecoder


def _streamed(tokenizer: Tokenizer, ids: list[int], *, skip: bool = True) -> str:
    decoder = StreamDecoder(tokenizer, skip_special_tokens=skip)
    return "".join(map(decoder.push, ids)) + decoder.flush()


def _check_every_token(tokenizer: Tokenizer) -> None:
    for token_id in range(tokenizer.vocab_size):
        decoder = StreamDecoder(tokenizer, skip_special_tokens=False)
        assert decoder.push(token_id) + decoder.flush() == tokenizer.decode([token_id]), token_id


def test_every_token_of_qwen(qwen_tokenizer: TiktokenTokenizer) -> None:
    _check_every_token(qwen_tokenizer)


def test_every_token_of_smollm2(smollm2_tokenizer: HfTokenizer) -> None:
    _check_every_token(smollm2_tokenizer)


# ids whose bytes are parts of characters, specials, and the rest
QWEN_IDS = st.one_of(
    st.integers(0, 255),
    st.integers(0, 151850),
    st.sampled_from([378, 235, 145367, 11162, 229, 101, 151643, 151645]),
)


@given(ids=st.lists(QWEN_IDS, max_size=20), skip=st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_tokens_of_qwen(qwen_tokenizer: TiktokenTokenizer, ids: list[int], skip: bool) -> None:
    assert _streamed(qwen_tokenizer, ids, skip=skip) == qwen_tokenizer.decode(ids, skip_special_tokens=skip)


@given(ids=st.lists(st.one_of(st.integers(0, 300), st.integers(0, 49151)), max_size=20), skip=st.booleans())
@settings(max_examples=300, deadline=None)
def test_random_tokens_of_smollm2(smollm2_tokenizer: HfTokenizer, ids: list[int], skip: bool) -> None:
    assert _streamed(smollm2_tokenizer, ids, skip=skip) == smollm2_tokenizer.decode(
        ids, skip_special_tokens=skip
    )


@given(text=st.text(max_size=30))
@settings(max_examples=100, deadline=None)
def test_no_replacement_character_in_valid_text(qwen_tokenizer: TiktokenTokenizer, text: str) -> None:
    text = unicodedata.normalize("NFC", text)
    decoder = StreamDecoder(qwen_tokenizer)
    shown = ""
    for token_id in qwen_tokenizer.encode(text, allowed_special=()):
        shown += decoder.push(token_id)
        assert text.startswith(shown)
    assert shown == text
    assert decoder.flush() == ""


def test_a_character_cut_off_by_a_special(qwen_tokenizer: TiktokenTokenizer) -> None:
    decoder = StreamDecoder(qwen_tokenizer)
    assert [decoder.push(i) for i in (145367, 378, 151645, 235)] == ["👨", "", "\ufffd", "\ufffd"]
    assert decoder.flush() == ""


STOPS = st.lists(st.text("ab", min_size=1, max_size=4), max_size=4)


def _cut(text: str, cuts: list[int]) -> list[str]:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


def _expected(text: str, stops: list[str]) -> str:
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]


@given(text=st.text("abc", max_size=16), stops=STOPS, cuts=st.lists(st.integers(0, 16)))
@settings(max_examples=500, deadline=None)
def test_stops_do_not_depend_on_the_cuts(text: str, stops: list[str], cuts: list[int]) -> None:
    matcher = StopMatcher(stops)
    shown, was_hit = "", False
    for piece in _cut(text, cuts):
        new, hit = matcher.push(piece)
        assert not (was_hit and (new or not hit))
        shown, was_hit = shown + new, hit
        assert _expected(text, stops).startswith(shown)
    shown += matcher.flush()
    assert shown == _expected(text, stops)
    assert (matcher.matched is not None) == any(stop in text for stop in stops)


def test_stop_across_pushes() -> None:
    matcher = StopMatcher(["\nObservation:"])
    assert matcher.push("4\nObs") == ("4", False)
    assert matcher.push("cure") == ("\nObscure", False)
    assert matcher.push("\nObservation") == ("", False)
    assert matcher.push(": 5") == ("", True)
    assert matcher.push("more") == ("", True)
    assert matcher.flush() == ""
    assert matcher.matched == "\nObservation:"


def test_an_unfinished_stop_is_shown_at_the_end() -> None:
    matcher = StopMatcher(["<end>"])
    assert matcher.push("a<en") == ("a", False)
    assert matcher.flush() == "<en"
    assert matcher.matched is None


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(InputError, match="empty"):
        StopMatcher([""])
