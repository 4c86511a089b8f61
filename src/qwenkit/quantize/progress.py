"""How far a quantisation run is, and how much longer it will take. Knows nothing of what it does."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a run is."""

    layer: int
    """The block at work, or just done; from 0."""
    num_layers: int
    linear: str | None
    """What was just quantised; None: the whole block is done."""
    error: float
    """Relative squared error of it; of a whole block, the mean of its matrices."""
    seconds: float
    """Since the run began."""
    remaining: float | None
    """Seconds still to go, as it looks; None: not known yet."""
    rate: float | None
    """Calibration tokens a second that a block takes; None: not known yet, or no calibration."""
    memory: int
    """Most bytes this process has held."""


OnProgress = Callable[[Progress], None]


class Clock:
    """Tells whoever listens how far the work is.

    Args:
        num_layers: blocks in all.
        tokens: calibration tokens that each block takes.
        listener: told of every matrix and every block.
    """

    def __init__(self, num_layers: int, tokens: int, listener: OnProgress | None) -> None:
        self._num_layers, self._tokens, self._listener = num_layers, tokens, listener
        self._started = self._first_at = time.perf_counter()
        self._first: int | None = None

    def begin(self, layer: int) -> None:
        """Work on a block begins."""
        if self._first is None:
            self._first, self._first_at = layer, time.perf_counter()

    def tell(self, layer: int, linear: str | None, error: float) -> None:
        """Something is done."""
        if self._listener is None or self._first is None:
            return
        now = time.perf_counter()
        done = layer - self._first + (linear is None)
        pace = (now - self._first_at) / done if done else None
        self._listener(
            Progress(
                layer=layer,
                num_layers=self._num_layers,
                linear=linear,
                error=error,
                seconds=now - self._started,
                remaining=None if pace is None else pace * (self._num_layers - self._first - done),
                rate=self._tokens / pace if pace and self._tokens else None,
                memory=peak_memory(),
            )
        )


def peak_memory() -> int:
    """Most bytes this process has held."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
