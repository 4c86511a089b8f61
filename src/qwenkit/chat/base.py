"""What every chat template offers: a conversation becomes a prompt.

A prompt is a list of segments, so special tokens enter as ids and text stays text. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from qwenkit.chat.tools import ToolFormat
from qwenkit.core.errors import TemplateError
from qwenkit.core.types import Message, ToolSpec
from qwenkit.tokenizer.base import Segment


class ChatTemplate(Protocol):
    """How one model wants a conversation written."""

    @property
    def default_system(self) -> str | None:
        """The system text used where a conversation brings none; None: none, or known only to the template."""

    @property
    def stop_token_sequences(self) -> tuple[tuple[int, ...], ...]:
        """Runs of ids that end the model's turn, besides the end tokens of its generation_config."""

    @property
    def tool_format(self) -> ToolFormat:
        """How the model writes tool calls when `render` offers it tools."""

    @property
    def writes_thoughts(self) -> bool:
        """Whether replies may start with a thought in ``<think>`` tags."""

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        add_generation_prompt: bool = True,
        continue_final: bool = False,
        **options: Any,
    ) -> list[Segment]:
        """The prompt for a conversation.

        Args:
            messages: the conversation, oldest first.
            tools: functions the model may call.
            add_generation_prompt: whether to open the assistant's turn at the end.
            continue_final: leave the last message, which must be the assistant's, open, so that the model goes on
                writing it; no other turn is opened then.
            options: variables of the template, e.g. ``enable_thinking=False`` of Qwen3.

        Raises:
            TemplateError: the conversation does not fit the template, or the template fails.
        """


def check_continues(messages: Sequence[Message]) -> None:
    """Checks that the last message is one that the model can go on writing.

    Raises:
        TemplateError: it is not the assistant's, or it ends with calls.
    """
    if not messages or messages[-1].role != "assistant":
        role = messages[-1].role if messages else "nobody"
        raise TemplateError(
            f"only a last message of the assistant can be continued, and the last is from {role}; "
            "add the assistant's text so far, or ask for a reply"
        )
    if messages[-1].tool_calls:
        raise TemplateError(
            "a message with tool calls cannot be continued; add the results of the calls instead"
        )
