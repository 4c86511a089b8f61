"""Linear layer and embedding whose weights stay as the checkpoint has them: packed integers, or 16-bit numbers.

They take the place of those of layers/linear.py, with the same interface; results are in the type of the activations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qwenkit.kernels import ops
from qwenkit.kernels.packed import PackedWeight
from qwenkit.kernels.panels import PanelWeight

_CHUNK = 2**24  # numbers converted at once

Stored = Tensor | PackedWeight | PanelWeight
"""A matrix (out, in) in any type, or packed."""


class QuantLinear(nn.Module):
    """x W^T + b with W in one or more parts below one another.

    Args:
        parts: matrices with the same number of columns.
        bias: (out,) in the type of the activations.
    """

    def __init__(self, parts: Sequence[Stored], bias: Tensor | None = None) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        outputs = [_product(x, part) for part in self.parts]
        out = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)
        return out if self.bias is None else out.add_(self.bias)


class QuantEmbedding(nn.Module):
    """One row per token id, in ``dtype``."""

    def __init__(self, table: Stored, dtype: torch.dtype) -> None:
        super().__init__()
        self.table, self._dtype = table, dtype

    def forward(self, token_ids: Tensor) -> Tensor:
        """(...) int64 -> (..., size)"""
        if isinstance(self.table, Tensor):
            return F.embedding(token_ids, self.table).to(self._dtype)
        rows = self.table.select(token_ids.flatten()).dequantise(self._dtype)
        return rows.view(*token_ids.shape, self.table.shape[1])


def rows_of(matrix: Stored, first: int, end: int, dtype: torch.dtype) -> Tensor:
    """Rows ``first`` to ``end`` as numbers of ``dtype``, (end - first, in)."""
    if isinstance(matrix, Tensor):
        return matrix[first:end].to(dtype)
    return matrix.rows(first, end).dequantise(dtype)


def _product(x: Tensor, part: Stored) -> Tensor:
    if not isinstance(part, Tensor):
        return ops.quant_linear(x, part)
    if part.dtype == x.dtype:
        return F.linear(x, part)
    step = max(_CHUNK // part.shape[1], 1)  # converted at once, a whole head would be as large as the model
    pieces = [F.linear(x, part[at : at + step].to(x.dtype)) for at in range(0, len(part), step)]
    return torch.cat(pieces, dim=-1)
