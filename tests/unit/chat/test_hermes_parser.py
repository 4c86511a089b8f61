"""Replies with calls in tags: every slip of small models, in whole and in pieces."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.chat.hermes_parser import HermesParser
from qwenkit.chat.reply import collect_reply

Calls = list[tuple[str, str]]


def _reply(pieces: list[str], *, parallel: bool = True) -> tuple[str, Calls]:
    """Content and calls; checks on the way that a call's id and name come once, before its arguments."""
    ids = itertools.count()
    parser = HermesParser(parallel=parallel, new_id=lambda: f"id{next(ids)}")
    deltas = [delta for piece in pieces for delta in parser.push(piece)]
    deltas += parser.finish()
    parts = [part for delta in deltas for part in delta.tool_calls]
    named = [part.index for part in parts if part.name is not None]
    assert named == [part.index for part in parts if part.id is not None] == list(range(len(named)))
    assert [part.index for part in parts] == sorted(part.index for part in parts)
    assert all(part.arguments == "" for part in parts if part.name is not None)
    assert all(part.arguments != "" for part in parts if part.name is None)
    assert all(delta.content or delta.tool_calls for delta in deltas)
    message = collect_reply(deltas)
    assert [call.id for call in message.tool_calls] == [f"id{i}" for i in range(len(named))]
    assert parser.called == bool(named)
    return message.content, [(call.name, call.arguments) for call in message.tool_calls]


CALL = '<tool_call>\n{"name": "w", "arguments": {"a": 1}}\n</tool_call>'
ONE: Calls = [("w", '{"a": 1}')]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("", "", []),
        (" plain \n", " plain \n", []),
        (CALL, "", ONE),
        (f"\n\n{CALL}\n", "", ONE),
        (f"Let me see.\n{CALL}", "Let me see.", ONE),
        (f" a\n{CALL} \n b\n{CALL}\n c \n", " a\nb\nc", ONE * 2),
        (f"{CALL}after", "after", ONE),
        (f"{CALL}\n{CALL}", "", ONE * 2),
        (CALL.removesuffix("\n</tool_call>"), "", ONE),
        (CALL.removesuffix("ool_call>"), "", ONE),
        (f"{CALL.removesuffix('</tool_call>')}{CALL}", "", ONE * 2),
        # other shapes of the object
        ('<tool_call>{"arguments":{"a": [1, {"b": "}"}]},"name":"w"}</tool_call>', "", [("w", '{"a": [1, {"b": "}"}]}')]),
        ('<tool_call>{"name": "w", "parameters": {"a": 1}}</tool_call>', "", ONE),
        ('<tool_call>{"id": [1, "x"], "name": "w", "n": null, "arguments": {"a": 1}, "z": 2}</tool_call>', "", ONE),
        ('<tool_call>{"name": "w", "arguments": "{\\"a\\": 1}"}</tool_call>', "", ONE),
        ('<tool_call>{"arguments": "{\\"a\\": 1}", "name": "w"}</tool_call>', "", ONE),
        ('<tool_call>{"name": "w", "arguments": "{\\"a\\": \\u00', "", [("w", '{"a": ')]),
        ('<tool_call>{"name": "w"}</tool_call>', "", [("w", "{}")]),
        ('<tool_call>{"name": "w", "arguments": null}</tool_call>', "", [("w", "{}")]),
        ('<tool_call>{"name": "w", "arguments": ""}</tool_call>', "", [("w", "{}")]),
        ('<tool_call>{"name": "w", "arguments": [1]}</tool_call>', "", [("w", "[1]")]),
        ('<tool_call>{"name": "w", "arguments": 12}</tool_call>', "", [("w", "12")]),
        ('<tool_call>{"name": "\\u5317 \\ud83d", "arguments": {}}</tool_call>', "", [("北 \ufffd", "{}")]),
        ('<tool_call>{"name": "w", "arguments": {"a": 1}, "arguments": {"b": 2}, "parameters": 3}</tool_call>', "", ONE),
        ('<tool_call>[{"name": "w", "arguments": {"a": 1}}, {"name": "w", "arguments": {"a": 1}}]</tool_call>', "", ONE * 2),
        ('<tool_call>{"name": "w", "arguments": {"a": 1}}\n{"name": "w", "arguments": {"a": 1}}</tool_call>', "", ONE * 2),
        # tags inside strings are the model's data
        (
            '<tool_call>{"name": "w", "arguments": {"a": "</tool_call>\\"<tool_call>"}}</tool_call>.',
            ".",
            [("w", '{"a": "</tool_call>\\"<tool_call>"}')],
        ),
        # one bracket too many, or too few
        ('<tool_call>{"name": "w", "arguments": {"a": 1}}}</tool_call>!', "!", ONE),
        ('<tool_call>{"name": "w", "arguments": {"a": 1}</tool_call>!', "!", ONE),
        ('<tool_call>{"name": "w", "arguments": {"a": {"b": 1</tool_call>!', "!", [("w", '{"a": {"b": 1')]),
        ('<tool_call>{"name": "w", "arguments": {"a": 1},}</tool_call>!', "!", ONE),
        ('<tool_call>{"name": "w", "arguments": {"a": 1} oops}</tool_call>!', "oops}!", ONE),
        # cut off
        ('<tool_call>{"name": "w", "arguments": {"a": "b', "", [("w", '{"a": "b')]),
        ('<tool_call>{"name": "w", "arguments": {"a": 1}, "nam', "", ONE),
        ('<tool_call>{"name": "w", "argu', '<tool_call>{"name": "w", "argu', []),
        ('<tool_call>{"name": "w', '<tool_call>{"name": "w', []),
        ('<tool_call>{"arguments": {"a": 1}', '<tool_call>{"arguments": {"a": 1}', []),
        ("x <tool_c", "x <tool_c", []),
        ("x <tool_call>", "x <tool_call>", []),
        # no calls
        ("Use <tool_call> tags.", "Use <tool_call> tags.", []),
        ("<tool_call>{'name': 'w'}</tool_call> ", "<tool_call>{'name': 'w'}</tool_call> ", []),
        ('<tool_call>{"name": 3}</tool_call>', '<tool_call>{"name": 3}</tool_call>', []),
        ('<tool_call>{"name": ""}</tool_call>', '<tool_call>{"name": ""}</tool_call>', []),
        ('<tool_call>{"name" "w"}</tool_call>', '<tool_call>{"name" "w"}</tool_call>', []),
        ("<tool_call>{}</tool_call>", "<tool_call>{}</tool_call>", []),
        (f"<tool_call> no\n{CALL}", "<tool_call> no", ONE),
        (f"<tool_call>{CALL}", "<tool_call>", ONE),
        ("</tool_call> a < b", "</tool_call> a < b", []),
    ],
)  # fmt: skip
def test_replies(text: str, content: str, calls: Calls) -> None:
    assert _reply([text]) == (content, calls)
    assert _reply(list(text)) == (content, calls)
    for cut in range(len(text)):
        assert _reply([text[:cut], text[cut:]]) == (content, calls)


def test_only_the_first_call_where_one_is_wanted() -> None:
    text = f"a {CALL} b {CALL} c"
    assert _reply([text], parallel=False) == ("a", ONE)
    assert _reply(list(text), parallel=False) == ("a", ONE)
    parser = HermesParser(parallel=False, new_id=lambda: "id")
    parser.push(CALL.partition("}}")[0])
    assert not parser.done
    parser.push("}}")
    assert parser.done


def test_what_is_sent_when() -> None:
    parser = HermesParser(parallel=True, new_id=lambda: "id")

    def said(text: str) -> list[str]:
        parts: list[Any] = [delta.tool_calls[0] if delta.tool_calls else delta for delta in parser.push(text)]
        return [part.content if hasattr(part, "content") else part.name or part.arguments for part in parts]

    assert said("Let me ") == ["Let me"]
    assert said("see.\n<tool") == [" see."]
    assert said('_call>\n{"name": "w", "arg') == []
    assert said('uments": ') == []
    assert said("{") == ["w", "{"]
    assert said('"city": "Ber') == ['"city": "Ber']
    assert said('lin"}') == ['lin"}']
    assert said("}\n</tool_call>") == []
    assert said("\nDone.") == ["\nDone."]


PIECES = [
    "<tool_call>", "</tool_call>", "<tool_", "call>", "<", "{", "}", "[", "]", '"', "\\", ":", ", ", "\n", " ",
    '"name": ', '"w"', '"arguments": ', '"parameters": ', '{"a": 1}', '"{}"', "null", "7", "hi", "\\u12", "é",
    '{"name": "w", ', CALL, CALL[:40], CALL[-20:],
]  # fmt: skip
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map("".join)


@given(text=TEXTS, cuts=st.lists(st.integers(0, 200)), parallel=st.booleans())
@settings(max_examples=800, deadline=None)
def test_cuts_do_not_matter(text: str, cuts: list[int], parallel: bool) -> None:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    whole = _reply([text], parallel=parallel)
    assert _reply(pieces, parallel=parallel) == whole
    assert _reply(list(text), parallel=parallel) == whole
    if not whole[1]:
        assert whole[0] == text


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=9)
    | st.sampled_from(["<tool_call>", "</tool_call>"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=6,
)


@given(
    calls=st.lists(st.tuples(st.text(min_size=1, max_size=5), st.dictionaries(st.text(max_size=5), JSON, max_size=3)), min_size=1, max_size=3),
    ascii_only=st.booleans(),
    indent=st.sampled_from([None, 1]),
)  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_calls_as_a_model_writes_them(
    calls: list[tuple[str, dict[str, Any]]], ascii_only: bool, indent: int | None
) -> None:
    objects = [{"name": name, "arguments": arguments} for name, arguments in calls]
    dumped = [json.dumps(o, ensure_ascii=ascii_only, indent=indent) for o in objects]
    content, read = _reply(list("\n".join(f"<tool_call>\n{text}\n</tool_call>" for text in dumped)))
    assert content == ""
    assert [(name, json.loads(arguments)) for name, arguments in read] == calls


def test_long_arguments_are_quick() -> None:
    parser = HermesParser(parallel=True, new_id=lambda: "id")
    parser.push('<tool_call>{"name": "w", "arguments": {"text": "')
    for _ in range(50_000):
        assert len(parser.push("word \\n")) == 1
    assert parser.push('"}}</tool_call>')[0].tool_calls[0].arguments == '"}'
