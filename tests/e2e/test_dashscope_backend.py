"""Models named dashscope:NAME against our own endpoint: what is sent is what arrives, on the command line, too."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from qwenkit import LLM, Message, SamplingParams
from qwenkit.backends.dashscope_http import open_dashscope
from qwenkit.core.errors import InputError, PromptTooLongError, RemoteError, TokenizerError
from qwenkit.core.types import Constraint, Request, ToolCall, ToolSpec, collect
from tests.support.http import Live, live, scripted, until
from tests.support.live_server import LiveServer, live_server
from tests.support.process import QWENKIT, assert_one_sentence, environment, qwenkit

HI = (Message("user", "hi"),)
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'
THOUGHT = "<think>\nSeven days.\n</think>\n\nA week."
MODEL = ("-m", "dashscope:qwen-plus")


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(
        scripted("Hello, world!", thinking=True), served_names=("qwen-plus",), api_keys=("key",)
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def afresh(server: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of the service in the environment lead to the server, which begins its script again."""
    server.backend.restart(["Hello, world!"])
    monkeypatch.setenv("DASHSCOPE_HTTP_BASE_URL", f"{server.url}/api/v1")
    monkeypatch.setenv("DASHSCOPE_API_KEY", "key")


@pytest.mark.parametrize(
    "request_",
    [
        Request(
            prompt=HI,
            params=SamplingParams(
                n=2,
                max_tokens=9,
                temperature=0.5,
                top_k=4,
                top_p=0.9,
                repetition_penalty=1.1,
                presence_penalty=0.3,
                seed=3,
                stop=("x", "y"),
                logprobs=2,
            ),
        ),
        Request(prompt=HI, params=SamplingParams(top_k=0, stop_token_ids=(8, 10))),
        Request(
            prompt=(
                Message("system", "be brief"),
                Message("user", "what is 1+1?"),
                Message(
                    "assistant",
                    "",
                    reasoning="hm",
                    tool_calls=(ToolCall(id="c1", name="add", arguments='{"a": 1}'),),
                ),
                Message("tool", "2", tool_call_id="c1"),
                Message("assistant", "It"),
            ),
            continue_final=True,
            template_options={"enable_thinking": False},
        ),
        Request(prompt=HI, params=SamplingParams(constraint=Constraint(kind="json_object"))),
        Request(prompt=HI, params=SamplingParams(constraint=Constraint(kind="json_schema", value=SCHEMA))),
    ],
)
def test_a_request_arrives_as_it_was(server: Live, request_: Request) -> None:
    collect(list(open_dashscope("dashscope:qwen-plus").stream([request_])))
    arrived = server.backend.requests[-1]
    assert arrived.prompt == request_.prompt
    assert arrived.params == request_.params
    assert arrived.continue_final == request_.continue_final
    assert arrived.template_options == request_.template_options


def test_from_python(server: Live) -> None:
    with LLM("dashscope:qwen-plus") as llm:
        done = llm.chat("hi")
        assert (done.text, done.finish_reason) == ("Hello, world!", "stop")
        assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (21, 13)
        assert [c.text for c in llm.chat_batch(["a", "b"])] == ["Hello, world!"] * 2
        server.backend.restart([THOUGHT])
        done = llm.chat("hi", enable_thinking=True)
        assert (done.reasoning, done.text) == ("Seven days.", "A week.")
        server.backend.restart([CALL])
        (call,) = llm.chat("hi", tools=[ToolSpec(name="add", parameters=SCHEMA)]).tool_calls
        assert (call.name, call.arguments) == ("add", '{"a": 1}')
        assert server.backend.requests[-1].tools[0].name == "add"
        server.backend.restart(["first", "second"])
        done = llm.chat("hi", SamplingParams(n=2, logprobs=0))
        assert (done.text, done.others[0].text) == ("first", "second")
        assert len(done.logprobs) == len("first")


def test_what_only_a_model_here_can() -> None:
    with pytest.raises(InputError, match="max_context is for a model in this process"):
        LLM("dashscope:qwen-plus", max_context=100)
    with LLM("dashscope:qwen-plus") as llm:
        for ask in (lambda: llm.generate("hi"), lambda: llm.perplexity("some text")):
            with pytest.raises(TokenizerError, match="answers messages only; chat with it"):
                ask()


def test_errors_of_the_server_are_told(server: Live) -> None:
    with pytest.raises(RemoteError, match=r"does not have this model .*check its name"):
        LLM("dashscope:qwen-max").chat("hi")
    with pytest.raises(RemoteError, match="check the API key"):
        list(open_dashscope("qwen-plus", api_key="wrong").stream([Request(prompt=HI)]))
    with pytest.raises(PromptTooLongError, match="forget earlier turns"):
        LLM("dashscope:qwen-plus").chat("hi" * 3000)
    server.backend.restart([["Hel", RuntimeError("x")]])
    with pytest.raises(RemoteError, match="ended the answer with an error"):
        LLM("dashscope:qwen-plus").chat("hi")


def test_a_server_in_front() -> None:
    """As `qwenkit serve` with the name of a model of the service: every protocol leads to DashScope's."""
    weather = {"type": "function", "function": {"name": "add", "parameters": SCHEMA}}
    replies = [THOUGHT, THOUGHT, CALL, "Hello " * 500]
    asked: Any = {"model": "qwen-plus", "messages": [{"role": "user", "content": "hi"}]}
    with (
        live(scripted(*replies, thinking=True, delay=0.01), served_names=("qwen-plus",)) as behind,
        live(open_dashscope("qwen-plus", url=behind.url)) as front,
    ):
        message = front.ask("/v1/chat/completions", asked).json["choices"][0]["message"]
        assert (message["reasoning_content"], message["content"]) == ("Seven days.", "A week.")
        path = "/api/v1/services/aigc/text-generation/generation"
        body = {"model": "qwen-plus", "input": {"messages": asked["messages"]}}
        wants = {"result_format": "message", "enable_thinking": True, "stop": [[97, 98]]}
        answer = front.ask(path, body | {"parameters": wants}).json
        assert answer["output"]["choices"][0]["message"]["reasoning_content"] == "Seven days."
        assert behind.backend.requests[-1].params.stop == ("ab",)
        choice = front.ask("/v1/chat/completions", asked | {"tools": [weather]}).json["choices"][0]
        assert choice["message"]["tool_calls"][0]["function"]["arguments"] == '{"a": 1}'
        # a client that hangs up ends the reply behind the server in front
        connection = front.connect()
        connection.request(
            "POST",
            "/v1/chat/completions",
            json.dumps(asked | {"stream": True}),
            {"content-type": "application/json"},
        )
        connection.getresponse().read(50)
        connection.close()
        until(lambda: behind.backend.num_aborted == 1)


def test_the_command_line(server: Live) -> None:
    done = qwenkit("chat", *MODEL, "hi")
    assert (done.returncode, done.stdout) == (0, "Hello, world!\n"), done.stderr
    server.backend.restart([THOUGHT])
    shown = qwenkit("chat", *MODEL, "hi", "--no-think", "--temperature", "0.5").stdout
    assert shown == f"{THOUGHT}\n"
    request = server.backend.requests[-1]
    assert (request.template_options, request.params.temperature) == ({"enable_thinking": False}, 0.5)


@pytest.mark.parametrize(
    ("arguments", "changes", "words"),
    [
        (("chat", *MODEL, "hi"), {"DASHSCOPE_API_KEY": None}, "set DASHSCOPE_API_KEY"),
        (
            ("chat", *MODEL, "hi"),
            {"DASHSCOPE_API_KEY": None, "DASHSCOPE_HTTP_BASE_URL": None},
            "dashscope:qwen-plus needs an API key of DashScope; set DASHSCOPE_API_KEY",
        ),
        (("chat", "-m", "dashscope:qwen-max", "hi"), {}, "does not have this model"),
        (("chat", *MODEL, "hi", "--device", "cpu"), {}, "--device is for a model in this process"),
        (("generate", *MODEL, "hi"), {}, "answers messages only"),
        (("serve", *MODEL, "--max-batch-size", "4", "--port", "0"), {}, "--max-batch-size is for a model"),
    ],
)
def test_one_sentence_each(arguments: tuple[str, ...], changes: dict[str, str | None], words: str) -> None:
    assert words in assert_one_sentence(qwenkit(*arguments, env=environment(**changes)))


def test_a_key_on_the_command_line() -> None:
    done = qwenkit("chat", *MODEL, "hi", "--api-key", "key", env=environment(DASHSCOPE_API_KEY=None))
    assert (done.returncode, done.stdout) == (0, "Hello, world!\n"), done.stderr


def test_serving_it() -> None:
    with live_server((QWENKIT, "serve", *MODEL, "--port", "0", "--no-page"), model="qwen-plus") as found:
        found_text = LLM.from_backend(open_dashscope("qwen-plus", url=found.url)).chat("hi").text
    assert found_text == "Hello, world!"


def test_the_real_model(smollm2_server: LiveServer) -> None:
    params = SamplingParams(temperature=0, max_tokens=12)
    texts = set()
    for n in (1, 2):
        backend = open_dashscope(smollm2_server.model, url=smollm2_server.url, api_key=smollm2_server.key)
        texts |= {
            c.text
            for c in LLM.from_backend(backend).chat_batch(["What is the capital of France?"] * n, params)
        }
    assert len(texts) == 1
    assert "Paris" in texts.pop()
