"""Opens a checkpoint of any supported format: reads its headers and settings, and no weights."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from qwenkit.config.families import Family
from qwenkit.config.generation import GenerationConfig, from_generation_config
from qwenkit.config.gguf import from_gguf
from qwenkit.config.hf import from_hf, read_json
from qwenkit.config.model import ModelConfig
from qwenkit.config.quant import QuantConfig, quant_config
from qwenkit.core.errors import CheckpointError, ConfigError, TokenizerError
from qwenkit.kernels.packed import BLOCK
from qwenkit.weights.adapter_base import is_adapter
from qwenkit.weights.files import TensorStore, open_folder
from qwenkit.weights.gguf import GgufFile
from qwenkit.weights.quantised import BITS_IN_GGUF, seen_quant

GENERATION_FILE = "generation_config.json"

_SIDE_FILES = ("quantize_config.json", "quant_config.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A model on disk, its headers read and its weights not."""

    path: Path
    format: str
    """safetensors, bin or gguf"""
    family: Family
    config: ModelConfig
    generation: GenerationConfig
    quant: QuantConfig | None
    store: TensorStore
    metadata: dict[str, Any] = field(default_factory=dict)
    """GGUF metadata; empty for folders. May be cleared once the tokenizer has been read."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Reads the headers of a model folder or a .gguf file.

    Raises:
        ConfigError: settings are missing, contradictory or not supported.
        CheckpointError: weight files are missing, truncated or malformed.
    """
    if path.is_dir():
        return _open_hf(path)
    if path.suffix == ".gguf" or _starts_with(path, b"GGUF"):
        return _open_gguf(path)
    raise CheckpointError(f"{path} is neither a model folder nor a .gguf file; give one of these")


def _starts_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error


def _open_hf(folder: Path) -> Checkpoint:
    if is_adapter(folder):
        raise ConfigError(
            f"{folder} is a LoRA adapter, and this needs a whole model; make one of it with 'qwenkit merge'"
        )
    raw = read_json(folder / "config.json", what="model configuration")
    family, config = from_hf(raw)
    generation_file = folder / GENERATION_FILE
    generation = from_generation_config(read_json(generation_file) if generation_file.is_file() else {}, raw)
    side = next((folder / name for name in _SIDE_FILES if (folder / name).is_file()), None)
    quant = quant_config(raw, read_json(side) if side else None)
    kind, store = open_folder(folder)
    try:
        quant = quant or seen_quant(folder, store.tensors)
    except BaseException:
        store.close()
        raise
    head = family.tensors["head.weight"][0]
    stored_heads = (head, head.removesuffix("weight") + "qweight")
    if family.may_tie and not config.tie_embeddings and not any(n in store.tensors for n in stored_heads):
        config = replace(config, tie_embeddings=True)
    return Checkpoint(
        path=folder,
        format=kind,
        family=family,
        config=config,
        generation=generation,
        quant=quant,
        store=store,
    )


def _open_gguf(path: Path) -> Checkpoint:
    file = GgufFile(path)
    try:
        factors: list[float] = []
        if "rope_freqs.weight" in file.tensors:
            values = torch.empty(file.tensors["rope_freqs.weight"].shape)
            file.read("rope_freqs.weight", values)
            factors = values.tolist()
        family, config = from_gguf(file.metadata, tensor_names=frozenset(file.tensors), freq_factors=factors)
        ends = [file.metadata.get(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot")]
        generation = from_generation_config({"eos_token_id": [i for i in ends if i is not None]}, {})
    except BaseException:
        file.close()
        raise
    counts: dict[str, int] = {}
    for info in file.tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + info.nbytes
    main = max(counts, key=lambda k: counts[k], default="none")
    quant = None
    if main not in ("F32", "F16", "BF16", "none"):
        bits = BITS_IN_GGUF.get(main)
        quant = QuantConfig(method=f"GGUF {main}", bits=bits, group_size=bits and BLOCK)
    return Checkpoint(
        path=path,
        format="gguf",
        family=family,
        config=config,
        generation=generation,
        quant=quant,
        store=file,
        metadata=file.metadata,
    )


def with_generation(checkpoint: Checkpoint, folder: Path) -> Checkpoint:
    """The checkpoint with the generation settings of another folder, such as an adapter's, where it has any.

    Raises:
        ConfigError: they are malformed.
    """
    file = folder / GENERATION_FILE
    if not file.is_file():
        return checkpoint
    ends = {"eos_token_id": list(checkpoint.generation.eos_ids)}
    return replace(checkpoint, generation=from_generation_config(read_json(file), ends))


def check_vocabulary(config: ModelConfig, vocab_size: int) -> None:
    """Refuses a tokenizer that can produce ids the embedding has no row for.

    Raises:
        TokenizerError: with both numbers.
    """
    if vocab_size > config.vocab_size:
        raise TokenizerError(
            f"the tokenizer has {vocab_size} tokens, the model's embedding only {config.vocab_size} rows; the tokenizer files are of another model"
        )
