"""Responses that are made while nobody waits: their events are kept, so that clients can come and follow them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

from qwenkit.core.types import Delta
from qwenkit.server.errors import ApiError, describe
from qwenkit.server.generation import Generation
from qwenkit.server.openai.shapes import error_event
from qwenkit.server.responses.reply import Event, ResponseShape, ResponseWriter, encode
from qwenkit.server.service import Service

_log = logging.getLogger("qwenkit.server")


class _Cancelled(Exception):
    """The client wants no more of it."""


class Run:
    """A response in the background.

    Args:
        service: shared state of the server.
        shape: how the response has to look.
        generation: makes its text.
        finish: called at its end.
    """

    def __init__(
        self,
        service: Service,
        shape: ResponseShape,
        generation: Generation,
        finish: Callable[[], None],
    ) -> None:
        self._writer = ResponseWriter(shape, generation)
        self._generation, self._finish = generation, finish
        self._changed = asyncio.Event()
        self._watch = service.watch(_never)  # a stopping server ends it, and so does the time limit
        self.events: list[bytes] = []
        """All so far; the place of each is its sequence number."""
        self.is_over = False
        self._add(self._writer.start())
        service.spawn(self._work())

    @property
    def response(self) -> dict[str, Any]:
        """As far as it has come."""
        return self._writer.response

    @property
    def size(self) -> int:
        """Bytes of the events."""
        return sum(map(len, self.events))

    async def cancel(self) -> None:
        """Ends it, if it has not ended; waits until it has."""
        self._watch.end(_Cancelled())
        while not self.is_over:
            await self.change()

    async def change(self) -> None:
        """Waits until there is something new, or it is over."""
        await self._changed.wait()

    async def _work(self) -> None:
        try:
            await self._watch.run(self._collect())
        except _Cancelled:
            self._add(self._writer.cancel())
        except Exception as error:
            failure = describe(error)
            if failure is not error and failure.status >= 500:
                _log.error("background response %s failed", self.response["id"], exc_info=error)
            self._add(self._writer.fail(failure))
        finally:
            self._generation.abort()
            self._watch.close()
            self.is_over = True
            self._tell()
            self._finish()

    async def _collect(self) -> None:
        while not self._generation.is_done:
            self._add(self._writer.push(await self._generation.batch()))
        self._add(self._writer.end())

    def _add(self, events: Sequence[Event]) -> None:
        self.events += [encode([event]) for event in events]
        self._tell()

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()


async def _never() -> MutableMapping[str, Any]:
    """No client is there to leave."""
    return await asyncio.get_running_loop().create_future()  # type: ignore[no-any-return]


class Follower:
    """A stream's view of a run: source and encoder in one. When the client leaves, the run goes on.

    Args:
        run: what is followed.
        start: the first event that is sent.
    """

    def __init__(self, run: Run, start: int) -> None:
        self._run, self._next = run, start

    @property
    def is_done(self) -> bool:
        """See Source."""
        return self._run.is_over and self._next >= len(self._run.events)

    async def batch(self) -> Sequence[tuple[int, Delta]]:
        """See Source."""
        while self._next >= len(self._run.events) and not self._run.is_over:
            await self._run.change()
        return ()

    def abort(self) -> None:
        """See Source."""

    def opening(self) -> bytes:
        """See Encoder."""
        return b""

    def feed(self, deltas: Sequence[tuple[int, Delta]]) -> bytes:
        """See Encoder."""
        new = self._run.events[self._next :]
        self._next = max(self._next, len(self._run.events))
        return b"".join(new)

    def closing(self) -> bytes:
        """See Encoder."""
        return b""

    def failure(self, error: ApiError) -> bytes:
        """See Encoder."""
        return error_event(error)
