"""A file that holds weights byte for byte as they lie in memory, so that reading it is all there is to do.

Magic, length and checksum of the header; the header, JSON; from the next whole page on all tensors, each on a cache
line of its own, with a checksum for every few megabytes. Knows nothing of models, or of where such files are kept.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qwenkit.core.errors import CheckpointError
from qwenkit.kernels.cpu import usable_cores
from qwenkit.kernels.packed import BLOCK, PackedWeight
from qwenkit.kernels.panels import ROWS, PanelWeight
from qwenkit.layers.quant_linear import Stored
from qwenkit.weights.files import DTYPES, read_exactly

Parameters = Mapping[str, tuple[Stored, ...]]
"""The parts of every parameter, by name."""

_MAGIC = b"QKPACK1\n"
_ALIGN, _PAGE = 64, 4096
_CHUNK = 4 * 2**20
"""Bytes that share a checksum."""
_PIECE = 2**19  # read and summed at once: what was read is still in the processor's cache
_MAX_HEADER = 2**28
_WORKERS = 8
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_KINDS: Mapping[str, type[PackedWeight | PanelWeight]] = {"packed": PackedWeight, "panels": PanelWeight}
_TENSORS = {
    "codes": torch.uint8,
    "scales": torch.float16,
    "zeros": torch.uint8,
    "mins": torch.float16,
    "order": torch.int32,
}


class PackedFileError(CheckpointError):
    """The file cannot be used; the text is the reason alone."""


class OutdatedError(PackedFileError):
    """The file is sound, but was made from something else."""


def write_packed(fd: int, identity: Mapping[str, Any], parameters: Parameters) -> None:
    """Writes a file from its beginning; the header comes last, so that a file left half written is not taken for whole.

    Args:
        fd: open for writing, empty.
        identity: what ``read_packed`` compares.
        parameters: on the CPU.

    Raises:
        OSError: the disk is full or not writable.
    """
    segments: list[tuple[int, memoryview]] = []
    size = 0

    def place(tensor: Tensor) -> list[Any]:
        nonlocal size
        start = size
        for data in (_bytes_of(tensor.contiguous()), memoryview(bytes(-tensor.nbytes % _ALIGN))):
            if len(data):
                segments.append((size, data))
            size += len(data)
        return [_NAMES[tensor.dtype], list(tensor.shape), start]

    table = {name: [_described(part, place) for part in parts] for name, parts in parameters.items()}
    header: dict[str, Any] = {"identity": identity, "size": size, "parameters": table}
    starts = range(0, size, _CHUNK)
    data_start = _data_start(len(_encoded(header, [0] * len(starts))))
    os.ftruncate(fd, data_start + size)

    def write(start: int) -> int:
        return _write_chunk(fd, data_start, segments, start, min(start + _CHUNK, size))

    _write_all(fd, _encoded(header, _each(write, starts)), 0)


def read_packed(
    path: Path,
    identity: Mapping[str, Any],
    block: Callable[[int], Tensor],
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, tuple[Stored, ...]]:
    """The parameters in a file, every checksum compared.

    Args:
        path: of a file from ``write_packed``.
        identity: what it must have been written with.
        block: makes a tensor of so many bytes, in which all tensors will lie.
        on_progress: called with (bytes done, bytes in all).

    Raises:
        FileNotFoundError: there is none.
        OutdatedError: it is of another identity.
        PackedFileError: it is damaged.
        OSError: it cannot be opened.
        CheckpointError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header, sums, data_start = _read_header(fd, path)
        if header["identity"] != json.loads(json.dumps(identity)):
            raise OutdatedError("it is of other weights, settings or another version")
        size: int = header["size"]
        whole = block(size)
        view = _bytes_of(whole)

        def read(start: int) -> int:
            found = 0
            end = min(start + _CHUNK, size)
            for at in range(start, end, _PIECE):
                piece = view[at : min(at + _PIECE, end)]
                read_exactly(fd, piece, data_start + at, path)
                found = zlib.crc32(piece, found)
            if found != sums[start // _CHUNK]:
                raise PackedFileError(f"the checksum of bytes from {data_start + start} on is wrong")
            return end - start

        done = 0

        def count(nbytes: int) -> None:
            nonlocal done
            done += nbytes
            if on_progress:
                on_progress(done, size)

        _each(read, range(0, size, _CHUNK), count)
        return {
            name: tuple(_restored(part, whole) for part in parts)
            for name, parts in header["parameters"].items()
        }
    finally:
        os.close(fd)


def _each(
    work: Callable[[int], int], starts: Iterable[int], then: Callable[[int], None] | None = None
) -> list[int]:
    """The results for all starts, computed by several threads; once one fails, no other begins."""
    out: list[int] = []
    pool = ThreadPoolExecutor(min(usable_cores(), _WORKERS))
    try:
        for result in pool.map(work, starts):
            out.append(result)
            if then is not None:
                then(result)
    finally:
        pool.shutdown(cancel_futures=True)
    return out


def _bytes_of(tensor: Tensor) -> memoryview:
    raw: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def _data_start(header_length: int) -> int:
    return -(-header_length // _PAGE) * _PAGE


def _encoded(header: Mapping[str, Any], sums: Iterable[int]) -> bytes:
    """What the file begins with; as long for any checksums."""
    text = json.dumps({**header, "sums": "".join(f"{s:08x}" for s in sums)}, separators=(",", ":")).encode()
    return _MAGIC + len(text).to_bytes(4, "little") + zlib.crc32(text).to_bytes(4, "little") + text


def _write_chunk(
    fd: int, data_start: int, segments: list[tuple[int, memoryview]], start: int, end: int
) -> int:
    """Writes the bytes from ``start`` to ``end`` of all segments in a row, and returns their checksum."""
    found, at = 0, start
    number = bisect_right(segments, start, key=lambda segment: segment[0]) - 1
    while at < end:
        first, data = segments[number]
        piece = data[at - first : min(end, at + _PIECE) - first]
        _write_all(fd, piece, data_start + at)
        found = zlib.crc32(piece, found)
        at += len(piece)
        number += at == first + len(data)
    return found


def _write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while len(view):
        count = os.pwrite(fd, view, offset)
        view, offset = view[count:], offset + count


def _described(part: Stored, place: Callable[[Tensor], list[Any]]) -> dict[str, Any]:
    """A part for the header; its tensors go where ``place`` says."""
    if isinstance(part, Tensor):
        return {"kind": "tensor", "data": place(part)}
    kind = next(kind for kind, cls in _KINDS.items() if isinstance(part, cls))
    named = ((f.name, getattr(part, f.name)) for f in fields(part))
    return {
        "kind": kind,
        **{name: place(v) if isinstance(v, Tensor) else v for name, v in named if v is not None},
    }


def _read_header(fd: int, path: Path) -> tuple[dict[str, Any], list[int], int]:
    """The header, the checksums, and where tensors begin."""
    start = os.pread(fd, 16, 0)
    length = int.from_bytes(start[8:12], "little")
    if start[:8] != _MAGIC or len(start) < 16 or length > _MAX_HEADER:
        raise PackedFileError("it does not begin as such a file does")
    text = bytearray(length)
    if os.fstat(fd).st_size < 16 + length:
        raise PackedFileError("it is truncated")
    read_exactly(fd, memoryview(text), 16, path)
    if zlib.crc32(text) != int.from_bytes(start[12:16], "little"):
        raise PackedFileError("the checksum of its header is wrong")
    header = json.loads(text)
    data_start = _data_start(16 + length)
    if os.fstat(fd).st_size != data_start + header["size"]:
        raise PackedFileError("it is truncated")
    sums = header["sums"]
    return header, [int(sums[at : at + 8], 16) for at in range(0, len(sums), 8)], data_start


def _restored(part: Mapping[str, Any], whole: Tensor) -> Stored:
    """A part of the header with its tensors in the block."""
    if part["kind"] == "tensor":
        return _tensor(part["data"], whole)
    named: dict[str, Any] = {n: _tensor(v, whole) for n, v in part.items() if n in _TENSORS}
    bits, size, (n, k) = part["bits"], part["group_size"], part["shape"]
    groups = -(-k // size)
    wanted: dict[str, tuple[int, ...]] = dict.fromkeys(named, (n, groups))
    wanted |= {"codes": (n, k * bits // 8), "order": (k,)}
    if part["kind"] == "panels":
        wanted |= dict.fromkeys(wanted.keys() - {"order"}, (n // ROWS, groups, ROWS))
        wanted["codes"] = (n // ROWS, k // BLOCK, bits, ROWS, 4)
    if any((tuple(t.shape), t.dtype) != (wanted[name], _TENSORS[name]) for name, t in named.items()):
        raise PackedFileError("its tensors do not fit one another")
    return _KINDS[part["kind"]](bits=bits, group_size=size, shape=(n, k), **named)


def _tensor(entry: tuple[str, list[int], int], whole: Tensor) -> Tensor:
    kind, shape, start = entry
    end = start + math.prod(shape) * DTYPES[kind].itemsize
    if start % _ALIGN or not 0 <= start < end <= len(whole):
        raise PackedFileError("a tensor lies outside of it")
    return whole[start:end].view(DTYPES[kind]).view(*shape)
