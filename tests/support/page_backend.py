"""A backend for the tests of the page: what it answers is chosen by the last message, slowly where wanted."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator
from typing import Any

from qwenkit.backends.base import BackendInfo
from qwenkit.backends.scripted import ScriptedBackend
from qwenkit.chat.template import JinjaTemplate
from qwenkit.core.types import Message, Request
from tests.support.byte_tokenizer import THINKING_TEMPLATE, ByteTokenizer


class Slow:
    """A reply whose pieces come one by one.

    Args:
        pieces: in order.
        delay: seconds before each.
    """

    def __init__(self, pieces: list[str], delay: float) -> None:
        self._pieces, self._delay = pieces, delay

    def __iter__(self) -> Iterator[str]:
        for piece in self._pieces:
            time.sleep(self._delay)
            yield piece


def counting(last: int, delay: float = 0.02) -> Slow:
    """Numbers from 1 on, one at a time."""
    return Slow([f"{n} " for n in range(1, last + 1)], delay)


def tool_call(name: str, **arguments: Any) -> str:
    """A call as the template's models write it."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


class PageBackend(ScriptedBackend):
    """Answers what was arranged for the last message, else says the message back."""

    def __init__(self, *, context: int = 2_000_000) -> None:
        self._context = context
        tokenizer = ByteTokenizer(chat_template=THINKING_TEMPLATE)
        template = JinjaTemplate(THINKING_TEMPLATE, tokenizer)
        super().__init__([""], chunk=8, tokenizer=tokenizer, template=template)
        self._arranged: dict[str, list[Any]] = {}
        self._continuation = ""

    @property
    def info(self) -> BackendInfo:
        """Of a context that long conversations fit into."""
        return dataclasses.replace(super().info, context_length=self._context)

    def arrange(self, message: str, *replies: Any) -> None:
        """Answers a message with these in order; the last one repeats."""
        self._arranged[message] = list(replies)

    def continue_with(self, text: str) -> None:
        """What comes behind answers that are to be gone on with."""
        self._continuation = text

    def forget(self) -> None:
        """Nothing is arranged any more, and no request was seen."""
        self._arranged.clear()
        self.requests.clear()

    def _reply(self, request: Request) -> Any:
        last = request.prompt[-1]
        assert isinstance(last, Message)
        if request.continue_final:
            return self._continuation
        replies = self._arranged.get(last.content)
        if replies is None:
            return f"You said: {last.content}"
        return replies.pop(0) if len(replies) > 1 else replies[0]
