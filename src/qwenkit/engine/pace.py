"""What steps of so many tokens cost, measured as they run, and how far guessing pays at that price.

Some kernels take eight tokens in the time of one, others jump in between; a large model waits for its weights, a small one
computes. Nothing but measuring tells. Knows numbers alone.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from itertools import accumulate, chain

_FREE = 16  # before anything is known: a step costs as much as so many tokens, and its tokens on top
_VALID = 1000  # steps after which a measurement has to be made again
_FASTER, _SLOWER = (
    1 / 2,
    1 / 8,
)  # weight of a new measurement; whoever disturbs a step makes it slower, never faster


class Pace:
    """Seconds of steps by their number of tokens."""

    def __init__(self) -> None:
        self._seconds: dict[int, float] = {}
        self._noted: dict[int, int] = {}  # number of the step that was measured last
        self._sizes: list[int] = []  # what was measured, sorted
        self._steps = 0

    def note(self, tokens: int, seconds: float) -> None:
        """A step of so many tokens took so long."""
        self._steps += 1
        if seconds <= 0:
            return
        known = self._fresh(tokens)
        if tokens not in self._seconds:
            bisect.insort(self._sizes, tokens)
        if known is None:
            self._seconds[tokens] = seconds
        else:
            weight = _FASTER if seconds < known else _SLOWER
            self._seconds[tokens] = known + weight * (min(seconds, 3 * known) - known)
        self._noted[tokens] = self._steps

    def _fresh(self, tokens: int) -> float | None:
        """What was measured not too long ago."""
        is_fresh = self._steps - self._noted.get(tokens, -_VALID) < _VALID
        return self._seconds[tokens] if is_fresh else None

    def cost(self, tokens: int) -> float:
        """Expected seconds of such a step; for sizes that did not run lately, by those next to them, rather too few."""
        at = bisect.bisect_right(self._sizes, tokens)
        # As many tokens or fewer, the nearest first, then more.
        for i in chain(range(at - 1, -1, -1), range(at, len(self._sizes))):
            size = self._sizes[i]
            seconds = self._fresh(size)
            if seconds is not None:
                return seconds * (_FREE + tokens) / (_FREE + size)
        return float(_FREE + tokens)

    def worth(self, rows: int, gained: float, chances: Sequence[float]) -> int:
        """How many guesses to add to a step so that it brings most tokens a second.

        Args:
            rows: tokens the step computes without them.
            gained: new tokens it is expected to bring.
            chances: of each guess, that it and all before it are right.
        """
        best, rate = 0, gained / self.cost(rows)
        for count, more in enumerate(accumulate(chances), 1):
            if (gained + more) / self.cost(rows + count) > rate:
                best, rate = count, (gained + more) / self.cost(rows + count)
        return best
