"""What all endpoints of one server share: the backend, its limits, threads for slow work, and running requests.

Knows nothing of any protocol.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from qwenkit.backends.base import Backend
from qwenkit.core.errors import did_you_mean
from qwenkit.core.types import Request
from qwenkit.server.bridge import Bridge
from qwenkit.server.errors import ApiError, shutting_down
from qwenkit.server.exchange import Exchange
from qwenkit.server.generation import Generation
from qwenkit.server.metrics import Metrics
from qwenkit.server.options import ServerOptions
from qwenkit.server.store import Store
from qwenkit.server.watch import Receive, Watch

T = TypeVar("T")


class Service:
    """One server's shared state.

    Args:
        backend: what is served.
        options: limits and switches.
    """

    def __init__(self, backend: Backend, options: ServerOptions) -> None:
        self.backend, self.options = backend, options
        self.metrics = Metrics(backend)
        self.started = int(time.time())
        self.names = options.served_names or (backend.info.model,)
        """Names of the model itself; the first is shown."""
        self.aliases: frozenset[str] = frozenset()
        """Further names of it, which are never shown; adapters go before them."""
        self.stored: Store[Any] = Store(options.store_responses)
        """What clients may come back to."""
        self.is_draining = False
        self._bridge: Bridge | None = None
        self._live: set[Watch] = set()
        self._errands: set[asyncio.Task[None]] = set()
        # Preparing a prompt is short, scoring texts may be long; one must not wait for the other.
        self._short_work = ThreadPoolExecutor(4, "qwenkit-prepare")
        self._long_work = ThreadPoolExecutor(2, "qwenkit-score")

    @property
    def num_live(self) -> int:
        """Requests for text under way."""
        return len(self._live)

    def adapter_of(self, model: str | None, *, is_shown: bool = False) -> str | None:
        """The adapter that a model name stands for; None is the model itself, as is a request without a name.

        Args:
            model: the name.
            is_shown: whether it must be one that is shown.

        Raises:
            ApiError: there is no such model.
        """
        if model is None or model in self.names:
            return None
        adapters = self.backend.adapters
        if model in adapters:
            return model
        if model in self.aliases and not is_shown:
            return None
        known = (*self.names, *adapters)
        message = f"the model {model!r:.200} is not served here, only {', '.join(known)}{did_you_mean(model, known)}"
        raise ApiError(404, message, param="model", code="model_not_found")

    def watch(self, receive: Receive) -> Watch:
        """Starts looking after a request; the watch must be closed."""
        return Watch(receive, self.options, self._live)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Starts something that no request waits for; it should have a watch, so that a stopping server ends it."""
        task = asyncio.get_running_loop().create_task(work)
        self._errands.add(task)  # the loop itself forgets tasks
        task.add_done_callback(self._errands.discard)

    async def prepare(self, function: Callable[..., T], *args: Any) -> T:
        """Runs something short that would still hold up other requests, such as tokenising."""
        return await asyncio.get_running_loop().run_in_executor(self._short_work, partial(function, *args))

    async def compute(self, function: Callable[..., T], *args: Any) -> T:
        """Runs something that takes the engine's time, such as embedding."""
        return await asyncio.get_running_loop().run_in_executor(self._long_work, partial(function, *args))

    async def generate(self, build: Callable[[], Sequence[Request]], exchange: Exchange) -> Generation:
        """Starts the prompts that ``build``, which runs in another thread, returns.

        Raises:
            QwenkitError: one cannot be honoured.
        """
        if self._bridge is None:
            self._bridge = Bridge(asyncio.get_running_loop())
        generation = Generation(self.backend, self._bridge, self.metrics, exchange)
        try:
            await self.prepare(generation.submit, build)
        except asyncio.CancelledError:
            generation.abort()
            raise
        return generation

    async def drain(self) -> None:
        """Refuses new requests, waits for running ones, and ends those that take too long."""
        self.is_draining = True
        deadline = time.monotonic() + self.options.drain_timeout
        while self._live and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        for watch in list(self._live):
            watch.end(shutting_down())

    def close(self) -> None:
        """Gives the threads back."""
        self._short_work.shutdown(wait=False, cancel_futures=True)
        self._long_work.shutdown(wait=False, cancel_futures=True)
