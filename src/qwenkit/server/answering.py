"""From a request that was read to its answer, at once or as a stream. Knows nothing of any protocol."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from qwenkit.core.types import Delta, Request
from qwenkit.server.exchange import Exchange
from qwenkit.server.generation import Generation
from qwenkit.server.service import Service
from qwenkit.server.sse import EVENTS, Encoder, EventStream, to_json


class Collector(Protocol):
    """Puts a whole answer together."""

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> object:
        """Takes what is new."""

    def value(self) -> Any:
        """The answer, once all has come."""


class JsonResponse(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """See Response."""
        return to_json(content)


async def stream_answer(
    service: Service,
    http: HttpRequest,
    build: Callable[[], Sequence[Request]],
    encoder: Callable[[Generation], Encoder],
    media_type: str = EVENTS,
) -> Response:
    """A stream; it begins once there is something to send, so that earlier errors have their own status.

    Args:
        service: shared state of the server.
        http: the request, its body read.
        build: makes the prompts, in another thread.
        encoder: makes what writes the events.
        media_type: what that writes.
    """
    watch = service.watch(http.receive)
    generation = None
    try:
        generation = await watch.run(service.generate(build, Exchange.of(http.scope)))
        first = await watch.run(generation.batch())
    except BaseException:
        if generation is not None:
            generation.abort()
        watch.close()
        raise
    return EventStream(encoder(generation), generation, first, watch, media_type)


async def whole_answer(
    service: Service,
    http: HttpRequest,
    build: Callable[[], Sequence[Request]],
    collector: Callable[[Generation], Collector],
) -> Response:
    """An answer at once; arguments as for `stream_answer`."""

    async def collect() -> Any:
        generation = await service.generate(build, Exchange.of(http.scope))
        try:
            parts = collector(generation)
            while not generation.is_done:
                parts.feed(await generation.batch())
            return parts.value()
        finally:
            generation.abort()

    watch = service.watch(http.receive)
    try:
        return JsonResponse(await watch.run(collect()))
    finally:
        watch.close()
