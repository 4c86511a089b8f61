"""DashScope's protocol: what its parameters mean, both forms of an answer, both ways of streaming."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qwenkit.core.errors import NumericsError
from qwenkit.core.types import Message
from qwenkit.server.dashscope.fields import REFUSED, REFUSED_INPUT
from qwenkit.server.dashscope.handlers import REFUSED_HEADERS
from qwenkit.server.dashscope.reply import _CODES, _EMPTY
from qwenkit.server.dashscope.schema import (
    DashScopeEmbeddingParameters,
    DashScopeInput,
    DashScopeMessage,
    DashScopeParameters,
)
from tests.support.byte_tokenizer import ByteTokenizer
from tests.support.http import Answer, Live, live, scripted

PATH = "/api/v1/services/aigc/text-generation/generation"
EMBEDDING = "/api/v1/services/embeddings/text-embedding/text-embedding"
HI = [{"role": "user", "content": "hi"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
THOUGHT = "<think>\nSeven days.\n</think>\n\nA week."


def ask(
    server: Live, headers: dict[str, str] | None = None, messages: Any = None, **parameters: Any
) -> Answer:
    body = {"model": "scripted", "input": {"messages": messages or HI}, "parameters": parameters}
    return server.ask(PATH, body, headers=headers)


def stream(server: Live, **parameters: Any) -> list[dict[str, Any]]:
    """The values of the events of an answer, once their form is right."""
    answer = ask(server, {"X-DashScope-SSE": "enable"}, **parameters)
    assert answer.headers["content-type"].startswith("text/event-stream")
    return values(answer)


def values(answer: Answer) -> list[dict[str, Any]]:
    *events, last = answer.body.decode().split("\n\n")
    assert last == ""
    found = []
    for n, event in enumerate(events, 1):
        match = re.fullmatch(rf"id:{n}\nevent:(\w+)\n:HTTP_STATUS/(\d+)\n(?:status:\2\n)?data:(.*)", event)
        assert match is not None, event
        value = json.loads(match[3])
        assert (match[1], match[2]) == ("result", "200") or (match[1] == "error" and "code" in value)
        assert value["request_id"] == answer.headers["x-request-id"]
        found.append(value)
    return found


def choices(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The one choice of every event."""
    found = []
    for event in events:
        (choice,) = event["output"]["choices"]
        found.append(choice)
    return found


def params(server: Live, **parameters: Any) -> Any:
    """The settings that a request gives the engine."""
    assert ask(server, **parameters).status == 200
    return server.backend.requests[-1].params


@pytest.fixture(scope="module")
def slow() -> Iterator[Live]:
    """Leaves time between the pieces of a reply, so that each comes by itself."""
    with live(scripted("Hello, world!", delay=0.02)) as running:
        yield running


def test_a_text(server: Live) -> None:
    answer = ask(server)
    assert answer.json == {
        "output": {"text": "Hello, world!", "finish_reason": "stop"},
        "usage": {
            "input_tokens": 21,
            "output_tokens": 13,
            "total_tokens": 34,
            "prompt_tokens_details": {"cached_tokens": 0},
        },
        "request_id": answer.headers["x-request-id"],
    }


def test_a_message(server: Live) -> None:
    (choice,) = ask(server, result_format="message").json["output"]["choices"]
    assert choice == {
        "index": 0,
        "finish_reason": "stop",
        "message": {"role": "assistant", "content": "Hello, world!"},
    }
    assert ask(server, result_format="message", max_tokens=4).json["output"]["choices"][0] == {
        "index": 0,
        "finish_reason": "length",
        "message": {"role": "assistant", "content": "Hell"},
    }


def test_a_prompt_and_what_came_before_it(server: Live) -> None:
    def messages(**given: Any) -> tuple[Message, ...]:
        assert server.ask(PATH, {"model": "scripted", "input": given}).status == 200
        found: tuple[Message, ...] = server.backend.requests[-1].prompt
        return found

    assert messages(prompt="hi") == (Message("user", "hi"),)
    past = [{"user": "a", "bot": "b"}]
    expected = (Message("user", "a"), Message("assistant", "b"), Message("user", "hi"))
    assert messages(prompt="hi", history=past) == expected
    assert messages(prompt="hi", history=[]) == expected[2:]


def test_messages_of_all_kinds(server: Live) -> None:
    call = {"index": 0, "id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    given = [
        {"role": "system", "content": [{"text": "Be"}, {"type": "text", "text": "kind."}]},
        {"role": "user", "content": "hi"},
        {
            "role": "assistant",
            "content": "",
            "reasoning_content": "Hm.",
            "tool_calls": [call, call | {"id": "c2"}],
        },
        {"role": "tool", "content": "sunny", "name": "weather"},
        {"role": "tool", "content": "dry", "tool_call_id": "c2"},
        {"role": "assistant", "content": "It is", "partial": True},
    ]
    answer = ask(server, messages=given)
    assert answer.status == 200, answer.body
    assert "x-ignored-fields" not in answer.headers
    request = server.backend.requests[-1]
    system, user, called, first, second, last = request.prompt
    assert (system.content, user.content) == ("Be\nkind.", "hi")
    assert (called.reasoning, called.tool_calls[0].name) == ("Hm.", "weather")
    assert (first.name, second.tool_call_id, last.content) == ("weather", "c2", "It is")
    assert request.continue_final
    ask(server, messages=given[:-1])
    assert not server.backend.requests[-1].continue_final


def test_settings_reach_the_engine(server: Live) -> None:
    sent = {
        "max_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "seed": 99,
        "n": 2,
    }
    found = params(server, **sent, result_format="message")
    assert {name: getattr(found, name) for name in sent} == sent
    assert params(server, top_k=101).top_k == 0
    assert params(server, top_k=100).top_k == 100
    assert params(server, top_k=None, seed=None).top_k is None
    assert params(server, seed=2**31 - 1).seed == 2**31 - 1
    assert params(server, response_format={"type": "json_object"}).constraint.kind == "json_object"
    assert params(server, response_format={"type": "text"}).constraint is None
    schema = {"type": "object"}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    assert params(server, response_format=form).constraint.value == schema


@pytest.mark.parametrize(
    ("stop", "texts", "ids"),
    [
        (None, (), ()),
        ([], (), ()),
        ("wor", ("wor",), ()),
        (["a", "b"], ("a", "b"), ()),
        ([10], (), (10,)),
        ([[10]], (), (10,)),
        ([97, 98], ("ab",), ()),
        ([[97, 98], [10]], ("ab",), (10,)),
        ([[228, 186, 140]], ("二",), ()),
        ([[257]], (), (257,)),
    ],
)
def test_stops(server: Live, stop: Any, texts: tuple[str, ...], ids: tuple[int, ...]) -> None:
    found = params(server, stop=stop)
    assert (found.stop, found.stop_token_ids, found.stop_token_sequences) == (texts, ids, ())


def test_what_stops_a_reply_is_not_shown(server: Live) -> None:
    assert ask(server, stop="wor").json["output"] == {"text": "Hello, ", "finish_reason": "stop"}
    assert ask(server, stop=list(b"wor")).json["output"]["text"] == "Hello, "


@pytest.mark.parametrize(
    ("headers", "given", "streams"),
    [
        ({}, None, False),
        ({"X-DashScope-SSE": "enable"}, None, True),
        ({"X-DashScope-SSE": "Enable "}, None, True),
        ({"X-DashScope-SSE": "disable", "Accept": "text/event-stream"}, None, False),
        ({"Accept": "text/event-stream"}, None, True),
        ({"Accept": "application/json, text/event-stream;q=0.5"}, None, True),
        ({"Accept": "*/*"}, None, False),
        ({}, True, True),
        ({"X-DashScope-SSE": "enable"}, False, False),
    ],
)
def test_who_wants_a_stream(server: Live, headers: dict[str, str], given: bool | None, streams: bool) -> None:
    answer = ask(server, headers, **({} if given is None else {"stream": given}))
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/event-stream") is streams


def test_streams_of_texts(slow: Live) -> None:
    for is_incremental in (False, True):
        events = stream(slow, incremental_output=is_incremental)
        texts = [event["output"]["text"] for event in events]
        reasons = [event["output"]["finish_reason"] for event in events]
        assert reasons == ["null"] * (len(events) - 1) + ["stop"]
        assert len(events) > 1
        if is_incremental:
            assert "".join(texts) == "Hello, world!"
        else:
            assert texts[-1] == "Hello, world!"
            assert all(new.startswith(old) for old, new in itertools.pairwise(texts))
        assert events[-1]["usage"] == ask(slow).json["usage"]
        counts = [event["usage"]["output_tokens"] for event in events]
        assert counts == sorted(counts)
        assert all(event["usage"]["input_tokens"] == 21 for event in events)


def test_streams_of_messages(slow: Live) -> None:
    whole = stream(slow, result_format="message")
    assert choices(whole)[-1] == ask(slow, result_format="message").json["output"]["choices"][0]
    pieces = choices(stream(slow, result_format="message", incremental_output=True))
    assert "".join(piece["message"]["content"] for piece in pieces) == "Hello, world!"
    assert {piece["message"]["role"] for piece in pieces} == {"assistant"}
    assert [piece["finish_reason"] for piece in pieces][-2:] == ["null", "stop"]


def test_an_empty_reply_ends_too(thinker: Live) -> None:
    thinker.backend.restart([""])
    assert choices(stream(thinker))[-1] == {
        "index": 0,
        "message": {"role": "assistant", "content": ""},
        "finish_reason": "stop",
    }


def test_log_probabilities(server: Live) -> None:
    (choice,) = ask(server, logprobs=True, top_logprobs=2).json["output"]["choices"]
    entries = choice["logprobs"]["content"]
    assert "".join(entry["token"] for entry in entries) == "Hello, world!"
    assert set(entries[0]) == {"token", "logprob", "bytes", "top_logprobs"}
    assert len(entries[0]["top_logprobs"]) == 2
    for is_incremental in (False, True):
        events = choices(stream(server, logprobs=True, top_logprobs=2, incremental_output=is_incremental))
        lists = [event["logprobs"]["content"] for event in events]
        found = [entry for each in lists for entry in each] if is_incremental else lists[-1]
        assert found == entries
    (plain,) = ask(server, result_format="message").json["output"]["choices"]
    assert "logprobs" not in plain


def test_several_replies() -> None:
    with live(scripted("first", "second")) as server:
        answer = ask(server, n=2).json
        contents = [choice["message"]["content"] for choice in answer["output"]["choices"]]
        assert contents == ["first", "second"]
        assert [choice["index"] for choice in answer["output"]["choices"]] == [0, 1]
        server.backend.restart(["first", "second"])
        said = {0: "", 1: ""}
        for event in stream(server, n=2, incremental_output=True):
            (choice,) = event["output"]["choices"]
            said[choice["index"]] += choice["message"]["content"]
            if choice["finish_reason"] == "stop":
                # each event counts the tokens of its own reply
                assert event["usage"]["output_tokens"] == len(said[choice["index"]])
        assert said == {0: "first", 1: "second"}
        assert answer["usage"]["output_tokens"] == len("firstsecond")


def test_calls_of_tools(thinker: Live) -> None:
    thinker.backend.restart([CALL])
    (choice,) = ask(thinker, tools=[WEATHER]).json["output"]["choices"]
    (call,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls"
    assert choice["message"]["content"] == ""
    assert (call["index"], call["type"], call["function"]["name"]) == (0, "function", "weather")
    assert call["id"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Rome"}
    last = choices(stream(thinker, tools=[WEATHER]))[-1]
    assert last["message"]["tool_calls"][0]["function"] == call["function"]
    assert last["finish_reason"] == "tool_calls"
    pieces = choices(stream(thinker, tools=[WEATHER], incremental_output=True))
    new = [piece["message"]["tool_calls"][0] for piece in pieces if "tool_calls" in piece["message"]]
    assert [call["function"]["name"] for call in new if "name" in call["function"]] == ["weather"]
    assert "".join(call["function"]["arguments"] for call in new) == call["function"]["arguments"]
    assert pieces[-1]["finish_reason"] == "tool_calls"


@pytest.mark.parametrize(
    ("choice", "is_forced"),
    [
        ("auto", False),
        ("required", True),
        ({"type": "function", "function": {"name": "weather"}}, True),
    ],
)
def test_choices_of_tools(thinker: Live, choice: Any, is_forced: bool) -> None:
    thinker.backend.restart([CALL])
    assert (params(thinker, tools=[WEATHER], tool_choice=choice).constraint is not None) is is_forced
    ask(thinker, tools=[WEATHER], tool_choice="none")
    assert thinker.backend.requests[-1].tools == ()


def test_calls_one_at_a_time(thinker: Live) -> None:
    thinker.backend.restart([f"{CALL}\n{CALL}"])
    for parallel, count in ((None, 2), (True, 2), (False, 1)):
        (choice,) = ask(thinker, tools=[WEATHER], parallel_tool_calls=parallel).json["output"]["choices"]
        assert len(choice["message"]["tool_calls"]) == count


def test_thought(thinker: Live) -> None:
    thinker.backend.restart([THOUGHT])
    answer = ask(thinker).json
    (choice,) = answer["output"]["choices"]  # a text would have no place for it
    assert choice["message"] == {
        "role": "assistant",
        "content": "A week.",
        "reasoning_content": "Seven days.",
    }
    details = answer["usage"]["output_tokens_details"]
    assert details["reasoning_tokens"] + details["text_tokens"] == answer["usage"]["output_tokens"]
    assert details["reasoning_tokens"] >= len("Seven days.")
    assert choices(stream(thinker))[-1] == choice
    pieces = choices(stream(thinker, incremental_output=True))
    for name in ("content", "reasoning_content"):
        assert "".join(piece["message"].get(name, "") for piece in pieces) == choice["message"][name]
    text = ask(thinker, result_format="text").json["output"]
    assert text == {"text": "A week.", "reasoning_content": "Seven days.", "finish_reason": "stop"}


def test_whether_to_think(thinker: Live, server: Live) -> None:
    thinker.backend.restart([THOUGHT])
    for wanted in (True, False):
        ask(thinker, enable_thinking=wanted)
        assert thinker.backend.requests[-1].template_options == {"enable_thinking": wanted}
    ask(thinker)
    assert thinker.backend.requests[-1].template_options == {}
    budget = ask(thinker, enable_thinking=False, thinking_budget=5)
    assert budget.headers["x-ignored-fields"] == "parameters.thinking_budget"
    assert ask(server, enable_thinking=False).status == 200
    refused = ask(server, enable_thinking=True)
    assert (refused.status, refused.json["code"]) == (400, "InvalidParameter")
    assert "does not think" in refused.json["message"]


def test_what_has_no_effect_is_named(server: Live) -> None:
    answer = server.ask(
        PATH,
        {
            "model": "scripted",
            "user": "me",
            "input": {
                "messages": [{"role": "user", "content": [{"text": "hi", "cache_control": {"type": "x"}}]}]
            },
            "parameters": {
                "incremental_output": True,
                "enable_search": False,
                "search_options": {},
                "min_p": 0.1,
            },
        },
    )
    assert answer.status == 200
    assert answer.headers["x-ignored-fields"].split(", ") == [
        "input.messages[0].content[0].cache_control",
        "parameters.incremental_output",
        "parameters.min_p",
        "parameters.search_options",
        "user",
    ]


def test_harmless_values_pass(server: Live) -> None:
    headers = {
        "X-DashScope-Async": "disable",
        "X-DashScope-DataInspection": "disable",
        "X-DashScope-WorkSpace": "w",
    }
    harmless = {"enable_code_interpreter": False, "modalities": ["text"], "plugins": None}
    assert ask(server, headers, **harmless).status == 200


def test_names_that_programs_know() -> None:
    with live(scripted("Hi"), served_names=("qwen-turbo", "qwen-plus")) as server:
        for name in ("qwen-turbo", "qwen-plus"):
            assert server.ask(PATH, {"model": name, "input": {"prompt": "hi"}}).status == 200
        refused = server.ask(PATH, {"model": "qwen-max", "input": {"prompt": "hi"}})
        assert (refused.status, refused.json["code"]) == (404, "ModelNotFound")
        assert "qwen-turbo" in refused.json["message"]


def test_an_error_in_a_stream() -> None:
    with live(scripted(["Hel", NumericsError("logits hold NaN")])) as server:
        answer = ask(server, {"X-DashScope-SSE": "enable"})
        assert answer.body.count(b"event:error\n:HTTP_STATUS/500\nstatus:500\ndata:{") == 1
        *_, last = values(answer)
        assert last["code"] == "InternalError"
        assert last["message"] == "logits hold NaN"
        whole = ask(server)
        assert (whole.status, whole.json["code"]) == (500, "InternalError")


def test_errors_before_a_stream_have_their_status(server: Live) -> None:
    answer = ask(server, {"X-DashScope-SSE": "enable"}, messages=[{"role": "user", "content": "hi" * 2000}])
    assert answer.status == 400
    assert answer.headers["content-type"] == "application/json"
    assert answer.json["code"] == "InvalidParameter"
    assert "context" in answer.json["message"]


def test_a_full_queue() -> None:
    with live(scripted("x", max_jobs=0)) as server:
        answer = ask(server)
        assert (answer.status, answer.json["code"]) == (429, "Throttling")
        assert "retry-after" in answer.headers


def test_vectors() -> None:
    with live(scripted("x")) as server:
        body = {"model": "scripted", "input": {"texts": ["ab", "c"]}, "parameters": {"text_type": "query"}}
        answer = server.ask(EMBEDDING, body)
        expected = server.backend.embed([list(b"ab"), list(b"c")])
        assert answer.json["output"]["embeddings"] == [
            {"text_index": n, "embedding": list(vector)} for n, vector in enumerate(expected)
        ]
        assert answer.json["usage"] == {"total_tokens": 3}
        assert answer.json["request_id"] == answer.headers["x-request-id"]
        assert answer.headers["x-ignored-fields"] == "parameters.text_type"
        plain = server.ask(EMBEDDING, {"model": "scripted", "input": {"texts": ["ab"]}})
        assert plain.status == 200
        other = server.ask("/v1/embeddings", {"model": "scripted", "input": ["ab"]}).json
        assert other["data"][0]["embedding"] == plain.json["output"]["embeddings"][0]["embedding"]


def test_without_a_template() -> None:
    class Base(type(scripted())):  # type: ignore[misc]
        @property
        def info(self) -> Any:
            return dataclasses.replace(super().info, can_chat=False)

    with live(Base(["x"], tokenizer=ByteTokenizer())) as server:
        answer = server.ask(PATH, {"model": "scripted", "input": {"prompt": "hi"}})
        assert (answer.status, answer.json["code"]) == (400, "InvalidParameter")
        assert "no chat template" in answer.json["message"]


PAGE = (Path(__file__).parents[3] / "docs" / "protocol-dashscope.md").read_text(encoding="utf-8")


def test_the_page_names_every_field() -> None:
    bodies = (DashScopeParameters, DashScopeEmbeddingParameters, DashScopeMessage)
    names = [name for body in bodies for name in body.model_fields if name not in ("role", "content")]
    names += [*REFUSED, *REFUSED_HEADERS, "model", "input.texts"]
    names += [f"input.{name}" for name in (*DashScopeInput.model_fields, *REFUSED_INPUT)]
    assert [name for name in names if f"`{name}`" not in PAGE] == []


def test_the_page_names_every_code() -> None:
    codes = {*_CODES.values(), *_EMPTY.values(), "ModelNotFound", "InvalidParameter", "InternalError"}
    assert [code for code in codes if f"`{code}`" not in PAGE] == []
