"""adapter_config.json: what each setting selects, and what is refused in which words."""

from __future__ import annotations

import logging
import math
import re
import time
from typing import Any

import pytest

from qwenkit.config.lora import from_peft
from qwenkit.core.errors import ConfigError, UnsupportedModelError

GOOD: dict[str, Any] = {
    "peft_type": "LORA",
    "r": 8,
    "lora_alpha": 16,
    "target_modules": ["q_proj", "mlp.c_proj"],
}


def _module(name: str, layer: int = 1) -> str:
    return f"model.layers.{layer}.{name}"


@pytest.mark.parametrize(
    ("settings", "yes", "no"),
    [
        ({}, ["self_attn.q_proj", "mlp.c_proj"], ["self_attn.xq_proj", "attn.c_proj", "self_attn.k_proj"]),
        ({"target_modules": "all-linear"}, ["self_attn.q_proj", "mlp.down_proj"], []),
        ({"target_modules": r".*\.(q|k)_proj"}, ["self_attn.k_proj"], ["self_attn.v_proj"]),
        (
            {
                "target_modules": r"(?:.*?(?:text|model).*?(?:attn|mlp).*?(?:q_proj|up_proj).*?)|(?:layers\.[\d]{1,}\.x)"
            },
            ["self_attn.q_proj", "mlp.up_proj"],
            ["self_attn.k_proj"],
        ),
        ({"target_modules": r"q_proj"}, [], ["self_attn.q_proj"]),  # a pattern matches whole names
        ({"exclude_modules": ["q_proj"]}, ["mlp.c_proj"], ["self_attn.q_proj"]),
        ({"exclude_modules": r".*c_proj"}, ["self_attn.q_proj"], ["mlp.c_proj"]),
        ({"modules_to_save": ["q_proj"]}, ["mlp.c_proj"], ["self_attn.q_proj"]),
        ({"layers_to_transform": [1, 5]}, ["self_attn.q_proj"], []),
        ({"layers_to_transform": 2}, [], ["self_attn.q_proj"]),
        ({"layers_to_transform": 1, "layers_pattern": "layers"}, ["self_attn.q_proj"], []),
        ({"layers_to_transform": 1, "layers_pattern": ["h"]}, [], ["self_attn.q_proj"]),
        ({"layers_to_transform": []}, ["self_attn.q_proj"], []),
        # A full name counts whatever the layer, as in PEFT.
        ({"layers_to_transform": 7, "target_modules": [_module("x")]}, ["x"], ["q_proj"]),
    ],
)
def test_targets(settings: dict[str, Any], yes: list[str], no: list[str]) -> None:
    config = from_peft(GOOD | settings)
    assert [n for n in yes + no if config.targets(_module(n))] == yes


def test_all_linear_leaves_embedding_and_head_alone() -> None:
    config = from_peft(GOOD | {"target_modules": "all-linear"})
    assert not config.targets("lm_head", is_head=True)
    assert not config.targets("model.embed_tokens")
    assert from_peft(GOOD | {"target_modules": ["lm_head"]}).targets("lm_head", is_head=True)


def test_rank_and_scale() -> None:
    assert from_peft(GOOD).scale_of(_module("q_proj")) == 2.0
    config = from_peft(
        GOOD
        | {
            "use_rslora": True,
            "rank_pattern": {"q_proj": 4, r"layers\.1\..*": 9},
            "alpha_pattern": {"layers.1.k_proj": 3},
        }
    )
    assert [config.rank_of(_module(n, i)) for n, i in (("q_proj", 1), ("k_proj", 1), ("k_proj", 11))] == [
        4,
        9,
        8,
    ]
    assert config.scale_of(_module("k_proj")) == 1.0
    assert config.scale_of(_module("k_proj", 2)) == 16 / math.sqrt(8)


def test_token_rows() -> None:
    assert from_peft(GOOD).token_rows == {}
    assert from_peft(GOOD | {"trainable_token_indices": [5, 3]}).token_rows == {"": (5, 3)}
    both = {"embed_tokens": [1], "lm_head": [2]}
    assert from_peft(GOOD | {"trainable_token_indices": both}).token_rows == {
        "embed_tokens": (1,),
        "lm_head": (2,),
    }


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"peft_type": "LOHA"}, ["LOHA", "LORA"]),
        ({"peft_type": ["LORA"]}, ["peft_type"]),
        ({"task_type": "SEQ_CLS"}, ["SEQ_CLS", "CAUSAL_LM"]),
        ({"use_dora": True}, ["DoRA", "merge"]),
        ({"lora_bias": True}, ["lora_bias"]),
        ({"fan_in_fan_out": True}, ["fan_in_fan_out"]),
        ({"bias": "all"}, ["bias='all'"]),
        ({"bias": "lora_only"}, ["lora_only"]),
        ({"layer_replication": [[0, 4]]}, ["layer replication"]),
        ({"target_parameters": ["experts.gate_up"]}, ["target_parameters"]),
        ({"alora_invocation_tokens": [1, 2]}, ["alora_invocation_tokens"]),
        ({"init_lora_weights": "pissa"}, ["pissa", "path_initial_model_for_weight_conversion"]),
        ({"init_lora_weights": "pissa_niter_4"}, ["pissa_niter_4"]),
        ({"init_lora_weights": ["x"]}, ["init_lora_weights"]),
    ],
)
def test_unsupported(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        from_peft(GOOD | settings)
    assert all(word in str(caught.value) for word in words)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"r": 0}, ["r=0", "whole number from 1"]),
        ({"r": None}, ["r=None"]),
        ({"r": True}, ["r=True"]),
        ({"r": 2**40}, ["whole number"]),
        ({"lora_alpha": 0}, ["lora_alpha=0", "above 0"]),
        ({"lora_alpha": float("nan")}, ["lora_alpha=nan"]),
        ({"lora_alpha": float("inf")}, ["lora_alpha=inf"]),
        ({"lora_alpha": "16"}, ["lora_alpha='16'"]),
        ({"use_rslora": "yes"}, ["use_rslora"]),
        ({"target_modules": [1]}, ["target_modules", "list of names"]),
        ({"target_modules": {"q": 1}}, ["target_modules", "list of names"]),
        ({"target_modules": "(q_proj"}, ["no regular expression"]),
        ({"target_modules": r"(\w+\.?)+x"}, ["repeats a group"]),
        ({"target_modules": ".*" * 20}, ["repeats more than 5"]),
        ({"rank_pattern": [4]}, ["rank_pattern", "object"]),
        ({"rank_pattern": {"q_proj": "4"}}, ["rank_pattern='4'"]),
        ({"rank_pattern": {"(": 4}}, ["no regular expression"]),
        ({"alpha_pattern": {"q_proj": -1}}, ["alpha_pattern=-1"]),
        ({"layers_to_transform": ["1"]}, ["layers_to_transform='1'"]),
        ({"layers_to_transform": "all"}, ["must be a list"]),
        ({"layers_pattern": "["}, ["no regular expression"]),
        ({"modules_to_save": "lm_head"}, ["modules_to_save", "list of names"]),
        ({"trainable_token_indices": [-1]}, ["trainable_token_indices=-1"]),
        ({"trainable_token_indices": {"embed_tokens": 3}}, ["must be a list"]),
    ],
)
def test_malformed(settings: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        from_peft(GOOD | settings)
    assert all(word in str(caught.value) for word in words)


def test_no_peft_type() -> None:
    with pytest.raises(ConfigError, match="peft_type"):
        from_peft({})


def test_unknown_keys_are_named(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="qwenkit"):
        from_peft(GOOD | {"peft_version": "0.21", "lorap_lr_ratio": None})
        assert not caplog.records
        from_peft(GOOD | {"new_trick": 3})
    assert "'new_trick'=3" in caplog.text


def test_a_pattern_for_every_module_is_quick() -> None:
    names = [
        _module(f"{part}_proj", i) for i in range(80) for part in ("q", "k", "v", "o", "gate", "up", "down")
    ]
    config = from_peft(GOOD | {"rank_pattern": dict.fromkeys(map(re.escape, names), 3)})
    start = time.perf_counter()
    assert {config.rank_of(name) for name in names} == {3}
    assert time.perf_counter() - start < 5  # half a million matches
