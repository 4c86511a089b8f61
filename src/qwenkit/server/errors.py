"""From exceptions to what a client is told: status, sentence, the field at fault. Knows nothing of any protocol."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TypeAlias

from qwenkit.core.errors import (
    InputError,
    PromptTooLongError,
    QueueFullError,
    QwenkitError,
    TemplateError,
    TokenizerError,
)

_NAMED = re.compile(r"[a-z_]\w*(?=[=\[])")
RETRY_SECONDS = 5
"""When clients of a full or stopping server should come back."""


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: one sentence for the client.
        param: the field at fault.
        code: a word for programs.
        headers: to send with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = headers or {}


RenderError: TypeAlias = Callable[[ApiError, str], bytes]
"""The body of an error in the words of a protocol, given the id of the request."""


class ClientGone(Exception):
    """The client closed its connection, or stopped reading; there is nobody to tell."""


def refuse(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be honoured."""
    return ApiError(400, message, param=param, code=code)


def shutting_down() -> ApiError:
    """The server is about to stop."""
    message = "the server is shutting down; try again later"
    headers = {"retry-after": str(RETRY_SECONDS), "connection": "close"}
    return ApiError(503, message, code="shutting_down", headers=headers)


def describe(error: BaseException) -> ApiError:
    """What to tell the client about any error; surprises keep their details to themselves."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, QueueFullError):
        headers = {"retry-after": str(RETRY_SECONDS)}
        return ApiError(429, str(error), code="queue_full", headers=headers)
    if isinstance(error, PromptTooLongError):
        return refuse(str(error), code="context_length_exceeded")
    if isinstance(error, InputError | TemplateError | TokenizerError):
        return refuse(str(error), _field_in(str(error)), "invalid_value")
    if isinstance(error, QwenkitError):
        return ApiError(500, str(error), code="engine_error")
    return ApiError(
        500, "the server met an error it does not know; its log has the details", code="internal_error"
    )


def _field_in(message: str) -> str | None:
    """The field that a sentence begins with, as in ``temperature=9 is not possible``."""
    match = _NAMED.match(message)
    return match.group() if match else None
