"""Chat completions: what the engine is asked, what comes back, and that a stream says the same."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from qwenkit.core.errors import NumericsError
from qwenkit.core.types import Constraint, Message, ToolSpec
from tests.support.http import Answer, Live, live, scripted

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
FUNCTION = {"name": "weather", "description": "d", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
NAMED = {"type": "function", "function": {"name": "weather"}}


def _message(events: list[Any], index: int = 0) -> dict[str, Any]:
    """Puts the chunks of one choice together, as clients do."""
    message: dict[str, Any] = {
        "content": "",
        "reasoning_content": "",
        "tool_calls": {},
        "function_call": None,
    }
    for event in events:
        for choice in event["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            message["content"] += delta.get("content") or ""
            message["reasoning_content"] += delta.get("reasoning_content") or ""
            if call := delta.get("function_call"):
                old = message["function_call"] or {"name": "", "arguments": ""}
                message["function_call"] = {
                    "name": old["name"] + call.get("name", ""),
                    "arguments": old["arguments"] + call["arguments"],
                }
            for call in delta.get("tool_calls", ()):
                entry = message["tool_calls"].setdefault(call["index"], {"name": "", "arguments": ""})
                entry["name"] += call["function"].get("name", "")
                entry["arguments"] += call["function"]["arguments"]
            if choice["finish_reason"]:
                message["finish_reason"] = choice["finish_reason"]
    message["tool_calls"] = list(message["tool_calls"].values())
    return message


def _whole(answer: Answer, index: int = 0) -> dict[str, Any]:
    """The same of an answer that did not stream."""
    assert answer.status == 200, answer.body
    choice = answer.json["choices"][index]
    message = choice["message"]
    return {
        "content": message["content"] or "",
        "reasoning_content": message.get("reasoning_content", ""),
        "tool_calls": [c["function"] for c in message.get("tool_calls", ())],
        "function_call": message.get("function_call"),
        "finish_reason": choice["finish_reason"],
    }


@pytest.mark.parametrize(
    ("reply", "fields"),
    [
        ("Hello, wörld! 你好 🎉", {}),
        ("", {}),
        ("Hello", {"max_tokens": 2}),
        ("one END two", {"stop": "END"}),
        ("one END two", {"stop": ["END", "two"], "include_stop_str_in_output": True}),
        ("x" * 200, {"n": 3}),
        ("<think>\nhm\n</think>\n\nanswer", {}),
        (CALL, {"tools": TOOLS}),
        ("I look.\n" + CALL + "\n" + CALL, {"tools": TOOLS}),
        (CALL + "\n" + CALL, {"tools": TOOLS, "parallel_tool_calls": False}),
        (CALL + "\n" + CALL, {"tools": TOOLS, "tool_choice": NAMED}),
        (CALL, {"tools": TOOLS, "tool_choice": "none"}),
        ("no call", {"tools": TOOLS}),
        (CALL[:-20], {"tools": TOOLS}),
        (CALL, {"functions": [FUNCTION]}),
        ("<think>why</think>" + CALL, {"tools": TOOLS, "n": 2}),
        ('"quotes" \\ \n\t \x01', {}),
    ],
)
@pytest.mark.parametrize("has_logprobs", [False, True])
def test_a_stream_says_the_same(
    thinker: Live, reply: str, fields: dict[str, Any], has_logprobs: bool
) -> None:
    extra = {"logprobs": True, "top_logprobs": 2} if has_logprobs else {}
    thinker.backend.restart([reply])
    whole = thinker.chat(**fields, **extra)
    streamed = thinker.chat(**fields, **extra, stream=True, stream_options={"include_usage": True})
    events = streamed.events
    for index in range(fields.get("n", 1)):
        assert _message(events, index) == _whole(whole, index)
        if has_logprobs:
            logprobs = [
                p
                for e in events
                for c in e["choices"]
                if c["index"] == index and c["logprobs"]
                for p in c["logprobs"]["content"]
            ]
            assert logprobs == whole.json["choices"][index]["logprobs"]["content"]
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole.json["usage"]
    assert all(event["usage"] is None for event in events[:-1])


def test_the_order_of_a_stream(server: Live) -> None:
    events = server.chat(stream=True).events
    assert events[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [e["choices"][0]["finish_reason"] for e in events] == [None] * (len(events) - 1) + ["stop"]
    assert events[-1]["choices"][0]["delta"] == {}
    assert all("usage" not in e for e in events)
    assert len({e["id"] for e in events}) == 1
    assert {e["object"] for e in events} == {"chat.completion.chunk"}


def test_calls_come_with_name_and_id_once() -> None:
    with live(scripted(CALL)) as server:
        deltas = [e["choices"][0]["delta"] for e in server.chat(tools=TOOLS, stream=True).events]
    calls = [d["tool_calls"][0] for d in deltas if "tool_calls" in d]
    assert calls[0]["function"]["name"] == "weather"
    assert calls[0]["id"].startswith("call_")
    assert calls[0]["type"] == "function"
    assert all(set(c) == {"index", "function"} for c in calls[1:])
    assert json.loads("".join(c["function"]["arguments"] for c in calls)) == {"city": "Köln"}


def test_a_function_that_is_named_is_called_once() -> None:
    with live(scripted(CALL + "\n" + CALL)) as server:
        assert len(server.chat(tools=TOOLS).json["choices"][0]["message"]["tool_calls"]) == 2
        assert (
            len(server.chat(tools=TOOLS, tool_choice=NAMED).json["choices"][0]["message"]["tool_calls"]) == 1
        )


def test_finish_reasons_of_calls() -> None:
    with live(scripted(CALL)) as server:
        assert server.chat(tools=TOOLS).json["choices"][0]["finish_reason"] == "tool_calls"
        legacy = server.chat(functions=[FUNCTION]).json["choices"][0]
        assert legacy["finish_reason"] == "function_call"
        assert legacy["message"]["function_call"]["name"] == "weather"
        assert legacy["message"]["content"] is None
        assert (
            server.chat(functions=[FUNCTION], function_call="none").json["choices"][0]["message"]["content"]
            == CALL
        )


def test_thoughts_are_apart_and_counted() -> None:
    with live(scripted("<think>\nhm\n</think>\n\nok", thinking=True)) as server:
        answer = server.chat().json
    message = answer["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("hm", "ok")
    assert (
        0
        < answer["usage"]["completion_tokens_details"]["reasoning_tokens"]
        < answer["usage"]["completion_tokens"]
    )


@pytest.fixture
def asked(thinker: Live) -> Callable[..., Any]:
    """What the engine is asked when a chat has these fields."""

    def ask(**fields: Any) -> Any:
        thinker.backend.restart(["ok"])
        answer = thinker.chat(**fields)
        assert answer.status == 200, answer.body
        return thinker.backend.requests[0]

    return ask


def test_what_the_engine_is_asked(asked: Callable[..., Any]) -> None:
    request = asked(
        max_completion_tokens=7,
        temperature=0.5,
        top_p=0.9,
        top_k=-1,
        min_p=0.1,
        repetition_penalty=1.1,
        frequency_penalty=0.3,
        presence_penalty=-0.3,
        logit_bias={"65": -100},
        seed=-1,
        stop="x",
        n=2,
        min_tokens=1,
        ignore_eos=True,
        stop_token_ids=[3],
        bad_words="no",
        allowed_token_ids=[1, 2],
        skip_special_tokens=False,
        include_stop_str_in_output=True,
        prompt_logprobs=2,
        logprobs=True,
        top_logprobs=4,
    )
    params = request.params
    assert (params.max_tokens, params.temperature, params.top_p, params.top_k, params.min_p) == (
        7,
        0.5,
        0.9,
        0,
        0.1,
    )
    assert (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) == (1.1, 0.3, -0.3)
    assert (params.logit_bias, params.seed, params.stop, params.n) == ({65: -100.0}, 2**63 - 1, ("x",), 2)
    assert (params.min_tokens, params.ignore_eos, params.stop_token_ids) == (1, True, (3,))
    assert (params.bad_words, params.allowed_token_ids) == (("no",), (1, 2))
    assert (params.skip_special_tokens, params.include_stop) == (False, True)
    assert (params.logprobs, params.prompt_logprobs) == (4, 2)


def test_null_means_absent(asked: Callable[..., Any]) -> None:
    names = (
        "temperature",
        "stop",
        "n",
        "tools",
        "tool_choice",
        "stream",
        "response_format",
        "user",
        "seed",
        "logprobs",
    )
    request = asked(**dict.fromkeys(names), stream_options=None, store=None, audio=None)
    assert request.params == asked().params


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint(kind="json_object")),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "a", "strict": True, "schema": {"type": "array"}},
                }
            },
            Constraint(kind="json_schema", value={"type": "array"}),
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            Constraint(kind="json_object"),
        ),
        ({"guided_json": {"type": "array"}}, Constraint(kind="json_schema", value={"type": "array"})),
        ({"guided_json": '{"type": "array"}'}, Constraint(kind="json_schema", value='{"type": "array"}')),
        ({"guided_regex": "a+"}, Constraint(kind="regex", value="a+")),
        ({"guided_choice": ["a", "b"]}, Constraint(kind="choice", value=["a", "b"])),
        ({"guided_grammar": "start: x"}, Constraint(kind="grammar", value="start: x")),
        ({"structured_outputs": {"choice": ["a"]}}, Constraint(kind="choice", value=["a"])),
        (
            {"structured_outputs": {"json": {"type": "array"}}},
            Constraint(kind="json_schema", value={"type": "array"}),
        ),
        ({"structured_outputs": {"json_object": True}}, Constraint(kind="json_object")),
    ],
)
def test_forms_of_the_answer(
    asked: Callable[..., Any], fields: dict[str, Any], constraint: Constraint | None
) -> None:
    assert asked(**fields).params.constraint == constraint


def test_messages_are_read(asked: Callable[..., Any]) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
            "name": "bob",
        },
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "4"},
        {"role": "assistant", "function_call": {"name": "g", "arguments": "{}"}},
        {"role": "function", "name": "g", "content": "5"},
        {"role": "assistant", "refusal": "no"},
    ]
    request = asked(messages=messages)
    assert [m.role for m in request.prompt] == [
        "system",
        "user",
        "assistant",
        "tool",
        "assistant",
        "function",
        "assistant",
    ]
    assert request.prompt[1] == Message("user", "a\nb", name="bob")
    assert request.prompt[2].tool_calls[0].id == "c1"
    assert request.prompt[3].tool_call_id == "c1"
    assert request.prompt[4].tool_calls[0].name == "g"
    assert request.prompt[6].content == "no"


def test_results_may_leave_out_whose_they_are(asked: Callable[..., Any]) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "id": "c1", "content": "4"},
    ]
    assert asked(messages=messages).prompt[2] == Message("tool", "4")


def test_tools_reach_the_engine(asked: Callable[..., Any]) -> None:
    spec = ToolSpec(name="weather", description="d", parameters={"type": "object"})
    assert asked(tools=TOOLS).tools == (spec,)
    assert asked(tools=TOOLS).params.constraint is None
    assert asked(tools=TOOLS, tool_choice="none").tools == ()
    for choice in ("required", {"type": "function", "function": {"name": "weather"}}):
        assert asked(tools=TOOLS, tool_choice=choice).params.constraint is not None
    other = {"type": "function", "function": {"name": "other"}}
    allowed = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "weather"}}]}
    choice = {"type": "allowed_tools", "allowed_tools": allowed}
    assert asked(tools=[*TOOLS, other], tool_choice=choice).tools == (spec,)
    assert asked(functions=[FUNCTION], function_call={"name": "weather"}).params.constraint is not None


def test_template_options(asked: Callable[..., Any]) -> None:
    assert asked(enable_thinking=False).template_options == {"enable_thinking": False}
    assert asked(chat_template_kwargs={"enable_thinking": True}).template_options == {"enable_thinking": True}
    assert asked(reasoning_effort="none").template_options == {"enable_thinking": False}
    assert asked(reasoning_effort="high").template_options == {"enable_thinking": True}
    assert asked(add_generation_prompt=False).template_options == {"add_generation_prompt": False}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert asked(messages=messages, continue_final_message=True).continue_final


def test_fields_without_effect_are_named(server: Live) -> None:
    answer = server.chat(
        user="me",
        metadata={"a": "b"},
        service_tier="auto",
        store=False,
        reasoning_effort="low",
        **{"naïve\r\nfield": 1},
        stream=True,
        stream_options={"include_usage": True, "foo": 1, "bar": None},
        response_format={"type": "text", "x": 1},
    )
    names = answer.headers["x-ignored-fields"].split(", ")
    assert {
        "metadata",
        "service_tier",
        "store",
        "reasoning_effort",
        "stream_options.foo",
        "response_format.x",
    } <= set(names)
    assert "na?ve??field" in names
    assert "stream_options.bar" not in names
    assert "x-ignored-fields" not in server.chat().headers


def test_an_error_before_the_first_text_has_its_own_status() -> None:
    with live(scripted([NumericsError("logits hold NaN; use float32")])) as server:
        for stream in (False, True):
            answer = server.chat(stream=stream)
            assert answer.status == 500
            assert answer.error["message"] == "logits hold NaN; use float32"


def test_an_error_later_is_the_last_event() -> None:
    with live(scripted(["some", " text", NumericsError("logits hold NaN")], delay=0.02)) as server:
        lines = server.chat(stream=True).body.decode().strip().split("\n\n")
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["message"] == "logits hold NaN"
        assert "some" in lines[1]
        assert server.chat().status == 500


def test_a_full_queue_says_when_to_come_back() -> None:
    with live(scripted("x", max_jobs=0)) as server:
        answer = server.chat()
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) > 0
        assert answer.error["code"] == "queue_full"


def test_usage_and_fingerprint(server: Live) -> None:
    first, second = server.chat().json, server.chat(n=2).json
    assert first["usage"]["completion_tokens"] == len("Hello, world!")
    assert second["usage"]["completion_tokens"] == 2 * len("Hello, world!")
    assert first["usage"]["prompt_tokens"] == second["usage"]["prompt_tokens"] > 0
    assert first["usage"]["prompt_tokens_details"] == {"cached_tokens": 0}
    assert first["system_fingerprint"] == second["system_fingerprint"]
    assert first["id"] != second["id"]
