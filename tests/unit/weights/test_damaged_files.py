"""Bytes and settings changed at random: a model loads, or one sentence says why not; never another exception."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch

from qwenkit.config.families import FAMILIES
from qwenkit.core.errors import QwenkitError
from qwenkit.model.transformer import Transformer
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.load import build_model
from qwenkit.weights.save import save_model
from tests.support.networks import family_config, random_network, write_gguf
from tests.support.quantised import FOLDERS, copied

ROUNDS = 150


@pytest.fixture(scope="module")
def network() -> Transformer:
    return random_network(
        family_config("qwen2", hidden_size=64, ffn_size=64, num_heads=2, vocab_size=20, num_layers=1)
    )


def attempt(path: Path) -> None:
    try:
        checkpoint = open_checkpoint(path)
        try:
            build_model(checkpoint, device=torch.device("cpu"), dtype=torch.float32)
        finally:
            checkpoint.store.close()
    except QwenkitError as error:
        text = str(error)
        assert "\n" not in text
        assert len(text) < 1000


def spoil(data: bytes, length: int, source: random.Random, alphabet: bytes) -> bytes:
    """``data`` with a few of its first ``length`` bytes changed, sometimes cut."""
    out = bytearray(data)
    for _ in range(source.choice([1, 1, 2, 4])):
        at = source.randrange(length)
        out[at] = source.choice([0, 255, out[at] ^ (1 << source.randrange(8)), source.choice(alphabet)])
    return bytes(out[: source.randrange(len(out))] if source.random() < 0.1 else out)


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.filterwarnings("ignore:invalid value encountered")
@pytest.mark.parametrize("seed", range(4))
def test_gguf(seed: int, network: Transformer, tmp_path: Path) -> None:
    path, source = tmp_path / "m.gguf", random.Random(seed)
    write_gguf(path, network, "qwen2", gguf.GGMLQuantizationType.Q8_0)
    data = path.read_bytes()
    header = len(data) - sum(t.n_bytes for t in gguf.GGUFReader(path).tensors)
    for _ in range(ROUNDS):
        path.write_bytes(spoil(data, header, source, bytes(range(256))))
        attempt(path)


@pytest.mark.parametrize("seed", range(4))
def test_safetensors(seed: int, network: Transformer, tmp_path: Path) -> None:
    source = random.Random(seed)
    save_model(tmp_path / "m", network, FAMILIES["qwen2"])
    path = tmp_path / "m" / "model.safetensors"
    data = path.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(ROUNDS):
        path.write_bytes(spoil(data, header, source, b'0123456789-,.[]{}":e'))
        attempt(tmp_path / "m")


@pytest.mark.parametrize("name", FOLDERS)
def test_quantised_safetensors(name: str, tmp_path: Path) -> None:
    source, folder = random.Random(name), copied(name, tmp_path / "m")
    path = folder / "model.safetensors"
    data = path.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for number in range(ROUNDS // 5):
        # Every other time the zeros and groups themselves are hit.
        size = header if number % 2 else len(data)
        path.write_bytes(spoil(data, size, source, b'0123456789-,.[]{}":e'))
        attempt(folder)


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    2**63,
    1e308,
    -0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    [],
    [1],
    ["a"],
    [None],
    {},
    {"type": "yarn", "factor": "x"},
    {"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": "z"},
]
KEYS = {
    "config.json": [
        *[
            "architectures",
            "model_type",
            "rope_scaling",
            "rope_parameters",
            "sliding_window",
            "use_sliding_window",
        ],
        *[
            "layer_types",
            "max_window_layers",
            "attention_windows",
            "head_dim",
            "quantization_config",
            "eos_token_id",
        ],
        *[
            "torch_dtype",
            "hidden_act",
            "attention_bias",
            "vocab_size",
            "hidden_size",
            "num_hidden_layers",
            "rms_norm_eps",
        ],
        *[
            "num_attention_heads",
            "num_key_value_heads",
            "intermediate_size",
            "max_position_embeddings",
            "rope_theta",
        ],
    ],
    "generation_config.json": [
        *[
            "temperature",
            "top_k",
            "top_p",
            "min_p",
            "repetition_penalty",
            "eos_token_id",
            "stop_words_ids",
            "max_new_tokens",
        ],
        *["max_window_size", "chat_format", "do_sample"],
    ],
}


@pytest.mark.parametrize(("file", "key"), [(f, k) for f, keys in KEYS.items() for k in keys])
def test_settings(file: str, key: str, network: Transformer, tmp_path: Path) -> None:
    save_model(tmp_path / "m", network, FAMILIES["qwen2"])
    path = tmp_path / "m" / file
    good = json.loads(path.read_text()) | {"do_sample": True, "use_sliding_window": True}
    for value in VALUES:
        path.write_text(json.dumps(good | {key: value}))
        attempt(tmp_path / "m")


@pytest.mark.parametrize("name", ["qwen1-tiny-gptq-int4-act-order", "qwen1-tiny-awq-gemv"])
def test_quantisation_settings(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path / "m")
    path = folder / "config.json"
    good = json.loads(path.read_text())
    for key in ("bits", "group_size", "desc_act", "sym", "quant_method", "checkpoint_format", "version"):
        for value in (*VALUES, 4, 8, 128, "gptq", "gptq_v2", "awq", "gemm", "gemv"):
            changed = good["quantization_config"] | {key: value}
            path.write_text(json.dumps(good | {"quantization_config": changed}))
            attempt(folder)
