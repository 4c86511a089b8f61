"""config.json of first-generation Qwen in transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig

from qwenkit.config.hf import from_hf
from qwenkit.core.errors import ConfigError, UnsupportedModelError
from qwenkit.hf import QWenConfig

GOLDEN = Path(__file__).parents[2] / "data" / "golden"


def released(**changes: Any) -> dict[str, Any]:
    raw = json.loads((GOLDEN / "qwen1-tiny-plain" / "config.json").read_text("utf-8")) | changes
    return {key: value for key, value in raw.items() if value != "absent"}


def write(folder: Path, raw: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(raw), encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", sorted(p.name for p in GOLDEN.glob("qwen1-*")))
def test_released_files_come_back_as_they_were(tmp_path: Path, name: str) -> None:
    raw = json.loads((GOLDEN / name / "config.json").read_text("utf-8"))
    AutoConfig.from_pretrained(GOLDEN / name).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text("utf-8"))
    assert {key: saved.get(key) for key in raw} == raw
    assert from_hf(saved)[1] == from_hf(raw)[1]


def test_names_of_the_first_release() -> None:
    old = {
        "n_embd": 64,
        "n_layer": 3,
        "n_head": 4,
        "ffn_hidden_size": 256,
        "n_positions": 128,
        "padded_vocab_size": 512,
        "vocab_size": 500,
        "attn_pdrop": 0.1,
        "embd_pdrop": 0.2,
        "kv_channels": 16,
        "seq_length": 32,
    }
    config = QWenConfig.from_dict(old)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (64, 3, 4)
    assert (config.ffn_size, config.max_position_embeddings, config.vocab_size) == (128, 128, 512)
    assert (config.attn_dropout_prob, config.emb_dropout_prob) == (0.1, 0.2)
    assert not {"n_embd", "ffn_hidden_size", "padded_vocab_size"} & set(config.to_diff_dict())


def test_defaults_are_those_of_the_7b_model() -> None:
    config = QWenConfig()
    assert (config.hidden_size, config.num_hidden_layers, config.ffn_size) == (4096, 32, 11008)
    assert (config.projection_size, config.rotary_size) == (4096, 128)
    assert config.use_dynamic_ntk
    assert config.use_logn_attn
    assert config.head_dim == 128
    assert config.num_key_value_heads == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seq_length": "absent"}, "seq_length"),
        ({"hidden_size": "absent"}, "hidden_size"),
        ({"hidden_size": 64.5}, "hidden size|hidden_size"),
        ({"intermediate_size": 255}, "intermediate_size"),
        ({"n_embd": 32}, "contradicts itself"),
        ({"rope_theta": 5000}, "contradicts itself"),
        ({"bf16": True, "fp16": True}, "only one of bf16"),
    ],
)
def test_what_is_wrong_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        QWenConfig.from_dict(released(**changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"no_bias": False},
        {"scale_attn_weights": False},
        {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
        {"attention_windows": [4, None, None]},
    ],
)
def test_what_would_change_the_network_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError):
        QWenConfig.from_dict(released(**changes))


@pytest.mark.parametrize(
    ("flag", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16), ("fp32", torch.float32)]
)
def test_precision_flags_choose_the_type(tmp_path: Path, flag: str, dtype: torch.dtype) -> None:
    folder = write(tmp_path, released(torch_dtype="float16"))
    assert AutoConfig.from_pretrained(folder, **{flag: True}).dtype == dtype
    assert AutoConfig.from_pretrained(folder, dtype=torch.float64, **{flag: True}).dtype == torch.float64
    assert AutoConfig.from_pretrained(write(tmp_path, released(**{flag: True}))).dtype == dtype


def test_saved_flags_agree_with_the_type() -> None:
    config = QWenConfig.from_dict(released(fp16=True))
    config.dtype = torch.bfloat16
    saved = config.to_diff_dict()
    assert (saved["torch_dtype"], saved["fp16"], saved["bf16"]) == ("bfloat16", False, False)


def test_unknown_keys_are_kept() -> None:
    assert QWenConfig.from_dict(released(own_note="kept")).to_diff_dict()["own_note"] == "kept"


def test_quantised_cache_is_noted(caplog: pytest.LogCaptureFixture) -> None:
    QWenConfig.from_dict(released(use_cache_quantization=True))
    assert "full precision" in caplog.text
