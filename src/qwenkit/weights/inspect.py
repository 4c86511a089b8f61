"""Describes a model from its headers alone: family, sizes, parameters, memory it will need. Loads no weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwenkit.chat.template import choose_template
from qwenkit.config.model import SIZES, ModelConfig
from qwenkit.core.errors import QwenkitError, TokenizerError
from qwenkit.kernels import native
from qwenkit.weights.checkpoint import Checkpoint, open_checkpoint
from qwenkit.weights.memory import weights_bytes
from qwenkit.weights.plan import Parameter, make_plan, stored_head
from qwenkit.weights.sources import fetch
from qwenkit.weights.tokenizer import tokenizer_of

_BYTES = {"bfloat16": 2, "float32": 4}  # float16 needs what bfloat16 needs


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """Bytes needed to run in one dtype at one context length, one sequence."""

    dtype: str
    context: int
    weights_bytes: int
    kv_bytes: int

    @property
    def total_bytes(self) -> int:
        """Weights and cache together."""
        return self.weights_bytes + self.kv_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelReport:
    """What the headers of a checkpoint say."""

    path: Path
    format: str
    family: str
    architecture: str
    num_params: int
    sizes: dict[str, int]
    features: dict[str, str]
    dtype: str
    quantisation: str | None
    runnable: bool
    problem: str | None
    """Why it does not run."""
    kernels: str
    """What would compute on this CPU, in the dtype it would take."""
    head: str
    """Stored type of the output head, or ``the embedding``."""
    context_length: int
    vocab_tokens: int | None
    """Tokens of the tokenizer; None when it has none."""
    chat_template: str
    """chatml, jinja or none"""
    tokenizer_problem: str | None
    """Why there is no tokenizer."""
    file_bytes: int
    tensors: dict[str, int]
    """Stored type to bytes."""
    in_memory: dict[str, str]
    """Stored type to what becomes of it: ``packed`` or ``numbers``."""
    memory: tuple[MemoryRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        out = dataclasses.asdict(self)
        out["path"] = str(self.path)
        out["memory"] = [{**dataclasses.asdict(r), "total_bytes": r.total_bytes} for r in self.memory]
        return out


def inspect_model(model: str) -> ModelReport:
    """Reads the headers of a model.

    Args:
        model: folder, .gguf file, built-in name or hub id; fetched first if needed.

    Raises:
        QwenkitError: it cannot be found, or its headers do not hold.
    """
    checkpoint = open_checkpoint(fetch(model))
    try:
        return _report(checkpoint)
    finally:
        checkpoint.store.close()


def _report(checkpoint: Checkpoint) -> ModelReport:
    config = checkpoint.config
    tensors: dict[str, int] = {}
    for info in checkpoint.store.tensors.values():
        tensors[info.dtype] = tensors.get(info.dtype, 0) + info.nbytes
    vocab_tokens, template, tokenizer_problem = _text_side(checkpoint)
    plan, problem = _plan_or_problem(checkpoint)
    packed = _packed_types(checkpoint, plan)
    return ModelReport(
        path=checkpoint.path,
        format=checkpoint.format,
        family=checkpoint.family.name,
        architecture=checkpoint.family.architecture,
        num_params=config.num_params,
        sizes={name: getattr(config, name) for name in SIZES},
        features=_features(config),
        dtype=config.dtype,
        quantisation=str(checkpoint.quant) if checkpoint.quant else None,
        runnable=problem is None,
        problem=problem,
        kernels=_kernels(),
        head=_head(checkpoint, plan),
        context_length=config.context_length,
        vocab_tokens=vocab_tokens,
        chat_template=template,
        tokenizer_problem=tokenizer_problem,
        file_bytes=_file_bytes(checkpoint.path),
        tensors=dict(sorted(tensors.items(), key=lambda item: -item[1])),
        in_memory={kind: "packed" if kind in packed else "numbers" for kind in tensors},
        memory=tuple(memory_rows(config, {} if problem else _weights_bytes(checkpoint))),
    )


def _kernels() -> str:
    return f"native {native.isa_name()}" if native.library() else "torch"


def _plan_or_problem(checkpoint: Checkpoint) -> tuple[Mapping[str, Parameter], str | None]:
    """Where weights come from, or why the model does not run."""
    try:
        return make_plan(checkpoint, checkpoint.config, dtype=torch.bfloat16), None
    except QwenkitError as error:
        return {}, str(error)


def _head(checkpoint: Checkpoint, plan: Mapping[str, Parameter]) -> str:
    if checkpoint.config.tie_embeddings:
        return "the embedding"
    stored = checkpoint.store.tensors
    name = stored_head(checkpoint)
    part = plan["head.weight"].parts[0] if "head.weight" in plan else None
    if part is not None and part.form is not None and name not in stored:
        return f"{part.form.bits} bit"
    return stored[name].dtype if name in stored else "missing"


def _packed_types(checkpoint: Checkpoint, plan: Mapping[str, Parameter]) -> set[str]:
    """Stored types of what stays packed in memory."""
    parts = [p for parameter in plan.values() for p in parameter.parts if p.is_stored_packed]
    names = [p.name if checkpoint.format == "gguf" else f"{p.module}.qweight" for p in parts]
    return {checkpoint.store.tensors[name].dtype for name in names}


def _weights_bytes(checkpoint: Checkpoint) -> dict[str, int]:
    return {name: weights_bytes(checkpoint, getattr(torch, name)) for name in _BYTES}


def _text_side(checkpoint: Checkpoint) -> tuple[int | None, str, str | None]:
    """Tokens, kind of chat template, and what is wrong with the tokenizer."""
    try:
        tokenizer = tokenizer_of(checkpoint.path, checkpoint.metadata)
    except TokenizerError as error:
        return None, "none", str(error)
    if checkpoint.generation.chat_format == "raw":
        return tokenizer.vocab_size, "none", None
    try:
        template = choose_template(checkpoint.family.chat_format, tokenizer)
    except QwenkitError as error:
        return tokenizer.vocab_size, "none", str(error)
    kind = "none" if template is None else "jinja" if type(template).__name__ == "JinjaTemplate" else "chatml"
    return tokenizer.vocab_size, kind, None


def _features(config: ModelConfig) -> dict[str, str]:
    """The switches that are on, in words."""
    rope, features = config.rope, {}
    features["rotary base"] = f"{rope.base:g}"
    if rope.scaling:
        features["rotary scaling"] = f"{rope.scaling.kind} x{rope.scaling.factor:g}"
    if rope.freq_factors:
        features["rotary scaling"] = "factors per frequency"
    if rope.ntk_length:
        features["dynamic NTK"] = f"beyond {rope.ntk_length} tokens"
    if config.logn_length:
        features["LogN attention"] = f"beyond {config.logn_length} tokens"
    if config.windows:
        features["windows"] = f"{sum(w is not None for w in config.windows)} of {config.num_layers} layers"
    named = {
        "qkv bias": config.qkv_bias,
        "query and key norm": config.qk_norm,
        "tied embeddings": config.tie_embeddings,
    }
    return features | {name: "yes" for name, on in named.items() if on}


def memory_rows(config: ModelConfig, weights: Mapping[str, int]) -> list[MemoryRow]:
    """Memory for a few context lengths up to the model's own, in each dtype.

    Args:
        config: sizes of the model.
        weights: dtype to bytes of the weights as they lie in memory; where it is silent, they are numbers.
    """
    lengths = sorted({n for n in (2048, 8192, 32768) if n < config.context_length} | {config.context_length})
    return [
        MemoryRow(
            dtype=dtype,
            context=length,
            weights_bytes=weights.get(dtype, config.num_params * width),
            kv_bytes=config.kv_bytes(length, width),
        )
        for dtype, width in _BYTES.items()
        for length in lengths
    ]


def _file_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    weights = (p for p in path.iterdir() if p.suffix in (".safetensors", ".bin"))
    return sum(p.stat().st_size for p in weights)
