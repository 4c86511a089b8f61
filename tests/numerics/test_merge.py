"""Merged models against PEFT, against the adapter beside its base, and against the formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from qwenkit.llm import LLM
from qwenkit.train.merge import merge_adapter
from qwenkit.weights.adapters import load_adapter
from qwenkit.weights.checkpoint import open_checkpoint
from tests.numerics.test_lora import CASES, LINEARS, SIZES
from tests.support.adapters import batch_logits, save_with_peft, write_adapter
from tests.support.models import load
from tests.support.networks import family_config, random_network, write_gguf
from tests.support.quantised import copied
from tests.support.tiny_models import write_model

# peft and transformers warn of each other's changes; nothing of ours warns here.
pytestmark = pytest.mark.filterwarnings("ignore")

IDS = [3, 77, 150, 9, 44, 9, 120, 31, 5]


def _base(family: str, changes: dict[str, Any], folder: Path, dtype: torch.dtype = torch.float32) -> Any:
    torch.manual_seed(len(family))
    config = getattr(transformers, f"{family}Config")(**SIZES | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, weight in model.named_parameters():
        std = 0.3 if "embed" in name else 0.15
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=std)
    model.to(dtype).save_pretrained(folder)
    return model


def _merged(tmp_path: Path, **options: Any) -> Path:
    return merge_adapter(tmp_path / "adapter", tmp_path / "out", model=tmp_path / "base", **options).folder


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_adapter_in_peft(case: str, tmp_path: Path) -> None:
    """Also where tied tables must part, and in transformers, which must find nothing missing or unexpected."""
    family, changes, lora = CASES[case]
    base = _base(family, changes, tmp_path / "base")
    theirs = save_with_peft(base, tmp_path / "adapter", **lora)
    with torch.inference_mode():
        expected = theirs(torch.tensor([IDS])).logits[0]
    out = _merged(tmp_path)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.float32, output_loading_info=True
    )
    assert not any(info.values()), info
    with torch.inference_mode():
        torch.testing.assert_close(model(torch.tensor([IDS])).logits[0], expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(batch_logits(load(out), [IDS], [None]), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    "case", ["qwen2-all", "llama-rslora", "qwen2-rank-pattern", "qwen2-embedding-and-head"]
)
def test_weights_equal_merge_and_unload(case: str, tmp_path: Path) -> None:
    family, changes, lora = CASES[case]
    base = _base(family, changes, tmp_path / "base")
    theirs = save_with_peft(base, tmp_path / "adapter", **lora).merge_and_unload().state_dict()
    ours = load_file(_merged(tmp_path) / "model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=0)


def test_bfloat16_is_rounded_once(tmp_path: Path) -> None:
    base = _base("Qwen2", {}, tmp_path / "base", torch.bfloat16)
    before = {name: weight.clone() for name, weight in base.state_dict().items()}
    lora = {"r": 8, "lora_alpha": 12, "target_modules": LINEARS}
    theirs = save_with_peft(base, tmp_path / "adapter", **lora).merge_and_unload().state_dict()
    pairs = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    ours, num_twice = load_file(_merged(tmp_path) / "model.safetensors"), 0
    for name, weight in ours.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" not in pairs:
            assert torch.equal(weight, before[name])
            continue
        a, b = (pairs[f"{module}.lora_{part}.weight"].double() for part in "AB")
        update = 12 / 8 * (b @ a)
        exact = before[name].double() + update
        least = (
            exact.bfloat16().double() - exact
        ).abs() + 1e-6  # sums are in float32, so not to the last tie
        assert ((weight.double() - exact).abs() <= least).all()
        assert (weight != theirs[name]).sum() <= 2
        twice = before[name] + update.bfloat16()
        num_twice += int(((twice.double() - exact).abs() > least).sum())
    assert num_twice > 0  # the comparison sees what a second rounding does


def _qwen1_adapter(folder: Path, base: Path, *, tables: bool = True) -> Path:
    """On all four modules of first-generation Qwen, and both tables."""
    checkpoint = open_checkpoint(base)
    checkpoint.store.close()
    config, tensors = checkpoint.config, {}
    generator = torch.Generator().manual_seed(1)
    width, ffn = config.hidden_size, config.ffn_size
    sizes = {
        "attn.c_attn": (3 * width, width),
        "attn.c_proj": (width, width),
        "mlp.w1": (ffn, width),
        "mlp.w2": (ffn, width),
        "mlp.c_proj": (width, ffn),
    }
    for layer in range(config.num_layers):
        for module, (rows, columns) in sizes.items():
            name = f"base_model.model.transformer.h.{layer}.{module}.lora_"
            tensors[f"{name}A.weight"] = torch.randn(8, columns, generator=generator) * 0.1
            tensors[f"{name}B.weight"] = torch.randn(rows, 8, generator=generator) * 0.1
    saved: dict[str, Any] = {}
    if tables:
        for name in ("transformer.wte", "lm_head"):
            table = torch.randn(config.vocab_size, width, generator=generator) * 0.1
            tensors[f"base_model.model.{name}.weight"] = table
        saved["modules_to_save"] = ["wte", "lm_head"]
    targets = ["c_attn", "c_proj", "w1", "w2"]
    return write_adapter(folder, tensors, r=8, lora_alpha=2, target_modules=targets, **saved)


def _beside(base: Path, adapter: Path, **options: Any) -> torch.Tensor:
    model, checkpoint = load(base, **options), open_checkpoint(base)
    checkpoint.store.close()
    loaded = load_adapter(adapter, "a", family=checkpoint.family, model=model)
    expected = batch_logits(model, [[i % 60 for i in IDS]], [loaded])
    assert (batch_logits(model, [[i % 60 for i in IDS]], [None]) - expected).abs().max() > 0.05
    return expected


def test_first_generation_qwen(tmp_path: Path) -> None:
    base = write_model(tmp_path / "base", "qwen")
    adapter = _qwen1_adapter(tmp_path / "adapter", base)
    expected = _beside(base, adapter)
    out = _merged(tmp_path, shard_bytes=100_000)
    assert len(list(out.glob("model-*.safetensors"))) > 2
    torch.testing.assert_close(
        batch_logits(load(out), [[i % 60 for i in IDS]], [None]), expected, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    "name", ["qwen1-tiny-gptq-int4", "qwen1-tiny-gptq-int4-act-order", "qwen1-tiny-awq-gemv"]
)
def test_a_quantised_base_becomes_plain(name: str, tmp_path: Path) -> None:
    base = copied(name, tmp_path / "base")
    adapter = _qwen1_adapter(tmp_path / "adapter", base, tables=False)
    expected = _beside(base, adapter, packed=False)
    out = _merged(tmp_path, dequantize=True, dtype="float32")
    checkpoint = open_checkpoint(out)
    checkpoint.store.close()
    assert (checkpoint.quant, checkpoint.config.dtype) == (None, "float32")
    torch.testing.assert_close(
        batch_logits(load(out), [[i % 60 for i in IDS]], [None]), expected, atol=1e-4, rtol=0
    )


def test_a_gguf_base(tmp_path: Path) -> None:
    """Its rows of q and k are in another order, its names are others, and norms are wider than matrices."""
    network = random_network(family_config("llama", vocab_size=288))
    write_gguf(tmp_path / "m.gguf", network, "llama")
    tensors, generator = {}, torch.Generator().manual_seed(1)
    for part, rows in (("q", 256), ("k", 64)):
        name = f"base_model.model.model.layers.1.self_attn.{part}_proj.lora_"
        tensors[f"{name}A.weight"] = torch.randn(4, 256, generator=generator) * 0.1
        tensors[f"{name}B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    lora = {"target_modules": ["q_proj", "k_proj"], "layers_to_transform": [1]}
    adapter = write_adapter(tmp_path / "adapter", tensors, **lora)
    expected = _beside(tmp_path / "m.gguf", adapter)
    tokenizer = write_model(tmp_path / "other")  # the file has no vocabulary; the adapter brings one
    for path in tokenizer.glob("tokenizer*"):
        (adapter / path.name).write_bytes(path.read_bytes())
    result = merge_adapter(adapter, tmp_path / "out", model=tmp_path / "m.gguf")
    assert result.dtype == "float32"
    ids = [i % 60 for i in IDS]
    torch.testing.assert_close(batch_logits(load(result.folder), [ids], [None]), expected, atol=1e-5, rtol=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(result.folder, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(theirs(torch.tensor([ids])).logits[0], expected, atol=1e-4, rtol=0)


def test_an_adapter_opened_as_a_model(tmp_path: Path) -> None:
    """Replies, scores, logits and embeddings are all those of the merged model."""
    base = write_model(tmp_path / "base", "qwen")
    adapter = _qwen1_adapter(tmp_path / "adapter", base)
    config = adapter / "adapter_config.json"
    config.write_text(config.read_text().replace("someone/some-model", str(base)))
    out = _merged(tmp_path)
    with (
        LLM(adapter, dtype="float32") as one,
        LLM(out, dtype="float32") as other,
        LLM(base, dtype="float32") as plain,
    ):
        assert one.info.details["base"] == str(base)
        wanted = other.logits([IDS])[0]
        torch.testing.assert_close(one.logits([IDS])[0], wanted, atol=1e-4, rtol=0)
        assert (plain.logits([IDS])[0] - wanted).abs().max() > 0.05
        scores = other.backend.logprobs([IDS])[0]
        assert one.backend.logprobs([IDS])[0] == pytest.approx(scores, abs=1e-4)
        assert plain.backend.logprobs([IDS])[0] != pytest.approx(scores, abs=1e-2)
        assert one.backend.embed([IDS])[0] == pytest.approx(other.backend.embed([IDS])[0], abs=1e-4)
        assert one.chat("Hello").token_ids == other.chat("Hello").token_ids
