"""Bytes for keys and values: how near they are, and the edges of the number range."""

from __future__ import annotations

import pytest
import torch

from qwenkit.cache.int8 import dequantise, quantise


def _back(x: torch.Tensor) -> torch.Tensor:
    return dequantise(*quantise(x))


@pytest.mark.parametrize("shift", [0.0, 3.0, -100.0])
@pytest.mark.parametrize("size", [1e-20, 1.0, 1e30])
def test_error_is_at_most_a_step(size: float, shift: float) -> None:
    torch.manual_seed(0)
    x = (torch.randn(500, 64) + shift) * size
    _, scale, _ = quantise(x)
    span = x.amax(-1).clamp(min=0) - x.amin(-1).clamp(max=0)
    assert bool((scale.float() * 255 >= span * (1 - 1e-6)).all())  # nothing is outside
    assert bool((scale.float() * 255 <= span * (1 + 2**-6)).all())
    # Half a step of rounding, and half a step more where the rounded zero moves the ends.
    assert bool(((_back(x) - x).abs() <= 1.001 * scale.float()[:, None]).all())
    inside = (_back(x) - x).abs() <= 0.501 * scale.float()[:, None]
    assert inside.float().mean() > 0.98


def test_zero_is_exact() -> None:
    x = torch.randn(50, 8)
    x[:, 3] = 0
    assert bool((_back(x)[:, 3] == 0).all())
    zeros = torch.zeros(2, 8)
    codes, scale, zero = quantise(zeros)
    assert torch.equal(dequantise(codes, scale, zero), zeros)
    assert bool(scale.isfinite().all())
    assert bool((scale > 0).all())


def test_one_sign_uses_every_step() -> None:
    codes, _, zero = quantise(torch.tensor([[0.5, 1.0, 255.0], [-0.5, -1.0, -255.0]]))
    assert codes.tolist() == [[0, 1, 255], [255, 254, 0]]
    assert zero.tolist() == [0, 255]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_visible(bad: float) -> None:
    x = torch.randn(2, 8)
    x[1, 4] = bad
    back = _back(x)
    assert bool(back[0].isfinite().all())
    assert bool(back[1].isnan().all())


def test_a_range_beyond_float32_is_nan() -> None:
    assert bool(_back(torch.tensor([[3e38, -3e38]])).isnan().all())
