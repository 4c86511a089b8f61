"""Guesses how a text goes on by looking up its last tokens in what was there before (prompt lookup).

Knows token ids alone. A guess costs a microsecond or two however long the text is, and nothing when it is not tried:
each is compared with the token that then comes, so that it is known where guesses are worth their price.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from itertools import accumulate
from operator import mul

SIZES = (4, 3, 2)
"""Tokens that have to be the same for a place to count; more tell more, so they are looked up first."""
_WEIGHT = 1 / 8  # of the newest comparison among those before


class Lookup:
    """Guesses for one text.

    Args:
        tokens: the text, in a list that grows elsewhere; what is in it never changes.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._read = array("q")  # what of the tokens is in the index
        self._ends: dict[bytes, int] = {}  # each run of tokens, and where its latest occurrence ends
        self._source = 0  # the text goes on as it did from here; 0: nothing is known
        self._size = 0  # tokens that were the same before that place
        self._hit_rates = dict(zip(SIZES, (0.7, 0.5, 0.3), strict=True))

    def chances(self, most: int) -> list[float]:
        """Of each of the next tokens, at most so many: how likely guesses are right up to it. Empty: there is none."""
        self._catch_up()
        if not self._source:
            return []
        # A guess that is right makes the run that is the same longer, so the next one has the rate of long runs.
        rates = [self._hit_rates[self._size], *[self._hit_rates[SIZES[0]]] * (most - 1)]
        return list(accumulate(rates[:most], mul))

    def guess(self, count: int) -> list[int]:
        """The next tokens, if the text goes on as it did after the latest place that ends in the same tokens."""
        self._catch_up()
        if not self._source:
            return []
        found = list(self._tokens[self._source : self._source + count])
        for at in range(
            count - len(found)
        ):  # the place reaches the end of the text: what repeats, goes on repeating
            found.append(found[at])
        return found

    def _catch_up(self) -> None:
        is_prompt = not self._read  # it was not written by the model, so it tells nothing about guesses
        for token in self._tokens[len(self._read) :]:
            if self._source and not is_prompt:
                rate = self._hit_rates[self._size]
                hit = token == self._tokens[self._source]
                self._hit_rates[self._size] = rate + (hit - rate) * _WEIGHT
            self._read.append(token)
            self._look_up()

    def _look_up(self) -> None:
        """Finds where the text so far goes on, and lets later ends find this one."""
        end = len(self._read)
        self._source = 0
        for size in SIZES:
            if size > end:
                continue
            key = self._read[end - size :].tobytes()  # sizes differ in length, so they share one dictionary
            if not self._source and key in self._ends:
                self._source, self._size = self._ends[key], size
            self._ends[key] = end
