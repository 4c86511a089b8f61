"""Reads request bodies: within the limit, as JSON, into a model whose every complaint names the field.

Knows nothing of any protocol.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import ClientDisconnect, Request

from qwenkit.core.errors import InputError
from qwenkit.server.errors import ApiError, ClientGone, refuse
from qwenkit.server.exchange import Exchange

M = TypeVar("M", bound="Body")
Refusals: TypeAlias = Mapping[str, tuple[tuple[Any, ...], str]]
"""Fields that would change the answer and are not offered: harmless values, and what to say to others."""
_MAX_DEPTH = 200
_LARGE = 2**16
_UNNAMED = ("", "application/x-www-form-urlencoded", "text/plain")
"""What clients call a body that nobody told them the type of."""
_HALF = re.compile(r"\\u[dD][89a-fA-F]")


class Body(BaseModel):
    """A JSON object whose unknown fields are kept apart; numbers are never read out of texts."""

    model_config = ConfigDict(extra="allow", strict=True)


async def read_body(request: Request, model: type[M], max_bytes: int, *, any_type: bool = False) -> M:
    """The body of a request; fields without effect are noted for the answer's header.

    Args:
        request: to be read.
        model: what is in it.
        max_bytes: that it may have.
        any_type: whether clients that are no web pages may call JSON a form, as curl does by itself.

    Raises:
        ApiError: it is too large, not JSON, or does not fit the model.
    """
    return await read_some_body(request, lambda _: model, max_bytes, any_type=any_type)


async def read_some_body(
    request: Request,
    choose: Callable[[dict[str, Any]], type[M]],
    max_bytes: int,
    *,
    any_type: bool = False,
) -> M:
    """The same for a path that bodies of several kinds are sent to; ``choose`` looks at one and says which it is."""
    _check_type(request, any_type=any_type)
    data = await _read(request, max_bytes)
    if len(data) > _LARGE:
        body = await asyncio.to_thread(_parse, data, choose)
    else:
        body = _parse(data, choose)
    Exchange.of(request.scope).ignored_fields = list(extra_fields(body))
    return body


def _parse(data: bytes, choose: Callable[[dict[str, Any]], type[M]]) -> M:
    value = parse_json(data)
    return parse_body(choose(value), value)


def _check_type(request: Request, *, any_type: bool) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return
    # Keeps web pages of other origins out: for JSON browsers ask first. Other clients do not tell an origin.
    if any_type and kind in _UNNAMED and "origin" not in request.headers:
        return
    message = f"the content type {kind!r:.80} is not read here; send JSON with Content-Type: application/json"
    raise ApiError(415, message, code="unsupported_media_type")


async def _read(request: Request, max_bytes: int) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > max_bytes:
        raise _too_large(max_bytes)
    data = bytearray()
    try:
        async for piece in request.stream():
            data += piece
            if len(data) > max_bytes:
                raise _too_large(max_bytes)
    except ClientDisconnect:
        raise ClientGone("the client closed the connection") from None
    return bytes(data)


def _too_large(max_bytes: int) -> ApiError:
    size = f"{max_bytes / 2**20:g} MB" if max_bytes >= 2**20 else f"{max_bytes} bytes"
    message = (
        f"the request body is larger than the {size} that are allowed; send less, or raise --max-body-mb"
    )
    # The connection stays: closing it with a part unread would take the answer away from the client.
    return ApiError(413, message, code="body_too_large")


def parse_json(data: bytes) -> dict[str, Any]:
    """The object in ``data``.

    Raises:
        ApiError: it holds anything else.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise refuse(
            f"the body is not UTF-8 (byte {error.start}); send JSON in UTF-8", code="invalid_json"
        ) from None
    try:
        value = json.loads(text, parse_constant=_no_constant)
        depth = _depth(value)
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise refuse(f"the body is not JSON: {error.msg.lower()} at {where}", code="invalid_json") from None
    except ValueError as error:  # a number with thousands of digits, or NaN
        raise refuse(f"the body holds a number that is not possible: {error}", code="invalid_json") from None
    except RecursionError:
        depth = _MAX_DEPTH + 1
    if _HALF.search(text) and depth <= _MAX_DEPTH:
        _check_surrogates(value)
    if depth > _MAX_DEPTH:
        raise refuse(f"the body nests deeper than {_MAX_DEPTH} levels; flatten it", code="invalid_json")
    if not isinstance(value, dict):
        raise refuse(f"the body must be a JSON object, got {_kind(value)}", code="invalid_json")
    return value


def _check_surrogates(value: Any) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(error.object[error.start]):04x}"
        message = f"the body holds {half}, half of a character beyond U+FFFF; send both halves or none"
        raise refuse(message, code="invalid_json") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON; use a plain number")


def _depth(value: Any) -> int:
    """Levels of nesting, without recursion."""
    level, depth = [value], 0
    while level and depth <= _MAX_DEPTH:
        containers = [v for v in level if isinstance(v, dict | list)]
        level = [item for v in containers for item in (v.values() if isinstance(v, dict) else v)]
        depth += bool(containers)
    return depth


def _kind(value: Any) -> str:
    names = {
        type(None): "null",
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a text",
        list: "a list",
    }
    return names.get(type(value), "an object")


def parse_body(model: type[M], data: dict[str, Any]) -> M:
    """``data`` as a model.

    Raises:
        ApiError: it does not fit; the sentence and ``param`` name the field.
    """
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise _complaint(error, data) from None
    except InputError as error:
        raise refuse(str(error)) from None


def _complaint(error: ValidationError, data: Any) -> ApiError:
    """The sentence about the first field at fault; a union's branches complain together, the deepest counts."""
    found = [
        (_path(e["loc"], data, is_missing=e["type"] == "missing"), e) for e in error.errors(include_url=False)
    ]
    top = found[0][0][0][:1]
    depth = max(len(path) for (path, _), _ in found if path[:1] == top)
    same = [(path, value, e) for (path, value), e in found if path[:1] == top and len(path) == depth]
    path, value, first = same[0]
    param = _dotted(path)
    if first["type"] == "missing":
        return refuse(f"{param} is missing; it is required", param, "missing_field")
    wanted = [_wanted(e["msg"]) for p, _, e in same if p == path]
    wanted = list(dict.fromkeys(wanted))
    shown = _kind(value) if isinstance(value, dict | list) else json.dumps(value)[:80]
    if len(wanted) == 1 and not first["msg"].startswith("Input should be "):
        return refuse(f"{param}: {wanted[0]}; got {shown}", param, "invalid_value")
    return refuse(f"{param} must be {' or '.join(wanted)}, got {shown}", param, "invalid_type")


def _wanted(message: str) -> str:
    """A complaint of pydantic's in words that do not speak of Python."""
    words = message.removeprefix("Input should be ").replace("a valid ", "a ")
    return "an object" if "dictionary" in words else words


def _path(loc: tuple[int | str, ...], data: Any, *, is_missing: bool) -> tuple[tuple[int | str, ...], Any]:
    """Those parts of a location that lead into the data (others name branches of unions), and what is there."""
    path: list[int | str] = []
    for n, part in enumerate(loc):
        is_there = part in data if isinstance(data, dict) else False
        if isinstance(data, list) and isinstance(part, int):
            is_there = part < len(data)
        if is_there:
            data = data[part]
        if is_there or (is_missing and n == len(loc) - 1):
            path.append(part)
    return tuple(path), data


def _dotted(path: tuple[int | str, ...]) -> str:
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return text.removeprefix(".") or "body"


def refuse_fields(body: Body, refusals: Refusals, prefix: str = "") -> None:
    """Refuses fields that a body's model does not know because nobody can honour them.

    Raises:
        ApiError: there is one, and its value is not harmless.
    """
    for name, value in (body.model_extra or {}).items():
        harmless, sentence = refusals.get(name, ((value,), ""))
        if value is not None and value not in harmless:
            raise refuse(sentence, f"{prefix}{name}", "unsupported_field")


def extra_fields(body: BaseModel, prefix: str = "") -> Iterator[str]:
    """Dotted names of all fields that the model does not know and that are not null."""
    for name, value in (body.model_extra or {}).items():
        if value is not None:
            yield f"{prefix}{name}"
    for name in body.model_fields_set & type(body).model_fields.keys():
        yield from _extra_within(
            getattr(body, name), f"{prefix}{type(body).model_fields[name].alias or name}"
        )


def _extra_within(value: Any, name: str) -> Iterator[str]:
    if isinstance(value, BaseModel):
        yield from extra_fields(value, f"{name}.")
    elif isinstance(value, list):
        for n, item in enumerate(value):
            if isinstance(item, BaseModel):
                yield from extra_fields(item, f"{name}[{n}].")
