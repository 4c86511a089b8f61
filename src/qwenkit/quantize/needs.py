"""What a run needs of memory and disk, seen before it begins. Estimates; knows nothing of what is done with them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError, SourceError
from qwenkit.kernels.cpu import available_memory
from qwenkit.quantize.awq_block import SEARCH_TOKENS
from qwenkit.quantize.blocks import BATCH_TOKENS
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.stored import DENSE, BlockFormat
from qwenkit.weights.cache import format_size, free_space

_FLOAT = 4


@dataclass(frozen=True, slots=True)
class Needs:
    """Of one model and one recipe."""

    config: ModelConfig
    recipe: Recipe
    format: BlockFormat
    tokens: int
    """Of all calibration samples; 0: none."""

    @property
    def activations(self) -> int:
        """Bytes of the inputs of a block."""
        return self.tokens * self.config.hidden_size * _FLOAT

    @property
    def block(self) -> int:
        """Bytes for working on a block: its weights, copies of the largest matrix, Hessians, a batch under way."""
        weights = {name: math.prod(shape) for name, shape in self.format.shapes.items()}
        width = max(shape[-1] for shape in self.format.shapes.values())
        batch = SEARCH_TOKENS if self.recipe.method == "awq" else BATCH_TOKENS
        rows = min(batch, self.tokens) * (3 * self.config.ffn_size + 4 * self.config.hidden_size)
        hessians = 3 * width * width if self.tokens else 0
        return _FLOAT * (sum(weights.values()) + 4 * max(weights.values()) + hessians + rows)

    @property
    def embedding(self) -> int:
        """Bytes of the embedding while the samples are looked up."""
        return self.config.vocab_size * self.config.hidden_size * _FLOAT

    @property
    def dense(self) -> int:
        """Bytes on disk of what is not packed outside the blocks."""
        tables = 1 if self.config.tie_embeddings else 2
        return self.config.vocab_size * self.config.hidden_size * tables * DENSE.itemsize

    def check_memory(self, folder: Path) -> Path | None:
        """Where activations are to be kept: a file in ``folder``, or in memory (None) where they fit.

        Raises:
            InputError: not even one block fits.
        """
        free = available_memory()
        least = max(self.block, self.embedding if self.tokens else 0)
        if not free:  # not known here
            return None
        if least > free:
            raise InputError(
                f"quantising this model takes about {format_size(least)} of memory, and {format_size(free)} are free; "
                "end other programs, or use a machine with more"
            )
        return folder / "activations" if least + self.activations > free else None

    def check_disk(self, folder: Path, *, missing_layers: int, on_disk: bool) -> None:
        """Refuses to begin what the disk has no room for.

        Args:
            folder: where the work is done.
            missing_layers: blocks still to be made.
            on_disk: whether activations are kept there too.

        Raises:
            SourceError: with both numbers.
        """
        # Finished blocks stay until the whole folder is written.
        needed = self.format.nbytes * (missing_layers + self.config.num_layers) + self.dense
        needed += self.activations if on_disk else 0
        free = free_space(folder)
        if free is not None and free < needed:
            raise SourceError(
                f"this takes about {format_size(needed)} of disk at {folder.parent}, and {format_size(free)} are free; "
                "make room there, or give another folder"
            )
