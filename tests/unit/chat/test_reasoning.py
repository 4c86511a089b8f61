"""Thought and answer apart, at once and in pieces."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.chat.reasoning import ReasoningSplitter, opens_thought, split_reasoning


@pytest.mark.parametrize(
    ("reply", "content", "thought"),
    [
        ("<think>\nhm\n</think>\n\nyes\n", "yes", "hm"),
        ("<think>\n\n</think>\n\nyes", "yes", ""),
        ("hm\n</think>\n\nyes", "yes", "hm"),  # the prompt held the opening tag
        ("<think>a</think>b</think>c", "c", "ab"),
        ("yes", "yes", None),
        ("<think>\ncut off", "<think>\ncut off", None),
        ("", "", None),
    ],
)
def test_whole_replies(reply: str, content: str, thought: str | None) -> None:
    assert split_reasoning(reply) == (content, thought)


def _stream(pieces: list[str], *, starts_in_thought: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(starts_in_thought=starts_in_thought)
    parts = [*map(splitter.push, pieces), splitter.flush()]
    return "".join(content for content, _ in parts), "".join(thought for _, thought in parts)


@pytest.mark.parametrize(
    ("reply", "content", "thought"),
    [
        ("<think>\nhm\n</think>\n\nyes", "yes", "hm"),
        ("\n <think>hm</think>yes\n", "yes\n", "hm"),
        ("yes <think>no</think>", "yes <think>no</think>", ""),
        ("<thin ice", "<thin ice", ""),
        ("<thi", "<thi", ""),
        ("<think>\nlong\n\nthought\n", "", "long\n\nthought"),
        ("<think>a</thi", "", "a</thi"),
        ("<think>a</think>\n", "", "a"),
        ("<think>a<b</think>c</think>", "c</think>", "a<b"),
        ("  ", "  ", ""),
    ],
)
def test_streamed_replies(reply: str, content: str, thought: str) -> None:
    assert _stream([reply]) == (content, thought)
    assert _stream(list(reply)) == (content, thought)


def test_a_prompt_that_opens_the_thought() -> None:
    assert _stream(["\nhm\n</thi", "nk>\n\nyes"], starts_in_thought=True) == ("yes", "hm")


def test_pieces_come_as_soon_as_they_are_certain() -> None:
    splitter = ReasoningSplitter()
    pushed = ["<thi", "nk>\nI ", "see\n", "more</", "think>", "\n\n", "Yes", "!"]
    expected = [("", ""), ("", "I "), ("", "see"), ("", "\nmore"), ("", ""), ("", ""), ("Yes", ""), ("!", "")]
    assert [splitter.push(piece) for piece in pushed] == expected


@given(
    text=st.lists(st.sampled_from(["<think>", "</think>", "<", "</", "think>", "\n", " ", "a", "bc"])).map(
        "".join
    ),
    cuts=st.lists(st.integers(0, 60)),
    inside=st.booleans(),
)
@settings(max_examples=400, deadline=None)
def test_cuts_do_not_matter(text: str, cuts: list[int], inside: bool) -> None:
    edges = sorted({0, len(text), *(cut % (len(text) + 1) for cut in cuts)})
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    assert _stream(pieces, starts_in_thought=inside) == _stream([text], starts_in_thought=inside)


@pytest.mark.parametrize(
    ("prompt", "is_open"),
    [
        ([1, "assistant\n<think>\n"], True),
        ([1, "assistant", "\n", 3, "\n"], True),
        ([1, "assistant\n", "<think>\nhalf a thou"], True),
        ([1, "assistant\n<think>\n\n</think>\n\n"], False),
        ([1, "assistant\n"], False),
        ([1, "user\n<think>", 2, "\n", 1, "assistant\n"], False),
        ([1, "assistant\nThe tag <think>"], False),
        (["Assistant: <think>\n"], True),
        (["User: <think> Assistant:"], False),
        ([], False),
    ],
)
def test_whether_a_prompt_opens_a_thought(prompt: list[int | str], is_open: bool) -> None:
    forms = {1: b"<|im_start|>", 2: b"<|im_end|>", 3: b"<think>"}
    tokenizer: Any = SimpleNamespace(control_ids=frozenset({1, 2}), token_bytes=forms.__getitem__)
    assert opens_thought(prompt, tokenizer) == is_open
