"""The pieces a reply is taken apart into while it streams. Knows nothing of any format."""

from __future__ import annotations

import secrets
import string
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from qwenkit.core.types import Message, ToolCall, ToolCallDelta

NewId: TypeAlias = Callable[[], str]
"""Makes the id of a tool call."""

_ID_LETTERS = string.ascii_letters + string.digits


def new_call_id() -> str:
    """A fresh id for a tool call, such as OpenAI's clients expect: ``call_`` and 24 letters or digits."""
    return "call_" + "".join(secrets.choice(_ID_LETTERS) for _ in range(24))


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyDelta:
    """What is new in a reply; nothing that was reported is ever taken back."""

    content: str = ""
    reasoning: str = ""
    tool_calls: tuple[ToolCallDelta, ...] = ()


class ReplyParser(Protocol):
    """Takes the text of one reply in pieces and reports its parts; no text is an error."""

    @property
    def called(self) -> bool:
        """Whether a tool call was reported."""

    @property
    def done(self) -> bool:
        """Whether nothing that may still come would be reported, so that generation can end."""

    def push(self, text: str) -> list[ReplyDelta]:
        """What is certain now that ``text`` has come."""

    def finish(self) -> list[ReplyDelta]:
        """The rest, once no more text comes; to be called once."""


def collect_reply(deltas: Iterable[ReplyDelta]) -> Message:
    """The assistant's message that the deltas of one reply add up to."""
    deltas = list(deltas)
    calls: dict[int, list[ToolCallDelta]] = {}
    for part in (part for delta in deltas for part in delta.tool_calls):
        calls.setdefault(part.index, []).append(part)
    return Message(
        "assistant",
        "".join(delta.content for delta in deltas),
        reasoning="".join(delta.reasoning for delta in deltas) or None,
        tool_calls=tuple(
            ToolCall(
                id=parts[0].id or "",
                name=parts[0].name or "",
                arguments="".join(part.arguments for part in parts),
            )
            for _, parts in sorted(calls.items())
        ),
    )
