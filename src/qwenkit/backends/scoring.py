"""Reading sequences without answering them, beside the engine's batch: all logits, or the mean of the hidden states.

Each is a generator that reads one piece of a sequence at a time, so that those who are being answered go on meanwhile.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence

import torch
from torch import Tensor

from qwenkit.cache.paged import PagedCache, PagePool
from qwenkit.engine.blocks import pages_for
from qwenkit.layers.lora import Adapter
from qwenkit.layers.rope import ntk_alpha
from qwenkit.model.step import make_forward
from qwenkit.model.transformer import Span, Transformer


def sequence_logits(
    model: Transformer,
    sequences: Sequence[Sequence[int]],
    chunk: int,
    activations: str = "auto",
    adapter: Adapter | None = None,
) -> Generator[None, None, list[Tensor]]:
    """For each sequence the logits after every token, (T, V) float32 on the CPU; activations: see make_forward."""
    found = []
    for ids in sequences:
        pieces = yield from _read(model, ids, chunk, activations, adapter, hidden=False)
        found.append(torch.cat(pieces) if pieces else torch.empty(0, model.config.vocab_size))
    return found


def hidden_mean(
    model: Transformer,
    sequences: Sequence[Sequence[int]],
    chunk: int,
    activations: str = "auto",
    adapter: Adapter | None = None,
) -> Generator[None, None, list[list[float]]]:
    """For each sequence the mean over tokens of the last norm's output, scaled to length 1."""
    found: list[list[float]] = []
    for ids in sequences:
        pieces = yield from _read(model, ids, chunk, activations, adapter, hidden=True)
        mean = torch.cat(pieces).double().mean(dim=0)
        found.append((mean / mean.norm().clamp(min=1e-12)).tolist())
    return found


def _read(
    model: Transformer,
    ids: Sequence[int],
    chunk: int,
    activations: str,
    adapter: Adapter | None,
    *,
    hidden: bool,
) -> Generator[None, None, list[Tensor]]:
    if not ids:
        return []
    pages = pages_for(len(ids))
    pool = PagePool(model.config, num_pages=pages, dtype=model.dtype, device=model.device)
    forward = make_forward(model, pool, activations)
    alpha = ntk_alpha(len(ids), model.config.rope.ntk_length)
    cache = PagedCache(pool, list(range(pages)), alpha=alpha)
    pieces = []
    for at in range(0, len(ids), chunk):
        piece = ids[at : at + chunk]
        span = Span(cache, len(piece), adapter)
        pieces.append(forward(piece, [span], range(len(piece)), hidden=hidden).cpu())
        yield
    return pieces
