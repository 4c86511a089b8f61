"""The native forward over packed weights: the bits of the dense network that they stand for, in every form."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qwenkit.config.model import RopeConfig
from qwenkit.kernels import native
from qwenkit.layers.quant_linear import QuantLinear
from qwenkit.model.transformer import Transformer
from tests.support import native_runs
from tests.support.native_runs import (
    assert_near,
    make_adapter,
    make_model,
    native_run,
    plain_logits,
)
from tests.support.packed import Form, Store, fuse, pack_network, store_as, unpacked

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled")

SIZES: dict[str, Any] = {
    "hidden_size": 96,
    "ffn_size": 160,
    "head_dim": 24,
    "rope": RopeConfig(base=1e4, dim=24),
}
TILES: dict[str, Any] = {
    "hidden_size": 96,
    "ffn_size": 160,
    "head_dim": 32,
    "rope": RopeConfig(base=1e4, dim=32),
}
SHAPES: dict[str, dict[str, Any]] = {
    "packed": SIZES | {"qkv_bias": True},
    "packed and tied": SIZES | {"num_kv_heads": 2, "tie_embeddings": True, "vocab_size": 131},
    "tiles": TILES | {"qkv_bias": True},
    "tiles and tied": TILES | {"num_kv_heads": 2, "tie_embeddings": True, "vocab_size": 131},
    "deep": TILES | {"hidden_size": 608, "ffn_size": 1024, "num_layers": 1},
}
FORMS = [
    Form(bits, group, levels)
    for bits in (4, 8)
    for group, levels in (
        (16, "zeros"),
        (32, "mins"),
        (48, "zeros"),
        (64, "symmetric"),
        (80, "mins"),
        (128, "zeros"),
        (4096, "symmetric"),
    )
]
ROWS = [0, 1, 2, 3, 4]
RAGGED: dict[int, list[int]] = {0: [3, 4, 1], 1: [1], 2: [31, 2, 17, 1], 3: [5, 9], 4: [33, 1]}
MIXED: list[Store] = [
    Form(4, 32, "zeros"),
    Form(8, 48, "mins"),
    store_as(torch.float16),
    Form(4, 16, "symmetric"),
    store_as(torch.bfloat16),
]
WITHOUT_AMX = ["portable", "avx2", "avx512"]


@pytest.fixture(autouse=True)
def _shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shape in SHAPES.items():
        monkeypatch.setitem(native_runs.SHAPES, name, shape)


def _force(monkeypatch: pytest.MonkeyPatch, isa: str) -> None:
    monkeypatch.delenv("QWENKIT_ISA", raising=False)
    if WITHOUT_AMX.index(isa) > native.isa():
        pytest.skip(f"no {isa} here")
    monkeypatch.setenv("QWENKIT_ISA", isa)


def _ragged() -> dict[int, list[int]]:
    return {row: list(sizes) for row, sizes in RAGGED.items()}


def _assert_same(model: Transformer, other: Transformer, **options: Any) -> dict[int, torch.Tensor]:
    """Over one token at a time, a few and many."""
    got = native_run(model, ROWS, **options).read(_ragged())
    expected = native_run(other, ROWS, **options).read(_ragged())
    for row in ROWS:
        assert torch.equal(got[row], expected[row]), row
    return got


def _assert_consistent(model: Transformer, **options: Any) -> dict[int, torch.Tensor]:
    """A sequence's bits depend on the sequence alone."""
    together = native_run(model, ROWS, **options).at_once()
    ragged = native_run(model, ROWS, poison=True, **options).read(_ragged())
    for row in ROWS:
        assert torch.equal(ragged[row], together[row]), row
    for row in (1, 3):
        assert torch.equal(native_run(model, [row], **options).read({row: [1]})[row], together[row]), row
    return together


@pytest.mark.parametrize(
    ("form", "isa"),
    [*((form, "avx512") for form in FORMS), *((form, "avx2") for form in FORMS[::3])],
    ids=str,
)
def test_a_packed_network_has_the_bits_of_its_float32_weights(
    form: Form, isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _force(monkeypatch, isa)
    model = pack_network(make_model("packed", torch.float32), [form], table=form)
    got = _assert_same(model, unpacked(model))
    assert_near(got[3], plain_logits(model, 3), 2e-5)


@pytest.mark.parametrize("isa", WITHOUT_AMX)
@pytest.mark.parametrize("shape", ["packed", "packed and tied"])
def test_every_part_has_a_form_of_its_own(shape: str, isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    _force(monkeypatch, isa)
    model = pack_network(make_model(shape, torch.float32), MIXED, table=Form(8, 64, "symmetric"))
    got = _assert_same(model, unpacked(model))
    assert_near(got[2], plain_logits(model, 2), 2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_instruction_sets_and_batches_give_the_same_bits(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = [*MIXED, Form(4, 32, "zeros", order=True), Form(8, 128, "symmetric", order=True)]
    model = pack_network(make_model("packed", dtype), stores, table=Form(4, 32, "mins"))
    results = []
    for isa in WITHOUT_AMX[: native.isa() + 1]:
        monkeypatch.setenv("QWENKIT_ISA", isa)
        results.append(_assert_consistent(model))
    for other in results[1:]:
        assert all(torch.equal(other[row], results[0][row]) for row in ROWS)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenkit.model.step.usable_cores", lambda: 4)
    model = pack_network(make_model("tiles", torch.bfloat16), MIXED, table=Form(8))
    expected = native_run(model, ROWS).at_once()
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        got = native_run(model, ROWS).at_once()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(got[row], expected[row]) for row in ROWS)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_columns_in_another_order(dtype: torch.dtype, bits: int) -> None:
    form = Form(bits, 32, "zeros", order=True)
    model = pack_network(make_model("tiles", dtype), [form], table=None)
    got = _assert_consistent(model)
    wide = unpacked(model).float()
    for row in (0, 2):
        assert_near(got[row], plain_logits(wide, row), 2e-5 if dtype == torch.float32 else 4e-2)
    assert not torch.equal(
        got[0], native_run(pack_network(make_model("tiles", dtype), [Form(bits)]), [0]).at_once()[0]
    )


def test_a_head_in_another_order_and_parts_that_share_one() -> None:
    form = Form(4, 64, "mins", order=True)
    model = fuse(make_model("packed", torch.float32), [form])
    head = model.head.parts[0]
    assert isinstance(head, torch.Tensor)
    model.head = QuantLinear([form(head)])
    got = _assert_consistent(model)
    assert_near(got[2], plain_logits(model, 2), 2e-5)


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16])
def test_tables_in_half_precision_under_a_float32_network(stored: torch.dtype) -> None:
    model = pack_network(make_model("packed and tied", torch.float32), [Form(8)], table=store_as(stored))
    _assert_same(model, unpacked(model))


def test_adapters_on_packed_weights() -> None:
    model = pack_network(make_model("packed", torch.float32), MIXED, table=Form(8))
    adapters = [None, make_adapter(model, 1, tables=False), make_adapter(model, 2, tables=True)]
    _assert_same(model, unpacked(model), adapters=adapters)


class TestAmx:
    """bfloat16 networks whose sizes fill tiles: the bits of the weights rounded to bfloat16."""

    @pytest.fixture(autouse=True)
    def _needs_amx(self) -> None:
        if native.isa_name() != "amx":
            pytest.skip("no AMX here")

    @pytest.mark.parametrize("form", FORMS, ids=str)
    def test_forms(self, form: Form) -> None:
        model = pack_network(make_model("tiles", torch.bfloat16), [form], table=form)
        got = _assert_same(model, unpacked(model))
        assert_near(got[2], plain_logits(model, 2), 4e-2)

    @pytest.mark.parametrize("form", [Form(4, 32), Form(4, 48, "zeros"), Form(8, 128, "mins")], ids=str)
    def test_more_inputs_than_are_unpacked_at_once(self, form: Form) -> None:
        model = pack_network(make_model("deep", torch.bfloat16), [form], table=form)
        _assert_same(model, unpacked(model))

    @pytest.mark.parametrize("shape", ["tiles", "tiles and tied"])
    @pytest.mark.parametrize("int8", [False, True])
    def test_mixed_parts(self, shape: str, int8: bool) -> None:
        model = pack_network(make_model(shape, torch.bfloat16), MIXED, table=Form(8, 64))
        _assert_same(model, unpacked(model), int8=int8)
        _assert_consistent(model, int8=int8)

    def test_adapters(self) -> None:
        model = pack_network(make_model("tiles", torch.bfloat16), MIXED, table=Form(8))
        adapters = [None, make_adapter(model, 1, tables=False), make_adapter(model, 2, tables=True)]
        _assert_same(model, unpacked(model), adapters=adapters)

    @pytest.mark.parametrize("cut", [48, 33])
    def test_parts_that_cut_tiles_are_computed_without(
        self, cut: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = pack_network(make_model("tiles", torch.bfloat16), [Form(4)])
        for layer in model.layers:
            whole = layer.attn.qkv.parts[0]  # type: ignore[union-attr,index]
            rest = layer.attn.qkv.parts[1:]  # type: ignore[union-attr,index]
            pieces = [whole.rows(0, cut), whole.rows(cut, whole.shape[0])]  # type: ignore[union-attr]
            layer.attn.qkv = QuantLinear([*pieces, *rest], layer.attn.qkv.bias)  # type: ignore[union-attr]
        got = native_run(model, ROWS).at_once()
        monkeypatch.setenv("QWENKIT_ISA", "avx512")
        expected = native_run(model, ROWS).at_once()
        assert all(torch.equal(got[row], expected[row]) for row in ROWS)
