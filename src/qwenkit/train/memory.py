"""How much memory a run will take, told from shapes before anything is loaded.

The parts that are certain (weights, gradients, Adam's two moments) are exact; activations are an estimate of what the backward pass
keeps for one forward pass of ``batch_size`` samples of full length.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch

from qwenkit.config.model import ModelConfig
from qwenkit.train.base import Base
from qwenkit.train.loss import PIECE_BYTES
from qwenkit.train.options import FinetuneOptions
from qwenkit.weights.adapter_modules import linears_of

_MASTER, _MOMENTS = 4, 8
"""Bytes of a trained number in float32, and of Adam's two moments of it."""
_KEPT_PER_LAYER = 34
"""Numbers of the width of the network that a block keeps for its backward pass, for each token (measured, rounded up)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Bytes on one device, without sharding."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    trained_parameters: int
    parameters: int

    @property
    def certain(self) -> int:
        """What is taken for sure."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """All of it."""
        return self.certain + self.activations

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self), "total": self.total}


def estimate_memory(
    base: Base,
    options: FinetuneOptions,
    *,
    dtype: torch.dtype,
    weights_bytes: int,
    tables: str,
    longest: int,
) -> MemoryEstimate:
    """What a run of these settings takes.

    Args:
        base: the model.
        options: method, rank, batch and length.
        dtype: of computing.
        weights_bytes: of the network as it is held while nothing is trained.
        tables: what is trained of embedding and head: all, chatml or none.
        longest: tokens of the longest row.
    """
    config = base.config
    count = config.num_params
    if options.method == "full":
        trained, weights = count, count * _MASTER
    else:
        trained = adapter_count(base, options, tables)
        weights = weights_bytes + trained * _MASTER
    tokens = options.batch_size * longest
    return MemoryEstimate(
        weights=weights,
        gradients=trained * _MASTER,
        optimizer=trained * _MOMENTS,
        activations=_activations(config, options, tokens, dtype.itemsize),
        trained_parameters=trained,
        parameters=count,
    )


def _activations(config: ModelConfig, options: FinetuneOptions, tokens: int, size: int) -> int:
    block = tokens * (_KEPT_PER_LAYER * config.hidden_size // 2 + 4 * config.ffn_size) * size
    kept = tokens * config.hidden_size * size * config.num_layers
    logits = 2 * min(PIECE_BYTES, tokens * config.vocab_size * 4)
    return kept + block + logits if options.checkpointing else block * config.num_layers + logits


def adapter_count(base: Base, options: FinetuneOptions, tables: str) -> int:
    """Numbers of a fresh adapter."""
    config, chosen, count = base.config, options.lora_targets or base.linears, 0
    for linear in linears_of(base.family, config):
        for module, rows in zip(linear.modules, linear.rows, strict=True):
            if any(module == name or module.endswith("." + name) for name in chosen):
                count += options.lora_r * (rows + linear.columns)
    if tables == "all":
        count += config.vocab_size * config.hidden_size * (1 if config.tie_embeddings else 2)
    return count
