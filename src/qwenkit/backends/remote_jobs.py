"""How requests to a model elsewhere run and end, whatever API they are written in.

Knows nothing of the JSON that travels; how it travels is in http_client.
"""

from __future__ import annotations

import dataclasses
import queue
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from qwenkit.backends.base import BackendInfo, EngineStats, Sink
from qwenkit.backends.http_client import Aborted, Exchange
from qwenkit.backends.remote_server import Server, StatusError
from qwenkit.core.errors import InputError, RemoteError
from qwenkit.core.types import Delta, Request

Body: TypeAlias = Mapping[str, Any]
Amend: TypeAlias = Callable[[Body, StatusError], Body | None]
"""Another way to say what a server has refused; None: there is none."""
OnEnd: TypeAlias = Callable[["RemoteJob", int, int, int], None]


class Reader(Protocol):
    """Turns the events of one streamed answer into deltas."""

    @property
    def is_complete(self) -> bool:
        """Whether every reply has said why it ended."""

    def push(self, event: Mapping[str, Any]) -> Iterable[Delta]:
        """What is new with one event.

        Raises:
            RemoteError: it has another shape than the API says.
        """

    def finish(self) -> Iterable[Delta]:
        """The last delta of every reply.

        Raises:
            RemoteError: a reply has not ended.
        """


class RemoteBackend(ABC):
    """Sends requests to a server.

    Args:
        server: where it is.
        info: what it runs.
        adapters: names of LoRA adapters that it has.
        max_parallel: requests of one ``stream`` under way at once.
    """

    tokenizer: None = None
    template: None = None

    def __init__(
        self, server: Server, info: BackendInfo, *, adapters: Sequence[str] = (), max_parallel: int = 64
    ) -> None:
        self.info = info
        self.adapters = tuple(adapters)
        self._server, self._max_parallel = server, max_parallel
        self._lock = threading.Lock()
        self._jobs: set[RemoteJob] = set()
        self._totals = EngineStats()
        self._is_closed = False

    @abstractmethod
    def encode(self, request: Request) -> tuple[str, dict[str, Any]]:
        """The path below that of the API and the body that ask for a request, streaming.

        Raises:
            InputError: it holds something that the API has no words for.
        """

    @abstractmethod
    def new_reader(self, request: Request) -> Reader:
        """What reads the answer to a request."""

    def amend(self, body: Body, error: StatusError) -> Body | None:
        """See Amend."""
        return None

    def submit(self, request: Request, sink: Sink) -> RemoteJob:
        """See Backend.submit."""
        path, body = self.encode(request)
        job = RemoteJob(Exchange(self._server), sink, self.new_reader(request), self._forget, self.amend)
        with self._lock:
            if self._is_closed:
                raise InputError(f"the connection to {self._server.url} was closed; open it again")
            self._jobs.add(job)
        threading.Thread(target=job.run, args=(path, body), daemon=True, name="qwenkit-remote").start()
        return job

    def _forget(self, job: RemoteJob, prompt_tokens: int, generated_tokens: int, cached_tokens: int) -> None:
        with self._lock:
            self._jobs.discard(job)
            totals = self._totals
            self._totals = dataclasses.replace(
                totals,
                prompt_tokens=totals.prompt_tokens + prompt_tokens,
                generated_tokens=totals.generated_tokens + generated_tokens,
                cached_tokens=totals.cached_tokens + cached_tokens,
            )

    def stream(self, requests: Sequence[Request]) -> Iterator[Delta]:
        """See Backend.stream."""
        for request in requests:
            self.encode(request)
        return self._run(list(requests))

    def _run(self, requests: list[Request]) -> Iterator[Delta]:
        arrived: queue.SimpleQueue[tuple[int, Delta | BaseException]] = queue.SimpleQueue()
        left = [request.params.n for request in requests]
        jobs: list[RemoteJob] = []

        def start() -> None:
            index = len(jobs)
            if index < len(requests):
                jobs.append(self.submit(requests[index], lambda new: arrived.put((index, new))))

        try:
            for _ in range(self._max_parallel):
                start()
            while any(left):
                index, new = arrived.get()
                if isinstance(new, BaseException):
                    raise new
                yield dataclasses.replace(new, index=index)
                left[index] -= new.finish_reason is not None
                if not left[index] and new.finish_reason is not None:
                    start()
        finally:
            for job in jobs:
                job.abort()

    def stats(self) -> EngineStats:
        """See Backend.stats; of this program's own requests, as far as they are over."""
        with self._lock:
            return dataclasses.replace(self._totals, running=len(self._jobs))

    def load_adapter(self, name: str, path: str | Path) -> None:
        """Not from here: the server has to be told.

        Raises:
            InputError: always.
        """
        raise InputError(f"adapters of {self._server.url} are loaded there; start it with {path} as {name!r}")

    def unload_adapter(self, name: str) -> None:
        """Not from here: the server has to be told.

        Raises:
            InputError: always.
        """
        raise InputError(f"adapters of {self._server.url} are unloaded there, {name!r} too")

    def close(self) -> None:
        """Ends what runs; the backend cannot be used afterwards."""
        with self._lock:
            self._is_closed = True
            jobs = list(self._jobs)
        for job in jobs:
            job.abort()


class RemoteJob:
    """One request on its way, in a thread of its own."""

    prompt_tokens = cached_tokens = 0

    def __init__(self, exchange: Exchange, sink: Sink, reader: Reader, on_end: OnEnd, amend: Amend) -> None:
        self._exchange, self._sink, self._reader = exchange, sink, reader
        self._on_end, self._amend = on_end, amend
        # A sink may call abort, so the lock must let its own thread in again.
        self._lock = threading.RLock()
        self._is_aborted = False

    def abort(self) -> None:
        """See Job.abort."""
        with self._lock:
            self._is_aborted = True
        self._exchange.abort()

    def _tell(self, new: Delta | BaseException) -> None:
        with self._lock:
            if not self._is_aborted:
                self._sink(new)

    def run(self, path: str, body: Body) -> None:
        """Sends the request and hands on the answer."""
        counts = (0, 0, 0)
        try:
            last = self._read(path, body)
            usages = [d.usage for d in last if d.usage is not None]
            counts = (
                max((u.prompt_tokens for u in usages), default=0),
                sum(u.completion_tokens for u in usages),
                max((u.cached_tokens for u in usages), default=0),
            )
            end: list[Delta | BaseException] = [*last]
        except Aborted:
            end = []
        except BaseException as error:
            end = [error]
        finally:
            self._exchange.close()
        self._on_end(self, *counts)
        for new in end:
            self._tell(new)

    def _read(self, path: str, body: Body) -> list[Delta]:
        """Hands on all but the last deltas, which it returns."""
        try:
            self._exchange.send(path, body)
        except StatusError as error:
            other = self._amend(body, error)
            if other is None:
                raise
            self._exchange.send(path, other)
        try:
            for event in self._exchange.events():
                for delta in self._reader.push(event):
                    self._tell(delta)
        except RemoteError:
            # Some servers just close the stream: with every reply ended, nothing is missing but the token counts.
            if not (self._reader.is_complete and self._exchange.has_ended):
                raise
        return list(self._reader.finish())
