"""AWQ's two searches: scales that spare the inputs with large activations, and how far to clip each group.

After Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration" (2024), with the grids
of AutoAWQ. Pure functions of weights and statistics of their inputs: knows nothing of models, of which layers
share a scale, or of files. The codes themselves are :func:`qwenkit.quantize.grid.round_to_nearest` of the result.

Shapes: N outputs, K inputs, T tokens, G group size, g = ceil(K / G) groups, R rows of a chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.core.errors import InputError, NumericsError
from qwenkit.quantize.grid import fake_quantise, fake_quantise_groups, group_width, split_groups

_RATIOS = 20
_SHRINK_STEPS = 10
"""Of 1/20 each: the least maximum is 0.55 of the largest."""
_CHUNK = 1 << 19
"""Weights looked at together, so that all that is computed of them stays near the processor."""


@dataclass(frozen=True, slots=True, eq=False)
class ScaleResult:
    """The best scales found for a group of matrices with the same inputs."""

    scales: Tensor
    """(K,) float32: weights are multiplied by it, what comes before is divided"""
    ratio: float | None
    """How far the scales follow the activations, 0 to 0.95; None: scales of 1 were best"""
    loss: float
    """With these scales"""
    rtn_loss: float
    """With scales of 1"""


@torch.no_grad()
def search_scales(
    x_mean: Tensor,
    weights: Sequence[Tensor],
    loss: Callable[[Sequence[Tensor]], float],
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    duo_scaling: bool = True,
) -> ScaleResult:
    """Tries scales from even to following the activations and keeps the best; scales of 1 are one of the tries.

    Args:
        x_mean: (K,), mean of the absolute inputs.
        weights: matrices (N_i, K) that read these inputs; not changed.
        loss: error of the module's output with these matrices (float32) instead of its own.
        bits: 4 or 8.
        group_size: inputs that share a scale of the grid; -1: all of a row.
        symmetric: no zero points.
        duo_scaling: weigh activations against weights; otherwise activations alone.

    Raises:
        NumericsError: x_mean holds NaN or infinity, or the loss with scales of 1 is not finite.
    """
    columns = len(x_mean)
    if not weights or any(w.ndim != 2 or w.shape[1] != columns for w in weights):
        shapes = [tuple(w.shape) for w in weights]
        raise InputError(
            f"weights of shapes {shapes} do not go with {columns} inputs; each must be (N, {columns})"
        )
    x_mean = _finite(x_mean.float(), "the calibration inputs")

    def loss_of(scales: Tensor) -> float:
        return loss([_scaled(w, scales, bits, group_size, symmetric) for w in weights])

    best_scales, best_ratio = torch.ones_like(x_mean), None
    rtn_loss = best = loss_of(best_scales)
    if not math.isfinite(rtn_loss):
        raise NumericsError(
            f"the loss without scales is {rtn_loss}; run the calibration in float32 or bfloat16"
        )
    w_mean = mean_magnitude(weights, group_size) if duo_scaling else None
    for step in range(_RATIOS):
        scales = candidate_scales(x_mean, w_mean, step / _RATIOS)
        found = loss_of(scales)
        if found < best:
            best, best_scales, best_ratio = found, scales, step / _RATIOS
    return ScaleResult(best_scales, best_ratio, best, rtn_loss)


def mean_magnitude(weights: Sequence[Tensor], group_size: int) -> Tensor:
    """(K,): the mean, over the rows of all matrices, of a weight relative to the largest of its group."""
    columns = weights[0].shape[1]
    width = group_width(group_size, columns)
    total = torch.zeros(columns, device=weights[0].device)
    for weight in weights:
        groups = split_groups(weight.float().abs(), width)  # (N, g, G)
        largest = groups.amax(dim=-1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny)
        total += (groups / largest).sum(dim=0).flatten()[:columns]
    return total / sum(len(w) for w in weights)


def candidate_scales(x_mean: Tensor, w_mean: Tensor | None, ratio: float) -> Tensor:
    """(K,): the scales of one ratio, with largest times least = 1."""
    scales = x_mean.pow(ratio)
    if w_mean is not None:
        scales = scales / (w_mean.pow(1 - ratio) + 1e-4)
    scales = scales.clamp_(min=1e-4)
    return scales / (scales.max() * scales.min()).sqrt()


def _scaled(weight: Tensor, scales: Tensor, bits: int, group_size: int, symmetric: bool) -> Tensor:
    """What the weight becomes when it is quantised with these scales and they are taken off again."""
    rounded = fake_quantise(
        weight * scales, bits=bits, group_size=group_size, symmetric=symmetric, extend_zero=False
    )
    return rounded / scales


@torch.no_grad()
def search_clip(
    weight: Tensor,
    x: Tensor,
    *,
    bits: int,
    group_size: int,
    symmetric: bool = False,
    max_tokens: int | None = 512,
) -> Tensor:
    """The maximum, of each row and group, at which clipping the weights costs the group's output least.

    Args:
        weight: (N, K), scales applied; not changed.
        x: (T, K), inputs, scales taken off.
        bits: 4 or 8.
        group_size: inputs that share a scale of the grid; -1: all of a row.
        symmetric: no zero points.
        max_tokens: use about as many, evenly spaced; None: all.

    Returns:
        (N, g) float32; :func:`clip_groups` applies it.

    Raises:
        NumericsError: weight or inputs hold NaN or infinity.
    """
    n, k = weight.shape
    if x.ndim != 2 or x.shape[1] != k or len(x) == 0:
        raise InputError(
            f"inputs of shape {tuple(x.shape)} do not go with a weight {(n, k)}; give (tokens, {k})"
        )
    _finite(weight, "the weight")
    width = group_width(group_size, k)
    products = _products(x, width, max_tokens)
    rows = max(_CHUNK // k, 1)
    found = []
    for first in range(0, n, rows):
        groups = split_groups(weight[first : first + rows].float(), width).transpose(0, 1)  # (g, R, G)
        found.append(_least_error(groups.contiguous(), products, bits, symmetric))
    return torch.cat(found, dim=1).T.contiguous()


@torch.no_grad()
def clip_groups(weight: Tensor, maxima: Tensor, *, group_size: int) -> Tensor:
    """The weight (N, K) with every group clamped to plus or minus its maximum (N, g), in its own dtype."""
    width = group_width(group_size, weight.shape[1])
    bound = maxima.repeat_interleave(width, dim=1)[:, : weight.shape[1]].to(weight.dtype)
    return torch.maximum(torch.minimum(weight, bound), -bound)


def _products(x: Tensor, width: int, max_tokens: int | None) -> Tensor:
    """(g, G, G): mean of x^T x within each group, 0 where the last one is short.

    The mean over tokens of (x d)^2 is d^T (x^T x / T) d: the cost of a try no longer depends on the tokens.
    """
    if max_tokens is not None:
        x = x[:: max(len(x) // max_tokens, 1)]
    x = _finite(x.float(), "the calibration inputs")
    x = torch.nn.functional.pad(x, (0, -x.shape[1] % width))
    groups = x.view(len(x), -1, width).transpose(0, 1)  # (g, T, G)
    return groups.transpose(1, 2) @ groups / len(x)


def _least_error(groups: Tensor, products: Tensor, bits: int, symmetric: bool) -> Tensor:
    """(g, R): the best maxima of a chunk (g, R, G)."""
    largest = groups.abs().amax(dim=-1)
    best, least = largest, torch.full_like(largest, math.inf)
    for step in range(_SHRINK_STEPS):
        bound = largest * (1 - step / 20)
        clipped = torch.maximum(torch.minimum(groups, bound[..., None]), -bound[..., None])
        change = fake_quantise_groups(clipped, bits=bits, symmetric=symmetric, extend_zero=False).sub_(groups)
        error = torch.bmm(change, products).mul_(change).sum(dim=-1)
        best = torch.where(error < least, bound, best)
        least = torch.minimum(error, least)
    return best


def _finite(x: Tensor, what: str) -> Tensor:
    if not x.isfinite().all():
        raise NumericsError(f"{what} hold NaN or infinity; run the calibration in float32 or bfloat16")
    return x
