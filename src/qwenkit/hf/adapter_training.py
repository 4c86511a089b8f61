"""Makes a model ready for training adapters on top of it. Knows nothing of adapters, data or trainers."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

AnyModel = TypeVar("AnyModel", bound=Any)


def prepare_for_training(
    model: AnyModel, *, gradient_checkpointing: bool = True, float32_norms: bool = False
) -> AnyModel:
    """Freezes a model, quantised or not, and lets gradients reach its first adapter.

    Args:
        model: of transformers; changed.
        gradient_checkpointing: activations are calculated a second time in the backward pass rather than kept.
        float32_norms: norms get weights in float32. Their outputs are float32 then, so run the model under autocast.

    Returns:
        The model.
    """
    model.requires_grad_(False)
    if float32_norms:
        for module in model.modules():
            if is_norm(module):
                module.to(torch.float32)
    # The embedding is frozen: without this, checkpointed layers would have no input that wants a gradient.
    model.enable_input_require_grads()
    if gradient_checkpointing:
        model.config.use_cache = False
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def is_norm(module: nn.Module) -> bool:
    """Whether a module's only parameters are vectors of its own, as those of norms are."""
    own = list(module.parameters(recurse=False))
    return bool(own) and "norm" in type(module).__name__.lower() and all(p.ndim == 1 for p in own)
