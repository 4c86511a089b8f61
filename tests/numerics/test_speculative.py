"""Speculative decoding says what decoding token by token says: the same tokens, texts, numbers and ends."""

from __future__ import annotations

import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit import LLM
from qwenkit.backends.local import LocalBackend
from qwenkit.backends.options import LocalOptions
from qwenkit.core.errors import InputError
from qwenkit.core.sampling import Constraint
from qwenkit.core.types import Completion, Delta, Request, SamplingParams, collect
from qwenkit.engine.pace import Pace
from qwenkit.kernels import native
from qwenkit.tokenizer.hf_json import HfTokenizer
from tests.numerics.test_engine import DTYPES, LENGTHS, backend, model_of, prompts_of
from tests.numerics.test_engine_quantised import adapter_folder, packed_model
from tests.support.backends import tiny_backend

needs_native = pytest.mark.skipif(native.library() is None, reason="the compiled kernels are not there")


def complete(engine: LocalBackend, requests: Sequence[Request]) -> list[Completion]:
    """All of them together."""
    deltas: list[list[Delta]] = [[] for _ in requests]
    for delta in engine.stream(requests):
        deltas[delta.index].append(delta)
    return [collect(found) for found in deltas]


def requests_of(prompts: Sequence[Sequence[int]], **params: Any) -> list[Request]:
    settings = {"temperature": 0.0, "max_tokens": 60, "ignore_eos": True, **params}
    return [Request(prompt=tuple(p), params=SamplingParams(**settings)) for p in prompts]


def repetitive(vocab_size: int, *, seed: int = 1) -> list[list[int]]:
    """Prompts that repeat a run of tokens, and some that do not."""
    chance = random.Random(seed)
    runs = [[chance.randrange(vocab_size) for _ in range(n)] for n in (3, 7, 20, 33)]
    return [run * 4 for run in runs] + [[chance.randrange(vocab_size) for _ in range(n)] for n in (1, 31, 64)]


# As penalties, masks and temperature change what the model says next, they decide how often guesses are right.
SETTINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "greedy-logprobs": {"logprobs": 3},
    "sampled": {"temperature": 0.3, "seed": 11},
    "sampled-top-k": {"temperature": 0.8, "top_k": 3, "seed": 5, "logprobs": 0},
    "sampled-top-p": {"temperature": 0.5, "top_p": 0.7, "seed": 6},
    "sampled-min-p": {"temperature": 0.5, "min_p": 0.3, "seed": 7},
    "repetition": {"repetition_penalty": 1.02},
    "penalties": {"frequency_penalty": 0.05, "presence_penalty": 0.1, "logprobs": 2},
    "bias": {"logit_bias": {7: 2.0, 9: -3.0}},
    "allowed": {"allowed_token_ids": [5, 6, 7, 8, 9], "temperature": 0.7, "seed": 1},
    "several": {"n": 3, "temperature": 0.4, "top_k": 5, "seed": 3},
    "prompt-logprobs": {"prompt_logprobs": 1},
    "one-token": {"max_tokens": 1},
    "two-tokens": {"max_tokens": 2},
}


@pytest.fixture(autouse=True)
def _every_guess_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """How much is guessed must not depend on how busy the machine is."""
    monkeypatch.setattr(Pace, "note", lambda *measured: None)


@needs_native
@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_gives_the_same_reply(name: str) -> None:
    model = model_of(torch.float32)
    plain, guessing = backend(model), backend(model, speculative="ngram")
    requests = requests_of(repetitive(model.config.vocab_size), **SETTINGS[name])
    expected = [complete(plain, [request])[0] for request in requests]
    assert [complete(guessing, [request])[0] for request in requests] == expected
    stats = guessing.stats()
    assert stats.proposed_tokens >= stats.accepted_tokens
    if requests[0].params.max_tokens == 60:
        assert stats.accepted_tokens > 0
        assert stats.steps < plain.stats().steps
    assert stats.generated_tokens == plain.stats().generated_tokens
    assert complete(guessing, requests) == expected, "together"
    assert guessing.stats().pages_used == 0
    assert plain.stats().proposed_tokens == 0


@needs_native
@pytest.mark.parametrize(
    ("dtype", "kv_cache"), [*((dtype, "auto") for dtype in DTYPES), (torch.bfloat16, "int8")], ids=str
)
def test_in_every_dtype_and_cache(dtype: torch.dtype, kv_cache: str) -> None:
    """Also where pages run out, prompts are read in pieces, or their beginnings are found in the cache."""
    model = model_of(dtype)
    prompts = repetitive(model.config.vocab_size) + prompts_of(model.config, LENGTHS[::2])
    requests = requests_of(prompts, logprobs=1) + requests_of(prompts, temperature=0.4, seed=2, top_k=4)
    expected = complete(backend(model, kv_cache=kv_cache), requests)
    for options in (
        {},
        {"speculative_tokens": 1},
        {"speculative_tokens": 40, "prefill_chunk": 64, "max_batch_size": 5},
        {"tokens": 384, "max_batch_size": 7},
        {"tokens": 256, "max_batch_size": 3, "prefix_caching": False, "prefill_chunk": 13},
    ):
        guessing = backend(model, kv_cache=kv_cache, speculative="ngram", deterministic=True, **options)
        assert complete(guessing, requests) == expected, options
        assert complete(guessing, requests) == expected, "again, with what is in the prefix cache now"
        assert guessing.stats().accepted_tokens > 0
        assert guessing.stats().pages_used == 0
        assert (guessing.stats().preemptions > 0) is ("tokens" in options)


@pytest.fixture(scope="module")
def pair(smollm2_tokenizer: HfTokenizer) -> tuple[LocalBackend, LocalBackend]:
    """The same network with text, without and with guesses."""
    return tiny_backend(smollm2_tokenizer, eos=(2,)), tiny_backend(
        smollm2_tokenizer, eos=(2,), speculative="ngram"
    )


TEXT_PROMPT = tuple(range(100, 120)) * 3


@needs_native
class TestText:
    def test_stop_strings_across_tokens(self, pair: tuple[LocalBackend, LocalBackend]) -> None:
        plain, guessing = pair
        whole = complete(plain, requests_of([TEXT_PROMPT], max_tokens=40))[0].text
        for at in range(3, 30, 4):
            for changes in ({}, {"min_tokens": 7}, {"include_stop": True}):
                requests = requests_of([TEXT_PROMPT], max_tokens=40, stop=[whole[at : at + 5]], **changes)
                assert complete(guessing, requests) == complete(plain, requests)

    def test_ends_among_guesses(self, pair: tuple[LocalBackend, LocalBackend]) -> None:
        plain, guessing = pair
        reply = complete(plain, requests_of([TEXT_PROMPT], max_tokens=40))[0].token_ids
        for token in sorted(set(reply)):
            for least in (0, 5, 17):
                requests = requests_of([TEXT_PROMPT], stop_token_ids=[token], min_tokens=least)
                assert complete(guessing, requests) == complete(plain, requests)

    @pytest.mark.parametrize(
        "constraint",
        [
            Constraint(kind="regex", value=r"(ab|abc|[0-9]){30}"),
            Constraint(kind="choice", value=["red red red red red red", "red red red red blue"]),
            Constraint(
                kind="json_schema",
                value={"type": "array", "items": {"enum": ["grün", "rot"]}, "minItems": 12, "maxItems": 14},
            ),
        ],
        ids=lambda c: c.kind,
    )
    @pytest.mark.parametrize("params", [{}, {"temperature": 0.5, "seed": 4}], ids=["greedy", "sampled"])
    def test_constraints(
        self, constraint: Constraint, params: dict[str, Any], pair: tuple[LocalBackend, LocalBackend]
    ) -> None:
        plain, guessing = pair
        changes = {"ignore_eos": False, "max_tokens": 200, **params}
        requests = requests_of([TEXT_PROMPT], constraint=constraint, logprobs=1, **changes)
        before = guessing.stats().proposed_tokens
        assert complete(guessing, requests) == complete(plain, requests)
        assert guessing.stats().proposed_tokens > before

    def test_bad_words(self, pair: tuple[LocalBackend, LocalBackend]) -> None:
        plain, guessing = pair
        whole = complete(plain, requests_of([TEXT_PROMPT], max_tokens=40))[0].text
        requests = requests_of([TEXT_PROMPT], bad_words=[whole[10:14], whole[-3:]])
        assert complete(guessing, requests) == complete(plain, requests)

    def test_a_request_that_is_aborted_between_guesses(self, pair: tuple[LocalBackend, LocalBackend]) -> None:
        plain, guessing = pair
        requests = requests_of([TEXT_PROMPT, TEXT_PROMPT[:41]], max_tokens=150)
        stream = guessing.stream(requests[:1])
        for _ in range(10):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert complete(guessing, requests) == complete(plain, requests)
        assert guessing.stats().pages_used == 0


@needs_native
@pytest.mark.parametrize("kind", ["gptq", "gguf"])
def test_adapters_and_packed_weights(kind: str, tmp_path: Path) -> None:
    path = packed_model(kind, tmp_path)
    plain, guessing = (
        LLM(path, dtype="bfloat16", cache_memory=2**24, speculative=how).backend for how in ("off", "ngram")
    )
    folder = adapter_folder(tmp_path / "a", plain.model)  # type: ignore[attr-defined]
    prompts = repetitive(60)
    requests = [
        Request(prompt=r.prompt, params=r.params, adapter="a" if i % 2 else None)
        # Of few tokens, so that replies repeat themselves whatever the weights are.
        for i, r in enumerate(requests_of(prompts, logprobs=0, allowed_token_ids=[3, 4, 5]))
    ]
    for one in (plain, guessing):
        one.load_adapter("a", folder)
    assert complete(guessing, requests) == complete(plain, requests)  # type: ignore[arg-type]
    assert guessing.stats().accepted_tokens > 0


def test_plain_torch_says_that_it_rounds(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """In float32 a tiny network's rounding does not change a token."""
    monkeypatch.setenv("QWENKIT_ISA", "reference")
    model = model_of(torch.float32)
    with caplog.at_level(logging.WARNING, "qwenkit"):
        plain = backend(model)
        assert not caplog.records
        guessing = backend(model, speculative="ngram")
    assert [r.message for r in caplog.records if "exact up to rounding" in r.message]
    requests = requests_of(repetitive(model.config.vocab_size))
    tokens = [[c.token_ids for c in complete(engine, requests)] for engine in (plain, guessing)]
    assert tokens[0] == tokens[1]
    assert guessing.stats().accepted_tokens > 0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"speculative": "draft"}, r"speculative='draft' is not known; use off or ngram"),
        ({"speculative": "ngram", "speculative_tokens": 0}, "use a whole number from 1 to 64"),
        ({"speculative": "ngram", "speculative_tokens": 65}, "use a whole number from 1 to 64"),
        ({"speculative": "ngram", "speculative_tokens": True}, "use a whole number from 1 to 64"),
        ({"speculative_tokens": 5}, "says nothing without speculative='ngram'"),
    ],
    ids=str,
)
def test_options_that_cannot_be_honoured(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LocalOptions(**options)
