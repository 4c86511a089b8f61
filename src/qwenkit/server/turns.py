"""The rules of conversations and tools that clients of every protocol are held to. Knows no protocol."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from qwenkit.chat.tools import ToolChoice
from qwenkit.core.errors import did_you_mean
from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.server.errors import refuse

MAX_TOOLS = 128
_CHOICES: dict[str, ToolChoice] = {"auto": "auto", "none": "none", "required": "required"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolUse:
    """Which tools a reply may or must call."""

    tools: tuple[ToolSpec, ...] = ()
    choice: ToolChoice = "none"
    parallel: bool = True


def make_message(
    where: str,
    role: str,
    content: str | None,
    *,
    calls: Sequence[ToolCall] = (),
    name: str | None = None,
    reasoning: str | None = None,
    call_id: str | None = None,
) -> Message:
    """One turn, once it is clear that it makes sense.

    Args:
        where: the client's name of it, such as ``messages[2]``.
        role: a known one; developers speak as the system.
        content: None is missing, which only calls allow.
        calls: those an assistant made.
        name: of who speaks.
        reasoning: the thought before it.
        call_id: of the call that it answers.

    Raises:
        ApiError: it does not.
    """
    if calls and role != "assistant":
        sentence = f"{where} has calls, which only assistant messages can have; drop them"
        raise refuse(sentence, f"{where}.tool_calls", "invalid_value")
    if content is None and not calls:
        sentence = f"{where}.content is missing; only assistant messages that call tools can do without it"
        raise refuse(sentence, f"{where}.content", "missing_field")
    if role == "function" and not name:
        sentence = f"{where}.name is missing; function messages name their function"
        raise refuse(sentence, f"{where}.name", "missing_field")
    spoken: Any = "system" if role == "developer" else role
    return Message(
        spoken, content or "", name=name, reasoning=reasoning, tool_calls=tuple(calls), tool_call_id=call_id
    )


def check_answers(messages: Sequence[Message], name: str) -> None:
    """Makes sure that results of tools answer some call.

    Args:
        messages: the conversation.
        name: of the client's field.

    Raises:
        ApiError: one has no id, and nothing was called before it.
    """
    has_calls = False
    for n, message in enumerate(messages):
        if message.role == "tool" and not (message.tool_call_id or has_calls):
            where = f"{name}[{n}]"
            sentence = f"{where} answers no call: it has no tool_call_id, and nothing was called before it"
            raise refuse(sentence, f"{where}.tool_call_id", "invalid_value")
        has_calls = has_calls or bool(message.tool_calls)


def make_tools(functions: Iterable[ToolSpec], name: str) -> tuple[ToolSpec, ...]:
    """Tools, once it is clear that the model can tell them apart.

    Args:
        functions: as the client describes them.
        name: of the client's field.

    Raises:
        ApiError: there are too many, or names are missing or the same.
    """
    tools = tuple(functions)
    if len(tools) > MAX_TOOLS:
        raise refuse(f"{name} holds {len(tools)}; use at most {MAX_TOOLS}", name, "invalid_value")
    names = [tool.name for tool in tools]
    if "" in names or len(set(names)) < len(names):
        raise refuse(f"{name} must have names, each of its own", name, "invalid_value")
    return tools


def find_tool(wanted: str, tools: tuple[ToolSpec, ...], name: str) -> ToolSpec:
    """The tool that a client's field names.

    Raises:
        ApiError: there is none of that name.
    """
    for tool in tools:
        if tool.name == wanted:
            return tool
    hint = did_you_mean(wanted, [tool.name for tool in tools])
    sentence = f"{name} names {wanted!r:.80}, which is not among the functions{hint}"
    raise refuse(sentence, name, "invalid_value")


def choose_tools(
    tools: tuple[ToolSpec, ...], choice: str | ToolSpec | None, name: str, *, parallel: bool | None
) -> ToolUse:
    """Which of the tools a reply may or must call.

    Args:
        tools: those offered.
        choice: auto, none, required, or one of them; None leaves it to the model.
        name: of the client's field that says so.
        parallel: whether there may be several calls; None means yes. A function that is named is called once.

    Raises:
        ApiError: the choice makes no sense.
    """
    choice = choice if choice is not None else ("auto" if tools else "none")
    if isinstance(choice, ToolSpec):
        return ToolUse(tools=tools, choice=choice, parallel=False)
    known = _CHOICES.get(choice)
    if known is None:
        sentence = f"{name}={choice!r:.80} is unknown; use auto, none, required or a function by name"
        raise refuse(sentence, name, "invalid_value")
    if known == "required" and not tools:
        raise refuse(f"{name}=required needs tools; give at least one", name, "invalid_value")
    if known == "none" or not tools:
        return ToolUse()
    return ToolUse(tools=tools, choice=known, parallel=parallel is not False)
