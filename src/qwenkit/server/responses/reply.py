"""A reply in the shape of the Responses protocol: the object and its events, which come from the same items."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qwenkit.chat.parser import ReplyDelta
from qwenkit.core.types import Delta, TokenLogprob, ToolCallDelta
from qwenkit.server.conversation import ChatPlan
from qwenkit.server.errors import ApiError
from qwenkit.server.generation import Generation
from qwenkit.server.replies import Replies
from qwenkit.server.responses.items import PREFIXES, Item, new_id
from qwenkit.server.sse import event
from qwenkit.server.thoughts import seal
from qwenkit.server.token_text import chat_logprobs, token_bytes
from qwenkit.tokenizer.base import Tokenizer

Event: TypeAlias = dict[str, Any]
_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}
_NAMES = {"message": "output_text", "reasoning": "reasoning_text", "function_call": "function_call_arguments"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponseShape:
    """How an answer has to look."""

    head: dict[str, Any]
    """The response without what only its end tells."""
    plan: ChatPlan
    tokenizer: Tokenizer | None
    has_logprobs: bool = False
    seals_thoughts: bool = False
    """Whether thoughts are also given as text that clients only send back."""


@dataclass(slots=True)
class _Open:
    """The item under way."""

    item: Item
    index: int
    """Its place among the items of the response."""
    pieces: list[str] = field(default_factory=list)
    logprobs: list[dict[str, Any] | None] = field(default_factory=list)

    @property
    def kind(self) -> str:
        """What type it has."""
        return str(self.item["type"])

    @property
    def place(self) -> dict[str, Any]:
        """What events about it have in common."""
        place = {"item_id": self.item["id"], "output_index": self.index}
        return place | {"content_index": 0} if self.kind in _PARTS else place

    def part(self) -> dict[str, Any]:
        """Its only content part, as far as it has come."""
        part: dict[str, Any] = {"type": _PARTS[self.kind], "text": "".join(self.pieces)}
        return part | {"annotations": [], "logprobs": list(self.logprobs)} if self.kind == "message" else part


class ResponseWriter:
    """One response under way.

    Args:
        shape: how it has to look.
        generation: makes the text.
    """

    def __init__(self, shape: ResponseShape, generation: Generation) -> None:
        self._shape = shape
        self.response: dict[str, Any] = {**shape.head, "output": []}
        """As far as it has come: finished items."""
        self._replies = Replies(shape.plan, generation)
        self._number = 0
        self._open: _Open | None = None
        self._unsaid: list[TokenLogprob] = []
        """Of tokens whose text is still held back."""
        self._has_called = False

    def start(self) -> list[Event]:
        """The first events."""
        second = "queued" if self.response["status"] == "queued" else "in_progress"
        return [self._about("response.created"), self._about(f"response.{second}")]

    def push(self, deltas: Sequence[tuple[int, Delta]]) -> list[Event]:
        """Events for what is new."""
        events: list[Event] = []
        if self.response["status"] == "queued":
            self.response["status"] = "in_progress"
            events.append(self._about("response.in_progress"))
        batches = [[delta] for delta in deltas] if self._shape.has_logprobs else [deltas]
        for batch in batches:  # log-probabilities go with the text of their own token
            for _, group, parts in self._replies.push(batch):
                self._unsaid += [p for delta in group for p in delta.logprobs]
                for part in parts:
                    events += self._add(part)
        return events

    def end(self) -> list[Event]:
        """The last events."""
        is_cut = self._replies.all[0].finish_reason == "length"
        status = "incomplete" if is_cut else "completed"
        events = self._close(status)
        self.response |= {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "completed_at": None if is_cut else int(time.time()),
            "usage": self._usage(),
        }
        return [*events, self._about(f"response.{status}")]

    def fail(self, error: ApiError) -> list[Event]:
        """The last events of a response that could not be finished."""
        events = self._close("incomplete")
        codes = {429: "rate_limit_exceeded"}
        code = codes.get(error.status, "invalid_prompt" if error.status < 500 else "server_error")
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        said = {"code": error.code or code, "message": error.message, "param": error.param}
        return [*events, self._event("error", **said), self._about("response.failed")]

    def cancel(self) -> list[Event]:
        """The last events of a response of which nobody wants the rest; none of them says so."""
        events = self._close("incomplete")
        self.response["status"] = "cancelled"
        return events

    def _usage(self) -> dict[str, Any]:
        usage, reply = self._replies.usage(), self._replies.all[0]
        thought = reply.reasoning_tokens if self._shape.plan.has_reasoning else 0
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": thought},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _about(self, kind: str) -> Event:
        return self._event(kind, response={**self.response, "output": list(self.response["output"])})

    def _add(self, part: ReplyDelta) -> list[Event]:
        events: list[Event] = []
        if part.reasoning:
            self._unsaid = []  # log-probabilities are the answer's
            events += self._think(part.reasoning)
        if part.content:
            events += self._say(part.content)
        for call in part.tool_calls:
            events += self._call(call)
        return events

    def _think(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open is None or self._open.kind != "reasoning":
            events = self._begin("reasoning", {"summary": [], "content": []})
        return events + self._delta(text)

    def _say(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._open is None or self._open.kind != "message":
            if self._has_called:  # the line end that parts it from what was said before the call
                text = text.removeprefix("\n")
            self._drop_tags(text.encode("utf-8", "replace"))
            events = self._begin("message", {"role": "assistant", "content": []})
        return events + self._delta(text, logprobs=self._take_logprobs())

    def _call(self, call: ToolCallDelta) -> list[Event]:
        events: list[Event] = []
        if call.id is not None:
            self._has_called, self._unsaid = True, []
            fields = {"call_id": call.id, "name": call.name or "", "arguments": ""}
            events = self._begin("function_call", fields)
        return events + self._delta(call.arguments) if call.arguments else events

    def _drop_tags(self, text: bytes) -> None:
        """Forgets tokens before those that say ``text``: what parted it from a thought."""
        said = [token_bytes(self._shape.tokenizer, p.token_id) for p in self._unsaid]
        starts = (n for n in range(len(said)) if b"".join(said[n:]).startswith(text))
        del self._unsaid[: next(starts, 0)]

    def _take_logprobs(self) -> list[dict[str, Any] | None]:
        logprobs = chat_logprobs(self._shape.tokenizer, self._unsaid)
        self._unsaid = []
        return logprobs

    def _begin(self, kind: str, fields: Item) -> list[Event]:
        """Opens an item, after the one before it."""
        events = self._close("completed")
        item = {"id": new_id(PREFIXES[kind]), "type": kind, "status": "in_progress", **fields}
        opened = self._open = _Open(item, len(self.response["output"]))
        events.append(self._event("response.output_item.added", output_index=opened.index, item=dict(item)))
        if kind in _PARTS:
            events.append(self._event("response.content_part.added", **opened.place, part=opened.part()))
        return events

    def _delta(self, text: str, **fields: Any) -> list[Event]:
        opened = self._open
        if opened is None:
            return []
        opened.pieces.append(text)
        opened.logprobs += fields.get("logprobs", ())
        return [self._event(f"response.{_NAMES[opened.kind]}.delta", **opened.place, delta=text, **fields)]

    def _close(self, status: str) -> list[Event]:
        """Ends the item under way, if there is one."""
        opened, self._open = self._open, None
        if opened is None:
            return []
        item, kind, name = opened.item, opened.kind, f"response.{_NAMES[opened.kind]}.done"
        if kind == "function_call":
            item["arguments"] = "".join(opened.pieces)
            events = [self._event(name, **opened.place, name=item["name"], arguments=item["arguments"])]
        else:
            opened.logprobs += self._take_logprobs() if kind == "message" else ()
            part = opened.part()
            said = {name: value for name, value in part.items() if name in ("text", "logprobs")}
            item["content"] = [part]
            events = [
                self._event(name, **opened.place, **said),
                self._event("response.content_part.done", **opened.place, part=part),
            ]
        if kind == "reasoning" and self._shape.seals_thoughts:
            item["encrypted_content"] = seal("".join(opened.pieces))
        item["status"] = status
        self.response["output"].append(item)
        return [*events, self._event("response.output_item.done", output_index=opened.index, item=item)]


Finish: TypeAlias = Callable[[dict[str, Any]], None]
"""Takes a response that has ended."""


class ResponseCollector:
    """A whole response."""

    def __init__(self, shape: ResponseShape, finish: Finish, generation: Generation) -> None:
        self._writer, self._finish = ResponseWriter(shape, generation), finish

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> None:
        """See Collector."""
        self._writer.push(deltas)

    def value(self) -> dict[str, Any]:
        """See Collector."""
        self._writer.end()
        self._finish(self._writer.response)
        return self._writer.response


class ResponseEncoder:
    """A response as the events of a stream."""

    def __init__(self, shape: ResponseShape, finish: Finish, generation: Generation) -> None:
        self._writer, self._finish = ResponseWriter(shape, generation), finish

    def opening(self) -> bytes:
        """See Encoder."""
        return encode(self._writer.start())

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        """See Encoder."""
        return encode(self._writer.push(deltas))

    def closing(self) -> bytes:
        """See Encoder."""
        events = self._writer.end()
        self._finish(self._writer.response)
        return encode(events)

    def failure(self, error: ApiError) -> bytes:
        """See Encoder."""
        events = self._writer.fail(error)
        self._finish(self._writer.response)
        return encode(events)


def encode(events: Sequence[Event]) -> bytes:
    """Events as they are sent."""
    return b"".join(event(each, each["type"]) for each in events)
