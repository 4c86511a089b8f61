"""Items of the Responses protocol as the engine's messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from qwenkit.core.types import Message, ToolCall
from qwenkit.server.responses.items import Item


def to_messages(instructions: str | None, items: Sequence[Item]) -> tuple[Message, ...]:
    """A conversation; thought, text and calls of one reply are one message again.

    Args:
        instructions: what comes first; None for nothing.
        items: in the order of the conversation.
    """
    messages = [] if instructions is None else [Message("system", instructions)]
    for item in items:
        kind = item["type"]
        if kind == "reasoning":
            messages.append(Message("assistant", reasoning=_thought_of(item)))
        elif kind == "function_call":
            call = ToolCall(id=item["call_id"], name=item["name"], arguments=item["arguments"])
            last = _take_reply(messages)
            messages.append(dataclasses.replace(last, tool_calls=(*last.tool_calls, call)))
        elif kind == "function_call_output":
            messages.append(Message("tool", item["output"], tool_call_id=item["call_id"]))
        elif item["role"] == "assistant":
            _say(messages, text_of(item))
        else:
            role: Any = "system" if item["role"] == "developer" else item["role"]
            messages.append(Message(role, text_of(item)))
    return tuple(messages)


def text_of(item: Item) -> str:
    """The text of a message."""
    return "\n".join(part["text"] for part in item["content"])


def _thought_of(item: Item) -> str | None:
    """The thought itself; where only a summary is known, that."""
    parts = item.get("content") or item["summary"]
    return "\n".join(part["text"] for part in parts) or None


def _take_reply(messages: list[Message]) -> Message:
    """The reply under way, out of the list; a new one where the last message is somebody else's."""
    if messages and messages[-1].role == "assistant":
        return messages.pop()
    return Message("assistant")


def _say(messages: list[Message], text: str) -> None:
    """Adds what an assistant says: to its reply, unless that has said all it had to say."""
    last = _take_reply(messages)
    if last.content and not last.tool_calls:
        messages.append(last)
        last = Message("assistant")
    content = f"{last.content}\n{text}" if last.content else text
    messages.append(dataclasses.replace(last, content=content))
