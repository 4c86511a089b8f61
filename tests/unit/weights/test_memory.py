"""Memory from shapes against numbers worked out by hand and against what is really held."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import gguf
import pytest
import torch

from qwenkit.cache.paged import PAGE_SIZE, PagePool
from qwenkit.config.families import FAMILIES
from qwenkit.config.model import ModelConfig, RopeConfig
from qwenkit.core.errors import InputError
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from qwenkit.weights.memory import (
    LENGTHS,
    held_bytes,
    kv_bytes,
    memory_table,
    read_memory,
    weights_bytes,
    workspace_bytes,
)
from qwenkit.weights.save import save_model
from tests.support.networks import family_config, random_network, write_gguf

GIB = 2**30
QWEN_7B = ModelConfig(
    vocab_size=151936,
    hidden_size=4096,
    num_layers=32,
    num_heads=32,
    num_kv_heads=32,
    head_dim=128,
    ffn_size=11008,
    norm_eps=1e-6,
    context_length=8192,
    rope=RopeConfig(base=10000.0, dim=128, ntk_length=8192),
    qkv_bias=True,
    logn_length=8192,
)
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("dtype", "int8", "per_token"),
    [
        (torch.bfloat16, False, 2 * 32 * 4096 * 2),
        (torch.float32, False, 2 * 32 * 4096 * 4),
        (
            torch.bfloat16,
            True,
            2 * 32 * (4096 + 32 * 3),
        ),  # and per token and head 2 bytes of scale, 1 of zero
    ],
)
def test_cache_of_a_7b_model(dtype: torch.dtype, int8: bool, per_token: int) -> None:
    assert kv_bytes(QWEN_7B, dtype, int8, batch=1, length=2048) == 2048 * per_token
    assert kv_bytes(QWEN_7B, dtype, int8, batch=16, length=1024) == 16 * 1024 * per_token
    assert kv_bytes(QWEN_7B, dtype, int8, batch=3, length=33) == 3 * 64 * per_token  # whole pages


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("head_dim", [32, 7])
def test_cache_is_what_a_pool_holds(dtype: torch.dtype, int8: bool, head_dim: int) -> None:
    config = family_config("qwen2", head_dim=head_dim, rope=RopeConfig(base=10000.0, dim=6))
    pool = PagePool(config, num_pages=6, dtype=dtype, device=CPU, int8=int8)
    names = ("keys", "values", "key_scale", "value_scale", "key_zero", "value_zero")
    held = sum(getattr(pool, name).nbytes for name in names)
    assert kv_bytes(config, dtype, int8, batch=2, length=3 * PAGE_SIZE) == pool.nbytes == held


def test_table_of_a_7b_model() -> None:
    weights = 2 * QWEN_7B.num_params
    assert weights == 15_442_649_088  # 7,721,324,544 parameters
    rows = memory_table(QWEN_7B, weights, dtype=torch.bfloat16, batches=(1, 16), lengths=(1024, 8192))
    assert [(r.kv_cache, r.batch, r.length) for r in rows] == [
        (kind, batch, length) for kind in ("auto", "int8") for batch in (1, 16) for length in (1024, 8192)
    ]
    assert [r.kv_bytes / GIB for r in rows[:4]] == [0.5, 4.0, 8.0, 64.0]
    assert rows[4].kv_bytes / rows[0].kv_bytes == 131 / 256
    assert all(r.total_bytes == r.weights_bytes + r.kv_bytes + r.workspace_bytes for r in rows)
    assert rows[0].to_dict()["total_bytes"] == rows[0].total_bytes


def test_room_to_compute() -> None:
    # 512 tokens of 2 x 4096 + 4 x 4096 + 11008 numbers, a row of logits, two tables of 2 x 1024 positions
    expected = 4 * (512 * (6 * 4096 + 11008) + 151936 + 2 * 2048 * 128)
    assert workspace_bytes(QWEN_7B, batch=1, length=1024) == expected
    # a short prompt is one step; 600 sequences are a step of 600 tokens, and so many rows of logits
    short = workspace_bytes(QWEN_7B, batch=1, length=10)
    assert short == 4 * (10 * (6 * 4096 + 11008) + 151936 + 2 * 256 * 128)
    many = workspace_bytes(QWEN_7B, batch=600, length=10)
    assert many == 4 * (600 * (6 * 4096 + 11008 + 151936) + 2 * 256 * 128)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_weights_of_numbers(tmp_path: Path, dtype: torch.dtype) -> None:
    model = random_network(family_config("qwen2"))
    save_model(tmp_path / "m", model, FAMILIES["qwen2"])
    checkpoint = open_checkpoint(tmp_path / "m")
    held = held_bytes(build_model(checkpoint, device=CPU, dtype=dtype))
    assert weights_bytes(checkpoint, dtype) == held == model.config.num_params * dtype.itemsize


@pytest.mark.parametrize(("kind", "per_block"), [("Q4_0", 18), ("Q4_1", 20), ("Q8_0", 34)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_packed_weights(tmp_path: Path, kind: str, per_block: int, dtype: torch.dtype) -> None:
    model = random_network(family_config("llama", vocab_size=64))
    write_gguf(tmp_path / "m.gguf", model, "llama", gguf.GGMLQuantizationType[kind])
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    held = held_bytes(build_model(checkpoint, device=CPU, dtype=dtype))
    matrices = sum(w.numel() for w in model.parameters() if w.ndim == 2)
    rest = model.config.num_params - matrices
    assert weights_bytes(checkpoint, dtype) == held == matrices // 32 * per_block + rest * dtype.itemsize


def test_an_int8_head(tmp_path: Path) -> None:
    model = random_network(family_config("qwen3", vocab_size=64))
    save_model(tmp_path / "m", model, FAMILIES["qwen3"])
    checkpoint = open_checkpoint(tmp_path / "m")
    held = held_bytes(build_model(checkpoint, device=CPU, dtype=torch.float32, head="int8"))
    assert weights_bytes(checkpoint, torch.float32, head="int8") == held
    # (64, 256) in groups of 128: a byte each and 2 bytes a group, instead of 4 bytes each
    assert weights_bytes(checkpoint, torch.float32) - held == 64 * (4 * 256 - (256 + 2 * 2))


def test_lengths_go_as_far_as_the_context(tmp_path: Path) -> None:
    config = dataclasses.replace(family_config("qwen2"), context_length=2048)
    save_model(tmp_path / "m", random_network(config), FAMILIES["qwen2"])
    model = str(tmp_path / "m")
    rows = read_memory(model, dtype=torch.float32, kv_caches=("int8",), batches=(1,))
    assert [r.length for r in rows] == [n for n in LENGTHS if n <= 2048]
    assert [r.length for r in read_memory(model, dtype=torch.float32, lengths=(4096,), batches=(1,))] == [
        4096
    ] * 2


@pytest.mark.parametrize(
    "wrong", [{"batches": (1, 0)}, {"lengths": (-5,)}, {"kv_caches": ("auto", "int4")}], ids=str
)
def test_impossible_values(wrong: dict[str, tuple[int | str, ...]]) -> None:
    with pytest.raises(InputError, match=r"from 1 up|auto or int8"):
        memory_table(QWEN_7B, 1, dtype=torch.float32, **wrong)  # type: ignore[arg-type]
