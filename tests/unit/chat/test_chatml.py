"""The prompt format of first-generation Qwen, and its history window, against the released helper."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwenkit.chat.template import ChatMLTemplate, ChatTemplate, JinjaTemplate, choose_template, fit_history
from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.tokenizer.bpe import TiktokenTokenizer
from qwenkit.tokenizer.hf_json import HfTokenizer


@pytest.fixture(scope="module")
def template(qwen_tokenizer: TiktokenTokenizer) -> ChatMLTemplate:
    return ChatMLTemplate(qwen_tokenizer)


def _conversation(system: str | None, history: list[tuple[str, str]], query: str) -> list[Message]:
    messages = [] if system is None else [Message("system", system)]
    for question, answer in history:
        messages += [Message("user", question), Message("assistant", answer)]
    return [*messages, Message("user", query)]


PROMPTS = [
    (
        None,
        [],
        "你好",
        "151644 8948 198 2610 525 264 10950 17847 13 151645 198 "
        "151644 872 198 108386 151645 198 151644 77091 198",
    ),
    (
        "S",
        [("a", "b")],
        "Hi",
        "151644 8948 198 50 151645 198 151644 872 198 64 151645 198 "
        "151644 77091 198 65 151645 198 151644 872 198 13048 151645 198 151644 77091 198",
    ),
    (
        "",
        [],
        "<|im_end|>x",
        "151644 8948 198 151645 198 151644 872 198 27 91 318 6213 91 29 87 151645 198 151644 77091 198",
    ),
]


@pytest.mark.parametrize(("system", "history", "query", "expected"), PROMPTS)
def test_released_prompts(
    template: ChatMLTemplate,
    qwen_tokenizer: TiktokenTokenizer,
    system: str | None,
    history: list[tuple[str, str]],
    query: str,
    expected: str,
) -> None:
    prompt = template.render(_conversation(system, history, query))
    assert qwen_tokenizer.encode_segments(prompt) == [int(token_id) for token_id in expected.split()]


def test_golden_prompts(
    template: ChatMLTemplate, qwen_tokenizer: TiktokenTokenizer, data_folder: Path
) -> None:
    cases = json.loads((data_folder / "chat" / "make_context.json").read_text("utf-8"))
    assert len(cases) == 45
    for case in cases:
        messages = _conversation(case["system"], case["history"], case["query"])
        kept = fit_history(template, qwen_tokenizer, messages, case["max_window_size"])
        prompt = template.render(kept)
        assert qwen_tokenizer.encode_segments(prompt) == case["ids"]
        forms = {token_id: form for form, token_id in qwen_tokenizer.special_tokens.items()}
        assert "".join(forms[p] if isinstance(p, int) else p for p in prompt) == case["text"]


@pytest.mark.parametrize(
    ("window", "length"), [(20, 15), (40, 39), (41, 39), (60, 63), (61, 63), (62, 63), (80, 87), (200, 111)]
)
def test_window(
    template: ChatMLTemplate, qwen_tokenizer: TiktokenTokenizer, window: int, length: int
) -> None:
    messages = _conversation("S", [(f"q{i} " * 3, f"a{i} " * 3) for i in range(4)], "now")
    kept = fit_history(template, qwen_tokenizer, messages, window)
    assert len(qwen_tokenizer.encode_segments(template.render(kept))) == length
    assert (kept[0], kept[-1]) == (messages[0], messages[-1])


def test_window_counts_the_default_system(
    template: ChatMLTemplate, qwen_tokenizer: TiktokenTokenizer
) -> None:
    implicit = _conversation(None, [("a", "b")] * 4, "now")
    explicit = [Message("system", template.default_system or ""), *implicit]
    for window in range(0, 70, 3):
        kept = fit_history(template, qwen_tokenizer, implicit, window)
        assert kept == fit_history(template, qwen_tokenizer, explicit, window)[1:]


def test_window_of_smollm2(smollm2_tokenizer: HfTokenizer) -> None:
    """A template that writes its own system text: what is kept fits, and one turn more would not."""
    template = choose_template(None, smollm2_tokenizer)
    assert isinstance(template, JinjaTemplate)
    messages = _conversation(None, [(f"question {i}", f"answer {i}") for i in range(9)], "now")

    def length(part: list[Message]) -> int:
        return len(smollm2_tokenizer.encode_segments(template.render(part, add_generation_prompt=False)))

    question = length([Message("user", "x"), messages[-1]]) - length([Message("user", "x")])
    sizes = set()
    for window in range(20, 200, 5):
        kept = fit_history(template, smollm2_tokenizer, messages, window)
        more = messages[len(messages) - len(kept) - 2 :]
        assert len(kept) == 1 or length(kept) - question < window
        assert len(kept) == len(messages) or length(more) - question >= window
        sizes.add(len(kept))
    assert len(sizes) == 10


def test_a_turn_is_a_question_with_all_that_follows(smollm2_tokenizer: HfTokenizer) -> None:
    template = choose_template(None, smollm2_tokenizer)
    assert template is not None
    system = Message("system", "S")
    greeting = [Message("assistant", "Welcome")]
    turn = [Message("user", "q"), Message("assistant", "a"), Message("assistant", "more")]
    last = [Message("user", "now"), Message("assistant", "partial")]
    messages = [system, *greeting, *turn, *last]
    kept = {len(fit_history(template, smollm2_tokenizer, messages, window)) for window in range(100)}
    assert kept == {3, 6, 7}
    assert fit_history(template, smollm2_tokenizer, messages, 1) == [system, *last]
    assert fit_history(template, smollm2_tokenizer, [system], 1) == [system]
    assert fit_history(template, smollm2_tokenizer, [], 1) == []


def test_a_template_that_wants_turns_in_order(smollm2_tokenizer: HfTokenizer) -> None:
    """No conversation without turns, no two of one role: the window still works."""
    source = """{%- if messages[0].role == 'assistant' %}{{ raise_exception('order') }}{% endif -%}
    {%- for m in messages %}{% if not loop.first and m.role == messages[loop.index0 - 1].role -%}
    {{ raise_exception('order') }}{% endif %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor -%}"""
    template = JinjaTemplate(source, smollm2_tokenizer)
    messages = _conversation(None, [("a", "b")] * 5, "now")
    lengths = {len(fit_history(template, smollm2_tokenizer, messages, window)) for window in range(100)}
    assert lengths == {1, 3, 5, 7, 9, 11}


@pytest.mark.parametrize("which", ["qwen_tokenizer", "smollm2_tokenizer"])
def test_a_long_history_is_quick(which: str, request: pytest.FixtureRequest) -> None:
    tokenizer = request.getfixturevalue(which)
    template = choose_template("chatml" if which == "qwen_tokenizer" else None, tokenizer)
    assert template is not None
    messages = _conversation(None, [(f"question {i}", f"answer {i} " * 20) for i in range(2000)], "now")
    start = time.perf_counter()
    assert len(fit_history(template, tokenizer, messages, 10**9)) == 4001
    assert time.perf_counter() - start < 10  # under a second here


def test_no_generation_prompt(template: ChatMLTemplate) -> None:
    prompt = template.render([Message("system", "S"), Message("user", "q")], add_generation_prompt=False)
    assert prompt == [151644, "system", "\n", "S", 151645, "\n", 151644, "user", "\n", "q", 151645]
    assert template.stop_token_sequences == ((151645,), (151644,))


def test_a_reply_that_is_continued(template: ChatMLTemplate) -> None:
    messages = [Message("user", "q"), Message("assistant", "It is ")]
    prompt = template.render(messages, continue_final=True)
    assert prompt == [*template.render(messages[:1]), "It is "]
    with_tools = template.render(messages, tools=[ToolSpec(name="f")], continue_final=True)
    assert with_tools[-1] == "Thought: I now know the final answer.\nFinal Answer: It is"


@pytest.mark.parametrize(
    ("messages", "options", "what"),
    [
        ([Message("user", "q")], {"enable_thinking": False}, "no option enable_thinking"),
        ([Message("user", "q")], {"continue_final": True}, "the last is from user"),
        ([], {"continue_final": True}, "the last is from nobody"),
        (
            [
                Message("user", "q"),
                Message("assistant", tool_calls=(ToolCall(id="", name="f", arguments=""),)),
            ],
            {"continue_final": True},
            "with tool calls cannot be continued",
        ),
    ],
)
def test_what_the_format_cannot_say(
    template: ChatMLTemplate, messages: list[Message], options: dict[str, object], what: str
) -> None:
    with pytest.raises(TemplateError, match=what):
        template.render(messages, **options)  # type: ignore[arg-type]


TRICKY = st.lists(
    st.sampled_from(["<|im_start|>", "<|im_end|>", "<|", "im_end|>", "<|endoftext|>", "\n", "hi"])
).map("".join)


@given(contents=st.lists(TRICKY, min_size=1, max_size=4))
@settings(max_examples=100, deadline=None)
def test_content_never_forges_a_special(
    template: ChatMLTemplate, qwen_tokenizer: TiktokenTokenizer, contents: list[str]
) -> None:
    def specials(texts: list[str]) -> list[int]:
        roles = ("system", "user", "assistant", "user")
        messages = [Message(role, text) for role, text in zip(roles, texts, strict=False)]  # type: ignore[arg-type]
        ids = qwen_tokenizer.encode_segments(template.render(messages))
        return [token_id for token_id in ids if token_id in qwen_tokenizer.control_ids]

    assert specials(contents) == specials(["x"] * len(contents))


def test_choosing_a_template(
    qwen_tokenizer: TiktokenTokenizer, smollm2_tokenizer: HfTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(choose_template("chatml", qwen_tokenizer), ChatMLTemplate)
    assert isinstance(choose_template(None, smollm2_tokenizer), JinjaTemplate)
    template: ChatTemplate | None = choose_template(None, qwen_tokenizer)
    assert isinstance(template, ChatMLTemplate)
    bare = TiktokenTokenizer({bytes([byte]): byte for byte in range(256)}, {"<|endoftext|>": 256})
    assert choose_template(None, bare) is None
    with pytest.raises(TemplateError, match="which the tokenizer lacks"):
        choose_template("chatml", bare)
