"""Rotary positions with dynamic NTK and the LogN query scale, for batches whose rows have their own positions.

The factors of dynamic NTK are 2**(n + 1) - 1 for n doublings of the training length, so n stands for the factor.

Shapes: B rows, T positions, H heads, d head width, r rotated dimensions of a head.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.config.model import RopeConfig
from qwenkit.hf.configuration import QWenConfig
from qwenkit.layers.rope import inverse_frequencies

_MAX_DOUBLINGS = 16


@dataclass(frozen=True, slots=True)
class Rotation:
    """What attention needs to know of positions, the same in every layer; all float32."""

    cos: Tensor
    """(B or 1, 1, T, r)"""
    sin: Tensor
    """(B or 1, 1, T, r)"""
    query_scale: Tensor | None
    """(B or 1, 1, T, 1), LogN; None: no query is scaled."""

    def rotate_keys(self, keys: Tensor) -> Tensor:
        """(B, H, T, d) in any float type -> the same, rotated in float32 or better."""
        return self._rotate(widened(keys)).to(keys.dtype)

    def rotate_queries(self, queries: Tensor) -> Tensor:
        """(B, H, T, d) in any float type -> the same, rotated and scaled in float32 or better."""
        rotated = self._rotate(widened(queries))
        if self.query_scale is not None:
            rotated = rotated * self.query_scale
        return rotated.to(queries.dtype)

    def _rotate(self, x: Tensor) -> Tensor:
        size = self.cos.shape[-1]
        head, rest = x[..., :size], x[..., size:]
        low, high = head.chunk(2, dim=-1)
        turned = head * self.cos + torch.cat((-high, low), dim=-1) * self.sin
        return torch.cat((turned, rest), dim=-1) if rest.shape[-1] else turned


def widened(x: Tensor) -> Tensor:
    """``x`` in float32, or in its own type where that is wider."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def ntk_doublings(lengths: Tensor, train_length: int) -> Tensor:
    """How often the training length must be doubled to hold each length; 0 up to the training length itself.

    Args:
        lengths: whole numbers, of any shape.
        train_length: the length that needs no scaling.
    """
    excess = (lengths + train_length - 1) // train_length - 1
    powers = 2 ** torch.arange(_MAX_DOUBLINGS - 1, device=lengths.device)
    return (excess[..., None] >= powers).sum(-1)  # bits of the excess, free of rounding at powers of two


class RotaryPositions:
    """Makes the rotation of given positions. Holds tables of constants, no parameters and no state of a sequence.

    It is no module, so that casting a model to another type leaves the frequencies in float32.
    """

    def __init__(self, config: QWenConfig) -> None:
        rope = RopeConfig(base=float(config.rotary_emb_base), dim=config.rotary_size)
        self._logn_length = config.seq_length if config.use_logn_attn else None
        with torch.device("cpu"):  # models are built on the meta device, where nothing can be computed
            rows = [inverse_frequencies(rope, 2 ** (n + 1) - 1)[0] for n in range(_MAX_DOUBLINGS)]
            self._frequencies = torch.stack(rows)  # (doublings, r / 2)

    @torch.no_grad()
    def __call__(self, position_ids: Tensor, doublings: Tensor | None, *, scale_queries: bool) -> Rotation:
        """The rotation of positions.

        Args:
            position_ids: (B or 1, T).
            doublings: of each row, (B,), or of each position, (B, T); None: zero everywhere.
            scale_queries: whether LogN may act.
        """
        if self._frequencies.device != position_ids.device:
            self._frequencies = self._frequencies.to(position_ids.device)
        if doublings is None:
            frequencies = self._frequencies[0]
        else:
            per_position = doublings if doublings.ndim == 2 else doublings[:, None]
            frequencies = self._frequencies[per_position]  # (B, T or 1, r / 2)
        angles = position_ids[..., None].float() * frequencies  # (B, T, r / 2)
        angles = torch.cat((angles, angles), dim=-1)[:, None]  # (B, 1, T, r)
        scale = self._logn(position_ids) if scale_queries else None
        return Rotation(angles.cos(), angles.sin(), scale)

    def _logn(self, position_ids: Tensor) -> Tensor | None:
        """log(position + 1) / log(training length) beyond the training length, 1 before."""
        if self._logn_length is None:
            return None
        scale = (position_ids.float() + 1).log() / math.log(self._logn_length)
        return scale.clamp(min=1.0)[:, None, :, None]
