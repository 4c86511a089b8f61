"""The engine as others see it: requests come from any thread, one thread of its own runs the steps.

Knows token ids and settings; messages, templates and protocols are above it.
"""

from __future__ import annotations

import itertools
import logging
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeAlias

from qwenkit.core.errors import InputError, QueueFullError
from qwenkit.core.sampling import SamplingParams
from qwenkit.core.types import Delta
from qwenkit.engine.admission import Admission, EngineModel
from qwenkit.engine.blocks import PAGE_SIZE, BlockManager, root_digest
from qwenkit.engine.core import EngineCore
from qwenkit.engine.reply import Reply
from qwenkit.engine.runner import Runner
from qwenkit.engine.scheduler import Scheduler
from qwenkit.engine.sequence import Sequence as Reading
from qwenkit.layers.lora import Adapter

_log = logging.getLogger("qwenkit")
Sink: TypeAlias = Callable[[Delta | BaseException], None]
SideTask: TypeAlias = Generator[None, None, Any]
"""Work beside the batch, in pieces: the engine runs a step between two of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How much may happen at once."""

    max_running: int = 64
    """Sequences computed together."""
    max_step_tokens: int = 512
    """Tokens computed in one step: long prompts are read in pieces of this size."""
    max_queue: int = 1024
    """Requests that may wait besides those that run."""
    max_draft: int = 0
    """Tokens guessed for one sequence in a step by looking them up in its text; 0: none. Replies stay the same."""


@dataclass(slots=True)
class Prepared:
    """A request that was checked."""

    tokens: list[int]
    replies: list[Reply]
    limit: int
    """Most tokens of each reply."""


class EngineJob:
    """A request under way; see backends.base.Job."""

    def __init__(self, engine: Engine, sink: Sink, prompt_tokens: int) -> None:
        self._engine, self.sink, self.prompt_tokens = engine, sink, prompt_tokens
        self.sequences: list[Reading] = []
        self.is_over = False
        """Nothing is delivered any more."""

    @property
    def cached_tokens(self) -> int:
        """See Job.cached_tokens."""
        return self.sequences[0].cached

    def abort(self) -> None:
        """See Job.abort."""
        if not self.is_over:
            self.is_over = True
            self._engine.abort(self)


class Engine:
    """Continuous batching with a thread of its own.

    Args:
        runner: the network and its pages.
        blocks: the pages' bookkeeping, of the same number.
        model: what to know of the model.
        options: limits.
    """

    def __init__(
        self, runner: Runner, blocks: BlockManager, model: EngineModel, options: EngineOptions
    ) -> None:
        self._options, self._marks_generated = options, model.tells_generated
        self._admission = Admission(model, blocks.num_pages * PAGE_SIZE)
        scheduler = Scheduler(
            blocks,
            max_running=options.max_running,
            max_step_tokens=options.max_step_tokens,
            max_draft=options.max_draft,
        )
        self.core = EngineCore(runner, blocks, scheduler, deliver=self._deliver, explain=model.explain)
        """For a look only: its thread is another."""
        self._changed = threading.Condition()
        self._commands: deque[Callable[[], None]] = deque()
        self._tasks: deque[tuple[SideTask, Future[Any]]] = deque()
        self._unfinished: dict[int, EngineJob] = {}  # number of the sequence to job
        self._numbers = itertools.count()
        self._adapter_numbers: weakref.WeakKeyDictionary[Adapter, int] = weakref.WeakKeyDictionary()
        self._closing = False
        self._thread = threading.Thread(target=self._loop, name="qwenkit-engine", daemon=True)
        self._thread.start()

    def prepare(
        self, tokens: Sequence[int], params: SamplingParams, *, adapter: Adapter | None = None, index: int = 0
    ) -> Prepared:
        """Checks a request; slow grammars are compiled here, in the thread of whoever asks.

        Args:
            tokens: the prompt.
            params: resolved settings.
            adapter: LoRA adapter to answer with.
            index: ``Delta.index`` of what comes.

        Raises:
            InputError: the request cannot be honoured.
        """
        limit = self._admission.limit(tokens, params)
        replies = self._admission.replies(tokens, params, adapter, index)
        return Prepared(list(tokens), replies, limit)

    def submit(self, request: Prepared, sink: Sink, *, bounded: bool = True) -> EngineJob:
        """Starts a request and returns at once.

        Args:
            request: from ``prepare``, to be used once.
            sink: gets the deltas, called from the engine's thread.
            bounded: refuse when too many wait.

        Raises:
            InputError: the engine was closed.
            QueueFullError: too many wait.
        """
        tokens, replies = request.tokens, request.replies
        job = EngineJob(self, sink, len(tokens))
        with self._changed:
            if self._closing:
                raise InputError("the model was closed; open it again")
            room = self._options.max_running + self._options.max_queue
            if bounded and len(self._unfinished) + len(replies) > room:
                raise QueueFullError(
                    f"{len(self._unfinished)} requests are under way, more than {room} are not taken; try later"
                )
            root = root_digest(replies[0].alpha, self._adapter_number(replies[0].adapter))
            for reply in replies:
                leader = job.sequences[0] if job.sequences else None
                sequence = Reading(
                    next(self._numbers),
                    tokens,
                    reply.params,
                    limit=request.limit,
                    root=root,
                    leader=leader,
                    marks_generated=self._marks_generated,
                )
                sequence.state = reply
                job.sequences.append(sequence)
                self._unfinished[sequence.number] = job
            self._commands.append(lambda: self._add(job))
            self._changed.notify()
        return job

    def _adapter_number(self, adapter: Adapter | None) -> int | None:
        if adapter is None:
            return None
        return self._adapter_numbers.setdefault(adapter, next(self._numbers))

    def call(self, task: SideTask) -> Future[Any]:
        """Runs a generator in the engine's thread, one piece between two steps; its return value is the result.

        Raises:
            InputError: the engine was closed.
        """
        future: Future[Any] = Future()
        with self._changed:
            if self._closing:
                raise InputError("the model was closed; open it again")
            self._tasks.append((task, future))
            self._changed.notify()
        return future

    def abort(self, job: EngineJob) -> None:
        """Ends a request at once and frees what it holds."""
        with self._changed:
            for sequence in job.sequences:  # from now on others may have its place in the queue
                self._unfinished.pop(sequence.number, None)
            self._commands.append(lambda: self._end(job))
            self._changed.notify()

    def close(self) -> None:
        """Ends everything under way with an error and stops the thread."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                while not (self._commands or self._tasks or self._closing) and self.core.scheduler.is_idle:
                    self._changed.wait()
                commands = list(self._commands)
                self._commands.clear()
            for command in commands:
                command()
            if self._closing:
                break
            self._advance_task()
            if not self.core.scheduler.is_idle:
                self._step()
        self._end_all(InputError("the model was closed; open it again"))

    def _step(self) -> None:
        try:
            self.core.step()
        except Exception as error:  # a fault of ours: those under way end, later requests are served
            _log.exception("a step of the engine failed")
            self._end_all(error)

    def _add(self, job: EngineJob) -> None:
        for sequence in job.sequences:
            self.core.scheduler.add(sequence)

    def _advance_task(self) -> None:
        if not self._tasks:
            return
        task, future = self._tasks[0]
        try:
            next(task)
            return
        except StopIteration as end:
            future.set_result(end.value)
        except BaseException as error:
            future.set_exception(error)
        self._tasks.popleft()

    def _end(self, job: EngineJob) -> None:
        job.is_over = True
        for sequence in job.sequences:
            self._unfinished.pop(sequence.number, None)
        self.core.abort(job.sequences)

    def _end_all(self, error: BaseException) -> None:
        for job in {id(job): job for job in list(self._unfinished.values())}.values():
            self._hand_over(job, error)
            self._end(job)
        while self._tasks:
            task, future = self._tasks.popleft()
            task.close()
            future.set_exception(error)

    def _deliver(self, sequence: Reading, delta: Delta | BaseException) -> None:
        job = self._unfinished.get(sequence.number)
        if job is None:
            return
        if isinstance(delta, BaseException) or delta.finish_reason:
            del self._unfinished[sequence.number]
        self._hand_over(job, delta)
        if isinstance(delta, BaseException):
            self._end(job)  # the other replies of the request too

    def _hand_over(self, job: EngineJob, delta: Delta | BaseException) -> None:
        if job.is_over:
            return
        try:
            job.sink(delta)
        except Exception:  # whoever asked is at fault, not its neighbours
            _log.exception("the receiver of a reply failed; the request ends")
            self._end(job)
