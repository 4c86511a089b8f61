"""Products of panels with activations rounded to 8 bits: what is defined, bit by bit, with every instruction set."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwenkit.kernels import native
from tests.support.int8 import (
    defined_product,
    error_of,
    isas_here,
    panels_of,
    product,
    random_weight,
    same_bits,
)
from tests.support.packed import Form

pytestmark = pytest.mark.skipif(native.library() is None, reason="the native kernels are not compiled")


def _activations(count: int, k: int, kind: str, seed: int) -> Tensor:
    """Random rows; of the odd kinds the last row or a whole unit is special."""
    x = torch.randn(count, k, generator=torch.Generator().manual_seed(seed))
    if kind == "zeros":
        x[0] = 0
        x[-1, :32] = 0
    elif kind in ("nan", "inf", "-inf"):
        x[-1, seed % k] = float(kind)
    return x * {"huge": 1e37, "tiny": 1e-38, "around the least": 1e-30}.get(kind, 1.0)


KINDS = ["plain", "zeros", "huge", "tiny", "around the least", "nan", "inf", "-inf"]


@settings(max_examples=120, deadline=None)
@given(
    panels=st.integers(1, 6),
    blocks=st.integers(1, 12),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([32, 64, 96, 128, 256, 100_000]),
    levels=st.sampled_from(["symmetric", "zeros", "mins"]),
    count=st.integers(1, 70),
    kind=st.sampled_from(KINDS),
    threads=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
@example(3, 40, 4, 128, "zeros", 21, "plain", 2, 0)
@example(1, 37, 8, 64, "zeros", 17, "plain", 2, 1)
@example(5, 33, 4, 64, "mins", 38, "nan", 1, 2)
def test_products_are_what_is_defined_with_every_instruction_set(
    panels: int,
    blocks: int,
    bits: int,
    group: int,
    levels: str,
    count: int,
    kind: str,
    threads: int,
    seed: int,
) -> None:
    weight = random_weight(16 * panels, 32 * blocks, bits=bits, group=group, levels=levels, seed=seed)
    x = _activations(count, 32 * blocks, kind, seed)
    expected = defined_product(weight, x)
    for isa in isas_here():
        assert same_bits(product(panels_of(weight), x, isa, threads=threads), expected), isa


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("levels", ["symmetric", "zeros", "mins"])
def test_a_row_has_the_same_bits_beside_any_others(bits: int, levels: str) -> None:
    weight = panels_of(random_weight(48, 160, bits=bits, group=64, levels=levels))
    x = _activations(37, 160, "plain", 3)
    for isa in isas_here():
        together = product(weight, x, isa)
        for first, count in ((0, 1), (36, 1), (0, 2), (5, 5), (5, 6), (9, 16), (20, 17), (3, 31)):
            part = product(weight, x[first : first + count].contiguous(), isa, threads=2)
            assert same_bits(part, together[first : first + count]), (isa, first, count)


@pytest.mark.parametrize("wrong", ["nan", "inf", "-inf"])
def test_a_number_that_is_not_finite_spoils_its_own_row(wrong: str) -> None:
    weight = panels_of(random_weight(32, 128, bits=4, group=32, levels="zeros"))
    for isa in isas_here():
        for count, row in ((1, 0), (5, 2), (20, 17), (33, 0)):
            x = _activations(count, 128, "plain", count)
            expected = product(weight, x, isa)
            x[row, 77] = float(wrong)
            got, others = product(weight, x, isa), [i for i in range(count) if i != row]
            assert got[row].isnan().all()
            assert same_bits(got[others], expected[others]), (isa, count)


@pytest.mark.parametrize("kind", ["tiny", "zeros"])
def test_what_is_next_to_nothing_gives_nothing(kind: str) -> None:
    weight = panels_of(random_weight(32, 64, bits=8, group=64, levels="mins"))
    for isa in isas_here():
        assert (product(weight, _activations(20, 64, kind, 0), isa)[0] == 0).all()


@pytest.mark.parametrize("group", [32, 64, 128, 4096])
@pytest.mark.parametrize("levels", ["symmetric", "zeros", "mins"])
@pytest.mark.parametrize("bits", [4, 8])
def test_products_are_near_those_of_numbers(bits: int, levels: str, group: int) -> None:
    form = Form(bits, group, levels)
    weight = form(torch.randn(64, 384, generator=torch.Generator().manual_seed(1)))
    x = _activations(40, 384, "plain", 2)
    assert 1e-4 < error_of(product(panels_of(weight), x, isas_here()[-1]), x @ weight.dequantise().T) < 0.015
