"""Numbers made of the raw words are those of the form that the rest of the library keeps in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from qwenkit.hf import unpacking
from qwenkit.hf.unpacking import Layout, dequantised, dequantised_by_torch
from qwenkit.kernels import native
from qwenkit.kernels.packed import PackedWeight
from qwenkit.layers.packing import from_awq_gemm, from_awq_gemv, from_gptq
from qwenkit.layers.packing_checks import gemv_words

TYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SIZES = [(64, 96, 32), (96, 32, 64), (128, 64, 128), (576, 32, 128), (160, 64, 16), (4096, 32, 4096)]


def words(*shape: int) -> Tensor:
    return torch.randint(-(2**31), 2**31 - 1, shape, dtype=torch.int32)


def scales(*shape: int) -> Tensor:
    """Any finite float16 but the smallest, whose products with codes would round."""
    return (torch.randn(shape) * 0.05).half()


def assert_same(layout: Layout, tensors: dict[str, Tensor], expected: PackedWeight) -> None:
    order = torch.argsort(tensors["g_idx"], stable=True) if "g_idx" in tensors else None
    for dtype in TYPES:
        parts = [tensors[part] for part in ("qweight", "qzeros", "scales")]
        numbers = expected.dequantise(dtype).t()
        numbers = numbers if order is None else numbers[order]
        assert torch.equal(dequantised_by_torch(layout, *parts, order, dtype), numbers)
        assert torch.equal(dequantised(layout, *parts, order, dtype), numbers)


@pytest.fixture(params=[64, 1 << 18], ids=["small tiles", "one tile"], autouse=True)
def tiles(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(unpacking, "_TILE", request.param)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("k", "n", "size"), SIZES)
def test_gptq(k: int, n: int, size: int, bits: int, version: int) -> None:
    """Also groups of which the last is shorter."""
    groups = -(-k // size)
    tensors = {
        "qweight": words(k * bits // 32, n),
        "qzeros": words(groups, n * bits // 32),
        "scales": scales(groups, n),
    }
    expected = from_gptq(tensors, bits=bits, version=version, name="m", group_size=size)
    assert_same(Layout(kind="gptq", bits=bits, group_size=size, version=version), tensors, expected)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("k", "n", "size"), SIZES)
def test_gptq_with_scattered_groups(k: int, n: int, size: int, bits: int) -> None:
    groups = -(-k // size)
    tensors = {
        "qweight": words(k * bits // 32, n),
        "qzeros": words(groups, n * bits // 32),
        "scales": scales(groups, n),
        "g_idx": (torch.arange(k) // size)[torch.randperm(k)].int(),
    }
    expected = from_gptq(tensors, bits=bits, version=1, name="m", group_size=size)
    assert_same(Layout(kind="gptq", bits=bits, group_size=size, version=1), tensors, expected)


@pytest.mark.parametrize(("k", "n", "size"), [s for s in SIZES if s[0] % s[2] == 0])
def test_awq(k: int, n: int, size: int) -> None:
    tensors = {
        "qweight": words(k, n // 8),
        "qzeros": words(k // size, n // 8),
        "scales": scales(k // size, n),
    }
    expected = from_awq_gemm(tensors, group_size=size, name="m")
    assert_same(Layout(kind="gemm", bits=4, group_size=size), tensors, expected)
    padded = gemv_words(k, size)
    if padded is None:
        return
    tensors = {"qweight": words(n, k // 8), "qzeros": words(n, padded), "scales": scales(n, 8 * padded)}
    expected = from_awq_gemv(tensors, group_size=size, name="m")
    assert_same(Layout(kind="gemv", bits=4, group_size=size), tensors, expected)


@pytest.mark.skipif(native.library() is None, reason="the CPU kernels are not compiled")
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("kind", ["gptq", "gptq8", "scattered", "gemm", "gemv"])
@pytest.mark.parametrize("scale_type", [torch.float16, torch.bfloat16])
def test_kernels_give_the_bits_of_torch(
    kind: str, isa: str, scale_type: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On all instruction sets, for more outputs than are scaled at once, and for scales of every size."""
    monkeypatch.setenv("QWENKIT_ISA", "portable")
    best = native.library().qk_best_isa()  # type: ignore[union-attr]
    if ("portable", "avx2", "avx512").index(isa) > best:
        pytest.skip(f"this CPU has no {isa}")
    monkeypatch.setenv("QWENKIT_ISA", isa)
    k, n, size = 640, 1120, 128
    bits, groups = 8 if kind == "gptq8" else 4, k // size
    layout = Layout(kind=kind if kind.startswith("gem") else "gptq", bits=bits, group_size=size, version=2)
    shapes = {"gemm": ((k, n // 8), (groups, n // 8)), "gemv": ((n, k // 8), (n, 1))}
    codes, zeros = shapes.get(kind, ((k * bits // 32, n), (groups, n * bits // 32)))
    factor = (torch.randn((n, 8) if kind == "gemv" else (groups, n)).exp() * 1e-5).to(scale_type)
    assert bool((factor > 0).any())
    order = torch.randperm(k) if kind == "scattered" else None
    given = (layout, words(*codes), words(*zeros), factor, order)
    for dtype in (torch.float32, torch.bfloat16):
        assert torch.equal(dequantised(*given, dtype), dequantised_by_torch(*given, dtype))
