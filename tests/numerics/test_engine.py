"""The engine against the plain generation loop, and against itself: alone, together, preempted, cached, in any chunks."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.backends.base import BackendInfo
from qwenkit.backends.local import LocalBackend
from qwenkit.backends.options import LocalOptions
from qwenkit.cache.paged import PAGE_SIZE, page_bytes
from qwenkit.config.model import ModelConfig, RopeConfig
from qwenkit.core.types import Delta, Request, SamplingParams, collect
from qwenkit.kernels import native
from qwenkit.model.generate import BatchGenerator
from qwenkit.model.transformer import Transformer
from tests.support.models import load
from tests.support.networks import family_config, random_network

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
GREEDY = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
SAMPLED = SamplingParams(
    temperature=0.9, top_k=12, top_p=0.95, repetition_penalty=1.1, seed=7, max_tokens=30, ignore_eos=True
)
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def backend(model: Transformer, *, tokens: int = 4096, **options: Any) -> LocalBackend:
    config = model.config
    info = BackendInfo(
        model="test",
        family="test",
        context_length=config.context_length,
        vocab_size=config.vocab_size,
        dtype=str(model.dtype)[6:],
        device="cpu",
        can_chat=False,
        max_window_size=64,
        defaults=SamplingParams(),
    )
    memory = tokens // PAGE_SIZE * page_bytes(config, model.dtype, options.get("kv_cache") == "int8")
    chosen = LocalOptions(cache_memory=memory, **options)
    return LocalBackend(model, info, tokenizer=None, template=None, eos_ids=(), options=chosen)


def run(engine: LocalBackend, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    deltas: list[list[Delta]] = [[] for _ in prompts]
    for delta in engine.stream([Request(prompt=tuple(p), params=params) for p in prompts]):
        deltas[delta.index].append(delta)
    return [list(collect(d).token_ids) for d in deltas]


def alone(engine: LocalBackend, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    return [run(engine, [prompt], params)[0] for prompt in prompts]


def oracle(model: Transformer, prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
    """What the plain loop says, one prompt after the other."""
    replies = []
    for prompt in prompts:
        loop = BatchGenerator(
            model, [prompt], [params], eos_ids=(), context_length=model.config.context_length
        )
        reply = []
        while not loop.is_done:
            reply += [event.token_id for event in loop.step()]
        replies.append(reply)
    return replies


def prompts_of(config: ModelConfig, lengths: list[int]) -> list[list[int]]:
    """Random prompts, some of which begin alike."""
    chance = random.Random(3)
    common = [chance.randrange(config.vocab_size) for _ in range(max(lengths))]
    cuts = [chance.choice([0, length - 1]) for length in lengths]
    return [
        common[:cut] + [chance.randrange(config.vocab_size) for _ in range(length - cut)]
        for cut, length in zip(cuts, lengths, strict=True)
    ]


LENGTHS = [1, 2, 31, 32, 33, 64, 65, 70, 100, 97]


@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("folder", ["qwen1-tiny-plain", "qwen1-tiny-ntk", "qwen1-tiny-ntk-logn"])
@pytest.mark.parametrize("isa", ["reference", None])
def test_float32_equals_the_plain_loop(
    folder: str, params: SamplingParams, isa: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, together, preempted, with and without the prefix cache."""
    if isa:
        monkeypatch.setenv("QWENKIT_ISA", isa)
    model = load(GOLDEN / folder)
    prompts = prompts_of(model.config, LENGTHS)
    expected = oracle(model, prompts, params)
    engine = backend(model)
    assert run(engine, prompts, params) == expected
    assert alone(engine, prompts, params) == expected
    assert engine.stats().cached_tokens > 0
    tight = backend(model, tokens=256, prefix_caching=False, prefill_chunk=13, max_batch_size=5)
    assert run(tight, prompts, params) == expected
    longer = dataclasses.replace(params, max_tokens=80)
    assert run(tight, prompts[:5], longer) == oracle(model, prompts[:5], longer)
    assert tight.stats().preemptions > 0
    assert tight.stats().cached_tokens == 0


def model_of(dtype: torch.dtype) -> Transformer:
    config = family_config(
        "qwen2",
        vocab_size=300,
        hidden_size=128,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        ffn_size=192,
        rope=RopeConfig(base=10000.0, dim=32, ntk_length=48),
        logn_length=48,
    )
    return random_network(dataclasses.replace(config, context_length=512)).to(dtype)


@pytest.mark.skipif(native.library() is None, reason="the compiled kernels are not there")
@pytest.mark.parametrize("kv_cache", ["auto", "int8"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("params", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_deterministic_in_every_dtype(dtype: torch.dtype, kv_cache: str, params: SamplingParams) -> None:
    model = model_of(dtype)
    prompts = prompts_of(model.config, LENGTHS)
    engine = backend(model, kv_cache=kv_cache, deterministic=True)
    expected = alone(engine, prompts, params)
    assert run(engine, prompts, params) == expected, "with everything in the prefix cache"
    for options in (
        {"prefix_caching": False},
        {"prefix_caching": False, "prefill_chunk": 7},
        {"tokens": 192, "max_batch_size": 7},
        {"tokens": 192, "max_batch_size": 3, "prefix_caching": False, "prefill_chunk": 50},
    ):
        other = backend(model, kv_cache=kv_cache, **options)
        assert run(other, prompts, params) == expected, options


def test_logprobs_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(torch.bfloat16)
    prompts = prompts_of(model.config, LENGTHS)
    engine = backend(model)
    together = engine.logprobs(prompts)
    assert together == [engine.logprobs([prompt])[0] for prompt in prompts]
    monkeypatch.setenv("QWENKIT_ISA", "reference")
    plain = backend(model_of(torch.float32)).logprobs(prompts)
    for mine, theirs in zip(together, plain, strict=True):
        assert mine == pytest.approx(theirs, abs=0.15)


def test_deterministic_is_refused_where_it_cannot_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from qwenkit.core.errors import InputError

    monkeypatch.setenv("QWENKIT_ISA", "reference")
    with pytest.raises(InputError, match="deterministic results need the compiled CPU kernels"):
        backend(model_of(torch.float32), deterministic=True)
