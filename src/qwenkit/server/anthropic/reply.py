"""Replies in Anthropic's shape: whole, or as the events of a stream, from the same content blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwenkit.chat.parser import ReplyDelta
from qwenkit.core.types import Delta, ToolCallDelta
from qwenkit.server.anthropic.shapes import error_event, new_message_id, sign, usage_value
from qwenkit.server.conversation import ChatPlan
from qwenkit.server.errors import ApiError
from qwenkit.server.generation import Generation
from qwenkit.server.replies import Replies
from qwenkit.server.sse import event

Step = dict[str, Any]
"""An event about one content block."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MessageShape:
    """How an answer has to look."""

    model: str
    plan: ChatPlan
    request_id: str
    stops: frozenset[str] = frozenset()
    """The client's own stop sequences."""
    max_tokens: int
    hides_thoughts: bool = False

    def message(self, id_: str, content: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """The object of a message that has not ended."""
        return {
            "id": id_,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage | {"service_tier": "standard"},
        }

    def end(self, replies: Replies) -> dict[str, Any]:
        """Why the message ended."""
        reply = replies.all[0]
        reason, stop = "end_turn", None
        if reply.finish_reason == "tool_calls":
            reason = "tool_use"
        elif reply.finish_reason == "length":
            is_full = replies.usage().completion_tokens >= self.max_tokens
            reason = "max_tokens" if is_full else "model_context_window_exceeded"
        elif reply.stop in self.stops:
            reason, stop = "stop_sequence", reply.stop
        return {"stop_reason": reason, "stop_sequence": stop}

    def usage(self, replies: Replies) -> dict[str, Any]:
        """Token counts of the request."""
        thought = replies.all[0].reasoning_tokens if self.plan.has_reasoning else None
        return usage_value(replies.usage(), thought)


class Blocks:
    """From parts of a reply to events of content blocks, one block after the other.

    Args:
        hides_thoughts: a thought is kept in its signature and not shown.
    """

    def __init__(self, *, hides_thoughts: bool) -> None:
        self._hides_thoughts = hides_thoughts
        self._index = -1
        self._kind = ""
        self._thought = ""
        self._held: str | None = None
        """Arguments of a call that are no JSON object; None where they are one, or have not begun."""
        self._has_arguments = False
        self._has_called = False

    def push(self, part: ReplyDelta) -> list[Step]:
        """Events for what is new."""
        steps = self._think(part.reasoning) if part.reasoning else []
        if part.content:
            steps += self._say(part.content)
        for call in part.tool_calls:
            steps += self._call(call)
        return steps

    def finish(self) -> list[Step]:
        """Events that end the last block."""
        if not self._kind:
            return []
        steps = []
        if self._kind == "thinking":
            signature = sign(self._thought, keeps=self._hides_thoughts)
            steps.append(self._delta({"type": "signature_delta", "signature": signature}))
        if self._held is not None:  # clients read an object here, whatever the model wrote
            text = json.dumps({"arguments": self._held}, ensure_ascii=False)
            steps.append(self._delta({"type": "input_json_delta", "partial_json": text}))
        self._kind, self._held, self._thought = "", None, ""
        return [*steps, {"type": "content_block_stop", "index": self._index}]

    def _start(self, kind: str, block: dict[str, Any]) -> list[Step]:
        steps = self.finish()
        self._index, self._kind = self._index + 1, kind
        start = {
            "type": "content_block_start",
            "index": self._index,
            "content_block": {"type": kind, **block},
        }
        return [*steps, start]

    def _delta(self, delta: dict[str, Any]) -> Step:
        return {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _think(self, text: str) -> list[Step]:
        steps = []
        if self._kind != "thinking":
            steps = self._start("thinking", {"thinking": "", "signature": ""})
        self._thought += text
        if not self._hides_thoughts:
            steps.append(self._delta({"type": "thinking_delta", "thinking": text}))
        return steps

    def _say(self, text: str) -> list[Step]:
        steps = []
        if self._kind != "text":
            if self._has_called:  # the line end that parts it from what was said before the call
                text = text.removeprefix("\n")
            steps = self._start("text", {"text": ""})
        return [*steps, self._delta({"type": "text_delta", "text": text})]

    def _call(self, call: ToolCallDelta) -> list[Step]:
        steps = []
        if call.id is not None:
            self._has_called, self._has_arguments = True, False
            steps = self._start("tool_use", {"id": call.id, "name": call.name or "", "input": {}})
        text = call.arguments
        if not self._has_arguments:
            text = text.lstrip()
            if text and not text.startswith("{"):
                self._held = ""
            self._has_arguments = bool(text)
        if self._held is not None:
            self._held += text
        elif text:
            steps.append(self._delta({"type": "input_json_delta", "partial_json": text}))
        return steps


def _arguments(text: str) -> dict[str, Any]:
    """The arguments of a call; what is no JSON object is given as it is, under a name of its own."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    return value if isinstance(value, dict) else {"arguments": text}


def _content(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """The content blocks that events add up to."""
    blocks: list[dict[str, Any]] = []
    pieces: list[list[str]] = []
    names = {"thinking_delta": "thinking", "text_delta": "text", "input_json_delta": "partial_json"}
    for step in steps:
        if step["type"] == "content_block_start":
            blocks.append(dict(step["content_block"]))
            pieces.append([])
        elif step["type"] == "content_block_delta":
            delta = step["delta"]
            if delta["type"] == "signature_delta":
                blocks[-1]["signature"] = delta["signature"]
            else:
                pieces[-1].append(delta[names[delta["type"]]])
        elif blocks[-1]["type"] == "tool_use":
            blocks[-1]["input"] = _arguments("".join(pieces[-1]))
        else:
            blocks[-1][blocks[-1]["type"]] = "".join(pieces[-1])
    return blocks


class MessageCollector:
    """A whole message."""

    def __init__(self, shape: MessageShape, generation: Generation) -> None:
        self._shape = shape
        self._replies = Replies(shape.plan, generation)
        self._blocks = Blocks(hides_thoughts=shape.hides_thoughts)
        self._steps: list[Step] = []

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> None:
        """See Collector."""
        for _, _, parts in self._replies.push(deltas):
            for part in parts:
                self._steps += self._blocks.push(part)

    def value(self) -> dict[str, Any]:
        """See Collector."""
        shape, content = self._shape, _content([*self._steps, *self._blocks.finish()])
        message = shape.message(new_message_id(), content, shape.usage(self._replies))
        return message | shape.end(self._replies)


class MessageEncoder:
    """A message as the events of a stream."""

    def __init__(self, shape: MessageShape, generation: Generation) -> None:
        self._shape, self._generation = shape, generation
        self._replies = Replies(shape.plan, generation)
        self._blocks = Blocks(hides_thoughts=shape.hides_thoughts)

    def opening(self) -> bytes:
        """See Encoder."""
        usage = usage_value(self._generation.usage(0, 0))
        message = self._shape.message(new_message_id(), [], usage)
        return _events([{"type": "message_start", "message": message}])

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        """See Encoder."""
        pushed = self._replies.push(deltas)
        return _events([step for _, _, parts in pushed for part in parts for step in self._blocks.push(part)])

    def closing(self) -> bytes:
        """See Encoder."""
        end = {
            "type": "message_delta",
            "delta": self._shape.end(self._replies),
            "usage": self._shape.usage(self._replies),
        }
        return _events([*self._blocks.finish(), end, {"type": "message_stop"}])

    def failure(self, error: ApiError) -> bytes:
        """See Encoder."""
        return error_event(error, self._shape.request_id)


def _events(steps: Sequence[Step]) -> bytes:
    return b"".join(event(step, step["type"]) for step in steps)
