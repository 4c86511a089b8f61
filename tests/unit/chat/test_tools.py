"""Grammars that force a call: what they let through is what the parsers read, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from qwenkit.chat.hermes import HermesFormat
from qwenkit.chat.react import QwenToolSpec, ReActFormat
from qwenkit.chat.reply import collect_reply
from qwenkit.chat.tools import ToolFormat
from qwenkit.core.errors import InputError
from qwenkit.core.types import ToolSpec

CITY = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
WEATHER = ToolSpec(name="w", description="D", parameters=CITY)
NOW = ToolSpec(name="now")
ODD = ToolSpec(
    name='o"d\\é',
    parameters={"$ref": "#/$defs/x", "$defs": {"x": {"properties": {"n": {"type": "integer"}}}}},
)
TOOLS = [WEATHER, NOW, ODD]


def _accepts(format_: ToolFormat, choice: Any, text: str, **options: Any) -> bool:
    """Whether the grammar lets the whole text through, as a reply that may end there."""
    import llguidance

    constraint = format_.constraint(TOOLS, choice, **options)
    assert constraint is not None
    assert constraint.kind == "grammar"
    grammar = llguidance.LLMatcher.grammar_from_lark(constraint.value)
    tokenizer = llguidance.LLTokenizer("byte")
    assert not llguidance.LLMatcher.validate_grammar(grammar, tokenizer)
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0)
    data = list(text.encode())
    accepted = matcher.try_consume_tokens(data) == len(data) and matcher.is_accepting()
    if accepted:
        parser = format_.parser()
        message = collect_reply([*parser.push(text.rpartition("</think>")[2]), *parser.finish()])
        assert message.tool_calls
        assert all(call.name in [tool.name for tool in TOOLS] for call in message.tool_calls)
        assert "<" not in message.content
    return accepted


W, N, Q = (
    f'<tool_call>\n{{"name": {name}, "arguments": {arguments}}}\n</tool_call>'
    for name, arguments in (('"w"', '{"city": "北京"}'), ('"now"', "{}"), ('"o\\"d\\\\é"', '{"n": 1}'))
)


@pytest.mark.parametrize("text", [W, N, Q, f"{W}\n{N}\n{W}"])
def test_hermes_calls(text: str) -> None:
    assert _accepts(HermesFormat(), "required", text)
    assert _accepts(HermesFormat(), "required", text, parallel=False) == ("\n<tool_call>" not in text)
    assert _accepts(HermesFormat(), WEATHER, text) == (text == W)
    thought = "<think>\nhm < 3\n</think>\n\n"
    thinking = HermesFormat(writes_thoughts=True)
    assert _accepts(thinking, "required", thought + text)
    assert _accepts(thinking, "required", text)
    assert not _accepts(HermesFormat(), "required", thought + text)
    in_thought = thought.removeprefix("<think>")
    assert _accepts(thinking, "required", in_thought + text, starts_in_thought=True)
    assert not _accepts(thinking, "required", text, starts_in_thought=True)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "hello",
        f"x{W}",
        W[:-1],
        W.replace('"w"', '"v"'),
        W.replace("city", "town"),
        W.replace('"北京"', "1"),
        W.replace(": {", ":  {"),
        Q.replace("1", '"1"'),
    ],
)
def test_no_hermes_calls(text: str) -> None:
    assert not _accepts(HermesFormat(), "required", text)


CALL = '\nAction: w\nAction Input: {"city": "北京"}'


@pytest.mark.parametrize(
    ("text", "is_call"),
    [
        (f"Thought: I look.{CALL}", True),
        (f" I look.{CALL}", True),
        (CALL, True),
        ('\nAction: o"d\\é\nAction Input: {"n": 1}', True),
        ("\nAction: now\nAction Input: {}", True),
        ("Thought: done.\nFinal Answer: 5", False),
        (f"a\nb{CALL}", False),
        (CALL.replace(": w", ": v"), False),
        (CALL.replace("city", "town"), False),
        (f"{CALL}\nObservation:", False),
        (f"{'x' * 601}{CALL}", False),
    ],
)
def test_react_calls(text: str, is_call: bool) -> None:
    assert _accepts(ReActFormat(), "required", text) == is_call
    assert _accepts(ReActFormat(), WEATHER, text) == (is_call and CALL in text)
    assert _accepts(ReActFormat(), "required", f"hm</think>\n{text}", starts_in_thought=True) == is_call


def test_code_is_no_json() -> None:
    import llguidance

    tool = QwenToolSpec(name="python", args_format="code")
    constraint = ReActFormat().constraint([tool], "required")
    assert constraint is not None
    grammar = llguidance.LLMatcher.grammar_from_lark(constraint.value)
    matcher = llguidance.LLMatcher(llguidance.LLTokenizer("byte"), grammar, log_level=0)
    text = b"\nAction: python\nAction Input: ```py\nprint(1)\n```"
    assert matcher.try_consume_tokens(list(text)) == len(text)
    assert matcher.is_accepting()


@pytest.mark.parametrize("format_", [HermesFormat(), ReActFormat()])
def test_choices(format_: ToolFormat) -> None:
    assert format_.constraint(TOOLS, "auto") is None
    assert format_.constraint([], "none") is None
    with pytest.raises(InputError, match="no tools are offered"):
        format_.constraint([], "required")
    with pytest.raises(
        InputError, match="'noww' to be called is not among those offered; did you mean 'now'"
    ):
        format_.constraint(TOOLS, ToolSpec(name="noww"))
    with pytest.raises(InputError, match="choice 'any' is unknown"):
        format_.constraint(TOOLS, "any")  # type: ignore[arg-type]
