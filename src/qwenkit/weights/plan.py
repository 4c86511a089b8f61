"""Which stored tensors make which parameter of the network, and in what form they will lie in memory.

Every tensor the network needs must be there with the right shape, and every tensor that is there must be needed:
nothing is initialised silently. Seen from headers alone; reads no weights.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from qwenkit.config.families import TensorMap
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import CheckpointError, InputError
from qwenkit.model.transformer import Transformer
from qwenkit.weights.checkpoint import Checkpoint
from qwenkit.weights.files import DTYPES
from qwenkit.weights.quantised import ROUNDED, Form, form_in_folder, form_in_gguf, rounded_form, stored_shapes

_log = logging.getLogger("qwenkit")
_HALVES = ("F16", "BF16")
_TABLES = ("embed.weight", "head.weight")


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Rows of a parameter that are stored together."""

    name: str
    """Of the tensor; of a matrix that is stored as several tensors, their common name and ``.weight``."""
    shape: tuple[int, ...]
    permuted_heads: int = 0
    """Head count when the stored rows are in interleaved order, else 0."""
    form: Form | None = None
    """How it stays packed in memory; None: it becomes numbers."""
    kept: torch.dtype | None = None
    """The type of these numbers where it is not the model's."""

    @property
    def module(self) -> str:
        """What the names of a packed matrix's tensors begin with."""
        return self.name.removesuffix(".weight")

    @property
    def is_stored_packed(self) -> bool:
        """Whether the file holds it packed as well."""
        return self.form is not None and self.form.layout != ROUNDED

    def nbytes(self, dtype: torch.dtype) -> int:
        """Memory in a model of ``dtype``."""
        if self.form is not None:
            return self.form.nbytes(self.shape[0], self.shape[1])
        return math.prod(self.shape) * (self.kept or dtype).itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """One parameter of the network: the parts stacked into it."""

    shape: tuple[int, ...]
    parts: tuple[Part, ...]
    is_expanded: bool = False
    """Packed parts become numbers."""

    @property
    def is_plain(self) -> bool:
        """Whether it becomes one tensor in the model's type."""
        return self.is_expanded or all(part.form is None and part.kept is None for part in self.parts)

    def nbytes(self, dtype: torch.dtype) -> int:
        """Memory in a model of ``dtype``."""
        if self.is_plain:
            return math.prod(self.shape) * dtype.itemsize
        return sum(part.nbytes(dtype) for part in self.parts)


def make_plan(
    checkpoint: Checkpoint,
    config: ModelConfig,
    *,
    dtype: torch.dtype,
    packed: bool = True,
    head: str = "auto",
) -> dict[str, Parameter]:
    """For every parameter of the network, in its order, where it comes from; a tied head has none of its own.

    Args:
        checkpoint: whose headers are read.
        config: of the network.
        dtype: of the model.
        packed: False: packed matrices become numbers.
        head: ``int8`` rounds the output head to 8 bits, unless nothing is to stay packed.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of the wrong shape.
        UnsupportedModelError: a matrix is packed in a way that cannot be run.
        InputError: the head cannot be rounded.
    """
    with torch.device("meta"):
        shapes = {n: tuple(w.shape) for n, w in Transformer(config).named_parameters()}
    plan = {n: Parameter(shape=s, parts=_parts(checkpoint, config, n, s, packed)) for n, s in shapes.items()}
    _check_complete(checkpoint, config, plan)
    if not packed:
        plan = {name: replace(parameter, is_expanded=True) for name, parameter in plan.items()}
    if packed and checkpoint.quant is not None and dtype == torch.float32:
        plan |= {n: _as_stored(checkpoint, plan[n]) for n in _TABLES if n in plan}
    if head == "int8" and packed:
        plan["head.weight"] = _rounded_head(checkpoint, plan.get("head.weight"))
    return plan


def stored_rows(names: TensorMap, config: ModelConfig, name: str, rows: int) -> Iterator[tuple[str, slice]]:
    """The stored tensors that make a parameter of ``rows`` rows, and which of them each holds.

    Args:
        names: a family's, of folders or of GGUF files.
        config: of the network.
        name: of the parameter in the network.
        rows: of the parameter.
    """
    layer = name.split(".")[1] if name.startswith("layers.") else ""
    parts = names[re.sub(r"^layers\.\d+\.", "layers.{i}.", name)]
    counts = {1: [rows], 2: [config.ffn_size] * 2, 3: [config.q_size, config.kv_size, config.kv_size]}
    at = 0
    for part, count in zip(parts, counts[len(parts)], strict=True):
        yield part.replace("{i}", layer), slice(at, at + count)
        at += count


def stored_head(checkpoint: Checkpoint) -> str:
    """What the checkpoint's family calls the output head."""
    return _names(checkpoint)["head.weight"][0]


def _names(checkpoint: Checkpoint) -> TensorMap:
    return checkpoint.family.gguf_tensors if checkpoint.format == "gguf" else checkpoint.family.tensors


def _parts(
    checkpoint: Checkpoint, config: ModelConfig, name: str, shape: tuple[int, ...], packed: bool
) -> tuple[Part, ...]:
    found = list(stored_rows(_names(checkpoint), config, name, shape[0]))
    heads = [0] * len(found)
    if checkpoint.format == "gguf" and checkpoint.family.gguf_permuted and len(found) == 3:
        heads = [config.num_heads, config.num_kv_heads, 0]
    parts = (
        Part(name=stored, shape=(rows.stop - rows.start, *shape[1:]), permuted_heads=h)
        for (stored, rows), h in zip(found, heads, strict=True)
    )
    return tuple(replace(part, form=_form(checkpoint, name, part, packed)) for part in parts)


def _form(checkpoint: Checkpoint, name: str, part: Part, packed: bool) -> Form | None:
    """How a matrix is stored packed, which follows from the tensors that are there."""
    stored = checkpoint.store.tensors
    if len(part.shape) != 2:
        return None
    if checkpoint.format == "gguf":
        return form_in_gguf(stored[part.name]) if packed and part.name in stored else None
    if name == "embed.weight" or part.name in stored or f"{part.module}.qweight" not in stored:
        return None
    shape = (part.shape[0], part.shape[1])
    return form_in_folder(checkpoint.path, stored, part.module, shape, checkpoint.quant)


def _expected(checkpoint: Checkpoint, plan: Mapping[str, Parameter]) -> Iterator[tuple[str, tuple[int, ...]]]:
    for parameter in plan.values():
        for part in parameter.parts:
            if part.form is None or checkpoint.format == "gguf":
                yield part.name, part.shape
            else:
                shape = (part.shape[0], part.shape[1])
                yield from stored_shapes(part.form, part.module, shape, checkpoint.store.tensors).items()


def _check_complete(checkpoint: Checkpoint, config: ModelConfig, plan: Mapping[str, Parameter]) -> None:
    stored, path, family = checkpoint.store.tensors, checkpoint.path, checkpoint.family
    expected = dict(_expected(checkpoint, plan))
    missing = [name for name in expected if name not in stored]
    if missing:
        raise CheckpointError(
            f"{path} lacks {_some(missing)} that a {family.name} model needs; fetch it again"
        )
    for name, shape in expected.items():
        if stored[name].shape != shape:
            quant = f" ({checkpoint.quant})" if checkpoint.quant else ""
            raise CheckpointError(
                f"{path}: tensor {name!r} has shape {list(stored[name].shape)}, the configuration{quant} asks for {list(shape)}"
            )
    ignored = [*family.ignored, *map(re.escape, surplus_biases(checkpoint, plan))]
    if config.tie_embeddings:
        ignored.append(re.escape(stored_head(checkpoint)))
    extra = [n for n in stored if n not in expected and not any(re.fullmatch(p, n) for p in ignored)]
    if extra:
        raise CheckpointError(
            f"{path} holds {_some(extra)} that a {family.name} model of this configuration does not have; is config.json of another model?"
        )


def _some(names: list[str]) -> str:
    return f"tensor {names[0]!r}" if len(names) == 1 else f"{len(names)} tensors, among them {names[0]!r},"


def surplus_biases(checkpoint: Checkpoint, plan: Mapping[str, Parameter]) -> list[str]:
    """Biases of packed matrices where the network has none: early GPTQ writers gave every one a bias of zeros."""
    if checkpoint.format == "gguf":
        return []
    wanted = {part.name for parameter in plan.values() for part in parameter.parts}
    packed = [p for parameter in plan.values() for p in parameter.parts if p.is_stored_packed]
    biases = {f"{part.module}.bias": part.shape[:1] for part in packed}
    stored = checkpoint.store.tensors
    return [n for n, shape in biases.items() if n not in wanted and n in stored and stored[n].shape == shape]


def _as_stored(checkpoint: Checkpoint, parameter: Parameter) -> Parameter:
    """A table stored in 16 bits stays so: beside packed layers, twice its size would be most of the model."""
    part = parameter.parts[0]
    kind = checkpoint.store.tensors[part.name].dtype if part.form is None else ""
    return replace(parameter, parts=(replace(part, kept=DTYPES[kind]),)) if kind in _HALVES else parameter


def _rounded_head(checkpoint: Checkpoint, parameter: Parameter | None) -> Parameter:
    if parameter is None:
        raise InputError(
            f"head='int8' is not possible for {checkpoint.path}: its output head is its embedding; leave the option out"
        )
    part = parameter.parts[0]
    if part.form is not None:
        _log.info(
            "head=int8 changes nothing: %s holds the output head in %d bits", checkpoint.path, part.form.bits
        )
        return parameter
    form = rounded_form(part.shape[1])
    if form is None:
        raise InputError(
            f"head='int8' is not possible for {checkpoint.path}: its {part.shape[1]} inputs are no multiple of 32; leave the option out"
        )
    return replace(parameter, parts=(replace(part, form=form, kept=None),))
