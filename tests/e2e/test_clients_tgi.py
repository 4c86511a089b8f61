"""The hub's own client, as it is used with text-generation-inference, against a server process with a real model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from huggingface_hub import AsyncInferenceClient, InferenceClient, close_session
from huggingface_hub.errors import GenerationError, OverloadedError, ValidationError

from qwenkit.core.errors import NumericsError
from tests.support.http import live, scripted
from tests.support.live_server import LiveServer

ASKED: Any = [{"role": "user", "content": "What is the capital of France?"}]
PROMPT = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
TOOL: Any = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 12}},
    "required": ["city"],
    "additionalProperties": False,
}


END = "<|im_end|>"


@pytest.fixture(scope="module")
def client(smollm2_server: LiveServer) -> Iterator[InferenceClient]:
    with InferenceClient(smollm2_server.url, token=smollm2_server.key, provider="hf-inference") as found:
        yield found
    close_session()


def ask(server: LiveServer, path: str, body: Any, **options: Any) -> requests.Response:
    headers = {"Authorization": f"Bearer {server.key}"}
    return requests.post(server.url + path, json=body, headers=headers, timeout=60, **options)


def continued(server: LiveServer, prompt: str = PROMPT, **fields: Any) -> str:
    """What the text completions of OpenAI's protocol make of a prompt."""
    body = {"prompt": prompt, "max_tokens": 12, "temperature": 0, "repetition_penalty": 1.0} | fields
    text = ask(server, "/v1/completions", body).json()["choices"][0]["text"]
    assert isinstance(text, str)
    return text


def test_texts_are_those_of_other_protocols(client: InferenceClient, smollm2_server: LiveServer) -> None:
    text = client.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
    assert text == continued(smollm2_server)
    assert "Paris" in text
    assert client.text_generation(PROMPT, max_new_tokens=12) == PROMPT + text
    drawn = client.text_generation(PROMPT, max_new_tokens=12, seed=5, do_sample=True, return_full_text=False)
    same = {"seed": 5, "temperature": 1, "top_p": 1, "top_k": 0, "min_p": 0}
    assert drawn == continued(smollm2_server, **same)
    assert drawn != text


def test_details(client: InferenceClient) -> None:
    answer = client.text_generation(
        PROMPT,
        details=True,
        decoder_input_details=True,
        top_n_tokens=2,
        max_new_tokens=30,
        return_full_text=False,
    )
    details = answer.details
    assert details is not None
    assert details.finish_reason == "eos_token"
    assert details.generated_tokens == len(details.tokens)
    assert details.tokens[-1].special
    assert "".join(t.text for t in details.tokens if not t.special) == answer.generated_text
    assert "".join(t.text for t in details.prefill) == PROMPT
    assert details.prefill[0].logprob is None
    assert all(t.logprob <= 0 for t in details.tokens)
    assert details.top_tokens is not None
    assert [top[0]["id"] for top in details.top_tokens] == [t.id for t in details.tokens]  # greedy


def test_streams(client: InferenceClient) -> None:
    whole = client.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
    assert "".join(client.text_generation(PROMPT, max_new_tokens=12, stream=True)) == whole + END
    events = list(client.text_generation(PROMPT, max_new_tokens=30, stream=True, details=True))
    last = events[-1]
    assert [e.index for e in events] == list(range(1, len(events) + 1))
    assert last.token.special
    assert last.generated_text == PROMPT + "".join(e.token.text for e in events[:-1])
    assert last.details is not None
    assert last.details.finish_reason == "eos_token"
    assert last.details.generated_tokens == len(events)
    assert all(e.generated_text is None for e in events[:-1])


def test_stops_stay_in_the_text_and_prompts_are_cut(
    client: InferenceClient, smollm2_server: LiveServer
) -> None:
    answer = client.text_generation(
        PROMPT, stop=[" capital"], details=True, max_new_tokens=20, return_full_text=False
    )
    assert answer.generated_text.endswith(" capital")
    assert answer.details is not None
    assert answer.details.finish_reason == "stop_sequence"
    ids = ask(smollm2_server, "/tokenize", {"prompt": PROMPT}).json()["tokens"]
    cut = client.text_generation(
        PROMPT, truncate=4, details=True, decoder_input_details=True, max_new_tokens=1
    )
    assert cut.details is not None
    assert [t.id for t in cut.details.prefill] == ids[-4:]


def test_the_best_of_several(client: InferenceClient, smollm2_server: LiveServer) -> None:
    answer = client.text_generation(
        PROMPT,
        best_of=3,
        do_sample=True,
        temperature=1.5,
        details=True,
        max_new_tokens=6,
        return_full_text=False,
    )
    details = answer.details
    assert details is not None
    others = details.best_of_sequences or []
    assert len(others) == 2

    def mean(tokens: Any) -> float:
        return float(sum(t.logprob for t in tokens) / len(tokens))

    assert mean(details.tokens) >= max(mean(each.tokens) for each in others)
    again = client.text_generation(
        PROMPT, do_sample=True, temperature=1.5, seed=details.seed, max_new_tokens=6, return_full_text=False
    )
    assert again == answer.generated_text


@pytest.mark.parametrize("kind", ["json", "regex"])
def test_grammars(client: InferenceClient, kind: str) -> None:
    grammar: Any = {"type": kind, "value": SCHEMA if kind == "json" else "(Rome|Oslo)!"}
    text = client.text_generation("A city: ", grammar=grammar, max_new_tokens=40, return_full_text=False)
    assert set(json.loads(text)) == {"city"} if kind == "json" else text in ("Rome!", "Oslo!")


def test_chats(client: InferenceClient, smollm2_server: LiveServer) -> None:
    body = {"messages": ASKED, "max_tokens": 12, "temperature": 0}
    wanted = ask(smollm2_server, "/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    answer = client.chat_completion(ASKED, max_tokens=12, temperature=0)
    assert answer.choices[0].message.content == wanted
    named = client.chat_completion(ASKED, model=f"{smollm2_server.url}/v1", max_tokens=12, temperature=0)
    assert named.choices[0].message.content == wanted
    chunks = list(client.chat_completion(ASKED, max_tokens=12, temperature=0, stream=True))
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == wanted
    form: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": SCHEMA}}
    formed = client.chat_completion(ASKED, max_tokens=40, response_format=form)
    assert set(json.loads(formed.choices[0].message.content or "")) == {"city"}


def test_the_asynchronous_client(client: InferenceClient, smollm2_server: LiveServer) -> None:
    async def run() -> tuple[str, str]:
        async with AsyncInferenceClient(smollm2_server.url, token=smollm2_server.key) as other:
            whole = await other.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
            stream = await other.text_generation(PROMPT, max_new_tokens=12, stream=True)
            return whole, "".join([piece async for piece in stream])

    whole, streamed = asyncio.run(run())
    assert whole == client.text_generation(PROMPT, max_new_tokens=12, return_full_text=False)
    assert streamed == whole + END


def test_what_the_server_is(client: InferenceClient) -> None:
    assert client.get_endpoint_info()["model_id"] == "smollm2-135m"
    assert client.health_check()


def test_errors_are_those_the_client_knows(client: InferenceClient) -> None:
    with pytest.raises(ValidationError, match="temperature"):
        client.text_generation("hi", temperature=-1)
    with pytest.raises(ValidationError, match="watermark"):
        client.text_generation("hi", watermark=True)
    with pytest.raises(ValidationError, match="stream"):
        list(client.text_generation("hi", best_of=2, do_sample=True, stream=True))
    full = scripted("x", max_jobs=0)
    with live(full) as server, InferenceClient(server.url) as other, pytest.raises(OverloadedError):
        other.text_generation("hi")
    failing = scripted(["He", NumericsError("logits hold NaN")])
    with live(failing) as server, InferenceClient(server.url) as other, pytest.raises(GenerationError):
        list(other.text_generation("hi", stream=True))


@pytest.mark.parametrize("choice", ["auto", {"function": {"name": "weather"}}])
def test_tools_of_the_chat(choice: Any) -> None:
    with live(scripted(CALL)) as server, InferenceClient(server.url) as client:
        answer = client.chat_completion(ASKED, tools=[TOOL], tool_choice=choice)
    (call,) = answer.choices[0].message.tool_calls or []
    assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"city": "Rome"})


@pytest.mark.parametrize(("query", "delimiter"), [("", b"\0"), ("?delimiter=newline", b"\n")])
def test_clients_of_vllms_demo(smollm2_server: LiveServer, query: str, delimiter: bytes) -> None:
    text = continued(smollm2_server)
    # as its example client sends and reads it
    body = {"prompt": PROMPT, "n": 2, "use_beam_search": False, "temperature": 0.0, "max_tokens": 12}
    assert ask(smollm2_server, "/generate", body).json() == {"text": [PROMPT + text] * 2}
    answer = ask(smollm2_server, "/generate" + query, body | {"stream": True}, stream=True)
    lines = answer.iter_lines(chunk_size=8192, decode_unicode=False, delimiter=delimiter)
    outputs = [json.loads(chunk.decode("utf-8"))["text"] for chunk in lines if chunk]
    assert outputs[-1] == [PROMPT + text] * 2
    assert all((PROMPT + text).startswith(each) for output in outputs for each in output)


def test_clients_of_vllms_demo_draw_the_same(smollm2_server: LiveServer) -> None:
    body = {"prompt": PROMPT, "max_tokens": 12, "seed": 9, "temperature": 0.8, "top_p": 0.9}
    same = {"seed": 9, "temperature": 0.8, "top_p": 0.9, "top_k": 0, "min_p": 0}
    (text,) = ask(smollm2_server, "/generate", body).json()["text"]
    assert text == PROMPT + continued(smollm2_server, **same)
