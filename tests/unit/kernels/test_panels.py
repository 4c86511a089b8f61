"""Weights in panels: the numbers of the packed weight, in any rows, and refused where sixteen rows do not lie together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwenkit.kernels import ops
from qwenkit.kernels.packed import PackedWeight
from qwenkit.kernels.panels import PanelWeight
from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear, rows_of
from tests.support.int8 import panels_of, random_weight

FORMS: dict[str, Any] = {
    "blocks": st.integers(1, 9),
    "bits": st.sampled_from([4, 8]),
    "group": st.sampled_from([32, 64, 96, 128, 256, 1000, 100_000]),
    "levels": st.sampled_from(["symmetric", "zeros", "mins"]),
    "ordered": st.booleans(),
}
EXAMPLE: dict[str, Any] = {"bits": 4, "group": 64, "levels": "zeros"}


def _assert_same(got: PackedWeight, expected: PackedWeight) -> None:
    assert (got.bits, got.group_size, got.shape) == (expected.bits, expected.group_size, expected.shape)
    for name in ("codes", "scales", "zeros", "mins", "order"):
        mine, theirs = getattr(got, name), getattr(expected, name)
        assert (mine is None) == (theirs is None), name
        if mine is not None:
            assert mine.dtype == theirs.dtype
            assert torch.equal(mine, theirs), name


@settings(max_examples=60, deadline=None)
@given(panels=st.integers(1, 5), data=st.data(), **FORMS)
def test_numbers_and_size_stay(
    panels: int, data: st.DataObject, blocks: int, bits: int, group: int, levels: str, ordered: bool
) -> None:
    n, k = 16 * panels, 32 * blocks
    whole_groups = min(group, k) if group == 1000 else group
    weight = random_weight(n, k, bits=bits, group=whole_groups, levels=levels, ordered=ordered)
    found = panels_of(weight)
    assert (found.bits, found.group_size, found.shape) == (bits, whole_groups, (n, k))
    assert found.device == torch.device("cpu")
    assert found.nbytes == weight.nbytes
    assert torch.equal(found.dequantise(), weight.dequantise())
    assert torch.equal(found.dequantise(torch.bfloat16), weight.dequantise(torch.bfloat16))
    first = data.draw(st.integers(0, n), label="first")
    end = data.draw(st.integers(first, n), label="end")
    _assert_same(found.rows(first, end), weight.rows(first, end))
    rows = data.draw(st.lists(st.integers(0, n - 1), max_size=20), label="rows")
    chosen = torch.tensor(rows, dtype=torch.int64)
    _assert_same(found.select(chosen), weight.select(chosen))


def test_all_tensors_are_contiguous_and_lie_as_promised() -> None:
    weight = random_weight(48, 64, bits=8, group=32, levels="zeros", ordered=True)
    found = panels_of(weight)
    tensors = (found.codes, found.scales, found.zeros, found.order)
    assert all(tensor is not None and tensor.is_contiguous() for tensor in tensors)
    assert found.zeros is not None
    assert weight.zeros is not None
    assert found.codes.shape == (3, 2, 8, 16, 4)
    assert found.scales.shape == found.zeros.shape == (3, 2, 16)
    for row, column in ((0, 0), (17, 5), (47, 63), (30, 34)):
        code = found.codes[row // 16, column // 32, column % 32 // 4, row % 16, column % 4]
        assert code == weight.codes[row, column]
        assert found.scales[row // 16, column // 32, row % 16] == weight.scales[row, column // 32]
        assert found.zeros[row // 16, column // 32, row % 16] == weight.zeros[row, column // 32]


def test_four_bits_lie_as_promised() -> None:
    """Of 32 inputs the first sixteen in the low halves, the last in the high ones."""
    weight = random_weight(32, 96, bits=4, group=96, levels="mins")
    found, codes = panels_of(weight), (weight.dequantise() - _mins(weight)) / weight.scales.float()
    for row, column in ((0, 0), (17, 5), (31, 95), (30, 47), (3, 48)):
        at = column % 32
        both = int(found.codes[row // 16, column // 32, at % 16 // 4, row % 16, at % 4])
        assert (both & 15 if at < 16 else both >> 4) == round(float(codes[row, column]))


def _mins(weight: PackedWeight) -> Tensor:
    assert weight.mins is not None
    return weight.mins.float()


@pytest.mark.parametrize("rows", [1, 8, 15, 17, 40])
def test_rows_that_fill_no_panel(rows: int) -> None:
    assert PanelWeight.of(random_weight(rows, 64, **EXAMPLE)) is None


@pytest.mark.parametrize("group", [16, 48, 80])
@pytest.mark.parametrize("bits", [4, 8])
def test_groups_that_cut_chunks(bits: int, group: int) -> None:
    assert PanelWeight.of(random_weight(16, 160, bits=bits, group=group, levels="zeros")) is None


@pytest.mark.parametrize("group", [64, 80, 1 << 20])
def test_one_group_of_the_whole_row(group: int) -> None:
    weight = random_weight(16, 64, bits=4, group=group, levels="symmetric")
    assert torch.equal(panels_of(weight).dequantise(), weight.dequantise())


def test_inputs_that_fill_no_chunk() -> None:
    assert PanelWeight.of(random_weight(16, 48, bits=8, group=48, levels="symmetric")) is None


def test_only_on_the_cpu() -> None:
    weight = random_weight(16, 64, **EXAMPLE).to(torch.device("meta"))
    assert PanelWeight.of(weight) is None


def test_memory_can_be_given_and_the_weight_stays() -> None:
    weight = random_weight(32, 64, **EXAMPLE, ordered=True)
    before, asked = weight.dequantise(), []

    def empty(shape: tuple[int, ...], *, dtype: torch.dtype) -> Tensor:
        asked.append(torch.empty(*shape, dtype=dtype))
        return asked[-1]

    found = PanelWeight.of(weight, empty)
    assert found is not None
    assert torch.equal(weight.dequantise(), before)
    assert [t.data_ptr() for t in asked] == [
        t.data_ptr() for t in (found.codes, found.scales, found.zeros) if t is not None
    ]
    assert found.codes.data_ptr() != weight.codes.data_ptr()


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_plain_torch_computes_with_them(
    dtype: torch.dtype, ordered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In layers, a few rows at a time too, as with the packed weight."""
    weight = random_weight(48, 64, **EXAMPLE, ordered=ordered)
    found = panels_of(weight)
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    ids = torch.tensor([[3, 47], [16, 3]])
    for tile in (1 << 24, 64 * 20):
        monkeypatch.setattr(ops, "_CHUNK", tile)
        assert torch.equal(QuantLinear([found])(x), QuantLinear([weight])(x))
    assert torch.equal(QuantEmbedding(found, dtype)(ids), QuantEmbedding(weight, dtype)(ids))
    assert torch.equal(rows_of(found, 5, 40, dtype), rows_of(weight, 5, 40, dtype))
    assert torch.equal(rows_of(found, 40, 60, dtype), rows_of(weight, 40, 60, dtype))
