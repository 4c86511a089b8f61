"""AWQ on one block: scales change nothing that the block computes, and go only where something can absorb them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qwenkit.config.families import FAMILIES
from qwenkit.model.transformer import Layer
from qwenkit.quantize.awq import ScaleResult
from qwenkit.quantize.awq_block import AwqBlock
from qwenkit.quantize.blocks import LINEARS, BlockReader, BlockRunner, weight_of
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.stored import BlockFormat
from qwenkit.weights.checkpoint import open_checkpoint
from tests.support.tiny_models import write_model

RECIPE = Recipe(method="awq", group_size=32)
MHA: dict[str, Any] = {"num_kv_heads": 2}


def searched(path: Path) -> tuple[AwqBlock, Layer, BlockRunner, Tensor]:
    checkpoint = open_checkpoint(path)
    block = BlockReader(checkpoint).block(1)
    runner = BlockRunner(checkpoint.config, [20, 30])
    torch.manual_seed(1)
    x = torch.randn(50, 64) * (1 + 20 * (torch.arange(64) % 13 == 0))  # a few channels stand out
    form = BlockFormat(checkpoint.family, checkpoint.config, RECIPE)
    search = AwqBlock(block, runner, x, RECIPE, separate_values=form.separate_values)
    for name in LINEARS:
        search.find_scales(name)
    return search, block, runner, x


@pytest.mark.parametrize(
    ("family", "changes", "scaled"),
    [
        ("llama", MHA, ["attn.qkv", "attn.out", "ffn.gate_up", "ffn.down"]),
        ("llama", {}, ["attn.qkv", "ffn.gate_up", "ffn.down"]),  # grouped values cannot absorb
        ("llama", MHA | {"qkv_bias": True, "mlp_bias": True, "out_bias": True}, list(LINEARS)),
        ("qwen3", {}, ["attn.qkv", "ffn.gate_up", "ffn.down"]),
        ("qwen", {}, ["attn.qkv", "ffn.gate_up", "ffn.down"]),  # fused values are not to be told apart
    ],
)
def test_scaled_weights_compute_the_same(
    family: str, changes: dict[str, Any], scaled: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def uneven(x_mean: Tensor, *args: Any, **options: Any) -> ScaleResult:
        return ScaleResult(torch.rand(len(x_mean)) * 3 + 0.3, 0.5, 0.0, 1.0)

    monkeypatch.setattr("qwenkit.quantize.awq_block.search_scales", uneven)
    search, block, runner, x = searched(write_model(tmp_path / "m", family, **changes))
    expected, before = x.clone(), {name: weight_of(block, name).clone() for name in LINEARS}
    runner.advance(block, expected)
    assert list(search._scales) == scaled
    search.apply_scales()
    for name in scaled:
        assert not torch.allclose(weight_of(block, name), before[name]), name
    found = x.clone()
    runner.advance(block, found)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


def test_inputs_are_those_of_the_scaled_block(tmp_path: Path) -> None:
    search, block, runner, x = searched(write_model(tmp_path / "m", "llama", **MHA))
    search.apply_scales()

    def check(name: str, inputs: Tensor) -> None:
        torch.testing.assert_close(search.inputs(name), inputs, rtol=1e-4, atol=1e-4)

    runner.observe(block, x, LINEARS, check)
    assert search.num_samples == 2


def test_query_and_key_rows_are_not_clipped_but_fused_ones_are(tmp_path: Path) -> None:
    search, block, _, _ = searched(write_model(tmp_path / "m", "llama", **MHA))
    search.apply_scales()
    weight, clipped = weight_of(block, "attn.qkv"), search.clipped("attn.qkv")
    assert torch.equal(clipped[:128], weight[:128])
    assert not torch.equal(clipped[128:], weight[128:])
    search, block, _, _ = searched(write_model(tmp_path / "q", "qwen"))
    search.apply_scales()
    weight, clipped = weight_of(block, "attn.qkv"), search.clipped("attn.qkv")
    assert not torch.equal(clipped[:128], weight[:128])
    assert bool((clipped.abs() <= weight.abs()).all())


def test_searching_leaves_the_block_as_it_was(tmp_path: Path) -> None:
    path = write_model(tmp_path / "m", "llama", **MHA)
    _, block, _, _ = searched(path)
    fresh = BlockReader(open_checkpoint(path)).block(1)
    for (name, weight), (_, expected) in zip(block.named_parameters(), fresh.named_parameters(), strict=True):
        assert torch.equal(weight, expected), name


def test_families_say_whether_values_are_separate() -> None:
    for name, family in FAMILIES.items():
        assert (len(family.tensors["layers.{i}.attn.qkv.weight"]) == 3) == (name != "qwen")
