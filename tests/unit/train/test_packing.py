"""Packing loses nothing, overfills nothing and always comes out the same."""

from __future__ import annotations

import random
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.core.errors import InputError
from qwenkit.train.packing import pack


@given(st.lists(st.integers(1, 40), max_size=200), st.integers(0, 5))
def test_invariants(lengths: list[int], seed: int) -> None:
    rows = pack(lengths, 40, seed=seed)
    assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[n] for n in row) <= 40 for row in rows)
    assert rows == pack(lengths, 40, seed=seed)
    # any two rows of a best fit hold more than one row's worth together
    fills = sorted(sum(lengths[n] for n in row) for row in rows)
    assert len(fills) < 2 or fills[0] + fills[1] > 40


def test_seed_changes_who_meets() -> None:
    lengths = [10] * 40
    assert pack(lengths, 40, seed=0) != pack(lengths, 40, seed=1)


def test_rows_are_not_in_order_of_length() -> None:
    lengths = list(range(21, 41))
    firsts = [lengths[row[0]] for row in pack(lengths, 40)]
    assert firsts != sorted(firsts, reverse=True)


def test_perfect_pairs_are_found() -> None:
    lengths = [n for size in range(1, 50) for n in (size, 100 - size)]
    assert sum(lengths) == 100 * len(pack(lengths, 100))


def test_a_million_takes_seconds() -> None:
    draw = random.Random(0)
    lengths = [draw.randint(1, 2048) for _ in range(1_000_000)]
    start = time.process_time()
    rows = pack(lengths, 2048)
    assert (
        time.process_time() - start < 120
    )  # 2 s on an idle machine; a search through all rows would take hours
    assert sum(lengths) / (2048 * len(rows)) > 0.99


@pytest.mark.parametrize("lengths", [[0, 3], [3, 41]])
def test_what_does_not_fit(lengths: list[int]) -> None:
    with pytest.raises(InputError, match="do not fit into rows of 40; cut or drop them"):
        pack(lengths, 40)


def test_nothing() -> None:
    assert pack([], 40) == []
