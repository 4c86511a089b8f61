"""Errors as text-generation-inference words them, with its statuses."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from qwenkit.core.errors import QwenkitError
from qwenkit.server.errors import ApiError, describe
from qwenkit.server.sse import to_json

_INVALID, _FAILED = 422, 424
ERRORS = {_INVALID: "The request cannot be honoured.", _FAILED: "The engine failed."}
"""Statuses that other protocols do not have."""
_STATUSES = {400: _INVALID, 404: _INVALID, 500: _FAILED}
"""What that server answers where others answer this."""
_TYPES = {
    401: "unauthorized",
    403: "forbidden",
    404: "not_found",
    405: "method_not_allowed",
    _FAILED: "generation",
    429: "overloaded",
    500: "incomplete_generation",
    503: "unavailable",
    504: "request_timeout",
}


@contextlib.contextmanager
def tgi_statuses(unless: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """Gives the errors of what runs inside the statuses that clients expect.

    Args:
        unless: says, once there is an error, that another protocol's clients will get it.

    Raises:
        ApiError: where anything was raised that clients are told.
    """
    try:
        yield
    except (ApiError, QwenkitError) as error:
        raise describe(error) if unless() else _with_status(describe(error)) from error


def _with_status(error: ApiError) -> ApiError:
    status = _STATUSES.get(error.status, error.status)
    return ApiError(status, error.message, param=error.param, code=error.code, headers=error.headers)


def error_value(error: ApiError) -> dict[str, Any]:
    """The object of an error."""
    return {"error": error.message, "error_type": _TYPES.get(error.status, "validation")}


def error_body(error: ApiError, request_id: str) -> bytes:
    """The body of an error; the id of the request is in a header already."""
    return to_json(error_value(error))


def error_event(error: ApiError) -> bytes:
    """The event of an error that ends a stream."""
    return tgi_event(error_value(_with_status(error)))


def tgi_event(value: Any) -> bytes:
    """One event, without the blank that other servers write."""
    return b"data:" + to_json(value) + b"\n\n"
