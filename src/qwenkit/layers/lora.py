"""LoRA adapters in memory, and how their share is added to the rows of a ragged batch that asked for them.

y = W x + b (a x) (arXiv:2106.09685) with the scale folded into b. Knows nothing of files or of how adapters were made.

Shapes: N flat tokens, M wanted rows, D model width, V vocabulary, r rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PARTS = ("qkv", "out", "gate_up", "down")
"""The linears of a layer that an adapter may change, under the names they have in the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraWeights:
    """The low-rank update of one linear. For fused linears ``a`` holds the parts' rows one after the other and ``b`` is block-diagonal."""

    a: Tensor
    """(r, in)"""
    b: Tensor
    """(out, r), the LoRA scale folded in"""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter:
    """One fine-tune of the model: updates of its linears, and tables that replace its embedding and head."""

    name: str
    layers: tuple[Mapping[str, LoraWeights], ...]
    """Per layer: "qkv", "out", "gate_up", "down" to its update; absent: none."""
    embed: Tensor | None = None
    """(V, D), in place of the model's; None: the model's own."""
    head: Tensor | None = None
    """(V, D), in place of the model's; None: the model's own."""

    @property
    def num_params(self) -> int:
        """Numbers held; a table that serves as both embedding and head counts once."""
        return sum(tensor.numel() for tensor in self._tensors())

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def _tensors(self) -> Iterator[Tensor]:
        for layer in self.layers:
            for weights in layer.values():
                yield from (weights.a, weights.b)
        if self.embed is not None:
            yield self.embed
        if self.head is not None and self.head is not self.embed:
            yield self.head


class AdapterRows:
    """Which rows of a flat batch belong to which adapter.

    Args:
        adapters: the different adapters of the batch.
        owner: (N,) int64, per row the number of its adapter in ``adapters``, -1: none.
    """

    def __init__(self, adapters: Sequence[Adapter], owner: Tensor) -> None:
        self._adapters, self._owner = tuple(adapters), owner
        self._groups: list[tuple[Adapter, Tensor | slice]] = []
        for number, adapter in enumerate(self._adapters):
            rows = (owner == number).nonzero()[:, 0]
            if len(rows):
                self._groups.append((adapter, slice(None) if len(rows) == len(owner) else rows))

    def select(self, rows: Tensor | None) -> AdapterRows:
        """The same for a batch of only these (M,) rows; None: all."""
        return self if rows is None else AdapterRows(self._adapters, self._owner[rows])

    def add(self, out: Tensor, x: Tensor, layer: int, part: str) -> Tensor:
        """Adds to ``out`` (N, out), in place, the adapters' share for the input ``x`` (N, in) of one linear."""
        for adapter, rows in self._groups:
            weights = adapter.layers[layer].get(part)
            if weights is not None:
                out[rows] += F.linear(F.linear(x[rows], weights.a), weights.b)  # (n, out)
        return out

    def embed(self, x: Tensor, token_ids: Tensor) -> Tensor:
        """Puts the rows of replaced embeddings into ``x`` (N, D), in place."""
        for adapter, rows in self._groups:
            if adapter.embed is not None:
                x[rows] = F.embedding(token_ids[rows], adapter.embed)
        return x

    def head(self, logits: Tensor, x: Tensor) -> Tensor:
        """Puts the rows of replaced heads into ``logits`` (M, V), in place; ``x`` (M, D) is the head's input."""
        for adapter, rows in self._groups:
            if adapter.head is not None:
                logits[rows] = F.linear(x[rows], adapter.head)
        return logits


def adapter_rows(
    counts: Sequence[int], adapters: Sequence[Adapter | None], device: torch.device
) -> AdapterRows | None:
    """The rows of a batch of ``counts[i]`` tokens with ``adapters[i]``; None when no sequence has an adapter."""
    different = list(dict.fromkeys(adapter for adapter in adapters if adapter is not None))
    if not different:
        return None
    numbers = {adapter: number for number, adapter in enumerate(different)}
    owner = torch.tensor([-1 if adapter is None else numbers[adapter] for adapter in adapters], device=device)
    return AdapterRows(different, owner.repeat_interleave(torch.tensor(counts, device=device)))


def adapted(linear: nn.Module, x: Tensor, adapters: AdapterRows | None, layer: int, part: str) -> Tensor:
    """``linear`` with the adapters' share: (N, in) -> (N, out)."""
    out: Tensor = linear(x)
    return out if adapters is None else adapters.add(out, x, layer, part)
