"""Conversations with a transformers model: prompts, replies whole and in pieces, where they end."""

from __future__ import annotations

import json
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationConfig

from qwenkit.core.errors import InputError
from qwenkit.hf import QWenConfig, QWenLMHeadModel, QWenTokenizer
from qwenkit.hf.stopping import StopAtSequences
from tests.support.hf_models import SIZES

DATA = Path(__file__).parents[2] / "data" / "chat"


@pytest.fixture(scope="module")
def tokenizer(qwen_tiktoken: Path) -> QWenTokenizer:
    return QWenTokenizer(str(qwen_tiktoken))


class Scripted(QWenLMHeadModel):
    """Says given tokens, whatever the prompt, and remembers prompts."""

    def __init__(self) -> None:
        super().__init__(
            QWenConfig(**SIZES | {"vocab_size": 151936, "hidden_size": 8, "num_hidden_layers": 1})
        )
        self.eval()
        self.generation_config = GenerationConfig(
            chat_format="chatml", eos_token_id=151643, pad_token_id=151643, max_new_tokens=64, do_sample=False
        )
        self.script: list[int] = []
        self.prompts: list[list[int]] = []
        self.steps = 0

    def say(self, *tokens: int) -> Scripted:
        self.script, self.prompts, self.steps = list(tokens), [], 0
        return self

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        if input_ids.shape[1] > 1:
            self.prompts.append(input_ids[0].tolist())
            self.steps = 0
        out = super().forward(input_ids, **kwargs)
        out.logits = torch.zeros_like(out.logits)
        if self.steps < len(self.script):
            out.logits[:, -1, self.script[self.steps]] = 9.0
        self.steps += 1
        return out


@pytest.fixture(scope="module")
def model() -> Scripted:
    return Scripted()


def test_prompts_equal_the_released_ones(model: Scripted, tokenizer: QWenTokenizer) -> None:
    for case in json.loads((DATA / "make_context.json").read_text("utf-8")):
        model.say(tokenizer.im_end_id)
        history = [tuple(pair) for pair in case["history"]]
        model.chat(tokenizer, case["query"], history, case["system"], max_window_size=case["max_window_size"])
        assert model.prompts == [case["ids"]]


def test_reply_and_history(model: Scripted, tokenizer: QWenTokenizer) -> None:
    model.say(*tokenizer.encode(" Hello, 世界! "), tokenizer.im_end_id, 11, 11)
    past = [("a", "b")]
    reply, history = model.chat(tokenizer, "q", past)
    assert reply == "Hello, 世界!"
    assert history == [("a", "b"), ("q", "Hello, 世界!")]
    assert past == [("a", "b")]
    assert model.chat(tokenizer, "q", None)[1] == [("q", "Hello, 世界!")]


@pytest.mark.parametrize("end", ["<|im_end|>", "<|im_start|>", "<|endoftext|>"])
def test_what_ends_a_reply(model: Scripted, tokenizer: QWenTokenizer, end: str) -> None:
    model.say(9707, tokenizer.special_tokens[end], 11)
    assert model.chat(tokenizer, "q")[0] == "Hello"
    assert model.steps == 2


def test_length_limit_keeps_the_last_token(model: Scripted, tokenizer: QWenTokenizer) -> None:
    model.say(9707, 11, 1879, 0)
    assert model.chat(tokenizer, "q", max_new_tokens=3)[0] == "Hello, world"


def test_stop_words_end_the_reply_and_stay_in_it(model: Scripted, tokenizer: QWenTokenizer) -> None:
    words = tokenizer.encode("It is so.\nObservation: never")
    model.say(*words)
    stop = [tokenizer.encode("Observation:")]
    assert model.chat(tokenizer, "q", stop_words_ids=stop)[0] == "It is so.\nObservation:"
    config = GenerationConfig.from_dict({**model.generation_config.to_dict(), "stop_words_ids": stop})
    assert model.chat(tokenizer, "q", generation_config=config)[0] == "It is so.\nObservation:"


def test_base_models_do_not_chat(model: Scripted, tokenizer: QWenTokenizer) -> None:
    with pytest.raises(InputError, match="raw"):
        model.chat(tokenizer, "q", generation_config=GenerationConfig(chat_format="raw"))


def test_model_defaults_are_not_changed(model: Scripted, tokenizer: QWenTokenizer) -> None:
    before = model.generation_config.to_dict()
    model.say(11, tokenizer.im_end_id)
    model.chat(tokenizer, "q", max_new_tokens=7, max_window_size=100)
    assert model.generation_config.to_dict() == before


def test_stream_grows_and_holds_back_half_characters(model: Scripted, tokenizer: QWenTokenizer) -> None:
    text = "Hi 👨‍👩‍👧 根!"
    model.say(*tokenizer.encode(text), tokenizer.im_end_id, 11)
    pieces = list(model.chat_stream(tokenizer, "q"))
    assert pieces[-1] == text
    assert not any("�" in piece for piece in pieces)
    assert all(new.startswith(old) for old, new in pairwise(pieces))
    assert len(pieces) > 4


def test_stream_reports_errors_of_generation(model: Scripted, tokenizer: QWenTokenizer) -> None:
    with pytest.raises(ValueError, match="beam"):
        list(model.chat_stream(tokenizer, "q", num_beams=2))


def test_closing_the_stream_ends_generation(model: Scripted, tokenizer: QWenTokenizer) -> None:
    model.say(*[9707] * 10_000)
    stream = model.chat_stream(tokenizer, "q", max_new_tokens=10_000)
    assert next(stream) == "Hello"
    stream.close()
    assert model.steps < 1000
    assert "qwenkit-chat-stream" not in [thread.name for thread in threading.enumerate()]


def test_generate_takes_stop_words_per_row(model: Scripted, tokenizer: QWenTokenizer) -> None:
    model.say(9707, 11, 1879, 0)
    ids = torch.tensor([[1, 2], [3, 4]])
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 4}
    out = model.generate(ids, stop_words_ids=[[11, 1879]], **options)
    assert out[:, 2:].tolist() == [[9707, 11, 1879]] * 2


def test_stop_sequences_are_matched_row_by_row() -> None:
    rows = torch.tensor([[1, 2, 3], [3, 2, 1]])
    ends = StopAtSequences([[2, 3], [9, 9, 9, 9]])(rows, None)
    assert ends.tolist() == [True, False]


def test_other_tokenizers_must_be_of_the_library(model: Scripted) -> None:
    with pytest.raises(InputError, match="AutoTokenizer"):
        model.chat(_Nothing(), "q")


class _Nothing:
    pass
