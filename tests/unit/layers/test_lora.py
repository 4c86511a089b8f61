"""Adapters in memory and their share of a ragged batch, against plain matrix products."""

from __future__ import annotations

import weakref

import pytest
import torch
from torch import Tensor

from qwenkit.layers.linear import Linear
from qwenkit.layers.lora import PARTS, Adapter, LoraWeights, adapted, adapter_rows

CPU = torch.device("cpu")


def _weights(inputs: int, outputs: int, rank: int, seed: int) -> LoraWeights:
    generator = torch.Generator().manual_seed(seed)
    return LoraWeights(
        a=torch.randn(rank, inputs, generator=generator), b=torch.randn(outputs, rank, generator=generator)
    )


def _adapter(name: str, seed: int, *, part: str = "qkv", **tables: Tensor) -> Adapter:
    return Adapter(name=name, layers=({part: _weights(6, 10, 3, seed)}, {}), **tables)


@pytest.fixture
def linear() -> Linear:
    layer = Linear(6, 10, bias=True)
    torch.manual_seed(0)
    torch.nn.init.normal_(layer.weight)
    torch.nn.init.normal_(layer.bias)
    return layer


def test_every_row_gets_its_own_update(linear: Linear) -> None:
    one, two = _adapter("one", 1), _adapter("two", 2)
    rows = adapter_rows([2, 1, 3, 1], [one, None, two, one], CPU)
    x = torch.randn(7, 6)
    out = adapted(linear, x, rows, 0, "qkv")
    for row, owner in enumerate([one, one, None, two, two, two, one]):
        weight = linear.weight.clone()
        if owner is not None:
            weight += owner.layers[0]["qkv"].b @ owner.layers[0]["qkv"].a
        torch.testing.assert_close(out[row], weight @ x[row] + linear.bias, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("layer", "part"), [(0, "out"), (1, "qkv")])
def test_other_parts_and_layers_stay(linear: Linear, layer: int, part: str) -> None:
    rows = adapter_rows([3], [_adapter("one", 1)], CPU)
    x = torch.randn(3, 6)
    assert torch.equal(adapted(linear, x, rows, layer, part), linear(x))


def test_without_adapters_there_is_nothing_to_do(linear: Linear) -> None:
    assert adapter_rows([2, 3], [None, None], CPU) is None
    x = torch.randn(3, 6)
    assert torch.equal(adapted(linear, x, None, 0, "qkv"), linear(x))


def test_rows_can_be_selected_in_any_order(linear: Linear) -> None:
    one, two = _adapter("one", 1), _adapter("two", 2)
    rows = adapter_rows([2, 1, 3], [one, None, two], CPU)
    assert rows is not None
    x, wanted = torch.randn(6, 6), torch.tensor([5, 2, 0])
    whole = adapted(linear, x, rows, 0, "qkv")
    some = adapted(linear, x[wanted], rows.select(wanted), 0, "qkv")
    torch.testing.assert_close(some, whole[wanted], atol=1e-5, rtol=0)
    assert rows.select(None) is rows
    none = rows.select(torch.tensor([2]))
    assert torch.equal(adapted(linear, x[:1], none, 0, "qkv"), linear(x[:1]))


def test_tables_replace_embedding_and_head_of_their_rows() -> None:
    table, head = torch.randn(4, 6), torch.randn(4, 6)
    rows = adapter_rows([1, 2], [None, _adapter("one", 1, embed=table, head=head)], CPU)
    assert rows is not None
    ids = torch.tensor([3, 0, 2])
    embedded = rows.embed(torch.zeros(3, 6), ids)
    assert torch.equal(embedded, torch.cat([torch.zeros(1, 6), table[[0, 2]]]))
    x = torch.randn(3, 6)
    logits = rows.head(torch.zeros(3, 4), x)
    torch.testing.assert_close(logits, torch.cat([torch.zeros(1, 4), x[1:] @ head.T]))


def test_size_counts_a_shared_table_once() -> None:
    table = torch.zeros(4, 6, dtype=torch.bfloat16)
    assert _adapter("one", 1).num_params == 3 * 16
    assert _adapter("one", 1).nbytes == 3 * 16 * 4
    assert _adapter("one", 1, embed=table, head=table).num_params == 3 * 16 + 24
    assert _adapter("one", 1, embed=table, head=table.clone()).num_params == 3 * 16 + 48
    assert _adapter("one", 1, embed=table, head=table).nbytes == 3 * 16 * 4 + 48


def test_adapters_are_compared_by_identity_and_can_be_kept_weakly() -> None:
    one, same = _adapter("one", 1), _adapter("one", 1)
    assert one != same
    assert len({one, same}) == 2
    assert weakref.ref(one)() is one
    assert PARTS == ("qkv", "out", "gate_up", "down")
