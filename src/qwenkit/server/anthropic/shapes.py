"""Objects that the endpoints of Anthropic's protocol share: errors, ids, signatures of thoughts, token counts."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any

from qwenkit.core.types import Usage
from qwenkit.server.errors import ApiError
from qwenkit.server.sse import event, to_json
from qwenkit.server.thoughts import seal

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_DETAILED = ("thread_unsupported_request",)
"""Codes that clients act upon."""


def error_value(error: ApiError, request_id: str) -> dict[str, Any]:
    """The object of an error."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    said: dict[str, Any] = {"type": kind, "message": error.message}
    if error.code in _DETAILED:
        said["details"] = {"error_code": error.code}
    return {"type": "error", "error": said, "request_id": request_id}


def error_body(error: ApiError, request_id: str) -> bytes:
    """The body of an error."""
    return to_json(error_value(error, request_id))


def error_event(error: ApiError, request_id: str) -> bytes:
    """The event of an error that ends a stream."""
    return event(error_value(error, request_id), "error")


def new_message_id() -> str:
    """A fresh id."""
    return f"msg_{uuid.uuid4().hex}"


def sign(thought: str, *, keeps: bool) -> str:
    """The signature of a thought; clients send it back and look at nothing in it.

    Args:
        thought: the whole of it.
        keeps: whether the signature has to hold the thought itself, because the answer does not show it.
    """
    return seal(thought) if keeps else hashlib.sha256(thought.encode("utf-8", "replace")).hexdigest()


def usage_value(usage: Usage, reasoning_tokens: int | None = None) -> dict[str, Any]:
    """Token counts: what was found in the cache counts apart from the rest of the prompt."""
    value: dict[str, Any] = {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }
    if reasoning_tokens is not None:
        value["output_tokens_details"] = {"thinking_tokens": reasoning_tokens}
    return value
