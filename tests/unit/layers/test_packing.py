"""The bit order of GPTQ and AWQ files: known words, both ways, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from qwenkit.core.errors import CheckpointError
from qwenkit.kernels.packed import PackedWeight
from qwenkit.layers import packing_words
from qwenkit.layers.packing import (
    Quantised,
    from_awq_gemm,
    from_awq_gemv,
    from_gptq,
    pack,
    stored_version,
    to_awq_gemm,
    to_awq_gemv,
    to_gptq,
)


def words(*numbers: int) -> Tensor:
    """Unsigned words as int32."""
    return torch.tensor(numbers, dtype=torch.int64).to(torch.int32)


def example(n: int, k: int, group: int, *, bits: int = 4, codes: Any, zeros: Any) -> Quantised:
    """From formulas of input and output, and of group and output."""
    groups = -(-k // group)
    columns, rows = torch.arange(k), torch.arange(n)[:, None]
    return Quantised(
        bits=bits,
        group_size=group,
        codes=codes(columns, rows).to(torch.uint8),
        scales=(1 + torch.arange(n * groups).view(n, groups) / 64).half(),
        zeros=zeros(torch.arange(groups), rows).to(torch.uint8),
        g_idx=(columns // group).int(),
    )


def random_matrix(
    n: int, k: int, group: int, *, bits: int = 4, seed: int = 0, mixed: bool = False
) -> Quantised:
    random = torch.Generator().manual_seed(seed)
    groups = -(-k // group)
    g_idx = (torch.arange(k) // group).int()
    return Quantised(
        bits=bits,
        group_size=min(group, k),
        codes=torch.randint(0, 1 << bits, (n, k), dtype=torch.uint8, generator=random),
        scales=torch.randn(n, groups, generator=random).half(),
        zeros=torch.randint(0, 1 << bits, (n, groups), dtype=torch.uint8, generator=random),
        g_idx=g_idx[torch.randperm(k, generator=random)] if mixed else g_idx,
    )


def numbers(q: Quantised) -> Tensor:
    """What it stands for, from the definition."""
    group = q.g_idx.long()
    return ((q.codes.double() - q.zeros.double()[:, group]) * q.scales.double()[:, group]).float()


GPTQ4 = example(32, 32, 16, codes=lambda k, n: (k + 3 * n) % 16, zeros=lambda a, n: (5 + a + n) % 15 + 1)
GPTQ8 = example(
    32, 32, 32, bits=8, codes=lambda k, n: (7 * k + 11 * n) % 256, zeros=lambda a, n: 128 + 0 * (a + n)
)
AWQ = example(32, 32, 16, codes=lambda k, n: (k + 3 * n) % 16, zeros=lambda a, n: (5 + a + n) % 16)
GEMV = example(8, 1024, 128, codes=lambda k, n: (k + 3 * n) % 16, zeros=lambda a, n: (5 + a + n) % 16)


class TestKnownWords:
    """As the packers of AutoGPTQ and AutoAWQ write them."""

    def test_gptq_4_bit(self) -> None:
        tensors = to_gptq(GPTQ4)
        qweight, qzeros = tensors["qweight"], tensors["qzeros"]
        assert qweight.shape == (4, 32)
        assert torch.equal(qweight[0, :4], words(0x76543210, 0xA9876543, 0xDCBA9876, 0x0FEDCBA9))
        assert torch.equal(qweight[[1, 3], [5, 31]], words(0xEDCBA987, 0xCBA98765))
        assert torch.equal(qzeros[0], words(0xCBA98765, 0x543210ED, 0xDCBA9876, 0x6543210E))
        assert torch.equal(qzeros[1], words(0xDCBA9876, 0x6543210E, 0xEDCBA987, 0x76543210))
        assert tensors["g_idx"].tolist() == [0] * 16 + [1] * 16
        assert tensors["scales"].shape == (2, 32)

    def test_gptq_8_bit(self) -> None:
        tensors = to_gptq(GPTQ8)
        assert tensors["qweight"].shape == (8, 32)
        assert torch.equal(tensors["qweight"][0, :4], words(0x150E0700, 0x2019120B, 0x2B241D16, 0x362F2821))
        assert torch.equal(tensors["qweight"][7, 31:], words(0x2E272019))
        assert torch.equal(tensors["qzeros"], words(*[0x7F7F7F7F] * 8)[None])

    def test_awq_gemm(self) -> None:
        tensors = to_awq_gemm(AWQ)
        assert tensors["qweight"].shape == (32, 4)
        for row, pair in (
            (0, (0x5F932C60, 0xD71BA4E8)),
            (1, (0x60A43D71, 0xE82CB5F9)),
            (31, (0x4E821B5F, 0xC60A93D7)),
        ):
            assert torch.equal(tensors["qweight"][row], words(*pair, *pair))
        for row, pair in ((0, (0xCA86B975, 0x420E31FD)), (1, (0xDB97CA86, 0x531F420E))):
            assert torch.equal(tensors["qzeros"][row], words(*pair, *pair))

    def test_awq_gemm_of_eight_columns(self) -> None:
        q = example(8, 32, 32, codes=lambda k, n: n + 0 * k, zeros=lambda a, n: n + 0 * a)
        assert torch.equal(to_awq_gemm(q)["qweight"][0], words(0x75316420))

    def test_awq_gemv(self) -> None:
        tensors = to_awq_gemv(GEMV)
        assert torch.equal(tensors["qweight"][0, :3], words(0x76543210, 0xFEDCBA98, 0x76543210))
        assert torch.equal(tensors["qweight"][1, :2], words(0xA9876543, 0x210FEDCB))
        stored = (
            0xCBA98765,
            0xDCBA9876,
            0xEDCBA987,
            0xFEDCBA98,
            0x0FEDCBA9,
            0x10FEDCBA,
            0x210FEDCB,
            0x3210FEDC,
        )
        assert torch.equal(tensors["qzeros"], words(*stored)[:, None])

    @pytest.mark.parametrize(
        ("k", "group", "width"),
        [
            (128, 128, 1),
            (1024, 128, 1),
            (2048, 128, 2),
            (4096, 128, 4),
            (11008, 128, 11),
            (4096, 64, 8),
            (11008, 64, 22),
            (4096, 32, 16),
        ],
    )
    def test_padding_of_awq_gemv(self, k: int, group: int, width: int) -> None:
        q = random_matrix(8, k, group)
        tensors = to_awq_gemv(q)
        assert tensors["qzeros"].shape == (8, width)
        assert tensors["scales"].shape == (8, 8 * width)
        assert not tensors["scales"][:, k // group :].any()
        assert torch.equal(from_awq_gemv(tensors, group_size=group, name="a").dequantise(), numbers(q))

    @pytest.mark.parametrize("q", [GPTQ4, GPTQ8])
    @pytest.mark.parametrize("version", [1, 2])
    def test_gptq_back(self, q: Quantised, version: int) -> None:
        back = from_gptq(to_gptq(q, version=version), bits=q.bits, version=version, name="a")
        assert torch.equal(back.dequantise(), numbers(q))

    def test_awq_back(self) -> None:
        assert torch.equal(
            from_awq_gemm(to_awq_gemm(AWQ), group_size=16, name="a").dequantise(), numbers(AWQ)
        )
        assert torch.equal(
            from_awq_gemv(to_awq_gemv(GEMV), group_size=128, name="a").dequantise(), numbers(GEMV)
        )

    @pytest.mark.parametrize(
        ("bits", "version", "word"),
        [(4, 1, 0x77777777), (4, 2, 0x88888888), (8, 1, 0x7F7F7F7F), (8, 2, 0x80808080)],
    )
    def test_symmetric_zeros_of_both_versions(self, bits: int, version: int, word: int) -> None:
        qzeros = words(word, word, word, word)[None]
        assert stored_version(qzeros, bits=bits) == version
        q = replace(GPTQ8, bits=bits, zeros=torch.full((32, 1), 1 << bits - 1, dtype=torch.uint8))
        assert torch.equal(torch.unique(to_gptq(q, version=version)["qzeros"]), words(word))

    def test_zeros_of_neither_version(self) -> None:
        assert stored_version(words(0x77777777, 0x77777877), bits=4) is None


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 3).map(lambda i: 32 * i),
    k=st.integers(1, 9).map(lambda i: 32 * i),
    bits=st.sampled_from([4, 8]),
    group=st.sampled_from([16, 32, 48, 64, 128, 4096]),
    version=st.sampled_from([1, 2]),
    mixed=st.booleans(),
    tile=st.sampled_from([(8, 20), (128, 512)]),
    seed=st.integers(0, 99),
)
def test_gptq_there_and_back(
    n: int, k: int, bits: int, group: int, version: int, mixed: bool, tile: tuple[int, int], seed: int
) -> None:
    """Groups may be ragged and their inputs in any order; every number is exact."""
    q = random_matrix(n, k, group, bits=bits, seed=seed, mixed=mixed)
    stored = to_gptq(q, version=version)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_words, "_CHUNK_ROWS", tile[0])
        patch.setattr(packing_words, "_CHUNK_COLUMNS", tile[1])
        back = from_gptq(stored, bits=bits, version=version, name="a", group_size=group)
        packed = pack(q)
    assert torch.equal(back.dequantise(), numbers(q))
    assert (back.order is None) == torch.equal(q.g_idx, torch.arange(k) // group)
    assert torch.equal(packed.dequantise(), numbers(q))
    assert torch.equal(packed.codes, back.codes)
    assert all(t.is_contiguous() for t in (back.codes, back.scales, packed.codes, packed.scales))


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(1, 12).map(lambda i: 8 * i),
    groups=st.integers(1, 5),
    group=st.sampled_from([32, 64, 128]),
    gemv=st.booleans(),
    tile=st.sampled_from([(8, 5), (128, 512)]),
    seed=st.integers(0, 99),
)
def test_awq_there_and_back(
    n: int, groups: int, group: int, gemv: bool, tile: tuple[int, int], seed: int
) -> None:
    q = random_matrix(n, groups * group, group, seed=seed)
    read, write = (from_awq_gemv, to_awq_gemv) if gemv else (from_awq_gemm, to_awq_gemm)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packing_words, "_CHUNK_ROWS", tile[0])
        patch.setattr(packing_words, "_CHUNK_COLUMNS", tile[1])
        back = read(write(q), group_size=group, name="a")
    assert torch.equal(back.dequantise(), numbers(q))
    assert torch.equal(back.codes, pack(q).codes)


class TestDetails:
    def test_a_zero_of_0_touches_no_neighbour(self) -> None:
        q = random_matrix(32, 32, 32)
        q.zeros[:8, 0] = torch.tensor([1, 0, 2, 15, 0, 0, 8, 3], dtype=torch.uint8)
        stored = to_gptq(q)
        assert torch.equal(stored["qzeros"][0, :1], words(0x27FFE1F0))  # each less one; 0 becomes 15
        assert torch.equal(from_gptq(stored, bits=4, version=1, name="a").dequantise(), numbers(q))

    def test_common_zeros_are_not_kept(self) -> None:
        q = random_matrix(32, 64, 32)
        q.zeros.fill_(8)
        layouts = [
            pack(q),
            from_gptq(to_gptq(q), bits=4, version=1, name="a"),
            from_awq_gemm(to_awq_gemm(q), group_size=32, name="a"),
            from_awq_gemv(to_awq_gemv(q), group_size=32, name="a"),
        ]
        assert [weight.zeros for weight in layouts] == [None] * 4
        assert all(torch.equal(weight.dequantise(), numbers(q)) for weight in layouts)

    @pytest.mark.parametrize("group", [16, 32, 64, 128])
    def test_the_group_size_follows_from_the_shapes(self, group: int) -> None:
        q = random_matrix(32, 576, group)
        stored = to_gptq(q)
        del stored["g_idx"]
        back = from_gptq(stored, bits=4, version=1, name="a")
        assert (back.group_size, back.order) == (group, None)
        assert torch.equal(back.dequantise(), numbers(q))

    @pytest.mark.parametrize("said", [-1, 96, 128, None])
    def test_one_group_per_row(self, said: int | None) -> None:
        q = random_matrix(32, 96, 96)
        back = from_gptq(to_gptq(q), bits=4, version=1, name="a", group_size=said)
        assert (back.group_size, back.order) == (96, None)
        assert torch.equal(back.dequantise(), numbers(q))
        if said in (-1, 96):
            awq = from_awq_gemm(to_awq_gemm(q), group_size=said, name="a")
            assert torch.equal(awq.dequantise(), numbers(q))

    def test_groups_in_another_order(self) -> None:
        """As a quantiser with fixed groups could number them."""
        q = random_matrix(32, 64, 32)
        q.g_idx.copy_(1 - q.g_idx)
        back = from_gptq(to_gptq(q), bits=4, version=1, name="a")
        assert back.order is not None
        assert back.order.tolist() == [*range(32, 64), *range(32)]
        assert torch.equal(back.dequantise(), numbers(q))

    def test_a_g_idx_that_was_never_filled(self) -> None:
        q = random_matrix(32, 64, 32)
        stored = to_gptq(q) | {"g_idx": torch.zeros(64, dtype=torch.int32)}
        back = from_gptq(stored, bits=4, version=1, name="a", desc_act=False)
        assert torch.equal(back.dequantise(), numbers(q))
        with pytest.raises(CheckpointError, match="groups of 0 to 64 inputs"):
            from_gptq(stored, bits=4, version=1, name="a", desc_act=True)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
    def test_scales_of_another_type(self, dtype: torch.dtype) -> None:
        q = random_matrix(32, 64, 32)
        q.scales.copy_(q.scales.bfloat16())
        stored = to_gptq(q)
        stored["scales"] = stored["scales"].to(dtype)
        assert torch.equal(from_gptq(stored, bits=4, version=1, name="a").dequantise(), numbers(q))

    @pytest.mark.parametrize("layout", ["gptq", "gptq8", "gemm", "gemv"])
    def test_nothing_is_shared_with_what_was_read(self, layout: str) -> None:
        q = random_matrix(32, 1024, 1024 if "gptq" in layout else 128, bits=8 if layout == "gptq8" else 4)
        stored, weight = _stored(layout, q)
        before = weight.dequantise()
        for tensor in stored.values():
            tensor.zero_()
        assert torch.equal(weight.dequantise(), before)

    def test_packing_leaves_its_input_alone(self) -> None:
        q = random_matrix(32, 64, 32, bits=8, mixed=True)
        before = q.codes.clone()
        pack(q)
        assert torch.equal(q.codes, before)


def _stored(layout: str, q: Quantised) -> tuple[dict[str, Tensor], PackedWeight]:
    if layout == "gemm":
        return (t := to_awq_gemm(q)), from_awq_gemm(t, group_size=128, name="a")
    if layout == "gemv":
        return (t := to_awq_gemv(q)), from_awq_gemv(t, group_size=128, name="a")
    return (t := to_gptq(q, version=2)), from_gptq(t, bits=q.bits, version=2, name="a")
