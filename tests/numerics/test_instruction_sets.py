"""QWENKIT_ISA: every instruction set that this CPU has, and plain torch, against the network in float32."""

from __future__ import annotations

import pytest
import torch

from qwenkit.kernels import native
from tests.support.native_runs import Run, assert_near, exact_logits, make_model

TYPES = [torch.float32, torch.bfloat16, torch.float16]
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 5e-3, torch.float16: 1e-3}
ROUNDED = {torch.float32: 2e-5, torch.bfloat16: 5e-2, torch.float16: 1e-2}
"""Where activations have the model's type between two layers."""
RAGGED: dict[int, list[int]] = {0: [3, 4, 1], 1: [1], 2: [31, 2, 17, 1]}


def _skip_without(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("QWENKIT_ISA", raising=False)
    if isa == "reference":
        return
    if native.library() is None:
        pytest.skip("the native kernels are not compiled")
    known = ["portable", "avx2", "avx512", "amx"]
    if known.index(isa) > native.isa():
        pytest.skip(f"no {isa} here")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", ["grouped and tied", "odd sizes", "heads of 64", "biases", "windows"])
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512", "amx", "reference"])
def test_every_instruction_set_is_near_the_truth(
    isa: str, shape: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    _skip_without(isa, monkeypatch)
    monkeypatch.setenv("QWENKIT_ISA", isa)
    run = Run(make_model(shape, dtype), list(RAGGED))
    assert run.forward.name == ("torch" if isa == "reference" else f"native {isa}")
    tolerance = ROUNDED if isa in ("amx", "reference") else TOLERANCE
    for row, logits in run.read({row: list(sizes) for row, sizes in RAGGED.items()}).items():
        assert_near(logits, exact_logits(shape, dtype, row), tolerance[dtype])
