"""Replies in the DashScope shape: whole, or as the events of a stream that repeat all so far or hold what is new."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from qwenkit.chat.parser import ReplyDelta
from qwenkit.core.types import Delta, TokenLogprob, ToolCallDelta, Usage
from qwenkit.server.conversation import ChatPlan
from qwenkit.server.errors import ApiError
from qwenkit.server.generation import Generation
from qwenkit.server.replies import Replies, Reply
from qwenkit.server.sse import to_json
from qwenkit.server.token_text import chat_logprobs
from qwenkit.tokenizer.base import Tokenizer

_CODES = {
    401: "InvalidApiKey",
    403: "AccessDenied",
    404: "InvalidURL",
    405: "UnsupportedOperation",
    408: "RequestTimeOut",
    413: "BadRequest.TooLarge",
    429: "Throttling",
    431: "BadRequest.TooLarge",
    503: "ModelUnavailable",
    504: "RequestTimeOut",
}
_EMPTY = {"model": "BadRequest.EmptyModel", "input": "BadRequest.EmptyInput"}


def error_value(error: ApiError, request_id: str) -> dict[str, str]:
    """The object of an error."""
    if error.code == "model_not_found":
        code = "ModelNotFound"
    elif error.code == "missing_field" and error.param in _EMPTY:
        code = _EMPTY[error.param]
    else:
        code = _CODES.get(error.status, "InvalidParameter" if error.status < 500 else "InternalError")
    return {"code": code, "message": error.message, "request_id": request_id}


def error_body(error: ApiError, request_id: str) -> bytes:
    """The body of an error."""
    return to_json(error_value(error, request_id))


@dataclass(frozen=True, slots=True, kw_only=True)
class DashScopeShape:
    """How an answer has to look."""

    request_id: str
    plan: ChatPlan
    tokenizer: Tokenizer | None
    is_message: bool
    """Whether there are choices with messages, or just a text."""
    is_incremental: bool = False
    """Whether the events of a stream hold only what is new."""
    has_logprobs: bool = False

    def usage(self, usage: Usage, replies: Iterable[Reply]) -> dict[str, Any]:
        """Token counts."""
        value: dict[str, Any] = {
            "input_tokens": usage.prompt_tokens,
            "output_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        }
        if self.plan.has_reasoning:
            thought = sum(reply.reasoning_tokens for reply in replies)
            value["output_tokens_details"] = {
                "reasoning_tokens": thought,
                "text_tokens": usage.completion_tokens - thought,
            }
        return value

    def output(self, parts: Sequence[tuple[int, _Part, str]]) -> dict[str, Any]:
        """Replies, each with its number and why it ended."""
        if self.is_message:
            return {"choices": [self._choice(*each) for each in parts]}
        (_, part, reason) = parts[0]
        thought = {"reasoning_content": part.reasoning} if part.reasoning else {}
        return {"text": part.content, **thought, "finish_reason": reason}

    def _choice(self, index: int, part: _Part, reason: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": part.content}
        if part.reasoning:
            message["reasoning_content"] = part.reasoning
        if part.calls:
            message["tool_calls"] = [_call(call) for call in part.calls.values()]
        choice: dict[str, Any] = {"index": index, "message": message, "finish_reason": reason}
        if self.has_logprobs:
            choice["logprobs"] = {"content": chat_logprobs(self.tokenizer, part.logprobs)}
        return choice

    def envelope(self, output: dict[str, Any], usage: dict[str, Any]) -> dict[str, Any]:
        """All of an answer, or of an event."""
        return {"output": output, "usage": usage, "request_id": self.request_id}


def _call(call: ToolCallDelta) -> dict[str, Any]:
    function = {"arguments": call.arguments}
    if call.name is not None:
        function = {"name": call.name, **function}
    return {"index": call.index, "id": call.id or "", "type": "function", "function": function}


@dataclass(slots=True)
class _Part:
    """A reply, or a piece of one."""

    content: str = ""
    reasoning: str = ""
    calls: dict[int, ToolCallDelta] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, pieces: Sequence[ReplyDelta], deltas: Sequence[Delta]) -> None:
        """Takes what is new."""
        self.content += "".join([piece.content for piece in pieces])
        self.reasoning += "".join([piece.reasoning for piece in pieces])
        for new in (call for piece in pieces for call in piece.tool_calls):
            old = self.calls.get(new.index, ToolCallDelta(index=new.index))
            self.calls[new.index] = ToolCallDelta(
                index=new.index,
                id=old.id or new.id,
                name=old.name if new.name is None else new.name,
                arguments=old.arguments + new.arguments,
            )
        for delta in deltas:
            self.logprobs += delta.logprobs

    @property
    def is_empty(self) -> bool:
        """Whether it says nothing."""
        return not (self.content or self.reasoning or self.calls or self.logprobs)


class DashScopeCollector:
    """A whole answer."""

    def __init__(self, shape: DashScopeShape, generation: Generation) -> None:
        self._shape = shape
        self._replies = Replies(shape.plan, generation)
        self._parts = [_Part() for _ in self._replies.all]

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> None:
        """See Collector."""
        for sample, group, pieces in self._replies.push(deltas):
            self._parts[sample].add(pieces, group)

    def value(self) -> dict[str, Any]:
        """See Collector."""
        shape, replies = self._shape, self._replies
        parts = [
            (n, part, reply.finish_reason or "stop")
            for n, (part, reply) in enumerate(zip(self._parts, replies.all, strict=True))
        ]
        return shape.envelope(shape.output(parts), shape.usage(replies.usage(), replies.all))


class DashScopeEncoder:
    """An answer as the events of a stream; each is of one reply and holds its token counts so far."""

    def __init__(self, shape: DashScopeShape, generation: Generation) -> None:
        self._shape, self._generation = shape, generation
        self._replies = Replies(shape.plan, generation)
        self._parts = [_Part() for _ in self._replies.all]
        self._count = 0

    def opening(self) -> bytes:
        """See Encoder."""
        return b""

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        """See Encoder."""
        events: list[bytes] = []
        for sample, group, pieces in self._replies.push(deltas):
            new = _Part()
            new.add(pieces, group)
            reply = self._replies.all[sample]
            if new.is_empty and reply.finish_reason is None:
                continue
            if self._shape.is_incremental:
                shown = new
            else:
                shown = self._parts[sample]
                shown.add(pieces, group)
            events.append(self._result(sample, shown, reply))
        return b"".join(events)

    def closing(self) -> bytes:
        """See Encoder."""
        return b""

    def failure(self, error: ApiError) -> bytes:
        """See Encoder; the status, which came long before, is in it too."""
        status = b"status:%d\n" % error.status  # read by the service's own client
        return self._event(b"error", error.status, status, error_value(error, self._shape.request_id))

    def _result(self, sample: int, part: _Part, reply: Reply) -> bytes:
        shape = self._shape
        output = shape.output([(sample, part, reply.finish_reason or "null")])
        usage = shape.usage(reply.final_usage(self._generation), [reply])
        return self._event(b"result", 200, b"", shape.envelope(output, usage))

    def _event(self, name: bytes, status: int, more: bytes, value: dict[str, Any]) -> bytes:
        """No blank after a colon: the service's own client knows names of events only so."""
        self._count += 1
        head = b"id:%d\nevent:%s\n:HTTP_STATUS/%d\n%s" % (self._count, name, status, more)
        return head + b"data:" + to_json(value) + b"\n\n"
