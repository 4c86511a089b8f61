"""Replies in Ollama's shape: whole, or as lines of JSON, from the same parts."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qwenkit.chat.parser import ReplyDelta
from qwenkit.core.types import Delta, ToolCall, ToolCallDelta, join_calls
from qwenkit.server.errors import ApiError
from qwenkit.server.exchange import Exchange
from qwenkit.server.generation import Generation
from qwenkit.server.replies import Replies, ReplyPlan
from qwenkit.server.sse import line, to_json
from qwenkit.server.token_text import chat_logprobs
from qwenkit.tokenizer.base import Tokenizer


def error_body(error: ApiError, request_id: str) -> bytes:
    """The body of an error; the id of the request is in a header already."""
    return to_json({"error": error.message})


def timestamp(seconds: float | None = None) -> str:
    """A time as Go writes it; now, unless another is given."""
    zone = datetime.timezone.utc
    when = datetime.datetime.now(zone) if seconds is None else datetime.datetime.fromtimestamp(seconds, zone)
    return when.isoformat().replace("+00:00", "Z")


def nanoseconds(seconds: float) -> int:
    """A duration as clients expect it; never 0, because they divide by it."""
    return max(1, round(seconds * 1e9))


@dataclass(frozen=True, slots=True, kw_only=True)
class OllamaShape:
    """How an answer has to look."""

    model: str
    plan: ReplyPlan
    tokenizer: Tokenizer | None
    exchange: Exchange
    is_chat: bool
    """Whether texts are in a message."""
    has_logprobs: bool = False
    has_context: bool = False
    """Whether the end tells the token ids of prompt and reply."""

    def head(self) -> dict[str, Any]:
        """What every object begins with."""
        return {"model": self.model, "created_at": timestamp()}

    def part(self, content: str = "", thinking: str = "", calls: Sequence[ToolCall] = ()) -> dict[str, Any]:
        """What a reply says, or a piece of it."""
        value: dict[str, Any] = {"content": content} if self.is_chat else {"response": content}
        if thinking:
            value["thinking"] = thinking
        if calls:
            value["tool_calls"] = [_call(n, call) for n, call in enumerate(calls)]
        return {"message": {"role": "assistant", **value}} if self.is_chat else value

    def logprobs(self, deltas: Sequence[Delta]) -> dict[str, Any]:
        """Log-probabilities of tokens, where asked for."""
        found = [p for d in deltas for p in d.logprobs] if self.has_logprobs else []
        return {"logprobs": chat_logprobs(self.tokenizer, found)} if found else {}

    def nothing(self, reason: str) -> dict[str, Any]:
        """The answer where nothing was asked."""
        return self.head() | self.part() | {"done": True, "done_reason": reason}


def _call(index: int, call: ToolCall) -> dict[str, Any]:
    try:
        arguments = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):  # the model's fault; whoever reads it has to see it
        arguments = {"arguments": call.arguments}
    return {"id": call.id, "function": {"index": index, "name": call.name, "arguments": arguments}}


class _Ollama:
    """What whole answers and streams have in common.

    Args:
        shape: of the answer.
        generation: makes it.
    """

    def __init__(self, shape: OllamaShape, generation: Generation) -> None:
        self._shape, self._generation = shape, generation
        self._replies = Replies(shape.plan, generation)
        self._ids: list[int] = []

    def _push(self, deltas: Sequence[tuple[int, Delta]]) -> tuple[list[Delta], list[ReplyDelta]]:
        taken: list[Delta] = []
        parts: list[ReplyDelta] = []
        for _, group, new in self._replies.push(deltas):
            taken += group
            parts += new
        self._ids += [i for delta in taken for i in delta.token_ids]
        return taken, parts

    def _end(self) -> dict[str, Any]:
        """Why and when it ended, and what it cost."""
        generation, started = self._generation, self._shape.exchange.started
        now, usage = time.perf_counter(), self._replies.usage()
        submitted = generation.submitted or now
        first = max(generation.first_token or now, submitted)
        is_cut = self._replies.all[0].finish_reason == "length"
        value: dict[str, Any] = {"done": True, "done_reason": "length" if is_cut else "stop"}
        if self._shape.has_context:
            prompt = [i for i in generation.requests[0].prompt if isinstance(i, int)]
            value["context"] = prompt + self._ids
        return value | {
            "total_duration": nanoseconds(now - started),
            "load_duration": nanoseconds(submitted - started),
            "prompt_eval_count": usage.prompt_tokens,
            "prompt_eval_duration": nanoseconds(first - submitted),
            "eval_count": usage.completion_tokens,
            "eval_duration": nanoseconds(now - first),
        }


class OllamaCollector(_Ollama):
    """A whole answer."""

    def __init__(self, shape: OllamaShape, generation: Generation) -> None:
        super().__init__(shape, generation)
        self._deltas: list[Delta] = []
        self._parts: list[ReplyDelta] = []

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> None:
        """See Collector."""
        taken, parts = self._push(deltas)
        self._deltas += taken
        self._parts += parts

    def value(self) -> dict[str, Any]:
        """See Collector."""
        content = "".join(part.content for part in self._parts)
        thinking = "".join(part.reasoning for part in self._parts)
        calls = join_calls(call for part in self._parts for call in part.tool_calls)
        shape = self._shape
        said = shape.part(content, thinking, calls) | shape.logprobs(self._deltas)
        return shape.head() | said | self._end()


class OllamaEncoder(_Ollama):
    """An answer as lines; a call comes in one of them, once it is complete."""

    def __init__(self, shape: OllamaShape, generation: Generation) -> None:
        super().__init__(shape, generation)
        self._open_calls: list[ToolCallDelta] = []

    def opening(self) -> bytes:
        """See Encoder."""
        return b""

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        """See Encoder."""
        taken, parts = self._push(deltas)
        thinking = "".join(part.reasoning for part in parts)
        content = "".join(part.content for part in parts)
        self._open_calls += [call for part in parts for call in part.tool_calls]
        is_over = self._replies.all[0].finish_reason is not None
        calls = join_calls(self._open_calls) if is_over else ()
        logprobs = self._shape.logprobs(taken)
        lines = [self._shape.part(thinking=thinking)] if thinking else []
        if content or calls or (logprobs and not lines):
            lines.append(self._shape.part(content, calls=calls))
        if not lines:
            return b""
        lines[-1] |= logprobs
        return b"".join([line(self._shape.head() | each | {"done": False}) for each in lines])

    def closing(self) -> bytes:
        """See Encoder."""
        return line(self._shape.head() | self._shape.part() | self._end())

    def failure(self, error: ApiError) -> bytes:
        """See Encoder."""
        return line({"error": error.message})
