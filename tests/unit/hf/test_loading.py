"""Published folders through the Auto classes of transformers: no remote code, nothing made up, nothing lost."""

from __future__ import annotations

import builtins
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

import qwenkit.hf
from qwenkit.core.errors import CheckpointError
from qwenkit.hf import QWenConfig, QWenLMHeadModel, QWenModel, QWenTokenizer
from tests.support.hf_models import SIZES

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
PLAIN, SHARDED = GOLDEN / "qwen1-tiny-plain", GOLDEN / "qwen1-tiny-ntk-logn"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copy(PLAIN / name, tmp_path / name)
    return tmp_path


def change(folder: Path, name: str, **keys: Any) -> None:
    path = folder / name
    raw = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(raw | keys), encoding="utf-8")


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}, {"trust_remote_code": False}])
def test_no_remote_code_runs_and_nobody_is_asked(
    folder: Path, qwen_tiktoken: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    models = {
        "AutoConfig": "configuration_qwen.QWenConfig",
        "AutoModelForCausalLM": "modeling_qwen.QWenLMHeadModel",
    }
    change(folder, "config.json", auto_map=models)
    tokenizers = {"AutoTokenizer": ["tokenization_qwen.QWenTokenizer", None]}
    change(folder, "tokenizer_config.json", tokenizer_class="QWenTokenizer", auto_map=tokenizers)
    for name in ("configuration_qwen", "modeling_qwen", "tokenization_qwen"):
        (folder / f"{name}.py").write_text("raise SystemExit('remote code ran')\n", encoding="utf-8")
    (folder / "qwen.tiktoken").symlink_to(qwen_tiktoken)
    monkeypatch.setattr(builtins, "input", lambda *_: pytest.fail("a question was asked"))
    assert type(AutoConfig.from_pretrained(folder, **options)) is QWenConfig
    assert type(AutoModelForCausalLM.from_pretrained(folder, **options)) is QWenLMHeadModel
    assert type(AutoModel.from_pretrained(folder, **options)) is QWenModel
    tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    assert type(tokenizer) is QWenTokenizer
    out = folder / "out"
    AutoModelForCausalLM.from_pretrained(folder, **options).save_pretrained(out)
    tokenizer.save_pretrained(out)
    assert "auto_map" not in (out / "config.json").read_text("utf-8")
    assert "auto_map" not in (out / "tokenizer_config.json").read_text("utf-8")


def test_registering_twice_is_harmless() -> None:
    qwenkit.hf.register()
    qwenkit.hf.register()


@pytest.mark.parametrize("source", [PLAIN, SHARDED])
def test_every_tensor_equals_the_file(source: Path) -> None:
    stored: dict[str, torch.Tensor] = {}
    for path in source.glob("model*.safetensors"):
        stored |= load_file(path)
    loaded = AutoModelForCausalLM.from_pretrained(source).state_dict()
    assert set(loaded) == set(stored)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())


def test_bin_files_load_too(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    torch.save(stored, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    loaded = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in stored.items())


def test_stored_buffers_are_passed_over(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    stored = load_file(folder / "model.safetensors")
    stored["transformer.rotary_emb.inv_freq"] = torch.zeros(8)
    stored["transformer.h.0.attn.masked_bias"] = torch.zeros(1)
    stored["transformer.h.0.attn.logn_tensor"] = torch.zeros(1, 4, 1, 1)
    stored["transformer.h.0.attn.bias"] = torch.zeros(1, 1, 4, 4)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["unexpected_keys"]
    assert set(model.state_dict()) == set(load_file(PLAIN / "model.safetensors"))


def test_a_missing_tensor_is_an_error_that_names_it(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    del stored["transformer.h.1.mlp.w2.weight"]
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"lacks 1 .*transformer\.h\.1\.mlp\.w2\.weight"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_configuration_with_more_layers_is_an_error(folder: Path) -> None:
    change(folder, "config.json", num_hidden_layers=5)
    with pytest.raises(CheckpointError, match=r"lacks 16 .*transformer\.h\.3\.attn"):
        AutoModelForCausalLM.from_pretrained(folder)


def test_a_tensor_of_another_shape_is_an_error_that_names_it(folder: Path) -> None:
    stored = load_file(folder / "model.safetensors")
    stored["transformer.ln_f.weight"] = torch.ones(63)
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"transformer\.ln_f\.weight: \(63,\) in the file, \(64,\)"):
        AutoModelForCausalLM.from_pretrained(folder)
    assert AutoModelForCausalLM.from_pretrained(folder, ignore_mismatched_sizes=True).device.type == "cpu"


def test_flags_choose_the_type_of_the_weights(folder: Path) -> None:
    assert AutoModelForCausalLM.from_pretrained(folder).dtype == torch.float32
    assert AutoModelForCausalLM.from_pretrained(folder, bf16=True).dtype == torch.bfloat16
    assert AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float16).dtype == torch.float16


def test_initial_weights_from_scratch() -> None:
    torch.manual_seed(0)
    model = QWenLMHeadModel(QWenConfig(**SIZES | {"hidden_size": 256, "num_hidden_layers": 8}))
    for name, weight in model.named_parameters():
        if "ln_" in name:
            assert bool((weight == 1).all()), name
        elif name.endswith("bias"):
            assert not weight.any(), name
        else:
            expected = 0.02 / math.sqrt(16) if "c_proj" in name else 0.02
            assert float(weight.detach().std()) == pytest.approx(expected, rel=0.05), name


def test_tied_head(tmp_path: Path) -> None:
    model = QWenLMHeadModel(QWenConfig(**SIZES, tie_word_embeddings=True))
    assert model.lm_head.weight is model.transformer.wte.weight
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm_head.weight is again.transformer.wte.weight


def test_resized_embedding(folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.resize_token_embeddings(520)
    assert model.lm_head.weight.shape[0] == model.transformer.wte.weight.shape[0] == 520
    assert model.config.vocab_size == 520


def test_inputs_are_checked() -> None:
    model = QWenLMHeadModel(QWenConfig(**SIZES))
    with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
        model()


def test_hidden_states_and_attentions_on_request() -> None:
    model = QWenLMHeadModel(QWenConfig(**SIZES, attn_implementation="eager")).eval()
    ids = torch.arange(6)[None]
    out = model(ids, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 1 + SIZES["num_hidden_layers"]
    assert out.attentions[0].shape == (1, 3, 6, 6)
    plain = model(ids, return_dict=False)
    assert torch.equal(plain[0], out.logits)
    embedded = model(inputs_embeds=model.get_input_embeddings()(ids)).logits
    assert torch.equal(embedded, out.logits)
