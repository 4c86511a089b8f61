"""OpenAI's own client, with strict checks of every answer, against a live server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import completion_create_params as chat_params

from tests.support.http import Live, live, scripted

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
FUNCTION: Any = {
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TOOLS: Any = [{"type": "function", "function": FUNCTION}]
USER: Any = [{"role": "user", "content": "hi"}]


def _client(server: Live, *, is_strict: bool = True) -> openai.OpenAI:
    return openai.OpenAI(
        base_url=f"{server.url}/v1",
        api_key="secret",
        max_retries=0,
        timeout=20,
        _strict_response_validation=is_strict,
    )


@pytest.fixture(scope="module")
def client() -> Iterator[openai.OpenAI]:
    """Speaks to a server that says hello."""
    with live(scripted("Hello, world!"), api_keys=("secret",)) as server, _client(server) as found:
        yield found


@pytest.fixture(scope="module")
def caller() -> Iterator[openai.OpenAI]:
    """Speaks to a server whose model always calls a tool."""
    with live(scripted("Let me look. " + CALL), api_keys=("secret",)) as server, _client(server) as found:
        yield found


def test_a_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model="scripted", messages=USER, n=2, logprobs=True, top_logprobs=2, temperature=0.5, seed=1
    )
    assert [c.message.content for c in answer.choices] == ["Hello, world!"] * 2
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert "".join(p.token for p in logprobs.content or ()) == "Hello, world!"
    assert answer.usage is not None
    assert answer.usage.completion_tokens == 26


def test_a_chat_that_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model="scripted", messages=USER, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == "Hello, world!"
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.total_tokens > 13
    assert chunks[-2].choices[0].finish_reason == "stop"


def test_tools(caller: openai.OpenAI) -> None:
    choice = caller.chat.completions.create(model="scripted", messages=USER, tools=TOOLS).choices[0]
    assert choice.finish_reason == "tool_calls"
    call: Any = (choice.message.tool_calls or [])[0]
    assert (call.type, call.function.name, call.function.arguments) == (
        "function",
        "weather",
        '{"city": "Rome"}',
    )
    history: Any = [
        *USER,
        choice.message.to_dict(),
        {"role": "tool", "tool_call_id": call.id, "content": "sunny"},
    ]
    again = caller.chat.completions.create(
        model="scripted", messages=history, tools=TOOLS, tool_choice="required"
    )
    assert again.choices[0].message.tool_calls


def test_tools_that_stream(caller: openai.OpenAI) -> None:
    with caller.chat.completions.stream(model="scripted", messages=USER, tools=TOOLS) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    call: Any = (message.tool_calls or [])[0]
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Rome"}')
    assert (message.content or "").strip() == "Let me look."


def test_functions_in_the_older_form(caller: openai.OpenAI) -> None:
    choice = caller.chat.completions.create(
        model="scripted", messages=USER, functions=[FUNCTION], function_call={"name": "weather"}
    ).choices[0]
    assert choice.finish_reason == "function_call"
    assert choice.message.function_call is not None
    assert choice.message.function_call.arguments == '{"city": "Rome"}'
    stream = caller.chat.completions.create(
        model="scripted", messages=USER, functions=[FUNCTION], stream=True
    )
    deltas = [c.choices[0] for c in stream]
    calls = [d.delta.function_call for d in deltas if d.delta.function_call]
    assert "".join(c.arguments or "" for c in calls) == '{"city": "Rome"}'
    assert deltas[-1].finish_reason == "function_call"
    history: Any = [
        *USER,
        choice.message.to_dict(),
        {"role": "function", "name": "weather", "content": "sunny"},
    ]
    assert caller.chat.completions.create(model="scripted", messages=history, functions=[FUNCTION]).choices


def test_text_completions(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="scripted", prompt=["a", "b"], max_tokens=5, echo=True)
    assert [c.text for c in answer.choices] == ["aHello", "bHello"]
    logprobs = client.completions.create(model="scripted", prompt="a", logprobs=1).choices[0].logprobs
    assert logprobs is not None
    assert "".join(logprobs.tokens or ()) == "Hello, world!"


def test_text_completions_that_stream() -> None:
    # the strict checks do not know that all chunks but the last have no finish_reason
    with live(scripted("Hello, world!")) as server, _client(server, is_strict=False) as client:
        chunks = list(client.completions.create(model="scripted", prompt="a", max_tokens=5, stream=True))
    assert "".join(c.choices[0].text for c in chunks) == "Hello"
    assert chunks[-1].choices[0].finish_reason == "length"


def test_models_and_embeddings() -> None:
    with live(scripted("x"), api_keys=("secret",)) as server, _client(server) as client:
        assert [m.id for m in client.models.list()] == ["scripted"]
        assert client.models.retrieve("scripted").owned_by == "qwenkit"
        plain = client.embeddings.create(model="scripted", input=["a", "bc"], encoding_format="float")
        # without a format the client asks for base64, which its own strict checks do not know
        with _client(server, is_strict=False) as lenient:
            packed = lenient.embeddings.create(model="scripted", input=["a", "bc"])
    for a, b in zip(packed.data, plain.data, strict=True):
        assert a.embedding == pytest.approx(b.embedding)


def test_errors_become_the_clients_own(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        client.chat.completions.create(model="scripted", messages=USER, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.NotFoundError, match="not served"):
        client.chat.completions.create(model="gpt", messages=USER)
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").models.list()
    with (
        live(scripted("x", max_jobs=0), api_keys=("secret",)) as full,
        _client(full) as other,
        pytest.raises(openai.RateLimitError),
    ):
        other.chat.completions.create(model="scripted", messages=USER)


def test_an_error_inside_a_stream_is_raised() -> None:
    reply = ["some", " text", RuntimeError("x")]
    with live(scripted(reply, delay=0.05), api_keys=("secret",)) as server, _client(server) as client:
        stream = client.chat.completions.create(model="scripted", messages=USER, stream=True)
        with pytest.raises(openai.APIError, match="error it does not know"):
            list(stream)


def test_every_field_of_the_client_is_on_the_page() -> None:
    page = (Path(__file__).parents[2] / "docs" / "serving.md").read_text(encoding="utf-8")
    for name in {*chat_params.CompletionCreateParamsBase.__annotations__, "stream"}:
        assert f"`{name}`" in page, f"{name} is missing in the table of docs/serving.md"
