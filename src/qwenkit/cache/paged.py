"""A pool of fixed-size pages of keys and values, and the cache of one sequence in some of its pages.

The memory layout is the native kernels' (csrc/native.h), on every device, so plain torch and the kernels can take turns
on one cache. Who gets which page is the engine's business.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from qwenkit.cache import PAGE_SIZE as PAGE_SIZE
from qwenkit.cache.int8 import dequantise, quantise
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import InputError


def _paired(dtype: torch.dtype, int8: bool) -> bool:
    """Whether neighbours along the sums lie together: keys by dimension, values by token."""
    return dtype == torch.bfloat16 and not int8


def _block_shapes(
    config: ModelConfig, dtype: torch.dtype, int8: bool
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the keys and the values of one page, layer and key head."""
    d = config.head_dim
    if _paired(dtype, int8):
        return (-(-d // 2), PAGE_SIZE, 2), (PAGE_SIZE // 2, d, 2)
    return (d, PAGE_SIZE), (PAGE_SIZE, d)


def page_bytes(config: ModelConfig, dtype: torch.dtype, int8: bool) -> int:
    """Bytes of one page of all layers and heads, keys and values."""
    numbers = sum(math.prod(shape) for shape in _block_shapes(config, dtype, int8))
    # Quantised: a byte each, and two bytes of scale and one of zero per token for keys and for values.
    block = numbers + 6 * PAGE_SIZE if int8 else numbers * dtype.itemsize
    return config.num_layers * config.num_kv_heads * block


class PagePool:
    """Memory of all pages. Block (page, layer, key head) is contiguous; see csrc/native.h for what is inside.

    Args:
        config: sizes of the model.
        num_pages: pages of PAGE_SIZE tokens; on the CPU they take memory only once they are written.
        dtype: type of the model, and of what is stored unless ``int8``.
        device: where the model is.
        int8: store bytes, with a scale and a zero per token and head.
    """

    def __init__(
        self,
        config: ModelConfig,
        *,
        num_pages: int,
        dtype: torch.dtype,
        device: torch.device,
        int8: bool = False,
    ) -> None:
        if num_pages < 1:
            raise InputError(f"a cache of {num_pages} pages holds nothing; give it at least one")
        self.num_pages, self.int8, self.dtype, self.device = num_pages, int8, dtype, device
        self.nbytes = num_pages * page_bytes(config, dtype, int8)
        """Bytes of the pool once every page is written."""
        self.is_paired = _paired(dtype, int8)
        self.head_dim = config.head_dim
        outer = (num_pages, config.num_layers, config.num_kv_heads)
        keys, values = _block_shapes(config, dtype, int8)
        stored = torch.uint8 if int8 else dtype
        self.keys = _zeros((*outer, *keys), stored, device)
        self.values = _zeros((*outer, *values), stored, device)
        per_token = (*outer, PAGE_SIZE if int8 else 0)
        self.key_scale, self.value_scale = (_zeros(per_token, torch.bfloat16, device) for _ in range(2))
        self.key_zero, self.value_zero = (_zeros(per_token, torch.uint8, device) for _ in range(2))

    @staticmethod
    def page_bytes(config: ModelConfig, dtype: torch.dtype, int8: bool) -> int:
        """See the function of this name."""
        return page_bytes(config, dtype, int8)

    def write(self, layer: int, pages: Tensor, slots: Tensor, k: Tensor, v: Tensor) -> None:
        """Stores keys and values of some tokens.

        Args:
            layer: which layer.
            pages: (n,) page of each token.
            slots: (n,) place of each token in its page.
            k: (n, K, d)
            v: (n, K, d)
        """
        if self.int8:
            k, self.key_scale[pages, layer, :, slots], self.key_zero[pages, layer, :, slots] = quantise(k)
            v, self.value_scale[pages, layer, :, slots], self.value_zero[pages, layer, :, slots] = quantise(v)
        if self.is_paired:
            odd = self.head_dim % 2
            k = torch.nn.functional.pad(k, (0, odd)) if odd else k
            self.keys[pages, layer, :, :, slots] = k.reshape(*k.shape[:-1], -1, 2)  # (n, K, d / 2, 2)
            self.values[pages, layer, :, slots // 2, :, slots % 2] = v
        else:
            self.keys[pages, layer, :, :, slots] = k
            self.values[pages, layer, :, slots] = v

    def read(self, layer: int, pages: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values of some pages one after the other, each (K, pages x PAGE_SIZE, d), in the model's type."""
        k, v = self.keys[pages, layer], self.values[pages, layer]
        if self.is_paired:
            k = k.permute(0, 1, 2, 4, 3).flatten(2, 3)[:, :, : self.head_dim]  # (P, K, d, S)
            v = v.permute(0, 1, 2, 4, 3).flatten(2, 3)  # (P, K, S, d)
        k = k.transpose(2, 3)  # (P, K, S, d)
        if self.int8:
            k = dequantise(k, self.key_scale[pages, layer], self.key_zero[pages, layer]).to(self.dtype)
            v = dequantise(v, self.value_scale[pages, layer], self.value_zero[pages, layer]).to(self.dtype)
        return k.transpose(0, 1).flatten(1, 2), v.transpose(0, 1).flatten(1, 2)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    if device.type != "cpu" or 0 in shape:
        return torch.zeros(shape, dtype=dtype, device=device)
    # torch would write every zero; numpy leaves it to the system, which hands out a page of memory at its first use.
    raw = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(raw).view(dtype).view(shape)


class PagedCache:
    """Keys and values of one sequence in pages of a pool.

    Args:
        pool: where the pages are.
        pages: numbers of the sequence's pages in order; the caller keeps the list and extends it in time.
        length: tokens that are in the pages already.
        alpha: NTK factor of the sequence.
        offset: absolute position of the first token.
    """

    def __init__(
        self, pool: PagePool, pages: list[int], *, length: int = 0, alpha: int = 1, offset: int = 0
    ) -> None:
        self.pool, self.pages = pool, pages
        self.alpha, self.offset = alpha, offset
        self.length = length

    def check_room(self, count: int) -> None:
        """Makes sure that ``count`` more tokens fit.

        Raises:
            InputError: they do not.
        """
        if self.length + count > len(self.pages) * PAGE_SIZE:
            raise InputError(
                f"{self.length + count} tokens do not fit in {len(self.pages)} pages of {PAGE_SIZE}; add pages first"
            )

    def update(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """See KVCache.update."""
        self.check_room(len(k))
        end = self.length + len(k)
        pages = torch.tensor(self.pages[: -(-end // PAGE_SIZE)], dtype=torch.int64, device=k.device)
        positions = torch.arange(self.length, end, device=k.device)
        self.pool.write(layer, pages[positions // PAGE_SIZE], positions % PAGE_SIZE, k, v)
        keys, values = self.pool.read(layer, pages)
        return keys[:, :end], values[:, :end]

    def advance(self, count: int) -> None:
        """See KVCache.advance."""
        self.length += count

    def truncate(self, length: int) -> None:
        """Forgets everything behind the first ``length`` tokens; the pages stay.

        Raises:
            InputError: there are fewer.
        """
        if not 0 <= length <= self.length:
            raise InputError(f"cannot cut a cache of {self.length} tokens to {length}")
        self.length = length
