"""Carries deltas from the engine's thread to the event loop, with one wake-up for all that an engine step made.

Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TypeAlias

from qwenkit.backends.base import Sink
from qwenkit.core.types import Delta

Item: TypeAlias = "tuple[int, Delta | BaseException, float]"
"""Which of a request's prompts, what came for it, and when (time.perf_counter)."""


_PACE = 0.025
"""Seconds between two pieces of one stream, unless it ends: writing to a socket costs more than all else in a piece,
and forty pieces a second look as smooth as more."""


class Channel:
    """What has come for one HTTP request and was not taken yet; lives on the event loop."""

    __slots__ = ("_loop", "_not_before", "_pending", "_timer", "_waiter")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pending: list[Item] = []
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._not_before = 0.0

    def push(self, item: Item) -> None:
        """Adds an item and wakes who waits: at once for the first and for an end, else at the stream's pace."""
        self._pending.append(item)
        what = item[1]
        if isinstance(what, BaseException) or what.finish_reason or self._loop.time() >= self._not_before:
            self._wake()
        elif self._timer is None:
            self._timer = self._loop.call_at(self._not_before, self._wake)

    def _wake(self) -> None:
        self._not_before = 0.0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def take(self) -> list[Item]:
        """All that has come, at least one item: a slow reader gets larger pieces, not more of them."""
        if not self._pending or self._timer is not None:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        items, self._pending = self._pending, []
        self._not_before = self._loop.time() + _PACE
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
            self._queue.append((channel, (index, item, time.perf_counter())))
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
