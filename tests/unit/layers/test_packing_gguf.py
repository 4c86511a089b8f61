"""GGUF blocks stay the numbers they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf.constants import GGMLQuantizationType
from gguf.quants import dequantize, quantize

from qwenkit.core.errors import CheckpointError
from qwenkit.layers.packing_gguf import PACKED_KINDS, from_gguf

SINE = {  # 32 numbers 2 sin(0.37 i), and what the first six become
    "Q4_0": (
        "f9b3b885533110000224477aacceeffffffd",
        [0, 0.74744, 1.24573, 1.74402, 1.99316, 1.99316],
    ),
    "Q4_1": (
        "4034f6bf578aaddeeffffddbb996643110000112",
        [-0.13086, 0.66602, 1.46289, 1.72852, 1.99414, 1.99414],
    ),
    "Q8_0": (
        "0424002e56727f7b664317e8bc9a85818eabd3012f57737f7a654216e7bc9985818f",
        [0, 0.72156, 1.349, 1.78821, 1.99213, 1.92938],
    ),
}


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32)


@pytest.mark.parametrize("kind", PACKED_KINDS)
def test_a_known_block(kind: str) -> None:
    text, expected = SINE[kind]
    raw = torch.frombuffer(bytearray.fromhex(text), dtype=torch.uint8)[None]
    assert from_gguf(raw, kind).dequantise()[0, :6].tolist() == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize("kind", PACKED_KINDS)
@pytest.mark.parametrize("shape", [(1, 32), (7, 96), (40, 576)])
def test_every_number_stays(kind: str, shape: tuple[int, int]) -> None:
    type_ = GGMLQuantizationType[kind]
    raw = quantize(matrix(*shape), type_)
    packed = from_gguf(torch.from_numpy(raw), kind)
    assert packed.shape == shape
    assert all(t.is_contiguous() for t in (packed.codes, packed.scales))
    np.testing.assert_array_equal(packed.dequantise().numpy(), dequantize(raw, type_))


@pytest.mark.parametrize("kind", PACKED_KINDS)
def test_any_bytes(kind: str) -> None:
    """Codes that no quantiser writes, such as -128 in Q8_0, negative scales, and subnormal ones."""
    type_ = GGMLQuantizationType[kind]
    raw = quantize(matrix(64, 256), type_)
    block = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[kind]
    noise = np.random.default_rng(1).integers(0, 256, raw.shape, dtype=np.uint8)
    blocks = noise.reshape(64, -1, block)
    blocks[:, :, 1] &= 0xBF  # scales and minima stay finite
    blocks[:, :, 3] &= 0xBF if kind == "Q4_1" else 0xFF
    np.testing.assert_array_equal(
        from_gguf(torch.from_numpy(noise), kind).dequantise().numpy(), dequantize(noise, type_)
    )


def test_rows_can_be_permuted() -> None:
    raw = quantize(matrix(12, 64), GGMLQuantizationType.Q4_1)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    packed = from_gguf(torch.from_numpy(raw), "Q4_1")
    assert torch.equal(packed.select(order).dequantise(), packed.dequantise()[order])


def test_nothing_is_shared_with_what_was_read() -> None:
    raw = torch.from_numpy(quantize(matrix(4, 32), GGMLQuantizationType.Q8_0))
    packed = from_gguf(raw, "Q8_0")
    before = packed.dequantise()
    raw.zero_()
    assert torch.equal(packed.dequantise(), before)


@pytest.mark.parametrize(
    ("raw", "kind", "said"),
    [
        (torch.zeros(2, 18, dtype=torch.uint8), "Q6_K", "type Q6_K cannot stay packed; Q4_0, Q4_1, Q8_0 can"),
        (torch.zeros(2, 20, dtype=torch.uint8), "Q4_0", r"shape \(2, 20\); its rows are blocks of 18 bytes"),
        (torch.zeros(2, 18, dtype=torch.int8), "Q4_0", "came as int8"),
        (torch.zeros(2, 0, dtype=torch.uint8), "Q4_0", "fetch the file again"),
    ],
)
def test_what_is_no_such_tensor(raw: torch.Tensor, kind: str, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        from_gguf(raw, kind)
