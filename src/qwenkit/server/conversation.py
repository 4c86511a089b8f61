"""A conversation to be answered, whatever protocol it came in: tools, template, the engine's request, the parser of the reply.

Knows no protocol.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from qwenkit.backends.base import Backend
from qwenkit.chat.parser import ReplyParser, reply_parser
from qwenkit.chat.reasoning import opens_thought
from qwenkit.core.types import Message, Request, SamplingParams
from qwenkit.server.errors import refuse
from qwenkit.server.turns import ToolUse
from qwenkit.tokenizer.base import Segment


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """What a client wants answered."""

    messages: tuple[Message, ...]
    params: SamplingParams
    use: ToolUse = field(default_factory=ToolUse)
    template_options: Mapping[str, Any] = field(default_factory=dict)
    continue_final: bool = False
    adapter: str | None = None


class ChatPlan:
    """How a conversation is answered.

    Args:
        conversation: what is wanted.
        backend: answers it.

    Raises:
        ApiError: the model holds no conversations.
    """

    def __init__(self, conversation: Conversation, backend: Backend) -> None:
        check_chat(backend)
        self._conversation, self._backend = conversation, backend
        self._template = backend.template
        self._starts_in_thought = False
        self.has_calls = bool(conversation.use.tools)
        self.has_reasoning = self._template is not None and self._template.writes_thoughts

    def build(self) -> list[Request]:
        """The request for the engine; renders a template where replies may be thoughts. Runs in another thread.

        Raises:
            QwenkitError: the conversation does not fit the template.
        """
        if self.has_reasoning:
            self._starts_in_thought = self._opens_thought()
        wanted = self._conversation
        request = Request(
            prompt=wanted.messages,
            params=self._params(),
            tools=wanted.use.tools,
            template_options=wanted.template_options,
            continue_final=wanted.continue_final,
            adapter=wanted.adapter,
        )
        return [request]

    def new_parser(self) -> ReplyParser:
        """What takes one reply apart; after ``build``."""
        use = self._conversation.use
        return reply_parser(
            self._template,
            tools=use.tools,
            reasoning=self.has_reasoning,
            starts_in_thought=self._starts_in_thought,
            parallel=use.parallel,
        )

    def count_tokens(self) -> int:
        """Tokens of the prompt. Runs in another thread.

        Raises:
            ApiError: the model runs elsewhere, where nobody can be asked.
            QwenkitError: the conversation does not fit the template.
        """
        segments, tokenizer = self._segments(), self._backend.tokenizer
        if segments is None or tokenizer is None:
            raise refuse(
                "the model runs elsewhere, so its tokens cannot be counted here", code="no_tokenizer"
            )
        return len(tokenizer.encode_segments(segments))

    def _opens_thought(self) -> bool:
        segments, tokenizer = self._segments(), self._backend.tokenizer
        return segments is not None and tokenizer is not None and opens_thought(segments, tokenizer)

    def _segments(self) -> list[Segment] | None:
        """The prompt; None where there is no template."""
        wanted = self._conversation
        if self._template is None:
            return None
        return self._template.render(
            wanted.messages,
            tools=wanted.use.tools,
            continue_final=wanted.continue_final,
            **wanted.template_options,
        )

    def _params(self) -> SamplingParams:
        """Sampling that stops where the format of calls wants it, and writes a call where one is required."""
        use, params = self._conversation.use, self._conversation.params
        if not use.tools or self._template is None:
            return params
        form = self._template.tool_format
        constraint = form.constraint(
            use.tools, use.choice, parallel=use.parallel, starts_in_thought=self._starts_in_thought
        )
        stop = tuple(dict.fromkeys(params.stop + form.stop))
        return dataclasses.replace(params, stop=stop, constraint=constraint)


def check_chat(backend: Backend, field_name: str = "messages") -> None:
    """Makes sure that the model holds conversations.

    Raises:
        ApiError: it is a base model, or its template is broken.
    """
    if not backend.info.can_chat:
        error = getattr(backend, "template_error", None)  # why, where there should be one
        sentence = f"{backend.info.model} has no chat template, so it is a base model; use an endpoint that continues text, such as /v1/completions"
        raise refuse(str(error or sentence), field_name, "no_chat_template")


def template_knows(backend: Backend, option: str) -> bool:
    """Whether the model's own chat template reads an option such as ``enable_thinking``."""
    return option in (getattr(backend.tokenizer, "chat_template", None) or "")
