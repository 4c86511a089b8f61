"""AWQ's searches against brute force, and their promise never to make things worse."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qwenkit.quantize.awq as module
from qwenkit.core.errors import InputError, NumericsError
from qwenkit.quantize.awq import (
    candidate_scales,
    clip_groups,
    mean_magnitude,
    search_clip,
    search_scales,
)
from qwenkit.quantize.grid import dequantise, round_to_nearest


def _data(n: int, k: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight, and inputs of which a few channels are much larger than the rest."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(n, k, generator=draw) * 0.05
    x = torch.randn(tokens, k, generator=draw) * torch.exp(torch.randn(k, generator=draw))
    return weight, x


def _rounded(weight: Tensor, bits: int, group_size: int, symmetric: bool = False) -> Tensor:
    return dequantise(
        round_to_nearest(weight, bits=bits, group_size=group_size, symmetric=symmetric, extend_zero=False)
    )


def _loss(x: Tensor, weights: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], float]:
    def loss(tried: Sequence[Tensor]) -> float:
        return sum((x @ (a - b).T).square().mean().item() for a, b in zip(tried, weights, strict=True))

    return loss


# Scales.


def _brute_scales(x: Tensor, weights: Sequence[Tensor], group: int, ratio: float) -> list[float]:
    """The scales of a ratio, number by number, from their definition."""
    columns = x.shape[1]
    x_mean = [sum(abs(v) for v in column) / len(x) for column in x.T.tolist()]
    w_mean = [0.0] * columns
    rows = [row for w in weights for row in w.tolist()]
    for row in rows:
        for first in range(0, columns, group):
            cut = [abs(v) for v in row[first : first + group]]
            for i, v in enumerate(cut):
                w_mean[first + i] += v / max(cut) / len(rows)
    scales = [max(a**ratio / (b ** (1 - ratio) + 1e-4), 1e-4) for a, b in zip(x_mean, w_mean, strict=True)]
    middle = math.sqrt(max(scales) * min(scales))
    return [s / middle for s in scales]


@pytest.mark.parametrize("ratio", [0.0, 0.35, 0.95])
@pytest.mark.parametrize("group_size", [16, 24])
def test_scales_are_those_of_the_definition(group_size: int, ratio: float) -> None:
    a, x = _data(6, 40, 20)
    b, _ = _data(3, 40, 20, seed=1)
    found = candidate_scales(x.abs().mean(0), mean_magnitude([a, b], group_size), ratio)
    torch.testing.assert_close(
        found, torch.tensor(_brute_scales(x, [a, b], group_size, ratio)), rtol=1e-4, atol=0
    )
    assert (found.max() * found.min()).item() == pytest.approx(1.0, rel=1e-4)


def test_mean_magnitude_counts_every_row_of_every_matrix() -> None:
    one = torch.tensor([[1.0, -2.0, 0.5]])
    two = torch.tensor([[4.0, 1.0, -3.0], [0.0, 0.0, 0.0]])
    expected = torch.tensor([0.5 + 1.0, 1.0 + 0.25, 1.0 + 1.0]) / 3
    torch.testing.assert_close(mean_magnitude([one, two], 2), expected)


def test_scales_of_activations_alone() -> None:
    x_mean = torch.tensor([0.01, 1.0, 4.0, 100.0])
    torch.testing.assert_close(candidate_scales(x_mean, None, 0.5), torch.tensor([0.1, 1.0, 2.0, 10.0]))
    assert candidate_scales(x_mean, None, 0.0).tolist() == [1.0] * 4


def test_inputs_that_never_fire_do_not_break_the_scales() -> None:
    weight, x = _data(8, 32, 50)
    x[:, 7] = 0
    weight[:, 9] = 0
    weight[2] = 0
    for ratio in (0.0, 0.5, 0.95):
        scales = candidate_scales(x.abs().mean(0), mean_magnitude([weight], 16), ratio)
        assert scales.isfinite().all()
        assert (scales > 0).all()
    never = search_scales(torch.zeros(32), [weight], lambda _: 1.0, bits=4, group_size=16)
    assert never.scales.isfinite().all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_best_of_all_ratios_is_found(bits: int, symmetric: bool) -> None:
    a, x = _data(12, 80, 64)
    b, _ = _data(20, 80, 64, seed=5)
    loss = _loss(x, [a, b])
    found = search_scales(x.abs().mean(0), [a, b], loss, bits=bits, group_size=32, symmetric=symmetric)
    tried = {ratio / 20: torch.tensor(_brute_scales(x, [a, b], 32, ratio / 20)) for ratio in range(20)}
    losses = {
        ratio: loss([_rounded(w * s, bits, 32, symmetric) / s for w in (a, b)]) for ratio, s in tried.items()
    }
    assert found.loss == pytest.approx(min(losses.values()), rel=1e-2)
    assert losses[found.ratio or 0] == pytest.approx(found.loss, rel=1e-2)
    torch.testing.assert_close(found.scales, tried[found.ratio or 0], rtol=1e-4, atol=0)
    assert found.rtn_loss == pytest.approx(loss([_rounded(w, bits, 32, symmetric) for w in (a, b)]))
    assert found.loss < 0.9 * found.rtn_loss  # large channels are what scales are for


@settings(deadline=None, max_examples=6)
@given(st.integers(0, 10_000), st.sampled_from([4, 8]), st.booleans())
def test_never_worse_than_no_scales(seed: int, bits: int, duo: bool) -> None:
    weight, x = _data(8, 48, 30, seed)
    loss = _loss(x, [weight])
    found = search_scales(x.abs().mean(0), [weight], loss, bits=bits, group_size=32, duo_scaling=duo)
    assert found.loss <= found.rtn_loss
    assert loss([_rounded(weight * found.scales, bits, 32) / found.scales]) == found.loss


def test_no_scales_are_kept_when_all_others_are_worse() -> None:
    weight, x = _data(8, 32, 10)
    losses = iter([1.0] + [2.0] * 19 + [float("nan")])
    found = search_scales(x.abs().mean(0), [weight], lambda _: next(losses), bits=4, group_size=16)
    assert (found.ratio, found.loss, found.rtn_loss) == (None, 1.0, 1.0)
    assert found.scales.tolist() == [1.0] * 32


def test_scale_search_refuses_what_it_cannot_judge() -> None:
    weight, x = _data(8, 32, 10)
    x_mean = x.abs().mean(0)
    with pytest.raises(NumericsError, match="the loss without scales is nan"):
        search_scales(x_mean, [weight], lambda _: float("nan"), bits=4, group_size=16)
    with pytest.raises(NumericsError, match="calibration inputs"):
        search_scales(x_mean * float("inf"), [weight], lambda _: 1.0, bits=4, group_size=16)
    for weights in ([], [weight[:, :16]]):
        with pytest.raises(InputError, match="do not go with 32 inputs"):
            search_scales(x_mean, weights, lambda _: 1.0, bits=4, group_size=16)


# Clipping.


def _brute_clip(weight: Tensor, x: Tensor, bits: int, group: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    """Maxima and errors (N, g), each group and row by itself, outputs computed token by token."""
    maxima, least = [], []
    for w in weight:
        row = []
        for first in range(0, len(w), group):
            cut, inputs = w[first : first + group], x[:, first : first + group].double()
            tries = []
            for step in range(10):
                m = cut.abs().max() * (1 - step / 20)
                rounded = _rounded(cut.clamp(-m, m)[None], bits, -1, symmetric)[0]
                error = (inputs @ (rounded - cut).double()).square().mean().item()
                tries.append((error, m.item()))
            row.append(min(tries, key=lambda t: t[0]))
        least.append([error for error, _ in row])
        maxima.append([m for _, m in row])
    return torch.tensor(maxima), torch.tensor(least)


@pytest.mark.parametrize(("group_size", "group"), [(16, 16), (32, 32), (-1, 40)])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_clip_search_finds_the_least_error(
    bits: int, symmetric: bool, group_size: int, group: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_CHUNK", 200)  # five rows at a time
    weight, x = _data(12, 40, 60)
    found = search_clip(weight, x, bits=bits, group_size=group_size, symmetric=symmetric)
    maxima, _ = _brute_clip(weight, x, bits, group, symmetric)
    assert found.shape == maxima.shape
    torch.testing.assert_close(found, maxima, rtol=1e-6, atol=0)
    if bits == 4:
        assert (found < 0.99 * weight.abs().amax(1, keepdim=True)).any()


@settings(deadline=None, max_examples=8)
@given(st.integers(0, 10_000), st.booleans())
def test_clipping_never_costs_a_group(seed: int, symmetric: bool) -> None:
    weight, x = _data(6, 40, 50, seed)
    maxima = search_clip(weight, x, bits=4, group_size=16, symmetric=symmetric)
    clipped = _rounded(clip_groups(weight, maxima, group_size=16), 4, 16, symmetric)
    plain = _rounded(weight, 4, 16, symmetric)
    for first in range(0, 40, 16):
        cut = slice(first, first + 16)
        after = (x[:, cut] @ (clipped - weight)[:, cut].T).square().mean(0)
        before = (x[:, cut] @ (plain - weight)[:, cut].T).square().mean(0)
        assert (after <= before * (1 + 1e-4) + 1e-9).all()


def test_clip_groups_clamps_each_group_to_its_own() -> None:
    weight = torch.tensor([[3.0, -3.0, 1.0, -5.0, 4.0], [1.0, 2.0, 3.0, 4.0, -5.0]], dtype=torch.bfloat16)
    maxima = torch.tensor([[2.0, 4.0, 9.0], [9.0, 3.5, 0.5]])
    clipped = clip_groups(weight, maxima, group_size=2)
    assert clipped.dtype == torch.bfloat16
    assert clipped.tolist() == [[2.0, -2.0, 1.0, -4.0, 4.0], [1.0, 2.0, 3.0, 3.5, -0.5]]


def test_tokens_are_taken_evenly() -> None:
    weight, x = _data(6, 32, 1100)
    some = search_clip(weight, x, bits=4, group_size=16)
    assert torch.equal(some, search_clip(weight, x[::2], bits=4, group_size=16, max_tokens=None))
    alternating = torch.cat([x[:50], 100 * x[50:100].flip(1)], dim=1).view(100, 32)
    few = search_clip(weight, alternating, bits=4, group_size=16, max_tokens=50)
    assert torch.equal(few, search_clip(weight, x[:50], bits=4, group_size=16))
    assert not torch.equal(few, search_clip(weight, alternating, bits=4, group_size=16, max_tokens=None))


def test_clip_search_of_nothing_and_of_no_numbers() -> None:
    weight, x = _data(4, 32, 10)
    weight[1] = 0
    assert search_clip(weight, x, bits=4, group_size=16)[1].tolist() == [0.0, 0.0]
    x[:, 16:] = 0
    assert search_clip(weight, x, bits=4, group_size=16)[0, 1] == weight[0, 16:].abs().max()
    with pytest.raises(InputError, match="give \\(tokens, 32\\)"):
        search_clip(weight, x[:0], bits=4, group_size=16)
    x[3, 3] = float("nan")
    with pytest.raises(NumericsError, match="calibration inputs"):
        search_clip(weight, x, bits=4, group_size=16)
    weight[0, 0] = float("inf")
    with pytest.raises(NumericsError, match="the weight"):
        search_clip(weight, x, bits=4, group_size=16)
