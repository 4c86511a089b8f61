"""Conversations and tools of the OpenAI chat format as the engine's messages and tools."""

from __future__ import annotations

from typing import Any, Literal

from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.server.errors import refuse
from qwenkit.server.openai.schema import (
    ROLES,
    AllowedToolsBody,
    ChatBody,
    FunctionBody,
    MessageBody,
    NamedToolBody,
    PromptBody,
    ToolBody,
    ToolCallBody,
    ToolChoiceBody,
)
from qwenkit.server.turns import ToolUse, check_answers, choose_tools, find_tool, make_message, make_tools


def read_messages(bodies: list[MessageBody]) -> tuple[Message, ...]:
    """The messages of a request.

    Raises:
        ApiError: one cannot be read.
    """
    messages = tuple(_message(body, f"messages[{n}]") for n, body in enumerate(bodies))
    check_answers(messages, "messages")
    return messages


def _message(body: MessageBody, where: str) -> Message:
    if body.role not in ROLES:
        sentence = f"{where}.role={body.role!r:.80} is unknown; use one of {', '.join(ROLES)}"
        raise refuse(sentence, f"{where}.role", "invalid_value")
    if (body.model_extra or {}).get("audio") is not None:
        raise refuse("this model reads text only; leave audio out", f"{where}.audio", "unsupported_content")
    calls = tuple(_call(c, f"{where}.tool_calls[{n}]") for n, c in enumerate(body.tool_calls or ()))
    if body.function_call is not None:
        calls = (
            *calls,
            ToolCall(id="", name=body.function_call.name, arguments=body.function_call.arguments),
        )
    return make_message(
        where,
        body.role,
        _content(body, where),
        calls=calls,
        name=body.name,
        reasoning=body.reasoning_content,
        call_id=body.tool_call_id,
    )


def _content(body: MessageBody, where: str) -> str | None:
    if body.content is None:
        return body.refusal
    if isinstance(body.content, str):
        return body.content
    texts = []
    for n, part in enumerate(body.content):
        text = part.refusal if part.type == "refusal" else part.text
        if part.type not in ("text", "refusal"):
            sentence = f"{where}.content[{n}] is {part.type!r:.40}; this model reads text only"
            raise refuse(sentence, f"{where}.content[{n}].type", "unsupported_content")
        if text is None:
            raise refuse(
                f"{where}.content[{n}].{part.type} is missing; it is required", f"{where}.content[{n}]"
            )
        texts.append(text)
    return "\n".join(texts)


def _call(body: ToolCallBody, where: str) -> ToolCall:
    if body.type not in (None, "function"):
        sentence = f"{where}.type={body.type!r:.40} is not offered; use function"
        raise refuse(sentence, f"{where}.type", "unsupported_field")
    return ToolCall(id=body.id or "", name=body.function.name, arguments=body.function.arguments)


def read_tools(body: ChatBody) -> ToolUse:
    """The tools of a request, in either form.

    Raises:
        ApiError: they cannot be offered, or the choice makes no sense.
    """
    if is_legacy(body):
        return _legacy(body)
    tools = tool_specs(body.tools)
    given: str | ToolChoiceBody | None = body.tool_choice
    if isinstance(given, ToolChoiceBody) and given.type == "allowed_tools":
        tools, given = _allowed(given.allowed_tools, tools)
    choice = _named(given, tools) if isinstance(given, ToolChoiceBody) else given
    return choose_tools(tools, choice, "tool_choice", parallel=body.parallel_tool_calls)


def is_legacy(body: ChatBody) -> bool:
    """Whether a request speaks of tools in the older form, so that its answer has function_call too."""
    return body.functions is not None or body.function_call is not None


def tool_specs(bodies: list[ToolBody] | None) -> tuple[ToolSpec, ...]:
    """The tools of a request.

    Raises:
        ApiError: one is no function.
    """
    functions = []
    for n, tool in enumerate(bodies or ()):
        if tool.type != "function":
            sentence = f"tools[{n}].type={tool.type!r:.40} is not offered; use function"
            raise refuse(sentence, f"tools[{n}].type", "unsupported_field")
        if tool.function is None:
            raise refuse(
                f"tools[{n}].function is missing; it is required", f"tools[{n}].function", "missing_field"
            )
        functions.append(tool.function)
    return make_tools(map(_spec, functions), "tools")


def _spec(body: FunctionBody) -> ToolSpec:
    return ToolSpec(name=body.name, description=body.description or "", parameters=body.parameters or {})


def _named(body: ToolChoiceBody, tools: tuple[ToolSpec, ...]) -> ToolSpec:
    if body.type not in (None, "function") or body.function is None:
        sentence = 'tool_choice must be a text or {"type": "function", "function": {"name": NAME}}'
        raise refuse(sentence, "tool_choice", "invalid_value")
    return find_tool(body.function.name, tools, "tool_choice")


def _allowed(
    body: AllowedToolsBody | None, tools: tuple[ToolSpec, ...]
) -> tuple[tuple[ToolSpec, ...], Literal["auto", "required"]]:
    if body is None or not body.tools:
        raise refuse(
            "tool_choice.allowed_tools must list tools", "tool_choice.allowed_tools", "missing_field"
        )
    return tuple(find_tool(_tool_name(t), tools, "tool_choice.allowed_tools") for t in body.tools), body.mode


def _tool_name(body: NamedToolBody) -> str:
    if body.function is None:
        raise refuse(
            "tool_choice.allowed_tools must name functions", "tool_choice.allowed_tools", "invalid_value"
        )
    return body.function.name


def _legacy(body: ChatBody) -> ToolUse:
    if body.tools is not None or body.tool_choice is not None:
        sentence = "functions is the older form of tools; give only one of the two"
        raise refuse(sentence, "functions", "invalid_value")
    tools = make_tools(map(_spec, body.functions or ()), "functions")
    if isinstance(body.function_call, str) and body.function_call not in ("auto", "none"):
        sentence = (
            f"function_call={body.function_call!r:.80} is unknown; use auto, none or a function by name"
        )
        raise refuse(sentence, "function_call", "invalid_value")
    if body.function_call == "none" or (not tools and body.function_call in (None, "auto")):
        return ToolUse()
    if body.function_call in (None, "auto"):
        return ToolUse(tools=tools, choice="auto", parallel=False)
    choice = find_tool(getattr(body.function_call, "name", ""), tools, "function_call")
    return ToolUse(tools=tools, choice=choice, parallel=False)


def template_options(body: PromptBody) -> dict[str, Any]:
    """Variables of the chat template that a request sets."""
    options = dict(body.chat_template_kwargs or {})
    for reserved in ("messages", "tools", "add_generation_prompt", "continue_final_message"):
        if reserved in options:
            raise refuse(
                f"chat_template_kwargs cannot hold {reserved}; use the field of that name",
                "chat_template_kwargs",
            )
    if body.enable_thinking is not None:
        options["enable_thinking"] = body.enable_thinking
    if body.add_generation_prompt is False:
        options["add_generation_prompt"] = False
    return options
