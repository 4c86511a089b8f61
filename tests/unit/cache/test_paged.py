"""The paged cache: what is stored comes back, in every layout, from any pages."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from qwenkit.cache.dense import DenseCache
from qwenkit.cache.int8 import dequantise, quantise
from qwenkit.cache.paged import PAGE_SIZE, PagedCache, PagePool, page_bytes
from qwenkit.config.model import ModelConfig, RopeConfig
from qwenkit.core.errors import InputError
from tests.support.networks import family_config

CPU = torch.device("cpu")
TYPES = [torch.float32, torch.bfloat16, torch.float16]


def _config(head_dim: int) -> ModelConfig:
    rope = RopeConfig(base=1e4, dim=head_dim // 2 * 2)
    return family_config("llama", head_dim=head_dim, rope=rope)


def _pool(head_dim: int, dtype: torch.dtype, *, int8: bool = False, num_pages: int = 9) -> PagePool:
    return PagePool(_config(head_dim), num_pages=num_pages, dtype=dtype, device=CPU, int8=int8)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("head_dim", [32, 24, 7])
def test_is_a_dense_cache_to_the_network(head_dim: int, dtype: torch.dtype) -> None:
    pages = [5, 0, 7]
    paged = PagedCache(_pool(head_dim, dtype), pages)
    dense = DenseCache(_config(head_dim), dtype=dtype, device=CPU)
    for count in (3, 30, 1, 1, 40):
        for layer in range(2):
            k, v = torch.randn(2, count, 2, head_dim).to(dtype)
            for got, expected in zip(paged.update(layer, k, v), dense.update(layer, k, v), strict=True):
                assert torch.equal(got, expected)
        paged.advance(count)
        dense.advance(count)
    assert paged.length == 75


@pytest.mark.parametrize("dtype", TYPES)
def test_bytes_come_back_as_the_quantiser_says(dtype: torch.dtype) -> None:
    cache = PagedCache(_pool(24, dtype, int8=True), [3, 8])
    k, v = torch.randn(2, 50, 2, 24).to(dtype)
    for got, x in zip(cache.update(1, k, v), (k, v), strict=True):
        assert got.dtype == dtype
        assert torch.equal(got, dequantise(*quantise(x)).to(dtype).transpose(0, 1))


def test_layouts() -> None:
    """As csrc/native.h has them."""
    k, v = torch.randn(2, 20, 2, 6)
    for dtype in TYPES:
        pool = _pool(6, dtype)
        PagedCache(pool, [4]).update(1, k.to(dtype), v.to(dtype))
        t, i = 13, 3
        key, value = k[t, 1, i].to(dtype), v[t, 1, i].to(dtype)
        if dtype == torch.bfloat16:
            assert pool.keys[4, 1, 1, i // 2, t, i % 2] == key
            assert pool.values[4, 1, 1, t // 2, i, t % 2] == value
        else:
            assert pool.keys[4, 1, 1, i, t] == key
            assert pool.values[4, 1, 1, t, i] == value


def test_truncate_and_pages_shared_by_two() -> None:
    pool = _pool(8, torch.float32)
    first = PagedCache(pool, [1, 2])
    k = torch.randn(40, 2, 8)
    for layer in range(2):
        first.update(layer, k, k)
    first.advance(40)
    second = PagedCache(pool, [1, 6], length=32)
    keys, _ = second.update(0, k[:1], k[:1])
    assert torch.equal(keys, torch.cat((k[:32], k[:1])).transpose(0, 1))
    first.truncate(2)
    keys, _ = first.update(0, k[9:10], k[9:10])
    assert torch.equal(keys, k[[0, 1, 9]].transpose(0, 1))
    with pytest.raises(InputError, match="2 tokens to 3"):
        first.truncate(3)


def test_pages_must_suffice() -> None:
    cache = PagedCache(_pool(8, torch.float32), [1], length=30)
    k = torch.randn(3, 2, 8)
    with pytest.raises(InputError, match=f"33 tokens do not fit in 1 pages of {PAGE_SIZE}"):
        cache.update(0, k, k)
    cache.pages.append(2)
    cache.update(0, k, k)
    with pytest.raises(InputError, match="0 pages"):
        _pool(8, torch.float32, num_pages=0)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_sizes(dtype: torch.dtype, int8: bool) -> None:
    pool = _pool(64, dtype, int8=int8)
    parts = (pool.keys, pool.values, pool.key_scale, pool.value_scale, pool.key_zero, pool.value_zero)
    assert pool.nbytes == sum(part.nbytes for part in parts)
    assert pool.nbytes == 9 * PagePool.page_bytes(_config(64), dtype, int8)
    per_vector = 67 if int8 else 64 * dtype.itemsize
    assert page_bytes(_config(64), dtype, int8) == 2 * 2 * 2 * PAGE_SIZE * per_vector


def test_a_pool_larger_than_memory_costs_nothing_until_it_is_used() -> None:
    config = dataclasses.replace(_config(128), num_layers=32, num_heads=32, num_kv_heads=32)
    before = _resident()
    pool = PagePool(config, num_pages=256, dtype=torch.bfloat16, device=CPU)  # 4 GiB
    assert pool.nbytes == 2**32
    k = torch.ones(1, 32, 128, dtype=torch.bfloat16)
    PagedCache(pool, [100]).update(7, k, k)
    assert _resident() - before < 2**28


def _resident() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096
