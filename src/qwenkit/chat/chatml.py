"""The format of first-generation Qwen.

Knows nothing of models; templates that come with a model are in `jinja`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qwenkit.chat.base import ChatTemplate, check_continues
from qwenkit.chat.react import ReActFormat, write_as_react
from qwenkit.chat.tools import ToolFormat
from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message, ToolSpec
from qwenkit.tokenizer.base import Segment, Tokenizer

DEFAULT_SYSTEM = "You are a helpful assistant."
"""The system text of first-generation Qwen where a conversation brings none."""


class ChatMLTemplate(ChatTemplate):
    """ChatML as Qwen v1 builds it: piece by piece, so that tokens never merge across the parts of a message.

    Conversations with tools, calls or results are written in the ReAct format, which has rules of its own (see
    `react.write_as_react`). After a tool's result the assistant's turn stays open, and the model goes on with it.
    """

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

    @property
    def tool_format(self) -> ToolFormat:
        """ReAct."""
        return ReActFormat()

    @property
    def writes_thoughts(self) -> bool:
        """False."""
        return False

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        **options: Any,
    ) -> list[Segment]:
        """See `ChatTemplate.render`; takes no options."""
        if options:
            raise TemplateError(f"the ChatML format has no option {', '.join(sorted(options))}; leave it out")
        if continue_final:
            check_continues(messages)
        is_open = continue_final
        if tools or any(m.tool_calls or m.role in ("tool", "function") for m in messages):
            written = write_as_react(messages, tools, for_reply=add_generation_prompt)
            messages = written.turns
            if written.system is not None:
                messages = (Message("system", written.system), *messages)
            is_open = is_open or (add_generation_prompt and written.continues_last)
        if not messages or messages[0].role != "system":
            messages = (Message("system", self._default_system), *messages)
        prompt: list[Segment] = []
        for message in messages:
            prompt += ["\n"] if prompt else []
            prompt += [self._start, message.role, "\n", message.content, self._end]
        if is_open:
            return prompt[:-1]
        if add_generation_prompt:
            prompt += ["\n", self._start, "assistant", "\n"]
        return prompt
