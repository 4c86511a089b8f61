"""Single blocks: the same numbers as the whole network, and the inputs of each linear on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qwenkit.config.model import RopeConfig
from qwenkit.core.errors import NumericsError
from qwenkit.model.generate import all_logits
from qwenkit.quantize.blocks import LINEARS, BlockReader, BlockRunner, activations, embed, weight_of
from qwenkit.weights.checkpoint import open_checkpoint
from tests.support.models import load
from tests.support.networks import family_config, random_network, write_gguf
from tests.support.tiny_models import SIZES, write_model

SAMPLES = [list(range(30)), list(range(100, 117)), list(range(5, 70))]


def walk(path: Path) -> Tensor:
    """Outputs of the last block, (T, D), one block at a time."""
    checkpoint = open_checkpoint(path)
    reader = BlockReader(checkpoint)
    runner = BlockRunner(checkpoint.config, [len(s) for s in SAMPLES])
    x = activations(runner.num_tokens, checkpoint.config.hidden_size, None)
    embed(reader, SAMPLES, x)
    for index in range(checkpoint.config.num_layers):
        runner.advance(reader.block(index), x)
    return x


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {}),
        ("qwen2", {}),
        ("qwen3", {}),
        ("qwen", {"rope": RopeConfig(base=10000.0, dim=32, ntk_length=16), "logn_length": 16}),
        ("llama", {"windows": (None, 4, 8)}),
    ],
)
def test_block_by_block_is_the_network(
    family: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("qwenkit.quantize.blocks.BATCH_TOKENS", 48)  # two samples, then one alone
    path = write_model(tmp_path / "m", family, **changes)
    model = load(path)
    logits = model.head(model.norm(walk(path)))
    at = 0
    for sample in SAMPLES:
        expected = all_logits(model, sample)
        torch.testing.assert_close(logits[at : at + len(sample)], expected, rtol=1e-4, atol=1e-4)
        at += len(sample)


def test_a_gguf_model_is_read_in_the_networks_own_order(tmp_path: Path) -> None:
    model = random_network(family_config("llama", **SIZES))
    write_gguf(tmp_path / "m.gguf", model, "llama")
    reader = BlockReader(open_checkpoint(tmp_path / "m.gguf"))
    for name, weight in model.named_parameters():
        assert torch.equal(reader.read(name), weight), name


def test_inputs_of_every_linear(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path / "m"))
    block = BlockReader(checkpoint).block(1)
    runner = BlockRunner(checkpoint.config, [5, 9])
    x = torch.randn(14, 64)
    before = x.clone()
    seen: dict[str, Tensor] = {}
    runner.observe(block, x, LINEARS, lambda name, inputs: seen.update({name: inputs.clone()}))
    assert torch.equal(x, before)
    assert list(seen) == list(LINEARS)
    torch.testing.assert_close(seen["attn.qkv"], block.attn_norm(x))
    middle = x + runner.attention(block, block.attn_norm(x))
    torch.testing.assert_close(seen["ffn.gate_up"], block.ffn_norm(middle))
    attended = seen["attn.out"] @ weight_of(block, "attn.out").T
    torch.testing.assert_close(attended, runner.attention(block, block.attn_norm(x)))
    runner.advance(block, x)
    torch.testing.assert_close(x, middle + seen["ffn.down"] @ weight_of(block, "ffn.down").T)


def test_nothing_is_computed_beyond_what_was_asked_for(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path / "m"))
    block = BlockReader(checkpoint).block(0)
    block.ffn.register_forward_pre_hook(lambda *_: pytest.fail("went too far"))
    seen: list[str] = []
    runner = BlockRunner(checkpoint.config, [4])
    runner.observe(block, torch.randn(4, 64), ["attn.out"], lambda name, _: seen.append(name))
    assert seen == ["attn.out"]
    assert not block.attn.out._forward_pre_hooks


def test_the_first_samples_that_fit(tmp_path: Path) -> None:
    runner = BlockRunner(family_config("llama", **SIZES), [5, 9, 3])
    assert runner.first(14).num_tokens == 14
    assert runner.first(16).num_samples == 2
    assert runner.first(1).num_tokens == 5


def test_activations_may_lie_in_a_file(tmp_path: Path) -> None:
    x = activations(3, 4, tmp_path / "x")
    x.fill_(2.0)
    assert x.shape == (3, 4)
    assert (tmp_path / "x").stat().st_size == 48


def test_damaged_weights_are_named(tmp_path: Path) -> None:
    model = random_network(family_config("llama", **SIZES))
    model.layers[1].ffn.down.weight[3, 4] = float("nan")
    write_gguf(tmp_path / "m.gguf", model, "llama")
    reader = BlockReader(open_checkpoint(tmp_path / "m.gguf"))
    with pytest.raises(NumericsError, match=r"blk\.1\.ffn_down\.weight' holds NaN or infinity"):
        reader.block(1)


def test_numbers_beyond_16_bits_are_named(tmp_path: Path) -> None:
    model = random_network(family_config("llama", **SIZES))
    model.norm.weight[0] = 1e6
    write_gguf(tmp_path / "m.gguf", model, "llama")
    reader = BlockReader(open_checkpoint(tmp_path / "m.gguf"))
    with pytest.raises(NumericsError, match=r"'output_norm\.weight' holds numbers beyond 65504"):
        reader.read("norm.weight", torch.float16)


def test_outputs_that_blow_up_name_the_layer(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path / "m"))
    block = BlockReader(checkpoint).block(2)
    with pytest.raises(NumericsError, match="outputs of layer 2 hold NaN"):
        BlockRunner(checkpoint.config, [4]).advance(block, torch.full((4, 64), float("inf")))
