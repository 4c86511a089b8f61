"""Replies are found in whatever way a template writes them, or the template is refused."""

from __future__ import annotations

import pytest

from qwenkit.chat.template import JinjaTemplate
from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message
from qwenkit.tokenizer.base import Segment
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.train.labels import render
from qwenkit.train.samples import Sample
from qwenkit.train.template_labels import Position, end_of_prefix
from tests.support.tiny_models import QWEN3_MARKS, byte_level
from tests.unit.train.templates import INSTRUCTIONS, OPEN_ENDED, OPENS_THOUGHTS

TWO = Sample(tuple(Message(role, text) for role, text in (("user", "q"), ("assistant", "a")) * 2))


@pytest.fixture(scope="module")
def tokenizer() -> HfTokenizer:
    return byte_level(None, marks=QWEN3_MARKS)


def _learnt(tokenizer: HfTokenizer, source: str, sample: Sample = TWO) -> str:
    """The whole with replies in brackets."""
    (sequence,) = render(sample, tokenizer, JinjaTemplate(source, tokenizer))
    text, inside = "", False
    for token_id, has_loss in zip(sequence.ids.tolist(), sequence.has_loss.tolist(), strict=True):
        text += "[" * (has_loss and not inside) + "]" * (inside and not has_loss)
        text += tokenizer.decode([token_id])
        inside = has_loss
    return text + "]" * inside


def test_end_token_that_only_comes_between_messages(tokenizer: HfTokenizer) -> None:
    user, start = "<|im_start|>user\nq<|im_end|>\n", "<|im_start|>assistant\n"
    assert _learnt(tokenizer, OPEN_ENDED) == f"{user}{start}[a<|im_end|>]\n{user}{start}[a<|im_end|>]"


def test_template_without_headers(tokenizer: HfTokenizer) -> None:
    assert (
        _learnt(tokenizer, INSTRUCTIONS)
        == "[INST] q [/INST][ a<|endoftext|>][INST] q [/INST][ a<|endoftext|>]"
    )


def test_empty_replies(tokenizer: HfTokenizer) -> None:
    sample = Sample((Message("user", "q"), Message("assistant", "")))
    assert _learnt(tokenizer, INSTRUCTIONS, sample) == "[INST] q [/INST][ <|endoftext|>]"
    assert _learnt(tokenizer, OPEN_ENDED, sample).endswith("<|im_start|>assistant\n[<|im_end|>]")


def test_unanswered_question_at_the_end(tokenizer: HfTokenizer) -> None:
    sample = Sample((*TWO.messages[:2], Message("user", "z")))
    assert _learnt(tokenizer, INSTRUCTIONS, sample) == "[INST] q [/INST][ a<|endoftext|>][INST] z [/INST]"


def test_template_that_never_writes_what_it_asks_for(tokenizer: HfTokenizer) -> None:
    with pytest.raises(TemplateError, match="writes message 4, a reply, in another way than it opens one"):
        _learnt(tokenizer, OPENS_THOUGHTS)


def test_template_that_refuses(tokenizer: HfTokenizer) -> None:
    with pytest.raises(TemplateError, match="only user and assistant"):
        _learnt(tokenizer, INSTRUCTIONS, Sample((Message("system", "S"), *TWO.messages)))


@pytest.mark.parametrize(
    ("part", "whole", "end"),
    [
        ([], [1, "a"], (0, 0)),
        ([1, "a"], [1, "a"], (2, 0)),
        ([1, "a"], [1, "ab", 2], (1, 1)),
        ([1, "ab"], [1, "a", 2], None),
        ([2], [1, "a"], None),
        ([1, "a", 2], [1, "a"], None),
        ([1, 2, "a"], [1, 3, "ab"], None),
        ([1], ["1"], None),
    ],
)
def test_end_of_prefix(part: list[Segment], whole: list[Segment], end: Position | None) -> None:
    assert end_of_prefix(part, whole) == end
