"""Keys and values as bytes: one scale and one zero per vector, the definition that the native kernels repeat.

The range of a vector, widened to hold 0, is cut into 255 steps. Zero is exact, and rounding the step up to bfloat16
leaves nothing outside the range.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SMALLEST = 2.0**-100  # a step for vectors of zeros, and for numbers so small that they may become zero


def quantise(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Bytes (..., d) uint8, scale (...) bfloat16 and zero (...) uint8 of ``x`` (..., d).

    A vector with NaN, or with infinity or a range beyond float32, gets the scale NaN and is read back as NaN.
    """
    h = x.float()
    low, high = h.amin(-1).clamp(max=0), h.amax(-1).clamp(min=0)
    step = ((high - low) / 255).clamp(min=_SMALLEST)
    finite = step.isfinite()
    step = torch.where(finite, step, 1.0)
    # Up to the next bfloat16: the upper half of the bits, one more unless the lower half is empty.
    bits = (step.view(torch.int32) + 0xFFFF) & -0x10000
    step = bits.view(torch.float32)
    zero = torch.where(finite, (-low / step).round().clamp(0, 255), 0)
    codes = ((h / step[..., None]).round() + zero[..., None]).clamp(0, 255)
    codes = torch.where(finite[..., None], codes, 0)
    scale = torch.where(finite, step, torch.nan).to(torch.bfloat16)
    return codes.to(torch.uint8), scale, zero.to(torch.uint8)


def dequantise(codes: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    """scale * (byte - zero), (..., d) float32."""
    return (codes.float() - zero[..., None].float()) * scale[..., None].float()
