"""GPTQ and AWQ checkpoint tensors: their bit order, both ways. Knows nothing of files, layers or algorithms.

Formats: AutoGPTQ (v1), GPTQModel (gptq_v2), AutoAWQ (GEMM and GEMV).

Shapes: N outputs, K inputs, G group size, g = ceil(K / G) groups.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


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
