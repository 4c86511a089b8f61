"""Writes what a run has learnt as a complete folder: weights or adapter, settings, tokenizer and chat template."""

from __future__ import annotations

import contextlib
import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from qwenkit.core.errors import QwenkitError
from qwenkit.train.base import Base
from qwenkit.weights.write import write_json

_SIDE_FILES = (
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "chat_template.json",
    "qwen.tiktoken",
    "qwen_extra.tiktoken",
)
_SHARD_BYTES = 2 << 30
_FULL = (errno.ENOSPC, errno.EDQUOT)
_FULL_SIGNS = ("No space left", "StorageFull", "PytorchStreamWriter failed", "unexpected pos")


@contextlib.contextmanager
def full_disk_told(folder: Path) -> Iterator[None]:
    """Turns what libraries raise on a full disk into one sentence; torch does not even raise an OSError.

    Raises:
        QwenkitError: the disk is full.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        causes = (error, error.__cause__, error.__context__)
        is_full = any(isinstance(e, OSError) and e.errno in _FULL for e in causes)
        if not is_full and not any(sign in str(e) for e in causes for sign in _FULL_SIGNS):
            raise
        raise QwenkitError(
            f"the disk of {folder} is full; free some space and run the same command again, which goes on from the last checkpoint"
        ) from error


def save_result(trainer: Any, base: Base, folder: Path) -> None:
    """Writes the result, in a folder beside first, so that no half of it is ever seen. Every process calls this.

    Args:
        trainer: after training.
        base: what was trained; weights are saved in its type.
        folder: gets the files; others in it stay.
    """
    temporary = folder / ".saving"
    if trainer.args.should_save:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    network = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(network, "peft_config"):
        trainer.save_model(str(temporary), _internal_call=True)
        if trainer.args.should_save:
            _name_base(temporary / "adapter_config.json", base.name)
    else:
        _save_weights(trainer, network, base, temporary)
    if not trainer.args.should_save:
        return
    for name in ("training_args.bin", "README.md"):
        (temporary / name).unlink(missing_ok=True)
    for name in _SIDE_FILES:
        if (base.folder / name).is_file():
            shutil.copyfile(base.folder / name, temporary / name)
    _speak_chatml(temporary / "generation_config.json")
    for file in sorted(temporary.iterdir()):
        file.replace(folder / file.name)
    temporary.rmdir()


def _name_base(file: Path, name: str) -> None:
    """While training, the base is a folder of ours, lest PEFT look for its name on the hub."""
    settings = json.loads(file.read_text("utf-8"))
    write_json(file, settings | {"base_model_name_or_path": name})


def _speak_chatml(file: Path) -> None:
    """A base model of the first generation says that it continues text; now it holds conversations."""
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if settings.get("chat_format") == "raw":
        write_json(file, settings | {"chat_format": "chatml"})


def _save_weights(trainer: Any, network: Any, base: Base, folder: Path) -> None:
    """All weights, in the type they had; while they were trained they were float32."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.args.should_save:
        return
    dtype = _stored_dtype(base)
    state = {name: t.to(dtype) if t.is_floating_point() else t for name, t in state.items()}
    network.save_pretrained(folder, state_dict=state, max_shard_size=_SHARD_BYTES)
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    key = "torch_dtype" if "torch_dtype" in settings else "dtype"
    write_json(folder / "config.json", settings | {key: str(dtype).removeprefix("torch.")})


def _stored_dtype(base: Base) -> torch.dtype:
    raw = json.loads((base.folder / "config.json").read_text("utf-8"))
    named = str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16")
    found = getattr(torch, named.removeprefix("torch."), None)
    return found if isinstance(found, torch.dtype) and found.is_floating_point else torch.bfloat16
