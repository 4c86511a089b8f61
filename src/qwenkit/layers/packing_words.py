"""Moves integers between the words of checkpoint files and the bytes of PackedWeight. Knows nothing of scales or names.

Words are int32 and hold their numbers lowest bits first. Whole words are rearranged by shifts and masks, in tiles that
fit the cache, because unpacking to one number each costs several times the time and memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qwenkit.kernels.packed import BLOCK, unpack_codes

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
"""AWQ GEMM: nibble i of a word holds output AWQ_ORDER[i] of its eight."""
AWQ_PLACE = (0, 4, 1, 5, 2, 6, 3, 7)
"""AWQ GEMM: output j lies in nibble AWQ_PLACE[j]."""
_CHUNK_ROWS = 128
_CHUNK_COLUMNS = 512
"""Words of a tile."""


def turned(matrix: Tensor) -> Tensor:
    """The transpose, never sharing memory: callers may read the next tensors into the same place."""
    return matrix.t().clone(memory_format=torch.contiguous_format)


def fields(words: Tensor, bits: int) -> Tensor:
    """(..., n) int32 to the numbers in them, first the lowest bits: (..., n * 32 / bits) uint8."""
    stored = words.contiguous().view(torch.uint8)
    return stored if bits == 8 else torch.stack((stored & 15, stored >> 4), dim=-1).flatten(-2)


def to_words(numbers: Tensor, bits: int) -> Tensor:
    """The opposite of ``fields``."""
    if bits == 4:
        numbers = numbers[..., ::2] | numbers[..., 1::2] << 4
    return numbers.contiguous().view(torch.int32)


def awq_nibbles(rows: Tensor) -> Tensor:
    """(N, m) to (m, N) with each eight outputs as the nibbles of an AWQ word."""
    turned = torch.unflatten(rows.t(), 1, (-1, 8))
    return turned[:, :, AWQ_ORDER].flatten(1)


def sort_columns(codes: Tensor, bits: int, order: Tensor) -> None:
    """Puts input order[j] into column j of the layout of PackedWeight.codes, in place."""
    index = order.long()
    for rows in torch.split(codes, _CHUNK_ROWS):
        # Whole rows of the transpose are copied: many times faster than single bytes.
        columns = unpack_codes(rows, bits).t().contiguous().index_select(0, index)
        if bits == 4:
            halves = torch.unflatten(columns, 0, (-1, 2, BLOCK // 2))
            columns = (halves[:, 0] | halves[:, 1] << 4).flatten(0, 1)
        rows.copy_(columns.t())


def row_words_to_codes(words: Tensor) -> Tensor:
    """(N, K / 8) words of consecutive inputs to codes (N, K / 2)."""
    out = torch.empty_like(words)
    for part, to in zip(torch.split(words, _CHUNK_ROWS), torch.split(out, _CHUNK_ROWS), strict=True):
        halves = torch.unflatten(part, 1, (-1, 2, 2))  # (n, K / 32, half of the block, word)
        to = torch.unflatten(to, 1, (-1, 2, 2))
        to[..., 0], to[..., 1] = _blocks(halves[:, :, 0], halves[:, :, 1])
    return out.view(torch.uint8)


def input_words_to_codes(words: Tensor) -> Tensor:
    """(K / 8, N) words of consecutive inputs to codes (N, K / 2)."""
    out = words.new_empty(words.shape[1], words.shape[0])
    for part, to in zip(torch.split(words, _CHUNK_COLUMNS, 1), torch.split(out, _CHUNK_COLUMNS), strict=True):
        for tile, place in zip(torch.split(part, _CHUNK_ROWS), torch.split(to, _CHUNK_ROWS, 1), strict=True):
            halves = torch.unflatten(tile, 0, (-1, 2, 2))  # (blocks, half of the block, word, n)
            pairs = torch.stack(_blocks(halves[:, 0], halves[:, 1]), dim=2)
            place.copy_(pairs.flatten(0, 2).t())
    return out.view(torch.uint8)


def output_words_to_codes(words: Tensor) -> Tensor:
    """(K, N / 8) words of AWQ GEMM to codes (N, K / 2)."""
    k, columns = words.shape
    out = words.new_empty(columns, 8, k // 8)
    for first in range(0, columns, _CHUNK_COLUMNS):
        part = words[:, first : first + _CHUNK_COLUMNS]
        for row in range(0, k, 8 * _CHUNK_ROWS):
            # (blocks, half of the block, word, byte, c)
            tile = torch.unflatten(part[row : row + 8 * _CHUNK_ROWS], 0, (-1, 2, 4, 4))
            place = out[first : first + _CHUNK_COLUMNS, :, row // 8 : row // 8 + _CHUNK_ROWS]
            for nibble, same in enumerate(zip_fields(tile[:, 0], tile[:, 1], 4)):
                _turn_bytes(same, place, nibble)
    return out.view(columns * 8, k // 8).view(torch.uint8)


def _turn_bytes(rows: Tensor, place: Tensor, nibble: int) -> None:
    """Byte b of words (..., 4, c), of nibbles 2 b + ``nibble``, to words of four inputs in ``place`` (c, 8, ...)."""
    a, b = zip_fields(rows[:, :, 0], rows[:, :, 1], 8), zip_fields(rows[:, :, 2], rows[:, :, 3], 8)
    for odd in (0, 1):
        for high, turned in enumerate(zip_fields(a[odd], b[odd], 16)):
            output = AWQ_ORDER[2 * (2 * high + odd) + nibble]
            place[:, output].copy_(turned.flatten(0, 1).t())


def _blocks(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """Eight 4-bit codes of inputs 0..15 of a block and those 16 further on, to two words of PackedWeight.codes."""
    even, odd = zip_fields(low, high, 4)
    first, second = zip_fields(even, odd, 8)
    return zip_fields(first, second, 16)


def zip_fields(a: Tensor, b: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The even, then the odd fields of ``width`` bits of two words of int32, each of a's before its neighbour of b."""
    even = {4: 0x0F0F0F0F, 8: 0x00FF00FF, 16: 0x0000FFFF}[width]
    return (a & even) | (b & even) << width, (a >> width & even) | (b & ~even)
