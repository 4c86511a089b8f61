"""Quantised models turned back into plain weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qwenkit.core.errors import InputError, NumericsError
from qwenkit.llm import load_tokenizer
from qwenkit.quantize.dequantize import dequantize_model
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.run import quantize_model
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from tests.support.models import load
from tests.support.tiny_models import write_model


def packed(folder: Path, family: str = "llama", **settings: object) -> Path:
    model = write_model(folder / f"{family}-float", family)
    recipe = Recipe(method="rtn", group_size=32, **settings)  # type: ignore[arg-type]
    return quantize_model(model, folder / f"{family}-int", recipe).folder


@pytest.mark.parametrize("family", ["llama", "qwen", "qwen2"])
def test_float32_is_exactly_what_the_codes_say(family: str, tmp_path: Path) -> None:
    source = packed(tmp_path, family, layout="awq-gemm", symmetric=False)
    out = tmp_path / "plain"
    nbytes = dequantize_model(source, out, dtype="float32")
    assert nbytes == sum(t.nbytes for t in load_file(out / "model.safetensors").values())
    checkpoint = open_checkpoint(source)
    expected = build_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32, packed=False)
    found = load(out)
    assert open_checkpoint(out).quant is None
    assert open_checkpoint(out).family.name == family
    for (name, a), (_, b) in zip(found.named_parameters(), expected.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    assert load_tokenizer(out).encode("abc") == load_tokenizer(source).encode("abc")
    assert open_checkpoint(out).generation == checkpoint.generation


def test_16_bits(tmp_path: Path) -> None:
    source = packed(tmp_path)
    dequantize_model(source, tmp_path / "half")
    assert {t.dtype for t in load_file(tmp_path / "half" / "model.safetensors").values()} == {torch.float16}
    dequantize_model(source, tmp_path / "brain", dtype="bfloat16")
    assert load(tmp_path / "brain").config.dtype == "bfloat16"


def test_what_cannot_be_done(tmp_path: Path) -> None:
    source = packed(tmp_path)
    with pytest.raises(InputError, match=r"dtype 'float61' is unknown; use .*did you mean 'float16'\?"):
        dequantize_model(source, tmp_path / "out", dtype="float61")
    with pytest.raises(InputError, match="is not quantised"):
        dequantize_model(tmp_path / "llama-float", tmp_path / "out")
    with pytest.raises(InputError, match="exists already"):
        dequantize_model(source, source)
    assert not (tmp_path / "out").exists()


def test_numbers_that_16_bits_cannot_hold_are_named(tmp_path: Path) -> None:
    source = packed(tmp_path)
    tensors = load_file(source / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.scales"][0, 0] = 65504.0
    save_file(tensors, source / "model.safetensors")
    with pytest.raises(NumericsError, match=r"layers\.1\.ffn\.gate_up\.weight .*--dtype float32"):
        dequantize_model(source, tmp_path / "out")
    dequantize_model(source, tmp_path / "out", dtype="float32")
