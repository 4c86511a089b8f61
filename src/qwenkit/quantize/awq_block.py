"""AWQ on one block: which norm or matrix may absorb the scales of which linears, and which rows are clipped.

Knows nothing of files or families; the searches are in awq.py.

Shapes: N outputs, K inputs, T tokens of all samples, D model width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qwenkit.model.transformer import Layer
from qwenkit.quantize.awq import clip_groups, search_clip, search_scales
from qwenkit.quantize.blocks import LINEARS, BlockRunner, linear_of, weight_of
from qwenkit.quantize.recipe import Recipe

SEARCH_TOKENS = 4096
"""The searches compare outputs on the first samples that have at most so many tokens together.

Means of activations are of all samples. A hundred outputs tell twenty candidates apart; what costs is computing them.
"""


class AwqBlock:
    """The search over one block.

    Every scale is found on the block as it is and then all are applied, as in AutoAWQ.

    Args:
        block: in float32; ``apply_scales`` changes its weights, biases and norms.
        runner: of all samples.
        x: (T, D), the inputs of the block.
        recipe: bits and group size.
        separate_values: whether the value projection is a matrix of its own in the checkpoint; one that is fused with
            query and key neither absorbs scales nor is told apart when clipping.
    """

    def __init__(
        self, block: Layer, runner: BlockRunner, x: Tensor, recipe: Recipe, *, separate_values: bool
    ) -> None:
        self._block, self._recipe, self._separate_values = block, recipe, separate_values
        self._runner = runner.first(SEARCH_TOKENS)
        self._x_mean = _mean_magnitudes(block, runner, x)
        self._inputs = _inputs(block, self._runner, x)
        self._scales: dict[str, Tensor] = {}

    @property
    def num_samples(self) -> int:
        """Samples that ``inputs`` are of."""
        return self._runner.num_samples

    def inputs(self, linear: str) -> Tensor:
        """(rows, K): inputs of a linear, scales taken off once they are applied."""
        return self._inputs[linear]

    def find_scales(self, linear: str) -> None:
        """Searches the scales of a linear's inputs, where something before it can absorb them."""
        module = self._inspected(linear)
        if module is None:
            return
        weight = weight_of(self._block, linear)
        kept, reference = weight.clone(), module()

        def loss(weights: Sequence[Tensor]) -> float:
            weight.copy_(weights[0])
            return float(F.mse_loss(module(), reference))

        found = search_scales(
            self._x_mean[linear], [kept], loss, bits=self._recipe.bits, group_size=self._recipe.group_size
        )
        weight.copy_(kept)
        self._scales[linear] = found.scales

    def apply_scales(self) -> None:
        """Multiplies weights by their scales and divides what comes before; what the block computes stays."""
        for linear, scales in self._scales.items():
            weight_of(self._block, linear).mul_(scales)
            self._inputs[linear] = self._inputs[linear] / scales
            self._divide_before(linear, scales)

    def clipped(self, linear: str) -> Tensor:
        """The weight (N, K) with every group cut where that costs least; q and k rows of their own stay whole."""
        weight = weight_of(self._block, linear)
        whole = len(weight) - self._block.attn.kv_heads * self._block.attn.head_dim
        first = whole if linear == "attn.qkv" and self._separate_values else 0
        group_size = self._recipe.group_size
        maxima = search_clip(
            weight[first:], self._inputs[linear], bits=self._recipe.bits, group_size=group_size
        )
        return torch.cat([weight[:first], clip_groups(weight[first:], maxima, group_size=group_size)])

    def _inspected(self, linear: str) -> Callable[[], Tensor] | None:
        """What computes the outputs that scales of this linear's inputs are judged by; None: nothing can absorb them."""
        block, x = self._block, self._inputs[linear]
        if linear == "attn.qkv":
            return lambda: self._runner.attention(block, x)
        if linear == "ffn.gate_up":
            return lambda: block.ffn(x)
        if linear == "attn.out" and not self._values_match_output():
            return None
        module = linear_of(block, linear)
        return lambda: F.linear(x, module.weight, module.bias)

    def _values_match_output(self) -> bool:
        """Whether every input of the output projection is one row of a value projection with as many rows as columns."""
        attention = self._block.attn
        values = attention.kv_heads * attention.head_dim
        width = attention.heads * attention.head_dim
        return self._separate_values and values == width == len(self._block.attn_norm.weight)

    def _divide_before(self, linear: str, scales: Tensor) -> None:
        before = {"attn.qkv": self._block.attn_norm, "ffn.gate_up": self._block.ffn_norm}
        if linear in before:
            before[linear].weight.data.div_(scales)
            return
        # The values, and the half of the feed-forward that no activation function touches, are the last rows.
        source = linear_of(self._block, {"attn.out": "attn.qkv", "ffn.down": "ffn.gate_up"}[linear])
        source.weight.data[-len(scales) :].div_(scales[:, None])
        if source.bias is not None:
            source.bias.data[-len(scales) :].div_(scales)


def _mean_magnitudes(block: Layer, runner: BlockRunner, x: Tensor) -> dict[str, Tensor]:
    sums = {name: torch.zeros(weight_of(block, name).shape[1], dtype=torch.float64) for name in LINEARS}

    def take(name: str, inputs: Tensor) -> None:
        sums[name] += inputs.abs().sum(dim=0)

    runner.observe(block, x, LINEARS, take)
    return {name: (total / runner.num_tokens).float() for name, total in sums.items()}


def _inputs(block: Layer, runner: BlockRunner, x: Tensor) -> dict[str, Tensor]:
    found: dict[str, list[Tensor]] = {name: [] for name in LINEARS}
    runner.observe(block, x[: runner.num_tokens], LINEARS, lambda name, inputs: found[name].append(inputs))
    return {name: torch.cat(parts) for name, parts in found.items()}
