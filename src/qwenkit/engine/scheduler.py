"""Who runs in the next step, and with how many tokens. Knows sequences and pages, nothing of tensors or text.

First come, first served: waiting sequences start in the order they came, and one that does not fit yet keeps later ones
waiting. When running sequences need more pages than there are, the one that came last gives its pages up and starts
again later from its tokens; nothing it said is lost. Guessed tokens take what is left of a step, and of pages, after all
that; they never displace anyone.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass

from qwenkit.engine.blocks import PAGE_SIZE, BlockManager, pages_for
from qwenkit.engine.lookup import Lookup
from qwenkit.engine.pace import Pace
from qwenkit.engine.sequence import Sequence, Status


@dataclass(slots=True)
class Work:
    """``count`` tokens of one sequence to compute in this step."""

    sequence: Sequence
    count: int
    draft: tuple[int, ...] = ()
    """Tokens guessed to follow the sequence's last one, computed behind it to be compared with what is chosen."""

    @property
    def size(self) -> int:
        """Tokens that pass through the network."""
        return self.count + len(self.draft)


class Scheduler:
    """Plans steps.

    Args:
        blocks: the pages.
        max_running: sequences that may run at once.
        max_step_tokens: tokens computed in one step, at least ``max_running``.
        max_draft: tokens guessed for one sequence in a step; 0: none.
    """

    def __init__(
        self, blocks: BlockManager, *, max_running: int, max_step_tokens: int, max_draft: int = 0
    ) -> None:
        self.blocks = blocks
        self._max_draft, self.pace = max_draft, Pace()
        self._max_running, self._max_step_tokens = max_running, max(max_step_tokens, max_running)
        self.waiting: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0

    @property
    def is_idle(self) -> bool:
        """Whether no sequence is left."""
        return not self.waiting and not self.running

    def add(self, sequence: Sequence) -> None:
        """Lets a sequence wait for its turn, unless it was finished before it came here."""
        if sequence.status is not Status.DONE:
            sequence.status = Status.WAITING
            bisect.insort(self.waiting, sequence, key=_arrival)

    def finish(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its pages. Harmless when it is out already."""
        if sequence.status is Status.RUNNING:
            self.running.remove(sequence)
        elif sequence.status is Status.WAITING:
            self.waiting.remove(sequence)
        self._give_up_pages(sequence)
        sequence.status, sequence.lookup = Status.DONE, None

    def schedule(self) -> list[Work]:
        """The work of the next step, in order of arrival within decoding and reading."""
        plan: dict[int, Work] = {}
        preempted = self.num_preemptions
        budget = self._max_step_tokens
        # Decoding first: a long prompt must not hold up those who are being answered.
        order = sorted(self.running, key=lambda s: (not s.is_decoding, s.number))
        for sequence in order:
            if sequence.status is not Status.RUNNING:
                continue  # gave its pages up for one before it
            count = min(sequence.num_pending, budget - sum(w.count for w in plan.values()))
            if count > 0 and self._reserve(sequence, sequence.computed + count, plan):
                plan[sequence.number] = Work(sequence, count)
        budget -= sum(work.count for work in plan.values())
        if preempted == self.num_preemptions:
            self._admit(plan, budget)
        if self._max_draft:
            self._guess(plan)
        return list(plan.values())

    def _guess(self, plan: dict[int, Work]) -> None:
        """Adds drafts to the work of a step in which everyone is decoding."""
        # Beside a prompt that is being read, computing is what takes time, and a guess costs as much as a token.
        if not all(work.sequence.is_decoding for work in plan.values()):
            return
        rows, gained = len(plan), float(len(plan))
        for work in plan.values():
            sequence = work.sequence
            left = self._max_step_tokens - rows
            most = min(self._max_draft, left, sequence.limit - sequence.num_output - 1)
            if most > 0:
                sequence.lookup = sequence.lookup or Lookup(sequence.tokens)
                chances = sequence.lookup.chances(most)
                count = self.pace.worth(rows, gained, chances)
                work.draft = tuple(sequence.lookup.guess(min(count, self._room_behind(sequence, count))))
                rows, gained = rows + len(work.draft), gained + sum(chances[: len(work.draft)])

    def _room_behind(self, sequence: Sequence, count: int) -> int:
        """How many of ``count`` tokens behind the sequence's own have room in its pages and in those that are free."""
        pages = self.blocks.take(max(pages_for(len(sequence.tokens) + count) - len(sequence.pages), 0))
        sequence.pages += pages or []
        return len(sequence.pages) * PAGE_SIZE - len(sequence.tokens)

    def _reserve(self, sequence: Sequence, num_tokens: int, plan: dict[int, Work]) -> bool:
        """Gets pages for ``num_tokens`` tokens, taking them from later sequences; False: it had to yield itself."""
        needed = pages_for(num_tokens) - len(sequence.pages)
        while needed > 0:
            pages = self.blocks.take(needed)
            if pages is not None:
                sequence.pages += pages
                return True
            victim = max(self.running, key=_arrival)
            self._preempt(victim)
            plan.pop(victim.number, None)
            if victim is sequence:
                return False
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.num_preemptions += 1
        self.running.remove(sequence)
        self._give_up_pages(sequence)
        self.add(sequence)

    def _give_up_pages(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.pages)
        sequence.pages, sequence.computed = [], 0

    def _admit(self, plan: dict[int, Work], budget: int) -> None:
        for sequence in list(self.waiting):
            if budget <= 0 or len(self.running) >= self._max_running:
                return
            if _waits_for_leader(sequence):
                continue
            if not self._start(sequence):
                return
            count = min(sequence.num_pending, budget)
            reserved = self._reserve(sequence, sequence.computed + count, plan)
            assert reserved, "_start made sure of the pages"
            plan[sequence.number] = Work(sequence, count)
            budget -= count

    def _start(self, sequence: Sequence) -> bool:
        """Moves a waiting sequence to the running ones if its tokens fit besides what those will soon need."""
        shared = self._shareable(sequence)
        needed = pages_for(len(sequence.tokens) + 1) - len(shared)
        spare = len(self.running)  # each of these may need a page in the steps to come
        if needed + self.blocks.num_idle_among(shared) + spare > self.blocks.num_free and self.running:
            return False
        self.blocks.share(shared)
        self.waiting.remove(sequence)
        bisect.insort(self.running, sequence, key=_arrival)
        sequence.status = Status.RUNNING
        sequence.pages, sequence.computed = list(shared), len(shared) * PAGE_SIZE
        if not sequence.started:
            sequence.started, sequence.cached = True, min(sequence.computed, sequence.num_prompt)
        return True

    def _shareable(self, sequence: Sequence) -> list[int]:
        """Pages that already hold a beginning of the sequence; its last token is always left to compute."""
        if sequence.reads_whole_prompt and sequence.num_output == 0:
            return []
        leader = sequence.leader
        if leader is not None and leader.status is Status.RUNNING and leader.has_read_prompt:
            # All but the page that the prompt ends in: there the two go different ways.
            shared = leader.pages[: (sequence.num_prompt - 1) // PAGE_SIZE]
            if sequence.num_output == 0:
                return shared
        if not self.blocks.caching:
            return []
        return self.blocks.find(sequence.full_digests(len(sequence.tokens) - 1))

    def computed(self, sequence: Sequence, count: int) -> None:
        """So many more of its tokens are stored; pages that became full can be found by others."""
        before = sequence.computed // PAGE_SIZE
        sequence.computed += count
        if sequence.limit == 0:
            return  # read to be scored: whoever asks again wants every position again, and memory is for others
        for page in range(before, sequence.computed // PAGE_SIZE):
            self.blocks.remember(sequence.pages[page], sequence.digest(page))

    def trim(self, sequence: Sequence) -> None:
        """Gives back pages that hold none of its tokens: guesses that were wrong may have needed one."""
        used = pages_for(sequence.computed)
        self.blocks.release(sequence.pages[used:])
        del sequence.pages[used:]


def _waits_for_leader(sequence: Sequence) -> bool:
    """The first of n replies reads the prompt for all of them."""
    leader = sequence.leader
    return leader is not None and leader.status is not Status.DONE and not leader.has_read_prompt


def _arrival(sequence: Sequence) -> int:
    return sequence.number
