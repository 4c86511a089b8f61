"""Conversations of transformers (dictionaries, also in batches) as prompts of first-generation Qwen.

Knows nothing of models. The prompt is made of segments, so that text of a message cannot become a special.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.utils import get_json_schema

from qwenkit.chat.chatml import DEFAULT_SYSTEM, ChatMLTemplate
from qwenkit.core.errors import InputError
from qwenkit.core.types import Message, ToolSpec
from qwenkit.tokenizer.base import Segment, Tokenizer

CHATML_JINJA = (
    "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    + DEFAULT_SYSTEM
    + "<|im_end|>\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' }}"
    "{% if not loop.last or add_generation_prompt %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""What the prompts of plain conversations look like, for programs that render templates themselves."""


def is_batch(conversation: Any) -> bool:
    """Whether several conversations were given, as transformers tells it."""
    return (
        isinstance(conversation, Sequence)
        and len(conversation) > 0
        and (isinstance(conversation[0], list | tuple) or hasattr(conversation[0], "messages"))
    )


def chat_segments(
    tokenizer: Tokenizer,
    conversation: Any,
    tools: Sequence[Any] | None = None,
    *,
    add_generation_prompt: bool = False,
    continue_final_message: bool = False,
) -> list[Segment]:
    """The prompt of one conversation.

    Args:
        tokenizer: has the specials of ChatML.
        conversation: messages as dictionaries, or an object with such ``messages``.
        tools: OpenAI tool objects, or Python functions with type hints and docstrings.
        add_generation_prompt: whether to open the assistant's turn.
        continue_final_message: whether to leave the last message open instead.

    Raises:
        InputError: a message or tool is malformed, or there are no messages.
        TemplateError: the conversation does not fit the format.
    """
    messages = [_message(m) for m in getattr(conversation, "messages", conversation)]
    if not messages:
        raise InputError("a conversation needs at least one message")
    if add_generation_prompt and continue_final_message:
        raise InputError("choose one of add_generation_prompt and continue_final_message")
    return ChatMLTemplate(tokenizer).render(
        messages,
        tools=[_tool(t) for t in tools or ()],
        add_generation_prompt=add_generation_prompt,
        continue_final=continue_final_message,
    )


def segments_text(tokenizer: Tokenizer, segments: Sequence[Segment]) -> str:
    """How a prompt reads, specials spelled out."""
    return "".join(s if isinstance(s, str) else tokenizer.token_bytes(s).decode() for s in segments)


def _message(data: Any) -> Message:
    """A message; content may be a list of text parts, and arguments of calls an object, as transformers has them."""
    if not isinstance(data, Mapping):
        return Message.from_dict(data)
    fields = {key: value for key, value in data.items() if value is not None}
    content = fields.get("content")
    if isinstance(content, list):
        if any(not isinstance(part, Mapping) or part.get("type") != "text" for part in content):
            raise InputError("a message has content that is not text; first-generation Qwen reads only text")
        fields["content"] = "".join(str(part["text"]) for part in content)
    if "tool_calls" in fields:
        fields["tool_calls"] = [_call(call) for call in fields["tool_calls"]]
    return Message.from_dict(fields)


def _call(call: Any) -> Any:
    if isinstance(call, Mapping) and "function" not in call and "name" in call:
        call = {"function": call}
    function = call.get("function") if isinstance(call, Mapping) else None
    if isinstance(function, Mapping) and isinstance(function.get("arguments"), Mapping):
        text = json.dumps(function["arguments"], ensure_ascii=False)
        return {**call, "function": {**function, "arguments": text}}
    return call


def _tool(tool: Any) -> ToolSpec:
    schema = get_json_schema(tool) if callable(tool) else tool
    function = schema.get("function", schema) if isinstance(schema, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise InputError(f"tool {tool!r} must be a function, or an OpenAI tool object with a name")
    return ToolSpec(
        name=function["name"],
        description=function.get("description") or "",
        parameters=function.get("parameters") or {},
    )
