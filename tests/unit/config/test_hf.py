"""config.json of every family: defaults, spellings, contradictions, features that are refused, parameter counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qwenkit.config.families import FAMILIES
from qwenkit.config.hf import from_hf, read_json
from qwenkit.config.model import ModelConfig, RopeScaling
from qwenkit.config.quant import quant_config
from qwenkit.core.errors import ConfigError, UnsupportedModelError

QWEN1: dict[str, Any] = {
    "architectures": ["QWenLMHeadModel"],
    "model_type": "qwen",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "intermediate_size": 22016,
    "seq_length": 8192,
    "max_position_embeddings": 32768,
    "vocab_size": 151936,
}
SMALL: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 96,
    "vocab_size": 100,
}


def qwen1(**changes: Any) -> ModelConfig:
    return from_hf({k: v for k, v in (QWEN1 | changes).items() if v is not None})[1]


def small(architecture: str = "Qwen2ForCausalLM", **changes: Any) -> ModelConfig:
    raw = {"architectures": [architecture], **SMALL, **changes}
    return from_hf({k: v for k, v in raw.items() if v is not None})[1]


class TestQwen1:
    def test_defaults(self) -> None:
        config = qwen1()
        assert (config.head_dim, config.num_kv_heads, config.ffn_size) == (128, 32, 11008)
        assert (config.norm_eps, config.rope.base, config.rope.dim) == (1e-6, 10000.0, 128)
        assert (config.rope.ntk_length, config.logn_length) == (8192, 8192)
        assert (config.qkv_bias, config.out_bias, config.mlp_bias, config.tie_embeddings) == (
            True,
            False,
            False,
            False,
        )
        assert config.context_length == 32768

    def test_switches(self) -> None:
        config = qwen1(use_dynamic_ntk=False, use_logn_attn=False, rotary_emb_base=1000000)
        assert (config.rope.ntk_length, config.logn_length, config.rope.base) == (None, None, 1e6)
        assert qwen1(rotary_pct=0.5).rope.dim == 64

    def test_names_of_the_first_release(self) -> None:
        config = qwen1(
            hidden_size=None,
            num_hidden_layers=None,
            num_attention_heads=None,
            intermediate_size=None,
            max_position_embeddings=None,
            vocab_size=151851,
            n_embd=4096,
            n_layer=32,
            n_head=32,
            ffn_hidden_size=22016,
            n_positions=6144,
            padded_vocab_size=151936,
            seq_length=2048,
        )
        assert (config.hidden_size, config.num_layers, config.num_heads, config.ffn_size) == (
            4096,
            32,
            32,
            11008,
        )
        assert (config.vocab_size, config.context_length, config.rope.ntk_length) == (151936, 6144, 2048)
        assert config.num_params == qwen1().num_params

    def test_both_spellings_may_agree(self) -> None:
        assert qwen1(n_layer=32) == qwen1()
        with pytest.raises(ConfigError, match="contradicts itself: num_hidden_layers=32 and n_layer=31"):
            qwen1(n_layer=31)

    def test_a_context_shorter_than_the_training_length(self) -> None:
        assert qwen1(max_position_embeddings=2048).context_length == 8192


class TestOthers:
    @pytest.mark.parametrize(
        ("architecture", "expected"),
        [
            (
                "Qwen2ForCausalLM",
                {"qkv_bias": True, "qk_norm": False, "head_dim": 16, "context_length": 32768},
            ),
            (
                "Qwen3ForCausalLM",
                {"qkv_bias": False, "qk_norm": True, "head_dim": 128, "context_length": 32768},
            ),
            (
                "LlamaForCausalLM",
                {"qkv_bias": False, "qk_norm": False, "head_dim": 16, "context_length": 2048},
            ),
        ],
    )
    def test_defaults(self, architecture: str, expected: dict[str, Any]) -> None:
        config = small(architecture)
        for name, value in expected.items():
            assert getattr(config, name) == value
        assert (config.num_kv_heads, config.norm_eps, config.tie_embeddings) == (4, 1e-6, False)
        assert (config.out_bias, config.mlp_bias, config.windows) == (False, False, ())
        assert config.rope.base == 10000.0

    def test_biases_of_llama(self) -> None:
        config = small("LlamaForCausalLM", attention_bias=True, mlp_bias=True)
        assert (config.qkv_bias, config.out_bias, config.mlp_bias) == (True, True, True)
        assert not small("Qwen2ForCausalLM", attention_bias=True).out_bias

    def test_model_type_alone_is_enough(self) -> None:
        assert from_hf({**SMALL, "model_type": "qwen3"})[0] is FAMILIES["qwen3"]
        assert (
            from_hf({**SMALL, "architectures": ["LlamaForCausalLM"], "model_type": "odd"})[0].name == "llama"
        )

    @pytest.mark.parametrize(
        "dtype", [{"torch_dtype": "float16"}, {"dtype": "float16"}, {"torch_dtype": "torch.float16"}]
    )
    def test_dtype(self, dtype: dict[str, str]) -> None:
        assert small(**dtype).dtype == "float16"
        assert qwen1(fp16=True).dtype == "float16"
        assert small().dtype == "bfloat16"


YARN = {"factor": 4.0, "original_max_position_embeddings": 32768}


class TestRotary:
    @pytest.mark.parametrize(
        "keys",
        [
            {"rope_theta": 1e6, "rope_scaling": {"type": "yarn", **YARN}},
            {"rope_theta": 1e6, "rope_scaling": {"rope_type": "yarn", **YARN}},
            {"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6, **YARN}},
            {
                "rope_theta": 1e6,
                "rope_scaling": {"type": "yarn", "rope_type": "yarn", **YARN, "finetuned": True},
            },
        ],
    )
    def test_one_scaling_in_four_spellings(self, keys: dict[str, Any]) -> None:
        config = small(max_position_embeddings=32768, **keys)
        assert config.rope.base == 1e6
        assert config.rope.scaling == RopeScaling(kind="yarn", factor=4.0, original_length=32768)
        assert config.context_length == 131072

    def test_default_and_null(self) -> None:
        assert small(rope_parameters={"rope_type": "default", "rope_theta": 5e5}).rope.base == 5e5
        assert small(rope_scaling={"type": "default"}).rope.scaling is None
        assert small(rope_scaling={"type": "linear", "factor": 2}).rope.scaling == RopeScaling(
            kind="linear", factor=2
        )

    def test_original_length_is_the_context_when_it_is_not_said(self) -> None:
        scaling = small(max_position_embeddings=4096, rope_scaling={"type": "yarn", "factor": 2}).rope.scaling
        assert scaling is not None
        assert scaling.original_length == 4096

    @pytest.mark.parametrize(
        ("settings", "said"),
        [
            ({"type": "dynamic", "factor": 2}, "'dynamic' is not supported"),
            ({"type": "longrope", "factor": 2}, "'longrope' is not supported"),
            ({"type": "linear", "rope_type": "yarn", "factor": 2}, "says both"),
            ({"type": "yarn"}, "needs the key 'factor'"),
            ({"type": "linear", "factor": 0.5}, "must be at least 1"),
            ({"type": "yarn", "factor": 2, "mscale": 1.0}, "'mscale'"),
            ({"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}, "partial_rotary_factor"),
            ({"type": ["yarn"], "factor": 2}, r"\['yarn'\] is not supported"),
            ({"type": "yarn", "factor": None}, "needs the key 'factor'"),
            ({"type": "yarn", "factor": "2"}, "factor='2' must be a number"),
            ({"type": "yarn", "factor": float("nan")}, "must be a number"),
            ({"type": "yarn", "factor": 2, "original_max_position_embeddings": 0}, "original_max_position"),
            ({"type": "yarn", "factor": 2, "original_max_position_embeddings": "z"}, "whole number"),
            ({"type": "yarn", "factor": 2, "beta_fast": 0}, "beta_fast and beta_slow above 0"),
            ({"type": "llama3", "factor": 2, "low_freq_factor": 4}, "low_freq_factor between 0 and"),
            ([1], "must be an object"),
        ],
    )
    def test_what_cannot_be_honoured(self, settings: Any, said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            small(rope_scaling=settings)


class TestWindows:
    @pytest.mark.parametrize(
        ("keys", "windows"),
        [
            ({"sliding_window": 9}, ()),
            ({"sliding_window": 9, "use_sliding_window": False}, ()),
            ({"sliding_window": 9, "use_sliding_window": True, "max_window_layers": 2}, (None, None, 9, 9)),
            ({"sliding_window": 9, "use_sliding_window": True}, ()),
            ({"sliding_window": None, "use_sliding_window": True}, ()),
            (
                {"sliding_window": 9, "layer_types": ["full_attention", "sliding_attention"] * 2},
                (None, 9, None, 9),
            ),
            (
                {"sliding_window": 9, "use_sliding_window": False, "layer_types": ["sliding_attention"] * 4},
                (),
            ),
            ({"attention_windows": [None, 4, 8, None]}, (None, 4, 8, None)),
        ],
    )
    def test_rules(self, keys: dict[str, Any], windows: tuple[int | None, ...]) -> None:
        assert small(**keys).windows == windows

    @pytest.mark.parametrize(
        ("keys", "said"),
        [
            ({"attention_windows": [4]}, "1 entries for 4 layers"),
            ({"attention_windows": [4, 0, 4, 4]}, "at least 1"),
            ({"attention_windows": "4"}, "must be a list"),
            ({"attention_windows": [True] * 4}, "must be a list"),
            ({"sliding_window": 4, "layer_types": ["chunked_attention"] * 4}, "'chunked_attention'"),
            ({"sliding_window": "x", "use_sliding_window": True}, "whole number"),
        ],
    )
    def test_refused(self, keys: dict[str, Any], said: str) -> None:
        with pytest.raises(ConfigError, match=said):
            small(**keys)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hidden_size": None}, "needs the key 'hidden_size'"),
        ({"hidden_size": 63}, "not a multiple of num_attention_heads=4"),
        ({"hidden_size": 64.5}, "whole number"),
        ({"hidden_size": True}, "whole number"),
        ({"num_key_value_heads": 3}, "does not divide"),
        ({"hidden_size": float("nan")}, "whole number"),
        ({"hidden_size": float("inf")}, "whole number"),
        ({"rms_norm_eps": "small"}, "must be a number"),
        ({"rms_norm_eps": -1}, "norm epsilon -1"),
        ({"rope_theta": float("nan")}, "must be a number"),
        ({"vocab_size": 0}, "vocab_size=0"),
        ({"num_hidden_layers": 2000}, "more than 1024 layers"),
        ({"head_dim": 15}, "even dim"),
        ({"max_position_embeddings": 0}, "context_length=0"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu' is not supported"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5"),
        ({"bf16": True, "fp32": True}, "only one of bf16"),
        ({"architectures": "Qwen2ForCausalLM"}, "must be a list"),
        ({"architectures": [3]}, "must be a list of names"),
        ({"model_type": 3}, "model_type a name"),
    ],
)
def test_one_sentence_says_what_is_wrong(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small(**changes)


@pytest.mark.parametrize("name", ["Qwen2MoeForCausalLM", "Qwen2VLForConditionalGeneration", "Qwen2ForCausal"])
def test_unknown_architectures(name: str) -> None:
    with pytest.raises(
        UnsupportedModelError, match="QWenLMHeadModel, Qwen2ForCausalLM, Qwen3ForCausalLM, Llama"
    ):
        small(name)


# Sizes of released models: hidden, layers, heads, key heads, feed-forward, vocabulary, tied -> parameters.
SIZES: dict[str, tuple[str, tuple[int, ...], bool, float]] = {
    "Qwen-1.8B": ("qwen", (2048, 24, 16, 16, 5504, 151936), False, 1.84e9),
    "Qwen-7B": ("qwen", (4096, 32, 32, 32, 11008, 151936), False, 7.72e9),
    "Qwen-14B": ("qwen", (5120, 40, 40, 40, 13696, 152064), False, 14.17e9),
    "Qwen-72B": ("qwen", (8192, 80, 64, 64, 24576, 152064), False, 72.29e9),
    "Qwen1.5-0.5B": ("qwen2", (1024, 24, 16, 16, 2816, 151936), True, 0.464e9),
    "Qwen2-0.5B": ("qwen2", (896, 24, 14, 2, 4864, 151936), True, 0.494e9),
    "Qwen2.5-7B": ("qwen2", (3584, 28, 28, 4, 18944, 152064), False, 7.62e9),
    "Qwen2.5-72B": ("qwen2", (8192, 80, 64, 8, 29568, 152064), False, 72.7e9),
    "Qwen3-0.6B": ("qwen3", (1024, 28, 16, 8, 3072, 151936), True, 0.596e9),
    "Qwen3-8B": ("qwen3", (4096, 36, 32, 8, 12288, 151936), False, 8.19e9),
    "SmolLM2-135M": ("llama", (576, 30, 9, 3, 1536, 49152), True, 134515008),
    "SmolLM2-1.7B": ("llama", (2048, 24, 32, 32, 8192, 49152), True, 1.711e9),
}


@pytest.mark.parametrize("name", list(SIZES))
def test_parameter_counts_of_released_sizes(name: str) -> None:
    family, (hidden, layers, heads, kv_heads, ffn, vocab), tied, expected = SIZES[name]
    row = FAMILIES[family]
    raw = {
        "architectures": [row.architecture],
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn * row.ffn_divisor,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "seq_length": 8192,
    }
    config = from_hf(raw)[1]
    assert config.num_params == pytest.approx(expected, rel=2e-3)
    assert config.kv_bytes(1000) == 2 * layers * kv_heads * config.head_dim * 1000 * 2


class TestFiles:
    @pytest.mark.parametrize(
        ("content", "said"),
        [
            (b"{", "not valid JSON"),
            (b"\xff", "not valid JSON"),
            (b"[1]", "holds a list"),
            (b"[" * 10**5, "not valid"),
        ],
    )
    def test_files_that_are_no_object(self, content: bytes, said: str, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ConfigError, match=said):
            read_json(tmp_path / "config.json")

    def test_missing_and_huge(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"has no config\.json"):
            read_json(tmp_path / "config.json")
        with (tmp_path / "big.json").open("wb") as file:
            file.truncate(2**27)
        with pytest.raises(ConfigError, match="larger than 64 MiB"):
            read_json(tmp_path / "big.json")

    def test_a_good_one(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"a": "é"}), encoding="utf-8")
        assert read_json(tmp_path / "config.json") == {"a": "é"}


@pytest.mark.parametrize(
    ("config", "side", "expected"),
    [
        ({}, None, None),
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128}},
            None,
            "gptq, 4 bit, group 128",
        ),
        ({}, {"bits": 8, "group_size": -1}, "gptq, 8 bit"),
        (
            {},
            {"w_bit": 4, "q_group_size": 128, "version": "GEMM", "zero_point": True},
            "awq, 4 bit, group 128",
        ),
        ({"quantization_config": {"quant_method": "fp8"}}, None, "fp8"),
    ],
)
def test_quantisation_notes(
    config: dict[str, Any], side: dict[str, Any] | None, expected: str | None
) -> None:
    found = quant_config(config, side)
    assert (None if found is None else str(found)) == expected


def test_the_quantised_cache_of_qwen1_is_not_passed_over_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    from_hf(QWEN1 | {"use_cache_quantization": True})
    assert "use_cache_quantization" in caplog.text


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_types": 5}, "must be a list of 4 names"),
        ({"layer_types": ["full_attention"] * 5}, "must be a list of 4 names"),
        ({"layer_types": ["linear_attention"] * 4}, "'linear_attention' is not supported"),
        ({"layer_types": [["a"]] * 4, "sliding_window": 8}, "is not supported"),
        ({"layer_types": ["sliding_attention"] * 4}, "sliding_window is needed"),
        ({"sliding_window": 0, "use_sliding_window": True, "max_window_layers": 0}, "at least 1 token"),
        ({"rope_scaling": {"factor": 4.0}}, "add 'rope_type'"),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 5.0}}},
            "full_attention",
        ),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
                "rope_scaling": {"type": "yarn", "factor": 4.0},
            },
            "contradicts itself",
        ),
        ({"tie_word_embeddings": "false"}, "must be true or false"),
        ({"mlp_bias": "no"}, "must be true or false"),
    ],
    ids=str,
)
def test_what_would_give_other_numbers_is_never_passed_over(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        small("LlamaForCausalLM", **changes)


def test_json_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "digits.json").write_text('{"a": ' + "1" * 5000 + "}")
    with pytest.raises(ConfigError, match="not valid JSON"):
        read_json(tmp_path / "digits.json")
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        read_json(tmp_path / "folder.json")


@pytest.mark.parametrize("key", ["final_logit_softcapping", "residual_multiplier", "use_mrope"])
def test_settings_that_would_change_the_network_are_refused(key: str) -> None:
    with pytest.raises(UnsupportedModelError, match=key):
        from_hf(QWEN1 | {key: 0.5})
