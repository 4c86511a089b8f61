"""The folder of a merged model beside its weights: settings, tokenizer, README; and how it comes to its place whole.

Knows nothing of how weights are merged.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock
import torch

from qwenkit._version import __version__
from qwenkit.config.hf import read_json
from qwenkit.config.lora import LoraConfig
from qwenkit.core.errors import InputError, SourceError
from qwenkit.tokenizer.copy import copy_tokenizer, has_tokenizer
from qwenkit.tokenizer.load import load_tokenizer_files
from qwenkit.tokenizer.save import save_tokenizer
from qwenkit.weights.cache import is_disk_full
from qwenkit.weights.checkpoint import Checkpoint, check_vocabulary
from qwenkit.weights.save import generation_dict, to_hf
from qwenkit.weights.tokenizer import tokenizer_of
from qwenkit.weights.write import write_json

_GENERATION = "generation_config.json"
_LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")
_FLAGS = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
"""Keys of config.json that name the type, of first-generation Qwen."""
_OURS = {"lock", "model"}


@contextlib.contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """An empty folder that becomes ``out`` when the block ends well, and is removed when it does not.

    A killed process leaves ``OUT.merging`` behind, which the next run for the same target replaces.

    Args:
        out: absolute; must not exist yet, or be empty.

    Raises:
        InputError: another process is at it, or the work folder's name is taken.
        SourceError: the disk is full or not writable.
    """
    root = out.with_name(f"{out.name}.merging")
    with _writing(out):
        root.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(root / "lock")
    foreign = sorted(path.name for path in root.iterdir() if path.name not in _OURS)
    if foreign:
        raise InputError(
            f"{root}, where the work would be done, holds {foreign[0]!r}; move it away, or give another folder"
        )
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise InputError(
            f"another process is merging to {out}; wait for it, or give another folder"
        ) from None
    try:
        with _writing(out):
            shutil.rmtree(root / "model", ignore_errors=True)
            (root / "model").mkdir()
            yield root / "model"
            os.replace(root / "model", out)  # an empty target is replaced
    finally:
        lock.release()
        shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise SourceError(
                f"the disk filled up while writing {out}; nothing was kept: make room there, or give another folder"
            ) from error
        where = error.filename or out
        raise SourceError(
            f"{where} cannot be read or written: {error.strerror or error}; nothing was kept"
        ) from error


def write_settings(
    folder: Path, checkpoint: Checkpoint, adapter: Path, *, dtype: torch.dtype | None, tied: bool
) -> str | None:
    """Writes config.json, generation_config.json, tokenizer and chat template.

    Args:
        folder: of the merged model.
        checkpoint: the base.
        adapter: whose own tokenizer, template and generation settings win.
        dtype: of all weights; None: as the base has them.
        tied: whether embedding and head are one table in the merged model.

    Returns:
        What the user should know, if anything.

    Raises:
        InputError: the family's config.json cannot express a feature of a GGUF file.
        TokenizerError: the tokenizer is malformed, or larger than the embedding.
    """
    base = checkpoint.path if checkpoint.path.is_dir() else None
    if base is None:
        name = str(dtype).removeprefix("torch.")
        config = dataclasses.replace(checkpoint.config, tie_embeddings=tied)
        write_json(folder / "config.json", to_hf(config, checkpoint.family, name))
    else:
        write_json(folder / "config.json", _settings(base, checkpoint, dtype, tied=tied))
        for path in (path for pattern in _LICENCES for path in base.glob(pattern) if path.is_file()):
            shutil.copyfile(path, folder / path.name)
    own = next((f for f in (adapter, base) if f is not None and (f / _GENERATION).is_file()), None)
    generation = generation_dict(checkpoint.generation) if own is None else read_json(own / _GENERATION)
    write_json(folder / _GENERATION, generation)
    return _write_tokenizer(folder, checkpoint, adapter)


def _settings(base: Path, checkpoint: Checkpoint, dtype: torch.dtype | None, *, tied: bool) -> dict[str, Any]:
    """The base's config.json, changed in what the merged model differs in."""
    raw, family = read_json(base / "config.json"), checkpoint.family
    for key in ("quantization_config", "auto_map"):  # Python files are not part of the folder
        raw.pop(key, None)
    if family.may_tie:
        raw[family.keys["tie_embeddings"][0]] = tied
    if dtype is not None:
        raw["dtype" if "dtype" in raw else "torch_dtype"] = str(dtype).removeprefix("torch.")
        raw |= {key: kind == dtype for key, kind in _FLAGS.items() if key in raw}
    return raw


def _write_tokenizer(folder: Path, checkpoint: Checkpoint, adapter: Path) -> str | None:
    base = checkpoint.path
    if has_tokenizer(adapter):
        copy_tokenizer(adapter, folder)
    elif not base.is_dir():
        save_tokenizer(folder, tokenizer_of(base, checkpoint.metadata or None))
    elif has_tokenizer(base):
        copy_tokenizer(base, folder)
    else:
        return f"neither {base} nor the adapter has tokenizer files, so the merged model has none"
    check_vocabulary(checkpoint.config, load_tokenizer_files(folder).vocab_size)
    return None


def write_card(
    folder: Path, name: str, *, base: str, adapter: Path, config: LoraConfig, facts: Mapping[str, Any]
) -> None:
    """Writes README.md: what was merged, and how.

    Args:
        folder: where to.
        name: of the model.
        base: as it was asked for.
        adapter: its folder.
        config: what the adapter asks for.
        facts: more lines for the table.
    """
    rows = {
        "base": base,
        "adapter": adapter.name,
        "adapter weights, SHA-256": _digest(adapter),
        **describe(config),
        **facts,
    }
    lines = [
        "---",
        f"base_model: {json.dumps(base, ensure_ascii=False)}",
        "tags: [qwenkit, lora, merged]",
        "---",
        "",
        f"# {name}",
        "",
        f"{base} with a LoRA adapter merged into its weights by qwenkit {__version__}.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
        "",
        "```",
        f"qwenkit chat -m {name}",
        "```",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def describe(config: LoraConfig) -> dict[str, Any]:
    """An adapter's settings in words, to their values."""
    root = "sqrt(rank)" if config.use_rslora else "rank"
    own = bool(config.rank_pattern or config.alpha_pattern)
    targets = config.target_modules
    out: dict[str, Any] = {
        "rank": f"{config.rank}, others for some modules" if config.rank_pattern else config.rank,
        f"scale (alpha / {root})": f"{config.default_scale:g}{', others for some modules' if own else ''}",
        "modules": targets if isinstance(targets, str) else ", ".join(sorted(targets)),
    }
    if config.modules_to_save:
        out["stored whole"] = ", ".join(sorted(config.modules_to_save))
    if config.token_rows:
        out["token rows"] = sum(len(ids) for ids in config.token_rows.values())
    return out


def _digest(adapter: Path) -> str:
    names = ("adapter_model.safetensors", "adapter_model.bin")
    path = next(adapter / name for name in names if (adapter / name).is_file())
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()
