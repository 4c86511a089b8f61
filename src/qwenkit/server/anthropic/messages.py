"""Turns and content blocks of Anthropic's protocol as the engine's messages."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from qwenkit.core.types import Message, ToolCall
from qwenkit.server.anthropic.schema import ROLES, BlockBody, TurnBody
from qwenkit.server.errors import ApiError, refuse
from qwenkit.server.thoughts import unseal

_TEXTS = ("text", "document", "search_result")
_ERROR = "Error: "
"""Before the result of a tool that failed: templates have no other place to say so."""


@dataclass(slots=True)
class _Turn:
    """Turns of one role that follow each other, as the protocol wants them joined; each block with its place."""

    role: str
    where: str
    blocks: list[tuple[str, BlockBody]] = field(default_factory=list)


def read_messages(
    system: str | list[BlockBody] | None, bodies: Sequence[TurnBody], unread: list[str]
) -> tuple[tuple[Message, ...], bool]:
    """The messages of a request, and whether the last one is to be continued.

    Args:
        system: what comes first; nothing and an empty text are the same.
        bodies: the turns.
        unread: takes the places of blocks that nobody can read.

    Raises:
        ApiError: a block cannot be read.
    """
    messages: list[Message] = []
    if system:
        blocks = [BlockBody(type="text", text=system)] if isinstance(system, str) else system
        messages.append(Message("system", _texts([(f"system[{n}]", b) for n, b in enumerate(blocks)])))
    turns = _joined(bodies)
    for turn in turns:
        messages += _assistant(turn, unread) if turn.role == "assistant" else _others(turn)
    last = messages[-1]
    if turns[-1].role != "assistant":
        return tuple(messages), False
    if last.tool_calls:
        sentence = (
            "the last turn calls tools; send their results as tool_result blocks of a user turn after it"
        )
        raise refuse(sentence, turns[-1].where, "invalid_value")
    if not (last.content or last.reasoning):  # there is nothing to continue
        if not messages[:-1]:
            raise refuse(
                "messages hold nothing to answer; give a turn of the user", "messages", "invalid_value"
            )
        return tuple(messages[:-1]), False
    return tuple(messages), True


def _joined(bodies: Sequence[TurnBody]) -> list[_Turn]:
    turns: list[_Turn] = []
    for n, body in enumerate(bodies):
        where = f"messages[{n}]"
        if body.role not in ROLES:
            sentence = f"{where}.role={body.role!r:.80} is unknown; use one of {', '.join(ROLES)}"
            raise refuse(sentence, f"{where}.role", "invalid_value")
        if not turns or turns[-1].role != body.role:
            turns.append(_Turn(body.role, where))
        if isinstance(body.content, str):
            turns[-1].blocks.append((f"{where}.content", BlockBody(type="text", text=body.content)))
            continue
        if not body.content and body.role != "assistant":
            raise refuse(
                f"{where}.content is empty; give text or blocks", f"{where}.content", "invalid_value"
            )
        turns[-1].blocks += [(f"{where}.content[{i}]", block) for i, block in enumerate(body.content)]
    return turns


def _assistant(turn: _Turn, unread: list[str]) -> list[Message]:
    texts: list[tuple[str, BlockBody]] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for where, block in turn.blocks:
        if block.type == "thinking":
            thoughts.append(_needed(block.thinking, where, "thinking") or unseal(block.signature or ""))
        elif block.type == "redacted_thinking":
            unread.append(where)  # only those who wrote it can read it
        elif block.type == "tool_use":
            calls.append(_call(where, block))
        else:
            texts.append((where, block))
    reasoning = "\n".join(filter(None, thoughts)) or None
    return [Message("assistant", _texts(texts), reasoning=reasoning, tool_calls=tuple(calls))]


def _others(turn: _Turn) -> list[Message]:
    """Messages of the user or the system; results of tools come before what the user says."""
    results: list[Message] = []
    texts: list[tuple[str, BlockBody]] = []
    for where, block in turn.blocks:
        if block.type != "tool_result" or turn.role != "user":
            texts.append((where, block))
            continue
        if texts:
            sentence = f"{where} is a tool_result after text; put all tool_result blocks of a turn first"
            raise refuse(sentence, where, "invalid_value")
        results.append(_result(where, block))
    if not texts:
        return results
    content = _texts(texts)
    return [*results, Message("system" if turn.role == "system" else "user", content)]


def _call(where: str, block: BlockBody) -> ToolCall:
    name, id_ = _needed(block.name, where, "name"), _needed(block.id, where, "id")
    if block.input is None:
        raise _missing(where, "input")
    return ToolCall(id=id_, name=name, arguments=json.dumps(block.input, ensure_ascii=False))


def _result(where: str, block: BlockBody) -> Message:
    id_ = _needed(block.tool_use_id, where, "tool_use_id")
    if isinstance(block.content, list):
        content = _texts([(f"{where}.content[{n}]", inner) for n, inner in enumerate(block.content)])
    else:
        content = block.content or ""
    if block.is_error:
        content = _ERROR + (content or "the tool failed")
    return Message("tool", content, tool_call_id=id_)


def _texts(blocks: Sequence[tuple[str, BlockBody]]) -> str:
    return "\n".join(text for where, block in blocks for text in _text(where, block))


def _text(where: str, block: BlockBody) -> Iterator[str]:
    """The lines of a block that is text, or holds some."""
    if block.type not in _TEXTS:
        sentence = f"{where} is {block.type!r:.60}, which has no place here; this model reads text only"
        raise refuse(sentence, f"{where}.type", "unsupported_content")
    if block.type == "text":
        yield _needed(block.text, where, "text")
        return
    if _wants_citations(block):
        raise refuse(f"{where}.citations are not offered; leave them out", f"{where}.citations")
    yield from filter(None, (block.title, block.context))
    if block.type == "search_result":
        yield _needed(block.source if isinstance(block.source, str) else None, where, "source")
        yield from _inner(where, block.content)
    else:
        yield from _document(where, block)


def _document(where: str, block: BlockBody) -> Iterator[str]:
    source = block.source
    if source is None or isinstance(source, str):
        raise _missing(where, "source")
    if source.type == "text":
        yield _needed(source.data, f"{where}.source", "data")
    elif source.type == "content":
        yield from _inner(f"{where}.source", source.content)
    else:
        sentence = f"{where} is a document of the kind {source.type!r:.40}; only text can be read, so send it as text"
        raise refuse(sentence, f"{where}.source.type", "unsupported_content")


def _inner(where: str, content: str | list[BlockBody] | None) -> Iterator[str]:
    if content is None:
        raise _missing(where, "content")
    if isinstance(content, str):
        yield content
        return
    for n, block in enumerate(content):
        yield from _text(f"{where}.content[{n}]", block)


def _wants_citations(block: BlockBody) -> bool:
    wanted = (block.model_extra or {}).get("citations")
    return isinstance(wanted, dict) and bool(wanted.get("enabled"))


def _needed(value: str | None, where: str, name: str) -> str:
    if value is None:
        raise _missing(where, name)
    return value


def _missing(where: str, name: str) -> ApiError:
    return refuse(f"{where}.{name} is missing; it is required", f"{where}.{name}", "missing_field")
