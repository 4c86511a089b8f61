"""A packed weight rearranged for the CPU kernels: sixteen rows side by side, so that one read holds codes of all of them.

The numbers are those of a PackedWeight, and so is the size. Knows nothing of where weights come from.

Shapes: N outputs (a multiple of 16), K inputs (a multiple of 32), g groups, P = N / 16 panels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from qwenkit.kernels.packed import BLOCK, PackedWeight

ROWS = 16
"""Rows of a panel."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PanelWeight:
    """The tensors of a PackedWeight in panels. All are contiguous."""

    bits: int
    """4 or 8"""
    group_size: int
    """Inputs that share a scale: a multiple of 32, or at least K."""
    shape: tuple[int, int]
    """(N, K)"""
    codes: Tensor
    """uint8. 8 bits: (P, K / 32, 8, 16, 4), inputs / 4, row, input % 4. 4 bits: (P, K / 32, 4, 16, 4), of 32 inputs the
    first sixteen in the low halves and the last in the high ones."""
    scales: Tensor
    """(P, g, 16) float16"""
    zeros: Tensor | None = None
    """(P, g, 16) uint8; None: 2^(bits - 1) everywhere, unless there are mins."""
    mins: Tensor | None = None
    """(P, g, 16) float16, instead of zeros."""
    order: Tensor | None = None
    """(K,) int32, as in PackedWeight."""

    @classmethod
    def of(cls, weight: PackedWeight, empty: Callable[..., Tensor] = torch.empty) -> PanelWeight | None:
        """The same weight in panels, or None where its shape does not allow it.

        Args:
            weight: stays as it is.
            empty: makes a tensor of a shape and ``dtype``.
        """
        room = cls.room(weight, weight.shape[0], empty)
        if room is not None:
            room.put(weight, 0)
        return room

    @classmethod
    def room(
        cls, piece: PackedWeight, rows: int, empty: Callable[..., Tensor] = torch.empty
    ) -> PanelWeight | None:
        """Unfilled panels for a matrix of ``rows`` rows, or None where the shape does not allow it.

        Args:
            piece: some of its rows, for the form and the order of the inputs.
            rows: how many there will be.
            empty: makes a tensor of a shape and ``dtype``.
        """
        k = piece.shape[1]
        whole_groups = piece.group_size % BLOCK == 0 or piece.group_size >= k
        if rows % ROWS or k % BLOCK or not whole_groups or piece.device.type != "cpu":
            return None
        panels = rows // ROWS

        def groups(like: Tensor) -> Tensor:
            return empty((panels, like.shape[1], ROWS), dtype=like.dtype)

        return cls(
            bits=piece.bits,
            group_size=piece.group_size,
            shape=(rows, k),
            codes=empty((panels, k // BLOCK, piece.bits, ROWS, 4), dtype=torch.uint8),
            scales=groups(piece.scales),
            zeros=None if piece.zeros is None else groups(piece.zeros),
            mins=None if piece.mins is None else groups(piece.mins),
            order=piece.order,
        )

    def put(self, piece: PackedWeight, first: int) -> None:
        """Fills the rows from ``first`` on, a multiple of 16, with a piece of that many rows of the same form."""
        at, panels = first // ROWS, piece.shape[0] // ROWS
        words = piece.codes.view(torch.int32).view(panels, ROWS, -1)  # (P, 16, K / 32 * bits)
        _turn(words, self.codes[at : at + panels].view(torch.int32).view(panels, -1, ROWS))
        for groups, places in (
            (piece.scales, self.scales),
            (piece.zeros, self.zeros),
            (piece.mins, self.mins),
        ):
            place = None if places is None else places[at : at + panels]
            if place is not None and groups is None:
                place.fill_(1 << (self.bits - 1))
            elif place is not None and groups is not None:
                _turn(torch.unflatten(groups, 0, (panels, ROWS)), place)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        tensors = (self.codes, self.scales, self.zeros, self.mins, self.order)
        return sum(t.nbytes for t in tensors if t is not None)

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.codes.device

    def rows(self, first: int, end: int) -> PackedWeight:
        """Rows ``first`` to ``end``, copied."""
        end = min(end, self.shape[0])
        from_panel, to_panel = first // ROWS, -(-end // ROWS)
        whole = self._unpanelled(slice(from_panel, to_panel))
        return whole.rows(first - from_panel * ROWS, end - from_panel * ROWS)

    def select(self, rows: Tensor) -> PackedWeight:
        """The rows with these numbers, copied."""
        panels, at = torch.unique(rows // ROWS, return_inverse=True)
        return self._unpanelled(panels).select(at * ROWS + rows % ROWS)

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, K), inputs in their own order."""
        return self._unpanelled(slice(None)).dequantise(dtype)

    def _unpanelled(self, panels: slice | Tensor) -> PackedWeight:
        codes = self.codes[panels]
        n, k = len(codes) * ROWS, self.shape[1]
        return PackedWeight(
            bits=self.bits,
            group_size=self.group_size,
            shape=(n, k),
            codes=codes.permute(0, 3, 1, 2, 4).reshape(n, k * self.bits // 8),
            scales=_in_rows(self.scales[panels]),
            zeros=None if self.zeros is None else _in_rows(self.zeros[panels]),
            mins=None if self.mins is None else _in_rows(self.mins[panels]),
            order=self.order,
        )


def _turn(source: Tensor, out: Tensor) -> None:
    """(P, 16, n) into (P, n, 16); by numpy, which leaves the other threads alone and copies small words faster."""
    np.copyto(out.numpy(), source.numpy().transpose(0, 2, 1))


def _in_rows(groups: Tensor) -> Tensor:
    """(P, g, 16) -> (N, g)"""
    return groups.transpose(1, 2).flatten(0, 1).contiguous()
