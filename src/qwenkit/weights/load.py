"""Opens a checkpoint of any supported format and builds the network from it.

Every tensor the network needs must be there with the right shape, and every tensor that is there must be needed:
nothing is initialised silently. Weights are read straight into place, so the peak is little above the model itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qwenkit.config.families import Family
from qwenkit.config.generation import GenerationConfig, from_generation_config
from qwenkit.config.gguf import from_gguf
from qwenkit.config.hf import from_hf, read_json
from qwenkit.config.model import ModelConfig
from qwenkit.config.quant import QuantConfig, quant_config
from qwenkit.core.errors import CheckpointError, TokenizerError, UnsupportedModelError
from qwenkit.kernels.cpu import usable_cores, use_large_pages
from qwenkit.model.transformer import Transformer
from qwenkit.weights.files import TensorStore, open_folder
from qwenkit.weights.gguf import GgufFile

_ALIGN = 64  # elements; every parameter starts on a cache line


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
    raw = read_json(folder / "config.json", what="model configuration")
    family, config = from_hf(raw)
    generation_file = folder / "generation_config.json"
    generation = from_generation_config(read_json(generation_file) if generation_file.is_file() else {}, raw)
    side = next(
        (folder / n for n in ("quantize_config.json", "quant_config.json") if (folder / n).is_file()), None
    )
    kind, store = open_folder(folder)
    if family.may_tie and not config.tie_embeddings and family.tensors["head.weight"][0] not in store.tensors:
        config = replace(config, tie_embeddings=True)
    return Checkpoint(
        path=folder,
        format=kind,
        family=family,
        config=config,
        generation=generation,
        quant=quant_config(raw, read_json(side) if side else None),
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
    quant = None if main in ("F32", "F16", "BF16", "none") else QuantConfig(method=f"GGUF {main}")
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


def build_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    config: ModelConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Transformer:
    """The network with the checkpoint's weights.

    Args:
        checkpoint: from open_checkpoint; stays open.
        device: where the weights go.
        dtype: what they become.
        config: overrides the checkpoint's configuration (windows, context); sizes must be the same.
        on_progress: called with (parameters done, parameters in all) in bytes of ``dtype``.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of the wrong shape.
        UnsupportedModelError: the checkpoint is quantised in a way that cannot be run.
    """
    if checkpoint.quant and checkpoint.format != "gguf":
        raise UnsupportedModelError(
            f"{checkpoint.path} is quantised ({checkpoint.quant}), which this version cannot run yet; use the bf16 or fp16 version of the model"
        )
    with torch.device("meta"):
        model = Transformer(config or checkpoint.config)
    plan = _plan(checkpoint, model)
    _check_complete(checkpoint, model, plan)
    weights = _allocate(plan, device, dtype)
    total, done = sum(w.nbytes for w in weights.values()), 0
    with ThreadPoolExecutor(max_workers=min(usable_cores(), 8)) as pool:
        jobs = {name: pool.submit(_fill, checkpoint, plan[name], weights[name]) for name in plan}
        try:
            for name, job in jobs.items():
                job.result()
                _assign(model, name, weights[name])
                done += weights[name].nbytes
                if on_progress:
                    on_progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if model.config.tie_embeddings:
        model.head.weight = model.embed.weight
    return model.eval()


@dataclass(frozen=True, slots=True)
class _Parameter:
    """One parameter of the network and the stored tensors stacked into it."""

    shape: tuple[int, ...]
    sources: tuple[tuple[str, int], ...]
    """Stored name and number of rows of each part."""
    permuted_heads: tuple[int, ...]
    """Per part: head count when its rows are in interleaved order, else 0."""


def _plan(checkpoint: Checkpoint, model: Transformer) -> dict[str, _Parameter]:
    names = checkpoint.family.gguf_tensors if checkpoint.format == "gguf" else checkpoint.family.tensors
    config = model.config
    permute = checkpoint.format == "gguf" and checkpoint.family.gguf_permuted
    plan = {}
    for name, weight in model.named_parameters():  # a tied head is listed once, as the embedding
        pattern = re.sub(r"^layers\.\d+\.", "layers.{i}.", name)
        layer = name.split(".")[1] if name.startswith("layers.") else ""
        parts = [part.replace("{i}", layer) for part in names[pattern]]
        rows = [weight.shape[0]]
        if len(parts) == 3:
            rows = [config.q_size, config.kv_size, config.kv_size]
        elif len(parts) == 2:
            rows = [config.ffn_size] * 2
        heads = (
            (config.num_heads, config.num_kv_heads, 0) if permute and len(parts) == 3 else (0,) * len(parts)
        )
        plan[name] = _Parameter(tuple(weight.shape), tuple(zip(parts, rows, strict=True)), heads)
    return plan


def _check_complete(checkpoint: Checkpoint, model: Transformer, plan: Mapping[str, _Parameter]) -> None:
    stored = checkpoint.store.tensors
    expected: dict[str, tuple[int, ...]] = {}
    for parameter in plan.values():
        for source, rows in parameter.sources:
            expected[source] = (rows, *parameter.shape[1:])
    missing = [name for name in expected if name not in stored]
    if missing:
        raise CheckpointError(
            f"{checkpoint.path} lacks {_some(missing)} that a {checkpoint.family.name} model needs; fetch it again"
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            raise CheckpointError(
                f"{checkpoint.path}: tensor {name!r} has shape {list(stored[name].shape)}, the configuration asks for {list(shape)}"
            )
    head = checkpoint.family.gguf_tensors if checkpoint.format == "gguf" else checkpoint.family.tensors
    ignored = [*checkpoint.family.ignored] + (
        [re.escape(head["head.weight"][0])] if model.config.tie_embeddings else []
    )
    extra = [n for n in stored if n not in expected and not any(re.fullmatch(p, n) for p in ignored)]
    if extra:
        raise CheckpointError(
            f"{checkpoint.path} holds {_some(extra)} that a {checkpoint.family.name} model of this configuration does not have; is config.json of another model?"
        )


def _some(names: list[str]) -> str:
    return f"tensor {names[0]!r}" if len(names) == 1 else f"{len(names)} tensors, among them {names[0]!r},"


def _allocate(plan: Mapping[str, _Parameter], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """Room for every parameter in one block: no gaps between allocations, and large pages where the system has them."""
    starts, end = {}, 0
    for name, parameter in plan.items():
        starts[name] = end
        end += -(-math.prod(parameter.shape) // _ALIGN) * _ALIGN
    block = torch.empty(end, dtype=dtype, device=device)
    if device.type == "cpu":
        use_large_pages(block.data_ptr(), block.nbytes)
    return {n: block[at : at + math.prod(plan[n].shape)].view(plan[n].shape) for n, at in starts.items()}


def _fill(checkpoint: Checkpoint, plan: _Parameter, out: Tensor) -> None:
    at = 0
    for (source, rows), heads in zip(plan.sources, plan.permuted_heads, strict=True):
        part = out[at : at + rows]
        if heads:
            stored = torch.empty_like(part)
            checkpoint.store.read(source, stored)
            # llama.cpp keeps the pairs of a rotation side by side; here they lie half a head apart.
            pairs = stored.view(heads, -1, 2, *part.shape[1:]).transpose(1, 2)
            part.view(heads, 2, -1, *part.shape[1:]).copy_(pairs)
        else:
            checkpoint.store.read(source, part)
        at += rows


def _assign(model: nn.Module, name: str, weight: Tensor) -> None:
    owner, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(owner), attribute, nn.Parameter(weight, requires_grad=False))


def check_vocabulary(config: ModelConfig, vocab_size: int) -> None:
    """Refuses a tokenizer that can produce ids the embedding has no row for.

    Raises:
        TokenizerError: with both numbers.
    """
    if vocab_size > config.vocab_size:
        raise TokenizerError(
            f"the tokenizer has {vocab_size} tokens, the model's embedding only {config.vocab_size} rows; the tokenizer files are of another model"
        )
