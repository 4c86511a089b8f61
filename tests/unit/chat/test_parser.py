"""Replies to messages: thoughts, calls and content together, streamed and whole."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.chat.base import ChatTemplate
from qwenkit.chat.parser import ReplyDelta, collect_reply, new_call_id, parse_reply, reply_parser
from qwenkit.chat.template import ChatMLTemplate, choose_template
from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.tokenizer.bpe import TiktokenTokenizer
from qwenkit.tokenizer.hf_json import HfTokenizer

TOOLS = [ToolSpec(name="w")]
CALL = '<tool_call>\n{"name": "w", "arguments": {}}\n</tool_call>'
CALLED = (ToolCall(id="0", name="w", arguments="{}"),)


@pytest.fixture(scope="module")
def hermes(smollm2_tokenizer: HfTokenizer) -> ChatTemplate:
    template = choose_template(None, smollm2_tokenizer)
    assert template is not None
    return template


@pytest.fixture(scope="module")
def react(qwen_tokenizer: TiktokenTokenizer) -> ChatTemplate:
    return ChatMLTemplate(qwen_tokenizer)


def _ids() -> Callable[[], str]:
    counter = itertools.count()
    return lambda: str(next(counter))


@pytest.mark.parametrize(
    ("text", "options", "expected"),
    [
        ("hi\n", {}, Message("assistant", "hi\n")),
        (CALL, {}, Message("assistant", tool_calls=CALLED)),
        (CALL, {"tools": ()}, Message("assistant", CALL)),
        (
            f"<think>\n{CALL}?\n</think>\n\nNow.\n{CALL}",
            {"reasoning": True},
            Message("assistant", "Now.", reasoning=f"{CALL}?", tool_calls=CALLED),
        ),
        (
            f"hm\n</think>\n\n{CALL}",
            {"starts_in_thought": True},
            Message("assistant", reasoning="hm", tool_calls=CALLED),
        ),
        ("<think>hm</think>ok", {}, Message("assistant", "<think>hm</think>ok")),
        ("<think>hm</think>ok", {"reasoning": True, "tools": ()}, Message("assistant", "ok", reasoning="hm")),
        ("<think>cut off", {"reasoning": True}, Message("assistant", reasoning="cut off")),
        (f"a{CALL}b{CALL}", {"parallel": False}, Message("assistant", "a", tool_calls=CALLED)),
    ],
)
def test_hermes_replies(
    hermes: ChatTemplate, text: str, options: dict[str, object], expected: Message
) -> None:
    options = {"tools": TOOLS, **options}
    assert parse_reply(text, hermes, new_id=_ids(), **options) == expected  # type: ignore[arg-type]
    parser = reply_parser(hermes, new_id=_ids(), **options)  # type: ignore[arg-type]
    deltas = [delta for char in text for delta in parser.push(char)]
    assert collect_reply([*deltas, *parser.finish()]) == expected
    assert parser.called == bool(expected.tool_calls)
    assert parser.done == ("parallel" in options)


def test_react_replies(react: ChatTemplate) -> None:
    text = "Thought: hm.\nAction: w\nAction Input: {}\nObservation:"
    assert parse_reply(text, react, tools=TOOLS, new_id=_ids()) == Message(
        "assistant", "hm.", tool_calls=CALLED
    )
    assert parse_reply(text, react) == Message("assistant", text)
    answer = "Thought: k\nFinal Answer: a\nFinal Answer: b"
    assert parse_reply(answer, react, tools=TOOLS) == Message("assistant", "b")
    parser = reply_parser(react, tools=TOOLS)
    assert parser.push(answer) == [ReplyDelta(content="a\nFinal Answer: b")]


def test_a_server_elsewhere_reads_its_own_calls() -> None:
    assert parse_reply(CALL, None, tools=TOOLS) == Message("assistant", CALL)


def test_ids_are_like_those_of_openai() -> None:
    ids = {new_call_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"call_[0-9A-Za-z]{24}", id_) for id_ in ids)


TEXTS = st.lists(
    st.sampled_from(
        ["<think>", "</think>", "</", "think>", "\n", " ", "a", CALL, CALL[:30], "<tool_call>", "</tool_call>",
         "\nAction:", "\nAction Input:", " w", "{}", "\nObservation:", "Thought: "]
    ),
    max_size=10,
).map("".join)  # fmt: skip


@given(
    text=st.one_of(TEXTS, st.text(max_size=20)),
    cuts=st.lists(st.integers(0, 150)),
    kind=st.sampled_from(["hermes", "react"]),
    reasoning=st.booleans(),
    starts_in_thought=st.booleans(),
    parallel=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_streamed_and_whole_replies_are_the_same(
    hermes: ChatTemplate,
    react: ChatTemplate,
    text: str,
    cuts: list[int],
    kind: str,
    reasoning: bool,
    starts_in_thought: bool,
    parallel: bool,
) -> None:
    """Of ReAct replies all but those with a final answer, which `test_react_parser` has."""
    template = hermes if kind == "hermes" else react

    def whole() -> Message:
        return parse_reply(
            text,
            template,
            tools=TOOLS,
            reasoning=reasoning,
            starts_in_thought=starts_in_thought,
            parallel=parallel,
            new_id=_ids(),
        )

    parser = reply_parser(
        template,
        tools=TOOLS,
        reasoning=reasoning,
        starts_in_thought=starts_in_thought,
        parallel=parallel,
        new_id=_ids(),
    )
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    deltas = [delta for a, b in itertools.pairwise(edges) for delta in parser.push(text[a:b])]
    assert collect_reply([*deltas, *parser.finish()]) == whole()
