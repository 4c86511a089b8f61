"""Chat templates in Jinja, as model folders carry them: sandboxed, bounded, and safe against forged specials.

Before rendering, every character in messages and tools that could start a special token is followed by a
noncharacter, so that only the template itself can write specials. Afterwards the text is cut at the specials and
the noncharacter is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwenkit.chat.base import ChatTemplate, check_continues
from qwenkit.chat.hermes import HermesFormat, write_as_text
from qwenkit.chat.hermes_parser import OPEN_TAG as CALL_TAG
from qwenkit.chat.reasoning import OPEN_TAG as THOUGHT_TAG
from qwenkit.chat.reasoning import opens_thought, unfinished_thought
from qwenkit.chat.sandbox import compile_template, render_bounded
from qwenkit.chat.tools import ToolFormat, results_in_order
from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message, ToolSpec
from qwenkit.tokenizer.base import Segment, Tokenizer

if TYPE_CHECKING:
    import jinja2

_MARKS = tuple(map(chr, range(0xFDD0, 0xFDF0)))
"""Noncharacters: Unicode keeps them for use inside a program."""


class JinjaTemplate(ChatTemplate):
    """A chat template in Jinja; no text of a conversation can become a special token through it.

    A template that writes ``<tool_call>`` gets tools, calls and results as they are. For any other they are
    written into the messages (see `hermes.write_as_text`), so that tools are never lost.
    """

    def __init__(self, source: str | None, tokenizer: Tokenizer, *, tool_source: str | None = None) -> None:
        """Compiles the template.

        Args:
            source: the template; None or empty is an error that says what to do.
            tokenizer: whose special tokens are protected.
            tool_source: the template used when tools are given, if it is another.

        Raises:
            TemplateError: no template, or one that is not Jinja.
        """
        if not source:
            raise TemplateError(
                "the tokenizer files hold no chat template; put a chat_template.jinja into the model folder, "
                "or send plain text instead of messages"
            )
        self._template = compile_template(source)
        self._tool_template = compile_template(tool_source) if tool_source else self._template
        self._knows_tools = CALL_TAG in (tool_source or source)
        self._tokenizer = tokenizer
        self._guard = _Guard(tokenizer)
        self._source, self._tool_source = source, tool_source or source
        specials = tokenizer.special_tokens
        ends = [
            specials[form] for form in ("<|im_end|>", "<|im_start|>") if form in specials and form in source
        ]
        self._stops = tuple((token_id,) for token_id in ends)

    @property
    def default_system(self) -> str | None:
        """None: only the template knows."""
        return None

    @property
    def stop_token_sequences(self) -> tuple[tuple[int, ...], ...]:
        """``<|im_end|>`` and ``<|im_start|>`` where the template writes them."""
        return self._stops

    @property
    def tool_format(self) -> ToolFormat:
        """Hermes, whether the template writes it itself or not."""
        return HermesFormat(writes_thoughts=self.writes_thoughts)

    @property
    def writes_thoughts(self) -> bool:
        """Whether the template mentions ``<think>``."""
        return THOUGHT_TAG in self._source

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        **options: Any,
    ) -> list[Segment]:
        """See `ChatTemplate.render`; ``options`` become variables of the template."""
        if continue_final:
            check_continues(messages)
            thought = unfinished_thought(messages[-1]) if self.writes_thoughts else None
            if thought is not None:
                prompt = self.render(messages[:-1], tools=tools, **options)
                return self._with_thought(prompt, thought)
            add_generation_prompt = False
        messages = results_in_order(messages)
        if not self._knows_tools:
            messages, tools = write_as_text(messages, tools), ()
        unknown = [n for n in options if n not in (self._tool_source if tools else self._source)]
        if unknown:
            raise TemplateError(f"the model's chat template has no option {', '.join(unknown)}; leave it out")
        turns, specs = [_template_message(m) for m in messages], [tool.to_dict() for tool in tools]
        mark, *others = _unused_marks((turns, specs, options))
        if not others and continue_final:
            raise TemplateError("the conversation uses nearly every noncharacter; remove them to continue it")
        end = others[0] if continue_final else ""
        variables = {
            **self._guard.protect(options, mark),
            "messages": [self._guard.protect_turn(turn, mark) for turn in turns],
            "tools": self._guard.protect(specs, mark) or None,
            "add_generation_prompt": add_generation_prompt,
        }
        if end:
            variables["messages"][-1]["content"] += end
        text = self._render_text(self._tool_template if tools else self._template, variables, mark + end)
        if end:
            text = _before_last(text, end)
        pieces = self._tokenizer.split_specials(text)
        unmarked = (p if isinstance(p, int) else p.replace(mark, "") for p in pieces)
        return [piece for piece in unmarked if piece != ""]

    def _with_thought(self, prompt: list[Segment], thought: str) -> list[Segment]:
        """Goes on with a thought that was cut off; templates would end it."""
        if not opens_thought(prompt, self._tokenizer):
            prompt = [*prompt, *self._tokenizer.split_specials(THOUGHT_TAG), "\n"]
        return [*prompt, thought] if thought else prompt

    def _render_text(self, template: jinja2.Template, variables: dict[str, Any], marks: str) -> str:
        forms = {
            "bos_token": self._form(self._tokenizer.bos_token_id),
            "eos_token": self._form(self._tokenizer.eos_token_id),
        }
        try:
            return render_bounded(template, {**forms, **variables})
        except TemplateError as error:
            raise TemplateError(re.sub(f"[{marks}]", "", str(error))) from error.__cause__

    def _form(self, token_id: int | None) -> str:
        return "" if token_id is None else self._tokenizer.token_bytes(token_id).decode()


class _Guard:
    """Marks what could start a special token.

    Where a special starts with a sign, such as ``<``, every such sign is marked, so that no joining or cutting
    inside the template can put one together. Where it starts with a letter, its whole form is looked for.
    Added tokens that are not control tokens (``<think>``) are the model's own words: assistant turns keep them.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        specials = tokenizer.special_tokens
        signs = {form[0] for form in specials if not form[0].isalnum() and not form[0].isspace()}
        words = [form for form in specials if form[0] not in signs]
        soft = [form for form, token_id in specials.items() if token_id not in tokenizer.control_ids]
        starts = [
            *(f"{re.escape(word[0])}(?={re.escape(word[1:])})" for word in words),
            *map(re.escape, signs),
        ]
        self._strict = re.compile("|".join(starts)) if starts else None
        kept = "|".join(map(re.escape, sorted(soft, key=len, reverse=True)))
        self._lenient = re.compile(f"({kept})|{'|'.join(starts)}") if soft else self._strict
        self._has_soft = bool(soft)

    def protect(self, value: Any, mark: str, *, keep_soft: bool = False) -> Any:
        """A copy of ``value`` with every text in it marked, keys included."""
        if isinstance(value, str):
            return self._protect_text(value, mark, keep_soft)
        if isinstance(value, Mapping):
            return {
                self.protect(key, mark): self.protect(item, mark, keep_soft=keep_soft)
                for key, item in value.items()
            }
        if isinstance(value, list | tuple):
            return [self.protect(item, mark, keep_soft=keep_soft) for item in value]
        return value

    def protect_turn(self, turn: Mapping[str, Any], mark: str) -> dict[str, Any]:
        """The same of a message, whose role is a word of the program and stays."""
        role = turn["role"]
        return {**self.protect(turn, mark, keep_soft=role == "assistant"), "role": role}

    def _protect_text(self, text: str, mark: str, keep_soft: bool) -> str:
        pattern = self._lenient if keep_soft else self._strict
        if pattern is None:
            return text
        if not keep_soft or not self._has_soft:
            return pattern.sub(lambda match: match.group() + mark, text)
        return pattern.sub(lambda match: match.group() if match[1] else match.group() + mark, text)


def _template_message(message: Message) -> dict[str, Any]:
    """The message as templates expect it: arguments of calls as an object where they are one."""
    turn = message.to_dict()
    for call in turn.get("tool_calls", ()):
        try:
            arguments = json.loads(call["function"]["arguments"])
        except (ValueError, RecursionError):
            continue
        if isinstance(arguments, dict):
            call["function"]["arguments"] = arguments
    return turn


def _unused_marks(values: Any) -> list[str]:
    used = {char for text in _texts(values) for char in _MARKS if char in text}
    free = [mark for mark in _MARKS if mark not in used]
    if not free:
        raise TemplateError("the conversation uses every noncharacter from U+FDD0 to U+FDEF; remove them")
    return free


def _before_last(text: str, end: str) -> str:
    """``text`` up to the end of the last message, where ``end`` stands."""
    before, found, _ = text.rpartition(end)
    if not found:
        raise TemplateError(
            "the chat template does not write the last message's text, so it cannot be continued; ask for a reply"
        )
    return before.replace(end, "")


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        if not value.isascii():
            yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _texts(key)
            yield from _texts(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item)
