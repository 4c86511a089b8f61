"""The step of the engine: plan, compute, choose, hand out. Runs in one thread and knows nothing of threads.

No request can harm another: what goes wrong with one ends that one alone.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from qwenkit.core.errors import NumericsError, QwenkitError
from qwenkit.core.types import Delta
from qwenkit.engine.blocks import BlockManager
from qwenkit.engine.reply import Reply
from qwenkit.engine.runner import Result, Runner
from qwenkit.engine.scheduler import Scheduler, Work
from qwenkit.engine.sequence import Sequence as Reading
from qwenkit.engine.sequence import Status

_log = logging.getLogger("qwenkit")


@dataclass(slots=True)
class Counters:
    """What happened since the start."""

    steps: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    cached_tokens: int = 0
    proposed_tokens: int = 0
    """Guessed by lookup, and computed to be compared with what is chosen."""
    accepted_tokens: int = 0
    """Of these, the ones that were chosen indeed."""


class EngineCore:
    """Runs sequences to their end.

    Args:
        runner: the network.
        blocks: the pages.
        scheduler: who runs when.
        deliver: called with each delta, or the error that ends a sequence.
        explain: says why logits of these tokens are not finite.
        clock: seconds, to learn what a guess costs.
    """

    def __init__(
        self,
        runner: Runner,
        blocks: BlockManager,
        scheduler: Scheduler,
        *,
        deliver: Callable[[Reading, Delta | BaseException], None],
        explain: Callable[[Sequence[int]], str],
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.blocks, self.scheduler, self.counters = blocks, scheduler, Counters()
        self._runner, self._deliver, self._explain = runner, deliver, explain
        self._clock = clock

    def step(self) -> None:
        """Computes one batch of tokens and hands out what came of it."""
        plan = self.scheduler.schedule()
        assert plan, "whoever waits can start when nobody runs"
        self.counters.steps += 1
        for work in plan:
            if work.sequence.computed <= work.sequence.cached and work.sequence.num_output == 0:
                self._count_prompt(work)
        for result in self._run(plan):
            sequence = result.work.sequence
            if sequence.status is Status.DONE:
                continue  # another reply of its request failed in this step, and took it along
            self.scheduler.computed(sequence, result.work.count)
            if result.logits is None:
                continue
            try:
                self._advance(sequence, result, result.logits)
            except Exception as error:
                self.fail(sequence, error)

    def _count_prompt(self, work: Work) -> None:
        self.counters.prompt_tokens += work.sequence.num_prompt
        self.counters.cached_tokens += work.sequence.cached

    def _run(self, plan: list[Work]) -> list[Result]:
        try:
            start = self._clock()
            results = self._runner.run(plan)
            if all(work.count == 1 for work in plan):
                self.scheduler.pace.note(sum(work.size for work in plan), self._clock() - start)
            return results
        except Exception as error:
            if len(plan) == 1:
                self.fail(plan[0].sequence, error)
                return []
            _log.warning("a step of %d sequences failed (%s); running them one by one", len(plan), error)
        # Nothing was counted as computed, so each can be run again, and only the one at fault ends.
        return [
            result for work in plan if work.sequence.status is not Status.DONE for result in self._run([work])
        ]

    def _advance(self, sequence: Reading, result: Result, logits: Tensor) -> None:
        """Chooses tokens for as long as the next one was computed already, because it had been guessed."""
        draft = result.work.draft
        self.counters.proposed_tokens += len(draft)
        for row, guess in enumerate((*draft, None)):
            self._advance_one(sequence, logits[row], result.likeliest[row], result.highest[row])
            if guess is None or sequence.tokens[-1] != guess:
                break
            self.counters.accepted_tokens += 1
            if sequence.status is Status.DONE:
                return
            self.scheduler.computed(sequence, 1)
        if draft:
            self.scheduler.trim(sequence)

    def _advance_one(self, sequence: Reading, logits: Tensor, likeliest: int, highest: float) -> None:
        reply: Reply = sequence.state
        if sequence.limit == 0:
            delta = reply.score_only(sequence.tokens, cached=sequence.cached)
        else:
            if not math.isfinite(highest):  # NaN wins every comparison, so the maximum tells
                raise NumericsError(self._explain(sequence.tokens))
            delta = reply.pick(
                logits, likeliest, sequence.tokens, limit=sequence.limit, cached=sequence.cached
            )
            sequence.tokens.append(delta.token_ids[0])
            self.counters.generated_tokens += 1
        if delta.finish_reason:
            self.scheduler.finish(sequence)
        self._deliver(sequence, delta)

    def fail(self, sequence: Reading, error: BaseException) -> None:
        """Ends a sequence with an error."""
        if sequence.status is Status.DONE:
            return
        self.scheduler.finish(sequence)
        if not isinstance(error, QwenkitError | MemoryError):
            _log.error("a request failed unexpectedly", exc_info=error)
        self._deliver(sequence, error)

    def abort(self, sequences: Sequence[Reading]) -> None:
        """Ends sequences at once and frees what they hold; nothing is delivered."""
        for sequence in sequences:
            self.scheduler.finish(sequence)
