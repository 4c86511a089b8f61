"""OpenAI's own client, with strict checks of every answer, against a server process with a real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import openai
import pydantic
import pytest

from tests.support.live_server import LiveServer

ASKED: Any = [{"role": "user", "content": "What is the capital of France?"}]
WEATHER: Any = {
    "name": "weather",
    "description": "How the weather of a city will be.",
    "parameters": {
        "type": "object",
        "properties": {
            "city": {"type": "string", "enum": ["Rome", "Oslo"]},
            "days": {"type": "integer", "minimum": 1, "maximum": 7},
        },
        "required": ["city", "days"],
        "additionalProperties": False,
    },
}
CLOCK: Any = {
    "name": "clock",
    "parameters": {
        "type": "object",
        "properties": {"zone": {"type": "string", "maxLength": 12}},
        "required": ["zone"],
        "additionalProperties": False,
    },
}
TOOLS: Any = [{"type": "function", "function": f} for f in (WEATHER, CLOCK)]
WEATHER_ASKED: Any = [{"role": "user", "content": "What is the weather in Rome?"}]


@pytest.fixture(scope="module")
def settings(smollm2_server: LiveServer) -> dict[str, Any]:
    """What every client of these tests is made with."""
    return {
        "base_url": smollm2_server.base_url,
        "api_key": smollm2_server.key,
        "max_retries": 0,
        "timeout": 60,
        "_strict_response_validation": True,
    }


@pytest.fixture(scope="module")
def client(settings: dict[str, Any]) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(**settings) as found:
        yield found


@pytest.fixture(scope="module")
def lenient(settings: dict[str, Any]) -> Iterator[openai.OpenAI]:
    """For what the strict checks do not know: base64, and the first token of a prompt, which has no logprob."""
    with openai.OpenAI(**settings | {"_strict_response_validation": False}) as found:
        yield found


def ask(client: openai.OpenAI, messages: Any = ASKED, **fields: Any) -> Any:
    """A chat at temperature 0."""
    common = {"model": "smollm2-135m", "messages": messages, "temperature": 0, "max_tokens": 12}
    return client.chat.completions.create(**(common | fields))


def assert_weather(arguments: str) -> None:
    """The arguments are what the schema allows."""
    value = json.loads(arguments)
    assert set(value) == {"city", "days"}
    assert value["city"] in ("Rome", "Oslo")
    assert type(value["days"]) is int
    assert 1 <= value["days"] <= 7


def assert_call(name: str, arguments: str) -> None:
    """A call of one of the tools, as its schema allows."""
    if name == "weather":
        assert_weather(arguments)
        return
    assert name == "clock"
    value = json.loads(arguments)
    assert set(value) == {"zone"}
    assert isinstance(value["zone"], str)
    assert len(value["zone"]) <= 12


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2-135m"]
    assert client.models.retrieve("smollm2-135m").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt")


def test_streams_bring_the_same_text(client: openai.OpenAI) -> None:
    whole = ask(client)
    assert "Paris" in whole.choices[0].message.content
    chunks = list(ask(client, stream=True, stream_options={"include_usage": True}))
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_the_asynchronous_client(settings: dict[str, Any], client: openai.OpenAI) -> None:
    async def run() -> tuple[list[str], str]:
        async with openai.AsyncOpenAI(**settings) as other:
            whole = await asyncio.gather(*(ask(other) for _ in range(3)))  # type: ignore[arg-type]
            parts = [c async for c in await ask(other, stream=True)]  # type: ignore[arg-type]
        text = "".join(c.choices[0].delta.content or "" for c in parts)
        return [w.choices[0].message.content for w in whole], text

    texts, streamed = asyncio.run(run())
    assert {*texts, streamed} == {ask(client).choices[0].message.content}


def test_several_replies_and_seeds(client: openai.OpenAI) -> None:
    wish: Any = [{"role": "user", "content": "Tell me a story."}]

    def texts(seed: int, n: int = 2) -> list[str]:
        answer = ask(client, wish, n=n, temperature=1, seed=seed, max_tokens=10)
        assert [c.index for c in answer.choices] == list(range(n))
        return [c.message.content for c in answer.choices]

    first = texts(7)
    assert first[0] != first[1]
    assert texts(7) == first
    assert texts(8) != first


def test_logprobs(client: openai.OpenAI) -> None:
    choice = ask(client, logprobs=True, top_logprobs=3).choices[0]
    found = choice.logprobs.content
    end = (
        "<|im_end|>" if choice.finish_reason == "stop" else ""
    )  # the token that ends a reply has a chance too
    assert "".join(p.token for p in found) == choice.message.content + end
    for position in found:
        assert len(position.top_logprobs) == 3
        assert position.top_logprobs[0].token == position.token  # temperature 0 takes the likeliest
        assert position.top_logprobs[0].logprob == pytest.approx(position.logprob)
        assert bytes(position.bytes).decode() == position.token
    chunks = ask(client, logprobs=True, stream=True)
    parts = [c.choices[0].logprobs for c in chunks if c.choices[0].logprobs]
    streamed = [p for part in parts for p in part.content or ()]
    assert [p.logprob for p in streamed] == pytest.approx([p.logprob for p in found], abs=1e-4)


def test_stop(client: openai.OpenAI) -> None:
    count: Any = [{"role": "user", "content": "Count from 1 to 10."}]
    free = ask(client, count, max_tokens=40).choices[0].message.content
    word = free.split()[3]
    choice = ask(client, count, max_tokens=40, stop=[word, "never"]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content == free[: free.index(word)]


@pytest.mark.parametrize("parallel", [True, False])
def test_required_tools(client: openai.OpenAI, parallel: bool) -> None:
    fields = {"tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": parallel, "max_tokens": 100}
    choice = ask(client, WEATHER_ASKED, **fields).choices[0]
    assert choice.finish_reason == "tool_calls"
    calls = choice.message.tool_calls
    assert len(calls) >= 1 if parallel else len(calls) == 1
    for call in calls:
        assert_call(call.function.name, call.function.arguments)
    assert len({call.id for call in calls}) == len(calls)
    answers: Any = [{"role": "tool", "tool_call_id": call.id, "content": "sunny"} for call in calls]
    history = [*WEATHER_ASKED, choice.message.to_dict(), *answers]
    assert ask(client, history, tools=TOOLS, tool_choice="none").choices[0].message.content


def test_a_named_tool_that_streams(client: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "clock"}}
    fields = {"tools": TOOLS, "tool_choice": named, "max_tokens": 60}
    (whole,) = ask(client, WEATHER_ASKED, **fields).choices[0].message.tool_calls
    usage = {"stream_options": {"include_usage": True}}
    with client.chat.completions.stream(
        model="smollm2-135m", messages=WEATHER_ASKED, temperature=0, **fields, **usage
    ) as stream:
        for _ in stream:
            pass
        final: Any = stream.get_final_completion()
    (call,) = final.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == (whole.function.name, whole.function.arguments)
    assert call.function.name == "clock"
    assert_call(call.function.name, call.function.arguments)
    assert final.usage.prompt_tokens_details.cached_tokens > 100  # the same prompt came just before


def test_functions_in_the_older_form(client: openai.OpenAI) -> None:
    fields = {"functions": [WEATHER, CLOCK], "function_call": {"name": "weather"}, "max_tokens": 60}
    choice = ask(client, WEATHER_ASKED, **fields).choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call.name == "weather"
    assert_weather(choice.message.function_call.arguments)


def test_a_form_for_the_answer(client: openai.OpenAI) -> None:
    form = {"name": "weather", "strict": True, "schema": WEATHER["parameters"]}
    fields = {"response_format": {"type": "json_schema", "json_schema": form}, "max_tokens": 60}
    assert_weather(ask(client, WEATHER_ASKED, **fields).choices[0].message.content)


class Person(pydantic.BaseModel):
    """What the client makes a schema of."""

    is_alive: bool
    age: int = pydantic.Field(ge=0, le=150)


def test_a_form_that_is_a_class(client: openai.OpenAI) -> None:
    messages: Any = [{"role": "user", "content": "Bob is 31 years old. Describe Bob."}]
    message = (
        client.chat.completions.parse(
            model="smollm2-135m", messages=messages, response_format=Person, temperature=0, max_tokens=60
        )
        .choices[0]
        .message
    )
    assert isinstance(message.parsed, Person)


def test_embeddings(client: openai.OpenAI, lenient: openai.OpenAI) -> None:
    texts = ["A cat sleeps.", "A cat is asleep.", "Shares fell on Monday."]
    plain = client.embeddings.create(model="smollm2-135m", input=texts, encoding_format="float")
    a, b, c = (d.embedding for d in plain.data)
    assert sum(x * x for x in a) == pytest.approx(1, abs=1e-3)
    assert _dot(a, b) > _dot(a, c)
    packed = lenient.embeddings.create(model="smollm2-135m", input=texts)
    assert [d.embedding for d in packed.data] == [pytest.approx(d.embedding, abs=1e-4) for d in plain.data]


def _dot(a: list[float], b: list[float]) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_text_completions(client: openai.OpenAI, lenient: openai.OpenAI) -> None:
    text = "The capital of France is Paris"
    scored: Any = lenient.completions.create(
        model="smollm2-135m", prompt=text, echo=True, logprobs=2, max_tokens=0, temperature=0
    )
    choice = scored.choices[0]
    assert choice.text == text
    assert "".join(choice.logprobs.tokens) == text
    assert choice.logprobs.token_logprobs[0] is None
    assert choice.logprobs.token_logprobs[-1] > -1
    assert choice.logprobs.text_offset[-1] == text.index(" Paris")
    longer = client.completions.create(
        model="smollm2-135m", prompt=[text, text], echo=True, max_tokens=4, temperature=0
    )
    assert len(longer.choices) == 2
    assert longer.choices[0].text == longer.choices[1].text
    assert longer.choices[0].text.startswith(text)


def test_errors_become_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.AuthenticationError):
        ask(client.with_options(api_key="wrong"))
    with pytest.raises(openai.NotFoundError):
        ask(client, model="gpt")
    refused: dict[str, Any] = {
        "temperature": {"temperature": -1},
        "top_p": {"top_p": 2},
        "n": {"n": 0},
        "logit_bias": {"logit_bias": {"x": 1}},
        "top_logprobs": {"logprobs": True, "top_logprobs": 99},
        "tool_choice": {"tool_choice": "required"},
        "messages": {"messages": []},
    }
    for param, fields in refused.items():
        with pytest.raises(openai.BadRequestError) as error:
            ask(client, **fields)
        assert (error.value.param or "").partition(".")[0] == param, error.value
    with pytest.raises(openai.BadRequestError) as error:
        client.completions.create(model="smollm2-135m", prompt="word " * 3000)
    assert error.value.code == "context_length_exceeded"
