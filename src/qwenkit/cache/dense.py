"""A key-value cache of one sequence in contiguous memory that grows as needed."""

from __future__ import annotations

import torch
from torch import Tensor

from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError


class DenseCache:
    """Keys and values of one sequence, (layers, K, capacity, d) each.

    Args:
        config: sizes of the model.
        dtype: type of the stored values.
        device: where they live.
        capacity: tokens to make room for at first; more is allocated when they come.
        alpha: NTK factor of the sequence.
        offset: absolute position of the first token.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        dtype: torch.dtype,
        device: torch.device,
        capacity: int = 256,
        alpha: int = 1,
        offset: int = 0,
    ) -> None:
        self.alpha, self.offset = alpha, offset
        self.length = 0
        self._shape = (config.num_layers, config.num_kv_heads, max(capacity, 1), config.head_dim)
        self._k = torch.empty(self._shape, dtype=dtype, device=device)
        self._v = torch.empty(self._shape, dtype=dtype, device=device)

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See KVCache.update."""
        self.reserve(k.shape[0])
        end = self.length + k.shape[0]
        keys, values = self._k[layer], self._v[layer]
        keys[:, self.length : end] = k.transpose(0, 1)
        values[:, self.length : end] = v.transpose(0, 1)
        return keys[:, :end], values[:, :end]

    def reserve(self, count: int) -> tuple[Tensor, Tensor]:
        """Makes room for ``count`` more tokens; returns all keys and all values, (layers, K, capacity, d) each."""
        if self.length + count > self._shape[2]:
            self._grow(self.length + count)
        return self._k, self._v

    def advance(self, count: int) -> None:
        """See KVCache.advance."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forgets everything behind the first ``length`` tokens.

        Raises:
            InputError: there are fewer.
        """
        if not 0 <= length <= self.length:
            raise InputError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length

    def _grow(self, needed: int) -> None:
        layers, heads, capacity, width = self._shape
        self._shape = (layers, heads, max(needed, capacity + capacity // 2), width)
        # One at a time, so that three and not four buffers exist at the peak.
        self._k = self._moved(self._k)
        self._v = self._moved(self._v)

    def _moved(self, old: Tensor) -> Tensor:
        new = old.new_empty(self._shape)
        new[:, :, : self.length] = old[:, :, : self.length]
        return new
