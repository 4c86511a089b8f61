"""A weight matrix held as small integers: the one form in memory that every quantised file format becomes.

Weight (n, k) is ``scale * (code - zero)``, or ``scale * code + min``, with one scale and one zero or min per row and
group of inputs. Knows nothing of file formats or of how codes were chosen.

Shapes: N outputs, K inputs (a multiple of 32), g = ceil(K / group size) groups, of which the last may be shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

BLOCK = 32
"""Inputs whose 4-bit codes lie together in 16 bytes."""
_TILE = 1 << 18
"""Numbers that each thread of a CPU unpacks at once: few enough for its cache."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedWeight:
    """Codes of one matrix and what turns them into numbers. All tensors are contiguous."""

    bits: int
    """4 or 8"""
    group_size: int
    """Inputs that share a scale: a multiple of 16, or at least K."""
    shape: tuple[int, int]
    """(N, K)"""
    codes: Tensor
    """uint8. 8 bits: (N, K). 4 bits: (N, K / 2); byte j of a block of 32 inputs holds input j low and j + 16 high."""
    scales: Tensor
    """(N, g) float16"""
    zeros: Tensor | None = None
    """(N, g) uint8; None: 2^(bits - 1) everywhere, unless there are mins."""
    mins: Tensor | None = None
    """(N, g) float16, instead of zeros."""
    order: Tensor | None = None
    """(K,) int32: column j of the codes belongs to input order[j]; None: to input j."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.nbytes for t in self._tensors().values())

    @property
    def device(self) -> torch.device:
        """Where it lies."""
        return self.codes.device

    def to(self, device: torch.device) -> PackedWeight:
        """The same on a device."""
        return self._with({name: t.to(device) for name, t in self._tensors().items()})

    def rows(self, first: int, end: int) -> PackedWeight:
        """Rows ``first`` to ``end``, sharing memory."""
        return self._cut(slice(first, end))

    def select(self, rows: Tensor) -> PackedWeight:
        """The rows with these numbers, copied."""
        return self._cut(rows)

    def _cut(self, rows: slice | Tensor) -> PackedWeight:
        cut = {name: t[rows] for name, t in self._tensors().items() if name != "order"}
        return replace(self._with(cut), shape=(len(cut["codes"]), self.shape[1]))

    def _with(self, tensors: dict[str, Any]) -> PackedWeight:
        return replace(self, **tensors)

    def _tensors(self) -> dict[str, Tensor]:
        """Those that are there, by name."""
        named = {name: getattr(self, name) for name in ("codes", "scales", "zeros", "mins", "order")}
        return {name: tensor for name, tensor in named.items() if tensor is not None}

    def dequantise(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """(N, K), inputs in their own order; computed in float32, where scale times integer is exact."""
        n, k = self.shape
        out = torch.empty(n, k, dtype=dtype, device=self.device)
        step = max(1, _TILE * torch.get_num_threads() // k if self.device.type == "cpu" else n)
        for first in range(0, n, step):
            part, to = self.rows(first, first + step), out[first : first + step]
            if self.order is None:
                to.copy_(part._numbers())
            else:
                to.index_copy_(1, self.order.long(), part._numbers().to(dtype))
        return out

    def _numbers(self) -> Tensor:
        """(N, K) float32, columns as they lie."""
        k, size = self.shape[1], self.group_size
        numbers = unpack_codes(self.codes, self.bits).float()
        whole = k // size
        if whole:
            self._apply(torch.unflatten(numbers[:, : whole * size], 1, (whole, size)), slice(0, whole))
        if whole * size < k:
            self._apply(numbers[:, None, whole * size :], slice(whole, None))
        return numbers

    def _apply(self, numbers: Tensor, groups: slice) -> None:
        """Turns the codes (N, groups, size) into numbers, in place."""
        scales = self.scales[:, groups, None].float()
        if self.mins is not None:
            numbers.mul_(scales).add_(self.mins[:, groups, None].float())
        elif self.zeros is not None:
            numbers.sub_(self.zeros[:, groups, None]).mul_(scales)
        else:
            numbers.sub_(1 << (self.bits - 1)).mul_(scales)


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """(N, K) uint8, one code each, to the layout of PackedWeight.codes."""
    if bits == 8:
        return codes.contiguous()
    halves = torch.unflatten(codes, 1, (codes.shape[1] // BLOCK, 2, BLOCK // 2))
    return (halves[:, :, 0] | halves[:, :, 1] << 4).flatten(1)


def unpack_codes(codes: Tensor, bits: int) -> Tensor:
    """The layout of PackedWeight.codes to (N, K) uint8, one code each."""
    if bits == 8:
        return codes
    blocks = torch.unflatten(codes, 1, (2 * codes.shape[1] // BLOCK, BLOCK // 2))
    return torch.stack((blocks & 15, blocks >> 4), dim=2).flatten(1)


def stack_rows(parts: Sequence[PackedWeight]) -> PackedWeight | None:
    """The parts below one another as one matrix, or None where their forms do not allow it."""
    first = parts[0]
    for part in parts[1:]:
        same_form = (part.bits, part.group_size, part.shape[1]) == (
            first.bits,
            first.group_size,
            first.shape[1],
        )
        if not same_form or (part.mins is None) != (first.mins is None) or not _same_order(part, first):
            return None
    zeros = None
    if any(p.zeros is not None for p in parts):
        zeros = torch.cat([_explicit_zeros(p) for p in parts])
    return replace(
        first,
        shape=(sum(p.shape[0] for p in parts), first.shape[1]),
        codes=torch.cat([p.codes for p in parts]),
        scales=torch.cat([p.scales for p in parts]),
        zeros=zeros,
        mins=None if first.mins is None else torch.cat([p.mins for p in parts if p.mins is not None]),
    )


def _same_order(a: PackedWeight, b: PackedWeight) -> bool:
    if a.order is None or b.order is None:
        return a.order is b.order
    return torch.equal(a.order, b.order)


def _explicit_zeros(part: PackedWeight) -> Tensor:
    if part.zeros is not None:
        return part.zeros
    return torch.full_like(part.scales, 1 << (part.bits - 1), dtype=torch.uint8)
