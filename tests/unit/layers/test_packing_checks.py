"""Tensors of quantised layers that are refused, with a sentence each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from torch import Tensor

from qwenkit.core.errors import CheckpointError, InputError
from qwenkit.layers.packing import (
    Quantised,
    from_awq_gemm,
    from_awq_gemv,
    from_gptq,
    to_awq_gemm,
    to_awq_gemv,
    to_gptq,
)
from tests.unit.layers.test_packing import random_matrix


def _with(
    name: str, change: Callable[[Tensor], Tensor | None]
) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def apply(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        changed = change(tensors.pop(name).clone())
        return tensors if changed is None else tensors | {name: changed}

    return apply


def _set(value: float) -> Callable[[Tensor], Tensor]:
    def fill(tensor: Tensor) -> Tensor:
        tensor.view(-1)[3] = value
        return tensor

    return fill


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (_with("qweight", lambda t: None), "h.0.w1.qweight is missing"),
        (_with("qzeros", lambda t: None), "h.0.w1.qzeros is missing"),
        (_with("scales", lambda t: None), "h.0.w1.scales is missing"),
        (_with("qweight", lambda t: t.long()), r"h.0.w1.qweight is int64 of shape \(12, 32\)"),
        (_with("qweight", lambda t: t[0]), r"of shape \(32,\); packed weights are int32 matrices"),
        (
            _with("qweight", lambda t: t[:9]),
            "has 32 outputs and 72 inputs; packed layers need a multiple of 32",
        ),
        (_with("qweight", lambda t: t[:, :24]), "has 24 outputs"),
        (_with("qweight", lambda t: t[:0]), "has 32 outputs and 0 inputs"),
        (_with("qweight", lambda t: t[:8]), r"g_idx has shape \(96,\); .* must be \(64,\)"),
        (_with("qzeros", lambda t: t[:2]), r"qzeros has shape \(2, 4\); .* must be \(3, 4\)"),
        (_with("qzeros", lambda t: t.float()), "qzeros is float32"),
        (_with("scales", lambda t: t[:, :8]), r"scales has shape \(3, 8\); .* must be \(3, 32\)"),
        (_with("scales", lambda t: t.int()), "scales is int32"),
        (_with("scales", lambda t: t[:0]), r"scales is float16 of shape \(0, 32\)"),
        (_with("scales", _set(float("nan"))), "scales holds infinity, NaN or numbers beyond 65504"),
        (_with("scales", lambda t: _set(7e4)(t.float())), "scales holds infinity"),
        (_with("g_idx", lambda t: t.float()), "g_idx is float32; it must hold integers"),
        (_with("g_idx", _set(3)), "g_idx holds groups from 0 to 3, but there are scales for 0 to 2"),
        (_with("g_idx", _set(-1)), "g_idx holds groups from -1 to 2"),
        (
            _with("g_idx", _set(2)),
            "g_idx has groups of 31 to 33 inputs; all but the last must have equally many",
        ),
        (_with("g_idx", lambda t: t.clamp(max=1)), "g_idx has groups of 0 to 64 inputs"),
    ],
)
def test_tensors_that_do_not_fit(damage: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        from_gptq(damage(to_gptq(random_matrix(32, 96, 32))), bits=4, version=1, name="h.0.w1")


@pytest.mark.parametrize(
    ("k", "group", "changes", "said"),
    [
        (96, 32, {"group_size": 64}, "has 3 groups for 96 inputs, which does not fit group_size 64"),
        (96, 32, {"group_size": -1}, "which does not fit group_size -1"),
        (96, 32, {"group_size": 0}, "does not fit group_size"),
        (96, 32, {"bits": 3}, "quantised to 3 bits; 4 and 8"),
        (96, 32, {"bits": 8}, "and 48 inputs; .* so compare bits in the configuration"),
        (96, 24, {}, "groups of 24 inputs; multiples of 16 can be read"),
    ],
)
def test_a_configuration_that_does_not_fit(k: int, group: int, changes: dict[str, Any], said: str) -> None:
    settings_ = {"bits": 4, "version": 1, "name": "h.0.w1"} | changes
    with pytest.raises(CheckpointError, match=said):
        from_gptq(to_gptq(random_matrix(32, k, group)), **settings_)


def test_a_group_size_that_shapes_leave_open() -> None:
    stored = to_gptq(random_matrix(32, 384, 192))
    del stored["g_idx"]
    with pytest.raises(CheckpointError, match="2 groups for 384 inputs, from which the group size does not"):
        from_gptq(stored, bits=4, version=1, name="a")
    assert from_gptq(stored, bits=4, version=1, name="a", group_size=256).group_size == 256


@pytest.mark.parametrize(
    ("layout", "damage", "said"),
    [
        ("gemm", _with("qweight", lambda t: t[:40]), "has 16 outputs and 40 inputs"),
        ("gemm", _with("qweight", lambda t: t[:, :1]), r"scales has shape \(2, 16\); .* must be \(2, 8\)"),
        ("gemm", _with("qweight", lambda t: t[:64]), "has 2 groups for 64 inputs"),
        ("gemm", _with("qzeros", lambda t: t[:1]), r"qzeros has shape \(1, 2\)"),
        ("gemm", _with("scales", _set(float("inf"))), "scales holds infinity"),
        ("gemv", _with("qweight", lambda t: t[:, :5]), "has 16 outputs and 40 inputs"),
        ("gemv", _with("qweight", lambda t: t[:, :12]), "has 96 inputs in groups of 64; AWQ layouts need"),
        ("gemv", _with("scales", lambda t: t[:, :2]), r"scales has shape \(16, 2\); .* must be \(16, 16\)"),
        ("gemv", _with("qzeros", lambda t: t[:, :1]), r"qzeros has shape \(16, 1\); .* must be \(16, 2\)"),
    ],
)
def test_awq_tensors_that_do_not_fit(
    layout: str, damage: Callable[[dict[str, Tensor]], dict[str, Tensor]], said: str
) -> None:
    read, write = (from_awq_gemv, to_awq_gemv) if layout == "gemv" else (from_awq_gemm, to_awq_gemm)
    with pytest.raises(CheckpointError, match=said):
        read(damage(write(random_matrix(16, 128, 64))), group_size=64, name="a")


@pytest.mark.parametrize("size", [0, -2, 16, 48])
def test_groups_that_awq_gemv_does_not_have(size: int) -> None:
    with pytest.raises(CheckpointError, match=f"groups of {size}"):
        from_awq_gemv(to_awq_gemv(random_matrix(8, 192, 64)), group_size=size, name="a")


@pytest.mark.parametrize(
    ("write", "q", "said"),
    [
        (to_awq_gemm, random_matrix(32, 64, 32, bits=8), "8 bits do not fit"),
        (to_awq_gemm, random_matrix(32, 96, 64), "96 inputs in groups of 64 does not fit"),
        (to_awq_gemv, random_matrix(12, 64, 32), "12 outputs"),
        (to_awq_gemm, random_matrix(32, 64, 32, mixed=True), "scattered inputs"),
        (to_awq_gemv, random_matrix(32, 64, 16), "group_size 16 does not fit the GEMV layout"),
    ],
)
def test_what_awq_layouts_cannot_hold(write: Callable[[Quantised], Any], q: Quantised, said: str) -> None:
    with pytest.raises(InputError, match=said):
        write(q)
