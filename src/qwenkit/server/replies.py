"""Replies to a conversation while they are made: taken apart, counted, ended. Knows no protocol."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeAlias

from qwenkit.chat.parser import ReplyDelta, ReplyParser
from qwenkit.core.types import Delta, ToolCall, Usage, join_calls
from qwenkit.server.generation import Generation

NewParts: TypeAlias = tuple[int, Sequence[Delta], list[ReplyDelta]]
"""Number of a reply, what the engine made of it, and what that means."""
ReplyEnd: TypeAlias = Literal["stop", "length", "tool_calls"]


class ReplyPlan(Protocol):
    """What is expected of replies."""

    @property
    def has_calls(self) -> bool:
        """Whether they may call tools."""

    @property
    def has_reasoning(self) -> bool:
        """Whether they may begin with a thought."""

    def new_parser(self) -> ReplyParser:
        """What takes one reply apart."""


class Reply:
    """One reply under way: its text taken apart, and how it ended."""

    def __init__(self, plan: ReplyPlan) -> None:
        self._reads_singly, self._has_reasoning = plan.has_calls, plan.has_reasoning
        self._parser = plan.new_parser()
        self._has_calls = False
        self._has_answer = False
        self._tokens = 0
        self.reasoning_tokens = 0
        self.finish_reason: ReplyEnd | None = None
        self.stop: str | int | None = None
        """The stop string or token that ended it, if the request named it."""
        self.usage: Usage | None = None

    def push(self, deltas: Sequence[Delta]) -> tuple[list[ReplyDelta], Sequence[Delta]]:
        """What is new, given what the engine made, and how much of that was taken."""
        if self.finish_reason is not None:
            return [], ()
        if self._reads_singly or (self._has_reasoning and not self._has_answer):
            parts, deltas = self._push_singly(deltas)
        else:
            parts = self._push(deltas)
        last = deltas[-1]
        if last.finish_reason is not None:
            self.usage, self.stop = last.usage, last.stop
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

    def _finish(self, parts: list[ReplyDelta], reason: ReplyEnd) -> None:
        rest = self._parser.finish()
        self._see(rest)
        parts += rest
        self.finish_reason = "tool_calls" if self._has_calls and reason == "stop" else reason

    def final_usage(self, generation: Generation) -> Usage:
        """Token counts; counted here where the reply was ended before the engine ended it."""
        return self.usage or generation.usage(0, self._tokens)


class Replies:
    """All replies of a request; ends the generation when nothing that may still come would be shown."""

    def __init__(self, plan: ReplyPlan, generation: Generation) -> None:
        self._generation = generation
        self.all = [Reply(plan) for _ in range(generation.requests[0].params.n)]

    def push(self, deltas: Sequence[tuple[int, Delta]]) -> list[NewParts]:
        """For each reply with something new: its number, what came, and what that means."""
        grouped: dict[int, list[Delta]] = {}
        for _, delta in deltas:
            grouped.setdefault(delta.sample, []).append(delta)
        new: list[NewParts] = []
        for sample, group in grouped.items():
            parts, taken = self.all[sample].push(group)
            if taken:
                new.append((sample, taken, parts))
        if all(reply.finish_reason is not None for reply in self.all) and not self._generation.is_done:
            self._generation.abort()
        return new

    def usage(self) -> Usage:
        """Token counts of the request; its prompt counts once."""
        usages = [reply.final_usage(self._generation) for reply in self.all]
        return dataclasses.replace(usages[0], completion_tokens=sum(u.completion_tokens for u in usages))


@dataclass(slots=True)
class WholeReply:
    """What one reply adds up to."""

    pieces: list[ReplyDelta] = field(default_factory=list)

    @property
    def content(self) -> str:
        """Its text."""
        return "".join(piece.content for piece in self.pieces)

    @property
    def reasoning(self) -> str:
        """The thought before it."""
        return "".join(piece.reasoning for piece in self.pieces)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """Its calls of tools."""
        return join_calls(call for piece in self.pieces for call in piece.tool_calls)
