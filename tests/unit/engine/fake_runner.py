"""A runner without a network: it keeps which token lies where in which page, and checks it at every step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

import torch

from qwenkit.engine.blocks import PAGE_SIZE
from qwenkit.engine.runner import Result
from qwenkit.engine.scheduler import Work

VOCAB = 97


def next_token(tokens: Sequence[int]) -> int:
    """What the made-up model says after these tokens: it depends on each of them."""
    return int.from_bytes(hashlib.blake2b(repr(list(tokens)).encode(), digest_size=4).digest(), "big") % VOCAB


def repeating_token(tokens: Sequence[int]) -> int:
    """As a model that mostly repeats itself: what it says is easy to guess, but for every eleventh token or so."""
    chaos = next_token(tokens)
    return (tokens[-1] + 1) % 7 if chaos % 11 else chaos


class FakeRunner:
    """Stores tokens instead of keys and values, and answers only if what it finds in the pages is right."""

    def __init__(self, model: Callable[[Sequence[int]], int] = next_token) -> None:
        self._model = model
        self.memory: dict[tuple[int, int], int] = {}
        self.steps: list[list[tuple[int, int]]] = []
        """(number of the sequence, tokens) of every step."""
        self.fail_on: set[int] = set()
        """Steps with a prompt that starts with one of these tokens raise."""
        self.nan_on: set[int] = set()

    def run(self, plan: Sequence[Work]) -> list[Result]:
        """See Runner.run."""
        if any(work.sequence.tokens[0] in self.fail_on for work in plan):
            raise RuntimeError("the machine is on fire")
        self.steps.append([(work.sequence.number, work.size) for work in plan])
        for work in plan:
            sequence = work.sequence
            tokens = [*sequence.tokens, *work.draft]
            for at in range(sequence.computed, sequence.computed + work.size):
                self.memory[sequence.pages[at // PAGE_SIZE], at % PAGE_SIZE] = tokens[at]
        return [self._result(work) for work in plan]

    def _result(self, work: Work) -> Result:
        sequence, end = work.sequence, work.sequence.computed + work.size
        tokens = [*sequence.tokens, *work.draft]
        seen = [self.memory[sequence.pages[at // PAGE_SIZE], at % PAGE_SIZE] for at in range(end)]
        assert seen == tokens[:end], f"{sequence!r} found another's tokens in its pages"
        if end < len(sequence.tokens):
            return Result(work, None)
        rows = 1 + len(work.draft)
        said = [self._model(tokens[: end - rows + row + 1]) for row in range(rows)]
        logits = torch.zeros(rows, VOCAB)
        logits[range(rows), said] = 1.0
        highest = float("nan") if sequence.tokens[0] in self.nan_on else 1.0
        return Result(work, logits, said, [highest] * rows)
