"""The dense cache: what is stored comes back, however it grows."""

from __future__ import annotations

import pytest
import torch

from qwenkit.cache.dense import DenseCache
from qwenkit.core.errors import InputError
from tests.support.networks import family_config

CONFIG = family_config("llama")


@pytest.mark.parametrize("capacity", [1, 4, 100])
def test_values_come_back_in_order(capacity: int) -> None:
    cache = DenseCache(CONFIG, dtype=torch.float32, device=torch.device("cpu"), capacity=capacity)
    k = torch.randn(2, 13, CONFIG.num_kv_heads, CONFIG.head_dim)  # layers, tokens
    v = torch.randn_like(k)
    at = 0
    for count in (3, 1, 1, 7, 1):
        for layer in range(2):
            keys, values = cache.update(layer, k[layer, at : at + count], v[layer, at : at + count])
            assert torch.equal(keys, k[layer, : at + count].transpose(0, 1))
            assert torch.equal(values, v[layer, : at + count].transpose(0, 1))
        cache.advance(count)
        at += count
    assert cache.length == 13


def test_truncate() -> None:
    cache = DenseCache(CONFIG, dtype=torch.float32, device=torch.device("cpu"))
    k = torch.randn(5, CONFIG.num_kv_heads, CONFIG.head_dim)
    cache.update(0, k, k)
    cache.advance(5)
    cache.truncate(2)
    keys, _ = cache.update(0, k[4:], k[4:])
    assert torch.equal(keys, k[[0, 1, 4]].transpose(0, 1))
    with pytest.raises(InputError, match="2 tokens to 3"):
        cache.truncate(3)
