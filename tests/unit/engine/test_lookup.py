"""Guesses by lookup against a naive search, and when they are made at all."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.engine.lookup import SIZES, Lookup


def text_of(seed: int, length: int, alphabet: int) -> list[int]:
    """Few different tokens, so that much repeats."""
    return random.Random(seed).choices(range(alphabet), k=length)


TEXTS = st.builds(text_of, st.integers(0, 2**32), st.integers(0, 80), st.integers(1, 5))


def naive(tokens: Sequence[int], most: int) -> list[int]:
    """The latest earlier place that ends in the same 4, else 3, else 2 tokens, and what came after it."""
    for size in (4, 3, 2):
        for end in range(len(tokens) - 1, size - 1, -1):
            if tokens[end - size : end] == tokens[len(tokens) - size :]:
                grown = list(tokens)
                for at in range(most):  # copying one by one reads what was just written
                    grown.append(grown[end + at])
                return grown[len(tokens) :]
    return []


@given(tokens=TEXTS, cuts=st.lists(st.integers(0, 60), max_size=6), most=st.integers(0, 20))
def test_guesses_are_what_a_naive_search_finds(tokens: list[int], cuts: list[int], most: int) -> None:
    text: list[int] = []
    lookup = Lookup(text)
    for cut in sorted(min(c, len(tokens)) for c in [*cuts, len(tokens)]):
        text += tokens[len(text) : cut]
        assert lookup.guess(most) == naive(text, most)
        assert lookup.guess(most) == naive(text, most), "asking changes nothing"


@given(tokens=st.lists(st.integers(-(2**40), 2**40), max_size=30))
def test_ids_of_any_size(tokens: list[int]) -> None:
    assert Lookup(tokens * 2).guess(5) == naive(tokens * 2, 5)


def test_nothing_is_guessed_without_a_precedent() -> None:
    assert Lookup([]).guess(7) == []
    assert Lookup([1]).guess(7) == []
    assert Lookup([1, 2, 3, 4]).guess(7) == []


def grow(text: list[int], lookup: Lookup, new: Sequence[int]) -> list[float]:
    """How likely the guess before each of the new tokens is held to be right."""
    rates = []
    for token in new:
        rates.append(next(iter(lookup.chances(7)), 0.0))
        text.append(token)
    return rates


def test_what_guesses_are_worth_is_learned_also_where_they_are_not_tried() -> None:
    chance = random.Random(5)
    # Two tokens are always followed by a third that was not there before: every look-up finds a place, and misleads.
    text = [1, 2, 0] * 3
    lookup = Lookup(text)
    misled = grow(text, lookup, [i for n in range(40) for i in (1, 2, 100 + n)])
    assert max(misled[:6]) >= 0.3
    assert misled[2::3][-1] < 0.01, "before the token that is always another"
    line = [chance.randrange(1000, 2000) for _ in range(12)]
    assert grow(text, lookup, line * 12)[-12:] == pytest.approx([1.0] * 12, abs=0.01)


def test_chances_fall_with_every_further_token() -> None:
    text = [1, 2, 3] * 2
    chances = Lookup(text).chances(6)
    assert len(chances) == 6
    assert chances == sorted(chances, reverse=True)
    assert chances[0] < 1
    assert Lookup(text).chances(0) == []
    assert Lookup([1, 2, 3]).chances(4) == []


def test_a_guess_takes_microseconds_in_a_long_text() -> None:
    chance = random.Random(2)
    text = [chance.randrange(50_000) for _ in range(8192)] * 2
    lookup = Lookup(text)
    lookup.guess(7)
    times = []
    for _ in range(200):
        text.append(text[-8192])
        start = time.perf_counter()
        guess = lookup.guess(7)
        times.append(time.perf_counter() - start)
        assert guess == text[-8192:-8185]
    assert sorted(times)[len(times) // 2] < 200e-6  # a scan takes ten times as long


def test_longer_matches_come_first() -> None:
    assert max(SIZES) == SIZES[0]
    #        four the same, then 50             two the same, then 60: later, and still not taken
    text = [1, 2, 3, 4, 50, 9, 3, 4, 60, 8, 1, 2, 3, 4]
    assert Lookup(text).guess(1) == [50]
