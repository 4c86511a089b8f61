"""A reply in the shape of the Responses protocol: the object and its events, which come from the same items."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from qwenkit.chat.parser import ReplyDelta
from qwenkit.core.types import Delta, TokenLogprob, ToolCallDelta
from qwenkit.server.conversation import ChatPlan
from qwenkit.server.errors import ApiError
from qwenkit.server.generation import Generation
from qwenkit.server.replies import Replies
from qwenkit.server.responses_items import Item, new_id
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


class ResponseWriter:
    """One response under way.

    Args:
        shape: how it has to look.
        generation: makes the text.
    """

    def __init__(self, shape: ResponseShape, generation: Generation) -> None:
        self._shape = shape
        self.response: dict[str, Any] = {**shape.head, "output": []}
        self._replies = Replies(shape.plan, generation)
        self._number = 0
        self._item: Item | None = None
        self._pieces: list[str] = []
        self._logprobs: list[dict[str, Any] | None] = []
        """Of the text that the item under way holds."""
        self._unsaid: list[TokenLogprob] = []
        """Of tokens whose text is still held back."""
        self._has_called = False

    def start(self) -> list[Event]:
        """The first events."""
        if self.response["status"] == "queued":
            return [self._about("response.created"), self._about("response.queued")]
        return [self._about("response.created"), self._about("response.in_progress")]

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
        reply = self._replies.all[0]
        is_cut = reply.finish_reason == "length"
        status = "incomplete" if is_cut else "completed"
        events = self._close(status)
        usage = self._replies.usage()
        self.response |= {
            "status": status,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
            "completed_at": None if is_cut else int(time.time()),
            "usage": {
                "input_tokens": usage.prompt_tokens,
                "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": self._reasoning_tokens()},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }
        return [*events, self._about(f"response.{status}")]

    def fail(self, error: ApiError) -> list[Event]:
        """The last events of a response that could not be finished."""
        self._close("incomplete")
        codes = {429: "rate_limit_exceeded"}
        code = codes.get(error.status, "invalid_prompt" if error.status < 500 else "server_error")
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        said = {"code": error.code or code, "message": error.message, "param": error.param}
        return [self._event("error", **said), self._about("response.failed")]

    def cancel(self) -> None:
        """Nobody wants the rest."""
        self._close("incomplete")
        self.response["status"] = "cancelled"

    def _reasoning_tokens(self) -> int:
        return self._replies.all[0].reasoning_tokens if self._shape.plan.has_reasoning else 0

    def _event(self, kind: str, **fields: Any) -> Event:
        self._number += 1
        return {"type": kind, "sequence_number": self._number - 1, **fields}

    def _about(self, kind: str) -> Event:
        return self._event(kind, response={**self.response, "output": list(self.response["output"])})

    def _of_item(self, kind: str, **fields: Any) -> Event:
        item = self._item or {}
        place = {"item_id": item.get("id"), "output_index": len(self.response["output"])}
        if item.get("type") in _PARTS:
            place["content_index"] = 0
        return self._event(kind, **place, **fields)

    def _add(self, part: ReplyDelta) -> list[Event]:
        events: list[Event] = []
        if part.reasoning:
            self._unsaid = []  # log-probabilities are the answer's
            events += self._open("reasoning", {"summary": [], "content": []})
            events.append(self._delta(part.reasoning))
        if part.content:
            events += self._say(part.content)
        for call in part.tool_calls:
            events += self._call(call)
        return events

    def _say(self, text: str) -> list[Event]:
        events: list[Event] = []
        if self._item is None or self._item["type"] != "message":
            if self._has_called:  # the line end that parts it from what was said before the call
                text = text.removeprefix("\n")
            self._drop_tags(text.encode("utf-8", "replace"))
            events = self._open("message", {"role": "assistant", "content": []})
        logprobs = self._take_logprobs()
        return [*events, self._delta(text, logprobs=logprobs)]

    def _drop_tags(self, text: bytes) -> None:
        """Forgets tokens before those that say ``text``: what parted it from a thought."""
        said = [token_bytes(self._shape.tokenizer, p.token_id) for p in self._unsaid]
        starts = (n for n in range(len(said)) if b"".join(said[n:]).startswith(text))
        del self._unsaid[: next(starts, 0)]

    def _take_logprobs(self) -> list[dict[str, Any] | None]:
        logprobs = chat_logprobs(self._shape.tokenizer, self._unsaid)
        self._unsaid = []
        self._logprobs += logprobs
        return logprobs

    def _call(self, call: ToolCallDelta) -> list[Event]:
        events: list[Event] = []
        if call.id is not None:
            self._has_called, self._unsaid = True, []
            item = {"call_id": call.id, "name": call.name or "", "arguments": ""}
            events = self._open("function_call", item, is_new=True)
        return [*events, self._delta(call.arguments)] if call.arguments else events

    def _open(self, kind: str, fields: Item, *, is_new: bool = False) -> list[Event]:
        """Begins an item, unless it is under way."""
        if self._item is not None and self._item["type"] == kind and not is_new:
            return []
        events = self._close("completed")
        prefix = {"message": "msg", "reasoning": "rs", "function_call": "fc"}[kind]
        item = {"id": new_id(prefix), "type": kind, "status": "in_progress", **fields}
        self._item = item
        place = len(self.response["output"])
        events.append(self._event("response.output_item.added", output_index=place, item=dict(item)))
        if kind in _PARTS:
            events.append(self._of_item("response.content_part.added", part=self._part("")))
        return events

    def _delta(self, text: str, **fields: Any) -> Event:
        self._pieces.append(text)
        kind = self._item["type"] if self._item else ""
        return self._of_item(f"response.{_NAMES[kind]}.delta", delta=text, **fields)

    def _part(self, text: str) -> dict[str, Any]:
        kind = _PARTS[self._item["type"]] if self._item else ""
        part: dict[str, Any] = {"type": kind, "text": text}
        if kind == "output_text":
            part |= {"annotations": [], "logprobs": list(self._logprobs)}
        return part

    def _close(self, status: str) -> list[Event]:
        """Ends the item under way, if there is one."""
        item, text = self._item, "".join(self._pieces)
        if item is None:
            return []
        kind = item["type"]
        if kind == "message":
            self._take_logprobs()
        name = f"response.{_NAMES[kind]}.done"
        if kind in _PARTS:
            part = self._part(text)
            extra = {"logprobs": part["logprobs"]} if kind == "message" else {}
            events = [
                self._of_item(name, text=text, **extra),
                self._of_item("response.content_part.done", part=part),
            ]
            item["content"] = [part]
        else:
            events = [self._of_item(name, arguments=text, name=item["name"])]
            item["arguments"] = text
        if kind == "reasoning" and self._shape.seals_thoughts:
            item["encrypted_content"] = seal(text)
        item["status"] = status
        place = len(self.response["output"])
        events.append(self._event("response.output_item.done", output_index=place, item=item))
        self.response["output"].append(item)
        self._item, self._pieces, self._logprobs = None, [], []
        return events


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
