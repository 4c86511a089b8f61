"""Reads tensors from safetensors and .bin checkpoints straight into their place, a few megabytes at a time.

Headers are checked before any size in them is used. Reading by offset instead of mapping keeps the peak memory at
the weights themselves: pages of a mapped file would count on top. Knows nothing of models.
"""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qwenkit.core.errors import CheckpointError

# Element types of the safetensors format (https://github.com/huggingface/safetensors#format).
DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MAX_HEADER = 100 * 2**20  # the reference implementation's own limit
_CHUNK = 16 * 2**20


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str
    """Safetensors or GGML type name."""
    nbytes: int


class TensorStore(Protocol):
    """The tensors of a checkpoint, whatever the files."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Name to header entry."""

    @property
    def sources(self) -> Mapping[Path, os.stat_result]:
        """The files, and what the system said of each when it was opened."""

    def read(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """Fills ``out`` (contiguous) with the tensor's rows from ``first_row`` on, converting to its dtype and device.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """

    def close(self) -> None:
        """Closes the files."""


def read_exactly(fd: int, view: memoryview, offset: int, path: Path) -> None:
    """Fills ``view`` from ``offset`` on, whatever size of piece the system hands out.

    Raises:
        CheckpointError: the file ends before, or reading fails.
    """
    done = 0
    while done < len(view):
        try:
            count = os.preadv(fd, [view[done:]], offset + done)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
        if count == 0:
            raise CheckpointError(f"{path} ended while reading; it was cut while in use, fetch it again")
        done += count


def _bytes_of(tensor: Tensor) -> memoryview:
    raw: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(raw)


class SafetensorsFile:
    """One .safetensors file, held open.

    Raises:
        CheckpointError: not a safetensors file, truncated, or a header that does not add up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
        try:
            self.sources: Mapping[Path, os.stat_result] = {path: os.fstat(self._fd)}
            self._data_start, entries = self._read_header()
            self._offsets = {name: entry[1] for name, entry in entries.items()}
            self.tensors: Mapping[str, TensorInfo] = {name: entry[0] for name, entry in entries.items()}
        except BaseException:
            os.close(self._fd)
            raise

    def _read_header(self) -> tuple[int, dict[str, tuple[TensorInfo, int]]]:
        size = os.fstat(self._fd).st_size
        if size < 10:
            raise CheckpointError(
                f"{self.path} has {size} bytes, too few for a safetensors file; fetch it again"
            )
        (length,) = struct.unpack("<Q", os.pread(self._fd, 8, 0))
        if length > _MAX_HEADER:
            raise CheckpointError(f"{self.path} is no safetensors file: its header would have {length} bytes")
        if 8 + length > size:
            raise CheckpointError(
                f"{self.path} is truncated: header of {length} bytes in a file of {size}; fetch it again"
            )
        try:
            header = json.loads(os.pread(self._fd, length, 8))
            items = {k: v for k, v in header.items() if k != "__metadata__"}
        except (ValueError, AttributeError, RecursionError):
            raise CheckpointError(
                f"{self.path} is no safetensors file: its header is not a JSON object"
            ) from None
        data_size = size - 8 - length
        return 8 + length, {name: self._entry(name, item, data_size) for name, item in items.items()}

    def _entry(self, name: str, item: Any, data_size: int) -> tuple[TensorInfo, int]:
        try:
            dtype, shape, (start, end) = item["dtype"], tuple(item["shape"]), item["data_offsets"]
            if any(not isinstance(n, int) or isinstance(n, bool) or n < 0 for n in (*shape, start, end)):
                raise ValueError
        except (TypeError, KeyError, ValueError):
            raise CheckpointError(
                f"{self.path}: malformed header entry of tensor {name!r}; fetch the file again"
            ) from None
        if dtype not in DTYPES:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} has type {dtype!r}; known are {', '.join(DTYPES)}"
            )
        count = 1
        for n in shape:
            count *= n
        nbytes = count * DTYPES[dtype].itemsize
        if end - start != nbytes:
            raise CheckpointError(
                f"{self.path}: tensor {name!r} of shape {list(shape)} needs {nbytes} bytes, its header says {end - start}"
            )
        if end > data_size:
            raise CheckpointError(
                f"{self.path} is truncated: tensor {name!r} ends at byte {end} of {data_size}; fetch the file again"
            )
        return TensorInfo(shape, dtype, nbytes), start

    def read(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """See TensorStore.read."""
        info, offset = self.tensors[name], self._data_start + self._offsets[name]
        dtype = DTYPES[info.dtype]
        if first_row:
            offset += info.nbytes // info.shape[0] * first_row
        if out.dtype == dtype and out.device.type == "cpu":
            read_exactly(self._fd, _bytes_of(out), offset, self.path)
            return
        flat = out.view(-1)
        step = max(_CHUNK // dtype.itemsize, 1)
        staging = torch.empty(min(step, flat.numel()), dtype=dtype)
        for at in range(0, flat.numel(), step):
            piece = staging[: min(step, flat.numel() - at)]
            read_exactly(self._fd, _bytes_of(piece), offset + at * dtype.itemsize, self.path)
            flat[at : at + len(piece)].copy_(piece)

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class BinFile:
    """One PyTorch .bin file; the pickle may hold tensors only.

    Raises:
        CheckpointError: the file is truncated or malformed, or its pickle would run code.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        # Mapped: pages are read when a tensor is copied out, and dropped with the file.
        mapped = zipfile.is_zipfile(path)
        try:
            self.sources: Mapping[Path, os.stat_result] = {path: path.stat()}
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except pickle.UnpicklingError as error:
            reason = str(error).split("\n", 1)[0]
            raise CheckpointError(
                f"{path} is refused: its pickle holds more than tensors and could run code ({reason}); "
                "use a safetensors version of the model"
            ) from None
        except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
            reason = str(error).split("\n", 1)[0]
            raise CheckpointError(
                f"{path} cannot be read as a PyTorch file ({reason}); fetch it again"
            ) from None
        if not isinstance(state, Mapping) or any(not isinstance(t, Tensor) for t in state.values()):
            raise CheckpointError(f"{path} does not hold named tensors; give the model's weight file")
        self._state: dict[str, Tensor] = dict(state)
        self.tensors: Mapping[str, TensorInfo] = {
            name: TensorInfo(tuple(t.shape), _NAMES.get(t.dtype, str(t.dtype)), t.nbytes)
            for name, t in state.items()
        }

    def read(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """See TensorStore.read."""
        stored = self._state[name]
        out.copy_(stored[first_row : first_row + len(out)] if stored.ndim else stored)

    def close(self) -> None:
        """Drops the mapped tensors."""
        self._state = {}


class ShardedStore:
    """Several files as one store.

    Raises:
        CheckpointError: a tensor is in two files, or not in the file that the index names.
    """

    def __init__(
        self, files: Mapping[str, SafetensorsFile | BinFile], weight_map: Mapping[str, str] | None
    ) -> None:
        self._files = files
        self._home: dict[str, SafetensorsFile | BinFile] = {}
        for file in files.values():
            for name in file.tensors:
                if name in self._home:
                    raise CheckpointError(
                        f"tensor {name!r} is both in {self._home[name].path} and in {file.path.name}"
                    )
                self._home[name] = file
        for name, file_name in (weight_map or {}).items():
            if name not in files[file_name].tensors:
                raise CheckpointError(
                    f"{files[file_name].path} lacks tensor {name!r} that the index places there; fetch it again"
                )
        self.tensors: Mapping[str, TensorInfo] = {n: f.tensors[n] for n, f in self._home.items()}
        self.sources: Mapping[Path, os.stat_result] = {
            p: s for f in files.values() for p, s in f.sources.items()
        }

    def read(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """See TensorStore.read."""
        self._home[name].read(name, out, first_row)

    def close(self) -> None:
        """Closes every file."""
        for file in self._files.values():
            file.close()


def open_folder(folder: Path) -> tuple[str, TensorStore]:
    """Opens a folder's weights: safetensors before .bin, a single file before an index.

    Returns:
        ("safetensors" or "bin", store).

    Raises:
        CheckpointError: no weights, a missing shard, or a file that cannot be read.
    """
    for kind, stem, suffix in (("safetensors", "model", ".safetensors"), ("bin", "pytorch_model", ".bin")):
        opener = SafetensorsFile if kind == "safetensors" else BinFile
        index = folder / f"{stem}{suffix}.index.json"
        single = folder / f"{stem}{suffix}"
        if single.is_file():
            return kind, ShardedStore({single.name: opener(single)}, None)
        if index.is_file():
            return kind, _open_index(folder, index, opener)
        others = sorted(folder.glob(f"*{suffix}"))
        if len(others) == 1 and others[0].name not in ("training_args.bin", "cases.safetensors"):
            return kind, ShardedStore({others[0].name: opener(others[0])}, None)
    raise CheckpointError(
        f"{folder} has no weights; needed: model.safetensors, model.safetensors.index.json with its shards, or the same as pytorch_model.bin"
    )


def _open_index(folder: Path, index: Path, opener: type[SafetensorsFile] | type[BinFile]) -> ShardedStore:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(weight_map.values()))
        if any(not isinstance(n, str) or Path(n).name != n for n in names):
            raise ValueError("a shard name is not a plain file name")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} is no weight index ({error}); fetch it again") from None
    missing = [n for n in names if not (folder / n).is_file()]
    if missing:
        raise CheckpointError(
            f"{folder} lacks {len(missing)} of {len(names)} weight files, first {missing[0]}; fetch them again"
        )
    files: dict[str, SafetensorsFile | BinFile] = {}
    try:
        for name in names:
            files[name] = opener(folder / name)
        return ShardedStore(files, weight_map)
    except BaseException:
        for file in files.values():
            file.close()
        raise
