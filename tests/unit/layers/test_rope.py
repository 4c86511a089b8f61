"""Rotary frequencies, the NTK factor and the LogN scale, against values of the released code and transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from qwenkit.config.model import RopeConfig, RopeScaling
from qwenkit.layers.rope import RotaryTables, inverse_frequencies, logn_scale, ntk_alpha

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("length", "alpha"), [(1, 1), (16, 1), (17, 3), (32, 3), (33, 7), (64, 7), (65, 15), (128, 15), (129, 31)]
)
def test_ntk_factor(length: int, alpha: int) -> None:
    assert ntk_alpha(length, 16) == alpha
    assert ntk_alpha(length * 512, 8192) == alpha
    assert ntk_alpha(length, None) == 1


@pytest.mark.parametrize(("alpha", "expected"), [(1, 0.865964), (3, 0.850994), (7, 0.839626)])
def test_ntk_raises_the_base(alpha: int, expected: float) -> None:
    inv_freq, factor = inverse_frequencies(RopeConfig(base=10000.0, dim=128), alpha)
    assert factor == 1.0
    assert float(inv_freq[0]) == 1.0
    assert float(inv_freq[1]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("train", "position", "expected"),
    [
        (8192, 8191, 1.0),
        (8192, 8192, 1.0000135461),
        (8192, 16383, 1.0769230769),
        (8192, 32766, 1.1538427671),
        (2048, 4095, 1.0909090909),
        (2048, 8191, 1.1818181818),
    ],
)
def test_logn(train: int, position: int, expected: float) -> None:
    assert float(logn_scale(position, 1, train, CPU)) == pytest.approx(expected, abs=2e-7)


def test_logn_of_a_run_of_positions() -> None:
    scale = logn_scale(6, 5, 8, CPU)
    assert scale.shape == (5, 1, 1)
    assert scale[:2].flatten().tolist() == [1.0, 1.0]
    assert bool((scale[1:].diff(dim=0) > 0).all())


LLAMA3 = RopeScaling(kind="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_length=64)
SCALINGS: dict[str, tuple[RopeScaling, dict[str, object]]] = {
    "linear": (RopeScaling(kind="linear", factor=3.0), {"factor": 3.0}),
    "yarn": (
        RopeScaling(kind="yarn", factor=4.0, original_length=64),
        {"factor": 4.0, "original_max_position_embeddings": 64},
    ),
    "yarn with its own factor": (
        RopeScaling(kind="yarn", factor=4.0, original_length=64, attention_factor=1.5, beta_fast=16.0),
        {"factor": 4.0, "original_max_position_embeddings": 64, "attention_factor": 1.5, "beta_fast": 16.0},
    ),
    "llama3": (
        LLAMA3,
        {
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    ),
}


@pytest.mark.parametrize("name", list(SCALINGS))
def test_scalings_are_those_of_transformers(name: str) -> None:
    scaling, settings = SCALINGS[name]
    config = LlamaConfig(
        hidden_size=64,
        num_attention_heads=2,
        max_position_embeddings=256,
        rope_parameters={"rope_type": scaling.kind, "rope_theta": 10000.0, **settings},
    )
    expected, expected_factor = ROPE_INIT_FUNCTIONS[scaling.kind](config, CPU)
    inv_freq, factor = inverse_frequencies(RopeConfig(base=10000.0, dim=32, scaling=scaling))
    torch.testing.assert_close(inv_freq, expected.float(), atol=1e-7, rtol=1e-6)
    assert factor == pytest.approx(expected_factor)


def test_factors_per_frequency() -> None:
    plain, _ = inverse_frequencies(RopeConfig(base=10000.0, dim=8))
    divided, _ = inverse_frequencies(RopeConfig(base=10000.0, dim=8, freq_factors=(1.0, 2.0, 4.0, 8.0)))
    torch.testing.assert_close(divided, plain / torch.tensor([1.0, 2.0, 4.0, 8.0]))


def test_tables_grow_and_keep_their_values() -> None:
    tables = RotaryTables(RopeConfig(base=10000.0, dim=8), CPU)
    cos, sin = (t.clone() for t in tables.rows(100, 3, 1))
    tables.rows(5000, 1, 1)
    tables.rows(100, 3, 7)
    again = tables.rows(100, 3, 1)
    assert torch.equal(cos, again[0])
    assert torch.equal(sin, again[1])
    assert cos.shape == (3, 1, 8)
    assert not torch.equal(cos, tables.rows(100, 3, 7)[0])
