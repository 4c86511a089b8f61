"""Logits of quantised Qwen v1 checkpoints packed by AutoGPTQ and AutoAWQ (tests/data/golden), however they are told of."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qwenkit import LLM
from qwenkit.config.model import ModelConfig
from qwenkit.kernels import native
from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear, rows_of
from qwenkit.model.generate import all_logits
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from tests.support.models import CPU, load
from tests.support.networks import family_config, random_network
from tests.support.quantised import FOLDERS, GOLDEN, as_version_2, changed, pack_network, sharded

TOLERANCE = 5e-5
GPTQ = [name for name in FOLDERS if "gptq" in name]


def cases_of(name: str) -> dict[str, Tensor]:
    return load_file(GOLDEN / name / "cases.safetensors")


def assert_golden(folder: Path, name: str, lengths: tuple[int, ...] = (17, 90)) -> None:
    """The plain network in float32 says what the released code says."""
    cases, model = cases_of(name), load(folder)
    for n in lengths:
        logits = all_logits(model, cases[f"prefill.{n}.input_ids"][0].tolist())
        torch.testing.assert_close(logits, cases[f"prefill.{n}.logits"][0], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", FOLDERS)
def test_logits_of_the_plain_network(name: str) -> None:
    assert_golden(GOLDEN / name, name)


@pytest.mark.parametrize("isa", ["reference", "native"])
@pytest.mark.parametrize("name", FOLDERS)
def test_public_logits_and_greedy_decoding(name: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if isa == "reference":
        monkeypatch.setenv("QWENKIT_ISA", isa)
    cases, llm = cases_of(name), LLM(GOLDEN / name, dtype="float32", prefill_chunk=16)
    out = llm.logits([cases[f"prefill.{n}.input_ids"][0].tolist() for n in (17, 90)])
    for n, logits in zip((17, 90), out, strict=True):
        torch.testing.assert_close(logits, cases[f"prefill.{n}.logits"][0], atol=TOLERANCE, rtol=0)
    name_in_use = llm.info.details["kernels"]
    assert name_in_use == "torch" or (isa == "native" and name_in_use == f"native {native.isa_name()}")


@pytest.mark.parametrize("name", FOLDERS)
def test_packed_words_stand_for_these_weights(name: str) -> None:
    """In float32, where a scale times an integer is exact."""
    cases, model = cases_of(name), load(GOLDEN / name)
    linears = {"layers.0.attn.qkv": "h.0.attn.c_attn", "layers.1.ffn.down": "h.1.mlp.c_proj"}
    expected = {ours: cases[f"dequantised.{theirs}.weight"] for ours, theirs in linears.items()}
    for linear, weight in expected.items():
        [part] = model.get_submodule(linear).parts  # type: ignore[misc]
        assert torch.equal(rows_of(part, 0, len(weight), torch.float32), weight)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        dense = built(GOLDEN / name, dtype=dtype, packed=False)
        assert not dense.is_packed
        for linear, weight in expected.items():
            assert torch.equal(dense.get_parameter(f"{linear}.weight"), weight.to(dtype))


@pytest.mark.parametrize("name", FOLDERS)
def test_tables_stay_in_16_bits(name: str) -> None:
    model = load(GOLDEN / name)
    assert isinstance(model.embed, QuantEmbedding)
    assert model.embed.table.dtype == model.head.parts[0].dtype == torch.float16  # type: ignore[union-attr]
    half = load(GOLDEN / name, torch.bfloat16)
    assert half.embed.table.dtype == half.head.parts[0].dtype == torch.bfloat16  # type: ignore[union-attr]


@pytest.mark.parametrize("name", GPTQ)
@pytest.mark.parametrize(
    "config",
    [{"checkpoint_format": "gptq_v2"}, {"checkpoint_format": "gptq"}, {}, None],
    ids=["said", "said wrongly", "not said", "no configuration"],
)
def test_version_2_of_gptq(
    name: str, config: dict[str, Any] | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Symmetric zeros tell their version themselves; of others the configuration must."""
    bits = 8 if "int8" in name else 4
    folder = changed(GOLDEN / name, tmp_path / "m", tensors=lambda t: as_version_2(t, bits), config=config)
    if "act-order" not in name:
        assert_golden(folder, name, (17,))
        said_wrongly = config == {"checkpoint_format": "gptq"}
        assert ("the configuration says gptq, but" in caplog.text) == said_wrongly
        assert (str(folder) in caplog.text) == said_wrongly
    elif config == {"checkpoint_format": "gptq_v2"}:
        assert_golden(folder, name, (17,))


@pytest.mark.parametrize("name", ["qwen1-tiny-gptq-int4", "qwen1-tiny-gptq-int8"])
def test_version_1_that_is_called_2(name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = changed(GOLDEN / name, tmp_path / "m", config={"checkpoint_format": "gptq_v2"})
    with caplog.at_level(logging.WARNING):
        assert_golden(folder, name, (17,))
    assert "the configuration says gptq_v2, but the zeros are stored as gptq stores them" in caplog.text


SIDES: dict[str, dict[str, Any]] = {
    "qwen1-tiny-gptq-int4": {"bits": 4, "group_size": 128, "desc_act": False, "sym": True},
    "qwen1-tiny-gptq-int4-act-order": {"bits": 4, "group_size": 32, "desc_act": True, "sym": False},
    "qwen1-tiny-gptq-int8": {"bits": 8, "group_size": 128, "desc_act": False, "sym": True},
    "qwen1-tiny-awq-gemm": {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMM"},
    "qwen1-tiny-awq-gemm-g32": {"w_bit": 4, "q_group_size": 32, "zero_point": True, "version": "GEMM"},
    "qwen1-tiny-awq-gemv": {"w_bit": 4, "q_group_size": 128, "zero_point": True, "version": "GEMV"},
}


@pytest.mark.parametrize("name", FOLDERS)
def test_settings_beside_the_configuration(name: str, tmp_path: Path) -> None:
    assert_golden(changed(GOLDEN / name, tmp_path / "m", side=SIDES[name]), name, (17,))


@pytest.mark.parametrize("name", FOLDERS)
def test_settings_inside_the_configuration(name: str, tmp_path: Path) -> None:
    assert_golden(changed(GOLDEN / name, tmp_path / "m", config={}), name, (17,))


@pytest.mark.parametrize("name", FOLDERS)
def test_a_silent_configuration(name: str, tmp_path: Path) -> None:
    """What was lost with a rewritten config.json shows in the shapes."""
    folder = changed(GOLDEN / name, tmp_path / "m")
    assert_golden(folder, name, (17,))
    assert open_checkpoint(folder).quant is not None


@pytest.mark.parametrize("name", FOLDERS)
def test_shards(name: str, tmp_path: Path) -> None:
    assert_golden(sharded(changed(GOLDEN / name, tmp_path / "m", config={})), name, (17,))


def test_a_bin_file(tmp_path: Path) -> None:
    name = "qwen1-tiny-gptq-int4-act-order"
    folder = changed(GOLDEN / name, tmp_path / "m", config={})
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    assert_golden(folder, name, (17,))


@pytest.mark.parametrize("name", GPTQ)
def test_biases_of_zeros_that_early_writers_left(name: str, tmp_path: Path) -> None:
    def add(tensors: dict[str, Tensor]) -> None:
        for scales in [n for n in tensors if n.endswith(".scales") and "c_attn" not in n]:
            tensors[scales.replace("scales", "bias")] = torch.zeros(tensors[scales].shape[1]).half()

    folder = changed(GOLDEN / name, tmp_path / "m", tensors=add, config={})
    assert_golden(folder, name, (17,))
    assert load(folder).layers[0].attn.out.bias is None  # type: ignore[union-attr]


NETWORKS = [
    ("qwen2", {"layout": "gptq", "symmetric": False}),
    ("qwen2", {"layout": "gptq_v2", "bits": 8}),
    ("qwen2", {"layout": "gptq", "skip": ("v_proj", "down_proj")}),
    ("qwen3", {"layout": "gptq", "group_size": -1}),
    ("qwen3", {"layout": "gptq_v2", "group_size": 96}),
    ("llama", {"layout": "gemm", "symmetric": False}),
    ("llama", {"layout": "gemv", "group_size": 128, "symmetric": False, "skip": ("gate_proj",)}),
    ("qwen", {"layout": "gemm", "skip": ("layers.1",)}),
]


def config_of(family: str) -> ModelConfig:
    return family_config(family, num_heads=4, num_kv_heads=4 if family == "qwen" else 2, head_dim=32)


@pytest.mark.parametrize(("family", "how"), NETWORKS, ids=lambda value: str(value).replace("'", ""))
def test_networks_of_every_family(family: str, how: dict[str, Any], tmp_path: Path) -> None:
    """Packed, and expanded to numbers, they are the dense network with the rounded weights."""
    dense = random_network(config_of(family))
    folder = pack_network(dense, family, tmp_path / "m", **how)
    ids = list(range(40))
    expected = all_logits(dense, ids)
    model = load(folder)
    torch.testing.assert_close(all_logits(model, ids), expected, atol=TOLERANCE, rtol=0)
    expanded = built(folder, packed=False)
    for name, weight in expanded.named_parameters():
        assert torch.equal(weight, dense.get_parameter(name))
    skipped = "v_proj" in how.get("skip", ())
    assert len(model.layers[0].attn.qkv.parts) == (3 if skipped else 1)  # type: ignore[union-attr]
    assert isinstance(model.layers[0].attn.qkv, QuantLinear)
    torch.testing.assert_close(
        all_logits(load(folder, torch.bfloat16), ids),
        all_logits(built(folder, dtype=torch.bfloat16, packed=False), ids),
        atol=0.3,  # biases are rounded before they are added, or after
        rtol=0,
    )


def built(folder: Path, *, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    checkpoint = open_checkpoint(folder)
    try:
        return build_model(checkpoint, device=CPU, dtype=dtype, **options)
    finally:
        checkpoint.store.close()
