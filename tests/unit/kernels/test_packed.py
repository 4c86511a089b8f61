"""Packed weights: what the bytes stand for, and what keeps its meaning when rows are cut, picked or stacked."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwenkit.kernels import packed as module
from qwenkit.kernels.packed import PackedWeight, pack_codes, stack_rows, unpack_codes


def random_packed(
    n: int,
    k: int,
    *,
    bits: int = 4,
    group: int = 32,
    kind: str = "zeros",
    ordered: bool = False,
    seed: int = 0,
) -> tuple[PackedWeight, Tensor]:
    """And the numbers it stands for, one by one in float64."""
    random = torch.Generator().manual_seed(seed)
    groups = -(-k // group)
    codes = torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, generator=random)
    zeros = torch.randint(0, 1 << bits, (n, groups), dtype=torch.uint8, generator=random)
    scales = torch.randn(n, groups, generator=random).half()
    mins = torch.randn(n, groups, generator=random).half()
    order = torch.randperm(k, generator=random).int() if ordered else None
    weight = PackedWeight(
        bits=bits,
        group_size=group,
        shape=(n, k),
        codes=pack_codes(codes, bits),
        scales=scales,
        zeros=zeros if kind == "zeros" else None,
        mins=mins if kind == "mins" else None,
        order=order,
    )
    each = torch.arange(k) // group
    middle = torch.full_like(zeros, 1 << bits - 1)
    zero = {"zeros": zeros, "middle": middle, "mins": torch.zeros_like(zeros)}[kind].double()
    numbers = (codes.double() - zero[:, each]) * scales.double()[:, each]
    numbers += mins.double()[:, each] if kind == "mins" else 0
    out = numbers.clone()
    if order is not None:
        out[:, order.long()] = numbers
    return weight, out


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 9),
    blocks=st.integers(1, 6),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([16, 32, 48, 64, 128, 1000]),
    kind=st.sampled_from(["zeros", "middle", "mins"]),
    ordered=st.booleans(),
    tile=st.sampled_from([1, 200, 1 << 18]),
)
def test_dequantise(n: int, blocks: int, bits: int, group: int, kind: str, ordered: bool, tile: int) -> None:
    weight, expected = random_packed(n, 32 * blocks, bits=bits, group=group, kind=kind, ordered=ordered)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TILE", tile)
        # In float32 a scale times an integer is exact; only adding a minimum rounds.
        assert torch.equal(weight.dequantise(), expected.float())
        assert torch.equal(weight.dequantise(torch.bfloat16), expected.float().bfloat16())


@pytest.mark.parametrize("bits", [4, 8])
def test_codes_there_and_back(bits: int) -> None:
    codes = torch.randint(0, 1 << bits, (5, 96), dtype=torch.uint8)
    packed = pack_codes(codes, bits)
    assert packed.shape == (5, 96 * bits // 8)
    assert packed.is_contiguous()
    assert torch.equal(unpack_codes(packed, bits), codes)


def test_where_4_bit_codes_lie() -> None:
    codes = (torch.arange(64) % 16)[None].to(torch.uint8)
    codes[0, 16:32] = 15 - codes[0, 16:32]
    packed = pack_codes(codes, 4)
    assert packed[0, :3].tolist() == [0xF0, 0xE1, 0xD2]  # inputs 16 and 0, 17 and 1, 18 and 2
    assert packed[0, 16:19].tolist() == [0x00, 0x11, 0x22]


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("kind", ["zeros", "middle", "mins"])
def test_rows_and_select(kind: str, ordered: bool) -> None:
    weight, _ = random_packed(10, 96, kind=kind, ordered=ordered)
    whole = weight.dequantise()
    part = weight.rows(2, 7)
    assert part.shape == (5, 96)
    assert torch.equal(part.dequantise(), whole[2:7])
    assert part.codes.data_ptr() == weight.codes[2:].data_ptr()
    picked = torch.tensor([9, 0, 0, 3])
    assert torch.equal(weight.select(picked).dequantise(), whole[picked])
    assert weight.select(picked).shape == (4, 96)
    assert weight.select(picked[:0]).dequantise().shape == (0, 96)
    assert weight.rows(4, 4).dequantise().shape == (0, 96)


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize(
    "kinds", [["zeros", "zeros"], ["middle", "zeros", "middle"], ["middle"], ["mins", "mins"]]
)
def test_stacking(kinds: list[str], ordered: bool) -> None:
    parts = [random_packed(3 + i, 96, kind=kind, ordered=ordered)[0] for i, kind in enumerate(kinds)]
    parts = [replace(part, order=parts[0].order) for part in parts]
    stacked = stack_rows(parts)
    assert stacked is not None
    assert stacked.shape == (sum(part.shape[0] for part in parts), 96)
    assert torch.equal(stacked.dequantise(), torch.cat([part.dequantise() for part in parts]))


def test_stacking_keeps_the_common_zero_unsaid() -> None:
    stacked = stack_rows([random_packed(3, 64, kind="middle")[0]] * 2)
    assert stacked is not None
    assert stacked.zeros is None


@pytest.mark.parametrize(
    "other",
    [
        {"bits": 8},
        {"group": 16},
        {"k": 128},
        {"kind": "mins"},
        {"ordered": True},
        {"ordered": True, "seed": 1},
    ],
    ids=str,
)
def test_what_cannot_be_stacked(other: dict[str, object]) -> None:
    first = random_packed(3, 64, ordered="seed" in other)[0]
    settings_ = {"k": 64} | other
    assert stack_rows([first, random_packed(3, **settings_)[0]]) is None  # type: ignore[arg-type]


def test_size_and_place() -> None:
    weight, _ = random_packed(4, 64, ordered=True)
    # codes, 2 groups of scales and zeros, order
    assert weight.nbytes == 4 * 32 + 4 * 2 * 2 + 4 * 2 + 64 * 4
    assert weight.device == torch.device("cpu")
    moved = weight.to(torch.device("meta"))
    assert {moved.codes.device.type, moved.order.device.type} == {"meta"}  # type: ignore[union-attr]
    assert moved.mins is None
