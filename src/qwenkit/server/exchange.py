"""What is known of one HTTP request and its answer, for the log line, the metrics and the answer's headers."""

from __future__ import annotations

import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from qwenkit.server.errors import RenderError

SCOPE_KEY = "qwenkit.exchange"
CLIENT_GONE = 499
"""Status in log and metrics of a request whose client did not wait."""
_SANE_ID = re.compile(rb"[\w.:+/=-]{1,128}", re.ASCII)


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and its answer."""

    request_id: str
    started: float = field(default_factory=time.perf_counter)
    key: bytes | None = field(default=None, repr=False)
    """The API key it came with, where keys are needed: what one stores, another must not see."""
    status: int = 0
    """Of the answer; 0 until it has begun."""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    ignored_fields: list[str] = field(default_factory=list)
    """Fields of the request that had no effect."""
    render_error: RenderError
    """Words errors as the protocol of the path does; an endpoint that several protocols share may change it."""

    @classmethod
    def of(cls, scope: Any) -> Exchange:
        """The exchange an ASGI scope belongs to."""
        found: Exchange = scope[SCOPE_KEY]
        return found

    def count(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Takes note of tokens; several prompts of a request add up."""
        self.prompt_tokens = (self.prompt_tokens or 0) + prompt_tokens
        self.completion_tokens = (self.completion_tokens or 0) + completion_tokens


def choose_request_id(given: bytes | None) -> str:
    """The client's id where it is short and plain, else a new one."""
    if given is not None and _SANE_ID.fullmatch(given):
        return given.decode()
    return uuid.uuid4().hex
