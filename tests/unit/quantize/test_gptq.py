"""GPTQ against its definition: worked numbers, a column-by-column oracle in float64, and what it promises."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import qwenkit.quantize.gptq as module
from qwenkit.core.errors import InputError, NumericsError
from qwenkit.quantize.gptq import GptqSettings, Hessian, gptq
from qwenkit.quantize.grid import dequantise, group_params, round_to_nearest


def _inputs(columns: int, tokens: int, seed: int = 0) -> Tensor:
    """Correlated, with channels of very different size."""
    draw = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=draw) / columns**0.5 + 0.3 * torch.eye(columns)
    size = torch.exp(0.7 * torch.randn(columns, generator=draw))
    return torch.randn(tokens, columns, generator=draw) @ mix * size


def _weight(n: int, k: int, seed: int = 0) -> Tensor:
    return torch.randn(n, k, generator=torch.Generator().manual_seed(seed + 1000)) * 0.05


def _hessian(*inputs: Tensor) -> Tensor:
    hessian = Hessian(inputs[0].shape[-1])
    for x in inputs:
        hessian.add(x)
    return hessian.matrix


# Worked numbers: W[i, j] = sin(1 + 3i + 5j), X[t, j] = cos(0.7 t (j + 1)) + 0.1 j, 4 bits.

_EXAMPLES: dict[str, tuple[dict[str, Any], list[list[int]], list[list[int]], list[int], float]] = {
    "one group": (
        {"group_size": 8},
        [[14, 6, 1, 6, 14, 13, 5, 1], [2, 11, 15, 9, 1, 3, 12, 15]],
        [[8], [8]],
        [0] * 8,
        0.16207,
    ),
    "groups of 4": (
        {"group_size": 4},
        [[14, 6, 1, 6, 14, 13, 5, 1], [2, 11, 15, 9, 1, 3, 12, 15]],
        [[8, 8], [8, 8]],
        [0, 0, 0, 0, 1, 1, 1, 1],
        0.19345,
    ),
    "act-order": (
        {"group_size": 4, "desc_act": True},
        [[15, 6, 0, 5, 15, 14, 5, 0], [3, 10, 15, 9, 1, 3, 13, 15]],
        [[8, 8], [8, 8]],
        [1, 1, 1, 1, 0, 0, 0, 0],
        0.08858,
    ),
    "act-order, static groups": (
        {"group_size": 4, "desc_act": True, "static_groups": True},
        [[15, 6, 0, 5, 15, 14, 5, 0], [3, 10, 15, 9, 1, 3, 13, 15]],
        [[8, 8], [8, 8]],
        [0, 0, 0, 0, 1, 1, 1, 1],
        0.08858,
    ),
    "with zeros": (
        {"group_size": 4, "symmetric": False},
        [[15, 6, 0, 5, 15, 14, 5, 0], [0, 9, 14, 7, 0, 2, 12, 14]],
        [[8, 8], [6, 7]],
        [0, 0, 0, 0, 1, 1, 1, 1],
        0.09981,
    ),
}


def _example() -> tuple[Tensor, Tensor]:
    i, j, t = torch.arange(2.0)[:, None], torch.arange(8.0), torch.arange(16.0)[:, None]
    return torch.sin(1 + 3 * i + 5 * j), torch.cos(0.7 * t * (j + 1)) + 0.1 * j


@pytest.mark.parametrize("case", _EXAMPLES)
def test_worked_examples(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The numbers are those of scales that are not rounded to float16."""
    choice, codes, zeros, g_idx, error = _EXAMPLES[case]
    monkeypatch.setattr(module, "stored_scales", lambda scales: scales)
    weight, x = _example()
    result = gptq(weight, _hessian(x), GptqSettings(**choice))
    q = result.quantised
    assert q.codes.tolist() == codes
    assert q.zeros.tolist() == zeros
    assert q.g_idx.tolist() == g_idx
    assert result.loss == pytest.approx(error, abs=6e-6)
    assert result.damp == 0.01


def test_worked_example_of_rounding_to_nearest() -> None:
    weight, x = _example()
    scales, zeros = group_params(weight.view(2, 2, 4), bits=4, symmetric=True)
    codes = ((weight.view(2, 2, 4) / scales[..., None]).round() + zeros[..., None]).clamp(0, 15)
    change = ((codes - zeros[..., None]) * scales[..., None]).view(2, 8) - weight
    assert (x @ change.T).square().sum().item() == pytest.approx(0.32564, abs=6e-6)


def test_stored_scales_keep_the_worked_examples_near() -> None:
    weight, x = _example()
    for choice, *_, error in _EXAMPLES.values():
        result = gptq(weight, _hessian(x), GptqSettings(**choice))
        assert result.loss == pytest.approx(error, rel=0.2)  # one code of one row may turn out otherwise


# The oracle: one column at a time, the inverse Hessian shrunk by elimination, everything in float64.


def _slice_grid(columns: Tensor, bits: int, symmetric: bool) -> tuple[Tensor, Tensor]:
    low, high = columns.amin(1).clamp(max=0), columns.amax(1).clamp(min=0)
    if symmetric:
        high = torch.maximum(-low, high)
        low = torch.where(low < 0, -high, low)
    scale = ((high - low) / (2**bits - 1)).float()
    zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else (-low.float() / scale).round()
    return scale.half().double(), zero.double()


def _oracle(weight: Tensor, hessian: Tensor, s: GptqSettings) -> tuple[Tensor, Tensor]:
    """Codes (N, K) and g_idx (K)."""
    w, h = weight.double().clone(), hessian.double().clone()
    k = w.shape[1]
    group = k if s.group_size == -1 else s.group_size
    dead = h.diagonal() == 0
    h[dead, dead] = 1
    w[:, dead] = 0
    original = w.clone()
    order = torch.argsort(h.diagonal(), descending=True, stable=True) if s.desc_act else torch.arange(k)
    w, h = w[:, order], h[order][:, order]
    inverse = torch.linalg.inv(h + s.damp * h.diagonal().mean() * torch.eye(k, dtype=torch.float64))
    codes, g_idx = torch.empty(w.shape, dtype=torch.uint8), torch.empty(k, dtype=torch.int32)
    grid: dict[int, tuple[Tensor, Tensor]] = {}
    for i in range(k):
        if i % s.block_size == 0:
            before_block = w.clone()
        g = int(order[i]) // group if s.static_groups else i // group
        if g not in grid:
            source = original if s.static_groups else before_block
            grid[g] = _slice_grid(source[:, g * group : (g + 1) * group], s.bits, s.symmetric)
        scale, zero = grid[g]
        code = ((w[:, i] / scale).round() + zero).clamp(0, 2**s.bits - 1)
        error = (w[:, i] - (code - zero) * scale) / inverse[0, 0]
        w[:, i + 1 :] -= error[:, None] * inverse[0, 1:]
        inverse = inverse[1:, 1:] - torch.outer(inverse[1:, 0], inverse[0, 1:]) / inverse[0, 0]
        codes[:, order[i]] = code.to(torch.uint8)
        g_idx[order[i]] = g
    return codes, g_idx


_SHAPES = [
    {"group_size": 32},
    {"group_size": 32, "symmetric": False},
    {"group_size": 32, "block_size": 32},
    {"group_size": -1, "block_size": 40},
    {"group_size": -1, "symmetric": False, "bits": 8},
    {"group_size": 64, "bits": 8},
    {"group_size": 64, "block_size": 16},  # a group longer than a block
    {"group_size": 48, "block_size": 32},  # groups that start inside one block and end in another
    {"group_size": 16, "block_size": 1},
    {"group_size": 32, "desc_act": True},
    {"group_size": 48, "desc_act": True, "symmetric": False, "block_size": 32},
    {"group_size": 32, "static_groups": True},
    {"group_size": 32, "static_groups": True, "desc_act": True, "symmetric": False, "block_size": 32},
    {"group_size": 128, "damp": 0.1},
]


@pytest.mark.parametrize("choice", _SHAPES, ids=str)
def test_agrees_with_the_oracle(choice: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_ROWS", 20)  # more than one run of rows
    s = GptqSettings(**choice)
    x = _inputs(144, 300)
    x[:, [5, 77]] = 0  # dead
    weight, hessian = _weight(48, 144), _hessian(x)
    q = gptq(weight, hessian, s).quantised
    codes, g_idx = _oracle(weight, hessian, s)
    assert torch.equal(q.g_idx, g_idx)
    # A weight in the middle of two codes may fall either way in float32, and its row goes on from there.
    equal_rows = (q.codes == codes).all(1).float().mean()
    assert equal_rows >= (0.9 if s.bits == 4 else 0.7)
    assert ((q.codes.int() - codes.int()).abs() <= 2 ** (s.bits - 3)).all()


def test_dead_inputs_count_as_one_in_the_damping() -> None:
    x = _inputs(64, 200) * 0.02
    x[:, ::2] = 0
    weight, hessian = _weight(16, 64), _hessian(x)
    s = GptqSettings(group_size=32)
    result = gptq(weight, hessian, s)
    codes, _ = _oracle(weight, hessian, s)
    assert (result.quantised.codes == codes).all(1).float().mean() >= 0.9


@pytest.mark.parametrize("choice", [c for c in _SHAPES if "damp" not in c], ids=str)
def test_loss_is_the_error_of_the_outputs(choice: dict[str, Any]) -> None:
    xs = [_inputs(144, tokens, seed) for seed, tokens in enumerate((40, 300, 9))]
    weight = _weight(24, 144)
    result = gptq(weight, _hessian(*xs), GptqSettings(**choice))
    change = (dequantise(result.quantised) - weight).double()
    expected = sum((x.double() @ change.T).square().sum().item() for x in xs) / 3
    assert result.loss == pytest.approx(expected, rel=1e-3)


# Properties.


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("group_size", [16, 40, 128, -1])
@pytest.mark.parametrize("bits", [4, 8])
def test_inputs_that_are_independent_give_rounding_to_nearest(
    bits: int, group_size: int, symmetric: bool
) -> None:
    weight = _weight(8, 96).to(torch.bfloat16)
    found = gptq(
        weight, _hessian(torch.eye(96)), GptqSettings(bits=bits, group_size=group_size, symmetric=symmetric)
    )
    nearest = round_to_nearest(weight, bits=bits, group_size=group_size, symmetric=symmetric)
    for name in ("codes", "scales", "zeros", "g_idx"):
        assert torch.equal(getattr(found.quantised, name), getattr(nearest, name)), name
    assert found.quantised.group_size == nearest.group_size


@settings(deadline=None, max_examples=12)
@given(
    st.integers(0, 10_000),
    st.sampled_from([4, 8]),
    st.sampled_from([16, 32, 48, -1]),
    st.booleans(),
    st.booleans(),
)
def test_outputs_are_nearer_than_with_rounding_to_nearest(
    seed: int, bits: int, group_size: int, symmetric: bool, desc_act: bool
) -> None:
    x, weight = _inputs(96, 200, seed), _weight(16, 96, seed)
    choice = GptqSettings(bits=bits, group_size=group_size, symmetric=symmetric, desc_act=desc_act)
    ours = dequantise(gptq(weight, _hessian(x), choice).quantised) - weight
    nearest = (
        dequantise(round_to_nearest(weight, bits=bits, group_size=group_size, symmetric=symmetric)) - weight
    )
    assert (x @ ours.T).square().sum() < (x @ nearest.T).square().sum()


def test_a_factor_in_the_hessian_changes_nothing() -> None:
    weight, hessian = _weight(16, 64), _hessian(_inputs(64, 100))
    one = gptq(weight, hessian, GptqSettings(group_size=32))
    four = gptq(weight, hessian * 4, GptqSettings(group_size=32))
    assert torch.equal(one.quantised.codes, four.quantised.codes)
    assert four.loss == pytest.approx(4 * one.loss, rel=1e-3)


def test_arguments_are_left_alone() -> None:
    x = _inputs(64, 100)
    x[:, 3] = 0
    weight, hessian = _weight(16, 64), _hessian(x)
    kept = weight.clone(), hessian.clone()
    q = gptq(torch.nn.Parameter(weight), hessian, GptqSettings(desc_act=True)).quantised
    assert torch.equal(weight, kept[0])
    assert torch.equal(hessian, kept[1])
    assert not dequantise(q)[:, 3].any()
    assert q.codes.is_contiguous()
    assert q.scales.is_contiguous()
    assert q.zeros.is_contiguous()


def test_the_number_of_threads_is_left_alone() -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        gptq(_weight(4, 32), _hessian(_inputs(32, 50)), GptqSettings())
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(threads)


def test_fewer_tokens_than_inputs_are_enough() -> None:
    weight, x = _weight(16, 128), _inputs(128, 20)
    result = gptq(weight, _hessian(x), GptqSettings(group_size=32))
    nearest = dequantise(round_to_nearest(weight, bits=4, group_size=32, symmetric=True)) - weight
    assert result.loss < 0.3 * (x @ nearest.T).square().sum().item()


def test_damping_rises_until_the_hessian_will_do() -> None:
    hessian = _hessian(_inputs(64, 100))
    lowest = torch.linalg.eigvalsh(hessian)[0]
    hessian -= (lowest + 0.05 * hessian.diagonal().mean()) * torch.eye(
        64
    )  # the least eigenvalue is negative now
    result = gptq(_weight(16, 64), hessian, GptqSettings(group_size=32))
    assert result.damp in (0.04, 0.08)
    with pytest.raises(NumericsError, match="not positive definite even with damp 1"):
        gptq(_weight(16, 64), torch.ones(64, 64) * 10 - 9.5 * torch.eye(64), GptqSettings())


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none(bad: float) -> None:
    weight, hessian = _weight(4, 32), _hessian(_inputs(32, 50))
    weight[2, 7] = bad
    with pytest.raises(NumericsError, match="the weight holds"):
        gptq(weight, hessian, GptqSettings())
    hessian[3, 4] = bad
    with pytest.raises(NumericsError, match="calibration inputs hold"):
        gptq(_weight(4, 32), hessian, GptqSettings())


def test_what_does_not_belong_together() -> None:
    with pytest.raises(InputError, match="do not belong together"):
        gptq(_weight(4, 32), torch.eye(31), GptqSettings())
    with pytest.raises(InputError, match="no calibration input"):
        gptq(_weight(4, 32), Hessian(32).matrix, GptqSettings())
    for wrong in ({"bits": 3}, {"group_size": 0}, {"damp": 0.0}, {"damp": 1.5}, {"block_size": 0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            replace(GptqSettings(), **wrong)  # type: ignore[arg-type]


# The Hessian.


def test_hessian_is_a_mean_over_sequences() -> None:
    xs = [_inputs(24, tokens, tokens) for tokens in (5, 17, 40)]
    hessian = Hessian(24)
    hessian.add(xs[0])
    hessian.add(xs[1].unsqueeze(0))
    hessian.add(xs[2].view(4, 10, 24))
    assert hessian.sequences == 6
    expected = sum(2 / 6 * x.double().T @ x.double() for x in xs)
    torch.testing.assert_close(hessian.matrix.double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="give \\(tokens, 24\\)"):
        hessian.add(torch.zeros(3, 25))


def test_hessian_of_many_half_precision_sequences_stays_exact() -> None:
    torch.manual_seed(0)
    x = (torch.randn(2000, 4, 8) * 100).half()
    hessian = Hessian(8)
    for sequence in x:
        hessian.add(sequence)
    rows = x.double().view(-1, 8)
    torch.testing.assert_close(hessian.matrix.double(), 2 / 2000 * rows.T @ rows, rtol=1e-4, atol=1.0)
