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
from qwenkit.model.sampling import Sampler, candidates, choose, largest, log_probability

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


def by_sorting_everything(scores: np.ndarray, params: SamplingParams) -> tuple[np.ndarray, np.ndarray]:
    """The candidates and their probabilities, from weights of all tokens in one order."""
    temperature = np.float32(max(params.temperature or 0.0, 1e-6))
    weights = np.exp((scores - scores.max()) / temperature)
    top_k = params.top_k if params.top_k and params.top_k < len(scores) else None
    is_sorted = top_k is not None or params.top_p not in (None, 1.0)
    ids = np.argsort(-weights, kind="stable") if is_sorted else np.arange(len(weights))
    ids = ids[:top_k]
    kept = weights[ids].astype(np.float64)
    if params.top_p not in (None, 1.0):
        whole = kept.sum() if top_k else weights.sum(dtype=np.float64)
        keep = int((kept.cumsum() - kept < params.top_p * whole).sum())
        ids, kept = ids[: max(keep, 1)], kept[: max(keep, 1)]
    ids, kept = (
        ids[kept >= (params.min_p or 0.0) * kept.max()],
        kept[kept >= (params.min_p or 0.0) * kept.max()],
    )
    return ids, kept / kept.sum()


@pytest.mark.parametrize("size", [50, VOCAB, 151_936])
@pytest.mark.parametrize("spread", [0.3, 3.0, 60.0])
@pytest.mark.parametrize("masked", [0.0, 0.9, 0.9999])
def test_short_cuts_give_the_tokens_of_the_whole_computation(size: int, spread: float, masked: float) -> None:
    """Exactly the same, whatever part of the vocabulary is looked at; and the draws that follow too."""
    chance = np.random.default_rng(int(size * spread))
    scores = logits(3, size=size, spread=spread).numpy()
    scores[chance.random(size) < masked] = -np.inf
    scores[chance.integers(size)] = 1.5 * spread
    draws = chance.random(8)
    for values in CASES:
        params = SamplingParams(**{"temperature": 1.0, **values})
        ids, probs = by_sorting_everything(scores, params)
        mine, chances = candidates(scores, params)
        assert np.array_equal(mine[chances > 1e-30], ids[probs > 1e-30]), values
        np.testing.assert_allclose(chances[chances > 1e-30], probs[probs > 1e-30], rtol=1e-12)
        bounds = probs.cumsum()
        for at in draws:
            index = int(bounds.searchsorted(at * bounds[-1], side="right"))
            assert choose(scores, params, at) == ids[min(index, len(ids) - 1)], values


@pytest.mark.parametrize("size", [9000, 151_936, 8191])
@pytest.mark.parametrize("count", [1, 2, 20, 200, 1024, 1025, 5000])
def test_the_largest_are_those_of_a_full_sort(size: int, count: int) -> None:
    chance = np.random.default_rng(count)
    for values in (
        chance.standard_normal(size),
        chance.integers(0, 30, size),  # many are equal
        np.zeros(size),
        np.arange(size),
        -np.arange(size),
        np.where(np.arange(size) < size // 2, chance.standard_normal(size), -100.0),
    ):
        numbers = values.astype(np.float32)
        assert np.array_equal(largest(numbers, count), np.sort(np.argsort(-numbers, kind="stable")[:count]))


def test_few_allowed_tokens_are_found_without_the_others() -> None:
    scores = np.full(151_936, -np.inf, dtype=np.float32)
    scores[[7, 7 + 2048, 151_935]] = [1.0, 3.0, 2.0]
    assert largest(scores, 20).tolist() == [7, 2055, 151_935]
    ids, _ = candidates(scores, SamplingParams(temperature=1.0, top_k=20))
    assert ids.tolist() == [2055, 151_935, 7]


def test_a_draw_on_a_bound_between_two_tokens_is_settled_by_the_whole_sum() -> None:
    scores = np.zeros(4096, dtype=np.float32)  # every share is 1/4096, exactly
    params = SamplingParams(temperature=1.0)
    for index in (0, 1, 511, 512, 513, 2048, 4095):
        assert choose(scores, params, index / 4096) == index
        assert choose(scores, params, np.nextafter((index + 1) / 4096, 0)) == index


def test_penalties_see_every_token_once_however_many_come() -> None:
    sampler = Sampler(SamplingParams(temperature=0, repetition_penalty=2.0), [3, 3, 5, 999])
    plain = torch.arange(300, 0, -1).float()
    seen = {3, 5}
    for _ in range(150):  # more than fit at first
        token = sampler.pick(plain)
        values = plain.clone()
        values[sorted(seen)] /= 2
        assert token == int(values.argmax())
        seen.add(token)


@pytest.mark.parametrize("top", [0, 1, 20])
def test_log_probabilities_name_the_likeliest(top: int) -> None:
    scores = logits(4, size=151_936)
    told = log_probability(scores, 17, top)
    row = scores.double().log_softmax(dim=-1)
    best = row.topk(top)
    assert told.logprob == pytest.approx(float(row[17]), abs=1e-5)
    assert [i for i, _ in told.top] == best.indices.tolist()
    assert [p for _, p in told.top] == pytest.approx(best.values.tolist(), abs=1e-5)
