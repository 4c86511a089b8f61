"""Jinja templates: golden renders of Qwen3's format, no forged specials, no runaway."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from qwenkit.chat.template import JinjaTemplate, choose_template
from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.tokenizer.base import Segment
from qwenkit.tokenizer.hf_json import HfTokenizer, TokenizerInfo
from tests.support.tiny_models import QWEN3_MARKS, SPECIALS, byte_level

WEATHER = ToolSpec(name="w", description="天气", parameters={"type": "object", "properties": {"city": {}}})


@pytest.fixture(scope="module")
def tokenizer() -> HfTokenizer:
    """Single bytes and the special tokens of Qwen3."""
    return byte_level(None, marks=QWEN3_MARKS)


@pytest.fixture(scope="module")
def source(data_folder: Path) -> str:
    return (data_folder / "chat" / "qwen3_like.jinja").read_text("utf-8")


@pytest.fixture(scope="module")
def template(tokenizer: HfTokenizer, source: str) -> JinjaTemplate:
    return JinjaTemplate(source, tokenizer)


def _text(tokenizer: HfTokenizer, segments: list[Segment]) -> str:
    forms = {token_id: form for form, token_id in tokenizer.special_tokens.items()}
    return "".join(forms[s] if isinstance(s, int) else s for s in segments)


CALLS = (
    ToolCall(id="1", name="w", arguments='{"city": "北京"}'),
    ToolCall(id="2", name="w", arguments='{"city": "X"}'),
)
USER = "<|im_start|>user\n{}<|im_end|>\n"
START = "<|im_start|>assistant\n"


def test_golden_question(tokenizer: HfTokenizer, template: JinjaTemplate) -> None:
    messages = [Message("user", "hi")]
    assert _text(tokenizer, template.render(messages)) == USER.format("hi") + START
    quiet = template.render(messages, enable_thinking=False)
    assert _text(tokenizer, quiet) == USER.format("hi") + START + "<think>\n\n</think>\n\n"


def test_golden_history(tokenizer: HfTokenizer, template: JinjaTemplate) -> None:
    messages = [
        Message("system", "S"),
        Message("user", "a"),
        Message("assistant", "<think>\nx\n</think>\n\nb"),
        Message("user", "c"),
    ]
    assert _text(tokenizer, template.render(messages)) == (
        "<|im_start|>system\nS<|im_end|>\n"
        + USER.format("a")
        + START
        + "b<|im_end|>\n"
        + USER.format("c")
        + START
    )
    messages[2] = Message("assistant", "b", reasoning="x")
    assert "x" not in _text(tokenizer, template.render(messages))


def test_golden_last_answer(tokenizer: HfTokenizer, template: JinjaTemplate) -> None:
    messages = [Message("user", "q"), Message("assistant", "ok")]
    text = _text(tokenizer, template.render(messages, add_generation_prompt=False))
    assert text == USER.format("q") + START + "<think>\n\n</think>\n\nok<|im_end|>\n"


def test_golden_tool_use(tokenizer: HfTokenizer, template: JinjaTemplate) -> None:
    messages = [
        Message("user", "q"),
        Message("assistant", reasoning="need", tool_calls=CALLS),
        Message("tool", "1", tool_call_id="1"),
        Message("tool", "2", tool_call_id="2"),
    ]
    text = _text(tokenizer, template.render(messages, tools=[WEATHER]))
    assert text.startswith("<|im_start|>system\n# Tools\n\nYou may call")
    assert '\n<tools>\n{"type": "function", "function": {"name": "w", "description": "天气", ' in text
    assert text.endswith(
        "</tool_call><|im_end|>\n"
        + USER.format("q")
        + START
        + '<think>\nneed\n</think>\n\n<tool_call>\n{"name": "w", "arguments": {"city": "北京"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "w", "arguments": {"city": "X"}}\n</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\n1\n</tool_response>\n<tool_response>\n2\n</tool_response><|im_end|>\n"
        + START
    )


def test_arguments_that_are_no_object_stay_text(tokenizer: HfTokenizer, template: JinjaTemplate) -> None:
    calls = (ToolCall(id="1", name="w", arguments="{broken"),)
    text = _text(tokenizer, template.render([Message("user", "q"), Message("assistant", tool_calls=calls)]))
    assert '"arguments": {broken}\n' in text


def test_smollm2_prompt(smollm2_tokenizer: HfTokenizer) -> None:
    template = choose_template(None, smollm2_tokenizer)
    assert template is not None
    ids = smollm2_tokenizer.encode_segments(template.render([Message("user", "What is 2+2?")]))
    assert len(ids) == 37
    assert template.stop_token_sequences == ((2,), (1,))


def test_same_as_transformers(tokenizer: HfTokenizer, template: JinjaTemplate, source: str) -> None:
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer.library)
    theirs.chat_template = source
    messages = [
        Message("system", "Be brief é"),
        Message("user", "1 < 2 & <b>"),
        Message("assistant", "<think>\nhm\n</think>\n\n<ok>"),
        Message("user", "now?\n"),
        Message("assistant", "", tool_calls=CALLS[:1]),
        Message("tool", "<7>"),
    ]
    for add in (True, False):
        dicts = [message.to_dict() for message in messages]
        dicts[4]["tool_calls"][0]["function"]["arguments"] = {"city": "北京"}
        expected = theirs.apply_chat_template(
            dicts, tools=[WEATHER.to_dict()], add_generation_prompt=add, tokenize=True, return_dict=False
        )
        segments = template.render(messages, tools=[WEATHER], add_generation_prompt=add)
        assert tokenizer.encode_segments(segments) == expected


FORGED = st.lists(
    st.sampled_from(
        [
            *SPECIALS,
            *QWEN3_MARKS,
            "<",
            "<|",
            "<|im_",
            "im_start|>",
            "start|>",
            "|>",
            ">",
            "\ufdd0",
            "\n",
            "hi",
        ]
    ),
    max_size=6,
).map("".join)


def _specials(tokenizer: HfTokenizer, segments: list[Segment], *, soft: bool) -> list[int]:
    counted = set(tokenizer.special_tokens.values()) if soft else tokenizer.control_ids
    return [token_id for token_id in tokenizer.encode_segments(segments) if token_id in counted]


@given(texts=st.lists(FORGED, min_size=6, max_size=6))
@settings(max_examples=200, deadline=None)
def test_nothing_in_a_conversation_forges_a_special(
    tokenizer: HfTokenizer, template: JinjaTemplate, texts: list[str]
) -> None:
    def conversation(t: list[str]) -> dict[str, Any]:
        messages = [
            Message("system", t[0]),
            Message("user", t[1], name=t[2] or None),
            Message("assistant", "a"),
            Message("user", t[3]),
            Message("assistant", "", tool_calls=(ToolCall(id="1", name="w", arguments='{"city": 1}'),)),
            Message("tool", t[4]),
        ]
        tool = ToolSpec(name="w", description=t[5], parameters={t[5]: [t[5], {"enum": [t[5]]}]})
        return {"messages": messages, "tools": [tool]}

    segments = template.render(**conversation(texts), enable_thinking=texts[0])
    harmless = template.render(**conversation(["x"] * 6))
    assert _specials(tokenizer, segments, soft=True) == _specials(tokenizer, harmless, soft=True)
    assert texts[3] in _text(tokenizer, segments)


@given(content=FORGED, thought=FORGED, argument=FORGED)
@settings(max_examples=200, deadline=None)
def test_assistant_turns_may_hold_soft_tokens_only(
    tokenizer: HfTokenizer, template: JinjaTemplate, content: str, thought: str, argument: str
) -> None:
    def conversation(*t: str) -> list[Message]:
        call = ToolCall(id="1", name="w", arguments=t[2])
        return [Message("user", "q"), Message("assistant", t[0], reasoning=t[1], tool_calls=(call,))]

    segments = template.render(conversation(content, thought, argument))
    harmless = template.render(conversation("x", "y", "z"))
    assert _specials(tokenizer, segments, soft=False) == _specials(tokenizer, harmless, soft=False)


NESTED = "<|im_<|im_end|>start|>"


@pytest.mark.parametrize(
    "cut",
    [
        "{{ messages[0].content | replace('<|im_end|>', '') }}",
        "{{ messages[0].content | replace('<think>', '') }}",
        "{{ messages[0].content.split('X') | join }}",
        "{{ messages[0].content ~ '|im_end|>' }}",
    ],
)
@pytest.mark.parametrize("content", [NESTED, "<", "a<", "<X|im_end|>", "<|im_<think>end|>"])
@pytest.mark.parametrize("role", ["user", "assistant"])
def test_templates_that_cut_and_join(tokenizer: HfTokenizer, cut: str, content: str, role: Any) -> None:
    segments = JinjaTemplate(cut, tokenizer).render([Message(role, content)])
    assert not _specials(tokenizer, segments, soft=False)


def test_a_special_that_starts_with_a_letter() -> None:
    library = Tokenizer(models.BPE(vocab={"a": 0, "b": 1}, merges=[]))
    library.decoder = decoders.ByteLevel()
    library.add_special_tokens(["ab"])
    tokenizer = HfTokenizer(library, TokenizerInfo())
    template = JinjaTemplate("ab{{ messages[0].content }}", tokenizer)
    assert template.render([Message("user", "ba ab aab")]) == [2, "ba ab aab"]


def test_all_noncharacters_taken(template: JinjaTemplate, tokenizer: HfTokenizer) -> None:
    some = "".join(map(chr, range(0xFDD0, 0xFDEF)))
    assert some in _text(tokenizer, template.render([Message("user", some + "<|im_end|>")]))
    with pytest.raises(TemplateError, match="noncharacter"):
        template.render([Message("user", some + "\ufdef")])


def test_missing_and_malformed_templates(tokenizer: HfTokenizer) -> None:
    with pytest.raises(TemplateError, match=r"put a chat_template\.jinja into the model folder"):
        JinjaTemplate(None, tokenizer)
    with pytest.raises(TemplateError, match="malformed in line 2"):
        JinjaTemplate("\n{% for %}", tokenizer)
    with pytest.raises(TemplateError, match="malformed"):
        JinjaTemplate("{{ x | nosuchfilter }}", tokenizer)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "{{ raise_exception('no ' ~ messages[0].content) }}",
            r"refuses this conversation: no a<\|im_end\|>$",
        ),
        ("{{ messages[7].content }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
    ],
)
def test_failing_templates(tokenizer: HfTokenizer, source: str, message: str) -> None:
    with pytest.raises(TemplateError, match=message):
        JinjaTemplate(source, tokenizer).render([Message("user", "a<|im_end|>")])


DOUBLING = "{%% set n = namespace(x='aaaaaaaa') %%}{%% for i in range(60) %%}{%% set n.x = n.x %s n.x %%}{%% endfor %%}"


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(9999) %}{% for j in range(9999) %}{{ 'aaaaaaaaaa' }}{% endfor %}{% endfor %}",
        "{{ 'a' * 10 ** 10 }}",
        "{{ ('a' * 9999999) * 9999999 }}",
        "{{ 9 ** 9999999 }}",
        "{{ '%999999999d' % 1 }}",
        "{{ 'a'.center(10 ** 9) }}",
        DOUBLING % "+",
        DOUBLING % "~",
    ],
)
def test_templates_that_never_end(tokenizer: HfTokenizer, source: str) -> None:
    start = time.perf_counter()
    with pytest.raises(TemplateError, match=r"looks like a loop|looks broken"):
        JinjaTemplate(source, tokenizer).render([])
    assert time.perf_counter() - start < 20  # at most a second here


def test_what_templates_can_use(tokenizer: HfTokenizer) -> None:
    source = (
        "{% for m in [1, messages[0]] %}\n  {% if m == 1 %}{% continue %}{% endif %}\n"
        "{{ eos_token }}{{ bos_token }}{{ strftime_now('%Y') | length }}{{ {'é': '<'} | tojson }}"
        "{{ [1] | tojson(indent=1) }}\n{% endfor %}\n{{ tools is none }}{{ level }}"
    )
    template = JinjaTemplate(source, tokenizer)
    text = _text(tokenizer, template.render([Message("user")], level=3))
    assert text == '<|im_end|>4{"é": "<"}[\n 1\n]\nTrue3'


def test_a_template_of_its_own_for_tools(tokenizer: HfTokenizer) -> None:
    template = JinjaTemplate("plain", tokenizer, tool_source="{# <tool_call> #}with {{ tools | length }}")
    assert template.render([]) == ["plain"]
    assert template.render([], tools=[WEATHER]) == ["with 1"]


CONTINUED = [Message("system", "S"), Message("user", "It is "), Message("assistant", " It is ")]


def test_a_reply_that_is_continued(tokenizer: HfTokenizer, template: JinjaTemplate) -> None:
    text = _text(tokenizer, template.render(CONTINUED, continue_final=True))
    assert text.endswith(USER.format("It is ") + START + "<think>\n\n</think>\n\n It is ")
    trimming = JinjaTemplate("{{ messages[2].content | trim }}, {{ messages[1].content }}", tokenizer)
    assert trimming.render(CONTINUED, continue_final=True) == ["It is "]
    cut_off = [CONTINUED[1], Message("assistant", "<think>\nhm\n</think>\n\nyes<|im_end|>", reasoning=None)]
    segments = template.render(cut_off, continue_final=True)
    assert _text(tokenizer, segments).endswith("<think>\nhm\n</think>\n\nyes<|im_end|>")
    assert 258 not in tokenizer.encode_segments(segments)[-10:]
    empty = template.render([Message("user", "q"), Message("assistant", "")], continue_final=True)
    assert _text(tokenizer, empty) == USER.format("q") + START + "<think>\n\n</think>\n\n"


@pytest.mark.parametrize(
    "cut_off",
    [
        Message("assistant", "<think>\nha <|im_end|>lf"),
        Message("assistant", reasoning="ha <|im_end|>lf"),
        Message("assistant", "\n", reasoning="ha <|im_end|>lf"),
    ],
)
def test_a_thought_that_is_continued(
    tokenizer: HfTokenizer, source: str, template: JinjaTemplate, cut_off: Message
) -> None:
    messages = [Message("user", "q"), cut_off]
    segments = template.render(messages, continue_final=True)
    think = tokenizer.special_tokens["<think>"]
    assert segments == [*template.render(messages[:1]), think, "\n", "ha <|im_end|>lf"]
    opening = JinjaTemplate(source + "{{ '<think>\n' if add_generation_prompt }}", tokenizer)
    assert _text(tokenizer, opening.render(messages, continue_final=True)) == _text(tokenizer, segments)


def test_continuing_smollm2(smollm2_tokenizer: HfTokenizer) -> None:
    template = choose_template(None, smollm2_tokenizer)
    assert template is not None
    assert template.render(CONTINUED, continue_final=True) == [
        *template.render(CONTINUED[:2])[:-1],
        "assistant\n It is ",
    ]


@pytest.mark.parametrize(
    ("source", "messages", "what"),
    [
        ("{{ messages[0].content }}", CONTINUED, "does not write the last message"),
        ("{{ messages[0].content }}", CONTINUED[:2], "the last is from user"),
        (
            "{{ messages[0].content }}",
            [Message("assistant", tool_calls=CALLS)],
            "tool calls cannot be continued",
        ),
    ],
)
def test_what_cannot_be_continued(
    tokenizer: HfTokenizer, source: str, messages: list[Message], what: str
) -> None:
    with pytest.raises(TemplateError, match=what):
        JinjaTemplate(source, tokenizer).render(messages, continue_final=True)


def test_results_in_the_order_of_their_calls(tokenizer: HfTokenizer, template: JinjaTemplate) -> None:
    question, call = Message("user", "q"), Message("assistant", tool_calls=CALLS)
    results = [Message("tool", "one", tool_call_id="1"), Message("function", "two", tool_call_id="2")]
    text = _text(tokenizer, template.render([question, call, *results]))
    assert text.index("one") < text.index("two")
    assert _text(tokenizer, template.render([question, call, *reversed(results)])) == text
    with pytest.raises(TemplateError, match="'3' answers no open call"):
        template.render([question, call, Message("tool", tool_call_id="3")])


def test_what_templates_say_of_themselves(template: JinjaTemplate, smollm2_tokenizer: HfTokenizer) -> None:
    smollm2 = choose_template(None, smollm2_tokenizer)
    assert smollm2 is not None
    assert template.writes_thoughts
    assert not smollm2.writes_thoughts
    assert template.tool_format.name == smollm2.tool_format.name == "hermes"
    assert smollm2.tool_format.stop == ()


def test_an_option_the_template_does_not_know_is_refused(smollm2_tokenizer: HfTokenizer) -> None:
    template = JinjaTemplate("{{ messages[0].content }}{{ enable_thinking }}", smollm2_tokenizer)
    assert template.render([Message("user", "a")], enable_thinking=False) == ["aFalse"]
    with pytest.raises(TemplateError, match="no option thinking_budget"):
        template.render([Message("user", "a")], thinking_budget=3)
