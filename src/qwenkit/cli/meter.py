"""Counts tokens and times of a reply while it streams."""

from __future__ import annotations

import time
from collections.abc import Callable

from qwenkit.core.types import Delta, FinishReason


class Meter:
    """Sees every delta of one or more requests and says how fast they came.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._start = clock()
        self._first: float | None = None
        self._last = self._start
        self._seen = 0
        self._generated = 0
        self.prompt_tokens = 0
        self.finish_reason: FinishReason | None = None

    def see(self, delta: Delta) -> None:
        """Takes note of one delta."""
        self._last = self._clock()
        if self._first is None and (delta.token_ids or delta.text):
            self._first = self._last
        self._seen += len(delta.token_ids)
        if delta.usage is not None:
            self.prompt_tokens += delta.usage.prompt_tokens
            self._generated += delta.usage.completion_tokens
        if delta.finish_reason is not None:
            self.finish_reason = delta.finish_reason

    @property
    def generated_tokens(self) -> int:
        """Tokens generated; as reported at the end, or as seen when the reply was cut off."""
        return self._generated or self._seen

    @property
    def seconds(self) -> float:
        """From the start to the last delta."""
        return self._last - self._start

    @property
    def first_token_seconds(self) -> float:
        """From the start to the first token."""
        return (self._last if self._first is None else self._first) - self._start

    @property
    def tokens_per_second(self) -> float:
        """Tokens after the first one, over the time they took."""
        span = self._last - (self._start if self._first is None else self._first)
        return (self.generated_tokens - 1) / span if span > 0 and self.generated_tokens > 1 else 0.0

    def line(self, template: str) -> str:
        """Fills ``template`` with prompt, generated, rate and first."""
        return template.format(
            prompt=self.prompt_tokens,
            generated=self.generated_tokens,
            rate=self.tokens_per_second,
            first=self.first_token_seconds,
        )

    def to_dict(self) -> dict[str, float]:
        """The same numbers for programs."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.generated_tokens,
            "seconds": round(self.seconds, 4),
            "first_token_seconds": round(self.first_token_seconds, 4),
            "tokens_per_second": round(self.tokens_per_second, 2),
        }
