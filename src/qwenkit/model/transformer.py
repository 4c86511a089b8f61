"""The whole network, read from top to bottom: embedding, layers of attention and SwiGLU, norm, head.

One network for every family; what differs is in ModelConfig. It works on a ragged batch: the new tokens of all
sequences in one flat row, with a span per sequence that says which cache they belong to. Knows nothing of text,
files or sampling.

Shapes: N flat tokens, D model width, H query heads, K key heads, d head width, F feed-forward width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qwenkit.cache.base import KVCache
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError
from qwenkit.kernels import ops
from qwenkit.layers.linear import Embedding, Linear
from qwenkit.layers.lora import Adapter, AdapterRows, adapted, adapter_rows
from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear
from qwenkit.layers.rope import RotaryTables, logn_scale


@dataclass(frozen=True, slots=True)
class Span:
    """``count`` new tokens of the sequence whose past is in ``cache``."""

    cache: KVCache
    count: int
    adapter: Adapter | None = None
    """LoRA weights of this sequence; None: the model alone."""
    generated: bool = False
    """Whether the model itself chose these tokens: packed weights may then be computed with in another precision."""


@dataclass(frozen=True, slots=True)
class AttentionInput:
    """What attention needs besides activations, the same in every layer."""

    spans: Sequence[Span]
    cos: Tensor
    """(N, 1, r) float32"""
    sin: Tensor
    """(N, 1, r) float32"""
    query_scale: Tensor | None
    """(N, 1, 1) float32, LogN; None when every factor is 1."""
    adapters: AdapterRows | None = None
    """Whose rows have LoRA weights; None when no sequence has any."""


class RMSNorm(nn.Module):
    """Root-mean-square norm with a learned weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size), requires_grad=False)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)"""
        return ops.rms_norm(x, self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions over the cache of each sequence."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.heads, self.kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.window = config.windows[layer] if config.windows else None
        self.qkv = Linear(config.hidden_size, config.q_size + 2 * config.kv_size, bias=config.qkv_bias)
        self.out = Linear(config.q_size, config.hidden_size, bias=config.out_bias)
        self.q_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(config.head_dim, config.norm_eps) if config.qk_norm else None

    def forward(self, x: Tensor, meta: AttentionInput) -> Tensor:
        """(N, D) -> (N, D)"""
        qkv = adapted(self.qkv, x, meta.adapters, self.layer, "qkv")
        qk, v = qkv.view(len(x), self.heads + 2 * self.kv_heads, self.head_dim).split_with_sizes(
            (self.heads + self.kv_heads, self.kv_heads), dim=1
        )  # (N, H + K, d), (N, K, d)
        if self.q_norm is not None and self.k_norm is not None:
            qk = torch.cat((self.q_norm(qk[:, : self.heads]), self.k_norm(qk[:, self.heads :])), dim=1)
        q, k = ops.rotate(qk, meta.cos, meta.sin).split_with_sizes((self.heads, self.kv_heads), dim=1)
        if meta.query_scale is not None:
            q = (q * meta.query_scale).to(x.dtype)
        if len(meta.spans) == 1:
            return self._project(self._attend(meta.spans[0], q, k, v), meta)
        counts = [span.count for span in meta.spans]
        parts = zip(meta.spans, *(torch.split_with_sizes(t, counts) for t in (q, k, v)), strict=True)
        return self._project(torch.cat([self._attend(*part) for part in parts]), meta)

    def _attend(self, span: Span, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        start = span.cache.length
        keys, values = span.cache.update(self.layer, k, v)  # (K, start + n, d)
        return ops.attend(q, keys, values, start, self.window)

    def _project(self, x: Tensor, meta: AttentionInput) -> Tensor:
        return adapted(self.out, x, meta.adapters, self.layer, "out")


class FeedForward(nn.Module):
    """down(silu(gate(x)) * up(x))"""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.gate_up = Linear(config.hidden_size, 2 * config.ffn_size, bias=config.mlp_bias)
        self.down = Linear(config.ffn_size, config.hidden_size, bias=config.mlp_bias)

    def forward(self, x: Tensor, adapters: AdapterRows | None = None) -> Tensor:
        """(N, D) -> (N, D)"""
        h = ops.swiglu(adapted(self.gate_up, x, adapters, self.layer, "gate_up"))  # (N, F)
        return adapted(self.down, h, adapters, self.layer, "down")


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, each added to its input."""

    def __init__(self, config: ModelConfig, index: int) -> None:
        super().__init__()
        self.attn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.attn = Attention(config, index)
        self.ffn_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.ffn = FeedForward(config, index)

    def forward(self, x: Tensor, meta: AttentionInput, rows: Tensor | None = None) -> Tensor:
        """(N, D) -> (N, D), or (len(rows), D) when only these rows are wanted."""
        x = x + self.attn(self.attn_norm(x), meta)
        x = x if rows is None else x[rows]
        adapters = meta.adapters and meta.adapters.select(rows)
        return x.add_(self.ffn(self.ffn_norm(x), adapters))  # in place: the sum above made x


class Transformer(nn.Module):
    """A decoder-only language model.

    Args:
        config: sizes and switches. Build under ``torch.device("meta")`` and load weights into it afterwards.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        table = Embedding(config.vocab_size, config.hidden_size)
        self.embed: Embedding | QuantEmbedding = table
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)
        head = Linear(config.hidden_size, config.vocab_size)
        self.head: Linear | QuantLinear = head
        if config.tie_embeddings:
            head.weight = table.weight
        self._tables: RotaryTables | None = None

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.norm.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations, and of weights that are not packed."""
        return self.norm.weight.dtype

    @property
    def is_packed(self) -> bool:
        """Whether any weights are packed, or of another type than activations."""
        return any(isinstance(module, QuantLinear | QuantEmbedding) for module in self.modules())

    def forward(self, token_ids: Tensor, spans: Sequence[Span], rows: Tensor | None = None) -> Tensor:
        """Runs the new tokens of every sequence and stores their keys and values.

        Args:
            token_ids: (N,) int64, the sequences' tokens one after the other.
            spans: one per sequence, in that order; their counts add up to N.
            rows: which of the N positions to return logits for; None: all.

        Returns:
            (N or len(rows), V) logits in the model's dtype.

        Raises:
            InputError: the counts do not add up, or an id is outside the vocabulary.
        """
        states, adapters = self._run(token_ids, spans, rows)
        logits: Tensor = self.head(states)
        return logits if adapters is None else adapters.head(logits, states)

    def hidden_states(self, token_ids: Tensor, spans: Sequence[Span], rows: Tensor | None = None) -> Tensor:
        """As ``forward``, but what the head would get: (N or len(rows), D), the output of the last norm."""
        return self._run(token_ids, spans, rows)[0]

    def _run(
        self, token_ids: Tensor, spans: Sequence[Span], rows: Tensor | None
    ) -> tuple[Tensor, AdapterRows | None]:
        """Hidden states, and which of their rows have an adapter."""
        self._check(token_ids, spans)
        meta = self._attention_input(spans)
        x = self.embed(token_ids)  # (N, D)
        if meta.adapters is not None:
            x = meta.adapters.embed(x, token_ids)
        for layer in self.layers[:-1]:
            x = layer(x, meta)
        x = self.layers[-1](x, meta, rows)
        for span in spans:
            span.cache.advance(span.count)
        return self.norm(x), meta.adapters and meta.adapters.select(rows)

    def _check(self, token_ids: Tensor, spans: Sequence[Span]) -> None:
        if token_ids.ndim != 1 or sum(s.count for s in spans) != len(token_ids):
            raise InputError(
                f"{tuple(token_ids.shape)} token ids do not match spans of {[s.count for s in spans]} tokens"
            )
        low, high = (int(v) for v in token_ids.aminmax()) if len(token_ids) else (0, 0)
        if low < 0 or high >= self.config.vocab_size:
            bad = low if low < 0 else high
            raise InputError(f"token id {bad} is outside the model's vocabulary of {self.config.vocab_size}")

    def rotary_rows(self, start: int, count: int, alpha: int) -> tuple[Tensor, Tensor]:
        """cos and sin of ``count`` positions from ``start`` on, see RotaryTables.rows."""
        if self._tables is None:
            self._tables = RotaryTables(self.config.rope, self.device)
        return self._tables.rows(start, count, alpha)

    def _attention_input(self, spans: Sequence[Span]) -> AttentionInput:
        starts = [s.cache.offset + s.cache.length for s in spans]
        pairs = [self.rotary_rows(at, s.count, s.cache.alpha) for at, s in zip(starts, spans, strict=True)]
        cos, sin = pairs[0] if len(pairs) == 1 else (torch.cat(t) for t in zip(*pairs, strict=True))
        logn, scale = self.config.logn_length, None
        if logn is not None and any(at + s.count > logn for at, s in zip(starts, spans, strict=True)):
            scale = torch.cat(
                [logn_scale(at, s.count, logn, self.device) for at, s in zip(starts, spans, strict=True)]
            )
        adapters = adapter_rows([s.count for s in spans], [s.adapter for s in spans], self.device)
        return AttentionInput(spans, cos, sin, scale, adapters)
