"""Rotary tables for every position and NTK factor, and the LogN query scale.

Sources: arXiv:2104.09864 (RoPE), the released Qwen code (dynamic NTK, LogN), arXiv:2309.00071 (YaRN),
transformers' rope utilities (llama3, linear).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qwenkit.config.model import RopeConfig, RopeScaling


def ntk_alpha(prompt_length: int, train_length: int | None) -> int:
    """The NTK factor of a prompt: 1 up to the training length, then 2**(ceil(log2(ratio)) + 1) - 1.

    It is chosen once, when the prompt is read, and kept while the reply grows.
    """
    if train_length is None or prompt_length <= train_length:
        return 1
    # Whole-number form of ceil(log2(prompt_length / train_length)), free of rounding at powers of two.
    doublings = (-(-prompt_length // train_length) - 1).bit_length()
    return int(2 ** (doublings + 1) - 1)


def inverse_frequencies(config: RopeConfig, alpha: int = 1) -> tuple[Tensor, float]:
    """Angle per position of each rotating pair, (dim / 2) float32, and the factor on cos and sin.

    Args:
        config: base, dimension and scaling.
        alpha: NTK factor; the base becomes base * alpha ** (dim / (dim - 2)).
    """
    base = config.base
    if alpha != 1:
        base *= alpha ** (config.dim / (config.dim - 2))
    exponents = torch.arange(0, config.dim, 2, dtype=torch.int64).float() / config.dim
    inv_freq = 1.0 / (base**exponents)
    if config.freq_factors:
        inv_freq = inv_freq / torch.tensor(config.freq_factors)
    if config.scaling is None:
        return inv_freq, 1.0
    kind = config.scaling.kind
    if kind == "linear":
        return inv_freq / config.scaling.factor, 1.0
    if kind == "llama3":
        return _llama3(inv_freq, config.scaling), 1.0
    return _yarn(inv_freq, config, config.scaling)


def _llama3(inv_freq: Tensor, scaling: RopeScaling) -> Tensor:
    """Low frequencies divided by the factor, high ones kept, a smooth ramp between."""
    assert scaling.original_length is not None
    wavelength = 2 * math.pi / inv_freq
    turns = scaling.original_length / wavelength
    smooth = (turns - scaling.low_freq_factor) / (scaling.high_freq_factor - scaling.low_freq_factor)
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * inv_freq / scaling.factor + smooth * inv_freq


def _yarn(inv_freq: Tensor, config: RopeConfig, scaling: RopeScaling) -> tuple[Tensor, float]:
    """YaRN, equations 17 to 22: interpolate slow dimensions, keep fast ones, scale attention by temperature."""
    assert scaling.original_length is not None

    def dimension(rotations: float) -> float:
        ratio = scaling.original_length / (rotations * 2 * math.pi)  # type: ignore[operator]
        return config.dim * math.log(ratio) / (2 * math.log(config.base))

    low, high = dimension(scaling.beta_fast), dimension(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, config.dim - 1)
    steps = torch.arange(config.dim // 2, dtype=torch.float32)
    ramp = ((steps - low) / max(high - low, 0.001)).clamp(0, 1)
    inv_freq = inv_freq / scaling.factor * ramp + inv_freq * (1 - ramp)
    factor = scaling.attention_factor
    if factor is None:
        factor = 0.1 * math.log(scaling.factor) + 1.0 if scaling.factor > 1 else 1.0
    return inv_freq, factor


class RotaryTables:
    """cos and sin of every position, one pair of tables per NTK factor, grown when longer input comes.

    Holds no state of any sequence: the factor comes with each call.
    """

    def __init__(self, config: RopeConfig, device: torch.device) -> None:
        self._config, self._device = config, device
        self._tables: dict[int, tuple[Tensor, Tensor]] = {}

    def rows(self, start: int, count: int, alpha: int) -> tuple[Tensor, Tensor]:
        """cos and sin, each (count, 1, dim) float32, of positions start .. start + count - 1.

        Laid out for ``ops.rotate``: angles twice, the first half of sin negated.
        """
        cos, sin = self._table(alpha, start + count)
        return cos[start : start + count], sin[start : start + count]

    def _table(self, alpha: int, length: int) -> tuple[Tensor, Tensor]:
        table = self._tables.get(alpha)
        if table is None or len(table[0]) < length:
            positions = torch.arange(max(2 * length, 256), dtype=torch.float32)
            inv_freq, factor = inverse_frequencies(self._config, alpha)
            angles = torch.outer(positions, inv_freq)  # (length, dim / 2)
            cos, sin = angles.cos() * factor, angles.sin() * factor
            table = (
                torch.cat((cos, cos), dim=-1)[:, None].to(self._device),
                torch.cat((-sin, sin), dim=-1)[:, None].to(self._device),
            )
            self._tables[alpha] = table
        return table


def logn_scale(start: int, count: int, train_length: int, device: torch.device) -> Tensor:
    """LogN factor of the queries at positions start .. start + count - 1, (count, 1, 1) float32.

    log(position + 1) / log(train_length) beyond the training length, 1 before.
    """
    positions = torch.arange(start + 1, start + count + 1, dtype=torch.float32, device=device)
    return (positions.log() / math.log(train_length)).clamp(min=1.0)[:, None, None]
