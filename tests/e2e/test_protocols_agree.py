"""A conversation held over each protocol in turn: the same words for the same seed, with a real model."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import pytest

from tests.support.live_server import LiveServer

Turns: TypeAlias = list[dict[str, str]]
"""role and content of each."""
SYSTEM = "You are a poet who answers in one short sentence."
QUESTIONS = ("What is the sea?", "And the moon?", "Which of them is nearer?")
MAX_TOKENS = 10
SEEDED = {"temperature": 0.9, "top_p": 0.95, "seed": 1234}
GREEDY = {"temperature": 0.0, "top_p": 1.0, "seed": 1}


class Asker:
    """Posts JSON to a server, as curl would."""

    def __init__(self, server: LiveServer) -> None:
        self._server, self.model = server, server.model

    def post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> bytes:
        """The answer's body; anything but 200 is a failure."""
        connection = http.client.HTTPConnection("127.0.0.1", self._server.port, timeout=60)
        sent = {"content-type": "application/json", "authorization": f"Bearer {self._server.key}"}
        try:
            connection.request("POST", path, json.dumps(body).encode(), sent | (headers or {}))
            response = connection.getresponse()
            data = response.read()
        finally:
            connection.close()
        assert response.status == 200, data
        return data

    def value(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
        """The JSON that comes back."""
        return json.loads(self.post(path, body, headers))

    def events(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Iterator[Any]:
        """The values of the events that come back, one after the other."""
        for line in self.post(path, body, headers).decode().splitlines():
            data = line.removeprefix("data:").strip()
            if line.startswith("data:") and data != "[DONE]":
                yield json.loads(data)


def openai(ask: Asker, turns: Turns, settings: dict[str, Any], is_streamed: bool) -> str:
    body = {"messages": [{"role": "system", "content": SYSTEM}, *turns], "max_tokens": MAX_TOKENS, **settings}
    path = "/v1/chat/completions"
    if not is_streamed:
        return str(ask.value(path, body)["choices"][0]["message"]["content"])
    found = ask.events(path, body | {"stream": True})
    return "".join(event["choices"][0]["delta"].get("content") or "" for event in found)


def responses(ask: Asker, turns: Turns, settings: dict[str, Any], is_streamed: bool) -> str:
    body = {"instructions": SYSTEM, "input": turns, "max_output_tokens": MAX_TOKENS, **settings}
    if not is_streamed:
        return str(ask.value("/v1/responses", body)["output"][0]["content"][0]["text"])
    found = ask.events("/v1/responses", body | {"stream": True})
    return "".join(event["delta"] for event in found if event["type"] == "response.output_text.delta")


def anthropic(ask: Asker, turns: Turns, settings: dict[str, Any], is_streamed: bool) -> str:
    body = {"system": SYSTEM, "messages": turns, "max_tokens": MAX_TOKENS, **settings}
    if not is_streamed:
        return str(ask.value("/v1/messages", body)["content"][0]["text"])
    found = ask.events("/v1/messages", body | {"stream": True})
    return "".join(event["delta"]["text"] for event in found if event["type"] == "content_block_delta")


def dashscope(ask: Asker, turns: Turns, settings: dict[str, Any], is_streamed: bool) -> str:
    messages = [{"role": "system", "content": SYSTEM}, *turns]
    parameters = {
        "result_format": "message",
        "incremental_output": True,
        "max_tokens": MAX_TOKENS,
        **settings,
    }
    body = {"model": ask.model, "input": {"messages": messages}, "parameters": parameters}
    path = "/api/v1/services/aigc/text-generation/generation"
    if not is_streamed:
        return str(ask.value(path, body)["output"]["choices"][0]["message"]["content"])
    found = ask.events(path, body, {"X-DashScope-SSE": "enable"})
    return "".join(event["output"]["choices"][0]["message"]["content"] for event in found)


def as_text(turns: Turns) -> str:
    """The conversation as the model's template writes it, for protocols that continue texts."""
    said = [{"role": "system", "content": SYSTEM}, *turns]
    written = "".join(f"<|im_start|>{turn['role']}\n{turn['content']}<|im_end|>\n" for turn in said)
    return written + "<|im_start|>assistant\n"


def tgi(ask: Asker, turns: Turns, settings: dict[str, Any], is_streamed: bool) -> str:
    body = {"inputs": as_text(turns), "parameters": {"max_new_tokens": MAX_TOKENS, **settings}}
    if not is_streamed:
        return str(ask.value("/generate", body)["generated_text"])
    found = ask.events("/generate_stream", body)
    return "".join(event["token"]["text"] for event in found if not event["token"]["special"])


def vllm_demo(ask: Asker, turns: Turns, settings: dict[str, Any], is_streamed: bool) -> str:
    prompt = as_text(turns)
    body = {"prompt": prompt, "max_tokens": MAX_TOKENS, "stream": is_streamed, **settings}
    last = ask.post("/generate", body).strip(b"\0").split(b"\0")[-1]
    return str(json.loads(last)["text"][0]).removeprefix(prompt)


def ollama(ask: Asker, turns: Turns, settings: dict[str, Any], is_streamed: bool) -> str:
    said = [{"role": "system", "content": SYSTEM}, *turns]
    options = {"num_predict": MAX_TOKENS, **settings}
    body = {"model": "smollm2-135m", "messages": said, "stream": is_streamed, "options": options}
    lines = ask.post("/api/chat", body).decode().splitlines()
    return "".join(json.loads(line)["message"]["content"] for line in lines)


@dataclass(frozen=True)
class Row:
    """A protocol, and how one of its clients has a conversation answered."""

    name: str
    ask: Callable[[Asker, Turns, dict[str, Any], bool], str]


ROWS = [
    Row("openai", openai),
    Row("responses", responses),
    Row("anthropic", anthropic),
    Row("dashscope", dashscope),
    Row("tgi", tgi),
    Row("vllm-demo", vllm_demo),
    Row("ollama", ollama),
]


def held(row: Row, server: LiveServer, settings: dict[str, Any], *, is_streamed: bool) -> list[str]:
    """The answers of a whole conversation."""
    turns: Turns = []
    for question in QUESTIONS:
        turns.append({"role": "user", "content": question})
        answer = row.ask(Asker(server), turns, settings, is_streamed)
        turns.append({"role": "assistant", "content": answer})
    return [turn["content"] for turn in turns[1::2]]


@pytest.fixture(scope="module")
def greedy(smollm2_server: LiveServer) -> list[str]:
    """The conversation over the chat protocol."""
    answers = held(ROWS[0], smollm2_server, GREEDY, is_streamed=False)
    assert all(answers)
    return answers


@pytest.fixture(scope="module")
def seeded(smollm2_server: LiveServer) -> list[str]:
    """The same, sampled."""
    return held(ROWS[0], smollm2_server, SEEDED, is_streamed=False)


@pytest.mark.parametrize("row", ROWS[1:], ids=lambda row: row.name)
def test_whole_answers(row: Row, smollm2_server: LiveServer, greedy: list[str]) -> None:
    assert held(row, smollm2_server, GREEDY, is_streamed=False) == greedy


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_streams(row: Row, smollm2_server: LiveServer, seeded: list[str]) -> None:
    assert held(row, smollm2_server, SEEDED, is_streamed=True) == seeded


def test_seeds_matter(smollm2_server: LiveServer) -> None:
    turns = [{"role": "user", "content": QUESTIONS[0]}]
    found = {openai(Asker(smollm2_server), turns, SEEDED | {"seed": n}, False) for n in range(4)}
    assert len(found) > 1


def test_calls_of_tools(smollm2_server: LiveServer) -> None:
    """The function that must be called is called with the same arguments, however it was described."""
    city = {"type": "string", "enum": ["Rome", "Oslo", "Lima"]}
    schema = {
        "type": "object",
        "properties": {"city": city, "days": {"type": "integer", "minimum": 1, "maximum": 99}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    named, turns = (
        {"name": "weather", "description": "Tells the weather."},
        [{"role": "user", "content": "How will the weather in Lima be this week?"}],
    )
    ask = Asker(smollm2_server)
    chat = ask.value(
        "/v1/chat/completions",
        {
            "messages": turns,
            "tools": [{"type": "function", "function": named | {"parameters": schema}}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            **GREEDY,
        },
    )
    (call,) = chat["choices"][0]["message"]["tool_calls"]
    expected = json.loads(call["function"]["arguments"])
    response = ask.value(
        "/v1/responses",
        {
            "input": turns,
            "tools": [{"type": "function", **named, "parameters": schema}],
            "tool_choice": "required",
            "parallel_tool_calls": False,
            **GREEDY,
        },
    )
    assert json.loads(response["output"][0]["arguments"]) == expected
    message = ask.value(
        "/v1/messages",
        {
            "messages": turns,
            "max_tokens": 200,
            "tools": [named | {"input_schema": schema}],
            "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
            **GREEDY,
        },
    )
    assert message["content"][0]["input"] == expected
