"""Saved folders: complete, loadable here and in transformers; nothing stays behind when saving fails."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from qwenkit.config.families import FAMILIES
from qwenkit.config.generation import GenerationConfig
from qwenkit.config.model import ModelConfig, RopeConfig, RopeScaling
from qwenkit.core.errors import InputError, QwenkitError, SourceError
from qwenkit.core.types import SamplingParams
from qwenkit.llm import load_tokenizer
from qwenkit.model.generate import all_logits
from qwenkit.tokenizer.bpe import TiktokenTokenizer
from qwenkit.tokenizer.hf_json import HfTokenizer
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.save import save_model
from tests.support.models import load
from tests.support.networks import family_config, random_network

IDS = list(range(50))
ROPE = {"base": 10000.0, "dim": 32}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen": ("qwen", {}),
    "qwen with NTK and LogN": ("qwen", {"rope": RopeConfig(**ROPE, ntk_length=16), "logn_length": 16}),
    "qwen with half the rotation": ("qwen", {"rope": RopeConfig(base=10000.0, dim=16)}),
    "qwen2": ("qwen2", {}),
    "qwen2 untied": ("qwen2", {"tie_embeddings": False}),
    "qwen2 with windows": ("qwen2", {"windows": (None, 9)}),
    "qwen3": ("qwen3", {}),
    "qwen3 wide heads": ("qwen3", {"head_dim": 64, "rope": RopeConfig(base=1e6, dim=64)}),
    "llama": ("llama", {}),
    "llama with biases": ("llama", {"qkv_bias": True, "out_bias": True, "mlp_bias": True}),
    "llama linear": ("llama", {"rope": RopeConfig(**ROPE, scaling=RopeScaling(kind="linear", factor=2.0))}),
    "llama yarn": (
        "llama",
        {
            "rope": RopeConfig(
                **ROPE, scaling=RopeScaling(kind="yarn", factor=4.0, original_length=64, attention_factor=1.2)
            )
        },
    ),
    "llama 3": (
        "llama",
        {"rope": RopeConfig(**ROPE, scaling=RopeScaling(kind="llama3", factor=8.0, original_length=64))},
    ),
}


@pytest.mark.parametrize("name", list(VARIANTS))
def test_round_trip(name: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[name]
    model = random_network(family_config(family, **changes))
    save_model(tmp_path / "m", model, FAMILIES[family])
    loaded = load(tmp_path / "m")
    assert loaded.config == model.config
    assert torch.equal(all_logits(loaded, IDS), all_logits(model, IDS))


@pytest.mark.parametrize(
    "name", [n for n, (family, _) in VARIANTS.items() if family != "qwen" and "windows" not in n]
)
def test_transformers_reads_it(name: str, tmp_path: Path) -> None:
    family, changes = VARIANTS[name]
    model = random_network(family_config(family, **changes))
    save_model(tmp_path / "m", model, FAMILIES[family])
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "m", dtype=torch.float32)
    with torch.inference_mode():
        expected = theirs(torch.tensor([IDS])).logits[0]
    torch.testing.assert_close(all_logits(model, IDS), expected, atol=1e-4, rtol=0)


def test_shards(tmp_path: Path) -> None:
    model = random_network(family_config("qwen3"))
    save_model(tmp_path / "m", model, FAMILIES["qwen3"], shard_bytes=300_000)
    index = json.loads((tmp_path / "m" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    assert torch.equal(all_logits(load(tmp_path / "m"), IDS), all_logits(model, IDS))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    model = random_network(family_config("llama")).to(dtype)
    save_model(tmp_path / "m", model, FAMILIES["llama"])
    checkpoint = open_checkpoint(tmp_path / "m")
    assert checkpoint.config.dtype == str(dtype).removeprefix("torch.")
    assert {info.dtype for info in checkpoint.store.tensors.values()} == {
        "BF16" if dtype is torch.bfloat16 else "F16"
    }


def test_generation_settings(tmp_path: Path) -> None:
    generation = GenerationConfig(
        defaults=SamplingParams(
            temperature=0.7,
            top_k=20,
            top_p=0.8,
            min_p=0.0,
            repetition_penalty=1.05,
            max_tokens=99,
            stop_token_sequences=((1, 2),),
        ),
        eos_ids=(5, 7),
        chat_format="chatml",
        max_window_size=6144,
    )
    save_model(tmp_path / "m", random_network(family_config("qwen")), FAMILIES["qwen"], generation=generation)
    assert open_checkpoint(tmp_path / "m").generation == generation


def test_tokenizers(
    tmp_path: Path, qwen_tokenizer: TiktokenTokenizer, smollm2_tokenizer: HfTokenizer
) -> None:
    text = "Hello, 你好 👋 <|im_start|>"
    for family, tokenizer in (("qwen", qwen_tokenizer), ("llama", smollm2_tokenizer)):
        folder = tmp_path / family
        save_model(folder, random_network(family_config(family)), FAMILIES[family], tokenizer=tokenizer)
        again = load_tokenizer(folder)
        assert again.encode(text) == tokenizer.encode(text)
        assert again.chat_template == tokenizer.chat_template


@pytest.mark.parametrize(
    ("family", "config", "said"),
    [
        ("qwen", family_config("llama", qkv_bias=True), "grouped key heads"),
        ("qwen", family_config("qwen", qkv_bias=False), "qkv bias"),
        ("qwen", family_config("qwen", tie_embeddings=True), "tied embeddings"),
        ("llama", family_config("llama", rope=RopeConfig(**ROPE, ntk_length=64)), "dynamic NTK or LogN"),
        ("llama", family_config("llama", logn_length=64), "dynamic NTK or LogN"),
        ("llama", family_config("qwen3"), "query and key norm"),
        ("qwen2", family_config("llama"), "qkv bias"),
        ("llama", family_config("llama", rope=RopeConfig(base=1e4, dim=16)), "partial rotation"),
        (
            "llama",
            family_config("llama", rope=RopeConfig(**ROPE, freq_factors=(2.0,) * 16)),
            "frequency factors",
        ),
    ],
)
def test_what_a_family_cannot_express_is_refused(
    family: str, config: ModelConfig, said: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=said):
        save_model(tmp_path / "m", random_network(config), FAMILIES[family])
    assert list(tmp_path.iterdir()) == []


class TestFailures:
    def save(self, folder: Path) -> None:
        save_model(folder, random_network(family_config("llama")), FAMILIES["llama"])

    def test_a_folder_with_something_in_it(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        (tmp_path / "m" / "notes.txt").write_text("keep me")
        with pytest.raises(InputError, match="exists already"):
            self.save(tmp_path / "m")
        assert (tmp_path / "m" / "notes.txt").read_text() == "keep me"
        with pytest.raises(InputError, match="exists already"):
            self.save(tmp_path / "m" / "notes.txt")

    def test_an_empty_folder_will_do(self, tmp_path: Path) -> None:
        (tmp_path / "m").mkdir()
        self.save(tmp_path / "m")
        assert {p.name for p in (tmp_path / "m").iterdir()} == {
            "config.json",
            "generation_config.json",
            "model.safetensors",
        }

    @pytest.mark.parametrize("call", ["fsync", "replace"])  # where a system may first tell
    def test_a_full_disk(self, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, call, full)
        with pytest.raises(
            SourceError, match=r"cannot be written: .*No space left on device.*nothing was kept"
        ):
            self.save(tmp_path / "m")
        assert list(tmp_path.iterdir()) == []

    def test_a_parent_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(QwenkitError, match="cannot be written"):
            self.save(tmp_path / "file" / "m")

    def test_an_interrupt(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            self.save(tmp_path / "m")
        assert list(tmp_path.iterdir()) == []
