"""Batches of training rows: padded, or side by side without padding. Knows nothing of samples or models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from qwenkit.train.pieces import IGNORED


@dataclass(frozen=True, slots=True)
class PaddedCollator:
    """Sequences below each other, padded on the right: ``input_ids``, ``labels``, ``attention_mask``, all (B, T).

    Rows of several sequences are parted again, so a batch can be taller than the number of items.
    """

    pad_id: int
    multiple: int = 1
    """T is a multiple of it."""

    def __call__(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The batch of some items."""
        ids = [part for item in items for part in _parted(item, "input_ids")]
        labels = [part for item in items for part in _parted(item, "labels")]
        longest = -(-max(map(len, ids)) // self.multiple) * self.multiple
        lengths = torch.tensor([len(part) for part in ids])
        return {
            "input_ids": _padded(ids, self.pad_id, longest),
            "labels": _padded(labels, IGNORED, longest),
            # from the lengths: the pad token may well stand in the data
            "attention_mask": (torch.arange(longest) < lengths[:, None]).long(),
        }


@dataclass(frozen=True, slots=True)
class PackedCollator:
    """Sequences side by side: ``input_ids``, ``labels``, ``position_ids``, and no attention mask.

    Positions that start again tell the model where a sequence ends; models of transformers look for that only without a
    cache, so call them with ``use_cache=False``.
    """

    pad_id: int
    single_row: bool = True
    """All items in one row (1, N) without padding; else one row for each, (B, T), whose padding is a sequence of its own."""

    def __call__(self, items: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        """The batch of some items."""
        if self.single_row:
            batch = {name: torch.cat([item[name] for item in items])[None] for name in items[0]}
            starts = torch.tensor([0, *(len(item["labels"]) for item in items[:-1])]).cumsum(0)
            batch["labels"][0, starts] = IGNORED
            return batch
        longest = max(len(item["input_ids"]) for item in items)
        positions = [
            torch.cat([item["position_ids"], torch.arange(longest - len(item["labels"]))]) for item in items
        ]
        return {
            "input_ids": _padded([item["input_ids"] for item in items], self.pad_id, longest),
            "labels": _padded([item["labels"] for item in items], IGNORED, longest),
            "position_ids": torch.stack(positions),
        }


def _parted(item: dict[str, Tensor], name: str) -> list[Tensor]:
    """The sequences of a row."""
    starts = (item["position_ids"] == 0).nonzero().flatten().tolist()
    return list(torch.tensor_split(item[name], starts[1:]))


def _padded(parts: Sequence[Tensor], value: int, length: int) -> Tensor:
    padded = pad_sequence(list(parts), batch_first=True, padding_value=value)
    return torch.nn.functional.pad(padded, (0, length - padded.shape[1]), value=value)
