"""Tool calls as first-generation Qwen writes them: thoughts, actions and observations in one turn (ReAct).

Turns conversations with tools into such text; knows nothing of tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qwenkit.chat.react_parser import ReActParser
from qwenkit.chat.reply import NewId, ReplyParser, new_call_id
from qwenkit.chat.tools import (
    NO_CALL,
    THOUGHT_RULE,
    ToolChoice,
    ToolFormat,
    arguments_rule,
    chosen_tools,
    match_results,
    quoted,
)
from qwenkit.core.errors import InputError, TemplateError
from qwenkit.core.types import Constraint, Message, ToolSpec

_INSTRUCTION = """Answer the following questions as best you can. You have access to the following APIs:

{tools}

Use the following format:

Question: the input question you must answer
Thought: you should always think about what to do
Action: the action to take, should be one of [{names}]
Action Input: the input to the action
Observation: the result of the action
... (this Thought/Action/Action Input/Observation can be repeated zero or more times)
Thought: I now know the final answer
Final Answer: the final answer to the original input question

Begin!"""
_TOOL = (
    "{name}: Call this tool to interact with the {human_name} API. "
    "What is the {human_name} API useful for? {description} Parameters: {parameters}"
)
_ARGS_FORMATS = {
    None: "",
    "json": " Format the arguments as a JSON object.",
    "code": " Enclose the code within triple backticks (`) at the beginning and end of the code.",
}
_FINAL = "Thought: I now know the final answer.\nFinal Answer: "

# One line, as in training; its length is bounded so that a forced call is reached at all.
_FORCED_THOUGHT = r"/[^\n]{0,600}/"


@dataclass(frozen=True, slots=True, kw_only=True)
class QwenToolSpec(ToolSpec):
    """A tool as first-generation Qwen describes it, with a name for people and a list of parameters."""

    human_name: str = ""
    """The name shown to people; empty: the same as ``name``."""
    parameter_list: tuple[Mapping[str, Any], ...] = ()
    """Parameters as this format lists them; empty: the JSON schema is shown."""
    args_format: Literal["json", "code"] | None = None
    """Adds a sentence on how to write the arguments, which for "code" are no JSON."""


def read_qwen_tool(record: Mapping[str, Any]) -> ToolSpec:
    """A tool from a record of the released examples, or from a function of the OpenAI format.

    Args:
        record: ``name_for_model``, ``name_for_human``, ``description_for_model``, ``parameters`` as a list and
            ``args_format``; or ``name``, ``description`` and ``parameters`` as a JSON schema, in any mixture.

    Raises:
        InputError: a key is missing or of the wrong kind.
    """
    name = record.get("name_for_model") or record.get("name")
    if not isinstance(name, str) or not name:
        raise InputError(f"a tool needs the key 'name' (or 'name_for_model'), got {dict(record)!r:.200}")
    description = record.get("description_for_model") or record.get("description") or ""
    parameters = record.get("parameters") or {}
    args_format = record.get("args_format")
    if args_format not in _ARGS_FORMATS:
        raise InputError(f"args_format={args_format!r} of the tool {name!r} is unknown; use 'json' or 'code'")
    if isinstance(parameters, Mapping):
        listed: tuple[Mapping[str, Any], ...] = ()
    elif isinstance(parameters, Sequence) and all(isinstance(p, Mapping) and "name" in p for p in parameters):
        listed, parameters = tuple(parameters), _schema(parameters)
    else:
        raise InputError(
            f"parameters of the tool {name!r} must be a JSON schema or a list of objects with a 'name', "
            f"got {parameters!r:.100}"
        )
    human_name = record.get("name_for_human") or ""
    if not (listed or human_name or args_format):
        return ToolSpec(name=name, description=description, parameters=parameters)
    return QwenToolSpec(
        name=name,
        description=description,
        parameters=parameters,
        human_name=human_name,
        parameter_list=listed,
        args_format=args_format,
    )


def _schema(parameters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    properties = {}
    for parameter in parameters:
        schema = dict(
            parameter.get("schema") or {k: parameter[k] for k in ("type", "enum") if k in parameter}
        )
        if "description" in parameter:
            schema.setdefault("description", parameter["description"])
        properties[parameter["name"]] = schema
    required = [p["name"] for p in parameters if p.get("required")]
    return {"type": "object", "properties": properties, "required": required}


@dataclass(frozen=True, slots=True)
class ReActFormat(ToolFormat):
    """A call is ``Action:`` and ``Action Input:``, after which the model expects an ``Observation:``."""

    @property
    def name(self) -> str:
        """``react``."""
        return "react"

    @property
    def stop(self) -> tuple[str, ...]:
        """``Observation:``, where the model would go on to invent the tool's result."""
        return ("Observation:",)

    def constraint(
        self,
        tools: Sequence[ToolSpec],
        choice: ToolChoice,
        *,
        parallel: bool = True,
        starts_in_thought: bool = False,
    ) -> Constraint | None:
        """See `ToolFormat.constraint`: a thought of one line and one call, the format's most."""
        chosen = chosen_tools(tools, choice)
        if not chosen:
            return None
        before = 'thought "\\n"{0,2} ' if starts_in_thought else ""
        rules = [
            f'start: {before}THOUGHT "\\nAction: " call',
            f"THOUGHT: {_FORCED_THOUGHT}",
            "call: " + " | ".join(f"call_{i}" for i in range(len(chosen))),
        ]
        if starts_in_thought:
            rules.append(THOUGHT_RULE)
        for i, tool in enumerate(chosen):
            rules.append(f"call_{i}: {quoted(f'{tool.name}{chr(10)}Action Input: ')} {_input_rule(tool)}")
        return Constraint(kind="grammar", value="\n".join(rules))

    def parser(
        self, *, parallel: bool = True, new_id: NewId = new_call_id, is_whole: bool = False
    ) -> ReplyParser:
        """See `ToolFormat.parser`; a reply of this format holds one call at most."""
        return ReActParser(new_id=new_id, is_whole=is_whole)


def _input_rule(tool: ToolSpec) -> str:
    is_code = isinstance(tool, QwenToolSpec) and tool.args_format == "code"
    return r"/(?s:.+)/" if is_code else arguments_rule(tool)


def instruction(tools: Sequence[ToolSpec]) -> str:
    """What the model is told of the tools, before the question."""
    return _INSTRUCTION.format(
        tools="\n\n".join(map(_describe, tools)), names=", ".join(tool.name for tool in tools)
    )


def _describe(tool: ToolSpec) -> str:
    human_name, args_format = tool.name, None
    parameters = json.dumps(dict(tool.parameters), ensure_ascii=False)
    if isinstance(tool, QwenToolSpec):
        human_name, args_format = tool.human_name or tool.name, tool.args_format
        if tool.parameter_list:
            parameters = json.dumps(tool.parameter_list, ensure_ascii=False)
    line = _TOOL.format(
        name=tool.name, human_name=human_name, description=tool.description, parameters=parameters
    )
    return line + _ARGS_FORMATS[args_format]


@dataclass(frozen=True, slots=True, kw_only=True)
class ReActConversation:
    """A conversation with tools as plain turns."""

    system: str | None
    """None: the conversation brings none."""
    turns: tuple[Message, ...]
    """User and assistant in turn."""
    continues_last: bool
    """The assistant's last turn is to be gone on with, because a tool has answered or nobody has asked."""


def write_as_react(
    messages: Sequence[Message], tools: Sequence[ToolSpec], *, for_reply: bool = True
) -> ReActConversation:
    """Writes thoughts, calls and results into the assistant's turns, and the tools before the question.

    The tools are described in the user's turn of the last finished exchange, where there is one, else in the
    question: so the model was trained. Texts lose line ends before and blanks after them.

    Args:
        messages: the conversation; results follow the calls they answer.
        tools: described if there are any; answers are then written as final answers.
        for_reply: the model is to go on; else the turns stand as they are.

    Raises:
        TemplateError: turns out of order, no question, results without a call, calls without a result at the end.
    """
    if not any(message.role == "user" for message in messages):
        raise TemplateError("the conversation has no user message; this format needs at least one")
    system = None
    if messages[0].role == "system":
        system, messages = _strip(messages[0].content), messages[1:]
    turns: list[Message] = []
    chain = _one_call_each(messages)
    for message in chain:
        _append(turns, message, has_tools=bool(tools))
    if for_reply and chain[-1].role == "tool":
        turns[-1] = _extended(turns[-1], "\nThought:")
    if for_reply and chain[-1].tool_calls:
        raise TemplateError("the last tool call has no result; add a message with role 'tool' that holds it")
    turns = [replace(turn, content=_strip(turn.content)) for turn in turns]
    if any(turn.role != ("user", "assistant")[i % 2] for i, turn in enumerate(turns)):
        raise TemplateError(
            "user and assistant do not take turns; in a conversation with tools, join messages of one role"
        )
    if tools:
        # the last user turn that has an answer, else the question
        at = len(turns) - 2 if len(turns) % 2 == 0 else max(len(turns) - 3, 0)
        text = f"{instruction(tools)}\n\nQuestion: {turns[at].content}"
        turns[at] = replace(turns[at], content=text)
    return ReActConversation(system=system, turns=tuple(turns), continues_last=len(turns) % 2 == 0)


def _one_call_each(messages: Sequence[Message]) -> list[Message]:
    """The messages with each call in a message of its own, and its result, if it has come, right after it."""
    chain: list[Message] = []
    position = 0
    while position < len(messages):
        message = messages[position]
        position += 1
        if message.role == "system":
            raise TemplateError(
                "a system message after the first is not possible; put its text into the first"
            )
        if message.role in ("tool", "function"):
            raise TemplateError(NO_CALL)
        results = []
        while position < len(messages) and messages[position].role in ("tool", "function"):
            results.append(replace(messages[position], role="tool"))
            position += 1
        matched = match_results(message.tool_calls, results)
        if not message.tool_calls:
            chain.append(message)
        for i, (call, result) in enumerate(zip(message.tool_calls, matched, strict=True)):
            chain.append(replace(message, content="" if i else message.content, tool_calls=(call,)))
            chain += [result] if result is not None else []
    return chain


def _append(turns: list[Message], message: Message, *, has_tools: bool) -> None:
    text = _strip(message.content)
    if message.role == "user":
        turns.append(Message("user", text))
    elif message.role == "tool":
        turns[-1] = _extended(turns[-1], f"\nObservation: {text}")
    elif not turns:
        raise TemplateError("the conversation starts with the assistant; in this format the user comes first")
    else:
        for call in message.tool_calls:
            thought = text if text.startswith("Thought:") else f"Thought: {text}"
            text = f"{thought}\nAction: {call.name}\nAction Input: {call.arguments}"
        if not message.tool_calls and has_tools:
            text = _FINAL + text
        if turns[-1].role == "user":
            turns.append(Message("assistant", _strip(text)))
        else:
            turns[-1] = _extended(turns[-1], "\n" + text)


def _extended(turn: Message, text: str) -> Message:
    return replace(turn, content=turn.content + text)


def _strip(text: str) -> str:
    return text.lstrip("\n").rstrip()
