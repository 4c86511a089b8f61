"""The ways conversations are written in JSON, each turned into the same samples. Knows nothing of files or tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from qwenkit.chat.react import read_qwen_tool
from qwenkit.core.errors import InputError, did_you_mean
from qwenkit.core.types import Message, ToolCall, ToolSpec
from qwenkit.train.samples import Sample, conversation

DataFormat: TypeAlias = Literal["auto", "qwen", "sharegpt", "openai", "alpaca", "text"]
"""``auto`` decides for each sample."""

_SHAREGPT_ROLES: Mapping[str, str] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "function_call": "call",
    "tool_call": "call",
    "observation": "tool",
    "tool": "tool",
    "function": "tool",
}
_ONLY_SHAREGPT = frozenset({"human", "gpt", "function_call", "tool_call", "observation"})
_OPENAI_KEYS = ("role", "content", "name", "reasoning_content", "tool_calls", "tool_call_id")


def read_sample(record: Any, source: str = "", data_format: DataFormat = "auto") -> Sample:
    """The sample that a JSON value stands for.

    Raises:
        InputError: one sentence that says what is wrong with it, without the source.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"a sample must be a JSON object, got {_kind(record)}")
    chosen = detect_format(record) if data_format == "auto" else data_format
    if chosen not in _READERS:
        raise InputError(f"data format {chosen!r} is unknown; use auto, {', '.join(_READERS)}")
    return _READERS[chosen](record, source)


def detect_format(record: Mapping[str, Any]) -> DataFormat:
    """Which format a sample is in, by its keys and, between Qwen's and ShareGPT's, by its roles.

    Raises:
        InputError: none of them.
    """
    if "messages" in record:
        return "openai"
    if "conversations" in record:
        turns = record["conversations"]
        roles = {t["from"] for t in turns if _has_role(t)} if isinstance(turns, list) else set()
        return "sharegpt" if roles & _ONLY_SHAREGPT else "qwen"
    if "instruction" in record:
        return "alpaca"
    if "text" in record:
        return "text"
    got = ", ".join(sorted(map(str, record))[:5]) or "none"
    raise InputError(
        f"no conversation; a sample needs the key conversations, messages, instruction or text, got {got}"
    )


def _has_role(turn: Any) -> bool:
    return isinstance(turn, Mapping) and isinstance(turn.get("from"), str)


def _qwen(record: Mapping[str, Any], source: str) -> Sample:
    messages = []
    for where, turn in _turns(record, "conversations"):
        role = _text(turn, "from", where)
        if role not in ("user", "assistant"):
            hint = did_you_mean(role, ("user", "assistant"))
            if role == "system":
                hint = "; put the system text into the sample's key 'system', or read the data as sharegpt"
            raise InputError(f"{where}: role {role!r:.40} is unknown; use user or assistant{hint}")
        messages.append(Message(role, _text(turn, "value", where)))  # type: ignore[arg-type]
    return conversation(messages, _tools(record), source=source, system=_system(record))


def _sharegpt(record: Mapping[str, Any], source: str) -> Sample:
    messages: list[Message] = []
    for where, turn in _turns(record, "conversations"):
        name = _text(turn, "from", where)
        role = _SHAREGPT_ROLES.get(name)
        if role is None:
            known = ", ".join(_SHAREGPT_ROLES)
            raise InputError(
                f"{where}: role {name!r:.40} is unknown; use one of {known}{did_you_mean(name, _SHAREGPT_ROLES)}"
            )
        value = _text(turn, "value", where)
        if role != "call":
            messages.append(Message(role, value))  # type: ignore[arg-type]
            continue
        thought = ""
        if messages and messages[-1].role == "assistant" and not messages[-1].tool_calls:
            thought = messages.pop().content
        messages.append(Message("assistant", thought, tool_calls=_written_calls(value, where)))
    return conversation(messages, _tools(record), source=source, system=_system(record))


def _written_calls(value: str, where: str) -> tuple[ToolCall, ...]:
    """Calls of a ShareGPT turn: JSON text of one, or of a list."""
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        parsed = None
    calls = parsed if isinstance(parsed, list) and parsed else [parsed]
    return tuple(_call(call, where) for call in calls)


def _call(call: Any, where: str, id_: str = "") -> ToolCall:
    name = call.get("name") if isinstance(call, Mapping) else None
    if not isinstance(name, str) or not name or "arguments" not in call:
        raise InputError(f"{where}: a call must be JSON with 'name' and 'arguments', got {call!r:.60}")
    arguments = call["arguments"]
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    return ToolCall(id=id_, name=name, arguments=arguments)


def _openai(record: Mapping[str, Any], source: str) -> Sample:
    messages = [_openai_message(turn, where) for where, turn in _turns(record, "messages")]
    return conversation(messages, _tools(record), source=source, system=_system(record))


def _openai_message(turn: Mapping[str, Any], where: str) -> Message:
    role = _text(turn, "role", where)
    role = "system" if role == "developer" else role
    if turn.get("weight") not in (None, 1):
        raise InputError(
            f"{where}: weight {turn['weight']!r} is not possible; set loss to last, or cut the sample there"
        )
    calls = _openai_calls(turn, where)
    content = turn.get("content")
    if isinstance(content, list):
        content = _joined_parts(content, where)
    if content is None and (calls or role == "tool"):
        content = ""
    if not isinstance(content, str):
        raise InputError(f"{where}: 'content' must be text, got {_kind(content)}")
    values = {key: turn[key] for key in _OPENAI_KEYS[2:] if turn.get(key) is not None and key != "tool_calls"}
    for key, value in values.items():
        if not isinstance(value, str):
            raise InputError(f"{where}: {key!r} must be text, got {_kind(value)}")
    try:
        return Message(
            role,  # type: ignore[arg-type]
            content,
            name=values.get("name"),
            reasoning=values.get("reasoning_content"),
            tool_calls=calls,
            tool_call_id=values.get("tool_call_id"),
        )
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def _openai_calls(turn: Mapping[str, Any], where: str) -> tuple[ToolCall, ...]:
    if turn.get("function_call") is not None:  # as messages had it before tools
        return (_call(turn["function_call"], where),)
    calls = turn.get("tool_calls") or []
    if not isinstance(calls, list):
        raise InputError(f"{where}: 'tool_calls' must be a list, got {_kind(calls)}")
    if calls and turn.get("role") != "assistant":
        raise InputError(f"{where}: only the assistant calls tools; remove 'tool_calls', or mend the role")
    read = []
    for call in calls:
        is_object = isinstance(call, Mapping)
        id_ = call.get("id") if is_object else None
        read.append(
            _call(call.get("function") if is_object else call, where, id_ if isinstance(id_, str) else "")
        )
    return tuple(read)


def _joined_parts(parts: Sequence[Any], where: str) -> str:
    texts = []
    for part in parts:
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else _kind(part)
            raise InputError(
                f"{where}: content of type {kind!r:.40} is not possible; the models read text only"
            )
        texts.append(text)
    return "".join(texts)


def _alpaca(record: Mapping[str, Any], source: str) -> Sample:
    messages: list[Message] = []
    history = record.get("history") or []
    if not isinstance(history, list):
        raise InputError(f"'history' must be a list of pairs of texts, got {_kind(history)}")
    for pair in history:
        if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(text, str) for text in pair)):
            raise InputError(f"'history' must hold pairs of texts, got {pair!r:.60}")
        messages += [Message("user", pair[0]), Message("assistant", pair[1])]
    instruction, given = _text(record, "instruction"), _text(record, "input", default="")
    question = "\n".join(filter(None, (instruction, given)))
    if not question:
        raise InputError("'instruction' and 'input' are both empty; one of them must ask something")
    messages += [Message("user", question), Message("assistant", _text(record, "output"))]
    return conversation(messages, _tools(record), source=source, system=_system(record))


def _plain(record: Mapping[str, Any], source: str) -> Sample:
    text = _text(record, "text")
    if not text:
        raise InputError("'text' is empty; remove the sample")
    return Sample((), (), source, text)


def _turns(record: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """The turns with what to call each."""
    turns = record.get(key)
    if not isinstance(turns, list):
        raise InputError(f"{key!r} must be a list of turns, got {_kind(turns)}")
    for n, turn in enumerate(turns, 1):
        if not isinstance(turn, Mapping):
            raise InputError(f"turn {n} must be a JSON object, got {_kind(turn)}")
    return [(f"turn {n}", turn) for n, turn in enumerate(turns, 1)]


def _text(record: Mapping[str, Any], key: str, where: str = "", *, default: str | None = None) -> str:
    value = record.get(key, default)
    if default is not None and value is None:
        return default
    if not isinstance(value, str):
        got = _kind(value) if key in record else "nothing"
        raise InputError(f"{where}{': ' if where else ''}{key!r} must be text, got {got}")
    return value


def _system(record: Mapping[str, Any]) -> str | None:
    """The sample's own system text; an empty one counts as none, because tables of samples fill the column with it."""
    return _text(record, "system", default="") or None


def _tools(record: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    """Tools as a list or as JSON text of one, in the OpenAI form, bare functions, or records of the Qwen release."""
    tools = record.get("tools") or record.get("functions") or []
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except (ValueError, RecursionError):
            raise InputError("'tools' is text that is no JSON; write a list of tools") from None
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise InputError(f"'tools' must be a list of objects, got {_kind(tools)}")
    functions = [tool["function"] if isinstance(tool.get("function"), Mapping) else tool for tool in tools]
    return tuple(read_qwen_tool(function) for function in functions)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    names = {
        dict: "an object",
        list: "a list",
        str: "text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), type(value).__name__)


_READERS: Mapping[str, Callable[[Mapping[str, Any], str], Sample]] = {
    "qwen": _qwen,
    "sharegpt": _sharegpt,
    "openai": _openai,
    "alpaca": _alpaca,
    "text": _plain,
}
