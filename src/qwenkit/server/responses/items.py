"""Items of the Responses protocol: read from requests in the form in which they are kept and listed."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from qwenkit.server.errors import ApiError, refuse
from qwenkit.server.responses.schema import ROLES, ItemBody, PartBody
from qwenkit.server.thoughts import unseal

Item: TypeAlias = dict[str, Any]
"""As it is sent to clients."""
Finder: TypeAlias = Callable[[str], Item | None]
"""Finds an item by its id among those that are kept."""
PREFIXES = {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
"""How ids of items begin."""


def new_id(prefix: str) -> str:
    """A fresh id."""
    return f"{prefix}_{uuid.uuid4().hex}"


def read_items(given: str | list[ItemBody] | None, find: Finder) -> list[Item]:
    """The items of a request's input.

    Raises:
        ApiError: one is of a kind that the model cannot read, or lacks something.
    """
    if given is None:
        return []
    if isinstance(given, str):
        given = [ItemBody(role="user", content=given)]
    return [_item(body, f"input[{n}]", find) for n, body in enumerate(given)]


def _item(body: ItemBody, where: str, find: Finder) -> Item:
    kind = body.type or ("message" if body.role is not None else "item_reference")
    if kind == "item_reference":
        return _referred(body, where, find)
    read = _READERS.get(kind)
    if read is None:
        sentence = f"{where} is {kind!r:.60}, which is not offered here; use {', '.join(_READERS)}"
        raise refuse(sentence, f"{where}.type", "unsupported_content")
    head = {"id": body.id or new_id(PREFIXES[kind]), "type": kind, "status": "completed"}
    return {**head, **read(body, where)}


def _referred(body: ItemBody, where: str, find: Finder) -> Item:
    if body.id is None:
        raise _missing(where, "id" if body.type else "type")
    found = find(body.id)
    if found is None:
        sentence = f"{where} refers to the item {body.id!r:.80}, which is not kept here; send the item itself"
        raise ApiError(404, sentence, param=f"{where}.id", code="item_not_found")
    return found


def _message(body: ItemBody, where: str) -> Item:
    if body.role not in ROLES:
        if body.role is None:
            raise _missing(where, "role")
        sentence = f"{where}.role={body.role!r:.80} is unknown; use one of {', '.join(ROLES)}"
        raise refuse(sentence, f"{where}.role", "invalid_value")
    if body.content is None:
        raise _missing(where, "content")
    text = _texts(body.content, f"{where}.content")
    if body.role == "assistant":
        part = {"type": "output_text", "text": text, "annotations": []}
    else:
        part = {"type": "input_text", "text": text}
    return {"role": body.role, "content": [part]}


def _call(body: ItemBody, where: str) -> Item:
    for name in ("call_id", "name", "arguments"):
        if getattr(body, name) is None:
            raise _missing(where, name)
    return {"call_id": body.call_id, "name": body.name, "arguments": body.arguments}


def _result(body: ItemBody, where: str) -> Item:
    if body.call_id is None:
        raise _missing(where, "call_id")
    if body.output is None:
        raise _missing(where, "output")
    return {"call_id": body.call_id, "output": _texts(body.output, f"{where}.output")}


def _thought(body: ItemBody, where: str) -> Item:
    content = _texts(body.content, f"{where}.content") if body.content else ""
    content = content or unseal(body.encrypted_content or "")
    summary = _texts(body.summary or [], f"{where}.summary")
    return {
        "summary": [{"type": "summary_text", "text": summary}] if summary else [],
        "content": [{"type": "reasoning_text", "text": content}] if content else [],
    }


_READERS: dict[str, Callable[[ItemBody, str], Item]] = {
    "message": _message,
    "function_call": _call,
    "function_call_output": _result,
    "reasoning": _thought,
}
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")


def _texts(content: str | Sequence[PartBody], where: str) -> str:
    """The text of an item; parts are lines."""
    if isinstance(content, str):
        return content
    texts = []
    for n, part in enumerate(content):
        if part.type not in (*_TEXTS, "refusal"):
            sentence = f"{where}[{n}] is {part.type!r:.40}; this model reads text only"
            raise refuse(sentence, f"{where}[{n}].type", "unsupported_content")
        name = "refusal" if part.type == "refusal" else "text"
        text = getattr(part, name)
        if text is None:
            raise _missing(f"{where}[{n}]", name)
        texts.append(text)
    return "\n".join(texts)


def _missing(where: str, name: str) -> ApiError:
    return refuse(f"{where}.{name} is missing; it is required", f"{where}.{name}", "missing_field")


def size_of(items: Sequence[Item]) -> int:
    """Bytes that items take, about."""
    return sum(len(json.dumps(item, ensure_ascii=False)) for item in items)
