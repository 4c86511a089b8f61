"""DashScope's own client, in its older and its newer form, against a real model and against scripted ones."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any

import dashscope
import openai
import pytest
from dashscope import AioGeneration, Client, Generation, TextEmbedding
from dashscope.v2.errors import NotFoundError

from qwenkit.core.errors import NumericsError
from tests.support.http import Live, live, scripted, until
from tests.support.live_server import LiveServer

ASKED: Any = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "What is the capital of France?"},
]
GREEDY: Any = {"temperature": 0, "max_tokens": 12}
SEEDED: Any = {"seed": 1234, "top_p": 0.8, "temperature": 1.0, "max_tokens": 12}
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_current_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = '<tool_call>\n{"name": "get_current_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
THOUGHT = "<think>\nSeven days.\n</think>\n\nA week."


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    """The client logs every refusal; its connections are closed at the end."""
    logging.getLogger("dashscope").setLevel(logging.CRITICAL)
    yield
    dashscope.close_shared_sync_session()


@pytest.fixture
def real(smollm2_server: LiveServer, monkeypatch: pytest.MonkeyPatch) -> LiveServer:
    """The client speaks to the server with the real model."""
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{smollm2_server.url}/api/v1")
    monkeypatch.setattr(dashscope, "api_key", smollm2_server.key)
    return smollm2_server


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(
        scripted("Hello, world!", thinking=True, delay=0.01),
        served_names=("qwen-turbo", "qwen-plus"),
        api_keys=("key",),
    ) as running:
        yield running


@pytest.fixture
def plus(server: Live, monkeypatch: pytest.MonkeyPatch) -> Live:
    """The client speaks to a server that has qwen-plus."""
    monkeypatch.setattr(dashscope, "base_http_api_url", f"{server.url}/api/v1")
    monkeypatch.setattr(dashscope, "api_key", "key")
    return server


def ask(model: str = "qwen-plus", **given: Any) -> Any:
    return Generation.call(model, **({"result_format": "message"} | given))


def content(answer: Any) -> str:
    assert answer.status_code == HTTPStatus.OK, answer
    return str(answer.output.choices[0].message.content)


def openai_text(server: LiveServer, messages: Any, **fields: Any) -> str:
    """The same over the OpenAI protocol."""
    with openai.OpenAI(base_url=server.base_url, api_key=server.key, max_retries=0) as client:
        done = client.chat.completions.create(model=server.model, messages=messages, **fields)
    return str(done.choices[0].message.content)


@pytest.mark.parametrize("settings", [GREEDY, SEEDED])
def test_the_same_text_as_over_the_openai_protocol(real: LiveServer, settings: Any) -> None:
    answer = ask(real.model, messages=ASKED, **settings)
    assert content(answer) == openai_text(real, ASKED, **settings)
    assert answer.output.choices[0].finish_reason in ("stop", "length")
    assert answer.usage.input_tokens > 20
    assert answer.usage.total_tokens == answer.usage.input_tokens + answer.usage.output_tokens
    assert answer.request_id == answer.headers["x-request-id"]


def test_a_prompt(real: LiveServer) -> None:
    answer = Generation.call(real.model, prompt="Hello!", **GREEDY)
    messages = [{"role": "user", "content": "Hello!"}]
    assert answer.output.text == openai_text(real, messages, **GREEDY)
    assert answer.output.choices is None
    assert answer.output.finish_reason in ("stop", "length")


@pytest.mark.parametrize("is_incremental", [None, False, True])
def test_streams(real: LiveServer, is_incremental: bool | None) -> None:
    whole = content(ask(real.model, messages=ASKED, **GREEDY))
    given: Any = {} if is_incremental is None else {"incremental_output": is_incremental}
    answers = list(ask(real.model, messages=ASKED, stream=True, **given, **GREEDY))
    contents = [content(answer) for answer in answers]
    assert len(contents) > 1
    assert ("".join(contents) if is_incremental else contents[-1]) == whole
    reasons = [answer.output.choices[0].finish_reason for answer in answers]
    assert set(reasons[:-1]) == {"null"}
    assert reasons[-1] in ("stop", "length")
    assert answers[-1].usage.output_tokens == 12 or reasons[-1] == "stop"
    texts = [
        a.output.text for a in Generation.call(real.model, messages=ASKED, stream=True, **given, **GREEDY)
    ]
    assert ("".join(texts) if is_incremental else texts[-1]) == whole


def test_without_waiting(real: LiveServer) -> None:
    async def both() -> tuple[str, str]:
        try:
            asked: Any = {"messages": ASKED, "result_format": "message", **GREEDY}
            whole = await AioGeneration.call(real.model, **asked)
            stream: Any = await AioGeneration.call(real.model, stream=True, incremental_output=True, **asked)
            return content(whole), "".join([content(answer) async for answer in stream])
        finally:
            await dashscope.close_shared_aio_session()

    whole, streamed = asyncio.run(both())
    assert whole == streamed == content(ask(real.model, messages=ASKED, **GREEDY))


def test_the_newer_client(real: LiveServer) -> None:
    asked: Any = {"model": real.model, "messages": ASKED, **GREEDY}
    with Client(api_key=real.key, base_url=f"{real.url}/api/v1") as client:
        whole = client.chat.completions.create(**asked).output_text
        chunks = client.chat.completions.create(stream=True, **asked)
        assert "".join(chunk.delta.content or "" for chunk in chunks) == whole
        with pytest.raises(NotFoundError, match="is not served here"):
            client.chat.completions.create(**asked | {"model": "nobody"})
    assert whole == content(ask(real.model, messages=ASKED, **GREEDY))


def test_vectors(real: LiveServer) -> None:
    answer = TextEmbedding.call(real.model, input=["a cat", "a dog"])
    assert answer.status_code == HTTPStatus.OK
    vectors = [each["embedding"] for each in answer.output["embeddings"]]
    assert [sum(x * x for x in vector) for vector in vectors] == pytest.approx([1, 1])


@pytest.mark.parametrize("is_incremental", [None, False, True])
def test_tools(plus: Live, is_incremental: bool | None) -> None:
    plus.backend.restart([CALL, "It is sunny."])
    messages = [{"role": "user", "content": "How is the weather in Rome?"}]
    given: Any = {} if is_incremental is None else {"incremental_output": is_incremental}
    *_, last = answers = list(ask(messages=messages, tools=[WEATHER], stream=True, **given))
    assert last.output.choices[0].finish_reason == "tool_calls"
    pieces = [call for a in answers for call in a.output.choices[0].message.get("tool_calls", [])]
    if not is_incremental:
        pieces = pieces[-1:]
    assert "".join(call["function"].get("name") or "" for call in pieces) == "get_current_weather"
    arguments = "".join(call["function"]["arguments"] for call in pieces)
    assert json.loads(arguments) == {"city": "Rome"}
    call = pieces[0] | {"function": {"name": "get_current_weather", "arguments": arguments}}
    messages += [
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "sunny", "name": "get_current_weather"},
    ]
    assert content(ask(messages=messages, tools=[WEATHER])) == "It is sunny."
    assert plus.backend.requests[-1].prompt[1].tool_calls[0].name == "get_current_weather"


def test_thought(plus: Live) -> None:
    plus.backend.restart([THOUGHT])
    message = ask(prompt="How long?", enable_thinking=True).output.choices[0].message
    assert (message.reasoning_content, message.content) == ("Seven days.", "A week.")
    answers = ask(prompt="How long?", enable_thinking=True, stream=True, incremental_output=True)
    messages = [answer.output.choices[0].message for answer in answers]
    assert "".join(m.get("reasoning_content", "") for m in messages) == "Seven days."
    assert "".join(m.content for m in messages) == "A week."


def test_several_replies(plus: Live) -> None:
    plus.backend.restart(["first", "second"])
    contents = [choice.message.content for choice in ask(prompt="hi", n=2).output.choices]
    assert contents == ["first", "second"]
    plus.backend.restart(["first", "second"])
    *_, last = ask(prompt="hi", n=2, stream=True, incremental_output=False)  # put together by the client
    assert [choice["message"]["content"] for choice in last.output.choices] == contents


def test_log_probabilities(plus: Live) -> None:
    plus.backend.restart(["Hi"])
    (choice,) = ask(prompt="hi", logprobs=True, top_logprobs=1).output.choices
    assert [entry["token"] for entry in choice.logprobs["content"]] == ["H", "i"]


@pytest.mark.parametrize(
    ("given", "status", "code"),
    [
        ({"enable_search": True}, 400, "InvalidParameter"),
        ({"temperature": -1}, 400, "InvalidParameter"),
        ({"model": "qwen-max"}, 404, "ModelNotFound"),
        ({"api_key": "wrong"}, 401, "InvalidApiKey"),
        ({"plugins": "search"}, 403, "AccessDenied"),
        ({"async_request": True}, 403, "AccessDenied"),
    ],
)
def test_refusals(plus: Live, given: dict[str, Any], status: int, code: str) -> None:
    plus.backend.restart(["Hi"])
    for stream in (False, True):
        answer = ask(**{"prompt": "hi", "stream": stream} | given)
        if stream:
            (answer,) = answer
        assert (answer.status_code, answer.code) == (status, code)
        assert answer.message
        assert answer.request_id


def test_an_error_in_a_stream(plus: Live) -> None:
    plus.backend.restart([["Hel", NumericsError("logits hold NaN")]])
    first, last = ask(prompt="hi", stream=True)
    assert content(first) == "Hel"
    assert (last.status_code, last.code, last.message) == (500, "InternalError", "logits hold NaN")

    async def without_waiting() -> Any:
        try:
            stream: Any = await AioGeneration.call("qwen-plus", prompt="hi", stream=True)
            return [answer async for answer in stream][-1]
        finally:
            await dashscope.close_shared_aio_session()

    assert asyncio.run(without_waiting()).status_code == 500


def test_hanging_up_ends_the_reply(plus: Live) -> None:
    plus.backend.restart(["Hello, world! " * 100])
    before = plus.backend.num_aborted
    answers = ask(prompt="hi", stream=True)
    next(answers)
    answers.close()
    dashscope.close_shared_sync_session()
    until(lambda: plus.backend.num_aborted == before + 1)
