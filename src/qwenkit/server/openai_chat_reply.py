"""Replies of a chat in the OpenAI shape: whole, or as the chunks of a stream, from the same parts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qwenkit.chat.parser import ReplyDelta, ReplyParser
from qwenkit.core.types import Delta, TokenLogprob, ToolCallDelta, Usage
from qwenkit.server.errors import ApiError
from qwenkit.server.generation import Generation
from qwenkit.server.openai_shapes import DONE, chat_logprobs, error_event, new_id, usage_value
from qwenkit.server.sse import to_json
from qwenkit.tokenizer.base import Tokenizer

_New: TypeAlias = tuple[int, Sequence[Delta], list[ReplyDelta]]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatShape:
    """How an answer has to look."""

    model: str
    created: int
    fingerprint: str
    tokenizer: Tokenizer | None
    new_parser: Callable[[], ReplyParser]
    is_legacy: bool = False
    has_logprobs: bool = False
    has_calls: bool = False
    has_reasoning: bool = False
    include_usage: bool = False


class Reply:
    """One reply under way: its text taken apart, and how it ended."""

    def __init__(self, shape: ChatShape) -> None:
        self._shape = shape
        self._parser = shape.new_parser()
        self._has_calls = False
        self._has_answer = False
        self._tokens = 0
        self.reasoning_tokens = 0
        self.finish_reason: str | None = None
        self.usage: Usage | None = None

    def push(self, deltas: Sequence[Delta]) -> tuple[list[ReplyDelta], Sequence[Delta]]:
        """What is new, given what the engine made, and how much of that was taken."""
        if self.finish_reason is not None:
            return [], ()
        if self._shape.has_calls or (self._shape.has_reasoning and not self._has_answer):
            parts, deltas = self._push_singly(deltas)
        else:
            parts = self._push(deltas)
        last = deltas[-1]
        if last.finish_reason is not None:
            self.usage = last.usage
            self._finish(parts, "length" if last.finish_reason == "length" else "stop")
        elif self._parser.done:
            self._finish(parts, "stop")
        return parts, deltas

    def _push_singly(self, deltas: Sequence[Delta]) -> tuple[list[ReplyDelta], Sequence[Delta]]:
        """Neither counts nor the end may depend on how much came together."""
        parts: list[ReplyDelta] = []
        for count, delta in enumerate(deltas, 1):
            parts += self._push([delta])
            if self._parser.done:
                return parts, deltas[:count]
        return parts, deltas

    def _push(self, deltas: Sequence[Delta]) -> list[ReplyDelta]:
        text = "".join([d.text for d in deltas])
        parts = self._parser.push(text) if text else []
        # a remote server takes replies apart itself
        parts += [
            ReplyDelta(reasoning=d.reasoning, tool_calls=d.tool_calls)
            for d in deltas
            if d.reasoning or d.tool_calls
        ]
        tokens = sum(len(d.token_ids) for d in deltas)
        self._tokens += tokens
        self._see(parts)
        if not self._has_answer:
            self.reasoning_tokens += tokens
        return parts

    def _see(self, parts: list[ReplyDelta]) -> None:
        for part in parts:
            self._has_calls |= bool(part.tool_calls)
            self._has_answer |= bool(part.content or part.tool_calls)

    def _finish(self, parts: list[ReplyDelta], reason: str) -> None:
        rest = self._parser.finish()
        self._see(rest)
        parts += rest
        if self._has_calls and reason == "stop":
            reason = "function_call" if self._shape.is_legacy else "tool_calls"
        self.finish_reason = reason

    def final_usage(self, generation: Generation) -> Usage:
        """Token counts; counted here where the reply was ended before the engine ended it."""
        return self.usage or generation.usage(0, self._tokens)


class Replies:
    """All replies of a request; ends the generation when nothing that may still come would be shown."""

    def __init__(self, shape: ChatShape, generation: Generation) -> None:
        self._generation = generation
        self.all = [Reply(shape) for _ in range(generation.requests[0].params.n)]
        self._has_reasoning = shape.has_reasoning

    def push(self, deltas: Sequence[tuple[int, Delta]]) -> list[_New]:
        """For each reply with something new: its number, what came, and what that means."""
        grouped: dict[int, list[Delta]] = {}
        for _, delta in deltas:
            grouped.setdefault(delta.sample, []).append(delta)
        new: list[_New] = []
        for sample, group in grouped.items():
            parts, taken = self.all[sample].push(group)
            if taken:
                new.append((sample, taken, parts))
        if all(reply.finish_reason is not None for reply in self.all) and not self._generation.is_done:
            self._generation.abort()
        return new

    def usage(self) -> dict[str, Any]:
        """Token counts of the request."""
        usages = [reply.final_usage(self._generation) for reply in self.all]
        total = dataclasses.replace(usages[0], completion_tokens=sum(u.completion_tokens for u in usages))
        reasoning = sum(r.reasoning_tokens for r in self.all) if self._has_reasoning else None
        return usage_value([total], reasoning_tokens=reasoning)


@dataclass(slots=True)
class _Message:
    """What one reply adds up to."""

    content: list[str] = field(default_factory=list)
    reasoning: list[str] = field(default_factory=list)
    calls: dict[int, dict[str, Any]] = field(default_factory=dict)
    logprobs: list[TokenLogprob] = field(default_factory=list)

    def add(self, part: ReplyDelta) -> None:
        if part.content:
            self.content.append(part.content)
        if part.reasoning:
            self.reasoning.append(part.reasoning)
        for call in part.tool_calls:
            value = self.calls.setdefault(call.index, {"id": call.id or "", "name": "", "arguments": []})
            value["name"] += call.name or ""
            value["arguments"].append(call.arguments)

    def value(self, *, is_legacy: bool) -> dict[str, Any]:
        text = "".join(self.content)
        message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
        if self.reasoning:
            message["reasoning_content"] = "".join(self.reasoning)
        calls = [
            (call["id"], call["name"], "".join(call["arguments"])) for _, call in sorted(self.calls.items())
        ]
        if calls:
            message["content"] = text or None
        if calls and is_legacy:
            _, name, arguments = calls[0]
            message["function_call"] = {"name": name, "arguments": arguments}
        elif calls:
            message["tool_calls"] = [
                {"id": call_id, "type": "function", "function": {"name": name, "arguments": arguments}}
                for call_id, name, arguments in calls
            ]
        return message


class ChatCollector:
    """A whole chat completion."""

    def __init__(self, shape: ChatShape, generation: Generation) -> None:
        self._shape = shape
        self._replies = Replies(shape, generation)
        self._messages = [_Message() for _ in self._replies.all]
        self._prompt_logprobs: Sequence[TokenLogprob | None] | None = None

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> None:
        """See Collector."""
        for sample, group, parts in self._replies.push(deltas):
            message = self._messages[sample]
            for part in parts:
                message.add(part)
            for delta in group:
                message.logprobs += delta.logprobs
                if delta.prompt_logprobs is not None:
                    self._prompt_logprobs = delta.prompt_logprobs

    def value(self) -> dict[str, Any]:
        """See Collector."""
        shape = self._shape
        choices = [
            {
                "index": n,
                "message": message.value(is_legacy=shape.is_legacy),
                "logprobs": self._logprobs(message),
                "finish_reason": reply.finish_reason,
            }
            for n, (message, reply) in enumerate(zip(self._messages, self._replies.all, strict=True))
        ]
        value = {
            "id": new_id("chatcmpl"),
            "object": "chat.completion",
            "created": shape.created,
            "model": shape.model,
            "system_fingerprint": shape.fingerprint,
            "choices": choices,
            "usage": self._replies.usage(),
        }
        if self._prompt_logprobs is not None:
            value["prompt_logprobs"] = chat_logprobs(shape.tokenizer, self._prompt_logprobs)
        return value

    def _logprobs(self, message: _Message) -> dict[str, Any] | None:
        if not self._shape.has_logprobs:
            return None
        return {"content": chat_logprobs(self._shape.tokenizer, message.logprobs), "refusal": None}


class ChatEncoder:
    """A chat completion as the events of a stream."""

    def __init__(self, shape: ChatShape, generation: Generation) -> None:
        self._shape = shape
        self._replies = Replies(shape, generation)
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
            reason = self._replies.all[sample].finish_reason
            if reason is not None:
                events.append(self._final(sample, reason))
        return b"".join(events)

    def closing(self) -> bytes:
        """See Encoder."""
        if not self._shape.include_usage:
            return DONE
        return self._head + b',"choices":[],"usage":' + to_json(self._replies.usage()) + b"}\n\n" + DONE

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
