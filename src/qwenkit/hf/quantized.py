"""A linear layer over the tensors of a GPTQ or AWQ checkpoint, frozen, through which gradients flow to its inputs.

The tensors stay as the files have them, so that saving gives the same files back. Numbers are made of them for one
product at a time and never kept. Knows nothing of files or models.

Shapes: N outputs, K inputs, g groups.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qwenkit.core.errors import CheckpointError, InputError
from qwenkit.hf.unpacking import Layout, dequantised
from qwenkit.layers.packing_checks import check_even_groups, check_size, checked_groups, gemv_words, grouping

_NO_ASSIGNMENT = (
    "the weights of a quantised layer are made of its codes and cannot be replaced, as merging an adapter would; keep "
    "the adapter apart, or dequantise the model first (model.dequantize())"
)


class FrozenWeight(Tensor):
    """Numbers made of codes. Results of operations are plain tensors; changing it would change nothing, so it refuses."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _is_hf_initialized = True

    @property
    def data(self) -> Tensor:
        """The same numbers as a plain tensor."""
        return self.detach().as_subclass(Tensor)

    @data.setter
    def data(self, value: Tensor) -> None:
        raise InputError(_NO_ASSIGNMENT)


class PackedLinear(nn.Linear):
    """x W^T + b with W as packed integers that are not trained.

    Computes in the type of x, or of autocast. The backward pass makes the numbers a second time rather than keeping them.

    Args:
        in_features: K
        out_features: N
        kind: gptq, gemm or gemv
        bits: 4 or 8
        group_size: inputs per scale as the configuration says, -1: all; None: it does not, so that shapes must.
        groups: g
        version: gptq: 1: zeros are stored less one; 2: as they are.
        bias: whether there is one.
        with_g_idx: gptq: whether the group of each input is stored.
        desc_act: gptq: what the configuration says. False: a g_idx of zeros alone counts as absent.
        dtype: of the bias, and of what ``weight`` gives.
        scales_dtype: as stored.
        device: where.
        name: for messages.

    Raises:
        CheckpointError: the layout cannot hold such a matrix.
    """

    # transformers: there is nothing to initialise.
    _is_hf_initialized = True
    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    g_idx: Tensor | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        kind: str,
        bits: int,
        group_size: int | None,
        groups: int,
        version: int = 1,
        bias: bool = False,
        with_g_idx: bool = False,
        desc_act: bool | None = None,
        dtype: torch.dtype = torch.float32,
        scales_dtype: torch.dtype = torch.float16,
        device: torch.device | str | None = None,
        name: str = "the layer",
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, out_features
        self.compute_dtype, self.name = dtype, name
        self._group_size, self._desc_act = group_size, desc_act
        size = in_features if group_size in (None, -1) else group_size
        self.layout = Layout(kind=kind, bits=bits, group_size=size or 0, version=version)
        shapes = stored_shapes(self.layout, in_features, out_features, groups=groups, name=name)
        for suffix, shape in shapes.items():
            stored = scales_dtype if suffix == "scales" else torch.int32
            self.register_buffer(suffix, torch.zeros(shape, dtype=stored, device=device))
        g_idx = torch.zeros(in_features, dtype=torch.int32, device=device) if with_g_idx else None
        self.register_buffer("g_idx", g_idx)
        empty = nn.Parameter(torch.zeros(out_features, dtype=dtype, device=device)) if bias else None
        self.register_parameter("bias", empty)
        self._is_prepared = False
        self._order: Tensor | None = None
        self._place: Tensor | None = None

    @property
    def weight(self) -> Tensor:
        """(N, K) in ``compute_dtype``, made anew every time; it cannot be assigned to."""
        return self.dequantise(self.compute_dtype).as_subclass(FrozenWeight)

    @weight.setter
    def weight(self, value: Tensor) -> None:
        raise InputError(_NO_ASSIGNMENT)

    def dequantise(self, dtype: torch.dtype) -> Tensor:
        """(N, K), inputs in their own order."""
        rows = self._matrix(dtype)
        return (rows if self._place is None else rows.index_select(0, self._place)).t().contiguous()

    def forward(self, input: Tensor) -> Tensor:
        """(..., K) -> (..., N)"""
        kind = input.device.type
        if input.dtype != torch.float64 and torch.is_autocast_enabled(kind):
            input = input.to(torch.get_autocast_dtype(kind))
        out: Tensor = _Product.apply(input, self)  # type: ignore[no-untyped-call]
        return out if self.bias is None else out + self.bias.to(out.dtype)

    def extra_repr(self) -> str:
        """Sizes and format."""
        group = self.layout.group_size
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, "
            f"{self.layout.kind}, bits={self.layout.bits}, group_size={group}"
        )

    def prepare(self) -> None:
        """Checks the tensors and finds the order of the inputs; done by itself before the first product.

        Raises:
            CheckpointError: the tensors do not fit one another, or hold what cannot be read.
        """
        if not bool(torch.isfinite(self.scales).all()):
            raise CheckpointError(
                f"{self.name}.scales holds infinity or NaN; fetch the file again or quantise the model again"
            )
        self._order = self._place = None
        if self.layout.kind == "gptq":
            size, order = self._grouping()
            self.layout = replace(self.layout, group_size=size)
            if order is not None:
                self._order = order.long()
                self._place = torch.argsort(self._order)
        self._is_prepared = True

    def _grouping(self) -> tuple[int, Tensor | None]:
        columns, groups, name = self.in_features, len(self.scales), self.name
        g_idx = self.g_idx
        if g_idx is not None:
            g_idx = checked_groups(g_idx, columns=columns, groups=groups, name=name)
            if self._desc_act is False and groups > 1 and not g_idx.any():
                g_idx = None
        return grouping(g_idx, columns=columns, groups=groups, group_size=self._group_size, name=name)

    @torch.no_grad()
    def _matrix(self, dtype: torch.dtype) -> Tensor:
        """(K, N), inputs in the order of their groups."""
        if not self._is_prepared:
            self.prepare()
        return dequantised(self.layout, self.qweight, self.qzeros, self.scales, self._order, dtype)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PackedLinear:
        scales = self.scales
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.compute_dtype = fn(torch.empty(0, dtype=self.compute_dtype, device=scales.device)).dtype
        if self.scales.dtype != scales.dtype:  # a part of the codes, whatever type the model computes in
            self.scales = scales.to(self.scales.device)
        self._is_prepared = False
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        self._is_prepared = False
        super()._load_from_state_dict(*args, **kwargs)


def stored_shapes(
    layout: Layout, in_features: int, out_features: int, *, groups: int, name: str
) -> dict[str, tuple[int, int]]:
    """Shapes of qweight, qzeros and scales.

    Raises:
        CheckpointError: the layout cannot hold such a matrix.
    """
    k, n, bits = in_features, out_features, layout.bits
    check_size(name, k, n, outputs_multiple=32 if layout.kind == "gptq" else 8)
    if layout.kind == "gptq":
        return {"qweight": (k * bits // 32, n), "qzeros": (groups, n * bits // 32), "scales": (groups, n)}
    check_even_groups(k, layout.group_size, name)
    if layout.kind == "gemm":
        groups = k // layout.group_size
        return {"qweight": (k, n // 8), "qzeros": (groups, n // 8), "scales": (groups, n)}
    words = gemv_words(k, layout.group_size)
    if words is None:
        raise CheckpointError(
            f"{name} has groups of {layout.group_size} inputs; the GEMV layout of AWQ has 32, 64, or 128 and more, "
            "so compare group_size in the configuration with the file"
        )
    return {"qweight": (n, k // 8), "qzeros": (n, words), "scales": (n, 8 * words)}


class _Product(torch.autograd.Function):
    """x W^T; the gradient of x is that of the output times W, and W has none."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: PackedLinear) -> Tensor:
        ctx.layer = layer
        matrix = layer._matrix(x.dtype)
        return (x if layer._order is None else x.index_select(-1, layer._order)) @ matrix

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        layer: PackedLinear = ctx.layer
        grad = grads[0] @ layer._matrix(grads[0].dtype).t()
        return (grad if layer._place is None else grad.index_select(-1, layer._place)), None
