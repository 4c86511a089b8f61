"""Conversations and tools of Ollama's protocol as the engine's messages and tools."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.server.bodies import refuse_fields
from qwenkit.server.conversation import ToolUse, make_tools
from qwenkit.server.errors import refuse
from qwenkit.server.ollama.schema import (
    REFUSED_IN_MESSAGES,
    OllamaMessageBody,
    OllamaToolBody,
    OllamaToolCallBody,
)

_ROLES = ("system", "user", "assistant", "tool")


def read_messages(bodies: Sequence[OllamaMessageBody]) -> tuple[Message, ...]:
    """The messages of a request.

    Raises:
        ApiError: one cannot be read.
    """
    messages: list[Message] = []
    has_calls = False
    for n, body in enumerate(bodies):
        message = _message(body, f"messages[{n}]")
        if message.role == "tool" and not (message.tool_call_id or has_calls):
            raise refuse(
                f"messages[{n}] answers no call: nothing was called before it", f"messages[{n}].role"
            )
        has_calls = has_calls or bool(message.tool_calls)
        messages.append(message)
    return tuple(messages)


def _message(body: OllamaMessageBody, where: str) -> Message:
    role = body.role.lower()
    if role not in _ROLES:
        sentence = f"{where}.role={body.role!r:.80} is unknown; use one of {', '.join(_ROLES)}"
        raise refuse(sentence, f"{where}.role", "invalid_value")
    refuse_fields(body, REFUSED_IN_MESSAGES, f"{where}.")
    calls = tuple(map(_call, body.tool_calls or ()))
    if calls and role != "assistant":
        sentence = f"{where} has calls, which only assistant messages can have; drop them"
        raise refuse(sentence, f"{where}.tool_calls")
    if body.content is None and not calls and not body.thinking:
        sentence = f"{where}.content is missing; only assistant messages that call tools can do without it"
        raise refuse(sentence, f"{where}.content", "missing_field")
    return Message(
        role,  # type: ignore[arg-type]
        body.content or "",
        name=body.tool_name,
        reasoning=body.thinking,
        tool_calls=calls,
        tool_call_id=body.tool_call_id,
    )


def _call(body: OllamaToolCallBody) -> ToolCall:
    arguments = json.dumps(body.function.arguments or {}, ensure_ascii=False)
    return ToolCall(id=body.id or "", name=body.function.name, arguments=arguments)


def read_tools(bodies: Sequence[OllamaToolBody] | None) -> ToolUse:
    """The tools of a request.

    Raises:
        ApiError: one cannot be offered.
    """
    for n, tool in enumerate(bodies or ()):
        if tool.type not in (None, "function"):
            sentence = f"tools[{n}].type={tool.type!r:.40} is not offered; use function"
            raise refuse(sentence, f"tools[{n}].type", "unsupported_field")
    functions = [tool.function for tool in bodies or ()]
    tools = make_tools(
        (
            ToolSpec(name=f.name, description=f.description or "", parameters=f.parameters or {})
            for f in functions
        ),
        "tools",
    )
    return ToolUse(tools=tools, choice="auto") if tools else ToolUse()
