"""The parts of a first-generation Qwen network, under the names of its checkpoints, for training and transformers.

Knows nothing of positions: rotation and mask come from the model.

Shapes: B rows, T positions, D model width, H heads, d head width, P = H * d.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from qwenkit.hf.configuration import QWenConfig
from qwenkit.hf.rotary import Rotation, widened


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention as plain products with a float32 softmax; returns its output, (B, T, H, d), and its weights."""
    scores = query @ key.transpose(2, 3) * scaling  # (B, H, T, keys)
    if attention_mask is not None:
        scores = scores + attention_mask
    weights = widened(scores).softmax(dim=-1).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class QWenRMSNorm(nn.Module):
    """Root-mean-square norm in float32; the weight multiplies after the cast back."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)"""
        wide = widened(x)
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight * normed.to(x.dtype)

    def extra_repr(self) -> str:
        """Size and epsilon."""
        return f"{tuple(self.weight.shape)}, eps={self.eps}"


def residual_projection(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer whose output is added to the residual stream, marked for initialisation."""
    layer = nn.Linear(inputs, outputs, bias=False)
    layer.__dict__["starts_smaller"] = True  # a module's attributes are typed as tensors and modules
    return layer


class QWenAttention(nn.Module):
    """Causal attention with one projection for queries, keys and values."""

    num_key_value_groups = 1
    is_causal = True

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        super().__init__()
        self.config, self.layer_idx = config, layer_idx
        self.head_dim = config.kv_channels
        self.scaling = self.head_dim**-0.5
        self.dropout = float(config.attn_dropout_prob)
        self.c_attn = nn.Linear(config.hidden_size, 3 * config.projection_size, bias=True)
        self.c_proj = residual_projection(config.projection_size, config.hidden_size)

    def forward(
        self,
        hidden_states: Tensor,
        rotation: Rotation,
        attention_mask: Tensor | None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """(B, T, D) -> (B, T, D), and the attention weights where the implementation gives them."""
        rows, length = hidden_states.shape[:2]
        qkv = self.c_attn(hidden_states).view(rows, length, 3, -1, self.head_dim)  # (B, T, 3, H, d)
        query, key, value = (t.transpose(1, 2) for t in qkv.unbind(2))  # (B, H, T, d)
        query, key = rotation.rotate_queries(query), rotation.rotate_keys(key)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attend: Callable[..., tuple[Tensor, Tensor | None]] = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention
        )
        out, weights = attend(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.c_proj(out.reshape(rows, length, -1)), weights


class QWenMLP(nn.Module):
    """c_proj(w1(x) * silu(w2(x)))"""

    def __init__(self, config: QWenConfig) -> None:
        super().__init__()
        self.w1 = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.w2 = nn.Linear(config.hidden_size, config.ffn_size, bias=False)
        self.c_proj = residual_projection(config.ffn_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)"""
        out: Tensor = self.c_proj(self.w1(x) * nn.functional.silu(self.w2(x)))
        return out


class QWenBlock(GradientCheckpointingLayer):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, config: QWenConfig, layer_idx: int) -> None:
        super().__init__()
        self.ln_1 = QWenRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.attn = QWenAttention(config, layer_idx)
        self.ln_2 = QWenRMSNorm(config.hidden_size, config.layer_norm_epsilon)
        self.mlp = QWenMLP(config)

    def forward(
        self,
        hidden_states: Tensor,
        rotation: Rotation,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> Tensor:
        """(B, T, D) -> (B, T, D)"""
        attended, _ = self.attn(
            self.ln_1(hidden_states), rotation, attention_mask, past_key_values=past_key_values, **kwargs
        )
        hidden_states = hidden_states + attended
        out: Tensor = hidden_states + self.mlp(self.ln_2(hidden_states))
        return out
