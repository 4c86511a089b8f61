"""Words of GPTQ and AWQ checkpoints as a matrix of numbers, by the CPU kernels or torch. Knows nothing of layers or gradients.

Every number is ``scale * (code - zero)``, exact in float32 for scales of 16 bits, then rounded once to the type asked for.

Shapes: N outputs, K inputs, G group size, g groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.kernels.training import can_unpack, unpack_words
from qwenkit.layers.packing_words import AWQ_PLACE, fields, zip_fields

_TILE = 1 << 18
"""Numbers that each thread of a CPU works on at once: in float32 they stay in its cache."""
_LARGE_TILE = 1 << 25
"""Elsewhere: few and large operations."""
_ONE = 0x3F800000  # 1.0 in float32


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How the words of a matrix lie."""

    kind: str
    """gptq, gemm or gemv"""
    bits: int
    """4 or 8"""
    group_size: int
    """Inputs that share a scale; K: one group."""
    version: int = 2
    """gptq: 1: zeros are stored less one; 2: as they are."""


def dequantised(
    layout: Layout, qweight: Tensor, qzeros: Tensor, scales: Tensor, order: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The matrix (K, N), for products from the left.

    Args:
        layout: how the words lie.
        qweight: int32 words of codes.
        qzeros: int32 words of zeros.
        scales: one per group and output.
        order: (K,) inputs in the order of their groups where these are scattered: row j of the result belongs to
            input order[j]; None: to input j.
        dtype: of the result.
    """
    if can_unpack(scales, dtype):
        out = unpack_words(
            layout.kind,
            layout.bits,
            layout.version,
            layout.group_size,
            qweight,
            qzeros,
            scales,
            order,
            dtype,
        )
        return out.t() if layout.kind == "gemv" else out
    return dequantised_by_torch(layout, qweight, qzeros, scales, order, dtype)


def dequantised_by_torch(
    layout: Layout, qweight: Tensor, qzeros: Tensor, scales: Tensor, order: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """What ``dequantised`` is, bit by bit, on every device and for all types."""
    if layout.kind == "gemv":
        return _gemv(layout, qweight, qzeros, scales, dtype)
    factors = scales.float()
    summands = _zeros(layout, qzeros).mul_(factors).neg_()
    per_word = 1
    if layout.kind == "gptq":  # its codes come as 1 + code / 2^bits
        per_word = 32 // layout.bits
        summands.sub_(factors, alpha=1 << layout.bits)
        factors = factors * (1 << layout.bits)
    n = scales.shape[1]
    out = torch.empty(qweight.shape[0] * per_word, n, dtype=dtype, device=qweight.device)
    for first, end in _spans(len(out), n, layout.group_size, out.device):
        if order is not None:
            codes = _scattered_fractions(qweight, order[first:end], layout.bits)
        elif layout.kind == "gptq":
            codes = _fractions(qweight[first // per_word : end // per_word], layout.bits)
        else:
            codes = _gemm_codes(qweight[first:end])
        group, count = first // layout.group_size, max((end - first) // layout.group_size, 1)
        at = slice(group, group + count)
        _scale(
            codes.view(count, -1, n), factors[at, None], summands[at, None], out[first:end].view(count, -1, n)
        )
    return out


def _gemv(layout: Layout, qweight: Tensor, qzeros: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    n, k = qweight.shape[0], qweight.shape[1] * 8
    groups = k // layout.group_size
    factors = scales[:, :groups].float()
    summands = fields(qzeros, 4)[:, :groups].float().mul_(factors).neg_()
    out = torch.empty(n, k, dtype=dtype, device=qweight.device)
    step = max(_at_once(out.device) // k, 1)
    for first in range(0, n, step):
        rows = slice(first, first + step)
        codes = _gemv_codes(qweight[rows]).view(-1, groups, layout.group_size)
        _scale(codes, factors[rows, :, None], summands[rows, :, None], out[rows].view(codes.shape))
    return out.t()


def _zeros(layout: Layout, qzeros: Tensor) -> Tensor:
    """(g, N) float32"""
    zeros = fields(qzeros, layout.bits)
    if layout.kind == "gemm":
        return torch.unflatten(zeros, 1, (-1, 8))[:, :, AWQ_PLACE].flatten(1).float()
    return ((zeros + (2 - layout.version)) & ((1 << layout.bits) - 1)).float()


def _scale(codes: Tensor, factor: Tensor, summand: Tensor, out: Tensor) -> None:
    """out = codes * factor + summand; both terms and their sum are exact."""
    if out.dtype == torch.float32:
        torch.addcmul(summand, codes, factor, out=out)
    else:
        out.copy_(torch.addcmul(summand, codes, factor, out=codes))


def _at_once(device: torch.device) -> int:
    return _TILE * torch.get_num_threads() if device.type == "cpu" else _LARGE_TILE


def _spans(k: int, n: int, group_size: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Ranges of inputs, each of whole groups or within one."""
    rows = max(_at_once(device) // n // 32, 1) * 32
    whole = k // group_size * group_size
    if rows >= group_size:
        step = rows // group_size * group_size
        yield from ((at, min(at + step, whole)) for at in range(0, whole, step))
        if whole < k:
            yield whole, k
        return
    for group in range(0, k, group_size):
        end = min(group + group_size, k)
        yield from ((at, min(at + rows, end)) for at in range(group, end, rows))


def _fractions(words: Tensor, bits: int) -> Tensor:
    """(r, N) words of consecutive inputs to 1 + code / 2^bits in float32, (r * 32 / bits, N).

    Codes are shifted to the highest bits of the mantissa of 1.0, which spares converting them.
    """
    top = 23 - bits
    places = [top - bits * j for j in range(32 // bits)]
    left = [by for by in places if by >= 0]
    moved = words.new_empty(len(words), len(places), words.shape[1])
    for shift, first, by in (
        (torch.bitwise_left_shift, 0, left),
        (torch.bitwise_right_shift, len(left), [-by for by in places[len(left) :]]),
    ):
        shift(words[:, None], words.new_tensor(by)[:, None], out=moved[:, first : first + len(by)])
    moved.bitwise_and_(((1 << bits) - 1) << top).bitwise_or_(_ONE)
    return moved.view(torch.float32).flatten(0, 1)


def _scattered_fractions(words: Tensor, rows: Tensor, bits: int) -> Tensor:
    """As ``_fractions``, of some inputs in any order: (len(rows), N)."""
    per_word = 32 // bits
    moved = words.index_select(0, rows // per_word)
    places = (32 - bits - rows % per_word * bits).to(torch.int32)
    moved.bitwise_left_shift_(places[:, None]).bitwise_right_shift_(9)
    moved.bitwise_and_(((1 << bits) - 1) << 23 - bits).bitwise_or_(_ONE)
    return moved.view(torch.float32)


def _gemm_codes(words: Tensor) -> Tensor:
    """(k, N / 8) words of AWQ GEMM to codes in float32, (k, N)."""
    low, high = _halves(words)  # bytes of outputs 0 4 1 5 and 2 6 3 7 of each eight
    return _as_numbers(zip_fields(*zip_fields(low, high, 16), 8))


def _gemv_codes(words: Tensor) -> Tensor:
    """(n, K / 8) words of AWQ GEMV to codes in float32, (n, K)."""
    low, high = _halves(words)  # bytes of inputs 0 2 4 6 and 1 3 5 7 of each eight
    return _as_numbers(zip_fields(*zip_fields(low, high, 8), 16))


def _halves(words: Tensor) -> tuple[Tensor, Tensor]:
    return words & 0x0F0F0F0F, words >> 4 & 0x0F0F0F0F


def _as_numbers(pair: tuple[Tensor, Tensor]) -> Tensor:
    """Words of four codes and of the next four."""
    return torch.stack(pair, dim=-1).flatten(1).view(torch.uint8).float()
