"""Anthropic's own client, with strict checks of every answer: a real model for words, scripts for tools and thoughts."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import anthropic
import openai
import pydantic
import pytest
from anthropic import beta_tool

from qwenkit.core.types import Message
from tests.support.backends import FailingBackend
from tests.support.http import Live, live, scripted
from tests.support.live_server import LiveServer

ASKED: Any = [{"role": "user", "content": "What is the capital of France?"}]
COMMON: Any = {"model": "smollm2-135m", "max_tokens": 12, "messages": ASKED, "extra_body": {"temperature": 0}}
TOOL: Any = {
    "name": "weather",
    "description": "How it is.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
THOUGHT = "<think>\nLet me see.\n</think>\n\nIt is sunny."
STRICT: Any = {"max_retries": 0, "timeout": 60, "_strict_response_validation": True}


@pytest.fixture(scope="module")
def client(smollm2_server: LiveServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=smollm2_server.url, api_key=smollm2_server.key, **STRICT) as found:
        yield found


@pytest.fixture(scope="module")
def thinker() -> Iterator[Live]:
    with live(scripted(thinking=True)) as server:
        yield server


@pytest.fixture(scope="module")
def scripted_client(thinker: Live) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=thinker.url, api_key="any", **STRICT) as found:
        yield found


@pytest.fixture(scope="module")
def expected(smollm2_server: LiveServer) -> str:
    """The answer over OpenAI's protocol."""
    with openai.OpenAI(base_url=smollm2_server.base_url, api_key=smollm2_server.key) as other:
        done = other.chat.completions.create(
            model="smollm2-135m", messages=ASKED, max_tokens=12, temperature=0
        )
    assert done.choices[0].message.content
    return done.choices[0].message.content


def test_a_message(client: anthropic.Anthropic, expected: str) -> None:
    message = client.messages.create(**COMMON)
    assert [block.type for block in message.content] == ["text"]
    assert message.content[0].text == expected
    assert (message.role, message.stop_reason) == ("assistant", "end_turn")
    assert 0 < message.usage.output_tokens <= 12
    assert message._request_id
    counted = client.messages.count_tokens(model="smollm2-135m", messages=ASKED)
    read = message.usage.cache_read_input_tokens or 0
    assert counted.input_tokens == message.usage.input_tokens + read


def test_a_stream(client: anthropic.Anthropic, expected: str) -> None:
    with client.messages.stream(**COMMON) as stream:
        assert "".join(stream.text_stream) == expected
        message = stream.get_final_message()
    assert message.stop_reason == "end_turn"
    with client.messages.create(**COMMON, stream=True) as raw:
        assert [event.type for event in raw][-2:] == ["message_delta", "message_stop"]


def test_many_at_once(smollm2_server: LiveServer, expected: str) -> None:
    async def ask() -> list[str]:
        settings = {"base_url": smollm2_server.url, "api_key": smollm2_server.key}
        async with anthropic.AsyncAnthropic(**settings, **STRICT) as client:

            async def streamed() -> str:
                async with client.messages.stream(**COMMON) as stream:
                    return await stream.get_final_text()

            async def whole() -> str:
                return (await client.messages.create(**COMMON)).content[0].text  # type: ignore[union-attr]

            return list(await asyncio.gather(streamed(), whole(), streamed(), whole()))

    assert asyncio.run(ask()) == [expected] * 4


def test_prefill_and_stop_sequences(client: anthropic.Anthropic) -> None:
    begun = [*ASKED, {"role": "assistant", "content": "The capital of France is"}]
    message = client.messages.create(**COMMON | {"messages": begun}, stop_sequences=["Par"])
    assert message.content[0].text.strip() == ""  # type: ignore[union-attr]
    assert (message.stop_reason, message.stop_sequence) == ("stop_sequence", "Par")


def test_a_tool_that_must_be_called(client: anthropic.Anthropic) -> None:
    asked = COMMON | {"max_tokens": 60}
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string", "enum": ["Rome", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    }
    message = client.messages.create(
        **asked, tools=[TOOL | {"input_schema": schema}], tool_choice={"type": "tool", "name": "weather"}
    )
    (call,) = message.content
    assert message.stop_reason == "tool_use"
    assert call.type == "tool_use"
    assert call.input["city"] in ("Rome", "Oslo")


def test_what_the_cache_holds_is_counted_apart(client: anthropic.Anthropic) -> None:
    asked = COMMON | {"max_tokens": 1, "system": "You know every capital of the world by heart. " * 20}
    first, second = (client.messages.create(**asked).usage for _ in range(2))
    assert second.cache_read_input_tokens
    assert second.input_tokens < first.input_tokens
    assert first.input_tokens + (first.cache_read_input_tokens or 0) == (
        second.input_tokens + second.cache_read_input_tokens
    )


def test_structured_output(client: anthropic.Anthropic) -> None:
    class Answer(pydantic.BaseModel):
        capital: bool
        size: Literal["small", "large"]

    message = client.messages.parse(**COMMON | {"max_tokens": 40}, output_format=Answer)
    assert isinstance(message.parsed_output, Answer)
    with client.messages.stream(**COMMON | {"max_tokens": 40}, output_format=Answer) as stream:
        assert stream.get_final_message().parsed_output == message.parsed_output


def test_models(client: anthropic.Anthropic) -> None:
    assert [model.id for model in client.models.list()] == ["smollm2-135m"]
    assert client.models.retrieve("smollm2-135m").max_input_tokens == 2048


def test_errors(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.NotFoundError, match="smollm2-135m") as missing:
        client.messages.create(**COMMON | {"model": "claude"})
    assert missing.value.request_id
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(**COMMON | {"max_tokens": -1})
    with pytest.raises(anthropic.BadRequestError, match="text only"):
        client.messages.create(
            **COMMON
            | {
                "messages": [
                    {"role": "user", "content": [{"type": "image", "source": {"type": "url", "url": "x"}}]}
                ]
            }
        )
    with pytest.raises(anthropic.AuthenticationError):
        client.with_options(api_key="wrong").messages.create(**COMMON)
    with pytest.raises(anthropic.NotFoundError):
        client.messages.batches.list()


def test_an_error_in_the_middle_of_a_stream() -> None:
    backend = FailingBackend(["Hello, world!"])
    backend.fails_after = 2
    asked = COMMON | {"model": "scripted"}
    with (
        live(backend) as server,
        anthropic.Anthropic(base_url=server.url, api_key="any", **STRICT) as client,
        pytest.raises(anthropic.APIStatusError, match="the numbers are gone"),
        client.messages.stream(**asked) as stream,
    ):
        stream.until_done()


def test_thoughts(thinker: Live, scripted_client: anthropic.Anthropic) -> None:
    thinker.backend.restart([THOUGHT])
    asked: Any = {"model": "scripted", "max_tokens": 2000, "messages": ASKED}
    message = scripted_client.messages.create(**asked, thinking={"type": "enabled", "budget_tokens": 1024})
    with scripted_client.messages.stream(**asked, thinking={"type": "adaptive"}) as stream:
        kinds = [event.type for event in stream]
        assert stream.get_final_message().content[0] == message.content[0]
    assert {"thinking", "signature", "text"} <= set(kinds)
    assert [block.type for block in message.content] == ["thinking", "text"]
    assert message.content[0].thinking == "Let me see."  # type: ignore[union-attr]
    again: Any = [*ASKED, message.to_param(), {"role": "user", "content": "Sure?"}]
    scripted_client.messages.create(**asked | {"messages": again})
    told = thinker.backend.requests[-1].prompt[1]
    assert told == Message("assistant", "It is sunny.", reasoning="Let me see.")


def test_a_round_of_tools(thinker: Live, scripted_client: anthropic.Anthropic) -> None:
    thinker.backend.restart([CALL, CALL, "Sunny!"])
    asked: Any = {"model": "scripted", "max_tokens": 200, "tools": [TOOL]}
    with scripted_client.messages.stream(**asked, messages=ASKED) as stream:
        streamed = stream.get_final_message()
    message = scripted_client.messages.create(**asked, messages=ASKED)
    for found in (message, streamed):
        assert found.stop_reason == "tool_use"
        assert [block.type for block in found.content] == ["text", "tool_use"]
        assert found.content[1].input == {"city": "Rome"}  # type: ignore[union-attr]
    result = {"type": "tool_result", "tool_use_id": message.content[1].id, "content": "sunny"}  # type: ignore[union-attr]
    turns: Any = [*ASKED, message.to_param(), {"role": "user", "content": [result]}]
    assert scripted_client.messages.create(**asked, messages=turns).content[0].text == "Sunny!"  # type: ignore[union-attr]
    assert thinker.backend.requests[-1].prompt[-1].content == "sunny"


@beta_tool
def weather(city: str) -> str:
    """How the weather is.

    Args:
        city: where.
    """
    if city != "Rome":
        raise ValueError("no such city")
    return "sunny"


def test_the_runner_of_tools(thinker: Live, scripted_client: anthropic.Anthropic) -> None:
    thinker.backend.restart([CALL.replace("Rome", "Atlantis"), CALL, "Sunny!"])
    runner = scripted_client.beta.messages.tool_runner(
        model="scripted", max_tokens=200, tools=[weather], messages=ASKED
    )
    assert runner.until_done().content[0].text == "Sunny!"  # type: ignore[union-attr]
    results = [m.content for m in thinker.backend.requests[-1].prompt if m.role == "tool"]
    assert len(results) == 2
    assert results[0].startswith("Error: ")
    assert results[1] == "sunny"
