"""Puts sequences of many lengths into rows of one length with little room left over. Knows nothing of tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

import numpy as np

from qwenkit.core.errors import InputError


def pack(lengths: Sequence[int], max_length: int, *, seed: int = 0) -> list[list[int]]:
    """Which sequences share a row: best fit, the longest first.

    Args:
        lengths: of the sequences, each from 1 to ``max_length``.
        max_length: room in a row.
        seed: which sequences of one length meet, and the order of the rows.

    Returns:
        Indices into ``lengths`` for each row; every sequence is in one row.

    Raises:
        InputError: a sequence is empty or longer than a row.
    """
    sizes = np.asarray(lengths, np.int64)
    if sizes.size and not (sizes.min() >= 1 and sizes.max() <= max_length):
        raise InputError(
            f"sequences of {sizes.min()} to {sizes.max()} tokens do not fit into rows of {max_length}; cut or drop them"
        )
    random = np.random.default_rng(seed)
    shuffled = random.permutation(len(sizes))
    order = shuffled[np.argsort(-sizes[shuffled], kind="stable")]
    rows: list[list[int]] = []
    room = _Room()
    for index, size in zip(order.tolist(), sizes[order].tolist(), strict=True):
        row, left = room.take(size)
        if row is None:
            row, left = len(rows), max_length
            rows.append([])
        rows[row].append(index)
        if left > size:
            room.put(row, left - size)
    return [rows[n] for n in random.permutation(len(rows)).tolist()]


class _Room:
    """Rows by the room left in them. There are few different rooms, so a sorted list finds the tightest quickly."""

    def __init__(self) -> None:
        self._sizes: list[int] = []
        self._rows: dict[int, list[int]] = {}

    def put(self, row: int, left: int) -> None:
        """Offers a row that has room left."""
        if left not in self._rows:
            insort(self._sizes, left)
            self._rows[left] = []
        self._rows[left].append(row)

    def take(self, size: int) -> tuple[int | None, int]:
        """The row with the least room that is enough, and that room; None: no row has enough."""
        at = bisect_left(self._sizes, size)
        if at == len(self._sizes):
            return None, 0
        left = self._sizes[at]
        rows = self._rows[left]
        row = rows.pop()
        if not rows:
            del self._rows[left], self._sizes[at]
        return row, left
