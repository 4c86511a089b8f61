"""Conversations to prompts: the template protocol, and the format of first-generation Qwen.

Knows nothing of models. A prompt is a list of segments, so special tokens enter as ids and text stays text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message, ToolSpec
from qwenkit.tokenizer.base import Segment, Tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The system text of first-generation Qwen where a conversation brings none."""


class ChatTemplate(Protocol):
    """How one model wants a conversation written."""

    @property
    def default_system(self) -> str | None:
        """The system text used where a conversation brings none; None: none, or known only to the template."""

    @property
    def stop_token_sequences(self) -> tuple[tuple[int, ...], ...]:
        """Runs of ids that end the model's turn, besides the end tokens of its generation_config."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> list[Segment]:
        """The prompt for a conversation.

        Args:
            messages: the conversation, oldest first.
            tools: functions the model may call.
            add_generation_prompt: whether to open the assistant's turn at the end.
            options: variables of the template, e.g. ``enable_thinking=False`` of Qwen3.

        Raises:
            TemplateError: the conversation does not fit the template, or the template fails.
        """


class ChatMLTemplate:
    """ChatML as Qwen v1 builds it: piece by piece, so that tokens never merge across the parts of a message."""

    def __init__(self, tokenizer: Tokenizer, *, default_system: str = DEFAULT_SYSTEM) -> None:
        specials = tokenizer.special_tokens
        for form in ("<|im_start|>", "<|im_end|>"):
            if form not in specials:
                raise TemplateError(
                    f"the ChatML format needs the special token {form}, which the tokenizer lacks"
                )
        self._start, self._end = specials["<|im_start|>"], specials["<|im_end|>"]
        self._default_system = default_system

    @property
    def default_system(self) -> str | None:
        """The system text used where a conversation brings none."""
        return self._default_system

    @property
    def stop_token_sequences(self) -> tuple[tuple[int, ...], ...]:
        """``<|im_end|>`` and ``<|im_start|>``."""
        return ((self._end,), (self._start,))

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        **options: Any,
    ) -> list[Segment]:
        """See `ChatTemplate.render`; takes no options."""
        if options:
            raise TemplateError(f"the ChatML format has no option {', '.join(sorted(options))}; leave it out")
        if tools or any(m.tool_calls or m.role in ("tool", "function") for m in messages):
            raise TemplateError(
                "function calling is not available yet for the ChatML format of first-generation Qwen"
            )
        if not messages or messages[0].role != "system":
            messages = (Message("system", self._default_system), *messages)
        prompt: list[Segment] = []
        for message in messages:
            prompt += ["\n"] if prompt else []
            prompt += [self._start, message.role, "\n", message.content, self._end]
        if add_generation_prompt:
            prompt += ["\n", self._start, "assistant", "\n"]
        return prompt


def choose_template(family_chat: str | None, tokenizer: Tokenizer) -> ChatTemplate | None:
    """The template for a model: its family's own format, else the tokenizer's, else ChatML where it has the tokens.

    Returns:
        None when nothing says how this model wants a conversation written.

    Raises:
        TemplateError: the tokenizer's template is malformed, or the family's format needs tokens it lacks.
    """
    if family_chat == "chatml":
        return ChatMLTemplate(tokenizer)
    if tokenizer.chat_template is not None:
        from qwenkit.chat.jinja import JinjaTemplate

        named = getattr(tokenizer, "chat_templates", {})
        return JinjaTemplate(tokenizer.chat_template, tokenizer, tool_source=named.get("tool_use"))
    if {"<|im_start|>", "<|im_end|>"} <= set(tokenizer.special_tokens):
        return ChatMLTemplate(tokenizer)
    return None
