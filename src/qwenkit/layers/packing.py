"""GPTQ and AWQ checkpoint tensors: their bit order, both ways. Knows nothing of files, layers or algorithms.

Formats: AutoGPTQ (v1), GPTQModel (gptq_v2), AutoAWQ (GEMM and GEMV).

Shapes: N outputs, K inputs, G group size, g = ceil(K / G) groups.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.core.errors import CheckpointError, InputError
from qwenkit.kernels.packed import PackedWeight, pack_codes
from qwenkit.layers.packing_checks import (
    check_even_groups,
    check_shape,
    check_size,
    checked_groups,
    gemv_words,
    grouping,
    half_scales,
    int32_words,
)
from qwenkit.layers.packing_words import (
    AWQ_PLACE,
    awq_nibbles,
    fields,
    input_words_to_codes,
    output_words_to_codes,
    row_words_to_codes,
    sort_columns,
    to_words,
    turned,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Quantised:
    """A matrix as an algorithm leaves it: one integer per weight, not packed yet."""

    bits: int
    """4 or 8"""
    group_size: int
    """Inputs that share a scale; K: one group per row."""
    codes: Tensor
    """(N, K) uint8, in the inputs' own order"""
    scales: Tensor
    """(N, g) float16: as they are stored, so that codes and scales belong together"""
    zeros: Tensor
    """(N, g) uint8"""
    g_idx: Tensor
    """(K,) int32: group of each input"""


def from_gptq(
    tensors: Mapping[str, Tensor],
    *,
    bits: int,
    version: int,
    name: str,
    group_size: int | None = None,
    desc_act: bool | None = None,
) -> PackedWeight:
    """The matrix that GPTQ tensors hold.

    Args:
        tensors: qweight (K * bits / 32, N), qzeros (g, N * bits / 32) int32, scales (g, N), and perhaps g_idx (K,).
        bits: 4 or 8.
        version: 1: zeros are stored less one; 2 (gptq_v2): as they are.
        name: of the layer, for messages.
        group_size: what the configuration says (-1: all inputs), to be compared with the shapes; None: take theirs.
        desc_act: what the configuration says. False: a g_idx of zeros alone counts as absent, as some writers leave it.

    Raises:
        CheckpointError: the tensors do not fit one another, or hold what this form in memory cannot.
    """
    if bits not in (4, 8):
        raise CheckpointError(
            f"{name} is quantised to {bits} bits; 4 and 8 can be read, so quantise it to these"
        )
    words = int32_words(tensors, "qweight", name)
    per_word = 32 // bits
    k, n = words.shape[0] * per_word, words.shape[1]
    check_size(name, k, n, outputs_multiple=32)
    scales = half_scales(tensors, name)
    groups = len(scales)
    check_shape(scales, (groups, n), f"{name}.scales")
    qzeros = int32_words(tensors, "qzeros", name)
    check_shape(qzeros, (groups, n // per_word), f"{name}.qzeros")
    g_idx = tensors.get("g_idx")
    if g_idx is not None:
        g_idx = checked_groups(g_idx, columns=k, groups=groups, name=name)
        if desc_act is False and groups > 1 and not g_idx.any():
            g_idx = None
    size, order = grouping(g_idx, columns=k, groups=groups, group_size=group_size, name=name)
    zeros = turned(fields(qzeros, bits))
    if version == 1:
        zeros = (zeros + 1) & ((1 << bits) - 1)  # also undoes a zero of 0 that was stored as -1
    codes = turned(words).view(torch.uint8) if bits == 8 else input_words_to_codes(words)
    if order is not None:
        sort_columns(codes, bits, order)
    return PackedWeight(
        bits=bits,
        group_size=size,
        shape=(n, k),
        codes=codes,
        scales=turned(scales),
        zeros=_unless_middle(zeros, bits),
        order=order,
    )


def from_awq_gemm(tensors: Mapping[str, Tensor], *, group_size: int, name: str) -> PackedWeight:
    """The matrix that AWQ tensors of version GEMM hold.

    Args:
        tensors: qweight (K, N / 8), qzeros (g, N / 8) int32, scales (g, N).
        group_size: what the configuration says; -1: all inputs.
        name: of the layer, for messages.

    Raises:
        CheckpointError: the tensors do not fit one another, or hold what this form in memory cannot.
    """
    words = int32_words(tensors, "qweight", name)
    k, n = words.shape[0], words.shape[1] * 8
    check_size(name, k, n, outputs_multiple=8)
    scales = half_scales(tensors, name)
    check_shape(scales, (len(scales), n), f"{name}.scales")
    qzeros = int32_words(tensors, "qzeros", name)
    check_shape(qzeros, (len(scales), n // 8), f"{name}.qzeros")
    size, _ = grouping(None, columns=k, groups=len(scales), group_size=group_size, name=name)
    check_even_groups(k, size, name)
    zeros = fields(qzeros, 4).view(len(scales), n // 8, 8)[:, :, AWQ_PLACE].view(len(scales), n)
    return PackedWeight(
        bits=4,
        group_size=size,
        shape=(n, k),
        codes=output_words_to_codes(words),
        scales=turned(scales),
        zeros=_unless_middle(turned(zeros), 4),
    )


def from_awq_gemv(tensors: Mapping[str, Tensor], *, group_size: int, name: str) -> PackedWeight:
    """The matrix that AWQ tensors of version GEMV hold.

    Args:
        tensors: qweight (N, K / 8), qzeros (N, Z) int32, scales (N, 8 Z), where 8 Z is at least g.
        group_size: what the configuration says; -1: all inputs.
        name: of the layer, for messages.

    Raises:
        CheckpointError: the tensors do not fit one another, or hold what this form in memory cannot.
    """
    words = int32_words(tensors, "qweight", name)
    n, k = words.shape[0], words.shape[1] * 8
    check_size(name, k, n, outputs_multiple=8)
    size = k if group_size == -1 else group_size
    check_even_groups(k, size, name)
    groups, width = k // size, gemv_words(k, size)
    if width is None:
        raise CheckpointError(
            f"{name} has groups of {size} inputs; the GEMV layout of AWQ has 32, 64, or 128 and more, "
            "so compare group_size in the configuration with the file"
        )
    scales = half_scales(tensors, name)
    check_shape(scales, (n, 8 * width), f"{name}.scales")
    qzeros = int32_words(tensors, "qzeros", name)
    check_shape(qzeros, (n, width), f"{name}.qzeros")
    return PackedWeight(
        bits=4,
        group_size=size,
        shape=(n, k),
        codes=row_words_to_codes(words),
        scales=scales[:, :groups].clone(memory_format=torch.contiguous_format),
        zeros=_unless_middle(fields(qzeros, 4)[:, :groups].contiguous(), 4),
    )


def to_gptq(q: Quantised, *, version: int = 1) -> dict[str, Tensor]:
    """qweight, qzeros, scales and g_idx as ``from_gptq`` reads them."""
    zeros = q.zeros if version == 2 else (q.zeros - 1) & ((1 << q.bits) - 1)
    return {
        "qweight": turned(to_words(q.codes, q.bits)),
        "qzeros": to_words(turned(zeros), q.bits),
        "scales": turned(q.scales),
        "g_idx": q.g_idx.to(torch.int32).contiguous(),
    }


def to_awq_gemm(q: Quantised) -> dict[str, Tensor]:
    """qweight, qzeros and scales as ``from_awq_gemm`` reads them.

    Raises:
        InputError: this layout cannot hold the matrix.
    """
    _check_awq(q)
    return {
        "qweight": to_words(awq_nibbles(q.codes), 4),
        "qzeros": to_words(awq_nibbles(q.zeros), 4),
        "scales": turned(q.scales),
    }


def to_awq_gemv(q: Quantised) -> dict[str, Tensor]:
    """qweight, qzeros and scales as ``from_awq_gemv`` reads them.

    Raises:
        InputError: this layout cannot hold the matrix.
    """
    _check_awq(q)
    n, groups = q.zeros.shape
    width = gemv_words(q.codes.shape[1], q.group_size)
    if width is None:
        raise InputError(
            f"group_size {q.group_size} does not fit the GEMV layout of AWQ; use 32, 64, or 128 and more, or GEMM"
        )
    zeros, scales = q.zeros.new_zeros(n, 8 * width), q.scales.new_zeros(n, 8 * width)
    zeros[:, :groups], scales[:, :groups] = q.zeros, q.scales
    return {"qweight": to_words(q.codes, 4), "qzeros": to_words(zeros, 4), "scales": scales}


def pack(q: Quantised) -> PackedWeight:
    """The form in memory of what an algorithm found."""
    n, k = q.codes.shape
    groups = q.scales.shape[1]
    g_idx = checked_groups(q.g_idx, columns=k, groups=groups, name="the matrix")
    size, order = grouping(g_idx, columns=k, groups=groups, group_size=q.group_size, name="the matrix")
    codes = pack_codes(q.codes, q.bits)
    if order is not None:
        codes = codes.clone() if q.bits == 8 else codes
        sort_columns(codes, q.bits, order)
    return PackedWeight(
        bits=q.bits,
        group_size=size,
        shape=(n, k),
        codes=codes,
        scales=q.scales.contiguous(),
        zeros=_unless_middle(q.zeros.contiguous(), q.bits),
        order=order,
    )


def stored_version(qzeros: Tensor, *, bits: int) -> int | None:
    """1 or 2 where every zero is 2^(bits - 1), stored as that version of GPTQ stores it; None otherwise."""
    stored = fields(qzeros, bits)
    for version, zero in ((1, (1 << bits - 1) - 1), (2, 1 << bits - 1)):
        if bool((stored == zero).all()):
            return version
    return None


def _check_awq(q: Quantised) -> None:
    n, k = q.codes.shape
    if q.bits != 4:
        raise InputError(f"{q.bits} bits do not fit the layouts of AWQ; use 4 bits, or GPTQ")
    if n % 8 or k % 32 or k % q.group_size:
        raise InputError(
            f"a layer of {n} outputs and {k} inputs in groups of {q.group_size} does not fit the layouts of AWQ; they "
            "need a multiple of 8 outputs, of 32 inputs, and groups that divide the inputs, so use another group_size"
        )
    if not torch.equal(q.g_idx.long(), torch.arange(k, device=q.g_idx.device) // q.group_size):
        raise InputError("groups of scattered inputs do not fit the layouts of AWQ; use GPTQ, or no desc_act")


def _unless_middle(zeros: Tensor, bits: int) -> Tensor | None:
    """None where all are what PackedWeight takes for granted."""
    return None if bool((zeros == 1 << bits - 1).all()) else zeros
