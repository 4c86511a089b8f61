"""Products with packed weights on a GPU, in Triton: codes are read as they lie, numbers exist only in registers.

Two kernels: one for few rows of activations, which the reading of the codes limits, and one of matrix tiles for more.
Knows nothing of layers. Import it only where Triton is installed.

Shapes: T rows of activations, N outputs, K inputs, g groups, as in kernels/packed.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from qwenkit.core.errors import InputError
from qwenkit.kernels.packed import PackedWeight

VECTOR_ROWS = 4
"""Up to so many rows of activations are multiplied one by one, without matrix units."""

_DTYPES = {torch.float16: tl.float16, torch.bfloat16: tl.bfloat16, torch.float32: tl.float32}
_WHOLE_ROW = 1 << 30  # a group size that no row reaches
_PIECE = 16  # bytes whose low halves share a scale, as do the high ones, whatever the group size


@triton.jit
def _plus_2_23(codes: tl.tensor, shift: tl.constexpr, mask: tl.constexpr) -> tl.tensor:
    """``codes >> shift & mask`` as float32, plus 2^23: as the mantissa, since conversions run at a quarter of the rate."""
    return (((codes >> shift) & mask) | 0x4B000000).to(tl.float32, bitcast=True)


@triton.jit
def _parameters(
    scales: tl.tensor,
    zeros: tl.tensor,
    mins: tl.tensor,
    place: tl.tensor,
    valid: tl.tensor,
    BITS: tl.constexpr,
) -> tl.tensor:
    """Scale, 2^23 + zero, min (0 without mins) of groups, float32; where not valid the weights become 0."""
    scale = tl.load(scales + place, mask=valid, other=0.0).to(tl.float32)
    offset = tl.zeros_like(scale) + 8388608.0
    minimum = tl.zeros_like(scale)
    if mins is not None:
        minimum = tl.load(mins + place, mask=valid, other=0.0).to(tl.float32)
    elif zeros is not None:
        offset += tl.load(zeros + place, mask=valid, other=0).to(tl.float32)
    else:
        offset += 1 << (BITS - 1)
    return scale, offset, minimum


@triton.jit
def _vector_kernel(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    mins: tl.tensor,
    out: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    num_groups: tl.tensor,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCKS: tl.constexpr,
) -> None:
    """One row of activations times ROWS rows of the weight; 16 bytes of codes a thread, added up in float32.

    The scale multiplies sums over 16 inputs instead of every weight.
    """
    INPUTS: tl.constexpr = 128 // BITS  # of 16 bytes
    NUMBER: tl.constexpr = (1 << BITS) - 1
    token = tl.program_id(0).to(tl.int64)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    row = tl.minimum(n, num_rows - 1).to(tl.int64)  # those beyond the last are computed and not stored
    byte = tl.arange(0, 16)
    total = num_columns // INPUTS
    sums = tl.zeros((ROWS, BLOCKS), tl.float32)
    for start in range(0, total, BLOCKS):
        block = start + tl.arange(0, BLOCKS)
        valid = block < total
        at = row[:, None, None] * (total * 16) + (block[:, None] * 16 + byte[None, :])[None, :, :]
        raw = tl.load(codes + at, mask=valid[None, :, None], other=0).to(tl.int32)  # (ROWS, BLOCKS, 16)
        for half in tl.static_range(INPUTS // 16):
            first = block * INPUTS + half * 16
            x_at = token * num_columns + first[:, None] + byte[None, :]
            xs = tl.load(x + x_at, mask=valid[:, None], other=0.0).to(tl.float32)  # (BLOCKS, 16)
            place = row[:, None] * num_groups + (first // GROUP)[None, :]
            scale, offset, minimum = _parameters(scales, zeros, mins, place, valid[None, :], BITS)
            weights = _plus_2_23(raw, half * 4, NUMBER) - offset[:, :, None]  # exact
            sums += scale * tl.sum(weights * xs[None, :, :], axis=2)
            if mins is not None:
                sums += minimum * tl.sum(xs, axis=1)[None, :]
    result = tl.sum(sums, axis=1).to(out.dtype.element_ty)
    tl.store(out + token * num_rows + n, result, mask=n < num_rows)


@triton.jit
def _tile_kernel(
    x: tl.tensor,
    codes: tl.tensor,
    scales: tl.tensor,
    zeros: tl.tensor,
    mins: tl.tensor,
    out: tl.tensor,
    num_tokens: tl.tensor,
    num_rows: tl.tensor,
    num_columns: tl.tensor,
    num_groups: tl.tensor,
    GROUP: tl.constexpr,
    BITS: tl.constexpr,
    MATH: tl.constexpr,
    TOKENS: tl.constexpr,
    BYTES: tl.constexpr,
    ROWS: tl.constexpr,
    SPANS: tl.constexpr,
) -> None:
    """(ROWS, TOKENS) of the transposed product, BYTES of codes of each row at a time.

    The weight is the left factor, which matrix units may take from registers. 4-bit codes make two products: with
    the inputs of the low and of the high halves of the bytes. Weights are rounded to MATH, sums are float32.
    A tile of codes falls into SPANS equal parts along the inputs, each inside one group.
    """
    HALVES: tl.constexpr = 8 // BITS
    NUMBER: tl.constexpr = (1 << BITS) - 1
    APART: tl.constexpr = 0 if GROUP % 32 == 0 else 16  # the halves of a block may be in different groups
    t = tl.program_id(0) * TOKENS + tl.arange(0, TOKENS)
    n = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    token = tl.minimum(t, num_tokens - 1).to(tl.int64)  # those beyond the last are computed and not stored
    row = tl.minimum(n, num_rows - 1).to(tl.int64)
    row_bytes = num_columns // HALVES
    sums = tl.zeros((ROWS, TOKENS), tl.float32)
    for start in range(0, row_bytes, BYTES):
        byte = start + tl.arange(0, BYTES)
        valid = byte < row_bytes
        at = row[:, None] * row_bytes + byte[None, :]
        raw = tl.load(codes + at, mask=valid[None, :], other=0).to(tl.int32)  # (ROWS, BYTES)
        for half in tl.static_range(HALVES):
            k = byte // 16 * (16 * HALVES) + byte % 16 + half * 16
            x_at = token[None, :] * num_columns + k[:, None]
            xs = tl.load(x + x_at, mask=valid[:, None], other=0.0).to(MATH)  # (BYTES, TOKENS)
            first = start * HALVES + tl.arange(0, SPANS) * (BYTES * HALVES // SPANS) + half * APART
            place = row[:, None] * num_groups + (first // GROUP)[None, :]
            inside = (first < num_columns)[None, :]
            scale, offset, minimum = _parameters(scales, zeros, mins, place, inside, BITS)
            spans = _plus_2_23(raw, half * 4, NUMBER).reshape(ROWS, SPANS, BYTES // SPANS)
            spans = (spans - offset[:, :, None]) * scale[:, :, None]
            if mins is not None:
                spans += minimum[:, :, None]
            weights = spans.reshape(ROWS, BYTES).to(MATH)
            sums = tl.dot(weights, xs, sums, input_precision="ieee")
    where = out + t.to(tl.int64)[None, :] * num_rows + n[:, None]
    tl.store(where, sums.to(out.dtype.element_ty), mask=(n < num_rows)[:, None] & (t < num_tokens)[None, :])


@dataclass(frozen=True, slots=True, eq=False)
class Tiles:
    """How the tile kernel cuts a product. Nothing is timed when it runs: the same shapes give the same choice."""

    tokens: int
    """Rows of activations of a tile"""
    rows: int
    """Rows of the weight of a tile"""
    bytes_of: Mapping[int, int]
    """Bytes of codes of each row that are read at a time, by bits"""
    num_warps: int
    num_stages: int
    """Tiles of inputs on their way from memory at a time"""


FEW = Tiles(16, 32, {4: 128, 8: 128}, num_warps=4, num_stages=4)
"""For a batch of decoded sequences: long in the inputs, so that many bytes are on their way."""
NARROW = Tiles(64, 64, {4: 32, 8: 64}, num_warps=4, num_stages=3)
WIDE = Tiles(128, 128, {4: 32, 8: 64}, num_warps=8, num_stages=3)
FLOAT32 = Tiles(32, 64, {4: 32, 8: 64}, num_warps=4, num_stages=2)
"""Without matrix units, at full precision."""


def quant_matmul(x: Tensor, weight: PackedWeight) -> Tensor:
    """x W^T: (..., K) -> (..., N), in the type of ``x``, summed in float32.

    The same call gives the same bits. A row's result does not depend on the rows beside it, nor on how many there
    are as long as they stay in one range: up to VECTOR_ROWS, up to FEW.tokens, more. Between the ranges the last
    bits may differ: the first keeps the weights in float32, the others round them to the type of ``x``.

    Raises:
        InputError: the shapes do not fit, or the type of ``x`` is none of float16, bfloat16 and float32.
    """
    num_rows, num_columns = weight.shape
    if x.shape[-1] != num_columns or x.dtype not in _DTYPES:
        allowed = f"(..., {num_columns}) in float16, bfloat16 or float32"
        raise InputError(f"activations are {tuple(x.shape)} in {x.dtype}; pass {allowed} to this weight")
    flat = x.reshape(-1, num_columns)
    if weight.order is not None:
        flat = flat.index_select(1, weight.order)
    flat = flat.contiguous()
    out = torch.empty(len(flat), num_rows, dtype=x.dtype, device=x.device)
    if len(flat):
        with torch.cuda.device(x.device) if x.is_cuda else nullcontext():
            _launch(flat, weight, out)
    return out.view(*x.shape[:-1], num_rows)


def tiles_for(num_tokens: int, num_rows: int, dtype: torch.dtype, processors: int) -> Tiles | None:
    """How so many rows of activations are multiplied; None: one by one, by the vector kernel.

    Large tiles are faster once there are enough to keep every multiprocessor of the GPU busy.
    """
    if num_tokens <= VECTOR_ROWS:
        return None
    if dtype == torch.float32:
        return FLOAT32
    if num_tokens <= FEW.tokens:
        return FEW
    num_wide = triton.cdiv(num_tokens, WIDE.tokens) * triton.cdiv(num_rows, WIDE.rows)
    return WIDE if num_tokens > NARROW.tokens and num_wide >= processors else NARROW


def spans(group_size: int, size: int, bits: int) -> int:
    """Into how many equal parts, each inside one group, a tile of ``size`` bytes falls."""
    inputs = size * 8 // bits
    if group_size % inputs == 0:
        return 1
    pieces = size // _PIECE
    return min(inputs // group_size, pieces) if inputs % group_size == 0 else pieces


def vector_constants(group_size: int, bits: int) -> dict[str, Any]:
    """What the vector kernel is compiled for."""
    return {"GROUP": group_size, "BITS": bits, "ROWS": 8, "BLOCKS": 32, "num_warps": 4}


def tile_constants(tiles: Tiles, group_size: int, bits: int, dtype: torch.dtype) -> dict[str, Any]:
    """What the tile kernel is compiled for."""
    size = tiles.bytes_of[bits]
    return {
        "GROUP": group_size,
        "BITS": bits,
        "MATH": _DTYPES[dtype],
        "TOKENS": tiles.tokens,
        "ROWS": tiles.rows,
        "BYTES": size,
        "SPANS": spans(group_size, size, bits),
        "num_warps": tiles.num_warps,
        "num_stages": tiles.num_stages,
    }


def _launch(x: Tensor, weight: PackedWeight, out: Tensor) -> None:
    num_tokens, num_rows = out.shape
    group = weight.group_size if weight.group_size < weight.shape[1] else _WHOLE_ROW
    tensors = (x, weight.codes, weight.scales, weight.zeros, weight.mins, out)
    assert all(t is None or (t.is_contiguous() and t.device == x.device) for t in tensors)
    sizes = (num_rows, weight.shape[1], weight.scales.shape[1])
    processors = torch.cuda.get_device_properties(x.device).multi_processor_count if x.is_cuda else 1
    tiles = tiles_for(num_tokens, num_rows, x.dtype, processors)
    if tiles is None:
        constants = vector_constants(group, weight.bits)
        grid = (num_tokens, triton.cdiv(num_rows, constants["ROWS"]))
        _vector_kernel[grid](*tensors, *sizes, **constants)
        return
    # Triton's interpreter, which runs on a CPU, has no products of bfloat16
    math = torch.float32 if x.dtype == torch.bfloat16 and not x.is_cuda else x.dtype
    grid = (triton.cdiv(num_tokens, tiles.tokens), triton.cdiv(num_rows, tiles.rows))
    _tile_kernel[grid](*tensors, num_tokens, *sizes, **tile_constants(tiles, group, weight.bits, math))
