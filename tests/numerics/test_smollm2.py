"""SmolLM2, real weights: against what transformers computed in float32 (scripts/make_smollm2_reference.py)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit import LLM, SamplingParams
from qwenkit.config.families import FAMILIES
from qwenkit.core.types import Request
from qwenkit.model.generate import all_logits
from qwenkit.model.transformer import Transformer
from qwenkit.weights.memory import held_bytes
from qwenkit.weights.save import save_model
from tests.support.models import as_qwen1, greedy, load

DATA = Path(__file__).parents[1] / "data"
REFERENCE: dict[str, Any] = json.loads((DATA / "smollm2.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def llm(smollm2_gguf: Path) -> LLM:
    return LLM(smollm2_gguf, dtype="float32")


@pytest.fixture(scope="module")
def network(llm: LLM) -> Transformer:
    return llm.backend.model  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def expanded(smollm2_gguf: Path) -> Transformer:
    """The same with numbers in place of packed weights."""
    return load(smollm2_gguf, packed=False)


def test_weights_stay_packed(network: Transformer, expanded: Transformer) -> None:
    assert network.is_packed
    assert not expanded.is_packed
    assert 4.9 * held_bytes(network) < held_bytes(expanded) == 4 * network.config.num_params


def test_prompts_have_the_same_ids(llm: LLM) -> None:
    for case in REFERENCE["greedy"]:
        assert llm.tokenizer.encode(case["prompt"]) == case["prompt_ids"]


def test_greedy_tokens_equal_transformers(llm: LLM) -> None:
    """Of packed weights, with whatever kernels there are."""
    cases = REFERENCE["greedy"]
    params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
    requests = [Request(prompt=tuple(case["prompt_ids"]), params=params) for case in cases]
    out: list[list[int]] = [[] for _ in cases]
    for delta in llm.backend.stream(requests):
        out[delta.index] += delta.token_ids
    assert out == [case["output_ids"] for case in cases]


def test_greedy_tokens_of_plain_torch(expanded: Transformer) -> None:
    """In a batch and alone."""
    cases = REFERENCE["greedy"][:8]
    together = greedy(expanded, [case["prompt_ids"] for case in cases], 24)
    assert together == [case["output_ids"][:24] for case in cases]
    assert greedy(expanded, [cases[0]["prompt_ids"]], 24) == together[:1]


def test_perplexity_equals_transformers(llm: LLM) -> None:
    excerpt = REFERENCE["excerpt"]
    text = (DATA / "wikitext2-excerpt.txt").read_text(encoding="utf-8")[: excerpt["characters"]]
    steps: list[tuple[int, int, float]] = []
    value = llm.perplexity(text, window=excerpt["window"], on_progress=lambda *step: steps.append(step))
    assert value == pytest.approx(math.exp(excerpt["mean_nll"]), rel=1e-4)
    assert steps[-1][0] == steps[-1][1]
    assert steps[-1][2] == pytest.approx(value)


def test_logits_of_the_specification(llm: LLM) -> None:
    logits = llm.logits([[504, 3575, 282, 4649, 314]])[0][-1]
    top = logits.topk(5)
    assert top.indices.tolist() == [7042, 260, 4528, 2250, 1315]
    torch.testing.assert_close(
        top.values, torch.tensor([17.3713, 14.8886, 13.2450, 13.0095, 12.9515]), atol=1e-3, rtol=0
    )


def test_chat_of_the_specification(llm: LLM) -> None:
    answer = llm.chat("What is 2+2?", SamplingParams(temperature=0))
    assert answer.usage.prompt_tokens == 37
    assert answer.text == "The answer to this classic math problem is 4."
    assert answer.token_ids == (504, 2988, 288, 451, 8170, 4119, 1732, 314, 216, 36, 30, 2)


@pytest.mark.parametrize("shard_bytes", [10**10, 10**8])
def test_saved_as_safetensors_says_the_same(
    llm: LLM, expanded: Transformer, tmp_path: Path, shard_bytes: int
) -> None:
    folder = tmp_path / "saved"
    save_model(folder, expanded, FAMILIES["llama"], tokenizer=llm.tokenizer, shard_bytes=shard_bytes)
    saved = LLM(folder, dtype="float32")
    ids = REFERENCE["greedy"][1]["prompt_ids"]
    assert torch.equal(saved.logits([ids])[0], llm.logits([ids])[0])
    params = SamplingParams(temperature=0, max_tokens=24)
    assert saved.chat("Name three fruits.", params) == llm.chat("Name three fruits.", params)
    for case in REFERENCE["greedy"]:
        assert saved.tokenizer.encode(case["prompt"]) == case["prompt_ids"]


def test_in_the_layout_of_qwen1(network: Transformer, expanded: Transformer, tmp_path: Path) -> None:
    model = load(as_qwen1(expanded, tmp_path / "qwen1"))
    ids = REFERENCE["greedy"][18]["prompt_ids"]
    torch.testing.assert_close(all_logits(model, ids), all_logits(network, ids), atol=1e-4, rtol=0)
    assert greedy(model, [ids], 16) == [REFERENCE["greedy"][18]["output_ids"][:16]]
