"""Networks with weights in panels: the same bits everywhere, and each token computed as its kind is."""

from __future__ import annotations

import statistics
from typing import Any

import pytest
import torch
from torch import Tensor

from qwenkit.config.model import RopeConfig
from qwenkit.kernels import native, ops
from qwenkit.kernels.packed import PackedWeight
from qwenkit.kernels.panels import PanelWeight
from qwenkit.layers.quant_linear import QuantLinear
from qwenkit.model.step import make_forward
from qwenkit.model.transformer import Layer, Transformer
from tests.support import native_runs
from tests.support.int8 import (
    Conversation,
    error_of,
    in_panels,
    int8_run,
    isas_here,
    panels_of,
    rounding_linear,
    same_bits,
)
from tests.support.native_runs import Run, assert_near, make_adapter, make_model, native_run, plain_logits
from tests.support.packed import Form, Store, pack_network, store_as

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled")

TILES: dict[str, Any] = {
    "hidden_size": 96,
    "ffn_size": 160,
    "head_dim": 32,
    "num_kv_heads": 2,
    "vocab_size": 144,
    "rope": RopeConfig(base=1e4, dim=32),
}
BIASES = {"qkv_bias": True, "out_bias": True, "mlp_bias": True}
NTK = {"rope": RopeConfig(base=1e4, dim=32, ntk_length=8), "logn_length": 8}
SHAPES: dict[str, dict[str, Any]] = {
    "panels": TILES | BIASES,
    "panels and tied": TILES | {"tie_embeddings": True},
    "panels, norms and windows": TILES | {"qk_norm": True, "windows": (5, None)},
    "panels, ntk and logn": TILES | NTK | {"num_kv_heads": 4},
    "deep panels": TILES | {"hidden_size": 352, "ffn_size": 640, "num_layers": 1},
    # Keys and values of 24 rows stay in rows behind queries in panels.
    "panels beside rows": TILES
    | BIASES
    | {"head_dim": 24, "num_kv_heads": 1, "rope": RopeConfig(base=1e4, dim=24)},
}
ROWS = [0, 1, 2, 3, 4]
RAGGED: dict[int, list[int]] = {0: [3, 4, 1], 1: [1], 2: [31, 2, 17, 1], 3: [5, 9], 4: [33, 1]}
GIVEN = {0: 4, 1: 1, 2: 40, 3: 12, 4: 30}
"""Tokens of each row that are of its prompt; the rest the model chose."""
MIXED: list[Store] = [
    in_panels(Form(4, 32, "zeros")),
    in_panels(Form(8, 64, "mins")),
    store_as(torch.float16),
    in_panels(Form(4, 128, "symmetric")),
    Form(4, 16, "symmetric"),
    in_panels(Form(8, 4096, "zeros")),
    in_panels(Form(4, 32, "mins", order=True)),
    in_panels(Form(4, 64, "zeros", order=True)),
    in_panels(Form(8, 32, "symmetric", order=True)),
    store_as(torch.bfloat16),
]
TABLE = in_panels(Form(8, 32, "symmetric"))


@pytest.fixture(autouse=True)
def _shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, shape in SHAPES.items():
        monkeypatch.setitem(native_runs.SHAPES, name, shape)


def _ragged() -> dict[int, list[int]]:
    return {row: list(sizes) for row, sizes in RAGGED.items()}


def _same(got: dict[int, Tensor], expected: dict[int, Tensor], rows: list[int] = ROWS) -> None:
    for row in rows:
        assert same_bits(got[row], expected[row]), row


def _assert_rounds_as_defined(
    model: Transformer,
    got: dict[int, Tensor],
    monkeypatch: pytest.MonkeyPatch,
    *,
    adapters: list[Any] | tuple[None] = (None,),
) -> None:
    """As plain torch has it with the same rounding of activations."""
    with monkeypatch.context() as patch:
        patch.setattr(ops, "quant_linear", rounding_linear)
        expected = {row: plain_logits(model, row, adapters[row % len(adapters)]) for row in (0, 1, 3)}
    # One number that float32 puts on the other side of a half changes all that follows a little.
    assert statistics.median(error_of(got[row][0], expected[row][0]) for row in expected) < 1e-5
    assert max(error_of(got[row], expected[row]) for row in expected) < 0.03


def _same_everywhere(
    model: Transformer, monkeypatch: pytest.MonkeyPatch, **options: Any
) -> dict[int, Tensor]:
    """The logits, which neither instruction sets nor batches nor cuts into calls may change."""
    expected = int8_run(model, ROWS, **options).at_once()
    for isa in isas_here():
        with monkeypatch.context() as patch:
            patch.setenv("QWENKIT_ISA", isa)
            _same(int8_run(model, ROWS, poison=True, **options).read(_ragged()), expected)
            _same(int8_run(model, [3], **options).read({3: [1]}), expected, [3])
    _same(int8_run(model, [4, 2], **options).read({4: [7], 2: [1, 40, 3, 16]}), expected, [4, 2])
    return expected


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ("panels", torch.float32),
        ("panels", torch.bfloat16),
        ("panels", torch.float16),
        ("panels and tied", torch.bfloat16),
        ("panels, norms and windows", torch.bfloat16),
        ("panels, ntk and logn", torch.float32),
        ("panels beside rows", torch.float32),
        ("panels beside rows", torch.bfloat16),
    ],
    ids=str,
)
def test_networks_have_the_same_bits_everywhere(
    shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    forms = [in_panels(Form(4, 64)) if shape != "panels beside rows" else _if_it_fits(Form(4, 32, "zeros"))]
    model = pack_network(make_model(shape, dtype), forms, table=TABLE)
    got = _same_everywhere(model, monkeypatch)
    wide = pack_network(make_model(shape, dtype).float(), forms, table=TABLE)
    if dtype == torch.float32:
        _assert_rounds_as_defined(wide, got, monkeypatch)
    for row in (0, 3):
        assert 1e-3 < error_of(got[row], plain_logits(wide, row)) < 0.06


def _if_it_fits(form: Form) -> Store:
    def store(weight: Tensor) -> PanelWeight | PackedWeight:
        packed = form(weight)
        return PanelWeight.of(packed) or packed

    return store


@pytest.mark.parametrize("int8", [False, True], ids=["cache", "small cache"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_part_in_a_form_of_its_own(
    dtype: torch.dtype, int8: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And with adapters, some of which bring tables of their own."""
    for stores, ordered in ((MIXED, False), (MIXED[::-1], True)):
        table = in_panels(Form(4, 32, "mins", order=ordered))
        model = pack_network(make_model("panels", dtype), stores, table=table)
        adapters = [None, make_adapter(model, 1, tables=False), make_adapter(model, 2, tables=True)]
        got = _same_everywhere(model, monkeypatch, int8=int8, adapters=adapters)
        assert not same_bits(got[1], int8_run(model, [1], int8=int8).at_once()[1])
        if dtype == torch.float32 and not int8:
            _assert_rounds_as_defined(model, got, monkeypatch, adapters=adapters)


@pytest.mark.parametrize("cuts", [(24, 88), (16, 32), (8, 24)])
def test_panels_in_the_middle_of_a_layer(cuts: tuple[int, int]) -> None:
    """Those that no whole panels lie before are computed as rows."""
    model, rows = (pack_network(make_model("panels", torch.float32), [Form(4, 64)]) for _ in range(2))
    for layer in model.layers:
        assert isinstance(layer, Layer)
        qkv = layer.attn.qkv
        first, *others = qkv.parts
        assert isinstance(first, PackedWeight)
        middle = panels_of(first.rows(*cuts))
        parts = [first.rows(0, cuts[0]), middle, first.rows(cuts[1], first.shape[0])]
        layer.attn.qkv = QuantLinear([*parts, *others], qkv.bias)
    got, expected = int8_run(model, [0, 3]).at_once(), native_run(rows, [0, 3]).at_once()
    for row in (0, 3):
        assert_near(got[row], expected[row], 0.03)


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_do_not_change_the_bits(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qwenkit.model.step.usable_cores", lambda: 4)
    model = pack_network(make_model("panels", torch.bfloat16), MIXED, table=TABLE)
    expected = [int8_run(model, ROWS).at_once(), Conversation(model, ROWS, GIVEN).at_once()]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        _same(int8_run(model, ROWS).read(_ragged()), expected[0])
        _same(Conversation(model, ROWS, GIVEN).read(_ragged()), expected[1])
    finally:
        torch.set_num_threads(before)


@pytest.mark.skipif(native.library() is None or native.isa_name() != "amx", reason="no AMX here")
class TestApart:
    """bfloat16 networks on AMX read prompts with the numbers that weights stand for, unless int8 is asked for."""

    @pytest.fixture(params=["panels", "panels and tied", "mixed"])
    def models(self, request: pytest.FixtureRequest) -> tuple[Transformer, Transformer]:
        """With panels, and the same without."""
        if request.param == "mixed":
            stores, shape, table = MIXED, "panels", TABLE
        else:
            stores, shape, table = (
                [in_panels(Form(4, 64, "zeros"))],
                request.param,
                in_panels(Form(8, 32, "mins")),
            )
        model, rows = (pack_network(make_model(shape, torch.bfloat16), stores, table=table) for _ in range(2))
        return model, _without_panels(rows)

    @pytest.mark.parametrize("int8", [False, True], ids=["cache", "small cache"])
    def test_each_token_is_computed_as_its_kind_is(
        self, models: tuple[Transformer, Transformer], int8: bool
    ) -> None:
        model, rows = models
        adapters = [None, make_adapter(model, 1, tables=False), make_adapter(model, 2, tables=True)]
        options = {"int8": int8, "adapters": adapters}
        run = Conversation(model, ROWS, GIVEN, **options)
        assert run.forward.tells_generated
        assert run.forward.name == "native amx, int8 activations behind prompts"
        got = run.read(_ragged())
        expected = native_run(rows, ROWS, **options).at_once()
        for row in ROWS:
            assert same_bits(got[row][: GIVEN[row]], expected[row][: GIVEN[row]])
        _same(Conversation(model, ROWS, GIVEN, **options).at_once(), got)
        _same(Conversation(model, [2], GIVEN, **options).read({2: [1]}), got, [2])
        # The rest once more in 8 bits alone, behind the prompts that are stored.
        for row in ROWS:
            run.caches[row].length = GIVEN[row]
        run.forward, run.logits = make_forward(model, run.pool, "int8"), {row: [] for row in ROWS}
        assert not run.forward.tells_generated
        behind = {row: len(run.ids[row]) - GIVEN[row] for row in ROWS}
        run.step(behind)
        for row in ROWS:
            assert same_bits(run.logits[row][0], got[row][GIVEN[row] :])
            assert behind[row] == 0 or not same_bits(got[row][GIVEN[row] :], expected[row][GIVEN[row] :])

    @pytest.mark.parametrize("bits", [4, 8])
    @pytest.mark.parametrize(
        ("shape", "group", "levels"),
        [
            ("panels", 32, "mins"),
            ("panels", 96, "symmetric"),
            ("panels", 128, "zeros"),
            ("deep panels", 32, "zeros"),
            ("deep panels", 64, "symmetric"),
            ("deep panels", 128, "mins"),
            ("deep panels", 4096, "zeros"),
        ],
    )
    def test_prompts_have_the_bits_of_weights_in_rows(
        self, shape: str, bits: int, group: int, levels: str
    ) -> None:
        form = Form(bits, group, levels)
        model = pack_network(make_model(shape, torch.bfloat16), [in_panels(form)], table=in_panels(form))
        rows = pack_network(make_model(shape, torch.bfloat16), [form], table=form)
        _same(native_run(model, ROWS).read(_ragged()), native_run(rows, ROWS).at_once())

    def test_parts_that_cut_tiles(self, models: tuple[Transformer, Transformer]) -> None:
        """All tokens are rounded then."""
        model, _ = models
        for layer in model.layers:
            linear = layer.attn.qkv  # type: ignore[union-attr]
            whole = linear.parts[0]  # type: ignore[union-attr,index]
            pieces = [panels_of(whole.rows(0, 48)), panels_of(whole.rows(48, 128))]  # type: ignore[union-attr]
            layer.attn.qkv = QuantLinear([*pieces, *linear.parts[1:]], linear.bias)  # type: ignore[union-attr,index,arg-type]
        expected = int8_run(model, ROWS).at_once()
        _same(Conversation(model, ROWS, GIVEN).read(_ragged()), expected)

    @pytest.mark.parametrize("hidden", [False, True])
    def test_rows_in_any_order(self, models: tuple[Transformer, Transformer], hidden: bool) -> None:
        counts = {0: 6, 2: 50, 3: 12, 1: 3}
        whole = Conversation(models[0], ROWS, GIVEN)
        ids, spans = whole.planned(counts)
        assert [span.generated for span in spans] == [False, True, False, True, False, False, True]
        expected = whole.forward(ids, spans, range(len(ids)), hidden=hidden)
        everyone = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0)).tolist()
        for rows in (everyone, [4, 3, 5, 4, 70, 0], [5], [0, 3], []):
            run = Conversation(models[0], ROWS, GIVEN)
            out = run.forward(*run.planned(counts), rows, hidden=hidden)
            assert same_bits(out, expected[rows]), rows
            assert {row: run.caches[row].length for row in counts} == counts
            _same_pages(run, whole)


def _same_pages(run: Run, other: Run) -> None:
    for name in ("keys", "values"):
        assert torch.equal(
            getattr(run.pool, name).view(torch.int16), getattr(other.pool, name).view(torch.int16)
        )


def _without_panels(model: Transformer) -> Transformer:
    for module in model.modules():
        if isinstance(module, QuantLinear):
            module.parts = tuple(_in_rows(part) for part in module.parts)
        elif hasattr(module, "table") and isinstance(module.table, PanelWeight):
            module.table = _in_rows(module.table)
    return model


def _in_rows(part: Any) -> Any:
    return part.rows(0, part.shape[0]) if isinstance(part, PanelWeight) else part
