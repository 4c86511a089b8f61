"""Ends a request early: its client left or reads no more, its time is up, or the server stops.

Knows nothing of any protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from typing import Any, TypeVar

from qwenkit.server.errors import ApiError, ClientGone
from qwenkit.server.options import ServerOptions

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


class Watch:
    """Looks after one request. Close it in any case.

    Args:
        receive: the ASGI channel, whose body has been read.
        options: the time limits.
        live: where running watches register, so that a stopping server can end them.
    """

    def __init__(self, receive: Receive, options: ServerOptions, live: set[Watch]) -> None:
        self._loop = asyncio.get_running_loop()
        self._options, self._live = options, live
        self._work: asyncio.Task[Any] | None = None
        self._reason: Exception | None = None
        self._sending_since: float | None = None
        now = self._loop.time()
        self._deadline = now + options.request_timeout if options.request_timeout else float("inf")
        self._interval = min(options.stall_timeout / 4, (options.request_timeout or 60.0) / 4, 5.0)
        self._timer = self._loop.call_later(self._interval, self._tick)
        self._listener = self._loop.create_task(self._listen(receive))
        live.add(self)

    async def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of ``work``, which is cancelled when the request has to end.

        Raises:
            ClientGone: nobody waits for the result.
            ApiError: time is up, or the server stops.
        """
        if self._reason is not None:
            work.close()
            raise self._reason
        self._work = self._loop.create_task(work)
        try:
            result: T = await self._work
        except asyncio.CancelledError:
            if self._reason is None:
                raise
            raise self._reason from None
        finally:
            self._work = None
        return result

    def end(self, reason: Exception) -> None:
        """Cancels the work; the first reason counts."""
        if self._reason is None:
            self._reason = reason
            if self._work is not None:
                self._work.cancel()

    async def send(self, send: Callable[[dict[str, Any]], Awaitable[None]], body: bytes) -> None:
        """Sends a piece of the answer, timing how long the client takes to make room for it."""
        self._sending_since = self._loop.time()
        await send({"type": "http.response.body", "body": body, "more_body": True})
        self._sending_since = None

    def close(self) -> None:
        """Stops looking."""
        self._timer.cancel()
        self._listener.cancel()
        self._live.discard(self)

    async def _listen(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.end(ClientGone("the client closed the connection"))

    def _tick(self) -> None:
        now = self._loop.time()
        if now >= self._deadline:
            seconds = f"{self._options.request_timeout:g}"
            self.end(
                ApiError(504, f"the request took longer than {seconds} s and was aborted", code="timeout")
            )
        elif self._sending_since is not None and now - self._sending_since > self._options.stall_timeout:
            self.end(ClientGone("the client stopped reading"))
        else:
            # the next look is at the deadline itself where that comes first
            delay = max(min(self._interval, self._deadline - now), 0.001)
            self._timer = self._loop.call_later(delay, self._tick)
