"""GGUF metadata to ModelConfig."""

from __future__ import annotations

from typing import Any

import pytest

from qwenkit.config.gguf import from_gguf
from qwenkit.config.model import ModelConfig, RopeScaling
from qwenkit.core.errors import ConfigError, UnsupportedModelError


def read(
    arch: str = "llama", names: tuple[str, ...] = (), factors: tuple[float, ...] = (), **changes: Any
) -> ModelConfig:
    """Keys are given without the architecture, with _ for the dots between attention, rope and their parts."""
    keys: dict[str, Any] = {
        "embedding_length": 64,
        "block_count": 2,
        "feed_forward_length": 96,
        "attention.head_count": 4,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "context_length": 512,
        "vocab_size": 100,
    } | changes
    metadata = {f"{arch}.{key}": value for key, value in keys.items() if value is not None}
    metadata["general.architecture"] = arch
    return from_gguf(metadata, tensor_names=frozenset(names), freq_factors=factors)[1]


def test_defaults() -> None:
    config = read()
    assert (config.num_kv_heads, config.head_dim, config.rope.dim, config.rope.base) == (4, 16, 16, 10000.0)
    assert (config.tie_embeddings, config.qkv_bias, config.qk_norm) == (True, False, False)


def test_tensors_tell_biases_and_the_head() -> None:
    config = read(
        names=("output.weight", "blk.0.attn_q.bias", "blk.0.attn_output.bias", "blk.0.ffn_gate.bias")
    )
    assert (config.tie_embeddings, config.qkv_bias, config.out_bias, config.mlp_bias) == (
        False,
        True,
        True,
        True,
    )
    assert read("qwen", ("output.weight", "blk.0.attn_qkv.bias")).qkv_bias


def test_keys() -> None:
    config = read(
        "qwen3",
        **{
            "attention.head_count_kv": 2,
            "attention.key_length": 32,
            "attention.value_length": 32,
            "rope.freq_base": 1e6,
        },
    )
    assert (config.num_kv_heads, config.head_dim, config.rope.base, config.qk_norm) == (2, 32, 1e6, True)


def test_the_vocabulary_may_be_counted() -> None:
    metadata = {
        "general.architecture": "llama",
        "llama.embedding_length": 64,
        "llama.block_count": 1,
        "llama.feed_forward_length": 96,
        "llama.attention.head_count": 4,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.context_length": 64,
        "tokenizer.ggml.tokens": ["a", "b", "c"],
    }
    assert from_gguf(metadata, tensor_names=frozenset())[1].vocab_size == 3


@pytest.mark.parametrize(
    ("hidden", "base", "length"),
    [(4096, 10000.0, 8192), (5120, 10000.0, 2048), (8192, 1e6, None), (64, 10000.0, None)],
)
def test_first_generation_by_its_released_shapes(hidden: int, base: float, length: int | None) -> None:
    config = read(
        "qwen", embedding_length=hidden, **{"attention.head_count": hidden // 16, "rope.freq_base": base}
    )
    assert (config.rope.ntk_length, config.logn_length) == (length, length)
    assert config.ffn_size == 48  # the file says twice as much


def test_scaling() -> None:
    keys = {"rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}
    assert read(**{"rope.scaling.type": "none", **keys}).rope.scaling is None
    yarn = read(**{"rope.scaling.type": "yarn", **keys}).rope.scaling
    assert yarn == RopeScaling(kind="yarn", factor=4.0, original_length=128)
    assert read(factors=(1.0,) * 8).rope.freq_factors == (1.0,) * 8
    with pytest.raises(ConfigError, match="3 values for 8 rotating pairs"):
        read(factors=(1.0,) * 3)
    with pytest.raises(UnsupportedModelError, match="'longrope'"):
        read(**{"rope.scaling.type": "longrope"})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention.head_count": 0}, "not a multiple"),
        ({"attention.head_count": 5}, "not a multiple of head_count=5"),
        ({"attention.head_count": [4, 4]}, "must be a whole number"),
        ({"block_count": None}, "llama.block_count=None must be a whole number"),
        ({"attention.layer_norm_rms_epsilon": "x"}, "must be a number"),
        ({"attention.value_length": 8}, "different width"),
        ({"vocab_size": None}, "vocab_size"),
    ],
)
def test_one_sentence_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        read(**changes)


def test_unknown_architecture() -> None:
    with pytest.raises(
        UnsupportedModelError, match="'mamba' is not supported; qwenkit runs qwen, qwen2, qwen3, llama"
    ):
        from_gguf({"general.architecture": "mamba"}, tensor_names=frozenset())


def test_a_missing_head_is_not_the_embedding_where_the_family_never_ties() -> None:
    assert not read("qwen", ("blk.0.attn_qkv.bias",)).tie_embeddings


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_are_finite(value: float) -> None:
    with pytest.raises(ConfigError, match="finite"):
        read(**{"rope.freq_base": value})


@pytest.mark.parametrize(
    ("key", "value", "neutral"),
    [
        ("rope.scaling.attn_factor", 0.5, 1.0),
        ("rope.scaling.yarn_beta_fast", 16.0, 32.0),
        ("rope.scaling.factor", 4.0, 1.0),
        ("attention.sliding_window", 128, 512),
    ],
)
def test_settings_that_are_not_read_must_be_neutral(key: str, value: float, neutral: float) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        read(**{key: value})
    assert read(**{key: neutral}) == read()
