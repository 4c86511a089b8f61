"""Carries deltas from the engine's thread to the event loop, with one wake-up for all that an engine step made.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TypeAlias

from qwenkit.backends.base import Sink
from qwenkit.core.types import Delta

Item: TypeAlias = "tuple[int, Delta | BaseException]"
"""Which of a request's prompts, and what came for it."""


class Channel:
    """What has come for one HTTP request and was not taken yet; lives on the event loop."""

    __slots__ = ("_pending", "_waiter")

    def __init__(self) -> None:
        self._pending: list[Item] = []
        self._waiter: asyncio.Future[None] | None = None

    def push(self, item: Item) -> None:
        """Adds an item and wakes who waits."""
        self._pending.append(item)
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    async def take(self) -> list[Item]:
        """All that has come, at least one item: a slow reader gets larger pieces, not more of them."""
        if not self._pending:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._pending = self._pending, []
        return items


class Bridge:
    """Hands items of all requests over to one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._queue: deque[tuple[Channel, Item]] = deque()
        self._is_scheduled = False

    def sink(self, channel: Channel, index: int) -> Sink:
        """Where an engine puts what comes for one prompt of a request; never blocks, never raises."""

        def put(item: Delta | BaseException) -> None:
            self._queue.append((channel, (index, item)))
            if self._is_scheduled:
                return
            self._is_scheduled = True
            try:
                self._loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # the loop was closed; nobody waits any more
                self._queue.clear()

        return put

    def _deliver(self) -> None:
        # Cleared first: what is put from here on either is found by this loop or schedules the next call.
        self._is_scheduled = False
        queue = self._queue
        while queue:
            channel, item = queue.popleft()
            channel.push(item)
