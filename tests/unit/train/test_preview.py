"""What carries loss can be seen, with colour and without."""

from __future__ import annotations

import numpy as np
import pytest

from qwenkit.chat.template import ChatMLTemplate
from qwenkit.core.types import Message
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.train.labels import LabelRules, Rendered, render
from qwenkit.train.preview import preview, preview_plain
from qwenkit.train.samples import Sample
from tests.support.tiny_models import QWEN3_MARKS, byte_level

SAMPLE = Sample(
    (Message("system", "S"), Message("user", "é\x1b[31m"), Message("assistant", "a\n世")), source="f:3"
)


@pytest.fixture(scope="module")
def tokenizer() -> HfTokenizer:
    return byte_level(None, marks=QWEN3_MARKS)


def _rendered(tokenizer: HfTokenizer, *, structure_loss: bool) -> Rendered:
    rules = LabelRules(structure_loss=structure_loss)
    return render(SAMPLE, tokenizer, ChatMLTemplate(tokenizer), rules)[0]


def test_plain(tokenizer: HfTokenizer) -> None:
    assert preview_plain(_rendered(tokenizer, structure_loss=False), tokenizer) == (
        "f:3: 44 tokens, 6 with loss\n"
        "<|im_start|>system↵\nS<|im_end|>↵\n"
        "<|im_start|>user↵\né\\x1b[31m<|im_end|>↵\n"
        "<|im_start|>assistant↵\n⟦a↵\n世<|im_end|>⟧↵\n"
    )


def test_plain_shows_structure_and_that_the_first_token_is_never_learnt(tokenizer: HfTokenizer) -> None:
    shown = preview_plain(_rendered(tokenizer, structure_loss=True), tokenizer)
    assert shown.startswith(
        "f:3: 44 tokens, 13 with loss\n<|im_start|>system↵\nS⟦<|im_end|>↵\n<|im_start|>⟧user↵\n"
    )
    assert shown.endswith("⟦a↵\n世<|im_end|>↵⟧\n")


def test_colour(tokenizer: HfTokenizer) -> None:
    sequence = _rendered(tokenizer, structure_loss=False)
    text = preview(sequence, tokenizer)
    styled = {text.plain[span.start : span.end]: str(span.style) for span in text.spans}
    assert styled["a↵\n世"] == "green"
    assert styled["user↵\né\\x1b[31m"] == "dim"
    assert [str(s.style) for s in text.spans if text.plain[s.start : s.end] == "<|im_end|>"] == [
        "dim cyan",
        "dim cyan",
        "bold green",
    ]
    unmarked = preview_plain(sequence, tokenizer).replace("⟦", "").replace("⟧", "")
    assert text.plain == unmarked


def test_broken_characters_are_shown(tokenizer: HfTokenizer) -> None:
    sequence = Rendered(np.array(tokenizer.encode("世")[:2], np.int32), np.array([False, True]))
    assert "�" in preview_plain(sequence, tokenizer)
