"""Replies of a chat in the OpenAI shape: whole, or as the chunks of a stream, from the same parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwenkit.chat.parser import ReplyDelta
from qwenkit.core.types import Delta, TokenLogprob, ToolCallDelta
from qwenkit.server.conversation import ChatPlan
from qwenkit.server.errors import ApiError
from qwenkit.server.generation import Generation
from qwenkit.server.openai.shapes import DONE, error_event, new_id, usage_value
from qwenkit.server.replies import Replies, Reply, WholeReply
from qwenkit.server.sse import to_json
from qwenkit.server.token_text import chat_logprobs
from qwenkit.tokenizer.base import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatShape:
    """How an answer has to look."""

    model: str
    created: int
    fingerprint: str
    tokenizer: Tokenizer | None
    plan: ChatPlan
    is_legacy: bool = False
    has_logprobs: bool = False
    include_usage: bool = False

    def usage(self, replies: Replies) -> dict[str, Any]:
        """Token counts of the request."""
        reasoning = sum(r.reasoning_tokens for r in replies.all) if self.plan.has_reasoning else None
        return usage_value([replies.usage()], reasoning_tokens=reasoning)

    def finish_reason(self, reply: Reply) -> str | None:
        """Why a reply ended."""
        is_call = reply.finish_reason == "tool_calls" and self.is_legacy
        return "function_call" if is_call else reply.finish_reason


def _message(reply: WholeReply, *, is_legacy: bool) -> dict[str, Any]:
    text, calls = reply.content, reply.calls
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if reply.reasoning:
        message["reasoning_content"] = reply.reasoning
    if calls:
        message["content"] = text or None
    if calls and is_legacy:
        message["function_call"] = {"name": calls[0].name, "arguments": calls[0].arguments}
    elif calls:
        message["tool_calls"] = [
            {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}
            for call in calls
        ]
    return message


class ChatCollector:
    """A whole chat completion."""

    def __init__(self, shape: ChatShape, generation: Generation) -> None:
        self._shape = shape
        self._replies = Replies(shape.plan, generation)
        self._wholes = [WholeReply() for _ in self._replies.all]
        self._logprobs: list[list[TokenLogprob]] = [[] for _ in self._replies.all]
        self._prompt_logprobs: Sequence[TokenLogprob | None] | None = None

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> None:
        """See Collector."""
        for sample, group, parts in self._replies.push(deltas):
            self._wholes[sample].pieces += parts
            for delta in group:
                self._logprobs[sample] += delta.logprobs
                if delta.prompt_logprobs is not None:
                    self._prompt_logprobs = delta.prompt_logprobs

    def value(self) -> dict[str, Any]:
        """See Collector."""
        shape = self._shape
        choices = [
            {
                "index": n,
                "message": _message(self._wholes[n], is_legacy=shape.is_legacy),
                "logprobs": self._logprobs_of(n),
                "finish_reason": shape.finish_reason(reply),
            }
            for n, reply in enumerate(self._replies.all)
        ]
        value = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion",
            "created": shape.created,
            "model": shape.model,
            "system_fingerprint": shape.fingerprint,
            "choices": choices,
            "usage": shape.usage(self._replies),
        }
        if self._prompt_logprobs is not None:
            value["prompt_logprobs"] = chat_logprobs(shape.tokenizer, self._prompt_logprobs)
        return value

    def _logprobs_of(self, sample: int) -> dict[str, Any] | None:
        if not self._shape.has_logprobs:
            return None
        return {"content": chat_logprobs(self._shape.tokenizer, self._logprobs[sample]), "refusal": None}


class ChatEncoder:
    """A chat completion as the events of a stream."""

    def __init__(self, shape: ChatShape, generation: Generation) -> None:
        self._shape = shape
        self._replies = Replies(shape.plan, generation)
        head = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": shape.created,
            "model": shape.model,
            "system_fingerprint": shape.fingerprint,
        }
        # What never changes is encoded once; only text is encoded per chunk.
        self._head = b"data: " + to_json(head)[:-1]
        self._starts = [
            b'%s,"choices":[{"index":%d,"delta":' % (self._head, n) for n in range(len(self._replies.all))
        ]
        self._close = b',"usage":null}\n\n' if shape.include_usage else b"}\n\n"
        self._end = b',"logprobs":null,"finish_reason":null}]' + self._close

    def opening(self) -> bytes:
        """See Encoder."""
        return b"".join(start + b'{"role":"assistant","content":""}' + self._end for start in self._starts)

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        """See Encoder."""
        events: list[bytes] = []
        for sample, group, parts in self._replies.push(deltas):
            end = self._end
            if self._shape.has_logprobs and any(d.logprobs for d in group):
                end = self._with_logprobs([p for d in group for p in d.logprobs])
                parts = parts or [ReplyDelta()]
            for part in parts:
                events += self._chunks(sample, part, end)
                end = self._end
            reason = self._shape.finish_reason(self._replies.all[sample])
            if reason is not None:
                events.append(self._final(sample, reason))
        return b"".join(events)

    def closing(self) -> bytes:
        """See Encoder."""
        if not self._shape.include_usage:
            return DONE
        return (
            self._head
            + b',"choices":[],"usage":'
            + to_json(self._shape.usage(self._replies))
            + b"}\n\n"
            + DONE
        )

    def failure(self, error: ApiError) -> bytes:
        """See Encoder."""
        return error_event(error)

    def _chunks(self, sample: int, part: ReplyDelta, end: bytes) -> list[bytes]:
        start = self._starts[sample]
        if part.content and not part.reasoning and not part.tool_calls:
            return [start + b'{"content":' + to_json(part.content) + b"}" + end]
        values: list[dict[str, Any]] = []
        if part.reasoning:
            values.append({"reasoning_content": part.reasoning})
        if part.content or not (part.reasoning or part.tool_calls):
            values.append({"content": part.content})
        values += [self._call(call) for call in part.tool_calls]
        ends = [end, *[self._end] * (len(values) - 1)]
        return [start + to_json(value) + e for value, e in zip(values, ends, strict=True)]

    def _call(self, call: ToolCallDelta) -> dict[str, Any]:
        function = {"arguments": call.arguments}
        if call.name is not None:
            function = {"name": call.name, **function}
        if self._shape.is_legacy:
            return {"function_call": function}
        value: dict[str, Any] = {"index": call.index}
        if call.id is not None:
            value |= {"id": call.id, "type": "function"}
        return {"tool_calls": [value | {"function": function}]}

    def _with_logprobs(self, logprobs: list[TokenLogprob]) -> bytes:
        value = {"content": chat_logprobs(self._shape.tokenizer, logprobs), "refusal": None}
        return b',"logprobs":' + to_json(value) + b',"finish_reason":null}]' + self._close

    def _final(self, sample: int, reason: str) -> bytes:
        return (
            self._starts[sample]
            + b'{},"logprobs":null,"finish_reason":'
            + to_json(reason)
            + b"}]"
            + self._close
        )
