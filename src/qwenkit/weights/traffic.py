"""How many bytes of weights one decoding step reads, from headers alone: with the memory's speed, the limit of decoding.

Knows nothing of how fast anything is.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from qwenkit.weights.checkpoint import Checkpoint
from qwenkit.weights.memory import planned_bytes

_EMBEDDING, _HEAD = "embed.weight", "head.weight"


def step_weight_bytes(checkpoint: Checkpoint, dtype: torch.dtype, *, head: str = "auto") -> int:
    """Bytes of weights that are read for a token: all, except an embedding that is not the output head as well.

    Args:
        checkpoint: from open_checkpoint.
        dtype: of what is not kept packed.
        head: auto (as the checkpoint has it) or int8.

    Raises:
        QwenkitError: the checkpoint is not whole, cannot be run, or its head cannot be int8.
    """
    planned = planned_bytes(checkpoint, dtype, head)
    if _HEAD in planned:  # then a token needs one row of the embedding
        del planned[_EMBEDDING]
    return sum(planned.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A model's sizes, to tell what a step reads of one that is not here."""

    name: str
    num_layers: int
    hidden_size: int
    ffn_size: int
    vocab_size: int
    bits: int
    """4: with a scale and a zero for every 128 inputs, and an output head in 16 bits; or 16."""

    @property
    def step_bytes(self) -> int:
        """Bytes of weights that are read for a token."""
        per_layer = 4 * self.hidden_size**2 + 3 * self.hidden_size * self.ffn_size
        group_bits = 16 + self.bits if self.bits < 16 else 0
        layers = self.num_layers * per_layer * (self.bits + group_bits / 128) / 8
        return int(layers) + 2 * self.vocab_size * self.hidden_size


_SMALL = {"num_layers": 24, "hidden_size": 2048, "ffn_size": 5504, "vocab_size": 151936}
_LARGE = {"num_layers": 32, "hidden_size": 4096, "ffn_size": 11008, "vocab_size": 151936}
TYPICAL = (
    Shape(name="a 1.8B model in Int4", bits=4, **_SMALL),
    Shape(name="a 1.8B model in bf16", bits=16, **_SMALL),
    Shape(name="a 7B model in Int4", bits=4, **_LARGE),
)
"""First-generation Qwen, as people know its sizes."""
