"""What every chat template offers: a conversation becomes a prompt.

A prompt is a list of segments, so special tokens enter as ids and text stays text. Knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

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
