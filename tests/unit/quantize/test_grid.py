"""Grids of groups: the published rules by hand, rounding as near as can be, and what is stored being what was used."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.core.errors import InputError, NumericsError
from qwenkit.quantize.grid import (
    dequantise,
    fake_quantise,
    group_params,
    group_width,
    join_groups,
    round_to_nearest,
    split_groups,
)


def _naive(row: list[float], bits: int, symmetric: bool, extend_zero: bool) -> tuple[float, int]:
    """Scale and zero of one group, in Python's own numbers."""
    low, high, top, half = min(row), max(row), 2**bits - 1, 2 ** (bits - 1)
    if not extend_zero and symmetric:
        return max(-low, high, 1e-5) / (half - 1), half
    if not extend_zero:
        scale = max(high - low, 1e-5) / top
        return scale, min(max(-round(low / scale), 0), top)
    low, high = min(low, 0.0), max(high, 0.0)
    if symmetric:
        high = max(-low, high)
        low = -high if low < 0 else low
    if low == high == 0:
        low, high = -1.0, 1.0
    scale = (high - low) / top
    return scale, half if symmetric else round(-low / scale)


@pytest.mark.parametrize("extend_zero", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_parameters_follow_the_rules(bits: int, symmetric: bool, extend_zero: bool) -> None:
    torch.manual_seed(0)
    rows = torch.randn(60, 16)
    rows[:10] = rows[:10].abs() + 0.1  # one sign
    rows[10:20] = -rows[10:20].abs() - 0.1
    rows[20] = 0
    rows[21] = 1e-7
    params = group_params(rows, bits=bits, symmetric=symmetric, extend_zero=extend_zero)
    for row, scale, zero in zip(rows.tolist(), params.scales.tolist(), params.zeros.tolist(), strict=True):
        expected = _naive(row, bits, symmetric, extend_zero)
        assert math.isclose(scale, expected[0], rel_tol=1e-6)
        assert abs(zero - expected[1]) <= (not any(row))  # all zero: its zero point lies between two codes


def test_parameters_of_a_worked_example() -> None:
    """W[i, j] = sin(1 + 3i + 5j), groups of 4, 4 bits."""
    i, j = torch.arange(2.0)[:, None], torch.arange(8.0)
    groups = split_groups(torch.sin(1 + 3 * i + 5 * j), 4)
    even = group_params(groups, bits=4, symmetric=True)
    torch.testing.assert_close(
        even.scales, torch.tensor([[0.133332029, 0.132237181], [0.132080987, 0.128506050]]), rtol=1e-6, atol=0
    )
    assert even.zeros.tolist() == [[8, 8], [8, 8]]
    free = group_params(groups, bits=4, symmetric=False)
    torch.testing.assert_close(
        free.scales, torch.tensor([[0.122764081, 0.121895634], [0.116493985, 0.124624923]]), rtol=1e-6, atol=0
    )
    assert free.zeros.tolist() == [[8, 8], [6, 7]]


@given(st.integers(0, 10_000), st.sampled_from([4, 8]), st.booleans(), st.booleans())
def test_every_weight_gets_the_nearest_of_all_codes(
    seed: int, bits: int, symmetric: bool, extend: bool
) -> None:
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(seed))
    q = round_to_nearest(weight, bits=bits, group_size=16, symmetric=symmetric, extend_zero=extend)
    scales = q.scales.float()[:, q.g_idx.long(), None]
    offers = (torch.arange(2**bits) - q.zeros.float()[:, q.g_idx.long(), None]) * scales  # (N, K, codes)
    best = (offers - weight[..., None]).abs().amin(-1)
    torch.testing.assert_close((dequantise(q) - weight).abs(), best, rtol=0, atol=1e-6)


def test_what_is_stored_is_what_was_used() -> None:
    """Codes chosen with a scale that is rounded later would not be the nearest any more at 8 bits."""
    torch.manual_seed(1)
    weight = torch.randn(8, 96).to(torch.bfloat16)
    q = round_to_nearest(weight, bits=8, group_size=32, symmetric=False)
    assert (q.scales.dtype, q.zeros.dtype, q.codes.dtype, q.g_idx.dtype) == (
        torch.float16,
        torch.uint8,
        torch.uint8,
        torch.int32,
    )
    assert q.scales.shape == q.zeros.shape == (8, 3)
    assert torch.equal(dequantise(q), fake_quantise(weight, bits=8, group_size=32, symmetric=False))
    inside = (q.codes > 0) & (q.codes < 255)
    error = (dequantise(q) - weight.float()).abs() / q.scales.float()[:, q.g_idx.long()]
    assert error[inside].max() <= 0.5 + 1e-4


def test_a_short_last_group_has_its_own_scale() -> None:
    torch.manual_seed(2)
    weight = torch.randn(4, 40)
    q = round_to_nearest(weight, bits=4, group_size=16, symmetric=False)
    tail = round_to_nearest(weight[:, 32:], bits=4, group_size=-1, symmetric=False)
    assert q.g_idx.tolist() == [0] * 16 + [1] * 16 + [2] * 8
    assert torch.equal(q.codes[:, 32:], tail.codes)
    assert torch.equal(q.scales[:, 2:], tail.scales)


def test_one_group_per_row() -> None:
    weight = torch.randn(4, 24)
    whole = round_to_nearest(weight, bits=4, group_size=-1, symmetric=True)
    assert (whole.group_size, whole.scales.shape) == (24, (4, 1))
    larger = round_to_nearest(weight, bits=4, group_size=128, symmetric=True)
    assert (larger.group_size, larger.codes.tolist()) == (24, whole.codes.tolist())


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 48])
def test_groups_join_again(columns: int) -> None:
    weight = torch.randn(5, columns).T.contiguous().T  # not contiguous
    assert torch.equal(join_groups(split_groups(weight, 16), columns), weight)


def test_zero_weights_stay_zero() -> None:
    for extend in (True, False):
        for symmetric in (True, False):
            q = round_to_nearest(
                torch.zeros(2, 32), bits=4, group_size=16, symmetric=symmetric, extend_zero=extend
            )
            assert not dequantise(q).any()
            assert (q.scales > 0).all()


def test_tiny_weights_keep_a_scale_above_zero() -> None:
    q = round_to_nearest(torch.full((1, 16), 1e-9), bits=8, group_size=16, symmetric=False)
    assert q.scales.item() > 0
    assert dequantise(q).isfinite().all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 1e8])
@pytest.mark.parametrize("extend_zero", [True, False])
def test_what_float16_cannot_hold_is_an_error(bad: float, extend_zero: bool) -> None:
    weight = torch.randn(2, 32)
    weight[1, 20] = bad
    with pytest.raises(NumericsError, match="float16"):
        round_to_nearest(weight, bits=4, group_size=16, symmetric=True, extend_zero=extend_zero)


def test_impossible_group_sizes() -> None:
    for size in (0, -2):
        with pytest.raises(InputError, match="one group per row"):
            group_width(size, 64)
