"""Conversations and tools of Ollama's protocol as the engine's messages and tools."""

from __future__ import annotations

import json
from collections.abc import Sequence

from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.server.bodies import refuse_fields
from qwenkit.server.errors import refuse
from qwenkit.server.ollama.schema import (
    REFUSED_IN_MESSAGES,
    OllamaMessageBody,
    OllamaToolBody,
    OllamaToolCallBody,
)
from qwenkit.server.turns import ToolUse, check_answers, make_message, make_tools

_ROLES = ("system", "user", "assistant", "tool")


def read_messages(bodies: Sequence[OllamaMessageBody]) -> tuple[Message, ...]:
    """The messages of a request.

    Raises:
        ApiError: one cannot be read.
    """
    messages = tuple(_message(body, f"messages[{n}]") for n, body in enumerate(bodies))
    check_answers(messages, "messages")
    return messages


def _message(body: OllamaMessageBody, where: str) -> Message:
    role = body.role.lower()
    if role not in _ROLES:
        sentence = f"{where}.role={body.role!r:.80} is unknown; use one of {', '.join(_ROLES)}"
        raise refuse(sentence, f"{where}.role", "invalid_value")
    refuse_fields(body, REFUSED_IN_MESSAGES, f"{where}.")
    calls = tuple(map(_call, body.tool_calls or ()))
    return make_message(
        where,
        role,
        "" if body.content is None and body.thinking else body.content,
        calls=calls,
        name=body.tool_name,
        reasoning=body.thinking,
        call_id=body.tool_call_id,
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
