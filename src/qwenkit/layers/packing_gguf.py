"""Blocks of GGUF tensors as packed weights, without changing a number. Knows nothing of files or layers."""

from __future__ import annotations

import torch
from torch import Tensor

from qwenkit.core.errors import CheckpointError
from qwenkit.kernels.packed import BLOCK, PackedWeight

# Bits of a code, and bytes of a block before its codes: a scale in float16, and for Q4_1 a minimum.
_FORMS = {"Q4_0": (4, 2), "Q4_1": (4, 4), "Q8_0": (8, 2)}
PACKED_KINDS = tuple(_FORMS)
"""Block types that can stay packed."""


def from_gguf(raw: Tensor, kind: str) -> PackedWeight:
    """The matrix in rows of blocks of 32 inputs.

    Args:
        raw: (N, bytes of a row) uint8, as the file has it.
        kind: one of ``PACKED_KINDS``.

    Raises:
        CheckpointError: rows are not whole blocks, or the kind cannot stay packed.
    """
    if kind not in _FORMS:
        raise CheckpointError(
            f"blocks of type {kind} cannot stay packed; {', '.join(PACKED_KINDS)} can, so unpack the tensor instead"
        )
    bits, head = _FORMS[kind]
    block = head + BLOCK * bits // 8
    if raw.dtype != torch.uint8 or raw.dim() != 2 or not raw.numel() or raw.shape[1] % block:
        raise CheckpointError(
            f"a {kind} tensor came as {str(raw.dtype).removeprefix('torch.')} of shape {tuple(raw.shape)}; its rows "
            f"are blocks of {block} bytes, so fetch the file again"
        )
    blocks = torch.unflatten(raw, 1, (-1, block))
    # Copied in pairs of bytes: several times as fast as single ones, and every block has an even number of them.
    codes = blocks.view(torch.int16)[:, :, head // 2 :].flatten(1).view(torch.uint8)
    return PackedWeight(
        bits=bits,
        group_size=BLOCK,
        shape=(len(raw), blocks.shape[1] * BLOCK),
        codes=codes ^ 128 if bits == 8 else codes,  # int8 + 128 as uint8
        scales=_halves(blocks, 0),
        mins=_halves(blocks, 1) if head == 4 else None,
    )


def _halves(blocks: Tensor, index: int) -> Tensor:
    """Of the 16-bit numbers that the blocks (N, g, bytes) begin with, the one at ``index``: (N, g) float16."""
    return blocks.view(torch.int16)[:, :, index].contiguous().view(torch.float16)
