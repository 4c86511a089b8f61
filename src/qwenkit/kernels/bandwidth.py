"""How fast this machine's memory can be read: the limit of decoding, which reads every weight for every token.

Threads look for the largest number in a buffer far larger than the caches, which costs next to nothing besides reading;
the best of several passes counts, so that other programs disturb little. Knows nothing of models.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwenkit.core.errors import InputError
from qwenkit.kernels.cpu import available_memory
from qwenkit.kernels.native import MAX_THREADS

_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_LEAST = 1 << 30
_MOST = 4 << 30
_SMALLEST = 1 << 24
_MOST_PASSES = 50
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bandwidth:
    """A measured speed of reading memory."""

    bytes_per_second: float
    threads: int
    buffer_bytes: int
    """What each pass read."""


def read_bandwidth(
    threads: int, *, seconds: float = 0.8, buffer_bytes: int | None = None, passes: int = _MOST_PASSES
) -> Bandwidth:
    """Measures the speed of reading memory.

    Args:
        threads: how many read at once.
        seconds: passes end after this time; filling the buffer comes on top.
        buffer_bytes: what a pass reads; None: what is right for this machine.
        passes: at most so many, at least one.

    Raises:
        InputError: no threads, or too little memory to measure.
    """
    import numpy as np

    if not 1 <= threads <= MAX_THREADS:
        raise InputError(f"threads={threads} is not possible; use 1 to {MAX_THREADS}")
    size = buffer_size() if buffer_bytes is None else buffer_bytes
    if size < _SMALLEST:
        raise InputError(
            f"{size} bytes are too few to measure memory rather than caches; free at least {2 * _SMALLEST >> 20} MiB"
        )
    numbers = np.empty(size // 4, dtype=np.int32)
    pieces = np.array_split(numbers, threads)
    _together(_fill, pieces)  # pages that were never written are all the same one
    best, end = float("inf"), time.perf_counter() + seconds
    for number in range(passes):
        start = time.perf_counter()
        if number and start > end:
            break
        _together(_read, pieces)
        best = min(best, time.perf_counter() - start)
    return Bandwidth(bytes_per_second=numbers.nbytes / best, threads=threads, buffer_bytes=numbers.nbytes)


def buffer_size() -> int:
    """Bytes that are far more than the caches hold and no burden for the machine: four times the largest cache, at
    least 1 GiB, at most 4 GiB, and never more than half of the free memory."""
    wanted = min(max(_LEAST, 4 * largest_cache()), _MOST)
    return min(wanted, available_memory() // 2 or _LEAST)


def largest_cache() -> int:
    """Bytes of the processor's largest cache; 0 where the system does not say."""
    return max((_bytes(path) for path in _CACHES.glob("index*/size")), default=0)


def _bytes(path: Path) -> int:
    try:
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    digits = text.rstrip("KMG")
    return int(digits) * _UNITS.get(text[-1:], 1) if digits.isdigit() else 0


def _fill(piece: Any) -> None:
    piece.fill(1)


def _read(piece: Any) -> None:
    piece.max()  # numpy lets other threads run meanwhile


def _together(work: Callable[[Any], None], pieces: list[Any]) -> None:
    others = [threading.Thread(target=work, args=(piece,)) for piece in pieces[1:]]
    for thread in others:
        thread.start()
    work(pieces[0])
    for thread in others:
        thread.join()
