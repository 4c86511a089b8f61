"""Packed matrices in checkpoints: how each one is stored, seen from the headers, and reading it into PackedWeight.

Folders name a packed matrix by several tensors (qweight, qzeros, scales, g_idx); GGUF files by its block type.
Knows nothing of the network that the matrices belong to.

Shapes: N outputs, K inputs, g groups of inputs that share a scale.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.config.quant import QuantConfig
from qwenkit.core.errors import CheckpointError, UnsupportedModelError
from qwenkit.kernels.packed import BLOCK, PackedWeight
from qwenkit.kernels.panels import ROWS
from qwenkit.layers import packing
from qwenkit.layers.packing_gguf import from_gguf
from qwenkit.weights.files import TensorInfo, TensorStore
from qwenkit.weights.gguf import GgufFile

_log = logging.getLogger("qwenkit")
_CHUNK = (
    2**20
)  # weights that are read and converted at once where rows can be read apart: they stay in the cache
_VERSIONS = {"gptq": 1, "gptq_v2": 2}
BITS_IN_GGUF = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
"""Of the block types that stay packed."""
ROUNDED = "rounded"
"""Form.layout of a matrix that is stored as numbers and rounded to 8 bits while it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a matrix is stored, and what it will hold in memory."""

    layout: str
    """gptq, gemm or gemv (AWQ), a block type of GGUF, or ROUNDED"""
    bits: int
    groups: int
    """g"""
    group_size: int | None = None
    """As the configuration says; None: it does not."""
    has_zeros: bool = False
    has_mins: bool = False
    is_sorted: bool = False
    """Inputs were put in the order of their groups."""

    def nbytes(self, rows: int, columns: int) -> int:
        """Memory of a matrix (rows, columns)."""
        per_group = 2 + self.has_zeros + 2 * self.has_mins
        return rows * (columns * self.bits // 8 + self.groups * per_group) + 4 * columns * self.is_sorted


def seen_quant(path: Path, tensors: Mapping[str, TensorInfo]) -> QuantConfig | None:
    """What the shapes of packed matrices say where the configuration is silent; None: there are none.

    Raises:
        CheckpointError: no way of storing packed matrices has these shapes.
    """
    name = next((name for name in tensors if name.endswith(".qweight")), None)
    if name is None:
        return None
    module = name.removesuffix(".qweight")
    words, zeros, scales = (
        _shape(tensors, f"{module}.{suffix}") for suffix in ("qweight", "qzeros", "scales")
    )
    if {len(words), len(zeros), len(scales)} == {2} and all((*words, *zeros, *scales)):
        if words[0] == scales[0]:
            size = _gemv_group_size(scales[1] // 8, words[1] * 8)
            return QuantConfig(method="awq", bits=4, group_size=size, layout="gemv")
        if words[1] * 8 == scales[1]:
            return QuantConfig(method="awq", bits=4, group_size=words[0] // scales[0], layout="gemm")
        if words[1] == scales[1]:
            return QuantConfig(method="gptq", bits=32 * zeros[1] // scales[1])
    raise CheckpointError(
        f"{path} has no quantization_config, and tensor {name!r} is packed in a way that does not show in its shape; fetch the model's config.json again"
    )


def _gemv_group_size(words: int, columns: int) -> int:
    """Words of zeros per row are padded to a multiple that tells the group size."""
    per_128 = -(-columns // 1024)
    return {2 * per_128: 64, 4 * per_128: 32}.get(words, 128)


def form_in_folder(
    path: Path,
    tensors: Mapping[str, TensorInfo],
    module: str,
    shape: tuple[int, int],
    quant: QuantConfig | None,
) -> Form:
    """How the packed matrix (N, K) of a module is stored.

    Raises:
        UnsupportedModelError: it is quantised in a way that cannot be run.
    """
    if quant is None or quant.method not in ("gptq", "awq") or quant.bits not in (4, 8):
        raise UnsupportedModelError(
            f"{path} is quantised as {quant}, which cannot be run; use a GPTQ (4 or 8 bit), AWQ (4 bit), bf16 or fp16 version of the model"
        )
    scales, columns = _shape(tensors, f"{module}.scales"), shape[1]
    layout = "gptq" if quant.method == "gptq" else quant.layout or "gemm"
    groups = scales[0] if scales else 1
    if layout == "gemv":
        size = quant.group_size or -1
        groups = max(columns // (columns if size == -1 else size), 1)
    return Form(
        layout=layout,
        bits=quant.bits,
        groups=groups,
        group_size=quant.group_size,
        has_zeros=layout != "gptq" or not quant.symmetric,
        is_sorted=quant.desc_act,
    )


def _shape(tensors: Mapping[str, TensorInfo], name: str) -> tuple[int, ...]:
    """Of a tensor; nothing where it is missing, which is told later with all that are."""
    return tensors[name].shape if name in tensors else ()


def form_in_gguf(info: TensorInfo) -> Form | None:
    """How a tensor of a GGUF file stays packed; None where it cannot."""
    if info.dtype not in BITS_IN_GGUF or len(info.shape) != 2:
        return None
    return Form(
        layout=info.dtype,
        bits=BITS_IN_GGUF[info.dtype],
        groups=info.shape[1] // BLOCK,
        has_mins=info.dtype == "Q4_1",
    )


def rounded_form(columns: int) -> Form | None:
    """Eight bits in the largest groups that divide the inputs; None where none of them does."""
    size = next((size for size in (128, 64, 32) if columns % size == 0), None)
    return None if size is None else Form(layout=ROUNDED, bits=8, groups=columns // size, group_size=size)


def stored_shapes(
    form: Form, module: str, shape: tuple[int, int], tensors: Mapping[str, TensorInfo]
) -> dict[str, tuple[int, ...]]:
    """The tensors that a packed matrix of a folder consists of, and their shapes."""
    rows, columns = shape
    if form.layout == "gemv":
        zeros = _shape(tensors, f"{module}.qzeros")
        words = zeros[1] if len(zeros) == 2 else 1
        found = {"qweight": (rows, columns // 8), "qzeros": (rows, words), "scales": (rows, 8 * words)}
    else:
        weights = (columns * form.bits // 32, rows) if form.layout == "gptq" else (columns, rows // 8)
        found = {
            "qweight": weights,
            "qzeros": (form.groups, rows * form.bits // 32),
            "scales": (form.groups, rows),
        }
    out: dict[str, tuple[int, ...]] = {f"{module}.{suffix}": size for suffix, size in found.items()}
    if form.layout == "gptq" and f"{module}.g_idx" in tensors:
        out[f"{module}.g_idx"] = (columns,)
    return out


def gptq_version(
    path: Path, store: TensorStore, modules: Iterable[tuple[str, Form]], quant: QuantConfig | None
) -> int:
    """Which version of GPTQ wrote the zeros: what they themselves say where all are symmetric, else the configuration.

    Symmetric zeros read as the wrong version move every weight by one step, and the model answers nonsense.
    """
    said = _VERSIONS.get((quant and quant.layout) or "")
    found: set[int | None] = set()
    for module, form in modules:
        found.add(packing.stored_version(_read(store, f"{module}.qzeros", torch.int32), bits=form.bits))
        if len(found) > 1 or None in found:
            return said or 1
    version = found.pop() if found else None
    if version and said and version != said:
        names = {number: name for name, number in _VERSIONS.items()}
        _log.warning(
            "%s: the configuration says %s, but the zeros are stored as %s stores them; they are read as that",
            path,
            names[said],
            names[version],
        )
    return version or said or 1


def read_from_folder(
    store: TensorStore, module: str, form: Form, *, version: int, desc_act: bool | None
) -> PackedWeight:
    """The packed matrix of a module.

    Raises:
        CheckpointError: its tensors do not fit one another, or cannot be read.
    """
    suffixes = [s for s in ("qweight", "qzeros", "scales", "g_idx") if f"{module}.{s}" in store.tensors]
    tensors = {s: _read(store, f"{module}.{s}", None if s == "scales" else torch.int32) for s in suffixes}
    if form.layout == "gptq":
        return packing.from_gptq(
            tensors,
            bits=form.bits,
            version=version,
            name=module,
            group_size=form.group_size,
            desc_act=desc_act,
        )
    read = packing.from_awq_gemv if form.layout == "gemv" else packing.from_awq_gemm
    return read(tensors, group_size=form.group_size or -1, name=module)


def _read(store: TensorStore, name: str, dtype: torch.dtype | None) -> Tensor:
    """A whole tensor; integers must be stored as such."""
    info = store.tensors[name]
    if (info.dtype in ("F32", "F16", "BF16")) != (dtype is None) or info.dtype in ("I64", "U8", "I8", "BOOL"):
        raise CheckpointError(
            f"tensor {name!r} has type {info.dtype}, which it has in no GPTQ or AWQ checkpoint"
        )
    out = torch.empty(info.shape, dtype=dtype or torch.float32)
    store.read(name, out)
    return out


def read_from_gguf(file: GgufFile, name: str, form: Form, rows: Tensor | None) -> Iterator[PackedWeight]:
    """A matrix in pieces of rows.

    Args:
        file: holds it.
        name: the tensor's.
        form: from form_in_gguf.
        rows: the stored row of each row; None: the same.
    """
    count, columns = file.tensors[name].shape
    if rows is not None:
        yield from_gguf(file.read_blocks(name, 0, count)[rows], form.layout)
        return
    step = _rows_at_once(columns)
    for at in range(0, count, step):
        yield from_gguf(file.read_blocks(name, at, min(step, count - at)), form.layout)


def _rows_at_once(columns: int) -> int:
    """Rows of a piece, a multiple of those of a panel."""
    return max(_CHUNK // columns // ROWS, 1) * ROWS


def read_rounded(store: TensorStore, name: str, form: Form) -> Iterator[PackedWeight]:
    """A matrix of numbers rounded to the nearest of 8 bits, in pieces of rows.

    Raises:
        CheckpointError: it holds NaN, infinity or numbers that are too large.
    """
    count, columns = store.tensors[name].shape
    size = form.group_size or columns
    step = _rows_at_once(columns)
    for at in range(0, count, step):
        values = torch.empty(min(step, count - at), columns)
        store.read(name, values, at)
        groups = values.view(len(values), -1, size)  # (n, g, size)
        scales = (groups.abs().amax(-1) / 127).half()  # (n, g)
        if not bool(scales.isfinite().all()):
            raise CheckpointError(
                f"tensor {name!r} holds NaN, infinity or numbers beyond {127 * 65504:,}; fetch it again"
            )
        # A group so small that its scale is 0 becomes 0.
        steps = torch.where(scales > 0, scales.float(), torch.inf)[:, :, None]
        codes = groups.div_(steps).round_().clamp_(-128, 127).add_(128).to(torch.uint8)
        yield PackedWeight(
            bits=8, group_size=size, shape=(len(values), columns), codes=codes.flatten(1), scales=scales
        )
