"""Writes weight files and settings of a folder, tensor by tensor: no more than one of them need be in memory.

Knows nothing of how the tensors came about.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenkit.core.errors import InputError
from qwenkit.weights.files import DTYPES

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor that will be written."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> Entry:
        """A tensor that is in memory."""
        return cls(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


def checked_target(out: Path) -> Path:
    """The absolute path of a folder that can be written.

    Raises:
        InputError: something is there already.
    """
    out = Path(os.path.abspath(out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists already; give a new or empty folder")
    return out


def write_weights(folder: Path, entries: Iterable[Entry], shard_bytes: int) -> int:
    """Writes model.safetensors, or shards of at most ``shard_bytes`` (or one tensor) with their index.

    Returns:
        Bytes of all tensors.

    Raises:
        OSError: the disk is full or not writable.
    """
    shards: list[list[Entry]] = [[]]
    size = 0
    for entry in entries:
        if size and size + entry.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(entry)
        size += entry.nbytes
    total = sum(entry.nbytes for shard in shards for entry in shard)
    if len(shards) == 1:
        write_tensors(folder / "model.safetensors", shards[0])
        return total
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        write_tensors(folder / file, shard)
        weight_map |= {entry.name: file for entry in shard}
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return total


def write_tensors(path: Path, entries: Iterable[Entry], metadata: Mapping[str, str] | None = None) -> None:
    """Writes one safetensors file: length of the header, header, data; wide types first, so that all are aligned.

    Raises:
        OSError: the disk is full or not writable.
    """
    ordered = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    at = 0
    for entry in ordered:
        header[entry.name] = {
            "dtype": _NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [at, at + entry.nbytes],
        }
        at += entry.nbytes
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for entry in ordered:
            tensor = entry.read().contiguous()
            raw: Any = tensor.view(-1).view(torch.uint8).numpy()
            file.write(memoryview(raw))
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Writes an object as people can read it."""
    path.write_text(json.dumps(data, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
