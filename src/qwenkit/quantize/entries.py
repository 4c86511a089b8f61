"""The tensors of a quantised model's folder: those read from the original, and those of finished blocks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from qwenkit.config.families import Family
from qwenkit.quantize.blocks import BlockReader
from qwenkit.quantize.stored import DENSE
from qwenkit.weights.files import DTYPES, SafetensorsFile
from qwenkit.weights.write import Entry


def dense_entries(reader: BlockReader, family: Family, names: Iterable[str]) -> Iterator[Entry]:
    """Parameters outside the blocks, in 16 bits."""
    for name in names:
        if name in reader.shapes:
            (stored,) = family.tensors[name]
            yield Entry(stored, reader.shapes[name], DENSE, lambda name=name: reader.read(name, DENSE))  # type: ignore[misc]


def file_entries(file: SafetensorsFile) -> Iterator[Entry]:
    """All tensors of a file, as they are; the file must stay open."""
    for name, info in file.tensors.items():
        dtype = DTYPES[info.dtype]

        def read(name: str = name, shape: tuple[int, ...] = info.shape, dtype: torch.dtype = dtype) -> Tensor:
            out = torch.empty(shape, dtype=dtype)
            file.read(name, out)
            return out

        yield Entry(name, info.shape, dtype, read)
