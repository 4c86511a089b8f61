"""The grid of a group of weights: its scale and zero, rounding to the nearest code, and back.

Knows nothing of models, files, or of why one code should be better than the nearest one.

Shapes: N outputs, K inputs, G group size, g = ceil(K / G) groups, of which the last may be shorter.

Two rules are in use, and differ in three points. GPTQ's (``extend_zero``) always takes 0 into the range, and its
symmetric form spreads 2^bits codes over [-max, max] around 2^(bits-1). AWQ's takes the range as it is (so a group whose
weights all have one sign clips: the zero cannot leave the codes), never makes it smaller than 1e-5, and its symmetric
form divides the maximum by 2^(bits-1) - 1.

Scale and zero are computed in float32. Then the scale is rounded to float16, as every file stores it, and codes are chosen
with the rounded scale: what is compensated, measured and searched is what will be read back, not something near it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from qwenkit.core.errors import InputError, NumericsError
from qwenkit.layers.packing import Quantised

_SMALLEST_RANGE = 1e-5
_SMALLEST_HALF = 2.0**-24
"""The least positive float16: a scale below it would be stored as 0."""


class GroupParams(NamedTuple):
    """What maps codes to weights: ``scales * (code - zeros)``. One shape, float32, zeros whole numbers."""

    scales: Tensor
    zeros: Tensor


def group_params(weight: Tensor, *, bits: int, symmetric: bool, extend_zero: bool = True) -> GroupParams:
    """Scale and zero of each slice along the last axis; the scale not rounded to float16 yet.

    Args:
        weight: (..., G), computed in float32.
        bits: of a code.
        symmetric: the zero is 2^(bits-1).
        extend_zero: GPTQ's rule; otherwise AWQ's.
    """
    top = (1 << bits) - 1
    low, high = weight.float().aminmax(dim=-1)
    if extend_zero:
        low, high = _gptq_range(low.clamp_(max=0), high.clamp_(min=0), symmetric)
        scales = (high - low) / top
        return GroupParams(scales, _middle(scales, bits) if symmetric else (-low / scales).round())
    if symmetric:
        scales = torch.maximum(low.abs(), high.abs()).clamp_(min=_SMALLEST_RANGE) / (top >> 1)
        return GroupParams(scales, _middle(scales, bits))
    scales = (high - low).clamp_(min=_SMALLEST_RANGE) / top
    return GroupParams(scales, (-(low / scales).round()).clamp_(0, top))


def _gptq_range(low: Tensor, high: Tensor, symmetric: bool) -> tuple[Tensor, Tensor]:
    if symmetric:
        high = torch.maximum(-low, high)
        low = torch.where(low < 0, -high, low)
    empty = (low == 0) & (high == 0)
    return low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)


def _middle(like: Tensor, bits: int) -> Tensor:
    return torch.full_like(like, 1 << (bits - 1))


def stored_scales(scales: Tensor) -> Tensor:
    """Scales as float16 will keep them, in float32.

    Raises:
        NumericsError: one is not finite, or larger than float16 goes.
    """
    half = scales.clamp(min=_SMALLEST_HALF).half().float()
    if not half.isfinite().all():
        raise NumericsError(
            f"a scale of {scales.max().item():.3g} does not fit in float16 (at most 65504): "
            "the weights hold NaN, infinity or absurdly large values"
        )
    return half


def nearest_codes(weight: Tensor, params: GroupParams, bits: int) -> Tensor:
    """The code nearest to each weight, as float32; the shapes of weight and params broadcast."""
    return (weight / params.scales).round_().add_(params.zeros).clamp_(0, (1 << bits) - 1)


def group_width(group_size: int, columns: int) -> int:
    """Inputs that share a scale: all of a row for -1 or for more than there are."""
    if group_size != -1 and group_size < 1:
        raise InputError(f"group_size is {group_size}; use a positive number, or -1 for one group per row")
    return columns if group_size == -1 else min(group_size, columns)


def split_groups(weight: Tensor, width: int) -> Tensor:
    """(N, K) as (N, g, G); a short last group is filled with copies of its last column, which changes no range."""
    n, k = weight.shape
    missing = -k % width
    if missing:
        weight = torch.cat([weight, weight[:, -1:].expand(n, missing)], dim=1)
    return weight.view(n, -1, width) if weight.is_contiguous() else weight.reshape(n, -1, width)


def join_groups(groups: Tensor, columns: int) -> Tensor:
    """The inverse of :func:`split_groups`."""
    return groups.flatten(1)[:, :columns]


@torch.no_grad()
def round_to_nearest(
    weight: Tensor, *, bits: int, group_size: int, symmetric: bool, extend_zero: bool = True
) -> Quantised:
    """The matrix (N, K) with each weight at its nearest code.

    Args:
        weight: any floating type.
        bits: 4 or 8.
        group_size: inputs that share a scale; -1: all of a row. The last group may be shorter.
        symmetric: every zero is 2^(bits-1).
        extend_zero: GPTQ's rule for a group's grid; otherwise AWQ's.

    Raises:
        NumericsError: the weight holds NaN or infinity.
    """
    width = group_width(group_size, weight.shape[1])
    groups = split_groups(weight.float(), width)
    params = _stored_params(groups, bits=bits, symmetric=symmetric, extend_zero=extend_zero)
    codes = join_groups(nearest_codes(groups, params, bits), weight.shape[1])
    return Quantised(
        bits=bits,
        group_size=width,
        codes=codes.to(torch.uint8).contiguous(),
        scales=params.scales.squeeze(-1).half(),
        zeros=params.zeros.squeeze(-1).to(torch.uint8),
        g_idx=torch.arange(weight.shape[1], dtype=torch.int32, device=weight.device) // width,
    )


@torch.no_grad()
def fake_quantise(
    weight: Tensor, *, bits: int, group_size: int, symmetric: bool, extend_zero: bool = True
) -> Tensor:
    """What :func:`round_to_nearest` makes of the weight, as float32 numbers (N, K)."""
    groups = split_groups(weight.float(), group_width(group_size, weight.shape[1]))
    rounded = fake_quantise_groups(groups, bits=bits, symmetric=symmetric, extend_zero=extend_zero)
    return join_groups(rounded, weight.shape[1])


def fake_quantise_groups(groups: Tensor, *, bits: int, symmetric: bool, extend_zero: bool = True) -> Tensor:
    """The same for a float32 tensor (..., G) whose last axis is a group."""
    params = _stored_params(groups, bits=bits, symmetric=symmetric, extend_zero=extend_zero)
    return nearest_codes(groups, params, bits).sub_(params.zeros).mul_(params.scales)


def _stored_params(groups: Tensor, *, bits: int, symmetric: bool, extend_zero: bool) -> GroupParams:
    """Shape (..., 1), to go with (..., G)."""
    params = group_params(groups, bits=bits, symmetric=symmetric, extend_zero=extend_zero)
    return GroupParams(stored_scales(params.scales).unsqueeze(-1), params.zeros.unsqueeze(-1))


def dequantise(quantised: Quantised) -> Tensor:
    """The numbers (N, K) that the codes stand for, in float32, where scale times integer is exact."""
    groups = quantised.g_idx.long()
    zeros = quantised.zeros.float()[:, groups]
    return quantised.codes.float().sub_(zeros).mul_(quantised.scales.float()[:, groups])
