"""Holding samples out."""

from __future__ import annotations

import pytest

from qwenkit.core.errors import InputError
from qwenkit.core.types import Message
from qwenkit.train.samples import Sample, hold_out

SAMPLES = [Sample((Message("user", str(n)),), source=str(n)) for n in range(50)]


def test_hold_out_parts_in_order() -> None:
    kept, held = hold_out(SAMPLES, 0.1, seed=3)
    assert len(held) == 5
    assert sorted(kept + held, key=SAMPLES.index) == SAMPLES
    assert kept == sorted(kept, key=SAMPLES.index)
    assert held == sorted(held, key=SAMPLES.index)
    assert hold_out(SAMPLES, 0.1, seed=3) == (kept, held)
    assert hold_out(SAMPLES, 0.1, seed=4) != (kept, held)


@pytest.mark.parametrize(("share", "held"), [(0.001, 1), (0.999, 49)])
def test_neither_side_is_empty(share: float, held: int) -> None:
    assert len(hold_out(SAMPLES, share, seed=0)[1]) == held


def test_impossible_shares() -> None:
    with pytest.raises(InputError, match="must lie between 0 and 1, got 1"):
        hold_out(SAMPLES, 1, seed=0)
    with pytest.raises(InputError, match="1 sample cannot be parted"):
        hold_out(SAMPLES[:1], 0.5, seed=0)
