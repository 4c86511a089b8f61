"""Checks on the tensors of one quantised layer, before any is unpacked. Knows nothing of bit order."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from qwenkit.core.errors import CheckpointError
from qwenkit.kernels.packed import BLOCK

# AWQ GEMV pads the words of zeros per row to a multiple of this many, by group size; from 128 on there is no padding.
_GEMV_MULTIPLE = {32: 4, 64: 2}


def int32_words(tensors: Mapping[str, Tensor], suffix: str, name: str) -> Tensor:
    """One matrix of packed integers."""
    tensor = _present(tensors, suffix, name)
    if tensor.dtype != torch.int32 or tensor.dim() != 2:
        raise CheckpointError(
            f"{name}.{suffix} is {str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}; "
            "packed weights are int32 matrices, so the file is damaged or of another format"
        )
    return tensor.contiguous()


def half_scales(tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The scales as float16."""
    scales = _present(tensors, "scales", name)
    if not scales.is_floating_point() or scales.dim() != 2 or not len(scales):
        raise CheckpointError(
            f"{name}.scales is {str(scales.dtype).removeprefix('torch.')} of shape {tuple(scales.shape)}; "
            "scales are matrices of floating-point numbers, so the file is damaged or of another format"
        )
    half = scales.half()
    if not bool(torch.isfinite(half).all()):
        raise CheckpointError(
            f"{name}.scales holds infinity, NaN or numbers beyond 65504, the largest of float16; "
            "fetch the file again or quantise the model again"
        )
    return half


def _present(tensors: Mapping[str, Tensor], suffix: str, name: str) -> Tensor:
    if suffix not in tensors:
        raise CheckpointError(
            f"{name}.{suffix} is missing though other parts of {name} are there; fetch the files again"
        )
    return tensors[suffix]


def check_shape(tensor: Tensor, shape: tuple[int, ...], name: str) -> None:
    """Refuses any other shape."""
    if tuple(tensor.shape) != shape:
        raise CheckpointError(
            f"{name} has shape {tuple(tensor.shape)}; with its layer's qweight and group size it must be {shape}, "
            "so compare bits and group_size in the configuration with the file"
        )


def check_size(name: str, k: int, n: int, *, outputs_multiple: int) -> None:
    """Refuses layers that cannot be packed."""
    if k < 1 or n < 1 or k % BLOCK or n % outputs_multiple:
        raise CheckpointError(
            f"{name} has {n} outputs and {k} inputs; packed layers need a multiple of {outputs_multiple} outputs "
            f"and of {BLOCK} inputs, so compare bits in the configuration with the file, or use a checkpoint in which "
            "this layer is not quantised"
        )


def check_even_groups(k: int, group_size: int, name: str) -> None:
    """Refuses groups of which the last would be shorter."""
    if group_size < 1 or k % group_size:
        raise CheckpointError(
            f"{name} has {k} inputs in groups of {group_size}; AWQ layouts need groups that divide the inputs, "
            "so choose another group size, or GPTQ"
        )


def gemv_words(k: int, group_size: int) -> int | None:
    """Words of zeros per row in AWQ GEMV; None where that layout has no such groups."""
    multiple = 1 if group_size >= 128 else _GEMV_MULTIPLE.get(group_size)
    if multiple is None:
        return None
    words = -(-k // group_size // 8)
    return -(-words // multiple) * multiple


def checked_groups(g_idx: Tensor, *, columns: int, groups: int, name: str) -> Tensor:
    """As int64, once it is known to hold one group per column."""
    check_shape(g_idx, (columns,), f"{name}.g_idx")
    if g_idx.is_floating_point() or g_idx.dtype == torch.bool:
        kind = str(g_idx.dtype).removeprefix("torch.")
        raise CheckpointError(f"{name}.g_idx is {kind}; it must hold integers, so fetch the file again")
    low, high = int(g_idx.min()), int(g_idx.max())
    if low < 0 or high >= groups:
        raise CheckpointError(
            f"{name}.g_idx holds groups from {low} to {high}, but there are scales for 0 to {groups - 1}; "
            "fetch the file again or quantise the model again"
        )
    return g_idx.long()


def grouping(
    g_idx: Tensor | None, *, columns: int, groups: int, group_size: int | None, name: str
) -> tuple[int, Tensor | None]:
    """PackedWeight.group_size and .order, from the group of each input and what the configuration says."""
    said = columns if group_size == -1 else group_size
    if g_idx is not None:
        size = _equal_size(torch.bincount(g_idx, minlength=groups), name)
    elif said is not None:
        size = min(said, columns)
    else:
        size = _size_from_shape(columns, groups, name)
    fits = size >= 1 and groups == -(-columns // size)
    if not fits or (said is not None and size != min(said, columns)):
        raise CheckpointError(
            f"{name} has {groups} groups for {columns} inputs, which does not fit group_size {group_size or size}; "
            "correct group_size in the configuration, or fetch the files again"
        )
    if groups > 1 and size % 16:
        raise CheckpointError(
            f"{name} has groups of {size} inputs; multiples of 16 can be read, so quantise the model again"
        )
    if g_idx is None or torch.equal(g_idx, torch.arange(columns, device=g_idx.device) // size):
        return size, None
    return size, torch.argsort(g_idx, stable=True).int()


def _equal_size(counts: Tensor, name: str) -> int:
    """Inputs of each group but the last, which may have fewer."""
    sizes: list[int] = counts.tolist()
    if sizes[:-1] != sizes[:1] * (len(sizes) - 1) or not 0 < sizes[-1] <= sizes[0]:
        raise CheckpointError(
            f"{name}.g_idx has groups of {min(sizes)} to {max(sizes)} inputs; all but the last must have equally many, "
            "so quantise the model again"
        )
    return sizes[0]


def _size_from_shape(columns: int, groups: int, name: str) -> int:
    if groups == 1:
        return columns
    sizes = [size for size in range(16, columns, 16) if -(-columns // size) == groups]
    likely = [size for size in sizes if size & (size - 1) == 0 or size * groups == columns]
    found = likely or sizes
    if len(found) != 1:
        raise CheckpointError(
            f"{name} has {groups} groups for {columns} inputs, from which the group size does not follow; "
            "give group_size in the configuration"
        )
    return found[0]
