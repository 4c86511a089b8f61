"""Reads GGUF metadata (already parsed into a mapping) into a ModelConfig."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qwenkit.config.families import Family, family_of_gguf
from qwenkit.config.model import ModelConfig, RopeConfig, RopeScaling
from qwenkit.core.errors import ConfigError, UnsupportedModelError

# Settings that change the network, with the values at which they do nothing; any other would give wrong numbers.
_NEUTRAL: Mapping[str, tuple[float, ...]] = {
    "rope.scaling.attn_factor": (0, 1),
    "rope.scaling.yarn_attn_factor": (0, 1),
    "rope.scaling.yarn_ext_factor": (-1, 0, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "rope.scaling.yarn_beta_fast": (32,),
    "rope.scaling.yarn_beta_slow": (1,),
}


def from_gguf(
    metadata: Mapping[str, Any], *, tensor_names: frozenset[str], freq_factors: Sequence[float] = ()
) -> tuple[Family, ModelConfig]:
    """The family and configuration that a GGUF header describes.

    Args:
        metadata: the header's key-value pairs.
        tensor_names: names of the stored tensors; they tell biases and a tied head.
        freq_factors: values of the tensor rope_freqs.weight, if the file has it (Llama 3 scaling).

    Raises:
        ConfigError: a key is missing or of the wrong kind.
        UnsupportedModelError: an architecture or a feature qwenkit does not run.
    """
    family = family_of_gguf(metadata.get("general.architecture"))
    reader = _Reader(metadata, family.gguf_architecture)
    heads = reader.whole("attention.head_count")
    hidden = reader.whole("embedding_length")
    if heads < 1 or (hidden % heads and not reader.has("attention.key_length")):
        raise ConfigError(f"GGUF: embedding_length={hidden} is not a multiple of head_count={heads}")
    head_dim = reader.whole("attention.key_length", hidden // heads)
    if reader.whole("attention.value_length", head_dim) != head_dim:
        raise UnsupportedModelError("GGUF: key and value heads of different width are not supported")
    context = reader.whole("context_length")
    _refuse_what_is_not_read(reader, context)
    base = reader.number("rope.freq_base", 10000.0)
    # GGUF keeps neither the training length of Qwen v1 nor its NTK and LogN switches; the released shapes tell.
    # The 72B model is told by its base: it was trained long and has both switches off.
    ntk = family.gguf_train_lengths.get(hidden) if base == 10000.0 else None
    tokens = metadata.get("tokenizer.ggml.tokens")
    vocab = reader.whole("vocab_size", len(tokens) if isinstance(tokens, Sequence) else None)
    return family, ModelConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        num_layers=reader.whole("block_count"),
        num_heads=heads,
        num_kv_heads=reader.whole("attention.head_count_kv", heads),
        head_dim=head_dim,
        ffn_size=reader.whole("feed_forward_length") // family.ffn_divisor,
        norm_eps=reader.number("attention.layer_norm_rms_epsilon"),
        context_length=context,
        rope=RopeConfig(
            base=base,
            dim=reader.whole("rope.dimension_count", head_dim),
            scaling=_scaling(reader, context),
            freq_factors=tuple(freq_factors),
            ntk_length=ntk,
        ),
        qkv_bias=bool({"blk.0.attn_q.bias", "blk.0.attn_qkv.bias"} & tensor_names),
        out_bias="blk.0.attn_output.bias" in tensor_names,
        mlp_bias="blk.0.ffn_gate.bias" in tensor_names,
        qk_norm=family.qk_norm,
        tie_embeddings=family.may_tie and "output.weight" not in tensor_names,
        logn_length=ntk,
        dtype="gguf",
    )


def _refuse_what_is_not_read(reader: _Reader, context: int) -> None:
    for key, neutral in _NEUTRAL.items():
        if reader.has(key) and reader.number(key) not in neutral:
            raise UnsupportedModelError(f"GGUF: {key}={reader.number(key):g} is not supported")
    if reader.has("attention.sliding_window"):
        window = reader.whole("attention.sliding_window")
        if 0 < window < context:
            raise UnsupportedModelError(
                f"GGUF: attention.sliding_window={window} below the context of {context} is not supported; "
                "use the model's Hugging Face folder"
            )
    if not reader.has("rope.scaling.type") and reader.number("rope.scaling.factor", 1.0) not in (0, 1):
        raise UnsupportedModelError("GGUF: rope.scaling.factor without rope.scaling.type is not supported")


def _scaling(reader: _Reader, context: int) -> RopeScaling | None:
    kind = reader.get("rope.scaling.type")
    if kind in (None, "none"):
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedModelError(
            f"GGUF: rope scaling {kind!r} is not supported; qwenkit knows none, linear and yarn"
        )
    return RopeScaling(
        kind=kind,
        factor=reader.number("rope.scaling.factor", 1.0),
        original_length=reader.whole("rope.scaling.original_context_length", context),
    )


class _Reader:
    """Typed access to ``{arch}.*`` keys."""

    def __init__(self, metadata: Mapping[str, Any], arch: str) -> None:
        self._metadata, self._arch = metadata, arch

    def get(self, key: str) -> Any:
        return self._metadata.get(f"{self._arch}.{key}")

    def has(self, key: str) -> bool:
        return self.get(key) is not None

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int) or isinstance(value, bool):
            raise ConfigError(
                f"GGUF: {self._arch}.{key}={value!r} must be a whole number; convert the file again"
            )
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        value = default if value is None else value
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigError(f"GGUF: {self._arch}.{key}={value!r} must be a number; convert the file again")
        if not math.isfinite(value):
            raise ConfigError(f"GGUF: {self._arch}.{key}={value!r} must be finite; convert the file again")
        return float(value)
