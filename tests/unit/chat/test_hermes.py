"""Tools in the messages themselves, for templates that know none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from qwenkit.chat.hermes import HermesFormat, write_as_text
from qwenkit.chat.parser import parse_reply
from qwenkit.chat.template import JinjaTemplate, choose_template
from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.tokenizer.hf_json import HfTokenizer

TOOL = ToolSpec(name="w", description="天气", parameters={"type": "object"})
BLOCK = (
    "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>\n"
    '{"type": "function", "function": {"name": "w", "description": "天气", "parameters": {"type": "object"}}}\n'
    "</tools>\n\nFor each function call, return a json object with function name and arguments within "
    '<tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n'
    "</tool_call>"
)
CALLS = (
    ToolCall(id="1", name="w", arguments='{"city": "北京"}'),
    ToolCall(id="2", name="w", arguments=""),
)
CALLED = (
    '<tool_call>\n{"name": "w", "arguments": {"city": "北京"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "w", "arguments": {}}\n</tool_call>'
)


def test_the_tools_go_into_the_system_text() -> None:
    question = Message("user", "q")
    assert write_as_text([question], [TOOL]) == [Message("system", BLOCK), question]
    assert write_as_text([Message("system", "S"), question], [TOOL])[0] == Message("system", f"S\n\n{BLOCK}")
    assert write_as_text([Message("system", ""), question], [TOOL])[0] == Message("system", BLOCK)
    assert write_as_text([question], []) == [question]


def test_calls_and_results_become_text() -> None:
    messages = [
        Message("user", "q"),
        Message("assistant", "Hm.", tool_calls=CALLS),
        Message("tool", "R2", tool_call_id="2"),
        Message("tool", "R1", tool_call_id="1"),
        Message("assistant", tool_calls=CALLS[:1]),
        Message("function", "R3"),
    ]
    answer = "<tool_response>\n{}\n</tool_response>"
    assert write_as_text(messages, []) == [
        messages[0],
        Message("assistant", f"Hm.\n{CALLED}"),
        Message("user", f"{answer.format('R1')}\n{answer.format('R2')}"),
        Message("assistant", CALLED.partition("\n<tool_call>")[0]),
        Message("user", answer.format("R3")),
    ]


def test_what_was_written_is_read_back() -> None:
    written = write_as_text([Message("assistant", "Hm.", tool_calls=CALLS)], [])
    ids = iter(["1", "2"])

    template: Any = SimpleNamespace(tool_format=HermesFormat())
    read = parse_reply(written[0].content, template, tools=[TOOL], new_id=lambda: next(ids))
    assert read.content == "Hm."
    assert [(c.id, c.name, c.arguments) for c in read.tool_calls] == [
        ("1", "w", '{"city": "北京"}'),
        ("2", "w", "{}"),
    ]


def test_smollm2_is_told_of_tools(smollm2_tokenizer: HfTokenizer) -> None:
    """Its template knows none and would drop them."""
    template = choose_template(None, smollm2_tokenizer)
    assert isinstance(template, JinjaTemplate)
    messages = [
        Message("user", "q"),
        Message("assistant", tool_calls=CALLS[:1]),
        Message("tool", "R<|im_end|>"),
    ]
    segments = template.render(messages, tools=[TOOL])
    texts = [segment for segment in segments if isinstance(segment, str)]
    assert texts[0] == f"system\n{BLOCK}"
    assert "user\n<tool_response>\nR<|im_end|>\n</tool_response>" in texts
    assert template.render(messages) != segments
    with pytest.raises(TemplateError, match="answers no call"):
        template.render([Message("tool", "R")])
