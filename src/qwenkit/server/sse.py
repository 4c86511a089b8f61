"""Streams: an answer that is written while it is made, as server-sent events or lines. Knows nothing of what is inside."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from starlette.responses import Response

from qwenkit.core.types import Delta
from qwenkit.server.errors import ApiError, ClientGone, describe
from qwenkit.server.exchange import CLIENT_GONE, Exchange
from qwenkit.server.watch import Receive, Watch

_log = logging.getLogger("qwenkit.server")
_LAST_WORD = 5.0
"""Seconds that a client may take to make room for the error that ends its stream."""
EVENTS, LINES = "text/event-stream", "application/x-ndjson"
"""What streams are made of: server-sent events, or a JSON value per line."""
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def to_json(value: Any) -> bytes:
    """``value`` as compact JSON; halves of surrogate pairs, which UTF-8 cannot hold, become question marks."""
    return _encode(value).encode("utf-8", "replace")


def event(value: Any, name: str = "") -> bytes:
    """One event that holds a JSON value; most protocols do not name theirs."""
    head = b"event: %s\n" % name.encode() if name else b""
    return head + b"data: " + to_json(value) + b"\n\n"


def line(value: Any) -> bytes:
    """One line that holds a JSON value."""
    return to_json(value) + b"\n"


class Encoder(Protocol):
    """Turns what the engine makes into events of one protocol."""

    def opening(self) -> bytes:
        """Events before the first text."""

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        """Events for what is new; may be empty."""

    def closing(self) -> bytes:
        """Events after the last text."""

    def failure(self, error: ApiError) -> bytes:
        """The event of an error that ends the stream."""


class Source(Protocol):
    """What is new, batch after batch; a generation is one."""

    @property
    def is_done(self) -> bool:
        """Whether all has come."""

    async def batch(self) -> Sequence[tuple[int, Delta]]:
        """Waits for what is new."""

    def abort(self) -> None:
        """Nobody waits for it any more."""


class EventStream(Response):
    """The answer to a request that streams.

    Args:
        encoder: makes the events.
        generation: makes the text.
        first: what it made already.
        watch: ends the stream when the client goes; closed at the end.
        media_type: what the encoder writes.
    """

    def __init__(
        self,
        encoder: Encoder,
        generation: Source,
        first: Sequence[tuple[int, Delta]],
        watch: Watch,
        media_type: str = EVENTS,
    ) -> None:
        self.media_type = media_type
        self.status_code, self.background, self.body = 200, None, b""
        self._encoder, self._generation, self._first, self._watch = encoder, generation, first, watch
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]

    async def __call__(self, scope: Any, receive: Receive, send: Callable[[Any], Awaitable[None]]) -> None:
        """See ASGI."""
        watch = self._watch
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                await watch.run(self._write(send))
            except ClientGone:  # raised on, it would count as a fault: the answer has begun
                Exchange.of(scope).status = CLIENT_GONE
                return
            except Exception as error:
                failure = describe(error)
                if failure is not error and failure.status >= 500:
                    _log.error("request %s failed", Exchange.of(scope).request_id, exc_info=error)
                with contextlib.suppress(asyncio.TimeoutError):  # nobody reads
                    await asyncio.wait_for(self._end(send, self._encoder.failure(failure)), _LAST_WORD)
                return
            await self._end(send, b"")
        finally:
            self._generation.abort()
            watch.close()

    @staticmethod
    async def _end(send: Callable[[Any], Awaitable[None]], body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _write(self, send: Callable[[Any], Awaitable[None]]) -> None:
        encoder, generation, watch = self._encoder, self._generation, self._watch
        events = encoder.opening() + encoder.feed(self._first)
        while True:
            if events:
                await watch.send(send, events)
            if generation.is_done:
                break
            events = encoder.feed(await generation.batch())
        await watch.send(send, encoder.closing())
