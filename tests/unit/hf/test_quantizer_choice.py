"""Users of transformers' own packages keep them; first-generation Qwen and everyone else get our layers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig
from transformers.quantizers import auto

from qwenkit.hf import quantizer_choice
from qwenkit.hf.quantized import PackedLinear
from qwenkit.hf.quantizer import PackedQuantizer
from qwenkit.hf.quantizer_choice import can_run_theirs, register_quantizer
from tests.support.quantised import GOLDEN


class Theirs:
    """Stands for the quantizer of an installed package."""

    def __init__(self, quantization_config: Any, **kwargs: Any) -> None:
        self.kwargs = kwargs


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if gptqmodel and optimum were there."""
    monkeypatch.setattr(quantizer_choice, "is_gptqmodel_available", lambda: True)
    monkeypatch.setattr(quantizer_choice, "is_optimum_available", lambda: True)
    for method in ("gptq", "awq"):
        choice = auto.AUTO_QUANTIZER_MAPPING[method]
        monkeypatch.setitem(auto.AUTO_QUANTIZER_MAPPING, method, type(choice)(method, Theirs))


CONFIGS = [GPTQConfig(bits=4), AwqConfig(bits=4)]


@pytest.mark.parametrize("config", CONFIGS, ids=["gptq", "awq"])
def test_ours_where_packages_are_missing(config: Any) -> None:
    made = auto.AutoHfQuantizer.from_config(config, pre_quantized=True)
    assert isinstance(made, PackedQuantizer)


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize("config", CONFIGS, ids=["gptq", "awq"])
def test_theirs_where_they_are_installed(config: Any) -> None:
    made: Any = auto.AutoHfQuantizer.from_config(config, pre_quantized=True)
    assert isinstance(made, Theirs)


@pytest.mark.usefixtures("installed")
def test_first_generation_qwen_gets_ours_all_the_same() -> None:
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "qwen1-tiny-gptq-int4", dtype=torch.float32)
    assert isinstance(model.transformer.h[0].mlp.w1, PackedLinear)
    made: Any = auto.AutoHfQuantizer.from_config(GPTQConfig(bits=4), pre_quantized=True)
    assert isinstance(made, Theirs)  # afterwards everything is as before


def test_quantising_is_left_to_transformers() -> None:
    """Which says what it needs."""
    with pytest.raises(ImportError, match="optimum"):
        auto.AutoHfQuantizer.from_config(GPTQConfig(bits=4), pre_quantized=False)


def test_awq_needs_one_package_and_gptq_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantizer_choice, "is_gptqmodel_available", lambda: True)
    monkeypatch.setattr(quantizer_choice, "is_optimum_available", lambda: False)
    assert can_run_theirs("awq")
    assert not can_run_theirs("gptq")


def test_registering_twice_changes_nothing() -> None:
    before = dict(auto.AUTO_QUANTIZER_MAPPING)
    register_quantizer()
    assert before == auto.AUTO_QUANTIZER_MAPPING
