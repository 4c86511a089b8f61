"""Tiny random transformers models of every Hugging Face family: our logits against theirs, in float32."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from qwenkit.model.generate import all_logits
from tests.support.models import greedy, load

SIZES: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "rope_theta": 10000.0,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
    "rope_theta": 10000.0,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-gqa-tied": ("Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "llama-biases": ("Llama", {"attention_bias": True, "mlp_bias": True, "num_key_value_heads": 1}),
    "llama-head-dim": ("Llama", {"head_dim": 24}),
    "llama-linear": (
        "Llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 2.5, "rope_theta": 10000.0}},
    ),
    "llama-llama3": ("Llama", {"rope_parameters": LLAMA3}),
    "qwen2": ("Qwen2", {}),
    "qwen2-gqa-tied": ("Qwen2", {"num_key_value_heads": 2, "tie_word_embeddings": True}),
    "qwen2-yarn": ("Qwen2", {"rope_parameters": YARN}),
    "qwen2-sliding": ("Qwen2", {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1}),
    "qwen3": ("Qwen3", {"head_dim": 32, "num_key_value_heads": 2}),
    "qwen3-tied": ("Qwen3", {"head_dim": 16, "tie_word_embeddings": True}),
}


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """A transformers model with random weights (biases and norms too), and the folder it was saved to."""
    family, changes = CASES[request.param]
    torch.manual_seed(len(request.param))
    config = getattr(transformers, f"{family}Config")(**SIZES | changes)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    for name, weight in model.named_parameters():
        std = 0.3 if "embed" in name else 0.15
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=std)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, folder


def _ids(length: int) -> list[int]:
    return torch.randint(
        0, SIZES["vocab_size"], (length,), generator=torch.Generator().manual_seed(length)
    ).tolist()


@pytest.mark.parametrize("chunk", [None, 13])
@pytest.mark.parametrize("length", [1, 33, 120])
def test_logits_equal_transformers(pair: tuple[Any, Path], length: int, chunk: int | None) -> None:
    theirs, folder = pair
    ids = _ids(length)
    with torch.inference_mode():
        expected = theirs(torch.tensor([ids])).logits[0]
    torch.testing.assert_close(all_logits(load(folder), ids, chunk=chunk), expected, atol=1e-4, rtol=0)


def test_greedy_equals_transformers(pair: tuple[Any, Path]) -> None:
    theirs, folder = pair
    prompts = [_ids(n) for n in (3, 17, 40)]
    expected = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        out = theirs.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=20)
        expected.append(out[0, len(prompt) :].tolist())
    ours = load(folder)
    assert greedy(ours, prompts, 20) == expected
    assert [greedy(ours, [p], 20)[0] for p in prompts] == expected


def test_decoding_equals_one_forward(pair: tuple[Any, Path]) -> None:
    model = load(pair[1])
    ids = _ids(50)
    torch.testing.assert_close(all_logits(model, ids, chunk=1), all_logits(model, ids), atol=2e-5, rtol=0)


@pytest.mark.parametrize("safe", [True, False])
def test_shards_and_bin_files_hold_the_same(pair: tuple[Any, Path], tmp_path: Path, safe: bool) -> None:
    theirs, folder = pair
    if safe:
        theirs.save_pretrained(tmp_path, max_shard_size="60KB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
    else:
        theirs.config.save_pretrained(tmp_path)
        state = theirs.state_dict()
        if theirs.config.tie_word_embeddings:
            del state["lm_head.weight"]
        torch.save(state, tmp_path / "pytorch_model.bin")
    ids = _ids(20)
    assert torch.equal(all_logits(load(tmp_path), ids), all_logits(load(folder), ids))
