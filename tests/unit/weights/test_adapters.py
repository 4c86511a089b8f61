"""Adapter folders: what is read from them, and one sentence for every way in which they can be bad."""

from __future__ import annotations

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qwenkit.config.families import FAMILIES
from qwenkit.config.model import RopeConfig
from qwenkit.core.errors import CheckpointError, ConfigError, QwenkitError
from qwenkit.layers.lora import Adapter
from qwenkit.model.transformer import Transformer
from qwenkit.weights.adapter_base import is_adapter
from qwenkit.weights.adapters import load_adapter
from tests.support.adapters import with_settings, with_tensors, write_adapter
from tests.support.bad import GOOD as WHOLE_MODEL
from tests.support.networks import family_config, random_network

PREFIX = "base_model.model.model.layers.{}.self_attn.{}_proj.lora_{}.weight"
EMBED, HEAD = "base_model.model.model.embed_tokens.weight", "base_model.model.lm_head.weight"
WIDTH, VOCAB, RANK = 32, 20, 4


@pytest.fixture(scope="module")
def network() -> Transformer:
    return random_network(
        family_config(
            "qwen2",
            hidden_size=WIDTH,
            ffn_size=48,
            num_heads=4,
            num_kv_heads=2,
            head_dim=8,
            vocab_size=VOCAB,
            rope=RopeConfig(base=10000.0, dim=8),
        )
    )


def _tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in range(2):
        for part, rows in (("q", 32), ("v", 16)):
            tensors[PREFIX.format(layer, part, "A")] = torch.randn(RANK, WIDTH, generator=generator)
            tensors[PREFIX.format(layer, part, "B")] = torch.randn(rows, RANK, generator=generator)
    return tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_adapter(tmp_path / "adapter", _tensors(), target_modules=["q_proj", "v_proj"])


def _load(folder: Path, network: Transformer) -> Adapter:
    return load_adapter(folder, "mine", family=FAMILIES["qwen2"], model=network)


def test_parts_of_a_fused_linear_become_one(folder: Path, network: Transformer) -> None:
    adapter, tensors = _load(folder, network), _tensors()
    assert adapter.name == "mine"
    assert [set(layer) for layer in adapter.layers] == [{"qkv"}, {"qkv"}]
    weights = adapter.layers[1]["qkv"]
    assert weights.a.shape == (2 * RANK, WIDTH)
    assert weights.b.shape == (64, 2 * RANK)
    update = weights.b @ weights.a
    q, v = (2 * tensors[PREFIX.format(1, p, "B")] @ tensors[PREFIX.format(1, p, "A")] for p in "qv")
    torch.testing.assert_close(update, torch.cat([q, torch.zeros(16, WIDTH), v]), atol=1e-5, rtol=0)
    assert adapter.num_params == 2 * (2 * RANK * WIDTH + 64 * 2 * RANK)


def test_weights_take_the_dtype_of_the_model(folder: Path, network: Transformer) -> None:
    half = random_network(network.config).to(torch.bfloat16)
    adapter, exact = _load(folder, half), _load(folder, network)
    assert adapter.layers[0]["qkv"].b.dtype == torch.bfloat16
    assert torch.equal(adapter.layers[0]["qkv"].b, exact.layers[0]["qkv"].b.bfloat16())


@pytest.mark.parametrize(
    "rename",
    [
        lambda n: n.replace(".weight", ".default.weight"),
        lambda n: n.replace(".weight", ".my_adapter.weight"),
        lambda n: n.removeprefix("base_model.model."),
    ],
)
def test_other_spellings(rename: Callable[[str], str], tmp_path: Path, network: Transformer) -> None:
    tensors = _tensors()
    target = ["q_proj", "v_proj"]
    one = _load(write_adapter(tmp_path / "a", tensors, target_modules=target), network)
    other = _load(
        write_adapter(tmp_path / "b", {rename(n): t for n, t in tensors.items()}, target_modules=target),
        network,
    )
    assert torch.equal(one.layers[0]["qkv"].b, other.layers[0]["qkv"].b)


def test_tables_of_a_tied_model_that_are_equal_are_kept_once(tmp_path: Path, network: Transformer) -> None:
    table = torch.randn(VOCAB, WIDTH)
    settings: dict[str, Any] = {
        "target_modules": ["q_proj", "v_proj"],
        "modules_to_save": ["embed_tokens", "lm_head"],
    }
    same = write_adapter(tmp_path / "a", _tensors() | {EMBED: table, HEAD: table.clone()}, **settings)
    adapter = _load(same, network)
    assert adapter.embed is adapter.head
    other = write_adapter(tmp_path / "b", _tensors() | {EMBED: table, HEAD: table + 1}, **settings)
    adapter = _load(other, network)
    assert torch.equal(adapter.embed, table)
    assert torch.equal(adapter.head, table + 1)


def _bytes(change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        path = folder / "adapter_model.safetensors"
        path.write_bytes(change(path.read_bytes()))

    return spoil


def _all(*spoils: Callable[[Path], None]) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for one in spoils:
            one(folder)

    return spoil


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("code from an adapter ran",))


def _bin_with_code(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()
    torch.save({PREFIX.format(0, "q", "A"): _Evil()}, folder / "adapter_model.bin")


def _whole_model(folder: Path) -> None:
    shutil.rmtree(folder)
    shutil.copytree(WHOLE_MODEL, folder)


A, B = PREFIX.format(1, "q", "A"), PREFIX.format(1, "q", "B")
NORM = "base_model.model.model.norm.weight"
CASES: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no config": (
        lambda f: (f / "adapter_config.json").unlink(),
        ["adapter_config.json", "holds no adapter"],
    ),
    "no folder": (shutil.rmtree, ["holds no adapter"]),
    "a whole model": (_whole_model, ["whole model", "adapter_config.json"]),
    "config not JSON": (lambda f: (f / "adapter_config.json").write_text("{"), ["not valid JSON"]),
    "config is a list": (lambda f: (f / "adapter_config.json").write_text("[]"), ["not a JSON object"]),
    "no weights": (
        lambda f: (f / "adapter_model.safetensors").unlink(),
        ["adapter_model.safetensors", "adapter_model.bin"],
    ),
    "file cut": (_bytes(lambda b: b[:-100]), ["truncated"]),
    "file empty": (_bytes(lambda b: b""), ["0 bytes"]),
    "header length absurd": (_bytes(lambda b: struct.pack("<Q", 2**62) + b[8:]), ["no safetensors file"]),
    "bin with code": (_bin_with_code, ["refused", "could run code"]),
    "other kind": (with_settings(peft_type="IA3"), ["IA3", "LORA"]),
    "alpha 0": (with_settings(lora_alpha=0), ["lora_alpha=0", "above 0"]),
    "rank of another": (
        with_settings(r=8),
        [PREFIX.format(0, "q", "A"), "[4, 32]", "[8, 32]", "someone/some-model"],
    ),
    "half a pair": (with_tensors(lambda t: t.pop(B)), ["lacks", "layers.1.self_attn.q_proj.lora_B"]),
    "target without weights": (
        with_settings(target_modules=["q_proj", "k_proj", "v_proj"]),
        ["lacks", "k_proj.lora_A"],
    ),
    "weights without target": (
        with_settings(target_modules=["q_proj"]),
        ["4 tensors", "v_proj", "do not name"],
    ),
    "nothing": (
        _all(
            with_settings(target_modules=["c_attn"]), _bytes(lambda b: struct.pack("<Q", 2) + b"{}" + b"  ")
        ),
        ["c_attn", "no module"],
    ),
    "unexpected tensor": (with_tensors(lambda t: t.update(extra=torch.ones(1))), ["1 tensors", "'extra'"]),
    "more layers": (
        with_tensors(lambda t: t.update({PREFIX.format(2, "q", "A"): torch.ones(4, 32)})),
        ["layers.2.", "2 layers", "someone/some-model"],
    ),
    "other family": (
        with_tensors(
            lambda t: t.update(
                {"base_model.model.transformer.h.0.attn.c_attn.lora_A.weight": torch.ones(4, 32)}
            )
        ),
        ["c_attn", "qwen2 model"],
    ),
    "wider model": (with_tensors(lambda t: t.update({A: torch.ones(4, 64)})), [A, "[4, 64]", "[4, 32]"]),
    "NaN": (with_tensors(lambda t: t[B].fill_(float("nan"))), ["layers.1.self_attn.q_proj.lora_B", "NaN"]),
    "whole numbers": (
        with_tensors(lambda t: t.update({A: torch.ones(4, 32, dtype=torch.int8)})),
        [A, "I8", "BF16"],
    ),
    "same tensor twice": (
        with_tensors(lambda t: t.update({A.removeprefix("base_model.model."): torch.ones(4, 32)})),
        ["mean the same"],
    ),
    "trained bias": (
        with_tensors(lambda t: t.update({A.replace("lora_A.weight", "lora_B.bias"): torch.ones(32)})),
        ["lora_B.bias", "do not name"],
    ),
    "norm saved": (
        _all(
            with_settings(modules_to_save=["norm"]), with_tensors(lambda t: t.update({NORM: torch.ones(32)}))
        ),
        ["'norm'", "model.embed_tokens and lm_head", "merge"],
    ),
    "norm stored": (with_tensors(lambda t: t.update({NORM: torch.ones(32)})), [NORM, "do not name"]),
    "saved table missing": (with_settings(modules_to_save=["lm_head"]), ["lacks", "lm_head.weight"]),
    "vocabulary grown": (
        _all(
            with_settings(modules_to_save=["embed_tokens"]),
            with_tensors(lambda t: t.update({EMBED: torch.ones(VOCAB + 2, WIDTH)})),
        ),
        ["22 rows", "vocabulary 20", "merge"],
    ),
    "token outside": (with_settings(trainable_token_indices=[3, 20]), ["20", "below 20"]),
    "token twice": (with_settings(trainable_token_indices=[3, 3]), ["twice"]),
    "tokens of nothing": (
        with_settings(trainable_token_indices={"wte": [3]}),
        ["'wte'", "model.embed_tokens"],
    ),
    "tokens and LoRA on one table": (
        _all(
            with_settings(trainable_token_indices=[3], target_modules=["q_proj", "v_proj", "embed_tokens"]),
            with_tensors(
                lambda t: t.update(
                    {
                        "model.embed_tokens.lora_embedding_A": torch.ones(4, VOCAB),
                        "model.embed_tokens.lora_embedding_B": torch.ones(WIDTH, 4),
                    }
                )
            ),
        ),
        ["trainable_token_indices and target_modules"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_folders(
    case: str, folder: Path, network: Transformer, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, words = CASES[case]
    spoil(folder)
    with pytest.raises((ConfigError, CheckpointError)) as caught:
        _load(folder, network)
    text = str(caught.value)
    assert all(word in text for word in words), text
    assert "\n" not in text
    assert capsys.readouterr().out == ""


def test_numbers_that_a_half_precision_model_cannot_hold(folder: Path, network: Transformer) -> None:
    with_tensors(lambda t: t[A].fill_(1e6))(folder)
    with pytest.raises(CheckpointError, match="infinity in float16"):
        _load(folder, random_network(network.config).half())
    _load(folder, network)


def test_adapters_and_models_are_told_apart(folder: Path) -> None:
    assert is_adapter(folder)
    assert not is_adapter(WHOLE_MODEL)
    assert not is_adapter(folder / "nothing")


def _attempt(folder: Path, network: Transformer) -> None:
    text = ""
    try:
        _load(folder, network)
    except QwenkitError as error:
        text = str(error)
    assert "\n" not in text
    assert len(text) < 1500


@pytest.mark.parametrize("seed", range(3))
def test_damaged_headers(seed: int, folder: Path, network: Transformer) -> None:
    path, source = folder / "adapter_model.safetensors", random.Random(seed)
    data = path.read_bytes()
    header = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(100):
        out = bytearray(data)
        for _ in range(source.choice([1, 2, 4])):
            out[source.randrange(header)] = source.choice(b'0123456789-,.[]{}":e')
        path.write_bytes(bytes(out[: source.randrange(len(out))] if source.random() < 0.1 else out))
        _attempt(folder, network)


VALUES: list[Any] = [
    None,
    True,
    -1,
    0,
    3,
    2**63,
    1e308,
    float("nan"),
    "",
    "x",
    [],
    [1],
    ["a"],
    [None],
    {},
    {"a": 1},
    {"a": None},
]
KEYS = [
    "peft_type",
    "r",
    "lora_alpha",
    "target_modules",
    "rank_pattern",
    "alpha_pattern",
    "use_rslora",
    "bias",
]
KEYS += [
    "layers_to_transform",
    "layers_pattern",
    "modules_to_save",
    "exclude_modules",
    "trainable_token_indices",
]
KEYS += [
    "base_model_name_or_path",
    "task_type",
    "use_dora",
    "init_lora_weights",
    "fan_in_fan_out",
    "layer_replication",
]


@pytest.mark.parametrize("key", KEYS)
def test_settings_of_any_kind(key: str, folder: Path, network: Transformer) -> None:
    path = folder / "adapter_config.json"
    good = json.loads(path.read_text())
    for value in VALUES:
        path.write_text(json.dumps(good | {key: value}))
        _attempt(folder, network)
