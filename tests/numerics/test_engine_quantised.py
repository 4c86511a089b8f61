"""What the engine promises holds for packed models: alone or together, cached, with adapters, with the small cache."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit import LLM, SamplingParams
from qwenkit.config.families import FAMILIES
from qwenkit.core.types import Request, collect
from qwenkit.model.transformer import Transformer
from qwenkit.weights.adapters import load_adapter
from tests.support.adapters import batch_logits, write_adapter
from tests.support.models import load
from tests.support.networks import family_config, random_network, write_gguf
from tests.support.quantised import GOLDEN, pack_network

GREEDY = SamplingParams(temperature=0.0, max_tokens=12, ignore_eos=True)
KINDS = ["gptq", "awq", "gguf"]


def packed_model(kind: str, to: Path) -> Path:
    """A file or folder with packed weights of the family whose names adapters below use."""
    if kind == "gguf":
        import gguf

        write_gguf(
            to / "m.gguf", random_network(family_config("llama")), "llama", gguf.GGMLQuantizationType.Q4_0
        )
        return to / "m.gguf"
    layout, symmetric = ("gptq", True) if kind == "gptq" else ("gemm", False)
    return pack_network(
        random_network(family_config("llama")), "llama", to / kind, layout=layout, symmetric=symmetric
    )


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("packed")
    return {kind: packed_model(kind, folder) for kind in KINDS}


def prompts(count: int, *, seed: int = 0) -> list[list[int]]:
    chance = random.Random(seed)
    return [[chance.randrange(60) for _ in range(chance.randrange(1, 70))] for _ in range(count)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_says_what_each_alone_says(kind: str, dtype: str, models: dict[str, Path]) -> None:
    llm = LLM(models[kind], dtype=dtype, prefill_chunk=32, cache_memory=2**24)
    assert llm.backend.model.is_packed  # type: ignore[attr-defined]
    asked = prompts(7)
    together = [out.token_ids for out in llm.generate(asked, GREEDY)]
    assert together == [llm.generate([prompt], GREEDY)[0].token_ids for prompt in asked]
    plain = LLM(models[kind], dtype=dtype, prefill_chunk=512, prefix_caching=False, cache_memory=2**24)
    assert together == [out.token_ids for out in plain.generate(asked, GREEDY)]


@pytest.mark.parametrize("kind", KINDS)
def test_known_beginnings_change_nothing(kind: str, models: dict[str, Path]) -> None:
    llm = LLM(models[kind], dtype="bfloat16", cache_memory=2**24)
    prompt = [i % 60 for i in range(100)]
    first, second = llm.generate([prompt], GREEDY)[0], llm.generate([prompt], GREEDY)[0]
    assert second.usage.cached_tokens >= 64
    assert first.token_ids == second.token_ids


@pytest.mark.parametrize("kind", KINDS)
def test_the_small_cache(kind: str, models: dict[str, Path]) -> None:
    llm = LLM(models[kind], dtype="float32", kv_cache="int8", cache_memory=2**24)
    asked = prompts(4, seed=1)
    assert [o.token_ids for o in llm.generate(asked, GREEDY)] == [
        llm.generate([prompt], GREEDY)[0].token_ids for prompt in asked
    ]


def test_the_small_cache_stays_near(models: dict[str, Path]) -> None:
    """Golden model: the first replies agree with those of the exact cache."""
    ids = [i % 500 for i in range(40)]
    path = GOLDEN / "qwen1-tiny-gptq-int4"
    out = [LLM(path, dtype="float32", kv_cache=kind).generate([ids], GREEDY)[0] for kind in ("auto", "int8")]
    assert out[0].token_ids[:4] == out[1].token_ids[:4]


def adapter_folder(to: Path, model: Transformer, *, tables: bool = False, tokens: bool = False) -> Path:
    """Updates of q_proj and down_proj of both layers, and of embedding or head."""
    generator, width = torch.Generator().manual_seed(5), model.config.hidden_size

    def new(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    tensors = {}
    for layer in range(2):
        for part, rows, columns in (("self_attn.q_proj", 256, 256), ("mlp.down_proj", 256, 256)):
            name = f"base_model.model.model.layers.{layer}.{part}"
            tensors |= {f"{name}.lora_A.weight": new(4, columns), f"{name}.lora_B.weight": new(rows, 4)}
    config: dict[str, Any] = {"target_modules": ["q_proj", "down_proj"]}
    if tables:
        config["target_modules"] += ["embed_tokens", "lm_head"]
        tensors["base_model.model.model.embed_tokens.lora_embedding_A"] = new(4, 60)
        tensors["base_model.model.model.embed_tokens.lora_embedding_B"] = new(width, 4)
        tensors |= {
            "base_model.model.lm_head.lora_A.weight": new(4, width),
            "base_model.model.lm_head.lora_B.weight": new(60, 4),
        }
    if tokens:
        config["trainable_token_indices"] = {"embed_tokens": [3, 50]}
        tensors["base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"] = new(2, width)
    return write_adapter(to, tensors, **config)


@pytest.mark.parametrize(
    "what", [{}, {"tables": True}, {"tokens": True}], ids=["linears", "tables", "tokens"]
)
@pytest.mark.parametrize("kind", KINDS)
def test_adapters_on_a_packed_base(
    kind: str, what: dict[str, bool], models: dict[str, Path], tmp_path: Path
) -> None:
    """They say what they say on the same weights as numbers."""
    packed, numbers = load(models[kind]), load(models[kind], packed=False)
    folder = adapter_folder(tmp_path / "a", numbers, **what)
    asked = prompts(2, seed=2)
    mine, theirs = (
        [load_adapter(folder, "a", family=FAMILIES["llama"], model=model), None]
        for model in (packed, numbers)
    )
    expected = batch_logits(numbers, asked, theirs)
    torch.testing.assert_close(batch_logits(packed, asked, mine), expected, atol=5e-5, rtol=0)
    assert float((expected - batch_logits(numbers, asked, [None, None])).abs().max()) > 0.1


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_through_the_engine(kind: str, models: dict[str, Path], tmp_path: Path) -> None:
    """Replies with and without an adapter in one batch are those of each alone."""
    llm = LLM(models[kind], dtype="float32", cache_memory=2**24)
    backend = llm.backend
    backend.load_adapter("a", adapter_folder(tmp_path / "a", backend.model))  # type: ignore[attr-defined]
    asked = prompts(4, seed=3)
    requests = [
        Request(prompt=tuple(p), params=GREEDY, adapter="a" if i % 2 else None) for i, p in enumerate(asked)
    ]

    def replies(batch: list[Request]) -> list[tuple[int, ...]]:
        deltas: list[list[Any]] = [[] for _ in batch]
        for delta in backend.stream(batch):
            deltas[delta.index].append(delta)
        return [collect(found).token_ids for found in deltas]

    together = replies(requests)
    assert together == [replies([request])[0] for request in requests]
    without = replies([Request(prompt=tuple(p), params=GREEDY) for p in asked])
    assert [together[0], together[2]] == [without[0], without[2]]
    assert [together[1], together[3]] != [without[1], without[3]]


def test_a_head_of_8_bits_in_the_engine(models: dict[str, Path]) -> None:
    llm = LLM(models["gptq"], dtype="bfloat16", head="int8", cache_memory=2**24)
    assert llm.info.details["head"] == "8 bit"
    asked = prompts(3, seed=4)
    assert [o.token_ids for o in llm.generate(asked, GREEDY)] == [
        llm.generate([prompt], GREEDY)[0].token_ids for prompt in asked
    ]
    exact = LLM(models["gptq"], dtype="bfloat16", cache_memory=2**24)
    for a, b in zip(llm.logits(asked), exact.logits(asked), strict=True):
        assert 0 < float((a - b).abs().max()) < 0.1 * float(b.abs().max())
