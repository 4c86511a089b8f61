"""Every format gives the same sample, and every mistake is told in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from qwenkit.core.errors import InputError
from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.train.formats import detect_format, read_sample

ASK, TELL = Message("user", "Who?"), Message("assistant", "Me.")
WEATHER = {"name": "w", "description": "d", "parameters": {"type": "object", "properties": {}}}


def _turns(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"from": who, "value": what} for who, what in pairs]


SAME = [
    ("qwen", {"id": "1", "conversations": _turns(("user", "Who?"), ("assistant", "Me."))}),
    ("sharegpt", {"conversations": _turns(("human", "Who?"), ("gpt", "Me."))}),
    (
        "openai",
        {
            "messages": [
                {"role": "user", "content": "Who?"},
                {"role": "assistant", "content": "Me.", "weight": 1},
            ]
        },
    ),
    ("alpaca", {"instruction": "Who?", "input": "", "output": "Me.", "system": ""}),
]


@pytest.mark.parametrize(("name", "record"), SAME)
def test_formats_agree(name: str, record: dict[str, Any]) -> None:
    assert detect_format(record) == name
    for data_format in ("auto", name):
        sample = read_sample(record, "f:1", data_format)
        assert (sample.messages, sample.tools, sample.source) == ((ASK, TELL), (), "f:1")


@pytest.mark.parametrize(("name", "record"), SAME)
def test_system_of_a_sample(name: str, record: dict[str, Any]) -> None:
    assert read_sample({**record, "system": "S"}).messages == (Message("system", "S"), ASK, TELL)


def test_qwen_names_are_sharegpt_too_when_asked_for() -> None:
    record = {"conversations": _turns(("system", "S"), ("user", "Who?"), ("assistant", "Me."))}
    assert read_sample(record, "", "sharegpt").messages == (Message("system", "S"), ASK, TELL)


def test_alpaca_history_and_input() -> None:
    record = {"instruction": "Add", "input": "1 2", "output": "3", "history": [["Who?", "Me."]]}
    assert read_sample(record).messages == (ASK, TELL, Message("user", "Add\n1 2"), Message("assistant", "3"))


def test_plain_text() -> None:
    sample = read_sample({"text": "Once"}, "f:2")
    assert (sample.messages, sample.text, sample.source) == ((), "Once", "f:2")


def test_leading_replies_are_dropped_and_counted() -> None:
    record = {
        "conversations": _turns(
            ("assistant", "x"), ("assistant", "y"), ("user", "Who?"), ("assistant", "Me.")
        )
    }
    sample = read_sample({**record, "system": "S"})
    assert sample.messages == (Message("system", "S"), ASK, TELL)
    assert sample.dropped_turns == 2


def test_openai_tools() -> None:
    function = {"name": "w", "arguments": '{"a": 1}'}
    record = {
        "messages": [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "Wh"}, {"type": "text", "text": "o?"}]},
            {
                "role": "assistant",
                "content": None,
                "tool_calls": [{"id": "c", "type": "function", "function": function}],
            },
            {"role": "tool", "content": "7", "tool_call_id": "c"},
            {"role": "assistant", "content": "Me.", "reasoning_content": "hm", "refusal": None},
        ],
        "tools": [{"type": "function", "function": WEATHER}],
    }
    sample = read_sample(record)
    assert sample.messages == (
        Message("system", "S"),
        ASK,
        Message("assistant", tool_calls=(ToolCall(id="c", name="w", arguments='{"a": 1}'),)),
        Message("tool", "7", tool_call_id="c"),
        Message("assistant", "Me.", reasoning="hm"),
    )
    assert sample.tools == (ToolSpec(**WEATHER),)


def test_openai_functions_of_old() -> None:
    record = {
        "messages": [
            {"role": "user", "content": "Who?"},
            {"role": "assistant", "content": None, "function_call": {"name": "w", "arguments": {"ü": 1}}},
            {"role": "function", "name": "w", "content": "7"},
            {"role": "assistant", "content": "Me."},
        ],
        "functions": [WEATHER],
    }
    sample = read_sample(record)
    assert sample.messages[1].tool_calls[0].arguments == '{"ü": 1}'
    assert sample.messages[2] == Message("tool", "7", name="w")
    assert sample.tools == (ToolSpec(**WEATHER),)


def test_sharegpt_tools() -> None:
    record = {
        "conversations": _turns(
            ("human", "Who?"),
            ("gpt", "I look."),
            ("function_call", '[{"name": "w", "arguments": {}}, {"name": "v", "arguments": "x"}]'),
            ("observation", "7"),
            ("observation", "8"),
            ("gpt", "Me."),
        ),
        "tools": f"[{str(WEATHER).replace(chr(39), chr(34))}]",
    }
    sample = read_sample(record)
    calls = (ToolCall(id="", name="w", arguments="{}"), ToolCall(id="", name="v", arguments="x"))
    assert sample.messages[1] == Message("assistant", "I look.", tool_calls=calls)
    assert [m.role for m in sample.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert sample.tools == (ToolSpec(**WEATHER),)


def _openai(*messages: dict[str, Any], **keys: Any) -> dict[str, Any]:
    return {"messages": list(messages), **keys}


U, A = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
BROKEN = [
    ([], "a sample must be a JSON object, got a list"),
    ({"a": 1}, "no conversation; a sample needs the key conversations, messages, instruction or text, got a"),
    ({"conversations": []}, "the conversation is empty"),
    ({"conversations": {}}, "'conversations' must be a list of turns, got an object"),
    ({"conversations": ["hi"]}, "turn 1 must be a JSON object, got text"),
    ({"conversations": [{"value": "x"}]}, "turn 1: 'from' must be text, got nothing"),
    ({"conversations": _turns(("user", 7))}, "turn 1: 'value' must be text, got a number"),
    ({"conversations": _turns(("user", "q"), ("assistant", None))}, "turn 2: 'value' must be text, got null"),
    ({"conversations": _turns(("bot", "q"))}, "turn 1: role 'bot' is unknown; use user or assistant"),
    ({"conversations": _turns(("usr", "q"))}, "did you mean 'user'?"),
    (
        {"conversations": _turns(("system", "S"), ("user", "q"))},
        "put the system text into the sample's key 'system'",
    ),
    (
        {"conversations": _turns(("human", "q"), ("bot", "a"))},
        "turn 2: role 'bot' is unknown; use one of human, user,",
    ),
    ({"conversations": _turns(("user", "q"))}, "no turn of the assistant answers one of the user"),
    (
        {"conversations": _turns(("assistant", "a"), ("user", "q"))},
        "no turn of the assistant answers one of the user",
    ),
    (
        {"conversations": _turns(("human", "q"), ("function_call", "w()"))},
        "turn 2: a call must be JSON with 'name'",
    ),
    (
        {"conversations": _turns(("human", "q"), ("observation", "7"), ("gpt", "a"))},
        "a tool result answers no call",
    ),
    (_openai(U, {"role": "bot", "content": "x"}), "turn 2: message role 'bot' is unknown"),
    (_openai(U, {"role": "assistant", "content": None}), "turn 2: 'content' must be text, got null"),
    (_openai(U, {"role": "assistant", "content": [{"type": "image_url"}]}), "content of type 'image_url'"),
    (_openai(U, {**A, "weight": 0}), "turn 2: weight 0 is not possible"),
    (_openai(U, {**A, "tool_calls": 3}), "turn 2: 'tool_calls' must be a list, got a number"),
    (
        _openai(U, {**A, "tool_calls": [{"function": {"name": "w"}}]}),
        "turn 2: a call must be JSON with 'name'",
    ),
    (_openai({**U, "tool_calls": [{}]}, A), "turn 1: only the assistant calls tools"),
    (_openai(U, {**A, "name": 3}), "turn 2: 'name' must be text, got a number"),
    (
        _openai(U, A, {"role": "system", "content": "S"}),
        "turn 3 is a system message; only the first may be one",
    ),
    (_openai({"role": "system", "content": "S"}, U, A, system="T"), "a system message and the key 'system'"),
    (_openai(U, A, system=3), "'system' must be text, got a number"),
    (_openai(U, A, tools="["), "'tools' is text that is no JSON"),
    (_openai(U, A, tools=[3]), "'tools' must be a list of objects, got a list"),
    (_openai(U, A, tools=[{}]), "a tool needs the key 'name'"),
    ({"instruction": "x"}, "'output' must be text, got nothing"),
    ({"instruction": "", "output": "x"}, "'instruction' and 'input' are both empty"),
    ({"instruction": "x", "output": "y", "history": [["a"]]}, "'history' must hold pairs of texts"),
    ({"text": ""}, "'text' is empty"),
]


@pytest.mark.parametrize(("record", "sentence"), BROKEN)
def test_broken_samples(record: Any, sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        read_sample(record)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unknown_format() -> None:
    with pytest.raises(InputError, match="data format 'csv' is unknown; use auto, qwen, sharegpt"):
        read_sample({"text": "x"}, "", "csv")  # type: ignore[arg-type]


def test_a_forced_format_is_not_guessed() -> None:
    with pytest.raises(InputError, match="role 'human' is unknown; use user or assistant"):
        read_sample({"conversations": _turns(("human", "q"), ("gpt", "a"))}, "", "qwen")
