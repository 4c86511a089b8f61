"""LoRA adapters against peft on tiny random transformers models, and against merging by hand for Qwen v1."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from qwenkit.config.families import FAMILIES
from qwenkit.layers.lora import Adapter
from qwenkit.model.transformer import Transformer
from qwenkit.weights.adapters import load_adapter
from qwenkit.weights.checkpoint import open_checkpoint
from tests.support.adapters import batch_logits, greedy_batch, save_with_peft, write_adapter
from tests.support.models import load
from tests.support.networks import family_config, random_network, write_gguf

# peft and transformers warn of each other's changes; nothing of ours warns here.
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES: dict[str, Any] = {
    "vocab_size": 151,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
LINEARS = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]
# Name: family, changes of its configuration, settings of peft.LoraConfig.
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "qwen2-query-value": ("Qwen2", {}, {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "v_proj"]}),
    "qwen2-all": ("Qwen2", {}, {"r": 8, "lora_alpha": 16, "target_modules": LINEARS}),
    "qwen3-all-linear": (
        "Qwen3",
        {"head_dim": 32},
        {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"},
    ),
    "llama-down-only": ("Llama", {}, {"r": 3, "lora_alpha": 8, "target_modules": ["down_proj"]}),
    "llama-rslora": ("Llama", {}, {"r": 9, "lora_alpha": 5, "use_rslora": True, "target_modules": LINEARS}),
    "llama-biases": (
        "Llama",
        {"attention_bias": True, "mlp_bias": True},
        {"r": 4, "lora_alpha": 8, "target_modules": LINEARS},
    ),
    "qwen2-pattern": (
        "Qwen2",
        {},
        {"r": 4, "lora_alpha": 8, "target_modules": r".*\.(self_attn|mlp)\.(q_proj|k_proj|up_proj)"},
    ),
    "qwen2-rank-pattern": (
        "Qwen2",
        {},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": LINEARS,
            "rank_pattern": {"q_proj": 2, r"layers\.1\.mlp\..*_proj": 7},
            "alpha_pattern": {"v_proj": 3, r"model\.layers\.0\.self_attn\.o_proj": 32},
        },
    ),
    "qwen2-some-layers": (
        "Qwen2",
        {},
        {"r": 4, "lora_alpha": 8, "target_modules": LINEARS, "layers_to_transform": [0, 2]},
    ),
    "qwen2-layers-pattern": (
        "Qwen2",
        {},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ATTENTION,
            "layers_to_transform": 1,
            "layers_pattern": "layers",
            "exclude_modules": ["k_proj"],
        },
    ),
    "qwen2-embedding-and-head": (
        "Qwen2",
        {},
        {"r": 4, "lora_alpha": 8, "target_modules": [*LINEARS, "embed_tokens", "lm_head"]},
    ),
    "qwen2-tied-embedding": (
        "Qwen2",
        {"tie_word_embeddings": True},
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "embed_tokens"]},
    ),
    "qwen2-tied-embedding-kept-tied": (
        "Qwen2",
        {"tie_word_embeddings": True},
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    ),
    "qwen3-saved": (
        "Qwen3",
        {"head_dim": 16},
        {"r": 4, "lora_alpha": 8, "target_modules": LINEARS, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "qwen3-tied-saved": (
        "Qwen3",
        {"head_dim": 16, "tie_word_embeddings": True},
        {"r": 4, "lora_alpha": 8, "target_modules": LINEARS, "modules_to_save": ["embed_tokens", "lm_head"]},
    ),
    "qwen3-tied-saved-kept-tied": (
        "Qwen3",
        {"head_dim": 16, "tie_word_embeddings": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": LINEARS,
            "modules_to_save": ["embed_tokens"],
            "ensure_weight_tying": True,
        },
    ),
    "qwen3-tied-saved-embedding": (
        "Qwen3",
        {"head_dim": 16, "tie_word_embeddings": True},
        {"r": 4, "lora_alpha": 8, "target_modules": ["o_proj"], "modules_to_save": ["embed_tokens"]},
    ),
    "llama-token-rows": (
        "Llama",
        {},
        {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "trainable_token_indices": [150, 3, 77]},
    ),
    "llama-tied-token-rows": (
        "Llama",
        {"tie_word_embeddings": True},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [150, 3, 77]},
        },
    ),
    "llama-token-rows-of-both": (
        "Llama",
        {},
        {
            "r": 4,
            "lora_alpha": 8,
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [150, 3], "lm_head": [9]},
        },
    ),
}


def _base(family: str, changes: dict[str, Any], folder: Path) -> Any:
    torch.manual_seed(len(family))
    config = getattr(transformers, f"{family}Config")(**SIZES | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, weight in model.named_parameters():
        std = 0.3 if "embed" in name else 0.15
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=std)
    model.save_pretrained(folder)
    return model


def _ids(length: int) -> list[int]:
    generator = torch.Generator().manual_seed(length)
    return [3, *torch.randint(0, 151, (length - 1,), generator=generator).tolist()]


def _load(base: Path, adapter: Path) -> tuple[Transformer, Adapter]:
    model, checkpoint = load(base), open_checkpoint(base)
    checkpoint.store.close()
    return model, load_adapter(adapter, "a", family=checkpoint.family, model=model)


@pytest.mark.parametrize("case", CASES)
def test_logits_and_greedy_equal_peft(case: str, tmp_path: Path) -> None:
    family, changes, lora = CASES[case]
    base = _base(family, changes, tmp_path / "base")
    ids, length = _ids(40), 20
    with torch.inference_mode():
        plain = base(torch.tensor([ids])).logits[0]
    theirs = save_with_peft(base, tmp_path / "adapter", **lora)
    prompt = torch.tensor([ids])
    with torch.inference_mode():
        expected = theirs(prompt).logits[0]
        reply = theirs.generate(
            input_ids=prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=False,
            max_new_tokens=length,
        )[0, len(ids) :].tolist()
    model, adapter = _load(tmp_path / "base", tmp_path / "adapter")
    assert (expected - plain).abs().max() > 0.05  # the adapter does something
    torch.testing.assert_close(batch_logits(model, [ids], [adapter]), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(batch_logits(model, [ids], [None]), plain, atol=1e-4, rtol=0)
    assert greedy_batch(model, [ids], [adapter], length) == [reply]


def test_several_adapters_and_none_in_one_batch(tmp_path: Path) -> None:
    adapters: list[Adapter | None] = [None]
    for number, case in enumerate(("qwen2-all", "qwen2-rank-pattern", "qwen2-embedding-and-head")):
        base = _base("Qwen2", {}, tmp_path / "base")
        folder = tmp_path / f"adapter{number}"
        save_with_peft(base, folder, seed=number, **CASES[case][2])
        model, adapter = _load(tmp_path / "base", folder)
        adapters.append(adapter)
    model = load(tmp_path / "base")
    prompts = [_ids(n) for n in (5, 1, 17, 9, 3, 30)]
    owners = [adapters[i] for i in (1, 0, 2, 1, 3, 0)]
    alone = [batch_logits(model, [p], [a]) for p, a in zip(prompts, owners, strict=True)]
    together = batch_logits(model, prompts, owners)
    torch.testing.assert_close(together, torch.cat(alone), atol=2e-5, rtol=0)
    last = torch.tensor([len(p) for p in prompts]).cumsum(0) - 1
    wanted = batch_logits(model, prompts, owners, rows=last)
    torch.testing.assert_close(wanted, together[last], atol=2e-5, rtol=0)
    assert (batch_logits(model, prompts, [None] * 6)[last] - wanted).abs().amax(dim=-1).gt(0.05).tolist() == [
        owner is not None for owner in owners
    ]
    replies = greedy_batch(model, prompts, owners, 12)
    assert replies == [greedy_batch(model, [p], [a], 12)[0] for p, a in zip(prompts, owners, strict=True)]


def test_a_bin_file_with_adapter_names_is_the_same(tmp_path: Path) -> None:
    base = _base("Qwen2", {}, tmp_path / "base")
    theirs = save_with_peft(base, tmp_path / "adapter", **CASES["qwen2-embedding-and-head"][2])
    model, adapter = _load(tmp_path / "base", tmp_path / "adapter")
    state = {n: t for n, t in theirs.state_dict().items() if "lora_" in n}
    assert any(".default" in name for name in state)
    torch.save(state, tmp_path / "adapter" / "adapter_model.bin")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    again = load_adapter(tmp_path / "adapter", "b", family=FAMILIES["qwen2"], model=model)
    expected = batch_logits(model, [_ids(9)], [adapter])
    assert torch.equal(batch_logits(model, [_ids(9)], [again]), expected)


def test_qwen1_adapters_equal_merging_by_hand(tmp_path: Path) -> None:
    """c_proj names a linear of attention and one of the feed-forward part; w2 is the gate."""
    config = family_config("qwen")
    model, merged = random_network(config), random_network(config)
    scale, tensors = 16 / 64, {}
    generator = torch.Generator().manual_seed(1)

    def pair(module: str, out: int, columns: int) -> torch.Tensor:
        a = torch.randn(64, columns, generator=generator) * 0.05
        b = torch.randn(out, 64, generator=generator) * 0.05
        tensors[f"base_model.model.transformer.{module}.lora_A.weight"] = a
        tensors[f"base_model.model.transformer.{module}.lora_B.weight"] = b
        return scale * b @ a

    width, ffn = config.hidden_size, config.ffn_size
    for i, layer in enumerate(merged.layers):
        layer.attn.qkv.weight += pair(f"h.{i}.attn.c_attn", 3 * width, width)
        layer.attn.out.weight += pair(f"h.{i}.attn.c_proj", width, width)
        up, gate = pair(f"h.{i}.mlp.w1", ffn, width), pair(f"h.{i}.mlp.w2", ffn, width)
        layer.ffn.gate_up.weight += torch.cat([gate, up])
        layer.ffn.down.weight += pair(f"h.{i}.mlp.c_proj", width, ffn)
    for ours, theirs in (("embed", "transformer.wte"), ("head", "lm_head")):
        table = torch.randn(config.vocab_size, width, generator=generator) * 0.1
        getattr(merged, ours).weight.copy_(table)
        tensors[f"base_model.model.{theirs}.weight"] = table
    folder = write_adapter(
        tmp_path / "a",
        tensors,
        r=64,
        lora_alpha=16,
        target_modules=["c_attn", "c_proj", "w1", "w2"],
        modules_to_save=["wte", "lm_head"],
    )
    adapter = load_adapter(folder, "a", family=FAMILIES["qwen"], model=model)
    ids = [i % 60 for i in _ids(30)]
    expected = batch_logits(merged, [ids], [None])
    torch.testing.assert_close(batch_logits(model, [ids], [adapter]), expected, atol=1e-4, rtol=0)
    assert (batch_logits(model, [ids], [None]) - expected).abs().max() > 0.1


@pytest.mark.parametrize("case", ["tied", "tied, stored once", "untied", "LoRA on the table"])
def test_tables_that_were_saved_along_equal_peft(case: str, tmp_path: Path) -> None:
    """save_embedding_layers stores the model's own tables, without naming them in modules_to_save."""
    import peft

    tied = case.startswith("tied")
    base = _base("Qwen2", {"tie_word_embeddings": tied}, tmp_path / "base")
    with torch.no_grad():
        base.model.embed_tokens.weight.add_(0.2 * torch.randn_like(base.model.embed_tokens.weight))
    target = ["q_proj", "embed_tokens"] if case.startswith("LoRA") else ["q_proj"]
    theirs = save_with_peft(base, tmp_path / "adapter", r=4, lora_alpha=8, target_modules=target)
    theirs.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)
    if case == "tied, stored once":
        file = tmp_path / "adapter" / "adapter_model.safetensors"
        tensors = load_file(file)
        del tensors["base_model.model.lm_head.weight"]
        save_file(tensors, file)
    ids = _ids(30)
    fresh = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
        loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
        torch.testing.assert_close(loaded(torch.tensor([ids])).logits[0], expected, atol=1e-4, rtol=0)
    model, adapter = _load(tmp_path / "base", tmp_path / "adapter")
    assert adapter.embed is not None
    assert (adapter.head is adapter.embed) == tied
    torch.testing.assert_close(batch_logits(model, [ids], [adapter]), expected, atol=1e-4, rtol=0)


def test_a_gguf_model_takes_the_same_adapter(tmp_path: Path) -> None:
    """GGUF stores rows of q and k in another order; adapters are in that of transformers."""
    network = random_network(family_config("llama"))
    write_gguf(tmp_path / "m.gguf", network, "llama")
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for i in range(2):
        for part, rows in (("q", 256), ("k", 64)):
            name = f"base_model.model.model.layers.{i}.self_attn.{part}_proj.lora_"
            tensors[f"{name}A.weight"] = torch.randn(4, 256, generator=generator) * 0.1
            tensors[f"{name}B.weight"] = torch.randn(rows, 4, generator=generator) * 0.1
    folder = write_adapter(tmp_path / "a", tensors, target_modules=["q_proj", "k_proj"])
    model, adapter = _load(tmp_path / "m.gguf", folder)
    ids = [i % 60 for i in _ids(30)]
    expected = batch_logits(network, [ids], [adapter])
    torch.testing.assert_close(batch_logits(model, [ids], [adapter]), expected, atol=1e-5, rtol=0)
    assert (batch_logits(model, [ids], [None]) - expected).abs().max() > 0.05
