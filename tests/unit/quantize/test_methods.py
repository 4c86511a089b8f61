"""One block quantised by each method: what is measured, what later matrices see, and errors that say where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qwenkit.core.errors import NumericsError
from qwenkit.model.transformer import Layer
from qwenkit.quantize.blocks import LINEARS, BlockReader, BlockRunner, weight_of
from qwenkit.quantize.methods import LinearResult, Samples, quantise_block
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.stored import BlockFormat
from qwenkit.weights.checkpoint import Checkpoint, open_checkpoint
from tests.support.tiny_models import write_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_checkpoint(write_model(tmp_path_factory.mktemp("m") / "m", num_kv_heads=2))


def made(checkpoint: Checkpoint, **settings: Any) -> tuple[Layer, Layer, Samples, dict[str, LinearResult]]:
    """A float block, the same quantised, its samples and the results."""
    reader = BlockReader(checkpoint)
    torch.manual_seed(3)
    samples = Samples(runner=BlockRunner(checkpoint.config, [40, 60, 70]), x=torch.randn(170, 64))
    block = reader.block(0)
    told: list[str] = []
    results = quantise_block(
        block,
        samples,
        Recipe(group_size=32, **settings),
        separate_values=True,
        on_linear=lambda name, _: told.append(name),
    )
    assert told == list(LINEARS)
    return reader.block(0), block, samples, results


def inputs_of(block: Layer, samples: Samples) -> dict[str, Tensor]:
    parts: dict[str, list[Tensor]] = {name: [] for name in LINEARS}
    samples.runner.observe(block, samples.x, LINEARS, lambda name, x: parts[name].append(x))
    return {name: torch.cat(tensors) for name, tensors in parts.items()}


@pytest.mark.parametrize("method", ["gptq", "rtn"])
@pytest.mark.parametrize("true_sequential", [True, False])
def test_the_error_is_that_of_the_outputs(method: str, true_sequential: bool, checkpoint: Checkpoint) -> None:
    before, after, samples, results = made(checkpoint, method=method, true_sequential=true_sequential)
    # With true sequential, a matrix is measured on what the quantised ones before it put out.
    inputs = inputs_of(after if true_sequential else before, samples)
    for name in LINEARS:
        change = inputs[name] @ (weight_of(before, name) - weight_of(after, name)).T
        expected = change.square().sum(dim=0) / (inputs[name] @ weight_of(before, name).T).square().sum(dim=0)
        found = results[name].error / results[name].size
        torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-6)
        assert results[name].is_measured
        assert results[name].seconds > 0


def test_the_error_of_awq_is_that_of_the_scaled_matrices(checkpoint: Checkpoint) -> None:
    before, after, samples, results = made(checkpoint, method="awq")
    norms = before.attn_norm.weight / after.attn_norm.weight  # the scales
    inputs = inputs_of(before, samples)["attn.qkv"] / norms
    scaled = weight_of(before, "attn.qkv") * norms
    queries = slice(0, 64)  # values also absorbed the scales of the output projection
    change = inputs @ (scaled - weight_of(after, "attn.qkv"))[queries].T
    expected = change.square().sum(dim=0) / (inputs @ scaled[queries].T).square().sum(dim=0)
    found = (results["attn.qkv"].error / results["attn.qkv"].size)[queries]
    torch.testing.assert_close(found, expected, rtol=2e-2, atol=1e-6)


def test_without_samples_the_error_is_that_of_the_weights(checkpoint: Checkpoint) -> None:
    reader = BlockReader(checkpoint)
    block, before = reader.block(0), reader.block(0)
    recipe = Recipe(method="rtn", group_size=32)
    results = quantise_block(block, None, recipe, separate_values=True, on_linear=lambda *_: None)
    for name in LINEARS:
        weight = weight_of(before, name)
        expected = (weight - weight_of(block, name)).square().sum() / weight.square().sum()
        assert float(results[name].error.sum() / results[name].size.sum()) == pytest.approx(
            float(expected), rel=1e-4
        )
        assert not results[name].is_measured


@pytest.mark.parametrize("method", ["gptq", "awq", "rtn"])
def test_errors_say_where(method: str, checkpoint: Checkpoint) -> None:
    block = BlockReader(checkpoint).block(2)
    weight_of(block, "ffn.gate_up")[0, 0] = float("inf")
    samples = Samples(runner=BlockRunner(checkpoint.config, [40]), x=torch.randn(40, 64))
    recipe = Recipe(method=method, group_size=32)
    with pytest.raises(NumericsError, match=r"^layer 2, ffn\.(gate_up|down): "):
        quantise_block(block, samples, recipe, separate_values=True, on_linear=lambda *_: None)


@pytest.mark.parametrize(
    "settings",
    [
        {"layout": "gptq"},
        {"layout": "gptq_v2", "symmetric": False, "bits": 8},
        {"layout": "gptq", "desc_act": True},
        {"layout": "awq-gemm"},
        {"layout": "awq-gemv", "symmetric": False},
    ],
    ids=str,
)
def test_a_block_read_back_is_the_block_that_was_stored(
    settings: dict[str, Any], checkpoint: Checkpoint
) -> None:
    _, block, _, results = made(checkpoint, **settings)
    form = BlockFormat(checkpoint.family, checkpoint.config, Recipe(group_size=32, **settings))
    tensors = form.tensors(block, 5, results)
    assert all(".layers.5." in name for name in tensors)
    again = form.block(5, tensors)
    for name in LINEARS:
        assert torch.equal(weight_of(again, name), weight_of(block, name)), name
    assert torch.equal(again.ffn_norm.weight, block.ffn_norm.weight.half().float())
    size = sum(tensor.nbytes for tensor in tensors.values())
    assert form.nbytes == pytest.approx(size, rel=0.1)


def test_norms_that_16_bits_cannot_hold_are_named(checkpoint: Checkpoint) -> None:
    _, block, _, results = made(checkpoint)
    block.ffn_norm.weight[0] = 70000.0
    form = BlockFormat(checkpoint.family, checkpoint.config, Recipe(group_size=32))
    with pytest.raises(
        NumericsError, match=r"layers\.1\.post_attention_layernorm\.weight' holds numbers beyond 65504"
    ):
        form.tensors(block, 1, results)


def test_errors_of_parts_add_up(checkpoint: Checkpoint, tmp_path: Path) -> None:
    _, _, _, results = made(checkpoint)
    form = BlockFormat(checkpoint.family, checkpoint.config, Recipe(group_size=32))
    errors = {e.name.rpartition(".")[2]: e for e in form.errors(0, results)}
    assert list(errors) == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    together = sum(errors[n].loss or 0.0 for n in ("q_proj", "k_proj", "v_proj"))
    assert together == pytest.approx(float(results["attn.qkv"].error.sum()), rel=1e-4)
    seconds = sum(e.seconds for e in errors.values())
    assert seconds == pytest.approx(sum(r.seconds for r in results.values()))


def test_raised_damping_is_told(checkpoint: Checkpoint, caplog: pytest.LogCaptureFixture) -> None:
    reader = BlockReader(checkpoint)
    few = Samples(runner=BlockRunner(checkpoint.config, [2]), x=torch.randn(2, 64))
    settings: dict[str, Any] = {"separate_values": True, "on_linear": lambda *_: None}
    quantise_block(reader.block(0), few, Recipe(group_size=32, damp=1e-12), **settings)
    assert "damping raised from 1e-12 to" in caplog.text
    caplog.clear()
    quantise_block(reader.block(0), few, Recipe(group_size=32), **settings)
    assert "damping" not in caplog.text
