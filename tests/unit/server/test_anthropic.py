"""Anthropic's protocol: what comes in as a conversation, what goes out as content blocks."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwenkit.core.types import Message, ToolCall
from qwenkit.server.anthropic.schema import CountTokensBody, MessagesBody
from tests.support.backends import FailingBackend
from tests.support.http import Answer, Live, live, scripted
from tests.unit.server.test_any_json import _FEW, _fields

USER = {"role": "user", "content": "hi"}
TOOL = {
    "name": "weather",
    "description": "How it is.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}},
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
USED = {"type": "tool_use", "id": "call_1", "name": "weather", "input": {"city": "Rome"}}
THOUGHT = "<think>\nLet me see.\n</think>\n\nIt is sunny."


def ask(server: Live, *, headers: dict[str, str] | None = None, **fields: Any) -> Answer:
    """A message of one turn."""
    common = {"model": "scripted", "max_tokens": 200, "messages": [USER]}
    return server.ask("/v1/messages", common | fields, headers=headers)


def events(answer: Answer) -> list[dict[str, Any]]:
    """The events of a stream, each of which names its type twice."""
    found = []
    for block in answer.body.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        value = json.loads(data.removeprefix("data: "))
        assert name == f"event: {value['type']}"
        found.append(value)
    return found


def joined(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The content blocks that the events of a stream add up to, checked as a strict client would."""
    blocks: list[dict[str, Any]] = []
    is_open = False
    for event in found:
        kind = event["type"]
        if kind == "content_block_start":
            assert not is_open
            assert event["index"] == len(blocks)
            blocks.append(dict(event["content_block"]))
            is_open, arguments = True, ""
        elif kind == "content_block_delta":
            assert is_open
            assert event["index"] == len(blocks) - 1
            delta = event["delta"]
            if delta["type"] == "input_json_delta":
                arguments += delta["partial_json"]
            else:
                name = delta["type"].removesuffix("_delta")
                blocks[-1][name] += delta[name]
        elif kind == "content_block_stop":
            assert is_open
            is_open = False
            if blocks[-1]["type"] == "tool_use":
                blocks[-1]["input"] = json.loads(arguments or "{}")
    assert not is_open
    return blocks


def said(server: Live) -> tuple[Message, ...]:
    """The conversation that the backend was asked last."""
    return tuple(server.backend.requests[-1].prompt)


def test_a_message(server: Live) -> None:
    answer = ask(server)
    value = answer.json
    assert answer.status == 200
    assert value.pop("id").startswith("msg_")
    assert value == {
        "type": "message",
        "role": "assistant",
        "model": "scripted",
        "content": [{"type": "text", "text": "Hello, world!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {
            "input_tokens": 21,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 13,
            "service_tier": "standard",
        },
    }
    assert answer.headers["request-id"] == answer.headers["x-request-id"]


def test_a_stream(server: Live) -> None:
    answer = ask(server, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    found = events(answer)
    kinds = [event["type"] for event in found]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    message = found[0]["message"]
    assert message["content"] == []
    assert message["stop_reason"] is None
    assert message["usage"]["input_tokens"] == 21
    assert joined(found) == [{"type": "text", "text": "Hello, world!"}]
    assert found[-2]["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens"] == 13


@pytest.mark.parametrize(
    ("reply", "content"),
    [
        (THOUGHT, [("thinking", "Let me see."), ("text", "It is sunny.")]),
        (CALL, [("tool_use", {"city": "Rome"})]),
        (f"I look.\n{CALL}", [("text", "I look."), ("tool_use", {"city": "Rome"})]),
        (
            f"{CALL}\nand\n{CALL}",
            [("tool_use", {"city": "Rome"}), ("text", "and"), ("tool_use", {"city": "Rome"})],
        ),
        (
            f"First.\n{CALL}\nThen.",
            [("text", "First."), ("tool_use", {"city": "Rome"}), ("text", "Then.")],
        ),
        ('<tool_call>{"name": "weather"}</tool_call>', [("tool_use", {})]),
        (
            '<tool_call>{"name": "weather", "arguments": "Rome"}</tool_call>',
            [("tool_use", {"arguments": "Rome"})],
        ),
        (
            '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
            [("tool_use", {"arguments": "[1]"})],
        ),
        ("<think>\nonly", [("thinking", "only")]),
        ("", []),
    ],
)
def test_content_blocks(thinker: Live, reply: str, content: list[tuple[str, Any]]) -> None:
    names = {"thinking": "thinking", "text": "text", "tool_use": "input"}
    thinker.backend.restart([reply])
    whole = ask(thinker, tools=[TOOL]).json
    found = events(ask(thinker, tools=[TOOL], stream=True))
    for blocks in (whole["content"], joined(found)):
        assert [(block["type"], block[names[block["type"]]]) for block in blocks] == content
        assert all(block["signature"] for block in blocks if block["type"] == "thinking")
        assert all(block["name"] == "weather" for block in blocks if block["type"] == "tool_use")
    calls = any(kind == "tool_use" for kind, _ in content)
    assert whole["stop_reason"] == found[-2]["delta"]["stop_reason"] == ("tool_use" if calls else "end_turn")


def test_thoughts_are_counted_apart(thinker: Live) -> None:
    thinker.backend.restart([THOUGHT])
    usage = ask(thinker).json["usage"]
    assert usage["output_tokens"] == len(THOUGHT)
    assert 0 < usage["output_tokens_details"]["thinking_tokens"] < len(THOUGHT)


def test_hidden_thoughts_come_back(thinker: Live) -> None:
    thinker.backend.restart([THOUGHT])
    thinking = {"type": "adaptive", "display": "omitted"}
    whole = ask(thinker, thinking=thinking).json["content"]
    streamed = joined(events(ask(thinker, thinking=thinking, stream=True)))
    assert whole == streamed
    assert whole[0]["thinking"] == ""
    ask(thinker, messages=[USER, {"role": "assistant", "content": whole}, USER])
    assert said(thinker)[1] == Message("assistant", "It is sunny.", reasoning="Let me see.")


@pytest.mark.parametrize(
    ("fields", "reason", "stop", "text"),
    [
        ({"stop_sequences": ["wor", "zzz"]}, "stop_sequence", "wor", "Hello, "),
        ({"max_tokens": 5}, "max_tokens", None, "Hello"),
        ({"max_tokens": 0}, "max_tokens", None, ""),
    ],
)
def test_stop_reasons(server: Live, fields: Any, reason: str, stop: str | None, text: str) -> None:
    whole = ask(server, **fields).json
    found = events(ask(server, **fields, stream=True))
    assert (whole["stop_reason"], whole["stop_sequence"]) == (reason, stop)
    assert found[-2]["delta"] == {"stop_reason": reason, "stop_sequence": stop}
    for blocks in (whole["content"], joined(found)):
        assert "".join(block["text"] for block in blocks) == text


@pytest.mark.parametrize(
    ("fields", "messages"),
    [
        ({"system": "Be brief."}, [Message("system", "Be brief."), Message("user", "hi")]),
        ({"system": ""}, [Message("user", "hi")]),
        (
            {"system": [{"type": "text", "text": "A."}, {"type": "text", "text": "B."}]},
            [Message("system", "A.\nB."), Message("user", "hi")],
        ),
        (
            {"messages": [USER, {"role": "user", "content": [{"type": "text", "text": "there"}]}]},
            [Message("user", "hi\nthere")],
        ),
        (
            {"messages": [USER, {"role": "system", "content": "Now in verse."}, USER]},
            [Message("user", "hi"), Message("system", "Now in verse."), Message("user", "hi")],
        ),
        (
            {
                "messages": [
                    USER,
                    {
                        "role": "assistant",
                        "content": [
                            {"type": "thinking", "thinking": "Hm.", "signature": "x"},
                            {"type": "text", "text": "I look."},
                            USED,
                        ],
                    },
                    {
                        "role": "user",
                        "content": [
                            {"type": "tool_result", "tool_use_id": "call_1", "content": "sunny"},
                            {"type": "text", "text": "Well?"},
                        ],
                    },
                ]
            },
            [
                Message("user", "hi"),
                Message(
                    "assistant",
                    "I look.",
                    reasoning="Hm.",
                    tool_calls=(ToolCall(id="call_1", name="weather", arguments='{"city": "Rome"}'),),
                ),
                Message("tool", "sunny", tool_call_id="call_1"),
                Message("user", "Well?"),
            ],
        ),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "document",
                                "title": "Notes",
                                "context": "of today",
                                "source": {"type": "text", "media_type": "text/plain", "data": "It rains."},
                            },
                            {
                                "type": "document",
                                "source": {
                                    "type": "content",
                                    "content": [{"type": "text", "text": "Still."}],
                                },
                            },
                            {
                                "type": "search_result",
                                "title": "Weather",
                                "source": "https://example.org",
                                "content": [{"type": "text", "text": "Rain."}],
                            },
                        ],
                    }
                ]
            },
            [Message("user", "Notes\nof today\nIt rains.\nStill.\nWeather\nhttps://example.org\nRain.")],
        ),
    ],
)
def test_conversations(thinker: Live, fields: Any, messages: list[Message]) -> None:
    thinker.backend.restart(["Yes."])
    assert ask(thinker, **fields).status == 200
    assert said(thinker) == tuple(messages)
    assert not thinker.backend.requests[-1].continue_final


@pytest.mark.parametrize(
    ("result", "content"),
    [
        ({"content": "no such city", "is_error": True}, "Error: no such city"),
        ({"is_error": True}, "Error: the tool failed"),
        ({}, ""),
        ({"content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, "a\nb"),
    ],
)
def test_results_of_tools(server: Live, result: dict[str, Any], content: str) -> None:
    messages = [
        USER,
        {"role": "assistant", "content": [USED]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "call_1", **result}]},
    ]
    assert ask(server, messages=messages).status == 200
    assert said(server)[-1] == Message("tool", content, tool_call_id="call_1")


def test_the_last_turn_is_continued(server: Live) -> None:
    assert ask(server, messages=[USER, {"role": "assistant", "content": "Well, "}]).status == 200
    request = server.backend.requests[-1]
    assert request.continue_final
    assert request.prompt[-1] == Message("assistant", "Well, ")
    assert ask(server, messages=[USER, {"role": "assistant", "content": ""}]).status == 200
    request = server.backend.requests[-1]
    assert not request.continue_final
    assert request.prompt == (Message("user", "hi"),)


def test_what_cannot_be_read_is_named(server: Live) -> None:
    content = [{"type": "redacted_thinking", "data": "xyz"}, {"type": "text", "text": "Yes."}]
    answer = ask(
        server,
        messages=[USER, {"role": "assistant", "content": content}, USER],
        metadata={"user_id": "u"},
        thinking={"type": "enabled", "budget_tokens": 1024},
        output_config={"effort": "low"},
        cache_control={"type": "ephemeral"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    )
    ignored = answer.headers["x-ignored-fields"].split(", ")
    wanted = [
        "cache_control",
        "context_management",
        "messages[1].content[0]",
        "metadata",
        "output_config.effort",
    ]
    assert [name for name in ignored if not name.endswith((".data", ".keep"))] == [
        *wanted,
        "thinking",
        "thinking.budget_tokens",
    ]


@pytest.mark.parametrize(
    ("thinking", "options"),
    [
        ({"type": "disabled"}, {"enable_thinking": False}),
        ({"type": "enabled", "budget_tokens": 2000}, {"enable_thinking": True}),
        ({"type": "adaptive"}, {"enable_thinking": True}),
        (None, {}),
    ],
)
def test_thinking(thinker: Live, thinking: Any, options: dict[str, Any]) -> None:
    thinker.backend.restart(["Yes."])
    assert ask(thinker, thinking=thinking).status == 200
    assert thinker.backend.requests[-1].template_options == options


@pytest.mark.parametrize(
    ("choice", "kind", "num_calls"),
    [
        ({"type": "auto"}, None, 2),
        ({"type": "auto", "disable_parallel_tool_use": True}, None, 1),
        ({"type": "any"}, "grammar", 2),
        ({"type": "tool", "name": "weather"}, "grammar", 1),
    ],
)
def test_choice_of_tools(thinker: Live, choice: Any, kind: str | None, num_calls: int) -> None:
    thinker.backend.restart([CALL + CALL])
    content = ask(thinker, tools=[TOOL], tool_choice=choice).json["content"]
    assert len(content) == num_calls
    constraint = thinker.backend.requests[-1].params.constraint
    assert (constraint and constraint.kind) == kind
    assert thinker.backend.requests[-1].tools[0].name == "weather"


def test_no_tools_where_none_may_be_called(thinker: Live) -> None:
    thinker.backend.restart([CALL])
    content = ask(thinker, tools=[TOOL], tool_choice={"type": "none"}).json["content"]
    assert content == [{"type": "text", "text": CALL}]
    assert thinker.backend.requests[-1].tools == ()


@pytest.mark.parametrize("name", ["output_config", "output_format"])
def test_form_of_the_answer(server: Live, name: str) -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    form: Any = {"type": "json_schema", "schema": schema}
    assert ask(server, **{name: {"format": form} if name == "output_config" else form}).status == 200
    constraint = server.backend.requests[-1].params.constraint
    assert (constraint.kind, constraint.value) == ("json_schema", schema)


def test_sampling(server: Live) -> None:
    settings = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "repetition_penalty": 1.2,
        "seed": 5,
    }
    assert ask(server, **settings).status == 200
    params = server.backend.requests[-1].params
    assert {name: getattr(params, name) for name in settings} == settings


def test_counting(thinker: Live) -> None:
    for fields in ({}, {"system": "Be brief."}, {"tools": [TOOL]}, {"thinking": {"type": "disabled"}}):
        thinker.backend.restart(["Yes."])
        asked = {"model": "scripted", "messages": [USER], **fields}
        counted = thinker.ask("/v1/messages/count_tokens", asked).json
        assert counted == {"input_tokens": ask(thinker, **fields).json["usage"]["input_tokens"]}


def test_models() -> None:
    version = {"anthropic-version": "2023-06-01"}
    with live(scripted(), served_names=("one", "two", "three")) as server:
        assert server.ask("/v1/models").json["object"] == "list"
        page = server.ask("/v1/models?limit=2", headers=version).json
        assert [model["id"] for model in page["data"]] == ["one", "two"]
        assert (page["has_more"], page["first_id"], page["last_id"]) == (True, "one", "two")
        page = server.ask("/v1/models?after_id=two", headers=version).json
        assert [model["id"] for model in page["data"]] == ["three"]
        page = server.ask("/v1/models?before_id=three&limit=1", headers=version).json
        assert [model["id"] for model in page["data"]] == ["two"]
        model = server.ask("/v1/models/two", headers=version).json
        assert model == {
            "id": "two",
            "type": "model",
            "display_name": "two",
            "created_at": model["created_at"],
            "lifecycle": "active",
            "max_input_tokens": 2048,
            "max_tokens": 2048,
        }
        for path in ("/v1/models/four", "/v1/models?limit=0", "/v1/models?limit=x", "/v1/models?after_id=x"):
            answer = server.ask(path, headers=version)
            assert answer.status in (400, 404)
            assert answer.json["type"] == "error"


def test_an_engine_that_fails() -> None:
    with live(FailingBackend(["Hello, world!"])) as server:
        server.backend.fails_after = 0
        answer = ask(server, stream=True)
        assert answer.status == 500
        assert answer.json["error"] == {"type": "api_error", "message": "the numbers are gone"}
        server.backend.fails_after = 2
        *_, last = events(ask(server, stream=True))
        assert last["type"] == "error"
        assert last["error"] == {"type": "api_error", "message": "the numbers are gone"}
        assert last["request_id"]


def test_a_key_in_either_header() -> None:
    with live(scripted(), api_keys=("secret",)) as server:
        for headers in ({"x-api-key": "secret"}, {"authorization": "Bearer secret"}):
            assert ask(server, headers=headers).status == 200
        for headers in ({}, {"x-api-key": "wrong"}):
            answer = ask(server, headers=headers)
            assert answer.status == 401
            assert answer.json["error"]["type"] == "authentication_error"


def test_only_this_protocol() -> None:
    with live(scripted(), protocols=("anthropic",)) as server:
        assert ask(server).status == 200
        assert server.ask("/v1/models", headers={"anthropic-version": "2023-06-01"}).status == 200
        assert server.ask("/v1/chat/completions", {"messages": [USER]}).status == 404


@_FEW
@given(fields=_fields(MessagesBody), is_counted=st.booleans())
def test_any_json(server: Live, fields: dict[str, Any], is_counted: bool) -> None:
    asked = {"max_tokens": 5, "messages": [USER]} | fields
    answer = server.ask("/v1/messages/count_tokens" if is_counted else "/v1/messages", asked)
    assert answer.status in (200, 400, 404), answer.body
    if answer.status != 200:
        assert answer.json["type"] == "error"


def test_bodies_share_their_fields() -> None:
    assert CountTokensBody.model_fields.keys() < MessagesBody.model_fields.keys()
