"""Cross-entropy over a large vocabulary without its logits: rows that carry loss, a few at a time.

Logits of one sequence of 8,192 tokens over 152k words are 5 GB in float32, and their gradient as much again. Here the
gradient of the hidden states (and of the head) is computed with the loss, piece by piece, so that only one piece of logits ever
exists; rows without loss never meet the head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

IGNORED = -100
PIECE_BYTES = 128 << 20
"""Of float32 logits."""


def head_loss(
    hidden: Tensor, head: nn.Module, labels: Tensor, num_items: Tensor | int | None = None
) -> Tensor:
    """Cross-entropy of next tokens.

    Args:
        hidden: (B, N, D) last hidden states.
        head: gives (V) logits of each.
        labels: (B, N); position i is learnt from the state at i - 1. Negative ones (-100) carry no loss.
        num_items: labels to divide the sum by; None: those given here.

    Returns:
        A float32 number; 0, not NaN, when no label carries loss.
    """
    targets = labels[:, 1:].flatten()
    kept = (targets != IGNORED).nonzero().flatten()
    rows = hidden[:, :-1].flatten(0, 1)[kept]
    total = _sum(rows, head, targets[kept])
    count = kept.numel() if num_items is None else num_items
    return total / (count if isinstance(count, Tensor) else max(count, 1))


def _sum(rows: Tensor, head: nn.Module, targets: Tensor) -> Tensor:
    weight = getattr(head, "weight", None)
    if type(head) is nn.Linear and head.bias is None and _is_plain(weight):
        if torch.is_autocast_enabled(rows.device.type):
            dtype = torch.get_autocast_dtype(rows.device.type)
            with torch.autocast(rows.device.type, enabled=False):
                return _HeadLoss.apply(rows.to(dtype), head.weight, targets)
        return _HeadLoss.apply(rows, head.weight, targets)
    size = _piece(getattr(head, "out_features", 1 << 17))
    total = rows.sum() * 0.0  # in the graph, so that every process of a group takes part in its backward pass
    for start in range(0, max(len(rows), 1), size):
        piece = slice(start, start + size)
        total = total + checkpoint(_plain_sum, head, rows[piece], targets[piece], use_reentrant=False)
    return total


def _is_plain(weight: Any) -> bool:
    """Whether all of the matrix is here: neither sharded by DeepSpeed nor by FSDP."""
    return isinstance(weight, Tensor) and not hasattr(weight, "ds_id") and not hasattr(weight, "placements")


def _plain_sum(head: Callable[[Tensor], Tensor], rows: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(head(rows).float(), targets, reduction="sum")


def _piece(vocab: int) -> int:
    return max(16, PIECE_BYTES // (4 * vocab))


class _HeadLoss(torch.autograd.Function):
    """The sum over rows, and its gradients at once."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        wants_rows, wants_weight, _ = ctx.needs_input_grad
        matrix = weight.to(rows.dtype)
        # Gradients of float16 are scaled by the caller only afterwards, so they are kept where they cannot underflow.
        is_half = rows.dtype == torch.float16
        kept, gain = (torch.float32, 1024.0) if is_half else (rows.dtype, 1.0)
        for_rows = torch.empty_like(rows, dtype=kept) if wants_rows else None
        for_weight: Tensor | None = None
        total = torch.zeros((), dtype=torch.float32, device=rows.device)
        size = _piece(len(weight))
        for start in range(0, len(rows), size):
            piece = slice(start, start + size)
            own = rows[piece]
            logits = (own @ matrix.T).float()
            chosen = targets[piece, None]
            norm = logits.logsumexp(dim=-1, keepdim=True)
            total += (norm - logits.gather(1, chosen)).sum()
            if not wants_rows and not wants_weight:
                continue
            logits.sub_(norm).exp_()
            logits.scatter_add_(1, chosen, torch.full_like(norm, -1.0))
            slope = logits.mul_(gain).to(rows.dtype)
            if for_rows is not None:
                for_rows[piece] = slope @ matrix
            if wants_weight:
                part = slope.T @ own
                for_weight = part.float() if for_weight is None else for_weight.add_(part)
        if wants_weight and for_weight is None:
            for_weight = torch.zeros_like(weight, dtype=torch.float32)
        ctx.save_for_backward(for_rows, for_weight)
        ctx.types, ctx.gain = (rows.dtype, weight.dtype), gain
        return total

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        for_rows, for_weight = ctx.saved_tensors
        row_type, weight_type = ctx.types
        slope = slope / ctx.gain
        return (
            None if for_rows is None else (for_rows * slope).to(row_type),
            # As large as the head, so in place. A second backward pass, for which it was kept, is refused by torch.
            None if for_weight is None else for_weight.mul_(slope).to(weight_type),
            None,
        )


def use_head_loss(model: Any) -> None:
    """Lets a causal language model of transformers compute its loss with ``head_loss``; without labels nothing changes.

    Args:
        model: PreTrainedModel with a head; given labels, it returns the loss and no logits.
    """
    from transformers.modeling_outputs import CausalLMOutputWithPast

    plain = model.forward

    def forward(*args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:
        if labels is None or args:
            return plain(*args, **kwargs) if labels is None else plain(*args, labels=labels, **kwargs)
        num_items = kwargs.pop("num_items_in_batch", None)
        body = getattr(model, model.base_model_prefix)
        kwargs.pop("return_dict", None)
        states = body(**(kwargs | {"use_cache": False})).last_hidden_state
        return CausalLMOutputWithPast(
            loss=head_loss(states, model.get_output_embeddings(), labels, num_items)
        )

    model.forward = forward
    model.accepts_loss_kwargs = True
