"""The engine's part of one HTTP request: its jobs, what comes of them, how long that took and how it ends.

Knows nothing of any protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from qwenkit.backends.base import Backend, Job
from qwenkit.core.types import Delta, Request, Usage
from qwenkit.server.bridge import Bridge, Channel
from qwenkit.server.exchange import Exchange
from qwenkit.server.metrics import Metrics


class Generation:
    """Prompts of one HTTP request under way; ``submit`` runs in another thread, all else on the event loop.

    Args:
        backend: answers them.
        bridge: brings answers to the event loop.
        metrics: where times go.
        exchange: where token counts go.
    """

    def __init__(
        self,
        backend: Backend,
        bridge: Bridge,
        metrics: Metrics,
        exchange: Exchange,
    ) -> None:
        self.requests: tuple[Request, ...] = ()
        self._backend, self._bridge = backend, bridge
        self._metrics, self._exchange = metrics, exchange
        self._channel = Channel(asyncio.get_running_loop())
        self._jobs: list[Job] = []
        self._is_aborted = False
        self._failure: BaseException | None = None
        self._open = 0
        self._last: dict[tuple[int, int], float] = {}
        self.submitted: float | None = None
        """When all of it was with the engine (time.perf_counter)."""
        self.first_token: float | None = None
        """When the first of all tokens came."""

    @property
    def is_done(self) -> bool:
        """Whether every reply has ended."""
        return self._open <= 0 or self._is_aborted

    def usage(self, index: int, completion_tokens: int) -> Usage:
        """Token counts of one prompt and its reply, as far as the backend knows."""
        job = self._jobs[index]
        return Usage(
            prompt_tokens=job.prompt_tokens,
            completion_tokens=completion_tokens,
            cached_tokens=job.cached_tokens,
        )

    def submit(self, build: Callable[[], Sequence[Request]]) -> None:
        """Builds the requests and hands them to the engine: templates and tokenizers work here.

        Raises:
            QwenkitError: one of them cannot be honoured; none is under way then.
        """
        self.requests = tuple(build())
        self._open = sum(request.params.n for request in self.requests)
        try:
            for index, request in enumerate(self.requests):
                self._jobs.append(self._backend.submit(request, self._bridge.sink(self._channel, index)))
                if self._is_aborted:  # meanwhile, by the event loop
                    break
        except BaseException:
            self.abort()
            raise
        self.submitted = time.perf_counter()
        if self._is_aborted:
            self.abort()

    async def batch(self) -> list[tuple[int, Delta]]:
        """What has come since the last call, at least one delta, each with the number of its prompt.

        Raises:
            BaseException: what ended the request early.
        """
        if self._failure is not None:
            raise self._failure
        deltas: list[tuple[int, Delta]] = []
        for index, item, when in await self._channel.take():
            if isinstance(item, BaseException):
                if not deltas:
                    raise item
                self._failure = item  # what came before it counts, and comes first
                break
            self._measure(index, item, when)
            deltas.append((index, item))
        return deltas

    def abort(self) -> None:
        """Ends what is still under way; harmless at any time."""
        self._is_aborted = True
        for job in self._jobs:
            job.abort()

    def _measure(self, index: int, delta: Delta, now: float) -> None:
        key = (index, delta.sample)
        last = self._last.get(key)
        if last is None:
            self._metrics.first_token.observe(now - self._exchange.started)
            self.first_token = self.first_token or now
        elif count := len(delta.token_ids):
            self._metrics.inter_token.observe((now - last) / count, count)
        self._last[key] = now
        if delta.finish_reason is not None:
            self._open -= 1
            if delta.usage is not None:
                prompt_tokens = delta.usage.prompt_tokens if delta.sample == 0 else 0
                self._exchange.count(prompt_tokens, delta.usage.completion_tokens)
