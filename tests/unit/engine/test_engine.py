"""The engine with its thread, over tiny networks: every setting of a request, many requests at once, ends of all kinds."""

from __future__ import annotations

import gc
import json
import queue
import re
import threading
import time
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from qwenkit.backends.local import LocalBackend
from qwenkit.core.errors import InputError, NumericsError, PromptTooLongError, QueueFullError
from qwenkit.core.sampling import Constraint
from qwenkit.core.types import Completion, Delta, Request, SamplingParams, collect
from qwenkit.tokenizer.hf_json import HfTokenizer
from tests.support.backends import tiny_backend

PROMPT = tuple(range(100, 140))


@pytest.fixture(scope="module")
def backend(smollm2_tokenizer: HfTokenizer) -> LocalBackend:
    return tiny_backend(smollm2_tokenizer, eos=(2,))


def ask(backend: LocalBackend, prompt: Sequence[int] = PROMPT, **params: Any) -> Completion:
    params = {"max_tokens": 12, **params}
    return collect(list(backend.stream([Request(prompt=tuple(prompt), params=SamplingParams(**params))])))


def logprob_of(backend: LocalBackend, prompt: Sequence[int], token: int) -> float:
    return float(backend.logits([prompt])[0][-1].log_softmax(dim=-1)[token])


class TestSettings:
    def test_penalties_against_their_formulas(self, backend: LocalBackend) -> None:
        plain = ask(backend, max_tokens=6)
        rows = backend.logits([[*PROMPT, *plain.token_ids]])[0][len(PROMPT) - 1 :].double()
        free = ask(backend, max_tokens=6, frequency_penalty=1.5, presence_penalty=0.5)
        tokens = list(PROMPT)
        for token in free.token_ids:
            row = backend.logits([tokens])[0][-1].double()
            for seen in set(tokens[len(PROMPT) :]):
                row[seen] -= 1.5 * tokens[len(PROMPT) :].count(seen) + 0.5
            assert token == int(row.argmax())
            tokens.append(token)
        assert rows.shape[0] == 7

    def test_bias_bans_and_forces(self, backend: LocalBackend) -> None:
        first = ask(backend, max_tokens=1).token_ids[0]
        assert ask(backend, max_tokens=1, logit_bias={first: -100}).token_ids[0] != first
        assert ask(backend, max_tokens=3, logit_bias={7: 100}).token_ids == (7, 7, 7)

    def test_only_allowed_tokens(self, backend: LocalBackend) -> None:
        reply = ask(backend, temperature=5.0, seed=3, allowed_token_ids=[11, 12, 13])
        assert set(reply.token_ids) <= {11, 12, 13}

    def test_bad_words_never_appear(self, backend: LocalBackend) -> None:
        params = {"temperature": 3.0, "seed": 1, "max_tokens": 60}
        free = ask(backend, **params)
        words = [free.text[3:5], free.text[20:23], free.text[40]]
        reply = ask(backend, **params, bad_words=words)
        assert not any(word in reply.text for word in words)

    def test_end_tokens_wait_for_min_tokens(self, backend: LocalBackend) -> None:
        assert ask(backend, logit_bias={2: 100}).token_ids == (2,)
        reply = ask(backend, logit_bias={2: 100}, min_tokens=5)
        assert len(reply.token_ids) == 6
        assert reply.finish_reason == "stop"
        assert ask(backend, logit_bias={2: 100}, ignore_eos=True).token_ids == (2,) * 12

    def test_stop_ids_are_named(self, backend: LocalBackend) -> None:
        plain = ask(backend)
        token = plain.token_ids[3]
        reply = ask(backend, stop_token_ids=[token])
        cut = plain.token_ids.index(token)
        assert (reply.token_ids, reply.finish_reason, reply.stop) == (
            plain.token_ids[: cut + 1],
            "stop",
            token,
        )

    def test_stop_strings_can_be_kept(self, backend: LocalBackend) -> None:
        plain = ask(backend, max_tokens=20)
        stop = plain.text[7:11]
        at = plain.text.index(stop)
        reply = ask(backend, max_tokens=20, stop=[stop])
        assert (reply.text, reply.stop, reply.finish_reason) == (plain.text[:at], stop, "stop")
        assert ask(backend, max_tokens=20, stop=[stop], include_stop=True).text == plain.text[:at] + stop

    def test_logprobs_are_the_models_own(self, backend: LocalBackend) -> None:
        reply = ask(backend, max_tokens=4, logprobs=3, temperature=0.7, seed=2, top_k=50)
        tokens = list(PROMPT)
        for token, told in zip(reply.token_ids, reply.logprobs, strict=True):
            row = backend.logits([tokens])[0][-1].log_softmax(dim=-1)
            best = row.topk(3)
            assert told.token_id == token
            assert told.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert [i for i, _ in told.top] == best.indices.tolist()
            assert [p for _, p in told.top] == pytest.approx(best.values.tolist(), abs=1e-4)
            tokens.append(token)

    def test_prompt_logprobs(self, backend: LocalBackend) -> None:
        ask(backend)  # in the prefix cache now, and yet every position is read again
        reply = ask(backend, max_tokens=2, prompt_logprobs=2)
        assert reply.prompt_logprobs is not None
        first, *rest = reply.prompt_logprobs
        rows = backend.logits([PROMPT])[0].log_softmax(dim=-1)
        assert first is None
        assert [p.token_id for p in rest if p] == list(PROMPT[1:])
        for row, told in zip(rows, rest, strict=False):
            assert told is not None
            assert told.logprob == pytest.approx(float(row[told.token_id]), abs=1e-4)
            assert [i for i, _ in told.top] == row.topk(2).indices.tolist()

    def test_scoring_alone(self, backend: LocalBackend) -> None:
        reply = ask(backend, max_tokens=0, prompt_logprobs=0)
        assert (reply.text, reply.token_ids, reply.finish_reason) == ("", (), "length")
        assert reply.prompt_logprobs is not None
        assert len(reply.prompt_logprobs) == len(PROMPT)
        scores = [p.logprob for p in reply.prompt_logprobs if p]
        assert backend.logprobs([PROMPT])[0] == pytest.approx(scores)

    def test_several_replies(self, backend: LocalBackend) -> None:
        params: dict[str, Any] = {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "seed": 5}
        reply = ask(backend, n=4, **params)
        texts = [reply.text, *(other.text for other in reply.others)]
        assert len(set(texts)) == 4
        assert texts[0] == ask(backend, **params).text, "the first of n is the only one of 1"
        again = ask(backend, n=4, **params)
        assert [again.text, *(other.text for other in again.others)] == texts

    def test_greedy_replies_are_all_the_same(self, backend: LocalBackend) -> None:
        reply = ask(backend, n=3)
        assert [other.token_ids for other in reply.others] == [reply.token_ids] * 2


CONSTRAINTS: list[tuple[Constraint, str]] = [
    (Constraint(kind="choice", value=["red", "green", 'blue\n"x"']), 'red|green|blue\n"x"'),
    (Constraint(kind="regex", value=r"[0-9]{2}-[a-c]+z"), r"[0-9]{2}-[a-c]+z"),
    (Constraint(kind="grammar", value='start: "a"{2} | "b" start "b"'), r"b*aab*"),
]


class TestConstraints:
    @pytest.mark.parametrize(("constraint", "pattern"), CONSTRAINTS, ids=lambda v: getattr(v, "kind", ""))
    @pytest.mark.parametrize("seed", range(4))
    def test_patterns(self, backend: LocalBackend, constraint: Constraint, pattern: str, seed: int) -> None:
        reply = ask(backend, constraint=constraint, seed=seed, temperature=1.5, max_tokens=200)
        if reply.finish_reason == "stop":
            assert re.fullmatch(pattern, reply.text), reply.text

    @pytest.mark.parametrize("seed", range(3))
    def test_json_parses(self, backend: LocalBackend, seed: int) -> None:
        schema = {
            "type": "object",
            "properties": {
                "size": {"type": "integer", "minimum": 0, "maximum": 99},
                "colour": {"enum": ["rot", "grün", "青"]},
            },
            "required": ["size", "colour"],
            "additionalProperties": False,
        }
        constraint = Constraint(kind="json_schema", value=schema)
        reply = ask(backend, constraint=constraint, seed=seed, temperature=1.0, max_tokens=300)
        assert reply.finish_reason == "stop"
        value = json.loads(reply.text)
        assert value["colour"] in ("rot", "grün", "青")
        assert 0 <= value["size"] <= 99

    def test_padded_ids_are_never_chosen(self, smollm2_tokenizer: HfTokenizer) -> None:
        backend = tiny_backend(smollm2_tokenizer, eos=(2,), padding=40)
        reply = ask(backend, temperature=100.0, top_k=0, seed=1, max_tokens=200, ignore_eos=True)
        assert max(reply.token_ids) < smollm2_tokenizer.vocab_size
        reply = ask(backend, constraint=Constraint(kind="regex", value="[^q]{20}"), temperature=100.0, seed=1)
        assert max(reply.token_ids) < smollm2_tokenizer.vocab_size

    def test_contradictions_end_the_request_alone(self, backend: LocalBackend) -> None:
        constraint = Constraint(kind="choice", value=["yes"])
        with pytest.raises(InputError, match="no token is left"):
            ask(backend, constraint=constraint, allowed_token_ids=[5])
        assert ask(backend).text

    @pytest.mark.parametrize(
        ("params", "said"),
        [
            ({"constraint": Constraint(kind="regex", value="(")}, "regex constraint is not usable"),
            ({"constraint": Constraint(kind="json_schema", value={"type": 3})}, "json_schema constraint"),
            ({"constraint": Constraint(kind="grammar", value="start: other")}, "grammar constraint"),
            ({"constraint": Constraint(kind="json_object"), "ignore_eos": True}, "exclude each other"),
            ({"logit_bias": {10**6: 1.0}}, "logit_bias names token 1000000"),
            ({"allowed_token_ids": [-1]}, "allowed_token_ids names token -1"),
        ],
    )
    def test_refusals(self, backend: LocalBackend, params: dict[str, Any], said: str) -> None:
        with pytest.raises(InputError, match=said):
            ask(backend, **params)


class Sink:
    """Collects what one job brings."""

    def __init__(self) -> None:
        self.got: queue.SimpleQueue[Delta | BaseException] = queue.SimpleQueue()

    def __call__(self, delta: Delta | BaseException) -> None:
        self.got.put(delta)

    def finish(self) -> Completion:
        deltas = []
        while not deltas or not deltas[-1].finish_reason:
            delta = self.got.get(timeout=20)
            if isinstance(delta, BaseException):
                raise delta
            deltas.append(delta)
        return collect(deltas)


def long_request(**params: Any) -> Request:
    return Request(prompt=PROMPT, params=SamplingParams(**{"max_tokens": 400, "ignore_eos": True, **params}))


class TestThreads:
    def test_many_threads_at_once(self, backend: LocalBackend) -> None:
        prompts = [tuple(range(i, i + 5 + i % 7)) for i in range(40)]
        alone = [ask(backend, p).token_ids for p in prompts]
        found: list[tuple[int, ...]] = [()] * len(prompts)

        def run(i: int) -> None:
            found[i] = ask(backend, prompts[i]).token_ids

        threads = [threading.Thread(target=run, args=(i,)) for i in range(len(prompts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == alone

    def test_an_aborted_job_is_silent_and_frees_its_pages(self, backend: LocalBackend) -> None:
        sink, other = Sink(), Sink()
        job = backend.submit(long_request(), sink)
        backend.submit(Request(prompt=PROMPT, params=SamplingParams(max_tokens=30)), other)
        sink.got.get(timeout=20)
        job.abort()
        while not sink.got.empty():
            sink.got.get()
        other.finish()
        assert sink.got.empty()
        _wait(lambda: backend.stats().pages_used == 0)
        job.abort()

    def test_closing_the_iterator_aborts(self, backend: LocalBackend) -> None:
        stream = backend.stream([long_request(), long_request(seed=1)])
        next(stream)
        stream.close()  # type: ignore[attr-defined]
        _wait(lambda: backend.stats().running == 0)
        assert backend.stats().pages_used == 0

    def test_a_receiver_that_fails_ends_its_own_request(self, backend: LocalBackend) -> None:
        def broken(_: object) -> None:
            raise ValueError("no")

        good = Sink()
        backend.submit(long_request(), broken)
        backend.submit(Request(prompt=PROMPT, params=SamplingParams(max_tokens=5)), good)
        assert len(good.finish().token_ids) == 5
        _wait(lambda: backend.stats().running == 0)

    def test_a_full_queue_refuses(self, smollm2_tokenizer: HfTokenizer) -> None:
        backend = tiny_backend(smollm2_tokenizer, max_batch_size=2, max_queue=1)
        jobs = [backend.submit(long_request(), Sink()) for _ in range(3)]
        with pytest.raises(QueueFullError, match="more than 3 are not taken"):
            backend.submit(long_request(), Sink())
        for job in jobs:
            job.abort()
        _wait(lambda: backend.stats().running == 0)
        sink = Sink()
        backend.submit(Request(prompt=PROMPT, params=SamplingParams(max_tokens=2)), sink)
        sink.finish()

    def test_closing_ends_those_under_way_with_an_error(self, smollm2_tokenizer: HfTokenizer) -> None:
        backend = tiny_backend(smollm2_tokenizer)
        sink = Sink()
        backend.submit(long_request(), sink)
        backend.close()
        with pytest.raises(InputError, match="was closed"):
            sink.finish()
        with pytest.raises(InputError, match="was closed"):
            backend.submit(long_request(), sink)

    def test_a_forgotten_backend_is_freed(self, smollm2_tokenizer: HfTokenizer) -> None:
        backend = tiny_backend(smollm2_tokenizer)
        ask(backend)
        network = weakref.ref(backend.model)
        del backend
        gc.collect()
        _wait(lambda: network() is None)

    def test_embedding_beside_a_reply(self, backend: LocalBackend) -> None:
        sink = Sink()
        job = backend.submit(long_request(), sink)
        (vector,) = backend.embed([PROMPT])
        job.abort()
        model = backend.model
        assert torch.tensor(vector).norm() == pytest.approx(1.0, abs=1e-5)
        assert len(vector) == model.config.hidden_size

    def test_nan_ends_the_request_with_an_explanation(self, smollm2_tokenizer: HfTokenizer) -> None:
        backend = tiny_backend(smollm2_tokenizer)
        with torch.no_grad():
            backend.model.layers[1].attn.out.weight[0, 0] = float("nan")  # type: ignore[union-attr]
        with pytest.raises(NumericsError, match=r"attn.out.*the weight .* itself"):
            ask(backend)
        with pytest.raises(NumericsError, match="NaN"):
            backend.logprobs([PROMPT])


class TestSmallCaches:
    def test_a_cache_too_small_for_the_batch(self, smollm2_tokenizer: HfTokenizer) -> None:
        large = tiny_backend(smollm2_tokenizer)
        small = tiny_backend(smollm2_tokenizer, cache_tokens=192)
        requests = [long_request(max_tokens=100, seed=i, temperature=1.0, top_k=20) for i in range(5)]
        texts = [_texts(b, requests) for b in (small, large)]
        assert texts[0] == texts[1]
        assert small.stats().preemptions > 0
        assert small.stats().pages_used == 0

    def test_a_prompt_larger_than_the_cache(self, smollm2_tokenizer: HfTokenizer) -> None:
        small = tiny_backend(smollm2_tokenizer, cache_tokens=64)
        with pytest.raises(PromptTooLongError, match="key-value cache holds 64"):
            ask(small, range(64))
        assert len(ask(small, range(50), max_tokens=400).token_ids) == 14

    def test_without_prefix_cache(self, smollm2_tokenizer: HfTokenizer) -> None:
        plain = tiny_backend(smollm2_tokenizer, prefix_caching=False)
        cached = tiny_backend(smollm2_tokenizer)
        for _ in range(2):
            assert ask(plain).token_ids == ask(cached).token_ids
        assert ask(plain).usage.cached_tokens == 0
        assert ask(cached).usage.cached_tokens == 32


def _texts(backend: LocalBackend, requests: Sequence[Request]) -> list[tuple[int, ...]]:
    deltas: list[list[Delta]] = [[] for _ in requests]
    for delta in backend.stream(requests):
        deltas[delta.index].append(delta)
    return [collect(d).token_ids for d in deltas]


def _wait(condition: Any) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
