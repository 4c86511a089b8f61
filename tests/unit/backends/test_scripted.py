"""The backend without a model behaves as others do."""

from __future__ import annotations

import queue
from typing import Any

import pytest

from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.core.errors import InputError, PromptTooLongError, QueueFullError
from qwenkit.core.types import Delta, Message, Request, SamplingParams, collect
from tests.support.byte_tokenizer import ByteTokenizer

PROMPT = (Message("user", "hi"),)


def _submit(backend: ScriptedBackend, **params: Any) -> list[Any]:
    """Everything the sink gets."""
    arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
    request = Request(prompt=PROMPT, params=SamplingParams(**params))
    backend.submit(request, arrived.put)
    items: list[Any] = []
    open_replies = request.params.n
    while open_replies:
        items.append(arrived.get(timeout=10))
        open_replies -= isinstance(items[-1], BaseException) or items[-1].finish_reason is not None
    return items


def test_what_is_submitted_says_the_same_as_a_stream() -> None:
    for params in ({}, {"n": 3}, {"max_tokens": 4}, {"stop": "wor"}, {"stop": "wor", "include_stop": True}):
        backend = ScriptedBackend(["Hello, world!"])
        streamed = list(backend.stream([Request(prompt=PROMPT, params=SamplingParams(**params))]))
        assert collect(_submit(backend, **params)) == collect(streamed)


def test_each_of_n_replies_takes_one_of_the_script() -> None:
    reply = collect(_submit(ScriptedBackend(["one", "two", "three"]), n=3))
    assert sorted([reply.text, *(other.text for other in reply.others)]) == ["one", "three", "two"]


def test_an_exception_in_the_script_ends_the_reply() -> None:
    items = _submit(ScriptedBackend([["some", ValueError("gone")]]))
    assert [d.text for d in items if isinstance(d, Delta)] == ["some"]
    assert isinstance(items[-1], ValueError)


def test_logprobs_of_reply_and_prompt() -> None:
    backend = ScriptedBackend(["ab"], tokenizer=ByteTokenizer())
    request = Request(prompt=(1, 2), params=SamplingParams(logprobs=2, prompt_logprobs=0))
    reply = collect(list(backend.stream([request])))
    assert [p.token_id for p in reply.logprobs] == list(b"ab")
    assert all(len(p.top) == 2 for p in reply.logprobs)
    assert reply.prompt_logprobs is not None
    assert reply.prompt_logprobs[0] is None
    assert len(reply.prompt_logprobs) == 2


def test_limits() -> None:
    with pytest.raises(QueueFullError):
        ScriptedBackend(["x"], max_jobs=0).submit(Request(prompt=PROMPT), print)
    with pytest.raises(PromptTooLongError):
        ScriptedBackend(["x"]).submit(Request(prompt=(1,) * 3000), print)
    with pytest.raises(InputError):
        ScriptedBackend(["x"]).unload_adapter("none")
