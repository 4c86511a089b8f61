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
from qwenkit.tokenizer.copy import copy_tokenizer
from qwenkit.train.base import Base
from qwenkit.weights.write import write_json

_GENERATION = "generation_config.json"
_SHARD_BYTES = 2 << 30
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NO_MEMORY = "can't allocate memory"
_FULL_SIGNS = ("No space left", "StorageFull", "PytorchStreamWriter failed", "unexpected pos")


@contextlib.contextmanager
def shortages_told(folder: Path) -> Iterator[None]:
    """Turns what libraries raise on a full disk or without memory into one sentence; torch raises neither as an OSError.

    Raises:
        QwenkitError: the disk is full, or there is no memory left.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError, MemoryError) as error:
        causes = (error, error.__cause__, error.__context__)
        text = " ".join(str(each) for each in causes)
        is_full = any(isinstance(each, OSError) and each.errno in _FULL for each in causes)
        if is_full or any(sign in text for sign in _FULL_SIGNS):
            raise QwenkitError(
                f"the disk of {folder} is full; free some space and run the same command again, which goes on from the last checkpoint"
            ) from error
        if isinstance(error, MemoryError | torch.OutOfMemoryError) or _NO_MEMORY in text:
            raise QwenkitError(
                "there is no memory left; lower batch_size or max_length, leave checkpointing on, or use method lora or qlora"
            ) from error
        raise


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
    copy_tokenizer(base.folder, temporary)
    if (base.folder / _GENERATION).is_file():
        shutil.copyfile(base.folder / _GENERATION, temporary / _GENERATION)
    _speak_chatml(temporary / _GENERATION)
    for each in sorted(temporary.iterdir()):
        each.replace(folder / each.name)
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
