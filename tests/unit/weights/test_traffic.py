"""Bytes of weights that a decoding step reads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from qwenkit.core.errors import InputError
from qwenkit.weights.checkpoint import Checkpoint, open_checkpoint
from qwenkit.weights.memory import weights_bytes
from qwenkit.weights.traffic import TYPICAL, step_weight_bytes
from tests.support.tiny_models import SIZES, write_model

TABLE = SIZES["vocab_size"] * SIZES["hidden_size"]


def opened(folder: Path, **changes: object) -> Checkpoint:
    return open_checkpoint(write_model(folder, **changes))


def test_an_embedding_of_its_own_is_not_read(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    for dtype, width in ((torch.float32, 4), (torch.bfloat16, 2)):
        held = weights_bytes(checkpoint, dtype)
        assert step_weight_bytes(checkpoint, dtype) == held - width * TABLE


def test_an_embedding_that_is_the_head_is_read(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, tie_embeddings=True)
    assert step_weight_bytes(checkpoint, torch.bfloat16) == weights_bytes(checkpoint, torch.bfloat16)


def test_a_rounded_head_is_smaller(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path)
    saved = step_weight_bytes(checkpoint, torch.float32) - step_weight_bytes(
        checkpoint, torch.float32, head="int8"
    )
    assert 2 * TABLE < saved < 3 * TABLE  # scales come on top of a byte each
    with pytest.raises(InputError, match="head='int4' is not known"):
        step_weight_bytes(checkpoint, torch.float32, head="int4")


def test_typical_sizes() -> None:
    gigabytes = {shape.name: round(shape.step_bytes / 1e9, 2) for shape in TYPICAL}
    assert gigabytes == {
        "a 1.8B model in Int4": 1.25,
        "a 1.8B model in bf16": 3.05,
        "a 7B model in Int4": 4.61,
    }
