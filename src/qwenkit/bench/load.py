"""Puts load on a server that speaks the OpenAI API and takes down when every piece of every answer came.

Knows nothing of how the numbers are shown.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import time
from array import array
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from qwenkit.backends.remote_server import Server
from qwenkit.bench.connection import ExchangeError, Pool
from qwenkit.bench.workload import Workload
from qwenkit.core.errors import InputError

_TICK_SECONDS = 0.5
_PATHS = {"chat": "chat/completions", "completions": "completions"}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How much to ask, and how fast."""

    num_requests: int | None = None
    duration: float | None = None
    """Seconds in which requests are started; those under way are awaited."""
    concurrency: int | None = None
    """Requests under way at any time; None: as the rate brings it."""
    rate: float | None = None
    """Requests started a second, at random (Poisson) moments; infinity: all at once."""
    warmup: int = 0
    """Requests before the measured ones."""
    verify: int = 0
    """Requests to ask again alone afterwards, to compare the texts."""

    def __post_init__(self) -> None:
        if (self.num_requests is None) == (self.duration is None):
            raise InputError("give either a number of requests or a duration")
        if (self.concurrency is None) == (self.rate is None):
            raise InputError("give either a concurrency or a rate")
        if self.rate == float("inf") and self.num_requests is None:
            raise InputError("an infinite rate needs a number of requests, or it would never end")
        for name in ("num_requests", "duration", "concurrency", "rate"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name}={value!r} is not possible; use a number above 0")


@dataclass(slots=True)
class Record:
    """One request and what became of it; times are of time.perf_counter."""

    index: int
    start: float
    """When it was due: a generator that is late makes the latency longer, not shorter."""
    end: float = 0.0
    times: array[float] = field(default_factory=lambda: array("d"))
    """When each piece of the answer came."""
    text: str = ""
    prompt_tokens: int | None = None
    """As the server counts; None: it does not."""
    completion_tokens: int | None = None
    cached_tokens: int = 0
    error: ExchangeError | None = None
    is_cut: bool = False
    """Ended from this side before it was over."""

    @property
    def is_ok(self) -> bool:
        """Whether the whole answer came."""
        return self.error is None and not self.is_cut

    @property
    def output_tokens(self) -> int:
        """As the server counts, else the pieces."""
        return len(self.times) if self.completion_tokens is None else self.completion_tokens


@dataclass(frozen=True, slots=True)
class Mismatch:
    """A request that got another text under load than alone."""

    index: int
    under_load: str
    alone: str
    owner: int | None
    """The request whose text it was, if it was another's."""


@dataclass(slots=True)
class LoadResult:
    """Everything that was taken down."""

    records: list[Record] = field(default_factory=list)
    start: float = 0.0
    end: float = 0.0
    most_running: int = 0
    was_stopped: bool = False
    num_verified: int = 0
    mismatches: list[Mismatch] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a load test is."""

    seconds: float
    started: int
    done: int
    failed: int
    running: int
    pieces: int
    """Pieces of answers so far, which are about as many tokens."""
    stage: str
    """warmup, load or verify"""


OnProgress: TypeAlias = Callable[[Progress], None]


def run_load(
    server: Server, workload: Workload, options: LoadOptions, on_progress: OnProgress | None = None
) -> LoadResult:
    """Runs a load test; Ctrl-C ends it early, with what was measured so far."""
    return asyncio.run(_Run(server, workload, options, on_progress or (lambda progress: None)).run())


class _Run:
    """One load test."""

    def __init__(
        self, server: Server, workload: Workload, options: LoadOptions, on_progress: OnProgress
    ) -> None:
        self._workload, self._options, self._show = workload, options, on_progress
        self._pool = Pool(server)
        self._result = LoadResult()
        self._failed = self._done = self._pieces = 0
        self._open: dict[int, Record] = {}
        self._stage = "load"
        self._stop = asyncio.Event()

    async def run(self) -> LoadResult:
        with self._interruptible(), contextlib.closing(self._pool):
            ticker = asyncio.ensure_future(self._tick())
            try:
                if self._options.warmup:
                    await self._warm_up()
                self._begin("load")
                self._result.start = time.perf_counter()
                await self._until_stopped(
                    self._closed_loop() if self._options.rate is None else self._open_loop()
                )
                self._result.end = time.perf_counter()
                if self._options.verify and not self._stop.is_set():
                    self._begin("verify")
                    await self._until_stopped(self._verify())
            finally:
                ticker.cancel()
        self._result.was_stopped = self._stop.is_set()
        return self._result

    def _begin(self, stage: str) -> None:
        self._stage, self._stage_start = stage, time.perf_counter()
        self._failed = self._done = self._pieces = 0

    @contextlib.contextmanager
    def _interruptible(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        try:
            loop.add_signal_handler(signal.SIGINT, self._stop.set)
        except (NotImplementedError, ValueError, RuntimeError):  # not the main thread
            yield
            return
        try:
            yield
        finally:
            loop.remove_signal_handler(signal.SIGINT)

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Awaits a coroutine; being asked to stop cancels it, and with it every request under way."""
        task = asyncio.ensure_future(work)
        stopped = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_TICK_SECONDS)
            self._show(
                Progress(
                    seconds=time.perf_counter() - self._stage_start,
                    started=len(self._open) + self._done,
                    done=self._done,
                    failed=self._failed,
                    running=len(self._open),
                    pieces=self._pieces + sum(len(r.times) for r in self._open.values()),
                    stage=self._stage,
                )
            )

    async def _warm_up(self) -> None:
        self._begin("warmup")
        indices = iter(range(self._options.warmup))
        # Other prompts than the measured ones, which would else be found in the server's prefix cache.
        workers = [self._worker((-1 - i for i in indices), []) for _ in range(self._options.concurrency or 8)]
        await self._until_stopped(_together(workers))

    def _indices(self) -> Iterator[int]:
        """Numbers of the requests to start, as long as there are to be more."""
        index, end = 0, self._result.start + (self._options.duration or float("inf"))
        limit = self._options.num_requests
        while (limit is None or index < limit) and time.perf_counter() < end:
            yield index
            index += 1

    async def _closed_loop(self) -> None:
        indices = self._indices()
        await _together(
            [self._worker(indices, self._result.records) for _ in range(self._options.concurrency or 1)]
        )

    async def _worker(self, indices: Iterator[int], records: list[Record]) -> None:
        for index in indices:
            await self._ask(index, time.perf_counter(), records)

    async def _open_loop(self) -> None:
        random_ = random.Random(f"{self._workload.seed}/arrivals")
        rate, due = self._options.rate or 1.0, self._result.start
        end = self._result.start + (self._options.duration or float("inf"))
        limit = self._options.num_requests or 1 << 62
        tasks: list[asyncio.Task[None]] = []
        try:
            while due < end and len(tasks) < limit:
                await asyncio.sleep(max(due - time.perf_counter(), 0))
                tasks.append(asyncio.ensure_future(self._ask(len(tasks), due, self._result.records)))
                due += random_.expovariate(rate) if rate != float("inf") else 0.0
            await asyncio.gather(*tasks)
        finally:
            await _cancel(tasks)

    async def _ask(self, index: int, start: float, records: list[Record]) -> None:
        record = Record(index, start)
        body = json.dumps(self._workload.body(index), ensure_ascii=False).encode("utf-8", errors="replace")
        request = self._pool.request(_PATHS[self._workload.endpoint], body)
        reader = _Reader(record)
        self._open[id(record)] = record
        self._result.most_running = max(self._result.most_running, len(self._open))
        try:
            await self._pool.exchange(request, reader.see)
            record.error = reader.error
        except ExchangeError as error:
            record.error = reader.error or error
        except asyncio.CancelledError:
            record.is_cut = True
            raise
        finally:
            record.end = time.perf_counter()
            record.text = "".join(reader.parts)
            del self._open[id(record)]
            self._done += 1
            self._failed += record.error is not None
            self._pieces += len(record.times)
            records.append(record)

    async def _verify(self) -> None:
        """Asks some requests again, one at a time, and compares."""
        done = sorted((r for r in self._result.records if r.is_ok), key=lambda r: r.index)
        step = max(len(done) / self._options.verify, 1.0)
        chosen = [done[int(i * step)] for i in range(min(self._options.verify, len(done)))]
        texts = {r.index: r.text for r in done}
        for record in chosen:
            again: list[Record] = []
            await self._ask(record.index, time.perf_counter(), again)
            if not again[0].is_ok:
                continue
            self._result.num_verified += 1
            if again[0].text != record.text:
                owner = next((i for i, t in texts.items() if t == record.text and i != record.index), None)
                self._result.mismatches.append(Mismatch(record.index, record.text, again[0].text, owner))


class _Reader:
    """Takes down the events of one answer."""

    def __init__(self, record: Record) -> None:
        self._record = record
        self._saw = record.times.append
        self.parts: list[str] = []
        self.error: ExchangeError | None = None

    def see(self, at: float, data: bytes) -> None:
        """One event and when it came."""
        try:
            event = json.loads(data)
            if choices := event.get("choices"):
                choice = choices[0]
                new = choice.get("delta") or choice
                text = new.get("content") or new.get("text")
                if text:
                    self._saw(at)
                    self.parts.append(text)
                elif new.get("reasoning_content") or new.get("reasoning") or new.get("tool_calls"):
                    self._saw(at)
                    self.parts.append(
                        str(new.get("reasoning_content") or new.get("reasoning") or new["tool_calls"])
                    )
            if usage := event.get("usage"):
                self._take_usage(usage)
            if error := event.get("error"):
                self.error = ExchangeError("error event", str(error)[:200])
        except (ValueError, AttributeError, KeyError, IndexError, TypeError) as error:
            self.error = self.error or ExchangeError("malformed event", f"{type(error).__name__}: {error}")

    def _take_usage(self, usage: dict[str, object]) -> None:
        record = self._record
        prompt, output = usage.get("prompt_tokens"), usage.get("completion_tokens")
        record.prompt_tokens = prompt if isinstance(prompt, int) else record.prompt_tokens
        record.completion_tokens = output if isinstance(output, int) else record.completion_tokens
        details = usage.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, dict) else None
        record.cached_tokens = cached if isinstance(cached, int) else record.cached_tokens


async def _together(work: list[Coroutine[Any, Any, None]]) -> None:
    """Awaits coroutines; when it is cancelled, so are they."""
    tasks = [asyncio.ensure_future(w) for w in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        await _cancel(tasks)


async def _cancel(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
