"""A quantised block as files hold it: the network's fused matrices under the family's names, packed; and back.

Knows nothing of how codes were chosen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from qwenkit.config.families import Family
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError, NumericsError
from qwenkit.kernels.packed import PackedWeight
from qwenkit.layers import packing
from qwenkit.layers.packing import Quantised
from qwenkit.layers.packing_checks import gemv_words
from qwenkit.model.transformer import Layer
from qwenkit.quantize.blocks import LINEARS, set_weight, weight_of
from qwenkit.quantize.methods import LinearResult
from qwenkit.quantize.recipe import Recipe
from qwenkit.quantize.report import LayerError
from qwenkit.weights.plan import stored_rows

DENSE = torch.float16
"""Type of everything that is not packed: the one that every reader of these formats computes in."""

_Tensors: TypeAlias = Mapping[str, Tensor]

_PACK: Mapping[str, Callable[[Quantised], dict[str, Tensor]]] = {
    "gptq": lambda q: packing.to_gptq(q, version=1),
    "gptq_v2": lambda q: packing.to_gptq(q, version=2),
    "awq-gemm": packing.to_awq_gemm,
    "awq-gemv": packing.to_awq_gemv,
}
_UNPACK: Mapping[str, Callable[[_Tensors, Recipe, str], PackedWeight]] = {
    "gptq": lambda t, r, name: packing.from_gptq(t, bits=r.bits, version=1, name=name),
    "gptq_v2": lambda t, r, name: packing.from_gptq(t, bits=r.bits, version=2, name=name),
    "awq-gemm": lambda t, r, name: packing.from_awq_gemm(t, group_size=r.group_size, name=name),
    "awq-gemv": lambda t, r, name: packing.from_awq_gemv(t, group_size=r.group_size, name=name),
}


class BlockFormat:
    """How the blocks of one model are stored.

    Args:
        family: whose names the files use.
        config: of the network.
        recipe: layout, bits and group size.

    Raises:
        InputError: a matrix does not fit the layout.
    """

    def __init__(self, family: Family, config: ModelConfig, recipe: Recipe) -> None:
        self._family, self._config, self._recipe = family, config, recipe
        with torch.device("meta"):
            block = Layer(config, 0)
        self.shapes = {name: tuple(weight.shape) for name, weight in block.named_parameters()}
        """Of every parameter of a block."""
        for linear in LINEARS:
            for module, rows in self.modules(linear, 0):
                self._check(module, rows.stop - rows.start, self.shapes[f"{linear}.weight"][1])

    @property
    def separate_values(self) -> bool:
        """Whether the value projection is a matrix of its own."""
        return len(self._family.tensors["layers.{i}.attn.qkv.weight"]) == 3

    @property
    def nbytes(self) -> int:
        """About what one block takes on disk."""
        bits, total = self._recipe.bits, 0
        order = 0 if self._recipe.is_awq_file else 4  # bytes of g_idx per input
        for name, (rows, *columns) in self.shapes.items():
            width = columns[0] if columns else 1
            is_packed = name.removesuffix(".weight") in LINEARS
            packed = rows * (width * bits + self._groups(width) * (16 + bits)) // 8 + order * width
            total += packed if is_packed else 2 * rows * width
        return total

    def _groups(self, columns: int) -> int:
        """Groups of a row, those included that only fill it up."""
        size = self._recipe.group_size
        if self._recipe.file_layout == "awq-gemv":
            return 8 * (gemv_words(columns, size) or 0)
        return 1 if size == -1 else -(-columns // size)

    def modules(self, linear: str, index: int) -> Iterator[tuple[str, slice]]:
        """The modules that a linear of block ``index`` is stored as, and their rows."""
        for name, rows in self._parts(f"{linear}.weight", index):
            yield name.removesuffix(".weight"), rows

    def tensors(self, block: Layer, index: int, results: Mapping[str, LinearResult]) -> dict[str, Tensor]:
        """Everything that the files hold of a block.

        Raises:
            NumericsError: a norm or bias has values that float16 cannot hold.
        """
        out: dict[str, Tensor] = {}
        for name, weight in block.named_parameters():
            result = results.get(name.removesuffix(".weight"))
            for stored, rows in self._parts(name, index):
                if result is None:
                    out[stored] = _half(stored, weight.data[rows])
                    continue
                module = stored.removesuffix(".weight")
                packed = _PACK[self._recipe.file_layout](_rows(result.quantised, rows))
                out |= {f"{module}.{suffix}": tensor for suffix, tensor in packed.items()}
        return out

    def errors(self, index: int, results: Mapping[str, LinearResult]) -> list[LayerError]:
        """What quantisation did to each stored module of a block."""
        out = []
        for linear, result in results.items():
            for module, rows in self.modules(linear, index):
                error, size = float(result.error[rows].sum()), float(result.size[rows].sum())
                share = (rows.stop - rows.start) / len(result.error)
                out.append(
                    LayerError(
                        name=module,
                        error=error / size if size > 0 else 0.0,
                        loss=error if result.is_measured else None,
                        seconds=result.seconds * share,
                    )
                )
        return out

    def block(self, index: int, tensors: _Tensors) -> Layer:
        """Block ``index`` in float32, as its files say."""
        with torch.device("meta"):
            block = Layer(self._config, index)
        for name in self.shapes:
            parts = [self._numbers(stored, tensors) for stored, _ in self._parts(name, index)]
            set_weight(block, name, torch.cat(parts))
        for linear in LINEARS:
            assert weight_of(block, linear).shape == self.shapes[f"{linear}.weight"]
        return block.eval()

    def _numbers(self, stored: str, tensors: _Tensors) -> Tensor:
        if stored in tensors:
            return tensors[stored].float()
        module = stored.removesuffix("weight")
        suffixes = ("qweight", "qzeros", "scales", "g_idx")
        packed = {s: tensors[module + s] for s in suffixes if module + s in tensors}
        return _UNPACK[self._recipe.file_layout](packed, self._recipe, module.rstrip(".")).dequantise()

    def _parts(self, name: str, index: int) -> Iterator[tuple[str, slice]]:
        rows = self.shapes[name][0]
        return stored_rows(self._family.tensors, self._config, f"layers.{index}.{name}", rows)

    def _check(self, module: str, rows: int, columns: int) -> None:
        recipe = self._recipe
        multiple = 8 if recipe.is_awq_file else 32
        if rows % multiple or columns % 32:
            raise InputError(
                f"{module} has {rows} outputs and {columns} inputs; the {recipe.file_layout} format needs multiples of "
                f"{multiple} and 32, so this model cannot be stored in it"
            )
        if recipe.is_awq_file and columns % recipe.group_size:
            raise InputError(
                f"group_size={recipe.group_size} does not divide the {columns} inputs of {module}, which the "
                f"{recipe.file_layout} format needs; use --group-size {self._dividing()} or --format gptq"
            )

    def _dividing(self) -> str:
        """The usual group sizes that every matrix allows."""
        columns = [self.shapes[f"{linear}.weight"][1] for linear in LINEARS]
        return " or ".join(str(g) for g in (32, 64, 128) if not any(k % g for k in columns))


def _rows(quantised: Quantised, rows: slice) -> Quantised:
    cut = {name: getattr(quantised, name)[rows] for name in ("codes", "scales", "zeros")}
    return dataclasses.replace(quantised, **cut)


def _half(name: str, values: Tensor) -> Tensor:
    out = values.to(DENSE)
    if not torch.isfinite(out).all():
        raise NumericsError(f"tensor {name!r} holds numbers beyond 65504, which float16 cannot hold")
    return out
