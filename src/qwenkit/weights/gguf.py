"""Reads GGUF files: a header parsed with every size checked, and tensors dequantised a piece at a time.

Layout: spec of GGUF version 2 and 3 (little endian). Block formats are those of the ``gguf`` package's reference
dequantisers. The header is parsed here because the package's reader maps the file and trusts its sizes.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from qwenkit.core.errors import CheckpointError
from qwenkit.weights.files import TensorInfo, read_exactly

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_CHUNK_ELEMENTS = 2**16  # the reference dequantisers need several times the piece for intermediate results
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}


def _shown(name: str) -> str:
    """A name from the file as errors show it: on one line, and short even when it is damaged."""
    return repr(name if len(name) <= 80 else f"{name[:79]}…")


class _Cursor:
    """Reads header values one after the other, refusing to go past the end."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path, self.at, self.size = data, path, 0, len(data)

    def need(self, count: int, what: str) -> int:
        """Moves on by ``count`` bytes and returns where they start."""
        start = self.at
        if count > self.size - start:
            raise CheckpointError(
                f"{self.path} is truncated or damaged: {what} needs {count} bytes at offset {start}, the file has {self.size}"
            )
        self.at += count
        return start

    def scalar(self, code: str, what: str) -> Any:
        size = struct.calcsize("<" + code)
        return struct.unpack_from("<" + code, self.data, self.need(size, what))[0]

    def text(self, what: str) -> str:
        length = self.scalar("Q", what)
        start = self.need(length, what)
        return self.data[start : start + length].decode("utf-8", errors="replace")

    def texts(self, count: int, what: str) -> list[str]:
        """Several texts; vocabularies have hundreds of thousands, so nothing else is done for each."""
        length_at, data, at, found = struct.Struct("<Q").unpack_from, self.data, self.at, []
        for _ in range(count):
            start = at + 8
            if start > self.size or start + length_at(data, at)[0] > self.size:
                self.at = at
                self.text(what)  # says what is missing
            at = start + length_at(data, at)[0]
            found.append(data[start:at].decode("utf-8", errors="replace"))
        self.at = at
        return found

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in _SCALARS:
            return self.scalar(_SCALARS[kind], what)
        if kind == _STRING:
            return self.text(what)
        if kind != _ARRAY or depth > 2:
            raise CheckpointError(f"{self.path} is damaged: {what} has unknown type {kind}")
        inner, count = self.scalar("I", what), self.scalar("Q", what)
        if inner in _SCALARS:
            code = _SCALARS[inner]
            start = self.need(count * struct.calcsize("<" + code), what)
            return np.frombuffer(self.data, dtype="<" + code, count=count, offset=start).copy()
        if count * 8 > self.size - self.at:  # a string or an array takes 8 bytes at least
            raise CheckpointError(f"{self.path} is truncated or damaged: {what} claims {count} entries")
        if inner == _STRING:
            return self.texts(count, what)
        return [self.value(inner, what, depth + 1) for _ in range(count)]


class GgufFile:
    """One GGUF file, held open.

    Raises:
        CheckpointError: not GGUF, an unknown version, truncated, or a header that does not add up.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        except OSError as error:
            raise CheckpointError(f"{path} cannot be opened: {error.strerror}") from error
        self.metadata: dict[str, Any] = {}
        self.tensors: Mapping[str, TensorInfo] = {}
        self._offsets: dict[str, int] = {}
        try:
            self.sources: Mapping[Path, os.stat_result] = {path: os.fstat(self._fd)}
            size = self.sources[path].st_size
            if size < 24:
                raise CheckpointError(f"{path} has {size} bytes, too few for a GGUF file; fetch it again")
            with mmap.mmap(self._fd, 0, access=mmap.ACCESS_READ) as data:
                self._parse(_Cursor(data, path))
        except BaseException:
            os.close(self._fd)
            raise

    def _parse(self, cursor: _Cursor) -> None:
        if cursor.data[cursor.need(4, "magic") : 4] != b"GGUF":
            raise CheckpointError(f"{self.path} is no GGUF file; it does not start with 'GGUF'")
        version = cursor.scalar("I", "version")
        if version not in (2, 3):
            raise CheckpointError(
                f"{self.path} has GGUF version {version}; qwenkit reads 2 and 3 (little endian)"
            )
        num_tensors, num_pairs = cursor.scalar("Q", "tensor count"), cursor.scalar("Q", "key count")
        # The shortest possible entries have 24 and 13 bytes, which bounds the counts before any loop.
        if num_tensors * 24 > cursor.size or num_pairs * 13 > cursor.size:
            raise CheckpointError(
                f"{self.path} is damaged: header claims {num_tensors} tensors and {num_pairs} keys"
            )
        for _ in range(num_pairs):
            key = cursor.text("a metadata key")
            shown = _shown(key)
            self.metadata[key] = cursor.value(cursor.scalar("I", shown), shown)
        entries = [self._tensor_entry(cursor) for _ in range(num_tensors)]
        alignment = self.metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**20:
            raise CheckpointError(f"{self.path} is damaged: general.alignment={alignment!r}")
        start = -(-cursor.at // alignment) * alignment
        tensors = {}
        for name, info, offset in entries:
            if name in tensors:
                raise CheckpointError(f"{self.path} is damaged: tensor {_shown(name)} occurs twice")
            if start + offset + info.nbytes > cursor.size:
                raise CheckpointError(
                    f"{self.path} is truncated: tensor {_shown(name)} ends at byte {start + offset + info.nbytes} of {cursor.size}; fetch it again"
                )
            tensors[name] = info
            self._offsets[name] = start + offset
        self.tensors = tensors

    def _tensor_entry(self, cursor: _Cursor) -> tuple[str, TensorInfo, int]:
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        name = cursor.text("a tensor name")
        shown = _shown(name)
        dims = cursor.scalar("I", shown)
        if not 1 <= dims <= 4:
            raise CheckpointError(f"{self.path} is damaged: tensor {shown} has {dims} dimensions")
        shape = tuple(cursor.scalar("Q", shown) for _ in range(dims))
        kind, offset = cursor.scalar("I", shown), cursor.scalar("Q", shown)
        count = 1
        for n in shape:
            count *= n
        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except ValueError:
            raise CheckpointError(
                f"{self.path}: tensor {shown} has unknown block type {kind}; update qwenkit or gguf"
            ) from None
        if not 0 < count < 2**40 or shape[0] % block:
            raise CheckpointError(f"{self.path} is damaged: tensor {shown} has shape {list(shape)}")
        info = TensorInfo(shape[::-1], GGMLQuantizationType(kind).name, count // block * block_bytes)
        return name, info, offset

    def read(self, name: str, out: Tensor, first_row: int = 0) -> None:
        """See TensorStore.read; quantised blocks are dequantised in float32, then converted."""
        info = self.tensors[name]
        columns = info.shape[-1]
        flat = out.view(-1, columns)
        first = first_row * (math.prod(info.shape[1:]) // columns)
        step = max(_CHUNK_ELEMENTS // columns, 1)
        decode = _decoder(info.dtype, self.path)
        for at in range(0, len(flat), step):
            raw = self.read_blocks(name, first + at, min(step, len(flat) - at))
            flat[at : at + step].copy_(decode(raw.numpy()))

    def read_blocks(self, name: str, first_row: int, count: int) -> Tensor:
        """``count`` rows of a tensor as they are stored, (count, bytes of a row) uint8.

        Raises:
            CheckpointError: the file ends early or cannot be read.
        """
        info = self.tensors[name]
        row_bytes = info.nbytes // math.prod(info.shape[:-1])
        out = torch.empty(count, row_bytes, dtype=torch.uint8)
        raw: Any = out.numpy()
        at = self._offsets[name] + first_row * row_bytes
        read_exactly(self._fd, memoryview(raw).cast("B"), at, self.path)
        return out

    def close(self) -> None:
        """Closes the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def _decoder(kind: str, path: Path) -> Callable[[np.ndarray[Any, Any]], Tensor]:
    """Turns rows of raw bytes (rows, row bytes) into values (rows, columns)."""
    if kind in _PLAIN:
        return lambda raw: torch.from_numpy(raw).view(_PLAIN[kind])
    from gguf import quants
    from gguf.constants import GGMLQuantizationType

    block_type = GGMLQuantizationType[kind]

    def decode(raw: np.ndarray[Any, Any]) -> Tensor:
        try:
            return torch.from_numpy(quants.dequantize(raw, block_type))
        except NotImplementedError:
            raise CheckpointError(
                f"{path} uses block type {kind}, which the gguf package cannot dequantise"
            ) from None

    return decode
