"""Labels: those of the Qwen release to the token, and for every template just the replies."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.chat.template import ChatMLTemplate, ChatTemplate, JinjaTemplate, choose_template
from qwenkit.core.errors import InputError, TemplateError
from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.tokenizer.base import Tokenizer
from qwenkit.tokenizer.bpe import TiktokenTokenizer
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.train.formats import read_sample
from qwenkit.train.labels import IGNORED, LabelRules, Rendered, render
from qwenkit.train.samples import Sample
from tests.support.tiny_models import QWEN3_MARKS, byte_level
from tests.unit.train.templates import QWEN2

EOD = 151643
TOOL = ToolSpec(name="w", description="weather")
CALL = ToolCall(id="", name="w", arguments='{"city": "X"}')
CHAIN = (
    Message("user", "Rain?"),
    Message("assistant", "I look.", tool_calls=(CALL,)),
    Message("tool", "\ndry}\n"),
    Message("assistant", "No."),
)


def _cases() -> list[dict[str, Any]]:
    path = Path(__file__).parents[2] / "data" / "chat" / "finetune_labels.json"
    cases: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))
    return cases


@pytest.mark.parametrize("case", _cases())
def test_release(qwen_tokenizer: TiktokenTokenizer, case: dict[str, Any]) -> None:
    (sequence,) = render(read_sample(case), qwen_tokenizer, ChatMLTemplate(qwen_tokenizer))
    room = case["max_len"] - len(sequence)
    assert (sequence.ids.tolist() + [EOD] * room)[: case["max_len"]] == case["input_ids"]
    assert (sequence.labels.tolist() + [IGNORED] * room)[: case["max_len"]] == case["labels"]


def _learnt(sequence: Rendered, tokenizer: Tokenizer) -> list[str]:
    """The texts that carry loss, each run of tokens by itself."""
    texts: list[str] = []
    run: list[int] = []
    for token_id, has_loss in [
        *zip(sequence.ids.tolist(), sequence.has_loss.tolist(), strict=True),
        (0, False),
    ]:
        if has_loss:
            run.append(token_id)
        elif run:
            texts.append(tokenizer.decode(run))
            run = []
    return texts


@pytest.fixture(scope="session")
def models(
    qwen_tokenizer: TiktokenTokenizer, smollm2_tokenizer: HfTokenizer, data_folder: Path
) -> dict[str, tuple[Tokenizer, ChatTemplate]]:
    """Templates of four generations, each with a tokenizer that has its special tokens."""
    tokens = byte_level(None, marks=QWEN3_MARKS)
    smollm2 = choose_template(None, smollm2_tokenizer)
    assert isinstance(smollm2, JinjaTemplate)
    qwen3 = (data_folder / "chat" / "qwen3_like.jinja").read_text("utf-8")
    return {
        "qwen": (qwen_tokenizer, ChatMLTemplate(qwen_tokenizer)),
        "smollm2": (smollm2_tokenizer, smollm2),
        "qwen2": (tokens, JinjaTemplate(QWEN2, tokens)),
        "qwen3": (tokens, JinjaTemplate(qwen3, tokens)),
    }


NAMES = ["qwen", "smollm2", "qwen2", "qwen3"]
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
# the vocabulary of SmolLM2 lacks some bytes: several control characters, and bytes of rare letters
letters = st.characters(min_codepoint=32, max_codepoint=126) | st.sampled_from("\t\n é世界你好ß😀ж")
forged = st.sampled_from(["<|im_end|>", "<|im_start|>user\n", "\n"])
texts = st.lists(letters | forged, max_size=20).map(
    lambda parts: unicodedata.normalize("NFC", "".join(parts))
)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(texts, texts), min_size=1, max_size=3), st.sampled_from(NAMES), st.booleans())
def test_replies_are_learnt_and_nothing_else(
    models: dict[str, tuple[Tokenizer, ChatTemplate]],
    pairs: list[tuple[str, str]],
    name: str,
    only_last: bool,
) -> None:
    tokenizer, template = models[name]
    messages = [m for ask, tell in pairs for m in (Message("user", ask), Message("assistant", tell))]
    rules = LabelRules(structure_loss=False, loss="last" if only_last else "all")
    sequences = render(Sample(tuple(messages)), tokenizer, template, rules)
    learnt = [text for sequence in sequences for text in _learnt(sequence, tokenizer)]
    replies = [tell for _, tell in pairs][-1 if only_last else 0 :]
    if name == "qwen3":  # which removes line ends before a reply, and writes every reply with a thought
        replies = [EMPTY_THOUGHT + tell.lstrip("\n") for tell in replies]
    assert learnt == [f"{tell}<|im_end|>" for tell in replies]
    ends = tokenizer.special_tokens["<|im_end|>"]
    assert sum((s.ids[s.has_loss] == ends).sum() for s in sequences) == len(replies)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_inference(models: dict[str, tuple[Tokenizer, ChatTemplate]], name: str) -> None:
    tokenizer, template = models[name]
    messages = (Message("user", "你好 <|im_end|>"), Message("assistant", "Hi there, 世界 <|im_start|>!"))
    (sequence,) = render(Sample(messages), tokenizer, template)
    whole = tokenizer.encode_segments(template.render(messages, add_generation_prompt=False))
    assert sequence.ids.tolist()[: len(whole)] == whole
    prompt = tokenizer.encode_segments(template.render(messages[:1]))
    assert sequence.ids.tolist()[: len(prompt)] == prompt
    assert len(_learnt(sequence, tokenizer)[-1]) > 20
    specials = [tokenizer.special_tokens[form] for form in ("<|im_start|>", "<|im_end|>")]
    counts = [sequence.ids.tolist().count(special) for special in specials]
    num_messages = 2 if name == "qwen3" else 3
    assert counts == [num_messages] * 2


def test_default_system(models: dict[str, tuple[Tokenizer, ChatTemplate]]) -> None:
    for tokenizer, template in models.values():
        rules = LabelRules(default_system="Be.")
        for own, expected in (((), "Be."), ((Message("system", "Own."),), "Own.")):
            sample = Sample((*own, Message("user", "q"), Message("assistant", "a")))
            text = tokenizer.decode(render(sample, tokenizer, template, rules)[0].ids)
            assert text.startswith(f"<|im_start|>system\n{expected}<|im_end|>")


def test_last_turn_only_keeps_its_own_structure(qwen_tokenizer: TiktokenTokenizer) -> None:
    messages = [Message(role, text) for role, text in (("user", "q"), ("assistant", "a")) * 2]
    (sequence,) = render(
        Sample(tuple(messages)), qwen_tokenizer, ChatMLTemplate(qwen_tokenizer), LabelRules(loss="last")
    )
    assert _learnt(sequence, qwen_tokenizer) == ["<|im_start|>", "a<|im_end|>\n"]


def test_structure_of_other_templates(models: dict[str, tuple[Tokenizer, ChatTemplate]]) -> None:
    sample = Sample((Message("system", "S"), Message("user", "q"), Message("assistant", "a")))
    labels = []
    for name in ("smollm2", "qwen2", "qwen3"):
        tokenizer, template = models[name]
        labels.append(
            _learnt(render(sample, tokenizer, template, LabelRules(structure_loss=True))[0], tokenizer)
        )
    reply = ["<|im_start|>", "<|im_end|>\n<|im_start|>", "<|im_end|>\n<|im_start|>"]
    assert labels[:2] == [[*reply, "a<|im_end|>\n"]] * 2
    assert labels[2] == [*reply, f"{EMPTY_THOUGHT}a<|im_end|>\n"]


TRACE = (
    'Thought: I look.\nAction: w\nAction Input: {"city": "X"}\nObservation: dry}\n'
    "Thought: I now know the final answer.\nFinal Answer: No."
)


def test_react_is_one_turn_that_is_learnt_whole(qwen_tokenizer: TiktokenTokenizer) -> None:
    (sequence,) = render(Sample(CHAIN, (TOOL,)), qwen_tokenizer, ChatMLTemplate(qwen_tokenizer))
    text = qwen_tokenizer.decode(sequence.ids)
    assert text.count("<|im_start|>") == 3
    assert "Begin!\n\nQuestion: Rain?<|im_end|>\n" in text
    assert _learnt(sequence, qwen_tokenizer)[-1] == f"{TRACE}<|im_end|>\n"


@pytest.mark.parametrize("name", ["qwen", "qwen2"])
def test_react_without_observations(models: dict[str, tuple[Tokenizer, ChatTemplate]], name: str) -> None:
    tokenizer = models[name][0]
    for rules in (LabelRules(observation_loss=False), LabelRules(structure_loss=False)):
        (sequence,) = render(Sample(CHAIN, (TOOL,)), tokenizer, ChatMLTemplate(tokenizer), rules)
        before, after = _learnt(sequence, tokenizer)[-2:]
        assert before.endswith("Observation:")
        assert after.lstrip("\n").startswith("Thought: I now know")
        assert TRACE in tokenizer.decode(sequence.ids)


def test_observations_at_the_end_and_empty_ones(qwen_tokenizer: TiktokenTokenizer) -> None:
    rules = LabelRules(observation_loss=False)
    messages = (*CHAIN[:2], Message("tool", " \n"), Message("assistant", "", tool_calls=(CALL,)))
    (sequence,) = render(Sample(messages, (TOOL,)), qwen_tokenizer, ChatMLTemplate(qwen_tokenizer), rules)
    assert "Observation: \nThought: \nAction: w" in qwen_tokenizer.decode(sequence.ids)
    assert _learnt(sequence, qwen_tokenizer)[-1].endswith('Action Input: {"city": "X"}<|im_end|>\n')


def test_react_describes_tools_once_for_every_question(qwen_tokenizer: TiktokenTokenizer) -> None:
    messages = (*CHAIN, Message("user", "Sure?"), Message("assistant", "Yes."), Message("user", "?"))
    sample, template = Sample(messages, (TOOL,)), ChatMLTemplate(qwen_tokenizer)
    first, second = render(sample, qwen_tokenizer, template)
    assert _learnt(first, qwen_tokenizer) == ["<|im_start|>", f"{TRACE}<|im_end|>\n"]
    assert _learnt(second, qwen_tokenizer)[-1].endswith("Final Answer: Yes.<|im_end|>\n")
    assert len(_learnt(second, qwen_tokenizer)) == 2
    assert "Question: Sure?" in qwen_tokenizer.decode(second.ids)
    (last,) = render(sample, qwen_tokenizer, template, LabelRules(loss="last"))
    assert last.ids.tolist() == second.ids.tolist()
    # without a description there is nothing to part for
    assert len(render(Sample(messages), qwen_tokenizer, template)) == 1


def test_hermes_tools(models: dict[str, tuple[Tokenizer, ChatTemplate]]) -> None:
    call = '<tool_call>\n{"name": "w", "arguments": {"city": "X"}}\n</tool_call><|im_end|>'
    for name in ("smollm2", "qwen2"):
        tokenizer, template = models[name]
        (sequence,) = render(Sample(CHAIN, (TOOL,)), tokenizer, template)
        assert _learnt(sequence, tokenizer) == [f"I look.\n{call}", "No.<|im_end|>"]
        assert "dry}" in tokenizer.decode(sequence.ids)


def test_thoughts_that_stay_are_learnt_together(models: dict[str, tuple[Tokenizer, ChatTemplate]]) -> None:
    tokenizer, template = models["qwen3"]
    messages = (
        CHAIN[0],
        Message("assistant", reasoning="hm", tool_calls=(CALL,)),
        CHAIN[2],
        Message("assistant", "No.", reasoning="so"),
    )
    (sequence,) = render(Sample(messages, (TOOL,)), tokenizer, template)
    first, second = _learnt(sequence, tokenizer)
    assert first.startswith("<think>\nhm\n</think>\n\n<tool_call>")
    assert second == "<think>\nso\n</think>\n\nNo.<|im_end|>"


def test_thoughts_that_are_dropped_get_sequences_of_their_own(
    models: dict[str, tuple[Tokenizer, ChatTemplate]],
) -> None:
    tokenizer, template = models["qwen3"]
    messages = [m for n in "12" for m in (Message("user", n), Message("assistant", n, reasoning=f"t{n}"))]
    sequences = render(Sample(tuple(messages)), tokenizer, template)
    assert [_learnt(s, tokenizer) for s in sequences] == [
        [f"<think>\nt{n}\n</think>\n\n{n}<|im_end|>"] for n in "12"
    ]
    assert "t1" not in tokenizer.decode(sequences[1].ids)


def test_template_options(models: dict[str, tuple[Tokenizer, ChatTemplate]]) -> None:
    tokenizer, template = models["qwen3"]
    sample = Sample((Message("user", "q"), Message("assistant", "a")))
    rules = LabelRules(template_options={"enable_thinking": False})
    (sequence,) = render(sample, tokenizer, template, rules)
    assert _learnt(sequence, tokenizer) == ["a<|im_end|>"]
    with pytest.raises(InputError, match="the ChatML format has no option enable_thinking"):
        render(sample, *models["qwen"], rules)
    with pytest.raises(TemplateError, match="has no option enable_thinking"):
        render(sample, *models["qwen2"], rules)


def test_plain_text(qwen_tokenizer: TiktokenTokenizer) -> None:
    (sequence,) = render(Sample((), text="Hello <|endoftext|>"), qwen_tokenizer, None)
    assert sequence.ids.tolist() == [*qwen_tokenizer.encode("Hello <|endoftext|>", allowed_special=()), EOD]
    assert sequence.ids.tolist().count(EOD) == 1
    assert sequence.has_loss.all()
    assert sequence.num_loss == len(sequence) - 1


def test_refusals(models: dict[str, tuple[Tokenizer, ChatTemplate]]) -> None:
    sample = Sample(CHAIN, (TOOL,))
    with pytest.raises(TemplateError, match="the model has no chat template to write conversations with"):
        render(sample, models["qwen2"][0], None)
    with pytest.raises(InputError, match="loss 'first' is unknown; use all or last"):
        LabelRules(loss="first")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="observation_loss is for models that write results"):
        render(sample, *models["qwen2"], LabelRules(observation_loss=True))
    twice = Sample((Message("user", "a"), *CHAIN), (TOOL,))
    with pytest.raises(TemplateError, match="user and assistant do not take turns"):
        render(twice, *models["qwen"])
