"""Dropout of the CPU kernels is what its definition says, on every instruction set and for any number of threads."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from qwenkit.kernels import native, training
from qwenkit.kernels.training import can_drop, can_unpack, dropout

pytestmark = pytest.mark.skipif(native.library() is None, reason="the CPU kernels are not compiled")

ISAS = ("portable", "avx2", "avx512")
SEED = 0x1234_5678_9ABC_DEF1


@pytest.fixture(params=ISAS)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.delenv("QWENKIT_ISA", raising=False)
    if ISAS.index(request.param) > native.isa():
        pytest.skip(f"this CPU has no {request.param}")
    monkeypatch.setenv("QWENKIT_ISA", request.param)
    return str(request.param)


def mixed(count: int, seed: int) -> np.ndarray:
    """The number of every place, as csrc/training.inc says."""
    with np.errstate(over="ignore"):
        x = np.arange(count, dtype=np.uint32) ^ np.uint32(seed & 0xFFFFFFFF)
        for round_key in (np.uint32(seed >> 32), None):
            x = (x ^ x >> np.uint32(16)) * np.uint32(0x7FEB352D)
            x = (x ^ x >> np.uint32(15)) * np.uint32(0x846CA68B)
            x = x ^ x >> np.uint32(16)
            if round_key is not None:
                x = x + round_key
    return x


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("count", [1, 17, 16384, 50_003])
def test_definition(isa: str, count: int, dtype: torch.dtype) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(0)).to(dtype)
    share = 0.3
    stays = torch.from_numpy(mixed(count, SEED) >= round(share * 2**32))
    scale = np.float32(2**32 / (2**32 - round(share * 2**32)))
    expected = torch.where(stays, x.float() * float(scale), 0.0).to(dtype)
    assert torch.equal(dropout(x, share, SEED), expected)


@pytest.mark.parametrize("own_pool", [False, True])
def test_threads_change_nothing(own_pool: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither those of torch nor our own."""
    x = torch.randn(300, 1000)
    expected = dropout(x, 0.1, SEED)
    if own_pool:
        monkeypatch.setattr(training, "_torch_threads", lambda: None)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            assert torch.equal(dropout(x, 0.1, SEED), expected)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_share_and_mean(share: float) -> None:
    """Within five standard deviations, over several seeds; neighbours and seeds are not alike."""
    size = 1 << 20
    ones = torch.ones(size)
    kept = [dropout(ones, share, seed) != 0 for seed in (1, 2, 1 << 32, 3 << 40)]
    for each in kept:
        assert abs(1 - each.float().mean().item() - share) < 5 * math.sqrt(share * (1 - share) / size)
    pairs = [(kept[0][1:], kept[0][:-1]), (kept[0], kept[1]), (kept[0], kept[2]), (kept[2], kept[3])]
    for a, b in pairs:
        both = (~a & ~b).float().mean().item()
        assert abs(both - share**2) < 5 * share / math.sqrt(size)
    assert dropout(ones, share, 5).mean().item() == pytest.approx(1, abs=0.01)


def test_strides_and_empty_tensors() -> None:
    x = torch.randn(40, 30)
    assert torch.equal(dropout(x.t(), 0.5, SEED), dropout(x.t().contiguous(), 0.5, SEED))
    assert dropout(x[:0], 0.5, SEED).shape == (0, 30)


def test_what_is_left_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    assert can_drop(torch.ones(1))
    assert not can_drop(torch.ones(1, dtype=torch.float16))
    assert not can_drop(torch.ones(1, device="meta"))
    assert can_unpack(torch.ones(1, dtype=torch.float16), torch.bfloat16)
    assert not can_unpack(torch.ones(1), torch.bfloat16)
    assert not can_unpack(torch.ones(1, dtype=torch.float16), torch.float16)
    monkeypatch.setenv("QWENKIT_ISA", "reference")
    assert not can_drop(torch.ones(1))
    assert not can_unpack(torch.ones(1, dtype=torch.float16), torch.bfloat16)
