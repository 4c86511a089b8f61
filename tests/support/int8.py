"""Products with activations rounded to 8 bits: computed by the kernels, by their definition, and in small networks."""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from qwenkit.kernels import native
from qwenkit.kernels.packed import PackedWeight, pack_codes, unpack_codes
from qwenkit.kernels.panels import PanelWeight
from qwenkit.model.step import make_forward
from qwenkit.model.transformer import Span, Transformer
from tests.support.native_runs import Run
from tests.support.packed import Form, Store

ISAS = ("portable", "avx2", "avx512", "amx")
"""In the order of QkIsa."""
_SMALLEST = np.float32(1e-30)  # units without a larger number count as zero
Floats = NDArray[np.float32]


def isas_here() -> tuple[str, ...]:
    """The instruction sets that this CPU has; none without compiled kernels."""
    library = native.library()
    return () if library is None else ISAS[: library.qk_best_isa() + 1]


def random_weight(
    n: int, k: int, *, bits: int, group: int, levels: str, ordered: bool = False, seed: int = 0
) -> PackedWeight:
    """Random codes, scales and zeros or mins; ``levels`` is symmetric, zeros or mins."""
    random = torch.Generator().manual_seed(seed)
    shape = (n, -(-k // group))
    # A zero may be one more than the largest code of 4 bits.
    zeros = torch.randint(0, 17 if bits == 4 else 256, shape, dtype=torch.uint8, generator=random)
    scales = (torch.randn(shape, generator=random) * 0.02).half()
    mins = (torch.randn(shape, generator=random) * 0.1).half()
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, generator=random)
    return PackedWeight(
        bits=bits,
        group_size=group,
        shape=(n, k),
        codes=pack_codes(codes, bits),
        scales=scales,
        zeros=zeros if levels == "zeros" else None,
        mins=mins if levels == "mins" else None,
        order=torch.randperm(k, generator=random).int() if ordered else None,
    )


def panels_of(weight: PackedWeight) -> PanelWeight:
    """The weight in panels, which its shape must allow."""
    panels = PanelWeight.of(weight)
    assert panels is not None
    return panels


def product(panels: PanelWeight, x: Tensor, isa: str, *, threads: int = 1) -> Tensor:
    """The kernels' (tokens, rows) of one instruction set. Columns are taken as they lie, not in the weight's order."""
    library = native.library()
    assert library is not None
    assert x.is_contiguous()
    assert x.shape[1] == panels.shape[1]

    def address(tensor: Tensor | None) -> int | None:
        return None if tensor is None else tensor.data_ptr()

    matrix = native.Matrix(
        format=native.Format.PANEL4 if panels.bits == 4 else native.Format.PANEL8,
        rows=panels.shape[0],
        group=panels.group_size,
        data=address(panels.codes),
        scales=address(panels.scales),
        zeros=address(panels.zeros),
        mins=address(panels.mins),
    )
    out = torch.full((len(x), panels.shape[0]), 1e9)
    status = library.qk_int8_product(
        ctypes.byref(matrix), x.shape[1], x.data_ptr(), len(x), out.data_ptr(), threads, ISAS.index(isa)
    )
    assert status == 0
    return out


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Whether two float32 tensors are equal bit by bit; any NaN is as good as another."""
    return torch.equal(
        torch.where(a.isnan(), 0.0, a).view(torch.int32), torch.where(b.isnan(), 0.0, b).view(torch.int32)
    ) and torch.equal(a.isnan(), b.isnan())


def error_of(got: Tensor, expected: Tensor) -> float:
    """As a share, by the Frobenius norm."""
    return float((got - expected).norm() / expected.norm())


def _fma(a: Floats, b: Floats, c: Floats) -> Floats:
    """a b + c, rounded once to float32."""
    # The product is exact in float64. The sum is rounded to odd there, so that rounding again is as good as rounding once.
    term, rest = a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)
    total = term + rest
    other = total - term
    error = (term - (total - other)) + (rest - other)
    is_even = total.view(np.int64) % 2 == 0
    nudged = np.nextafter(total, np.copysign(np.inf, error))
    return np.where((error != 0) & is_even, nudged, total).astype(np.float32)


UNIT = 32
"""Inputs that share a scale of rounded activations."""


def _rounded(x: Floats) -> tuple[NDArray[np.int64], Floats]:
    """One unit of all tokens: its integers, and its scales."""
    most = np.abs(x).max(axis=1, keepdims=True)
    is_finite = np.isfinite(x).all(axis=1, keepdims=True)
    is_plain = is_finite & (most > _SMALLEST)
    inverse = np.where(is_plain, np.float32(127) / most, np.float32(0))
    codes = np.rint(np.where(is_plain, x, np.float32(0)) * inverse).astype(np.int64)
    wrong = np.where(is_finite, np.float32(0), np.float32(np.nan))
    return codes, np.where(is_plain, most / np.float32(127), wrong)


@np.errstate(all="ignore")
def defined_product(weight: PackedWeight, inputs: Tensor) -> Tensor:
    """What csrc/int8.h defines, operation by operation in float32: (tokens, rows)."""
    x, (n, k) = inputs.numpy(), weight.shape
    codes = unpack_codes(weight.codes, weight.bits).numpy().astype(np.int64)
    scales = weight.scales.float().numpy()
    middle = np.full(weight.scales.shape, 1 << weight.bits - 1)
    zeros = middle if weight.zeros is None else weight.zeros.numpy().astype(np.int64)
    total, unit = np.zeros((len(x), n), dtype=np.float32), UNIT
    for at in range(0, k, unit):
        here, group = slice(at, min(at + unit, k)), at // weight.group_size
        rounded, unit_scale = _rounded(x[:, here])
        sums = rounded.sum(axis=1, keepdims=True)
        integers = rounded @ codes[:, here].T
        if weight.mins is None:
            integers = integers - sums * zeros[:, group]
        total = _fma(integers.astype(np.float32), scales[:, group] * unit_scale, total)
        if weight.mins is not None:
            least = weight.mins.float().numpy()[:, group]
            total = _fma(least, unit_scale * sums.astype(np.float32), total)
    return torch.from_numpy(total)


def rounding_linear(x: Tensor, weight: PackedWeight | PanelWeight) -> Tensor:
    """x W^T in plain torch, the float32 inputs of weights in panels rounded to 8 bits."""
    if isinstance(weight, PackedWeight):
        return x @ weight.dequantise().T
    k, unit = weight.shape[1], UNIT
    order = torch.arange(k) if weight.order is None else weight.order.long()
    columns, out = x[..., order], torch.empty_like(x)
    for at in range(0, k, unit):
        piece = columns[..., at : at + unit]
        scale = piece.abs().amax(dim=-1, keepdim=True).clamp(min=1e-30) / 127
        out[..., order[at : at + unit]] = (piece / scale).round() * scale
    return out @ weight.dequantise().T


def in_panels(form: Form) -> Store:
    """Packs as the form says, then in panels."""
    return lambda weight: panels_of(form(weight))


def int8_run(model: Transformer, rows: list[int], **options: Any) -> Run:
    """A run in which all tokens' activations are rounded where weights are in panels."""
    run = Run(model, rows, **options)
    run.forward = make_forward(model, run.pool, "int8")
    return run


class Conversation(Run):
    """A run that says of every token whether it is of the prompt (the first given[row]) or was chosen by the model."""

    def __init__(self, model: Transformer, rows: list[int], given: Mapping[int, int], **options: Any) -> None:
        super().__init__(model, rows, **options)
        self.given = given

    def step(self, counts: dict[int, int]) -> None:
        ids, spans = self.planned(counts)
        out = self.forward(ids, spans, range(len(ids)))
        for row, part in zip(counts, out.split(list(counts.values())), strict=True):
            self.logits[row].append(part)

    def planned(self, counts: Mapping[int, int]) -> tuple[list[int], list[Span]]:
        """Ids and spans of the next counts[row] tokens of some rows."""
        ids, spans = [], []
        for row, count in counts.items():
            cache, adapter = self.caches[row], self.adapters[row]
            ids += self.ids[row][cache.length : cache.length + count]
            first = max(0, min(self.given[row] - cache.length, count))
            for part, generated in ((first, False), (count - first, True)):
                if part:
                    spans.append(Span(cache, part, adapter, generated))
        return ids, spans
