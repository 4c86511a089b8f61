"""GPTQ: codes of a matrix that make its outputs, not its weights, as near as possible to what they were.

After Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers" (2023), with
the parameters and defaults of AutoGPTQ. Pure functions of a weight and the Hessian of its inputs: knows nothing of
models, layers' names or files.

Shapes: N outputs, K inputs, G group size, g = ceil(K / G) groups, B columns of a block.

The paper works with the upper factor U of the inverse Hessian (U^T U = H^-1). Here H = R R^T with R upper, so U = R^-1 and
H is never inverted: with E = W - Q the output error is |E R|^2, and given the columns that are done (d) the best
weights of those that follow (f) are W_f + E_d R_df R_ff^-1, where any leading part of f needs only that part of R.
The codes are the same, the cost is half, and one ill-conditioned step less can fail.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.core.errors import InputError, NumericsError
from qwenkit.layers.packing import Quantised
from qwenkit.quantize.grid import GroupParams, group_params, group_width, split_groups, stored_scales

_LARGEST_DAMP = 1.0
_ROWS = 2048
"""Rows of the matrix whose block of columns stays near the processor."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GptqSettings:
    """How to quantise one matrix."""

    bits: int = 4
    """4 or 8"""
    group_size: int = 128
    """Inputs that share a scale; -1: all of a row"""
    symmetric: bool = True
    """Every zero is 2^(bits-1)"""
    desc_act: bool = False
    """Inputs with the largest activations first"""
    static_groups: bool = False
    """With desc_act: groups stay runs of neighbouring inputs, their scales those of the unchanged weight"""
    damp: float = 0.01
    """Added to the Hessian's diagonal, as a part of its mean"""
    block_size: int = 128
    """Columns between two updates of all that follow; groups smaller than that see the weight as of their block's start"""

    def __post_init__(self) -> None:
        if self.bits not in (4, 8):
            raise InputError(f"bits is {self.bits}; use 4 or 8")
        if self.group_size != -1 and self.group_size < 1:
            raise InputError(
                f"group_size is {self.group_size}; use a positive number, or -1 for one group per row"
            )
        if not 0 < self.damp <= _LARGEST_DAMP:
            raise InputError(
                f"damp is {self.damp}; use a number above 0 and at most {_LARGEST_DAMP}, usually 0.01"
            )
        if self.block_size < 1:
            raise InputError(f"block_size is {self.block_size}; use a positive number, usually 128")


class Hessian:
    """Second derivative of a linear layer's output error: 2/n times the sum of x^T x over the inputs of n sequences."""

    def __init__(self, columns: int, *, device: torch.device | str = "cpu") -> None:
        self.matrix = torch.zeros(columns, columns, device=device)
        """(K, K) float32"""
        self.sequences = 0
        """How many were added."""

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Counts the inputs of one sequence (T, K), or of several at once (B, T, K); any floating type."""
        columns = len(self.matrix)
        if x.ndim not in (2, 3) or x.shape[-1] != columns:
            raise InputError(
                f"inputs have shape {tuple(x.shape)}; give (tokens, {columns}) or (sequences, tokens, {columns})"
            )
        new = x.shape[0] if x.ndim == 3 else 1
        rows = x.reshape(-1, columns).to(self.matrix)
        # A running mean: the entries keep their size however many sequences come, so float32 is enough.
        total = self.sequences + new
        self.matrix.addmm_(rows.T, rows, beta=self.sequences / total, alpha=2 / total)
        self.sequences = total


@dataclass(frozen=True, slots=True, eq=False)
class GptqResult:
    """A quantised matrix and how well it went."""

    quantised: Quantised
    loss: float
    """Squared error of the outputs on the calibration inputs: summed over outputs and tokens, mean of the sequences"""
    damp: float
    """What was used: more than was asked for where the Hessian was not positive definite otherwise"""


@torch.no_grad()
def gptq(weight: Tensor, hessian: Tensor, settings: GptqSettings) -> GptqResult:
    """Quantises a matrix column by column, letting later columns make good the error of earlier ones.

    Inputs that were zero in all of the calibration get weight zero.

    Args:
        weight: (N, K), any floating type; not changed.
        hessian: (K, K) float32, :attr:`Hessian.matrix`; not changed.
        settings: how.

    Raises:
        InputError: shapes that do not belong together, or a Hessian of nothing.
        NumericsError: NaN or infinity, or no damping makes the Hessian positive definite.
    """
    _check(weight, hessian)
    columns = weight.t().to(torch.float32, memory_format=torch.contiguous_format, copy=True)  # (K, N)
    columns[hessian.diagonal() == 0] = 0
    width = group_width(settings.group_size, len(columns))
    natural = torch.arange(len(columns), device=weight.device)
    order, groups, static = natural, natural // width, None
    if settings.static_groups:
        static = _static_params(columns, width, settings)
    if settings.desc_act:
        order = torch.argsort(_live_diagonal(hessian), descending=True, stable=True)
        columns = columns[order]
        groups = groups if static is None else groups[order]
    factor, damp, added = _damped_factor(hessian, order, settings.damp)
    run = _Pass(columns, factor, groups, width, settings, static)
    for start in range(0, len(columns), settings.block_size):
        run.block(start, min(start + settings.block_size, len(columns)))
    # The factor is that of the damped Hessian: what damping added to the error is taken off again.
    loss = max(run.damped_loss - added * run.weight_loss, 0.0) / 2
    return GptqResult(run.result(order), loss, damp)


class _Pass:
    """One way through the columns (K, N), in the order they are to be quantised."""

    def __init__(
        self,
        columns: Tensor,
        factor: Tensor,
        groups: Tensor,
        width: int,
        settings: GptqSettings,
        static: GroupParams | None,
    ) -> None:
        self.columns = columns
        """(K, N), column by column replaced by its error W - Q"""
        self.factor = factor
        self.groups = groups
        self.width = width
        self.settings = settings
        self.is_static = static is not None
        if static is None:
            shape = (-(-len(columns) // width), columns.shape[1])
            static = GroupParams(columns.new_empty(shape), columns.new_empty(shape))
        self.params = static
        """(g, N) each"""
        self.codes = torch.empty(columns.shape, dtype=torch.uint8, device=columns.device)
        self.damped_loss = 0.0
        self.weight_loss = 0.0

    def block(self, start: int, end: int) -> None:
        """Quantises columns start to end."""
        seen = end if self.is_static else self._last_group_end(start, end)
        # What the errors so far do to these columns of E R, and the weights that make the best of it.
        carried = self.factor[:start, start:seen].T @ self.columns[:start]
        current = self.columns[start:seen].clone()
        if start:
            inner = self.factor[start:seen, start:seen]
            current += torch.linalg.solve_triangular(inner.T, carried, upper=False)
        if not self.is_static:
            self._fit_groups(current, start, end)
        inner = self.factor[start:end, start:end]
        errors = self.columns[start:end].sub_(self._quantise(current[: end - start], inner, start))
        self.damped_loss += _squares(carried[: end - start].addmm_(inner.T, errors))
        self.weight_loss += _squares(errors)

    def result(self, order: Tensor) -> Quantised:
        """The codes, put back into the inputs' own order."""
        codes = torch.empty_like(self.codes).index_copy_(0, order, self.codes)
        g_idx = torch.empty_like(self.groups).index_copy_(0, order, self.groups)
        return Quantised(
            bits=self.settings.bits,
            group_size=self.width,
            codes=codes.T.contiguous(),
            scales=self.params.scales.T.half().contiguous(),
            zeros=self.params.zeros.T.to(torch.uint8).contiguous(),
            g_idx=g_idx.int(),
        )

    def _last_group_end(self, start: int, end: int) -> int:
        """Where the last group ends that starts in this block, at least ``end``: its scale looks that far ahead."""
        last = (end - 1) // self.width * self.width
        return end if last < start else max(end, min(last + self.width, len(self.columns)))

    def _fit_groups(self, current: Tensor, start: int, end: int) -> None:
        """Scales and zeros of the groups that start in this block."""
        for group in range(-(-start // self.width), -(-end // self.width)):
            first = group * self.width - start
            fitted = _params(current[first : first + self.width].T, self.settings)
            self.params.scales[group], self.params.zeros[group] = fitted

    def _quantise(self, current: Tensor, factor: Tensor, start: int) -> Tensor:
        """(B, N): the block's weights on their grid, found for a few rows of the matrix at a time."""
        inverse = torch.linalg.solve_triangular(factor, torch.eye(len(factor)).to(factor), upper=True)
        # err_i = (w_i - q_i) / U_ii, and w_j loses err_i U_ij: divided beforehand, a column costs one product.
        steps = (inverse / inverse.diagonal().unsqueeze(1)).T.contiguous()
        groups = self.groups[start : start + len(current)].tolist()
        quantised = torch.empty_like(current)
        for first in range(0, current.shape[1], _ROWS):
            rows = slice(first, first + _ROWS)
            params = GroupParams(self.params.scales[:, rows], self.params.zeros[:, rows])
            with _one_thread():
                part = _columnwise(current[:, rows].contiguous(), steps, params, groups, self.settings.bits)
            self.codes[start : start + len(current), rows] = part[0]
            quantised[:, rows] = part[1]
        return quantised


def _columnwise(
    columns: Tensor, steps: Tensor, params: GroupParams, groups: list[int], bits: int
) -> tuple[Tensor, Tensor]:
    """Codes and what they stand for, both (B, R), of columns (B, R). The only loop over single columns."""
    top = (1 << bits) - 1
    codes, errors = torch.empty_like(columns), torch.empty_like(columns)
    for i, group in enumerate(groups):
        column, scale, zero = columns[i], params.scales[group], params.zeros[group]
        if i:
            column.addmv_(errors[:i].T, steps[i, :i], alpha=-1)
        code = torch.div(column, scale, out=codes[i]).round_().add_(zero).clamp_(0, top)
        quantised = (code - zero).mul_(scale)
        torch.sub(column, quantised, out=errors[i])
        column.copy_(quantised)
    return codes, columns


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Products of one column are too small to share out: threads would wait for each other longer than they work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _check(weight: Tensor, hessian: Tensor) -> None:
    k = weight.shape[-1]
    if weight.ndim != 2 or hessian.shape != (k, k):
        raise InputError(
            f"a weight {tuple(weight.shape)} and a Hessian {tuple(hessian.shape)} do not belong together; "
            "for (N, K) the Hessian is (K, K)"
        )
    if not weight.isfinite().all():
        raise NumericsError("the weight holds NaN or infinity; the checkpoint is damaged, fetch it again")
    if not hessian.isfinite().all():
        raise NumericsError(
            "the calibration inputs hold NaN or infinity; run the calibration in float32 or bfloat16"
        )
    if not hessian.diagonal().any():
        raise InputError("the Hessian is all zero: no calibration input reached this matrix; give more text")


def _static_params(columns: Tensor, width: int, settings: GptqSettings) -> GroupParams:
    """(g, N), of the weight in its own order."""
    fitted = _params(split_groups(columns.T, width), settings)
    return GroupParams(fitted.scales.T.contiguous(), fitted.zeros.T.contiguous())


def _params(groups: Tensor, settings: GptqSettings) -> GroupParams:
    scales, zeros = group_params(groups, bits=settings.bits, symmetric=settings.symmetric)
    return GroupParams(stored_scales(scales), zeros)


def _live_diagonal(hessian: Tensor) -> Tensor:
    """The diagonal, 1 for inputs that were always zero."""
    diagonal = hessian.diagonal()
    return diagonal.masked_fill(diagonal == 0, 1.0)


def _damped_factor(hessian: Tensor, order: Tensor, damp: float) -> tuple[Tensor, float, float]:
    """The upper R with R R^T = damped Hessian in that order, the damping used, and what it added to the diagonal.

    Damping doubles until the Hessian is positive definite in float32.
    """
    backward = order.flip(0)
    reversed_ = hessian[backward[:, None], backward].float()
    diagonal, undamped = reversed_.diagonal(), _live_diagonal(reversed_)
    mean = undamped.mean()
    while True:
        added = damp * mean
        diagonal.copy_(undamped + added)
        lower, failed = torch.linalg.cholesky_ex(reversed_)
        if not failed and lower.diagonal().isfinite().all():
            del reversed_, diagonal  # a third (K, K) beside the Hessian would be the peak of the whole run
            return lower.flip(0, 1), damp, added.item()
        if damp >= _LARGEST_DAMP:
            raise NumericsError(
                f"the Hessian is not positive definite even with damp {damp:g}; give more, or other, calibration text"
            )
        damp = min(2 * damp, _LARGEST_DAMP)


def _squares(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64).square())
