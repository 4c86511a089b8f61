"""Adapters from the command line: merged, in the place of a model, described; and what Ctrl-C and kill leave."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest
import torch

from tests.support.adapters import write_adapter
from tests.support.forks import qwenkit, together
from tests.support.process import assert_one_sentence
from tests.support.tiny_models import write_model

# Breaks off in the middle of writing, from within, where no clock is needed to hit it.
BREAKS_OFF = """
import os
from qwenkit.train import merge
write = merge.write_weights
def breaking(folder, entries, shard_bytes):
    entries = list(entries)
    write(folder, entries[: len(entries) // 2], shard_bytes)
    os.kill(os.getpid(), {number})
    return write(folder, entries, shard_bytes)
merge.write_weights = breaking
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model and an adapter of it that names it."""
    root = tmp_path_factory.mktemp("adapters")
    base = write_model(root / "base")
    generator, tensors = torch.Generator().manual_seed(1), {}
    for layer in range(3):
        name = f"base_model.model.model.layers.{layer}.mlp.down_proj.lora_"
        tensors[f"{name}A.weight"] = torch.randn(4, 96, generator=generator)
        tensors[f"{name}B.weight"] = torch.randn(64, 4, generator=generator)
    lora = {"target_modules": ["down_proj"], "base_model_name_or_path": str(base)}
    write_adapter(root / "adapter", tensors, **lora)
    return root


def test_merged_and_apart_say_the_same(folder: Path, tmp_path: Path) -> None:
    done = qwenkit("merge", str(folder / "adapter"), str(tmp_path / "out"), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    facts = json.loads(done.stdout)
    assert (facts["merged_matrices"], facts["dtype"], facts["base"]) == (3, "float32", str(folder / "base"))
    asked = ("Hello there", "--dtype", "float32", "-n", "12", "--greedy")
    models = (tmp_path / "out", folder / "adapter", folder / "base")
    answers = [done.stdout for done in together(*(("chat", "-m", str(m), *asked) for m in models))]
    assert answers[0] == answers[1] != answers[2]


def test_an_adapter_described(folder: Path) -> None:
    shown = qwenkit("inspect", str(folder / "adapter"))
    assert all(text in shown.stdout for text in ("LoRA adapter", "down_proj", "yes, with the base", "llama"))


def test_commands_that_need_a_whole_model_say_so(folder: Path, tmp_path: Path) -> None:
    done = qwenkit("quantize", str(folder / "adapter"), str(tmp_path / "q"), "--method", "rtn")
    assert "is a LoRA adapter" in assert_one_sentence(done)


def test_a_folder_that_is_not_empty(folder: Path) -> None:
    assert "exists already" in assert_one_sentence(
        qwenkit("merge", str(folder / "adapter"), str(folder / "base"))
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_breaking_off(number: signal.Signals, folder: Path, tmp_path: Path) -> None:
    command = ["merge", str(folder / "adapter"), str(tmp_path / "out")]
    done = qwenkit(*command, before=BREAKS_OFF.format(number=int(number)))
    left = {path.name for path in tmp_path.iterdir()}
    if number == signal.SIGINT:
        assert (done.returncode, left) == (130, set())
        assert "nothing was written" in done.stderr
    else:
        assert (done.returncode, left) == (-signal.SIGKILL, {"out.merging"})
    assert qwenkit(*command).returncode == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out"}
