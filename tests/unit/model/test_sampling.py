"""Sampling against transformers' logits processors: the same tokens survive with the same probabilities."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from qwenkit.core.types import SamplingParams
from qwenkit.model.sampling import Sampler, candidates

VOCAB = 5000


def logits(seed: int, size: int = VOCAB, spread: float = 3.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * spread


def expected(scores: torch.Tensor, prompt: list[int], params: SamplingParams) -> torch.Tensor:
    """Probabilities as transformers computes them, in the order of its generate."""
    steps = LogitsProcessorList()
    if params.repetition_penalty not in (None, 1.0):
        steps.append(RepetitionPenaltyLogitsProcessor(params.repetition_penalty))
    if params.temperature not in (None, 1.0):
        steps.append(TemperatureLogitsWarper(float(params.temperature)))
    if params.top_k:
        steps.append(TopKLogitsWarper(params.top_k))
    if params.top_p is not None and params.top_p < 1:
        steps.append(TopPLogitsWarper(params.top_p))
    if params.min_p:
        steps.append(MinPLogitsWarper(params.min_p))
    ids = torch.tensor([prompt], dtype=torch.int64)
    return steps(ids, scores[None].clone())[0].softmax(-1)


def ours(scores: torch.Tensor, prompt: list[int], params: SamplingParams) -> torch.Tensor:
    sampler = Sampler(params, prompt)
    values = scores.numpy()
    ids, probs = candidates(sampler._processed(values.copy()) if sampler._seen else values, params)
    out = torch.zeros(len(scores), dtype=torch.float64)
    out[torch.from_numpy(ids)] = torch.from_numpy(probs)
    return out


CASES: list[dict[str, Any]] = [
    {},
    {"temperature": 0.2},
    {"temperature": 5.0},
    {"top_k": 1},
    {"top_k": 50},
    {"top_k": VOCAB + 1},
    {"top_p": 0.8},
    {"top_p": 0.999},
    {"top_p": 1e-6},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.5},
    {"top_k": 7, "min_p": 0.3},
    {"temperature": 1.7, "top_p": 0.95, "min_p": 0.02},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
    {"repetition_penalty": 0.8, "top_p": 0.9},
    {"temperature": 0.6, "top_k": 20, "top_p": 0.95, "min_p": 0.1, "repetition_penalty": 1.5},
]


@pytest.mark.parametrize("values", CASES, ids=str)
@pytest.mark.parametrize("spread", [0.5, 3.0, 20.0])
def test_survivors_and_probabilities(values: dict[str, Any], spread: float) -> None:
    params = SamplingParams(**{"temperature": 1.0, **values})
    prompt = [3, 17, 99, 3, 4000]
    for seed in range(3):
        scores = logits(seed, spread=spread)
        theirs, mine = expected(scores, prompt, params), ours(scores, prompt, params)
        assert torch.equal(mine > 0, theirs > 0) or _differ_at_the_edge_only(mine, theirs)
        torch.testing.assert_close(mine.float(), theirs, atol=2e-5, rtol=1e-3)


def _differ_at_the_edge_only(mine: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Sums in another order may move one token over the bound of top-p, or underflow the smallest to 0."""
    differing = (mine > 0) != (theirs > 0)
    return float(torch.maximum(mine[differing], theirs[differing].double()).sum()) < 1e-5


@pytest.mark.parametrize("top_p", [0.01, 0.5, 0.9, 0.9999])
@pytest.mark.parametrize("spread", [0.1, 2.0, 30.0])
def test_the_short_cut_of_top_p_is_the_full_sort(top_p: float, spread: float) -> None:
    scores = logits(7, size=20_000, spread=spread).numpy()
    probs = np.exp(scores - scores.max()).astype(np.float64)
    order = np.argsort(-probs, kind="stable")
    probs = probs[order] / probs.sum()
    count = int((probs.cumsum() - probs < top_p).sum())
    ids, kept = candidates(scores, SamplingParams(temperature=1.0, top_p=top_p))
    assert abs(len(ids) - count) <= 1
    shorter = min(len(ids), count)
    assert np.array_equal(ids[:shorter], order[:shorter])
    np.testing.assert_allclose(kept[:shorter], probs[:shorter] / probs[: len(ids)].sum(), rtol=1e-4)


def test_greedy() -> None:
    scores = logits(1)
    assert Sampler(SamplingParams(temperature=0), []).pick(scores) == int(scores.argmax())
    assert Sampler(SamplingParams(top_k=1, seed=3), []).pick(scores) == int(scores.argmax())
    ties = torch.tensor([0.0, 2.0, 2.0])
    assert Sampler(SamplingParams(temperature=0), []).pick(ties) == 1


def test_a_very_low_temperature_is_greedy() -> None:
    scores = logits(1)
    assert Sampler(SamplingParams(temperature=1e-6, seed=0), []).pick(scores) == int(scores.argmax())


def test_penalty_sees_the_prompt_and_the_reply_so_far() -> None:
    scores = torch.tensor([3.0, 2.9, 2.8, -1.0])
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0), [0])
    assert [sampler.pick(scores) for _ in range(3)] == [1, 2, 0]
    assert torch.equal(scores, torch.tensor([3.0, 2.9, 2.8, -1.0])), "the logits are not changed"
    assert not sampler.is_plain_argmax
    assert Sampler(SamplingParams(temperature=0, repetition_penalty=1.0), [0]).is_plain_argmax


def test_tokens_ruled_out_are_never_drawn() -> None:
    scores = torch.full((50,), -math.inf)
    scores[[7, 9]] = 1.0
    sampler = Sampler(SamplingParams(temperature=1.0, seed=1), [])
    assert {sampler.pick(scores) for _ in range(50)} == {7, 9}


def test_seeds() -> None:
    scores = logits(2, spread=1.0)

    def draws(seed: int | None) -> list[int]:
        sampler = Sampler(SamplingParams(temperature=1.0, seed=seed), [])
        return [sampler.pick(scores) for _ in range(20)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(None) != draws(None)


def test_draws_follow_the_probabilities() -> None:
    probs = torch.tensor([0.5, 0.25, 0.15, 0.1])
    sampler = Sampler(SamplingParams(temperature=1.0, seed=0), [])
    count = 4000
    drawn = torch.bincount(torch.tensor([sampler.pick(probs.log()) for _ in range(count)]), minlength=4)
    chi_square = float(((drawn - count * probs) ** 2 / (count * probs)).sum())
    assert chi_square < 16.3  # 3 degrees of freedom, one in a thousand


@pytest.mark.parametrize("temperature", [1e-50, 1e-9, 1e-4])
def test_the_coldest_temperatures_pick_the_likeliest(temperature: float) -> None:
    logits = np.array([1.0, 3.0, 2.999], dtype=np.float32)
    ids, probs = candidates(logits, SamplingParams(temperature=temperature))
    assert ids[0] == 1
    assert probs[0] == pytest.approx(1.0, abs=1e-4)
    assert np.isfinite(probs).all()


def test_the_penalty_passes_over_prompt_ids_beyond_the_logits() -> None:
    """A prompt of ids may hold padding of the embedding, for which logits are cut off."""
    sampler = Sampler(SamplingParams(temperature=0.0, repetition_penalty=10.0), [1, 7, 3])
    assert sampler.pick(torch.tensor([1.0, 3.0, 2.0])) == 2
