"""Linear layer and embedding that are not initialised: weights always come from a checkpoint.

torch's own layers draw random weights when they are built, which costs a second for a small model even on the meta
device. A quantised linear takes the place of this one with the same interface.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """x W^T + b"""

    def __init__(self, in_features: int, out_features: int, *, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features), requires_grad=False)
        self.bias = nn.Parameter(torch.empty(out_features), requires_grad=False) if bias else None

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The matrices below one another that make this layer."""
        return (self.weight,)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)"""
        return F.linear(x, self.weight, self.bias)


class Embedding(nn.Module):
    """One row per token id."""

    def __init__(self, vocab_size: int, size: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(vocab_size, size), requires_grad=False)

    @property
    def table(self) -> Tensor:
        """(vocabulary, size)"""
        return self.weight

    def forward(self, token_ids: Tensor) -> Tensor:
        """(...) int64 -> (..., size)"""
        return F.embedding(token_ids, self.weight)
