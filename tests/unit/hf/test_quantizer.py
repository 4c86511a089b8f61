"""GPTQ and AWQ folders through transformers' own from_pretrained: loaded as they are, saved as they were, or refused."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPTQConfig

import qwenkit.hf
from qwenkit.core.errors import CheckpointError, ConfigError, UnsupportedModelError
from qwenkit.hf.quantized import PackedLinear
from qwenkit.model.generate import all_logits
from tests.support.networks import family_config, random_network
from tests.support.quantised import FOLDERS, GOLDEN, as_version_2, changed, pack_network, sharded

INT4, ACT_ORDER, GEMM = GOLDEN / FOLDERS[0], GOLDEN / FOLDERS[1], GOLDEN / FOLDERS[3]
IDS = torch.arange(20)[None]
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:transformers")


def loaded(folder: Path, **how: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder, **{"dtype": torch.float32, **how})


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(IDS).logits
    return found


def layers(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if isinstance(module, PackedLinear)]


@pytest.mark.parametrize("name", FOLDERS)
def test_every_tensor_is_the_file_s_and_saving_writes_it_again(name: str, tmp_path: Path) -> None:
    model = loaded(GOLDEN / name, dtype="auto")
    stored = load_file(GOLDEN / name / "model.safetensors")
    state = model.state_dict()
    assert state.keys() == stored.keys()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == stored.keys()
    for key, tensor in stored.items():
        for found in (state[key], saved[key]):
            assert found.dtype == tensor.dtype, key
            assert torch.equal(found, tensor), key
    assert torch.equal(logits(loaded(tmp_path)), logits(loaded(GOLDEN / name)))


def test_the_settings_are_saved_with_every_key(tmp_path: Path) -> None:
    loaded(ACT_ORDER).save_pretrained(tmp_path)
    before, after = (
        json.loads((folder / "config.json").read_text())["quantization_config"]
        for folder in (ACT_ORDER, tmp_path)
    )
    assert {key: after[key] for key in before} == before


def test_which_layers_are_packed() -> None:
    model = loaded(INT4)
    parts = ("attn.c_attn", "attn.c_proj", "mlp.w1", "mlp.w2", "mlp.c_proj")
    assert layers(model) == [f"transformer.h.{i}.{part}" for i in (0, 1) for part in parts]
    assert type(model.lm_head) is nn.Linear
    assert model.is_quantized
    assert model.hf_quantizer.is_trainable
    assert model.hf_quantizer.is_serializable()


def test_the_model_without_its_head() -> None:
    base = qwenkit.hf.QWenModel.from_pretrained(INT4, dtype=torch.float32)
    full = loaded(INT4)
    assert torch.equal(base(IDS).last_hidden_state, full.transformer(IDS).last_hidden_state)


@pytest.mark.parametrize("folder", [INT4, ACT_ORDER, GEMM], ids=lambda f: f.name)
def test_settings_beside_an_old_config(folder: Path, tmp_path: Path) -> None:
    side = json.loads(next(folder.glob("quant*.json")).read_text())
    old = changed(folder, tmp_path / "old", side=side)
    expected = logits(loaded(folder))
    assert torch.equal(logits(loaded(old)), expected)
    assert torch.equal(logits(qwenkit.hf.QWenLMHeadModel.from_pretrained(old, dtype=torch.float32)), expected)


def test_version_2_of_gptq(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    said = changed(
        ACT_ORDER, tmp_path / "said", tensors=as_version_2, config={"checkpoint_format": "gptq_v2"}
    )
    assert torch.equal(logits(loaded(said)), logits(loaded(ACT_ORDER)))
    silent = changed(INT4, tmp_path / "silent", tensors=as_version_2, config={})
    model = loaded(silent)
    assert torch.equal(logits(model), logits(loaded(INT4)))
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert saved["quantization_config"]["checkpoint_format"] == "gptq_v2"
    wrong = changed(INT4, tmp_path / "wrong", config={"checkpoint_format": "gptq_v2"})
    with caplog.at_level(logging.WARNING, "qwenkit"):
        assert torch.equal(logits(loaded(wrong)), logits(loaded(INT4)))
    assert "the configuration says gptq_v2" in caplog.text


def test_shards_and_bin_files(tmp_path: Path) -> None:
    parts = sharded(changed(INT4, tmp_path / "parts", config={}))
    index = parts / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}} | json.loads(index.read_text())))
    assert torch.equal(logits(loaded(parts)), logits(loaded(INT4)))
    pickled = changed(INT4, tmp_path / "bin", config={})
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    assert torch.equal(logits(loaded(pickled)), logits(loaded(INT4)))


def test_biases_that_old_writers_added(tmp_path: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("mlp.w1.scales")]:
            tensors[name.replace("scales", "bias")] = torch.full((256,), 0.5).half()

    model = loaded(changed(INT4, tmp_path / "m", tensors=add, config={}))
    assert torch.equal(model.transformer.h[0].mlp.w1.bias, torch.full((256,), 0.5))
    assert not torch.equal(logits(model), logits(loaded(INT4)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("layout", ["gptq", "gptq_v2", "gemm", "gemv"])
def test_models_that_transformers_has_itself(family: str, layout: str, tmp_path: Path) -> None:
    dense = random_network(family_config(family))
    folder = pack_network(dense, family, tmp_path / "m", layout=layout, symmetric=layout == "gptq")
    model = loaded(folder)
    assert type(model).__module__ == f"transformers.models.{family}.modeling_{family}"
    assert len(layers(model)) == 14
    expected = all_logits(dense, IDS[0].tolist())
    torch.testing.assert_close(logits(model)[0], expected, atol=5e-5, rtol=0)


def test_layers_that_were_left_out(tmp_path: Path) -> None:
    dense = random_network(family_config("llama"))
    folder = pack_network(dense, "llama", tmp_path / "m", skip=("mlp.down_proj",))
    model = loaded(folder)
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear
    torch.testing.assert_close(logits(model)[0], all_logits(dense, IDS[0].tolist()), atol=5e-5, rtol=0)
    model.save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "config.json").read_text())
    assert "dynamic" in saved["quantization_config"]


def test_dequantising_the_whole_model(tmp_path: Path) -> None:
    model = loaded(ACT_ORDER)
    expected = logits(model)
    model.dequantize()
    assert layers(model) == []
    assert not model.is_quantized
    torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path)
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    assert torch.equal(logits(loaded(tmp_path)), logits(model))


def without(suffix: str) -> Any:
    def take_out(tensors: dict[str, Tensor]) -> None:
        del tensors[f"transformer.h.0.mlp.w1.{suffix}"]

    return take_out


def cut(suffix: str) -> Any:
    def shorten(tensors: dict[str, Tensor]) -> None:
        name = f"transformer.h.0.mlp.w1.{suffix}"
        tensors[name] = tensors[name][:, :-8]

    return shorten


@pytest.mark.parametrize("suffix", ["qzeros", "scales"])
def test_missing_parts(suffix: str, tmp_path: Path) -> None:
    folder = changed(INT4, tmp_path / "m", tensors=without(suffix), config={})
    with pytest.raises(CheckpointError, match=rf"h\.0\.mlp\.w1\.{suffix} is missing though"):
        loaded(folder)


def test_a_missing_bias(tmp_path: Path) -> None:
    def take_out(tensors: dict[str, Tensor]) -> None:
        del tensors["transformer.h.1.attn.c_attn.bias"]

    with pytest.raises(CheckpointError, match=r"h\.1\.attn\.c_attn\.bias is missing though"):
        loaded(changed(INT4, tmp_path / "m", tensors=take_out, config={}))


def test_a_missing_matrix(tmp_path: Path) -> None:
    def take_out(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".h.1.mlp.w2." in name]:
            del tensors[name]

    with pytest.raises(CheckpointError, match=r"lacks 1 of the model's tensors \(transformer\.h\.1\.mlp\.w2"):
        loaded(changed(INT4, tmp_path / "m", tensors=take_out, config={}))


@pytest.mark.parametrize("suffix", ["qweight", "qzeros", "scales"])
def test_wrong_shapes(suffix: str, tmp_path: Path) -> None:
    folder = changed(INT4, tmp_path / "m", tensors=cut(suffix), config={})
    with pytest.raises(CheckpointError, match=rf"h\.0\.mlp\.w1\.{suffix} has shape"):
        loaded(folder)


def test_settings_that_do_not_fit_the_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"needs .*so compare bits"):
        loaded(changed(INT4, tmp_path / "bits", config={"bits": 8}))
    with pytest.raises(CheckpointError, match="correct group_size"):
        loaded(changed(INT4, tmp_path / "group", config={"group_size": 32}))
    with pytest.raises(CheckpointError, match="compare bits, group_size"):
        loaded(changed(GEMM, tmp_path / "awq", config={"group_size": 32}))


def test_words_of_another_type(tmp_path: Path) -> None:
    def widen(tensors: dict[str, Tensor]) -> None:
        tensors["transformer.h.0.mlp.w1.qweight"] = tensors["transformer.h.0.mlp.w1.qweight"].long()

    with pytest.raises(CheckpointError, match="has type I64"):
        loaded(changed(INT4, tmp_path / "m", tensors=widen, config={}))


def test_files_that_contradict_each_other(tmp_path: Path) -> None:
    folder = changed(INT4, tmp_path / "m", config={}, side={"bits": 8, "group_size": 128})
    with pytest.raises(ConfigError, match="says bits 4"):
        loaded(folder)


def test_kinds_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match="version='gemv_fast' is not supported"):
        loaded(changed(GEMM, tmp_path / "fast", config={"version": "gemv_fast"}))
    with pytest.raises(UnsupportedModelError, match="bits=3 is not supported"):
        loaded(changed(INT4, tmp_path / "bits", config={"bits": 3}))


def test_quantising_while_loading_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedModelError, match=r"holds no packed layer .* use `qwenkit quantize`"):
        loaded(GOLDEN / "qwen1-tiny-plain", quantization_config=GPTQConfig(bits=4))


def test_a_state_dict_alone_is_refused() -> None:
    state = load_file(INT4 / "model.safetensors")
    config = qwenkit.hf.QWenConfig.from_pretrained(INT4)
    with pytest.raises(UnsupportedModelError, match="given as a state_dict"):
        qwenkit.hf.QWenLMHeadModel.from_pretrained(None, config=config, state_dict=state)


def test_damaged_json(tmp_path: Path) -> None:
    folder = changed(INT4, tmp_path / "m", config={})
    (folder / "quantize_config.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"quantize_config\.json is no JSON"):
        loaded(folder)


def test_scales_of_bfloat16_stay_so(tmp_path: Path) -> None:
    def narrow(tensors: dict[str, Tensor]) -> None:
        for name in tensors:
            if name.endswith(".scales"):
                tensors[name] = tensors[name].bfloat16()

    folder = changed(INT4, tmp_path / "m", tensors=narrow, config={})
    model = loaded(folder)
    assert model.transformer.h[0].mlp.w1.scales.dtype == torch.bfloat16
    save_file(model.state_dict(), tmp_path / "again.safetensors")
    assert logits(model).isfinite().all()
