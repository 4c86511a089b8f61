"""What attention asks of a key-value cache, for one sequence. The rotary state of the sequence lives here too."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor


class KVCache(Protocol):
    """Keys and values of one sequence, layer by layer."""

    alpha: int
    """NTK factor, chosen from the prompt length and fixed from then on."""
    offset: int
    """Absolute position of the first token; 0 but when left padding of other code is reproduced."""

    @property
    def length(self) -> int:
        """Tokens stored."""

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Stores new keys and values of one layer behind those there.

        Args:
            layer: which layer.
            k: (n, K, d), already rotated.
            v: (n, K, d)

        Returns:
            All keys and values so far, each (K, length + n, d).
        """

    def advance(self, count: int) -> None:
        """Counts ``count`` tokens as stored, once every layer has them."""
