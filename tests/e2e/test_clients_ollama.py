"""Ollama's own client, and LangChain's for it, against a server process with a real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_ollama import ChatOllama
from ollama import AsyncClient, Client, ResponseError

from qwenkit.core.errors import NumericsError
from tests.support.http import Live, live, scripted
from tests.support.live_server import LiveServer

MODEL = "smollm2-135m"
ASKED: Any = [{"role": "user", "content": "What is the capital of France?"}]
GREEDY = {"temperature": 0, "num_predict": 12}
TOKENS = 8
"""Of the answer, its end token included."""
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1, "b": 2}}\n</tool_call>'
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}


def add(a: int, b: int) -> int:
    """Adds two numbers.

    Args:
        a: the first number
        b: the second number
    """
    return a + b


@pytest.fixture(scope="module")
def client(smollm2_server: LiveServer) -> Iterator[Client]:
    with Client(smollm2_server.url, headers={"Authorization": f"Bearer {smollm2_server.key}"}) as found:
        yield found


@pytest.fixture(scope="module")
def wanted(smollm2_server: LiveServer) -> str:
    """The answer over OpenAI's protocol."""
    import openai

    with openai.OpenAI(base_url=smollm2_server.base_url, api_key=smollm2_server.key) as other:
        answer = other.chat.completions.create(model=MODEL, messages=ASKED, temperature=0, max_tokens=12)
    return answer.choices[0].message.content or ""


def test_chats(client: Client, wanted: str) -> None:
    answer = client.chat(MODEL, ASKED, options=GREEDY)
    assert answer.message.content == wanted
    assert "Paris" in wanted
    assert (answer.done_reason, answer.eval_count) == ("stop", TOKENS)
    cut = client.chat(MODEL, ASKED, options={"temperature": 0, "num_predict": 3})
    assert (cut.done_reason, cut.eval_count) == ("length", 3)
    assert answer.eval_duration is not None
    assert answer.prompt_eval_duration is not None
    assert answer.total_duration is not None
    assert 0 < answer.eval_duration + answer.prompt_eval_duration < answer.total_duration
    parts = list(client.chat(f"{MODEL}:latest", ASKED, options=GREEDY, stream=True))
    assert "".join(part.message.content or "" for part in parts) == wanted
    assert parts[-1].done
    assert (parts[-1].eval_count, parts[-1].prompt_eval_count) == (TOKENS, answer.prompt_eval_count)


def test_the_asynchronous_client(smollm2_server: LiveServer, wanted: str) -> None:
    headers = {"Authorization": f"Bearer {smollm2_server.key}"}

    async def run() -> list[str | None]:
        async with AsyncClient(smollm2_server.url, headers=headers) as other:
            whole = await other.chat(MODEL, ASKED, options=GREEDY)
            parts = [part async for part in await other.chat(MODEL, ASKED, options=GREEDY, stream=True)]
            prompt = ASKED[0]["content"]
            single = await other.generate(MODEL, prompt, options=GREEDY)
            names = [model.model for model in (await other.list()).models]
        assert names == [f"{MODEL}:latest"]
        streamed = "".join(part.message.content or "" for part in parts)
        return [whole.message.content, streamed, single.response]

    assert asyncio.run(run()) == [wanted] * 3


def test_prompts(client: Client, wanted: str) -> None:
    prompt = ASKED[0]["content"]
    first = client.generate(MODEL, prompt, options=GREEDY)
    assert first.response == wanted
    assert (
        "".join(p.response or "" for p in client.generate(MODEL, prompt, options=GREEDY, stream=True))
        == wanted
    )
    raw = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    assert client.generate(MODEL, raw, raw=True, options=GREEDY).context is None
    assert first.context is not None
    more = client.generate(MODEL, "And of Italy?", context=first.context, options=GREEDY)
    assert more.context is not None
    assert list(more.context[: len(first.context)]) == list(first.context)
    assert more.prompt_eval_count is not None
    assert more.prompt_eval_count > len(first.context)


def test_seeds(client: Client) -> None:
    def draw(seed: int) -> str | None:
        options = {"temperature": 1.0, "seed": seed, "num_predict": 12}
        return client.chat(
            MODEL, [{"role": "user", "content": "Tell me a story."}], options=options
        ).message.content

    assert draw(1) == draw(1) != draw(2)


def test_structured_output(client: Client) -> None:
    answer = client.chat(MODEL, ASKED, format=SCHEMA, options={"num_predict": 60})
    assert set(json.loads(answer.message.content or "")) == {"city"}
    loose = client.generate(
        MODEL, "A city as JSON.", format="json", options={"num_predict": 30, "temperature": 0}
    )
    if loose.done_reason == "stop":  # a small model may write without end
        assert isinstance(json.loads(loose.response or ""), dict)


def test_logprobs(client: Client, wanted: str) -> None:
    answer = client.chat(MODEL, ASKED, options=GREEDY, logprobs=True, top_logprobs=2)
    found = answer.logprobs or []
    assert "".join(each.token for each in found) == wanted + "<|im_end|>"
    assert all(each.logprob <= 0 and len(each.top_logprobs or ()) == 2 for each in found)


def test_models(client: Client) -> None:
    (model,) = client.list().models
    assert model.model == f"{MODEL}:latest"
    assert model.details is not None
    assert (model.details.family, model.details.parameter_size) == ("llama", "134.5M")
    (loaded,) = client.ps().models
    assert loaded.context_length == 2048
    shown = client.show(MODEL)
    assert shown.modelinfo is not None
    assert shown.modelinfo["llama.context_length"] == 2048
    assert "im_start" in (shown.template or "")
    assert shown.capabilities == ["completion", "tools"]


def test_vectors(client: Client) -> None:
    answer = client.embed(MODEL, ["a cat", "a dog", "stock market"])
    first, second, third = answer.embeddings

    def similarity(a: Any, b: Any) -> float:
        return float(sum(x * y for x, y in zip(a, b, strict=True)))

    assert similarity(first, first) == pytest.approx(1, abs=1e-3)
    assert similarity(first, second) > similarity(first, third)
    assert client.embeddings(MODEL, "a cat").embedding == pytest.approx(first, abs=1e-5)
    with pytest.raises(ResponseError, match="2048"):
        client.embed(MODEL, "word " * 3000, truncate=False)


def test_loading_and_what_is_refused(client: Client) -> None:
    assert client.generate(MODEL).done_reason == "load"
    assert client.chat(MODEL, keep_alive=0).done_reason == "unload"
    for ask in (client.pull, client.push, client.delete):
        with pytest.raises(ResponseError, match="not changed") as refused:
            ask(MODEL)
        assert refused.value.status_code == 403
    with pytest.raises(ResponseError, match="not found") as missing:
        client.chat("llama3", ASKED)
    assert missing.value.status_code == 404
    with pytest.raises(ResponseError, match="num_ctx"):
        client.chat(MODEL, ASKED, options={"num_ctx": 100_000})


@pytest.fixture(scope="module")
def caller() -> Iterator[Live]:
    """Its model always calls a tool."""
    with live(scripted("Let me see. " + CALL)) as server:
        yield server


@pytest.mark.parametrize("stream", [False, True])
def test_tools(caller: Live, stream: bool) -> None:
    with Client(caller.url) as client:
        asked = [{"role": "user", "content": "1 + 2?"}]
        answer: Any = client.chat("scripted", asked, tools=[add], stream=stream)
        parts = list(answer) if stream else [answer]
        calls = [call for part in parts for call in part.message.tool_calls or ()]
        assert [(call.function.name, call.function.arguments) for call in calls] == [
            ("add", {"a": 1, "b": 2})
        ]
        seen = caller.backend.requests[-1].tools[0]
        assert (seen.name, set(seen.parameters["properties"])) == ("add", {"a", "b"})
        message = next(part.message for part in parts if part.message.tool_calls)
        result = {"role": "tool", "content": str(add(1, 2)), "tool_name": "add"}
        client.chat("scripted", [*asked, message, result], tools=[add])
    roles = [message.role for message in caller.backend.requests[-1].prompt]
    assert roles == ["user", "assistant", "tool"]


def test_thoughts() -> None:
    with (
        live(scripted("<think>\nHm.\n</think>\n\nYes.", thinking=True)) as server,
        Client(server.url) as client,
    ):
        answer = client.chat("scripted", ASKED, think=True)
        assert (answer.message.thinking or "").strip() == "Hm."
        assert answer.message.content == "Yes."
        single = list(client.generate("scripted", "hi", think="high", stream=True))
        assert "".join(part.thinking or "" for part in single).strip() == "Hm."
        assert "".join(part.response or "" for part in single) == "Yes."


def test_an_error_in_mid_stream() -> None:
    failing = scripted(["He", NumericsError("logits hold NaN")])
    with live(failing) as server, Client(server.url) as client, pytest.raises(ResponseError, match="NaN"):
        list(client.chat("scripted", ASKED, stream=True))


def test_langchain(smollm2_server: LiveServer, wanted: str) -> None:
    headers = {"Authorization": f"Bearer {smollm2_server.key}"}
    model = ChatOllama(
        model=MODEL,
        base_url=smollm2_server.url,
        temperature=0,
        num_predict=12,
        validate_model_on_init=True,
        client_kwargs={"headers": headers},
    )
    answer = model.invoke(ASKED[0]["content"])
    assert answer.content == wanted
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == TOKENS
    assert "".join(str(piece.content) for piece in model.stream(ASKED[0]["content"])) == wanted
    model._client._client.close()
