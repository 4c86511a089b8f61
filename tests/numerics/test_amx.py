"""The AMX variant of the native forward: near the plain network, and a sequence's bits depend on the sequence alone.

It computes in another order than the other instruction sets, with activations rounded to bfloat16 where they are
multiplied, so it is compared with them within a tolerance only.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwenkit.cache.paged import PagedCache
from qwenkit.config.model import RopeConfig
from qwenkit.kernels import native
from qwenkit.model.transformer import Span
from tests.support import native_runs
from tests.support.native_runs import (
    assert_near,
    exact_logits,
    make_adapter,
    make_model,
    make_pool,
    native_run,
    plain_logits,
)

pytestmark = pytest.mark.skipif(
    native.library() is None or native.isa_name() != "amx", reason="no AMX here, or no compiled kernels"
)

SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "head_dim": 32,
    "ffn_size": 96,
    "num_kv_heads": 2,
    "context_length": 1024,
    "rope": RopeConfig(base=1e4, dim=32),
}
SHAPES: dict[str, dict[str, Any]] = {
    "heads of 32": {},
    "heads of 64": {"head_dim": 64, "num_heads": 3, "num_kv_heads": 1, "rope": RopeConfig(base=1e4, dim=64)},
    "heads of 96": {"head_dim": 96, "rope": RopeConfig(base=1e4, dim=64), "tie_embeddings": True},
    "heads of 128": {"head_dim": 128, "num_heads": 2, "rope": RopeConfig(base=1e4, dim=128)},
    "many heads of one": {"num_heads": 20, "num_kv_heads": 1, "vocab_size": 1001},
    "biases": {"qkv_bias": True, "out_bias": True, "mlp_bias": True},
    "query and key norm": {"qk_norm": True},
    "windows": {"windows": (5, 290)},
    "ntk and logn": {"rope": RopeConfig(base=1e4, dim=32, ntk_length=64), "logn_length": 64},
}
PROMPTS = [7, 1, 580, 12, 290]
RAGGED: dict[int, list[int]] = {0: [3, 4, 1], 1: [1], 2: [31, 2, 300, 17, 1, 90], 3: [5, 9], 4: [33, 1, 21]}
TOLERANCE = 4e-2
"""A share of the largest logit: bfloat16 holds eight bits of every activation."""


@pytest.fixture(autouse=True)
def _shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sizes that fill tiles, and contexts of several chunks of keys."""
    monkeypatch.setattr(native_runs, "PROMPTS", PROMPTS)
    for name, shape in SHAPES.items():
        monkeypatch.setitem(native_runs.SHAPES, name, SIZES | shape)


def _ragged(rows: list[int]) -> dict[int, list[int]]:
    return {row: list(RAGGED[row % 5]) for row in rows}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_near_the_plain_network_in_float32(shape: str, int8: bool) -> None:
    model = make_model(shape, torch.bfloat16)
    run = native_run(model, list(RAGGED), int8=int8)
    assert run.forward.name == "native amx"
    for row, logits in run.at_once().items():
        expected = exact_logits(shape, torch.bfloat16, row)
        assert_near(logits, expected, TOLERANCE * (2 if int8 else 1))
        theirs = (plain_logits(model, row) - expected).abs().mean()
        assert (logits - expected).abs().mean() < theirs * (2.5 if int8 else 1)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_bits_depend_on_the_sequence_alone(shape: str, int8: bool) -> None:
    """Cuts, neighbours, places of pages and what was in them before."""
    model = make_model(shape, torch.bfloat16)
    rows = [*range(5), 5, 6, 8, 13, 18, 21, 23, 26]
    got = native_run(model, rows, int8=int8, poison=True).read(_ragged(rows))
    together = native_run(model, rows, int8=int8, poison=True).at_once()
    for row in rows:
        assert not got[row].isnan().any()
        assert torch.equal(got[row], together[row]), row
    for row in range(5):
        assert torch.equal(native_run(model, [row], int8=int8).at_once()[row], got[row]), row
    alone = native_run(model, [4], int8=int8, poison=True).read({4: [1]})
    assert torch.equal(alone[4], got[4])


@pytest.mark.parametrize("int8", [False, True])
def test_threads_do_not_change_the_bits(int8: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenkit.model.step.usable_cores", lambda: 4)
    model = make_model("heads of 64", torch.bfloat16)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 4):
            torch.set_num_threads(threads)
            results.append(native_run(model, list(RAGGED), int8=int8).read(_ragged(list(RAGGED))))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(result[row], results[0][row]) for row in RAGGED)


@pytest.mark.parametrize("shape", ["heads of 64", "biases", "many heads of one"])
def test_adapters(shape: str) -> None:
    model = make_model(shape, torch.bfloat16)
    adapters = [None, make_adapter(model, 1, tables=False), make_adapter(model, 2, tables=True), None, None]
    wide = {1: False, 2: True}
    mixed = native_run(model, list(RAGGED), adapters=adapters).read(_ragged(list(RAGGED)))
    for row in RAGGED:
        alone = native_run(model, [row], adapters=adapters).at_once()[row]
        assert torch.equal(mixed[row], alone), row
        without = native_run(model, [row]).at_once()[row]
        if row in wide:
            assert not torch.allclose(alone, without, atol=1e-2)
            tables = wide[row]
            expected = exact_logits(
                shape,
                torch.bfloat16,
                row,
                lambda m, row=row, tables=tables: make_adapter(m, row, tables=tables),
            )
            theirs = (plain_logits(model, row, adapters[row]) - expected).abs().mean()
            assert (alone - expected).abs().mean() < theirs
        else:
            assert torch.equal(alone, without), row


@pytest.mark.parametrize("int8", [False, True])
def test_pages_hold_what_the_plain_path_stores(int8: bool) -> None:
    """Of a network whose keys and values are exact: inputs of +-1, and one weight to each output."""
    model = make_model("heads of 32", torch.bfloat16)
    generator = torch.Generator().manual_seed(3)
    model.embed.weight.copy_(torch.randn(model.embed.weight.shape, generator=generator).sign())
    layer = model.layers[0]
    layer.attn_norm.weight.fill_(1)  # type: ignore[union-attr,operator]
    qkv = layer.attn.qkv.weight  # type: ignore[union-attr]
    qkv.mul_(torch.nn.functional.one_hot(torch.arange(len(qkv)) % 64))  # type: ignore[operator,arg-type]
    run = native_run(model, [2], int8=int8)
    run.at_once()
    other = make_pool(model, int8=int8)
    plain_logits(model, 2, cache=PagedCache(other, run.caches[2].pages))
    for name in ("values", "value_scale", "value_zero"):
        assert torch.equal(getattr(run.pool, name)[:, :1], getattr(other, name)[:, :1]), name
    first = run.caches[2].pages[0]  # the angle of the first token is zero
    assert torch.equal(run.pool.keys[first, 0, :, :, 0], other.keys[first, 0, :, :, 0])
    if int8:
        assert torch.equal(run.pool.key_scale[first, 0, :, 0], other.key_scale[first, 0, :, 0])
        assert torch.equal(run.pool.key_zero[first, 0, :, 0], other.key_zero[first, 0, :, 0])


def test_rows_in_any_order_and_hidden_states() -> None:
    model = make_model("heads of 32", torch.bfloat16)
    expected = native_run(model, [4]).at_once()[4]
    rows = [70, 3, 3, 0, 68, *range(20, 60), 290]
    run = native_run(model, [4])
    assert torch.equal(run.forward(run.ids[4], [Span(run.caches[4], len(run.ids[4]))], rows), expected[rows])
    run = native_run(model, [4])
    states = run.forward(run.ids[4], [Span(run.caches[4], len(run.ids[4]))], rows, hidden=True)
    assert states.shape == (len(rows), 64)
    assert_near(states @ model.head.weight.float().T, expected[rows], 1e-2)
    assert run.forward([1], [Span(run.caches[4], 1)], []).shape[0] == 0


@pytest.mark.parametrize("where", [None, 0, 4 * 32, 6 * 32])
@pytest.mark.parametrize("int8", [False, True])
def test_nan_reaches_the_logits(where: int | None, int8: bool) -> None:
    """From queries, keys, values or the feed-forward network."""
    model = make_model("heads of 32", torch.bfloat16)
    layer = model.layers[1]
    weight = layer.ffn.down.weight if where is None else layer.attn.qkv.weight  # type: ignore[union-attr]
    weight[where or 3, 5] = float("nan")  # type: ignore[index,operator]
    logits = native_run(model, [0], int8=int8).at_once()[0]
    assert bool(logits.isnan().all())


def test_sizes_that_do_not_fill_tiles_are_computed_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(native_runs.SHAPES, "odd", SIZES | {"hidden_size": 48})
    model = make_model("odd", torch.bfloat16)
    got = native_run(model, list(RAGGED)).at_once()
    monkeypatch.setenv("QWENKIT_ISA", "avx512")
    expected = native_run(model, list(RAGGED)).at_once()
    assert all(torch.equal(got[row], expected[row]) for row in RAGGED)
