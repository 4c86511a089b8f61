"""The native forward against the plain network, over random shapes, types, caches, adapters and ragged batches.

Every result must have the same bits whatever else is in a call, however a sequence is cut, wherever its pages are, on
any number of threads and with any instruction set (but AMX, which adds in an order of its own).
"""

from __future__ import annotations

import threading

import pytest
import torch

from qwenkit.cache.paged import PagedCache
from qwenkit.config.model import ModelConfig, RopeConfig
from qwenkit.kernels import native
from qwenkit.model.step import NativeForward
from qwenkit.model.transformer import Span, Transformer
from tests.support.native_runs import (
    BASE,
    SHAPES,
    alpha_of,
    assert_near,
    exact_logits,
    make_adapter,
    make_model,
    make_pool,
    native_run,
    plain_logits,
)

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled")

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def _without_amx(monkeypatch: pytest.MonkeyPatch) -> None:
    if native.isa_name() == "amx":
        monkeypatch.setenv("QWENKIT_ISA", "avx512")


RAGGED: dict[int, list[int]] = {0: [3, 4, 1], 1: [1], 2: [31, 2, 17, 1], 3: [5, 9], 4: [33, 1]}


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_equals_the_plain_network_in_float32(shape: str, dtype: torch.dtype) -> None:
    model = make_model(shape, dtype)
    got = native_run(model, list(RAGGED)).read({row: list(sizes) for row, sizes in RAGGED.items()})
    for row, logits in got.items():
        assert_near(logits, exact_logits(shape, dtype, row), TOLERANCE[dtype])


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", list(SHAPES))
def test_the_bits_depend_on_the_sequence_alone(shape: str, dtype: torch.dtype, int8: bool) -> None:
    """Cuts, neighbours, places of pages and what was in them before."""
    model = make_model(shape, dtype)
    rows = [*range(5), *range(5, 25, 4)]
    expected = {}
    for row in rows[:5]:
        expected |= native_run(model, [row], int8=int8).read({row: [1]})
    ragged = {row: list(RAGGED[row % 5]) for row in rows}
    got = native_run(model, rows, int8=int8, poison=True).read(ragged)
    together = native_run(model, rows, int8=int8, poison=True).at_once()
    for row in rows[:5]:
        assert torch.equal(got[row], expected[row]), row
    for row in rows:
        assert torch.equal(got[row], together[row]), row


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("shape", list(SHAPES))
@pytest.mark.parametrize("dtype", TYPES)
def test_instruction_sets_give_the_same_bits(
    shape: str, dtype: torch.dtype, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model(shape, dtype)
    results = {}
    best = native.isa()
    for number, isa in enumerate(("portable", "avx2", "avx512")):
        if number <= best:
            monkeypatch.setenv("QWENKIT_ISA", isa)
            ragged = {row: list(sizes) for row, sizes in RAGGED.items()}
            run = native_run(model, list(RAGGED), int8=int8)
            results[isa] = run.read(ragged), run.pool
    for isa, (logits, pool) in results.items():
        for row, expected in results["portable"][0].items():
            assert torch.equal(logits[row], expected), isa
        assert torch.equal(pool.keys, results["portable"][1].keys), isa


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", ["grouped and tied", "biases", "odd sizes", "wider than a piece"])
def test_adapters(shape: str, dtype: torch.dtype) -> None:
    model = make_model(shape, dtype)
    adapters = [None, make_adapter(model, 1, tables=False), make_adapter(model, 2, tables=True), None, None]
    wide = [None, lambda m: make_adapter(m, 1, tables=False), lambda m: make_adapter(m, 2, tables=True)]
    mixed = native_run(model, list(RAGGED), adapters=adapters).read({r: list(s) for r, s in RAGGED.items()})
    for row in range(3):
        alone = native_run(model, [row], adapters=adapters).at_once()[row]
        assert torch.equal(mixed[row], alone)
        assert_near(alone, exact_logits(shape, dtype, row, wide[row]), TOLERANCE[dtype])
    without = native_run(model, [1]).at_once()[1]
    assert not torch.allclose(mixed[1], without, atol=1e-3)


def test_an_adapter_that_is_gone_is_forgotten() -> None:
    model = make_model("plain", torch.float32)
    run = native_run(model, [0, 1], adapters=[make_adapter(model, 1, tables=True)])
    run.at_once()
    assert isinstance(run.forward, NativeForward)
    assert len(run.forward._adapters) == 1
    run.adapters.clear()
    assert len(run.forward._adapters) == 0


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", ["grouped and tied", "odd sizes", "heads of 64", "windows"])
def test_bytes_in_the_cache_are_near_the_plain_path(shape: str, dtype: torch.dtype) -> None:
    model = make_model(shape, dtype)
    run = native_run(model, list(RAGGED), int8=True)
    for row, logits in run.at_once().items():
        pages = list(range(len(run.caches[row].pages)))
        expected = plain_logits(
            model, row, cache=PagedCache(make_pool(model, int8=True), pages, alpha=alpha_of(model, row))
        )
        # A number that falls into the next step is off by a 255th of its vector's range.
        assert_near(logits, expected, max(4e-3, 20 * TOLERANCE[dtype]))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("int8", [False, True])
def test_pages_hold_what_the_plain_path_stores(dtype: torch.dtype, int8: bool) -> None:
    """Of a network whose keys and values are exact: inputs of +-1, and one weight to each output."""
    config = ModelConfig(
        **BASE | {"num_layers": 1, "norm_eps": 0.0, "head_dim": 24, "rope": RopeConfig(base=1e4, dim=2)}
    )
    model = Transformer(config).to(dtype).requires_grad_(False)
    generator = torch.Generator().manual_seed(3)
    for weight in model.parameters():
        weight.copy_(torch.randn(weight.shape, generator=generator))
    model.embed.weight.sign_()
    model.layers[0].attn_norm.weight.fill_(1)  # type: ignore[union-attr,operator]
    qkv = model.layers[0].attn.qkv.weight  # type: ignore[union-attr]
    qkv.mul_(torch.nn.functional.one_hot(torch.arange(len(qkv)) % config.hidden_size))  # type: ignore[operator,arg-type]
    run = native_run(model, [2], int8=int8)
    run.at_once()
    other = make_pool(model, int8=int8)
    plain_logits(model, 2, cache=PagedCache(other, run.caches[2].pages))
    for name in ("values", "value_scale", "value_zero"):
        assert torch.equal(getattr(run.pool, name), getattr(other, name)), name
    first = run.caches[2].pages[0]  # the angle of the first token is zero
    assert torch.equal(run.pool.keys[first, 0, :, :, 0], other.keys[first, 0, :, :, 0])
    if int8:
        assert torch.equal(run.pool.key_scale[first, 0, :, 0], other.key_scale[first, 0, :, 0])


def test_native_and_plain_take_turns_on_one_cache() -> None:
    for dtype in TYPES:
        model = make_model("grouped and tied", dtype)
        run = native_run(model, [2])
        run.step({2: 40})
        ids = torch.tensor(run.ids[2][40:60])
        with torch.inference_mode():
            model(ids, [Span(run.caches[2], 20)])
        run.step({2: 1})
        expected = exact_logits("grouped and tied", dtype, 2)[60:61]
        assert_near(run.logits[2][-1], expected, 4 * TOLERANCE[dtype])


def test_rows_in_any_order_and_hidden_states() -> None:
    model = make_model("grouped and tied", torch.float32)
    expected = native_run(model, [2]).at_once()[2]
    rows = [70, 3, 3, 0, 68]
    for hidden in (False, True):
        run = native_run(model, [2])
        out = run.forward(run.ids[2], [Span(run.caches[2], len(run.ids[2]))], rows, hidden=hidden)
        if hidden:
            assert out.shape == (5, 48)
            out = out @ model.head.weight.T
            torch.testing.assert_close(out, expected[rows], atol=1e-4, rtol=1e-4)
        else:
            assert torch.equal(out, expected[rows])
        more = run.forward([1], [Span(run.caches[2], 1)], [])
        assert more.shape[0] == 0
        assert run.caches[2].length == 74


def test_threads_do_not_change_the_bits() -> None:
    model = make_model("wider than a piece", torch.bfloat16)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            results.append(native_run(model, list(RAGGED)).at_once())
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(results[0][row], results[1][row]) for row in RAGGED)


def test_callers_with_other_thread_counts_do_not_disturb_each_other() -> None:
    model = make_model("plain", torch.float32)
    expected = native_run(model, [0]).at_once()[0]
    results: list[torch.Tensor] = []

    def call(threads: int) -> None:
        torch.set_num_threads(threads)  # counts for the calling thread
        results.append(native_run(model, [0]).at_once()[0])

    before = torch.get_num_threads()
    try:
        callers = [threading.Thread(target=call, args=(1 + i % 3,)) for i in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    finally:
        torch.set_num_threads(before)
    assert len(results) == len(callers)
    assert all(torch.equal(result, expected) for result in results)


def test_half_precision_is_closer_to_the_truth_than_the_plain_path() -> None:
    model = make_model("wider than a piece", torch.bfloat16)
    truth = plain_logits(make_model("wider than a piece", torch.bfloat16).float(), 2)
    ours = native_run(model, [2]).at_once()[2]
    assert (ours - truth).abs().mean() < (plain_logits(model, 2) - truth).abs().mean()


@pytest.mark.parametrize("row", [None, 0, 4 * 16, 8 * 16])
def test_nan_reaches_the_logits(row: int | None) -> None:
    """Softmax is where a NaN in queries, keys or values could get lost: every comparison with it is false."""
    model = make_model("plain", torch.float32)
    layer = model.layers[1]
    weight = layer.ffn.down.weight if row is None else layer.attn.qkv.weight  # type: ignore[union-attr]
    weight[row or 3, 5] = float("nan")  # type: ignore[index,operator]
    for int8 in (False, True):
        logits = native_run(model, [0], int8=int8).at_once()[0]
        assert bool(logits.isnan().all() if row is not None else logits.isnan().any())


def test_lack_of_memory_is_an_exception() -> None:
    model = make_model("plain", torch.float32)
    run = native_run(model, [0])
    cache = run.caches[0]
    cache.length, cache.offset = 2**50, -(2**50)
    cache.check_room = lambda count: None  # type: ignore[method-assign]
    with pytest.raises(MemoryError, match="smaller batch"):
        run.forward([1], [Span(cache, 1)], [0])
