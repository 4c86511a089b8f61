"""Packed layers inside transformers and PEFT: golden logits, and Q-LoRA against LoRA on the dequantised model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

import qwenkit.hf  # noqa: F401
from qwenkit.core.errors import InputError
from qwenkit.hf.adapter_training import prepare_for_training
from tests.support.networks import family_config, random_network
from tests.support.quantised import FOLDERS, GOLDEN, pack_network

TOLERANCE = 5e-5
TARGETS = ["c_attn", "c_proj", "w1", "w2"]
STEPS = 5
# PEFT asks for it under its old name.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def opened(name: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(GOLDEN / name, dtype=dtype)


def with_lora(model: Any, *, checkpointing: bool = False, targets: list[str] = TARGETS) -> Any:
    """The same adapter every time, whose B is not zero, so that all of it has gradients."""
    torch.manual_seed(1)
    prepare_for_training(model, gradient_checkpointing=checkpointing)
    model = get_peft_model(
        model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM")
    )
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.train()


def batches(vocab: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(0, vocab, (2, 24), generator=generator) for _ in range(STEPS)]


def trained(model: Any, vocab: int) -> list[tuple[float, dict[str, Tensor]]]:
    """Loss and gradients of the adapter at every step."""
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    found = []
    for ids in batches(vocab):
        optimiser.zero_grad()
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        grads = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        found.append((loss.item(), grads))
        optimiser.step()
    return found


def assert_same_training(
    one: list[tuple[float, dict[str, Tensor]]], other: list[tuple[float, dict[str, Tensor]]]
) -> None:
    for (loss, grads), (other_loss, other_grads) in zip(one, other, strict=True):
        assert loss == pytest.approx(other_loss, abs=1e-5)
        assert grads.keys() == other_grads.keys()
        assert grads
        for name, grad in grads.items():
            assert "lora_" in name
            torch.testing.assert_close(grad, other_grads[name], atol=1e-5, rtol=1e-4)
            assert grad.any()


@pytest.mark.parametrize("name", FOLDERS)
def test_golden_logits(name: str) -> None:
    cases, model = load_file(GOLDEN / name / "cases.safetensors"), opened(name)
    for n in (17, 90):
        with torch.no_grad():
            logits = model(cases[f"prefill.{n}.input_ids"]).logits
        torch.testing.assert_close(logits, cases[f"prefill.{n}.logits"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", FOLDERS)
def test_weights_are_the_golden_ones(name: str) -> None:
    cases, model = load_file(GOLDEN / name / "cases.safetensors"), opened(name)
    for module in ("h.0.attn.c_attn", "h.1.mlp.c_proj"):
        assert torch.equal(
            model.transformer.get_submodule(module).weight, cases[f"dequantised.{module}.weight"]
        )


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", FOLDERS)
def test_training_on_codes_is_training_on_their_numbers(name: str, checkpointing: bool) -> None:
    packed = with_lora(opened(name), checkpointing=checkpointing)
    plain = with_lora(opened(name).dequantize())
    assert_same_training(trained(packed, 512), trained(plain, 512))


@pytest.mark.parametrize("layout", ["gptq", "gemm"])
def test_the_same_for_a_model_of_transformers(layout: str, tmp_path: Path) -> None:
    folder = pack_network(random_network(family_config("llama")), "llama", tmp_path / "m", layout=layout)
    targets = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    packed = with_lora(opened(folder), targets=targets)
    plain = with_lora(opened(folder).dequantize(), targets=targets)
    assert_same_training(trained(packed, 60), trained(plain, 60))


@pytest.mark.parametrize("name", [FOLDERS[0], FOLDERS[3]])
def test_bfloat16_learns(name: str) -> None:
    model = with_lora(opened(name, torch.bfloat16), checkpointing=True)
    ids = batches(512)[0]
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        optimiser.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3


@pytest.mark.parametrize("name", [FOLDERS[1], FOLDERS[3]])
def test_adapters_are_saved_and_loaded_apart(name: str, tmp_path: Path) -> None:
    model = with_lora(opened(name)).eval()
    ids = batches(512)[0]
    with torch.no_grad():
        expected = model(ids).logits
    model.save_pretrained(tmp_path)
    keys = set(load_file(tmp_path / "adapter_model.safetensors"))
    modules = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
    assert keys == {
        f"base_model.model.transformer.h.{i}.{module}.lora_{part}.weight"
        for i in (0, 1)
        for module in modules
        for part in "AB"
    }
    again = PeftModel.from_pretrained(opened(name), tmp_path)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, expected)
        with again.disable_adapter():
            assert torch.equal(again(ids).logits, opened(name)(ids).logits)


def test_all_linear_layers_by_one_word() -> None:
    model = get_peft_model(opened(FOLDERS[0]), LoraConfig(r=2, target_modules="all-linear"))
    assert sum("lora_A" in name for name, _ in model.named_parameters()) == 10


@pytest.mark.parametrize("safe", [False, True])
def test_merging_is_refused_and_changes_nothing(safe: bool) -> None:
    gptq = with_lora(opened(FOLDERS[0]))
    with pytest.raises(ValueError, match="Cannot merge"):
        gptq.merge_and_unload(safe_merge=safe)
    awq = with_lora(opened(FOLDERS[3])).eval()
    ids = batches(512)[0]
    with torch.no_grad():
        expected = awq(ids).logits
        with pytest.raises(InputError, match="keep the adapter apart, or dequantise"):
            awq.merge_adapter(safe_merge=safe)
        assert torch.equal(awq(ids).logits, expected)
