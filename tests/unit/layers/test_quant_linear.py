"""Layers over stored weights against layers over numbers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qwenkit.kernels.packed import PackedWeight
from qwenkit.layers import quant_linear
from qwenkit.layers.packing import pack
from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear, rows_of
from qwenkit.quantize.grid import round_to_nearest

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def packed(rows: int, columns: int, *, bits: int = 4, seed: int = 0) -> PackedWeight:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return pack(round_to_nearest(weight, bits=bits, group_size=32, symmetric=False))


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_of_every_kind_below_one_another(dtype: torch.dtype) -> None:
    parts: list[Tensor | PackedWeight] = [
        packed(5, 64),
        torch.randn(3, 64).half(),
        packed(4, 64, bits=8, seed=1),
        torch.randn(2, 64).to(dtype),
    ]
    bias = torch.randn(14).to(dtype)
    x = torch.randn(2, 3, 64).to(dtype)
    weight = torch.cat([rows_of(part, 0, part.shape[0], dtype) for part in parts])
    out = QuantLinear(parts, bias)(x)
    assert (out.dtype, out.shape) == (dtype, (2, 3, 14))
    torch.testing.assert_close(
        out, F.linear(x, weight) + bias, atol=0.1 if dtype != torch.float32 else 1e-5, rtol=0
    )


def test_the_input_and_the_weights_are_left_alone() -> None:
    part = torch.randn(3, 32)
    x, before = torch.randn(2, 32), part.clone()
    first = QuantLinear([part], torch.ones(3))(x)
    assert torch.equal(first, QuantLinear([part], torch.ones(3))(x))
    assert torch.equal(part, before)


def test_a_large_matrix_is_converted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    part, x = torch.randn(50, 64).half(), torch.randn(3, 64)
    monkeypatch.setattr(quant_linear, "_CHUNK", 7 * 64)
    torch.testing.assert_close(QuantLinear([part])(x), F.linear(x, part.float()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_embedding(dtype: torch.dtype) -> None:
    ids = torch.tensor([[3, 0], [9, 3]])
    table = packed(10, 64)
    out = QuantEmbedding(table, dtype)(ids)
    assert torch.equal(out, F.embedding(ids, table.dequantise(dtype)))
    half = torch.randn(10, 64).half()
    assert torch.equal(QuantEmbedding(half, dtype)(ids), F.embedding(ids, half).to(dtype))
    assert QuantEmbedding(table, dtype)(torch.tensor([], dtype=torch.int64)).shape == (0, 64)
