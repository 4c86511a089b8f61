"""Conversations and tools of the OpenAI chat format as the engine's messages and tools."""

from __future__ import annotations

from typing import Any, Literal

from qwenkit.chat.tools import ToolChoice
from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.server.conversation import ToolUse, find_tool, make_tools
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


def read_messages(bodies: list[MessageBody]) -> tuple[Message, ...]:
    """The messages of a request.

    Raises:
        ApiError: one cannot be read.
    """
    messages: list[Message] = []
    has_calls = False
    for n, body in enumerate(bodies):
        message = _message(body, f"messages[{n}]")
        if message.role == "tool" and not (message.tool_call_id or has_calls):
            sentence = (
                f"messages[{n}] answers no call: it has no tool_call_id, and nothing was called before it"
            )
            raise refuse(sentence, f"messages[{n}].tool_call_id")
        has_calls = has_calls or bool(message.tool_calls)
        messages.append(message)
    return tuple(messages)


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
    if calls and body.role != "assistant":
        raise refuse(
            f"{where} has calls, which only assistant messages can have; drop them", f"{where}.tool_calls"
        )
    content = _content(body, where)
    if content is None and not calls:
        sentence = f"{where}.content is missing; only assistant messages that call tools can do without it"
        raise refuse(sentence, f"{where}.content", "missing_field")
    if body.role == "function" and not body.name:
        raise refuse(f"{where}.name is missing; function messages name their function", f"{where}.name")
    role: Any = "system" if body.role == "developer" else body.role
    return Message(
        role,
        content or "",
        name=body.name,
        reasoning=body.reasoning_content,
        tool_calls=calls,
        tool_call_id=body.tool_call_id,
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
    given: Any = body.tool_choice if body.tool_choice is not None else ("auto" if tools else "none")
    if isinstance(given, ToolChoiceBody) and given.type == "allowed_tools":
        tools, given = _allowed(given.allowed_tools, tools)
    choice: ToolChoice
    if isinstance(given, ToolChoiceBody):
        choice = _named(given, tools)
    elif given in ("auto", "none", "required"):
        choice = given
    else:
        sentence = f"tool_choice={given!r:.80} is unknown; use auto, none, required or a function by name"
        raise refuse(sentence, "tool_choice", "invalid_value")
    if choice == "required" and not tools:
        raise refuse("tool_choice=required needs tools; give at least one", "tool_choice", "invalid_value")
    if choice == "none" or not tools:
        return ToolUse()
    # A function that is named is called once.
    parallel = body.parallel_tool_calls is not False and not isinstance(choice, ToolSpec)
    return ToolUse(tools=tools, choice=choice, parallel=parallel)


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
