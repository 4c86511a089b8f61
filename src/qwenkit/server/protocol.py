"""What a protocol is to the server: its endpoints, and how it words an error. Knows none of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response

from qwenkit.server.bodies import Body
from qwenkit.server.errors import RenderError

Handler: TypeAlias = Callable[[Request], Awaitable[Response]]
JSON = ("application/json",)
STREAMED = ("application/json", "text/event-stream")
LINES_OR_JSON = ("application/json", "application/x-ndjson")


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One path of the server with one method."""

    path: str
    handler: Handler
    body: type[Body] | None = None
    """What it reads."""
    media_types: tuple[str, ...] = JSON
    verb: str = ""
    """Its method where that is neither GET without a body nor POST with one."""

    @property
    def method(self) -> str:
        """GET, POST or what ``verb`` says."""
        return self.verb or ("GET" if self.body is None else "POST")


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """A family of endpoints that clients of one kind speak to."""

    name: str
    endpoints: tuple[Endpoint, ...]
    render_error: RenderError
    error_model: type[BaseModel]
    """The shape of its errors, for the description of the server."""
    errors: Mapping[int, str] = field(default_factory=dict)
    """Statuses that only it has, with what they mean."""
    model_names: tuple[str, ...] = ()
    """Names that its clients send for whatever model there is."""
    prefixes: tuple[str, ...] = ()
    """Paths below these that do not exist are answered in its shape of errors; the longest prefix of all wins."""
