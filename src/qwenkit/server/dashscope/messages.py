"""Conversations and tools of the DashScope format as the engine's messages and tools."""

from __future__ import annotations

from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.server.dashscope.schema import (
    ROLES,
    DashScopeCall,
    DashScopeInput,
    DashScopeMessage,
    DashScopeParameters,
    DashScopeTool,
    DashScopeToolChoice,
)
from qwenkit.server.errors import refuse
from qwenkit.server.turns import ToolUse, check_answers, choose_tools, find_tool, make_message, make_tools

_MESSAGES = "input.messages"
_TOOLS, _CHOICE = "parameters.tools", "parameters.tool_choice"


def read_input(given: DashScopeInput) -> tuple[Message, ...]:
    """The conversation of a request, in whichever form it came.

    Raises:
        ApiError: there is none, or it cannot be read.
    """
    if given.messages is not None:
        for name in ("prompt", "history"):
            if getattr(given, name) is not None:
                sentence = f"input.messages and input.{name} contradict each other; give only one of them"
                raise refuse(sentence, f"input.{name}", "invalid_value")
        return _read_messages(given.messages)
    if not given.prompt:
        raise refuse("input needs messages or prompt; give one of them", "input", "missing_field")
    past = [(Message("user", turn.user), Message("assistant", turn.bot)) for turn in given.history or ()]
    return (*(message for pair in past for message in pair), Message("user", given.prompt))


def is_partial(given: DashScopeInput) -> bool:
    """Whether the last message is to be gone on with."""
    return bool(given.messages) and bool(given.messages[-1].partial)  # type: ignore[index]


def _read_messages(bodies: list[DashScopeMessage]) -> tuple[Message, ...]:
    if not bodies:
        raise refuse(f"{_MESSAGES} is empty; give at least one", _MESSAGES, "invalid_value")
    messages: list[Message] = []
    for n, body in enumerate(bodies):
        where = f"{_MESSAGES}[{n}]"
        if body.partial and (n < len(bodies) - 1 or body.role != "assistant"):
            sentence = f"{where}.partial is for the last message, if it is an assistant's; leave it out"
            raise refuse(sentence, f"{where}.partial", "invalid_value")
        messages.append(_message(body, where))
    check_answers(messages, _MESSAGES)
    return tuple(messages)


def _message(body: DashScopeMessage, where: str) -> Message:
    if body.role not in ROLES:
        sentence = f"{where}.role={body.role!r:.80} is unknown; use one of {', '.join(ROLES)}"
        raise refuse(sentence, f"{where}.role", "invalid_value")
    calls = tuple(_call(c, f"{where}.tool_calls[{n}]") for n, c in enumerate(body.tool_calls or ()))
    return make_message(
        where,
        body.role,
        _content(body, where),
        calls=calls,
        name=body.name,
        reasoning=body.reasoning_content,
        call_id=body.tool_call_id,
    )


def _content(body: DashScopeMessage, where: str) -> str | None:
    if body.content is None or isinstance(body.content, str):
        return body.content
    texts = []
    for n, part in enumerate(body.content):
        if part.text is None or part.type not in (None, "text"):
            kind = part.type or ", ".join(part.model_extra or ()) or "empty"
            sentence = f"{where}.content[{n}] is {kind!r:.80}; this model reads text only"
            raise refuse(sentence, f"{where}.content[{n}]", "unsupported_content")
        texts.append(part.text)
    return "\n".join(texts)


def _call(body: DashScopeCall, where: str) -> ToolCall:
    if body.type not in (None, "", "function"):
        sentence = f"{where}.type={body.type!r:.40} is not offered; use function"
        raise refuse(sentence, f"{where}.type", "unsupported_field")
    return ToolCall(id=body.id or "", name=body.function.name, arguments=body.function.arguments)


def read_tools(parameters: DashScopeParameters) -> ToolUse:
    """The tools of a request.

    Raises:
        ApiError: they cannot be offered, or the choice makes no sense.
    """
    specs = [_spec(tool, f"{_TOOLS}[{n}]") for n, tool in enumerate(parameters.tools or ())]
    tools = make_tools(specs, _TOOLS)
    given = parameters.tool_choice
    choice = _named(given, tools) if isinstance(given, DashScopeToolChoice) else given
    return choose_tools(tools, choice, _CHOICE, parallel=parameters.parallel_tool_calls)


def _named(given: DashScopeToolChoice, tools: tuple[ToolSpec, ...]) -> ToolSpec:
    if given.type != "function" or given.function is None:
        sentence = f'{_CHOICE} must be a text or {{"type": "function", "function": {{"name": NAME}}}}'
        raise refuse(sentence, _CHOICE, "invalid_value")
    return find_tool(given.function.name, tools, _CHOICE)


def _spec(tool: DashScopeTool, where: str) -> ToolSpec:
    if tool.type != "function":
        sentence = f"{where}.type={tool.type!r:.40} is not offered; use function"
        raise refuse(sentence, f"{where}.type", "unsupported_field")
    if tool.function is None:
        raise refuse(f"{where}.function is missing; it is required", f"{where}.function", "missing_field")
    body = tool.function
    return ToolSpec(name=body.name, description=body.description or "", parameters=body.parameters or {})
