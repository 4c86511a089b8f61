"""What is frozen, what gets gradients, and which types norms have before adapters are trained."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from qwenkit.hf.adapter_training import is_norm, prepare_for_training
from tests.support.quantised import GOLDEN

IDS = torch.arange(12)[None]


@pytest.fixture
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / "qwen1-tiny-gptq-int4", dtype=torch.bfloat16)


def test_only_the_embedding_s_output_wants_a_gradient(model: Any) -> None:
    assert prepare_for_training(model, gradient_checkpointing=False) is model
    assert not any(p.requires_grad for p in model.parameters())
    assert model.get_input_embeddings()(IDS).requires_grad
    assert not model.is_activation_checkpointing


def test_checkpointing(model: Any) -> None:
    prepare_for_training(model)
    assert model.is_activation_checkpointing
    assert model.config.use_cache is False


def test_norms_in_float32_under_autocast(model: Any) -> None:
    prepare_for_training(model, gradient_checkpointing=False, float32_norms=True)
    kinds = {name: p.dtype for name, p in model.named_parameters()}
    wide = {name for name, dtype in kinds.items() if dtype == torch.float32}
    assert wide == {name for name in kinds if ".ln_" in name}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert model(IDS).logits.dtype == torch.bfloat16


def test_what_counts_as_a_norm() -> None:
    assert is_norm(nn.LayerNorm(4))
    assert is_norm(nn.RMSNorm(4))
    assert not is_norm(nn.Linear(4, 4))
    assert not is_norm(nn.Sequential(nn.LayerNorm(4)))
