"""OpenAI's client and LangChain's over the Responses protocol: a real model for words, scripts for tools and time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pydantic
import pytest

from tests.support.http import Live, live, scripted, until
from tests.support.live_server import LiveServer

COMMON: Any = {
    "model": "smollm2-135m",
    "input": "What is the capital of France?",
    "max_output_tokens": 12,
    "temperature": 0,
}
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "description": "How it is.",
    "parameters": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "strict": True,
}
CALL = 'I look.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
THOUGHT = "<think>\nLet me see.\n</think>\n\nIt is sunny."
STRICT: Any = {"max_retries": 0, "timeout": 60, "_strict_response_validation": True}


@pytest.fixture(scope="module")
def client(smollm2_server: LiveServer) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=smollm2_server.base_url, api_key=smollm2_server.key, **STRICT) as found:
        yield found


@pytest.fixture(scope="module")
def thinker() -> Iterator[Live]:
    with live(scripted(thinking=True, delay=0.005)) as server:
        yield server


@pytest.fixture(scope="module")
def scripted_client(thinker: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{thinker.url}/v1", api_key="any", **STRICT) as found:
        yield found


@pytest.fixture(scope="module")
def expected(client: openai.OpenAI) -> str:
    """The answer over the chat protocol."""
    done = client.chat.completions.create(
        model="smollm2-135m",
        messages=[{"role": "user", "content": COMMON["input"]}],
        max_tokens=12,
        temperature=0,
    )
    assert done.choices[0].message.content
    return done.choices[0].message.content


def test_a_response_that_is_kept(client: openai.OpenAI, expected: str) -> None:
    response = client.responses.create(**COMMON, metadata={"a": "b"})
    assert response.output_text == expected
    assert response.usage is not None
    assert 0 < response.usage.output_tokens <= 12
    assert client.responses.retrieve(response.id).output == response.output
    counted = client.responses.input_tokens.count(model="smollm2-135m", input=COMMON["input"])
    assert counted.input_tokens == response.usage.input_tokens
    (item,) = client.responses.input_items.list(response.id)
    assert item.content[0].text == COMMON["input"]  # type: ignore[union-attr]
    client.responses.delete(response.id)
    with pytest.raises(openai.NotFoundError, match="not kept"):
        client.responses.retrieve(response.id)


def test_a_stream(client: openai.OpenAI, expected: str) -> None:
    with client.responses.stream(**COMMON) as stream:
        deltas = [event.delta for event in stream if event.type == "response.output_text.delta"]
        assert "".join(deltas) == stream.get_final_response().output_text == expected
    with client.responses.create(**COMMON, stream=True) as raw:
        assert [event.sequence_number for event in raw][:3] == [0, 1, 2]  # type: ignore[union-attr]


def test_many_at_once(smollm2_server: LiveServer, expected: str) -> None:
    async def ask() -> list[str]:
        settings = {"base_url": smollm2_server.base_url, "api_key": smollm2_server.key}
        async with openai.AsyncOpenAI(**settings, **STRICT) as client:

            async def streamed() -> str:
                async with client.responses.stream(**COMMON) as stream:
                    return (await stream.get_final_response()).output_text

            async def whole() -> str:
                return (await client.responses.create(**COMMON)).output_text

            return list(await asyncio.gather(streamed(), whole(), streamed(), whole()))

    assert asyncio.run(ask()) == [expected] * 4


def test_a_conversation_that_the_server_remembers(client: openai.OpenAI) -> None:
    first = client.responses.create(**COMMON)
    second = client.responses.create(**COMMON | {"input": "And of Italy?"}, previous_response_id=first.id)
    asked: Any = [
        {"role": "user", "content": COMMON["input"]},
        *first.output,
        {"role": "user", "content": "And of Italy?"},
    ]
    assert client.responses.create(**COMMON | {"input": asked}).output_text == second.output_text
    assert len(list(client.responses.input_items.list(second.id, limit=1))) == 3


def test_structured_output(client: openai.OpenAI) -> None:
    class Answer(pydantic.BaseModel):
        capital: bool
        size: Literal["small", "large"]

    parsed = client.responses.parse(**COMMON | {"max_output_tokens": 40}, text_format=Answer)
    assert isinstance(parsed.output_parsed, Answer)
    with client.responses.stream(**COMMON | {"max_output_tokens": 40}, text_format=Answer) as stream:
        assert stream.get_final_response().output_parsed == parsed.output_parsed


def test_log_probabilities(client: openai.OpenAI, expected: str) -> None:
    response = client.responses.create(**COMMON, include=["message.output_text.logprobs"], top_logprobs=2)
    part: Any = response.output[0].content[0]  # type: ignore[union-attr]
    data = b"".join(bytes(p.bytes) for p in part.logprobs)
    assert data.decode().startswith(expected)
    assert all(p.logprob <= 0 and len(p.top_logprobs) == 2 for p in part.logprobs)


def test_errors(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="smollm2-135m"):
        client.responses.create(**COMMON | {"model": "gpt-9"})
    with pytest.raises(openai.BadRequestError, match="web_search"):
        client.responses.create(**COMMON, tools=[{"type": "web_search"}])
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").responses.create(**COMMON)


def test_thoughts(thinker: Live, scripted_client: openai.OpenAI) -> None:
    thinker.backend.restart([THOUGHT])
    include: Any = ["reasoning.encrypted_content"]
    with scripted_client.responses.stream(model="scripted", input="hi", include=include) as stream:
        thought = "".join(e.delta for e in stream if e.type == "response.reasoning_text.delta")
        response = stream.get_final_response()
    assert thought == "Let me see."
    assert response.output_text == "It is sunny."
    again: Any = [{"role": "user", "content": "hi"}, *response.output, {"role": "user", "content": "Sure?"}]
    scripted_client.responses.create(model="scripted", input=again)
    assert thinker.backend.requests[-1].prompt[1].reasoning == "Let me see."


def test_a_round_of_tools(thinker: Live, scripted_client: openai.OpenAI) -> None:
    thinker.backend.restart([CALL, CALL, "Sunny!"])
    asked: Any = {"model": "scripted", "tools": [TOOL]}
    with scripted_client.responses.stream(**asked, input="hi") as stream:
        streamed = stream.get_final_response()
    response = scripted_client.responses.create(**asked, input="hi")
    for found in (response, streamed):
        assert [item.type for item in found.output] == ["message", "function_call"]
        assert found.output[1].arguments == '{"city": "Rome"}'  # type: ignore[union-attr]
    result: Any = {
        "type": "function_call_output",
        "call_id": response.output[1].call_id,  # type: ignore[union-attr]
        "output": "sunny",
    }
    done = scripted_client.responses.create(**asked, input=[result], previous_response_id=response.id)
    assert done.output_text == "Sunny!"
    assert [m.role for m in thinker.backend.requests[-1].prompt] == ["user", "assistant", "tool"]


def test_in_the_background(thinker: Live, scripted_client: openai.OpenAI) -> None:
    thinker.backend.restart(["abc" * 20, "abc" * 2000])
    response = scripted_client.responses.create(model="scripted", input="hi", background=True)
    assert response.status == "queued"
    until(lambda: scripted_client.responses.retrieve(response.id).status == "completed")
    followed = scripted_client.responses.retrieve(response.id, stream=True, starting_after=5)
    events = list(followed)
    assert events[0].sequence_number == 6
    assert events[-1].response.output_text == "abc" * 20  # type: ignore[union-attr]
    endless = scripted_client.responses.create(model="scripted", input="hi", background=True)
    assert scripted_client.responses.cancel(endless.id).status == "cancelled"
    assert thinker.backend.num_aborted >= 1


def test_langchain(thinker: Live) -> None:
    langchain_openai = pytest.importorskip("langchain_openai")
    thinker.backend.restart(["Hello there.", "Hello there.", CALL])
    model = langchain_openai.ChatOpenAI(
        model="scripted", base_url=f"{thinker.url}/v1", api_key="any", use_responses_api=True, max_retries=0
    )
    assert model.invoke("hi").text == "Hello there."
    assert "".join(piece.text for piece in model.stream("hi")) == "Hello there."
    called = model.bind_tools([TOOL]).invoke("hi")
    assert [(call["name"], call["args"]) for call in called.tool_calls] == [("weather", {"city": "Rome"})]
