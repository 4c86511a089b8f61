"""What every way of writing tool calls offers: stops, a grammar that forces a call, and a parser of replies.

Knows nothing of any one format; `react` and `hermes` are two.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, Protocol, TypeAlias

from qwenkit.chat.reply import NewId, ReplyParser, new_call_id
from qwenkit.core.errors import InputError, TemplateError, did_you_mean
from qwenkit.core.types import Constraint, Message, ToolCall, ToolSpec

ToolChoice: TypeAlias = Literal["auto", "none", "required"] | ToolSpec
"""Whether the model must call: as it likes, not at all, any of the tools, or this one."""


NO_CALL = "a tool result answers no call of the assistant; send it right after the message with the call"


class ToolFormat(Protocol):
    """How one family of models writes tool calls."""

    @property
    def name(self) -> str:
        """A short name for people."""

    @property
    def stop(self) -> tuple[str, ...]:
        """Stop strings that are needed while tools are offered."""

    def constraint(
        self,
        tools: Sequence[ToolSpec],
        choice: ToolChoice,
        *,
        parallel: bool = True,
        starts_in_thought: bool = False,
    ) -> Constraint | None:
        """What a reply must look like for a choice; None for "auto" and "none", which leave the model free.

        Args:
            tools: the tools offered.
            choice: "required" for a call of any of them, a tool for a call of that one.
            parallel: whether the reply may hold several calls, where the format can write them.
            starts_in_thought: the prompt itself opens the thought of a reasoning model.

        Raises:
            InputError: a call is required and there is no tool, or the tool chosen is not offered.
        """

    def parser(
        self, *, parallel: bool = True, new_id: NewId = new_call_id, is_whole: bool = False
    ) -> ReplyParser:
        """A parser for one reply.

        Args:
            parallel: report all calls of the reply; else it ends with its first.
            new_id: makes the ids of calls.
            is_whole: the reply is wanted at its end only, so nothing has to be reported early.
        """


def chosen_tools(tools: Sequence[ToolSpec], choice: ToolChoice) -> list[ToolSpec]:
    """The tools of which the reply must call one; empty where it need not call.

    Raises:
        InputError: a call is required and there is no tool, or the tool chosen is not offered.
    """
    if isinstance(choice, ToolSpec):
        names = [tool.name for tool in tools]
        if choice.name not in names:
            hint = did_you_mean(choice.name, names)
            raise InputError(f"the tool {choice.name!r} to be called is not among those offered{hint}")
        return [tool for tool in tools if tool.name == choice.name]
    if choice not in ("auto", "none", "required"):
        raise InputError(
            f"tool choice {choice!r} is unknown; use 'auto', 'none', 'required' or one of the tools"
        )
    if choice != "required":
        return []
    if not tools:
        raise InputError("a tool call is required, but no tools are offered; offer at least one")
    return list(tools)


THOUGHT_RULE = r"thought[lazy]: /(?s:.*)<\/think>/"
"""A grammar's rule for the rest of a thought, with its closing tag."""

_JSON_STYLE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
"""How models are trained to write JSON; anything looser lets one drift into endless blanks."""


def arguments_rule(tool: ToolSpec) -> str:
    """The part of a grammar that stands for a tool's arguments, which are an object."""
    schema = {"type": "object", **tool.parameters, "x-guidance": _JSON_STYLE}
    return "%json " + json.dumps(schema, ensure_ascii=False)


def quoted(text: str) -> str:
    """``text`` as a string of a Lark grammar."""
    return json.dumps(text, ensure_ascii=False)


def results_in_order(messages: Iterable[Message]) -> list[Message]:
    """The messages with the results of each turn in the order of its calls, all in the role ``tool``.

    Formats name no ids, so the order says which result belongs to which call. Results without an id belong to the
    calls that have no other, in order.

    Raises:
        TemplateError: a result answers no call, or one that is answered already.
    """
    ordered: list[Message] = []
    calls: tuple[ToolCall, ...] = ()
    results: list[Message] = []
    for message in messages:
        if message.role in ("tool", "function"):
            results.append(replace(message, role="tool"))
            continue
        ordered += [result for result in match_results(calls, results) if result is not None]
        ordered.append(message)
        calls, results = message.tool_calls, []
    return ordered + [result for result in match_results(calls, results) if result is not None]


def match_results(calls: Sequence[ToolCall], results: Sequence[Message]) -> list[Message | None]:
    """For each call its result, or None while it has none; see `results_in_order`."""
    matched: list[Message | None] = [None] * len(calls)
    ids = [call.id for call in calls]
    unnamed = []
    for result in results:
        if not result.tool_call_id:
            unnamed.append(result)
            continue
        at = next(
            (i for i, id_ in enumerate(ids) if id_ == result.tool_call_id and matched[i] is None),
            None,
        )
        if at is None:
            raise TemplateError(
                f"the tool result with tool_call_id={result.tool_call_id!r} answers no open call of the assistant "
                "message before it; send one result for each call, with the call's id"
            )
        matched[at] = result
    for result in unnamed:
        if None not in matched:
            raise TemplateError(NO_CALL)
        matched[matched.index(None)] = result
    return matched
