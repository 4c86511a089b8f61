"""Objects that several endpoints of the OpenAI protocol share: errors, usage, log-probabilities, ids."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from typing import Any

from qwenkit._version import __version__
from qwenkit.backends.base import BackendInfo
from qwenkit.core.types import Usage
from qwenkit.server.errors import ApiError
from qwenkit.server.sse import event, to_json

DONE = b"data: [DONE]\n\n"
"""The last event of a stream."""
_TYPES = {
    429: "rate_limit_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
}


def error_value(error: ApiError) -> dict[str, Any]:
    """The object of an error."""
    kind = _TYPES.get(error.status, "invalid_request_error" if error.status < 500 else "server_error")
    return {"error": {"message": error.message, "type": kind, "param": error.param, "code": error.code}}


def error_body(error: ApiError, request_id: str) -> bytes:
    """The body of an error; the id of the request is in a header already."""
    return to_json(error_value(error))


def error_event(error: ApiError) -> bytes:
    """The event of an error that ends a stream; the status, which came long before, is in it too."""
    value = error_value(error)
    value["error"]["status"] = error.status
    return event(value)


def new_id(prefix: str) -> str:
    """A fresh id."""
    return f"{prefix}-{uuid.uuid4().hex}"


def fingerprint(info: BackendInfo) -> str:
    """The same as long as version, model, dtype and device are."""
    what = f"{__version__}|{info.model}|{info.dtype}|{info.device}"
    return "fp_" + hashlib.sha256(what.encode("utf-8", "replace")).hexdigest()[:12]


def usage_value(usages: Sequence[Usage], *, reasoning_tokens: int | None = None) -> dict[str, Any]:
    """Token counts of an answer, given one count per prompt."""
    prompt, completion = sum(u.prompt_tokens for u in usages), sum(u.completion_tokens for u in usages)
    value: dict[str, Any] = {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(u.cached_tokens for u in usages)},
    }
    if reasoning_tokens is not None:
        value["completion_tokens_details"] = {"reasoning_tokens": reasoning_tokens}
    return value
