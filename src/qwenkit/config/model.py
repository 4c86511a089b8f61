"""Everything the network is told about a model. Knows no file format and no family name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from qwenkit.core.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """A fixed rescaling of the rotary frequencies, as transformers defines it."""

    kind: Literal["linear", "yarn", "llama3"]
    factor: float
    original_length: int | None = None
    """Positions the model was trained on; yarn and llama3 need it."""
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    attention_factor: float | None = None
    """yarn: multiplies cos and sin; None: 0.1 ln(factor) + 1."""
    truncate: bool = True
    """yarn: round the bounds of the ramp to whole dimensions."""

    def __post_init__(self) -> None:
        if self.factor < 1:
            raise ConfigError(
                f"rope scaling factor={self.factor:g} must be at least 1; mend rope_scaling in config.json"
            )
        if self.kind != "linear" and (self.original_length or 0) < 1:
            raise ConfigError(
                f"rope scaling {self.kind!r} needs original_max_position_embeddings; add it to rope_scaling in config.json"
            )
        if self.attention_factor is not None and self.attention_factor <= 0:
            raise ConfigError(
                f"rope scaling attention_factor={self.attention_factor:g} must be above 0; mend rope_scaling in config.json"
            )
        if min(self.beta_fast, self.beta_slow) <= 0 or not 0 < self.low_freq_factor < self.high_freq_factor:
            raise ConfigError(
                f"rope scaling {self.kind!r} needs beta_fast and beta_slow above 0 and low_freq_factor between 0 and "
                "high_freq_factor; mend rope_scaling in config.json"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeConfig:
    """Rotary position embedding, rotate-half layout."""

    base: float
    dim: int
    """Head dimensions that rotate (the first ones); even."""
    scaling: RopeScaling | None = None
    freq_factors: tuple[float, ...] = ()
    """Divisors of the frequencies, one per rotating pair (rope_freqs of GGUF files); empty: none."""
    ntk_length: int | None = None
    """Dynamic NTK of Qwen v1: prompts longer than this raise the base; None: off."""

    def __post_init__(self) -> None:
        if self.base <= 0 or self.dim <= 0 or self.dim % 2:
            raise ConfigError(
                f"rotary embedding needs base > 0 and an even dim > 0, got base={self.base:g}, dim={self.dim}"
            )
        if self.scaling and self.scaling.kind == "yarn" and self.base <= 1:
            raise ConfigError(
                f"yarn needs a rotary base above 1, got {self.base:g}; mend rope_theta in config.json"
            )
        if self.freq_factors and len(self.freq_factors) != self.dim // 2:
            raise ConfigError(
                f"rope_freqs has {len(self.freq_factors)} values for {self.dim // 2} rotating pairs"
            )


SIZES = ("vocab_size", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "ffn_size")
"""The fields of ModelConfig that are sizes of the network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelConfig:
    """Sizes and switches of one decoder-only transformer (RMSNorm, rotary attention, SwiGLU)."""

    vocab_size: int
    """Rows of the embedding, padding included."""
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    ffn_size: int
    """Rows of the gate and of the up projection each."""
    norm_eps: float
    context_length: int
    rope: RopeConfig
    qkv_bias: bool = False
    out_bias: bool = False
    """Bias of the attention output projection."""
    mlp_bias: bool = False
    qk_norm: bool = False
    """RMSNorm over each query and key head, before the rotation (Qwen3)."""
    tie_embeddings: bool = False
    logn_length: int | None = None
    """LogN attention of Qwen v1: queries beyond this position are scaled up; None: off."""
    windows: tuple[int | None, ...] = ()
    """Attention window per layer, None for full; empty: full everywhere."""
    dtype: str = "float32"
    """Type the checkpoint says its weights are in."""

    def __post_init__(self) -> None:
        for name in SIZES:
            value = getattr(self, name)
            if not 0 < value <= 2**24:
                raise ConfigError(f"{name}={value} is not a possible size; use a number from 1 to {2**24}")
        if self.num_layers > 1024 or self.num_heads > 4096:
            raise ConfigError(
                f"num_layers={self.num_layers}, num_heads={self.num_heads}: more than 1024 layers or 4096 heads"
            )
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}; mend the head counts in the config"
            )
        if self.rope.dim > self.head_dim:
            raise ConfigError(f"rotary dim {self.rope.dim} is larger than the head dimension {self.head_dim}")
        if self.windows and len(self.windows) != self.num_layers:
            raise ConfigError(
                f"the window list has {len(self.windows)} entries for {self.num_layers} layers; give one per layer (null for full)"
            )
        if any(w is not None and w < 1 for w in self.windows):
            raise ConfigError(
                f"windows={self.windows}: a window must be at least 1 token, or null for full attention"
            )
        if not 0 <= self.norm_eps < 1:
            raise ConfigError(
                f"norm epsilon {self.norm_eps:g} is not possible; use a small number such as 1e-6"
            )
        if self.context_length < 1:
            raise ConfigError(f"context_length={self.context_length} must be at least 1")

    @property
    def q_size(self) -> int:
        """Width of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of all key heads together (values have the same)."""
        return self.num_kv_heads * self.head_dim

    @property
    def num_params(self) -> int:
        """Weights of the network; tied ones count once."""
        d, f = self.hidden_size, self.ffn_size
        attention = d * (self.q_size + 2 * self.kv_size) + self.q_size * d
        attention += (self.q_size + 2 * self.kv_size) * self.qkv_bias + d * self.out_bias
        attention += 2 * self.head_dim * self.qk_norm
        mlp = 3 * d * f + (2 * f + d) * self.mlp_bias
        layers = self.num_layers * (attention + mlp + 2 * d)
        return layers + d + self.vocab_size * d * (1 if self.tie_embeddings else 2)

    def kv_bytes(self, tokens: int, bytes_per_value: float = 2) -> int:
        """Bytes of key and value cache for ``tokens`` positions of one sequence."""
        return int(2 * self.num_layers * self.kv_size * tokens * bytes_per_value)
