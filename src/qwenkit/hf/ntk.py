"""Which NTK factor a batch gets, and how a key-value cache remembers it.

The factor is chosen when a prompt is read and kept while the reply grows, because the keys in the cache are already
rotated with it. So it belongs to the cache: it follows its rows through beam search and is forgotten when the cache is
emptied. Knows nothing of layers.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import find_packed_sequence_indices

from qwenkit.hf.rotary import ntk_doublings


class _RowsWithNtk:
    """Added to the class of a cache: keeps ``ntk_doublings`` (B,) in step with the rows."""

    ntk_doublings: Tensor | None

    def reorder_cache(self, beam_idx: Tensor) -> None:
        super().reorder_cache(beam_idx)  # type: ignore[misc]
        self._choose_rows(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)  # type: ignore[misc]
        self._choose_rows(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)  # type: ignore[misc]
        if self.ntk_doublings is not None:
            self.ntk_doublings = self.ntk_doublings.repeat_interleave(repeats, dim=0)

    def reset(self) -> None:
        super().reset()  # type: ignore[misc]
        self.ntk_doublings = None

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)  # type: ignore[misc]
        if not int(self.get_seq_length()):  # type: ignore[attr-defined]
            self.ntk_doublings = None

    def _choose_rows(self, rows: Tensor) -> None:
        if self.ntk_doublings is not None:
            self.ntk_doublings = self.ntk_doublings[rows.to(self.ntk_doublings.device)]


@cache
def _with_ntk(kind: type[Any]) -> type[Any]:
    return type(kind.__name__, (_RowsWithNtk, kind), {"__module__": kind.__module__})


def remembered(cache: Cache | None) -> Tensor | None:
    """What `remember` put into the cache, if anything."""
    return getattr(cache, "ntk_doublings", None)


def remember(cache: Cache, doublings: Tensor) -> None:
    """Fixes the NTK factors of a cache's rows, until it is emptied.

    Args:
        cache: any cache of transformers; its class is extended so that the factors follow its rows.
        doublings: (B,) whole numbers, as ``ntk_doublings`` gives them.
    """
    if not isinstance(cache, _RowsWithNtk):
        kind: Any = type(cache)
        cache.__class__ = _with_ntk(kind)
    cache.ntk_doublings = doublings


def prompt_doublings(
    train_length: int,
    *,
    batch_size: int,
    length: int | Tensor,
    attention_mask: Any,
    position_ids: Tensor | None,
    device: torch.device,
) -> Tensor:
    """The doublings of prompts that are read now: (B,), or (B, T) where rows hold several packed samples.

    Args:
        train_length: the length up to which nothing is scaled.
        batch_size: B.
        length: positions of a row, padding and what the cache holds included.
        attention_mask: (B, length), or the four-dimensional form (B, 1, T, keys) made of it; padding does not count.
        position_ids: (B or 1, T) where restarts mean packed samples; None: there are none.
        device: where to put the result.
    """
    if isinstance(length, int) and length <= train_length:
        return torch.zeros(batch_size, dtype=torch.int64, device=device)
    lengths = torch.as_tensor(length, device=device).reshape(1).expand(batch_size)
    if isinstance(attention_mask, Tensor) and attention_mask.ndim == 2:
        lengths = attention_mask.to(device).long().sum(-1)
    elif isinstance(attention_mask, Tensor) and attention_mask.ndim == 4:
        last = attention_mask[:, 0, -1].to(device)  # what the last position sees
        lengths = (last if last.dtype == torch.bool else last >= 0).long().sum(-1).expand(batch_size)
    elif position_ids is not None:
        sample = find_packed_sequence_indices(position_ids.expand(batch_size, -1))
        if sample is not None:
            counts = torch.zeros_like(sample).scatter_add_(1, sample, torch.ones_like(sample))
            lengths = counts.gather(1, sample)  # (B, T)
    return ntk_doublings(lengths, train_length)
