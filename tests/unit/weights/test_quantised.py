"""Damaged and contradictory quantised folders are refused in one sentence; the output head can be rounded."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from qwenkit.backends.options import LocalOptions
from qwenkit.core.errors import CheckpointError, InputError, QwenkitError, UnsupportedModelError
from qwenkit.kernels.packed import PackedWeight
from qwenkit.layers.linear import Linear
from qwenkit.layers.quant_linear import QuantLinear
from qwenkit.model.generate import all_logits, explain_nonfinite
from qwenkit.model.transformer import Transformer
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model, with_head
from qwenkit.weights.memory import held_bytes, weights_bytes
from qwenkit.weights.plan import make_plan
from qwenkit.weights.save import stored_tensors
from tests.support.models import CPU, load
from tests.support.networks import family_config, random_network
from tests.support.quantised import FOLDERS, GOLDEN, Tensors, changed, pack_network
from tests.support.tiny_models import write_model

GPTQ = "qwen1-tiny-gptq-int4"
C_PROJ = "transformer.h.0.attn.c_proj"


def built(folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Transformer:
    checkpoint = open_checkpoint(folder)
    try:
        return build_model(checkpoint, device=CPU, dtype=dtype, **options)
    finally:
        checkpoint.store.close()


def put(name: str, make: Callable[[Tensor], Tensor]) -> Callable[[Tensors], object]:
    def change(tensors: Tensors) -> None:
        tensors[name] = make(tensors[name])

    return change


SPOILED: dict[str, tuple[str, Callable[[Tensors], object], list[str]]] = {
    "no scales": (GPTQ, lambda t: t.pop(f"{C_PROJ}.scales"), ["lacks", f"{C_PROJ}.scales"]),
    "no zeros": (GPTQ, lambda t: t.pop(f"{C_PROJ}.qzeros"), ["lacks", f"{C_PROJ}.qzeros"]),
    "no words": (GPTQ, lambda t: t.pop(f"{C_PROJ}.qweight"), ["lacks", f"{C_PROJ}.weight"]),
    "group out of range": (
        "qwen1-tiny-gptq-int4-act-order",
        put(f"{C_PROJ}.g_idx", lambda g: g.clone().fill_(4)),
        [f"{C_PROJ}.g_idx", "4"],
    ),
    "negative group": (GPTQ, put(f"{C_PROJ}.g_idx", lambda g: g - 1), [f"{C_PROJ}.g_idx", "-1"]),
    "short g_idx": (GPTQ, put(f"{C_PROJ}.g_idx", lambda g: g[:-1]), ["[127]", "[128]"]),
    "words of floats": (GPTQ, put(f"{C_PROJ}.qweight", lambda w: w.float()), [f"{C_PROJ}.qweight", "F32"]),
    "words of another size": (GPTQ, put(f"{C_PROJ}.qweight", lambda w: w[:8]), ["[8, 128]", "[16, 128]"]),
    "groups of floats": (GPTQ, put(f"{C_PROJ}.g_idx", lambda g: g.half()), [f"{C_PROJ}.g_idx", "F16"]),
    "scales of integers": (GPTQ, put(f"{C_PROJ}.scales", lambda s: s.int()), [f"{C_PROJ}.scales", "I32"]),
    "scale infinite": (
        GPTQ,
        put(f"{C_PROJ}.scales", lambda s: s.clone().fill_(torch.inf)),
        [f"{C_PROJ}.scales", "infinity"],
    ),
    "a bias that is not zero": (
        GPTQ,
        lambda t: t.update({f"{C_PROJ}.bias": torch.ones(128).half()}),
        [f"{C_PROJ}.bias", "not zero"],
    ),
    "both packed and dense": (
        GPTQ,
        lambda t: t.update({f"{C_PROJ}.weight": torch.ones(128, 128).half()}),
        ["holds", f"{C_PROJ}.", "does not have"],
    ),
    "a packed embedding": (
        GPTQ,
        lambda t: t.update({"transformer.wte.qweight": t.pop("transformer.wte.weight").int()}),
        ["lacks", "transformer.wte.weight"],
    ),
    "awq without scales": (
        "qwen1-tiny-awq-gemm",
        lambda t: t.pop(f"{C_PROJ}.scales"),
        ["lacks", f"{C_PROJ}.scales"],
    ),
    "awq with g_idx": (
        "qwen1-tiny-awq-gemm",
        lambda t: t.update({f"{C_PROJ}.g_idx": torch.zeros(128).int()}),
        ["holds", f"{C_PROJ}.g_idx"],
    ),
    "gemv with other scales": (
        "qwen1-tiny-awq-gemv",
        put(f"{C_PROJ}.scales", lambda s: s[:, :-1]),
        [f"{C_PROJ}.scales"],
    ),
}


@pytest.mark.parametrize("case", list(SPOILED))
def test_damaged_tensors(case: str, tmp_path: Path) -> None:
    name, change, words = SPOILED[case]
    assert_refused(changed(GOLDEN / name, tmp_path / "m", tensors=change, config={}), words)


@pytest.mark.parametrize(
    ("name", "config", "words"),
    [
        (GPTQ, {"bits": 8}, ["qweight", "gptq, 8 bit", "[32, 384]"]),
        (GPTQ, {"group_size": 64}, ["group_size 64"]),
        (GPTQ, {"bits": 3}, ["bits=3"]),
        (GPTQ, {"quant_method": "fp8"}, ["fp8", "GPTQ"]),
        (GPTQ, {"quant_method": "awq", "version": "gemm"}, ["qweight", "awq, 4 bit"]),
        ("qwen1-tiny-awq-gemm", {"version": "gemv"}, ["qweight", "awq"]),
        ("qwen1-tiny-awq-gemm", {"group_size": 64}, ["group"]),
        ("qwen1-tiny-awq-gemm", {"quant_method": "gptq", "version": None}, ["qweight", "gptq"]),
        ("qwen1-tiny-awq-gemm", {"version": "marlin"}, ["marlin"]),
        ("qwen1-tiny-awq-gemv", {"group_size": 32}, ["scales"]),
    ],
)
def test_wrong_settings(name: str, config: dict[str, Any], words: list[str], tmp_path: Path) -> None:
    assert_refused(changed(GOLDEN / name, tmp_path / "m", config=config), words)


def assert_refused(folder: Path, words: list[str]) -> None:
    with pytest.raises(QwenkitError) as caught:
        load(folder)
    text = str(caught.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


def test_unknown_packing_without_a_configuration(tmp_path: Path) -> None:
    spoil = put("transformer.h.0.attn.c_attn.scales", lambda s: s[:, :-1])
    folder = changed(GOLDEN / GPTQ, tmp_path / "m", tensors=spoil)
    with pytest.raises(CheckpointError, match=r"has no quantization_config.*does not show in its shape"):
        load(folder)


def test_other_methods_are_named(tmp_path: Path) -> None:
    folder = changed(GOLDEN / GPTQ, tmp_path / "m", config={"quant_method": "aqlm"})
    with pytest.raises(UnsupportedModelError, match="quantised as aqlm, which cannot be run; use a GPTQ"):
        load(folder)


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("head", ["auto", "int8"])
def test_bytes_are_as_planned(name: str, dtype: torch.dtype, head: str) -> None:
    """Zeros of a tensor whose groups all have the middle one are left out, which headers do not tell."""
    checkpoint = open_checkpoint(GOLDEN / name)
    model = build_model(checkpoint, device=CPU, dtype=dtype, head=head)
    planned = weights_bytes(checkpoint, dtype, head=head)
    checkpoint.store.close()
    assert held_bytes(model) <= planned <= 1.02 * held_bytes(model)
    if "awq" not in name:
        assert held_bytes(model) == planned


class TestHead:
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_rounded_to_8_bits(self, dtype: torch.dtype) -> None:
        plain, model = built(GOLDEN / GPTQ), built(GOLDEN / GPTQ, dtype, head="int8")
        [stored], [part] = plain.head.parts, model.head.parts
        assert isinstance(part, PackedWeight)
        assert (part.bits, part.group_size, part.shape) == (8, 128, (512, 128))
        assert isinstance(stored, Tensor)
        error = (part.dequantise() - stored.float()).abs()
        steps = stored.float().abs().amax(1, keepdim=True) / 127
        assert bool((error <= 0.502 * steps).all())
        assert not isinstance(model.embed.table, PackedWeight)

    def test_of_a_plain_model(self, tmp_path: Path) -> None:
        from tests.support.bad import GOOD

        plain, model = load(GOOD), built(GOOD, head="int8")
        assert isinstance(model.head, QuantLinear)
        ids = list(range(30))
        a, b = all_logits(plain, ids), all_logits(model, ids)
        assert 0 < float((a - b).abs().max()) < 0.05 * float(a.abs().max())

    def test_largest_group_that_fits(self, tmp_path: Path) -> None:
        config = family_config("llama", hidden_size=96, num_heads=3, num_kv_heads=3)
        folder = pack_network(random_network(config), "llama", tmp_path / "m", group_size=32)
        [part] = built(folder, head="int8").head.parts
        assert isinstance(part, PackedWeight)
        assert part.group_size == 32

    def test_groups_of_zeros(self, tmp_path: Path) -> None:
        def zero(tensors: Tensors) -> None:
            tensors["lm_head.weight"][3] = 0
            tensors["lm_head.weight"][4] = 1e-7

        folder = changed(GOLDEN / GPTQ, tmp_path / "m", tensors=zero, config={})
        [part] = built(folder, head="int8").head.parts
        assert isinstance(part, PackedWeight)
        assert not part.dequantise()[3:5].any()

    def test_nan_is_refused(self, tmp_path: Path) -> None:
        spoil = put("lm_head.weight", lambda w: w.clone().fill_(torch.nan))
        folder = changed(GOLDEN / GPTQ, tmp_path / "m", tensors=spoil, config={})
        with pytest.raises(CheckpointError, match=r"'lm_head\.weight' holds NaN"):
            built(folder, head="int8")

    def test_a_head_that_is_the_embedding(self, tmp_path: Path) -> None:
        folder = pack_network(random_network(family_config("qwen2")), "qwen2", tmp_path / "m")
        with pytest.raises(InputError, match=r"head='int8' is not possible.*is its embedding; leave"):
            built(folder, head="int8")

    def test_impossible_values(self) -> None:
        with pytest.raises(InputError, match="head='int4'"):
            built(GOLDEN / GPTQ, head="int4")
        with pytest.raises(InputError, match="head='int4' is not known; use auto or int8"):
            LocalOptions(head="int4")
        with pytest.raises(InputError, match="head='int8'"):
            built(GOLDEN / GPTQ, head="int8", packed=False)


def test_an_output_head_may_be_packed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As GPTQModel writes it with lm_head=true."""
    config = family_config("qwen3", vocab_size=64)
    dense = random_network(config)
    folder = pack_network(dense, "qwen3", tmp_path / "m")
    from qwenkit.layers.packing import to_gptq
    from qwenkit.quantize.grid import dequantise, round_to_nearest

    weight = dense.head.parts[0]
    assert isinstance(weight, Tensor)
    found = round_to_nearest(weight, bits=4, group_size=64, symmetric=True)
    weight.copy_(dequantise(found))

    def pack(tensors: Tensors) -> None:
        del tensors["lm_head.weight"]
        tensors.update({f"lm_head.{suffix}": t for suffix, t in to_gptq(found).items()})

    folder = changed(folder, tmp_path / "packed", tensors=pack, config={})
    ids = list(range(40))
    torch.testing.assert_close(all_logits(load(folder), ids), all_logits(dense, ids), atol=5e-5, rtol=0)
    with caplog.at_level(logging.INFO, logger="qwenkit"):
        [part] = built(folder, head="int8").head.parts
    assert isinstance(part, PackedWeight)
    assert part.bits == 4
    assert "head=int8 changes nothing" in caplog.text


def test_the_plan_needs_no_weights(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(GOLDEN / GPTQ)
    checkpoint.store.close()
    plan = make_plan(checkpoint, checkpoint.config, dtype=torch.bfloat16)
    assert not plan["layers.0.attn.qkv.weight"].is_plain
    assert plan["layers.0.attn.qkv.bias"].is_plain
    assert [p.module for p in plan["layers.1.ffn.gate_up.weight"].parts] == [
        "transformer.h.1.mlp.w2",
        "transformer.h.1.mlp.w1",
    ]


def test_packed_weights_cannot_be_saved_as_numbers() -> None:
    from qwenkit.config.families import FAMILIES

    with pytest.raises(InputError, match="packed=False"):
        stored_tensors(load(GOLDEN / GPTQ), FAMILIES["qwen"])
    assert stored_tensors(built(GOLDEN / GPTQ, packed=False), FAMILIES["qwen"])


def test_progress_counts_bytes_in_memory() -> None:
    seen: list[tuple[int, int]] = []
    built(GOLDEN / GPTQ, on_progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_nan_in_packed_scales_is_named() -> None:
    model = load(GOLDEN / GPTQ)
    [part] = model.layers[1].attn.out.parts  # type: ignore[union-attr]
    assert isinstance(part, PackedWeight)
    part.scales[0, 0] = torch.nan
    text = explain_nonfinite(model, [1, 2, 3])
    assert "first in layers.1.attn.out: the weight layers.1.attn.out.weight itself" in text
    assert "fetch the checkpoint again" in text


def test_another_head_shares_all_else(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(write_model(tmp_path / "m"))
    model = build_model(checkpoint, device=CPU, dtype=torch.float32)
    other = with_head(model, checkpoint, "int8")
    loaded = build_model(checkpoint, device=CPU, dtype=torch.float32, head="int8")
    assert isinstance(other.head, QuantLinear)
    assert isinstance(model.head, Linear)
    assert other.layers is model.layers
    there, anew = other.head.parts[0], loaded.head.parts[0]  # type: ignore[union-attr]
    assert isinstance(there, PackedWeight)
    assert isinstance(anew, PackedWeight)
    assert torch.equal(there.codes, anew.codes)
