"""Builds the network from a checkpoint: every weight is read straight into its place, packed ones stay packed.

What comes from where is decided before by weights/plan.py. The peak of memory is little above the model itself.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import CheckpointError, InputError
from qwenkit.kernels.cpu import release_freed_memory, usable_cores, use_large_pages
from qwenkit.kernels.packed import PackedWeight, stack_rows
from qwenkit.layers.linear import Linear
from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear, Stored
from qwenkit.model.transformer import Transformer
from qwenkit.weights.checkpoint import Checkpoint
from qwenkit.weights.files import TensorStore
from qwenkit.weights.gguf import GgufFile
from qwenkit.weights.plan import Parameter, Part, make_plan, surplus_biases
from qwenkit.weights.quantised import (
    ROUNDED,
    Form,
    gptq_version,
    read_from_folder,
    read_from_gguf,
    read_rounded,
)

HEADS = ("auto", "int8")
"""What the output head may be kept in: as the checkpoint has it, or rounded to 8 bits."""

_ALIGN = 64  # bytes; every tensor starts on a cache line
_PACKED_WORKERS = 2  # each needs memory for the layer it rearranges
_LARGE = 2**27  # bytes of a model whose loading leaves freed memory worth handing back
_TENSORS = ("codes", "scales", "zeros", "mins", "order")

_Empty = Callable[..., Tensor]
"""Makes a tensor of a shape and ``dtype``."""


def build_model(
    checkpoint: Checkpoint,
    *,
    device: torch.device,
    dtype: torch.dtype,
    config: ModelConfig | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    packed: bool = True,
    head: str = "auto",
) -> Transformer:
    """The network with the checkpoint's weights.

    Args:
        checkpoint: from open_checkpoint; stays open.
        device: where the weights go.
        dtype: of activations, and of weights that are not packed.
        config: overrides the checkpoint's configuration (windows, context); sizes must be the same.
        on_progress: called with (bytes done, bytes in all) of the network in memory.
        packed: False turns packed weights into numbers of ``dtype``.
        head: one of HEADS; int8 rounds an output head that is not packed to 8 bits.

    Raises:
        CheckpointError: a tensor is missing, unexpected, damaged or of the wrong shape.
        UnsupportedModelError: the checkpoint is quantised in a way that cannot be run.
        InputError: the head cannot be what is asked for.
    """
    if head not in HEADS or (head != "auto" and not packed):
        raise InputError(f"head={head!r} is not possible; use {' or '.join(HEADS)}, int8 with packed weights")
    with torch.device("meta"):
        model = Transformer(config or checkpoint.config)
    plan = make_plan(checkpoint, model.config, dtype=dtype, packed=packed, head=head)
    _check_surplus_biases(checkpoint, plan)
    source = _Source(checkpoint, plan, device, dtype)
    total, done = sum(p.nbytes(dtype) for p in plan.values()), 0
    most = _PACKED_WORKERS if checkpoint.quant else 8
    with ThreadPoolExecutor(max_workers=min(usable_cores(), most)) as pool:
        jobs = {name: pool.submit(source.load, parameter) for name, parameter in plan.items()}
        try:
            for name, job in jobs.items():
                _install(model, name, job.result(), is_plain=plan[name].is_plain, dtype=dtype)
                done += plan[name].nbytes(dtype)
                if on_progress:
                    on_progress(done, total)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    if model.config.tie_embeddings:
        _tie(model)
    if checkpoint.quant and total > _LARGE:
        release_freed_memory()
    return model.eval()


class _Room:
    """One block of memory for all weights: no gaps between them, and large pages where the system has them."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._block = torch.empty(size, dtype=torch.uint8, device=device)
        self._at, self._lock = 0, threading.Lock()
        if device.type == "cpu":
            use_large_pages(self._block.data_ptr(), size)

    def empty(self, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        """A tensor in the block, or beside it once the block is full."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            start = self._at
            if start + size > len(self._block):
                return torch.empty(*shape, dtype=dtype, device=self._block.device)
            self._at = _aligned(start + size)
        return self._block[start : start + size].view(dtype).view(*shape)


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


class _Source:
    """Reads parameters of one checkpoint; may be used by several threads."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Mapping[str, Parameter], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._store, self._quant, self._dtype = checkpoint.store, checkpoint.quant, dtype
        # A packed matrix consists of up to four tensors, each on its own cache line.
        gaps = 4 * _ALIGN * sum(len(p.parts) for p in plan.values())
        self._room = _Room(sum(p.nbytes(dtype) for p in plan.values()) + gaps, device)
        parts = (part for parameter in plan.values() for part in parameter.parts)
        gptq = ((p.module, p.form) for p in parts if p.form is not None and p.form.layout == "gptq")
        self._version = gptq_version(checkpoint.path, self._store, gptq, self._quant)

    def load(self, parameter: Parameter) -> tuple[Stored, ...]:
        """The parameter's parts; a plain one is one tensor."""
        if parameter.is_plain:
            out, at = self._room.empty(parameter.shape, dtype=self._dtype), 0
            for part in parameter.parts:
                self._fill(part, out[at : at + part.shape[0]])
                at += part.shape[0]
            return (out,)
        first = parameter.parts[0]
        if len(parameter.parts) == 1 and first.form is not None:
            return (self._packed(first, first.form, self._room.empty),)
        found: list[Stored] = []
        for part in parameter.parts:
            form = part.form
            found.append(self._numbers(part) if form is None else self._packed(part, form, torch.empty))
        packed = [part for part in found if isinstance(part, PackedWeight)]
        if len(packed) == len(found) and (whole := stack_rows(packed)) is not None:
            found = [whole]
        return tuple(part if isinstance(part, Tensor) else _copied(part, self._room.empty) for part in found)

    def _numbers(self, part: Part) -> Tensor:
        """A part that is not packed, beside others that are, or in a type of its own."""
        out = self._room.empty(part.shape, dtype=part.kept or self._dtype)
        self._fill(part, out)
        return out

    def _fill(self, part: Part, out: Tensor) -> None:
        if part.form is not None:
            _expand(self._read(part, part.form), out)
        else:
            read_numbers(self._store, part, out)

    def _packed(self, part: Part, form: Form, empty: _Empty) -> PackedWeight:
        """A packed part in memory from ``empty``."""
        whole, at = None, 0
        for piece in self._read(part, form):
            if whole is None:
                whole = _like(piece, part.shape[0], empty)
            _put(piece, whole, at)
            at += piece.shape[0]
        assert whole is not None
        return whole

    def _read(self, part: Part, form: Form) -> Iterator[PackedWeight]:
        """A packed part in pieces of rows."""
        if form.layout == ROUNDED:
            yield from read_rounded(self._store, part.name, form)
        elif isinstance(self._store, GgufFile):
            rows = _stored_rows(part) if part.permuted_heads else None
            yield from read_from_gguf(self._store, part.name, form, rows)
        else:
            desc_act = self._quant.desc_act if self._quant else None
            weight = read_from_folder(
                self._store, part.module, form, version=self._version, desc_act=desc_act
            )
            if weight.shape != part.shape:
                raise CheckpointError(
                    f"{part.module} holds {weight.shape[0]} x {weight.shape[1]} weights, the configuration asks for {part.shape[0]} x {part.shape[1]}"
                )
            yield weight


def read_numbers(store: TensorStore, part: Part, out: Tensor) -> None:
    """Fills ``out`` with a part that is not packed, converted, its rows in the network's order."""
    if not part.permuted_heads:
        store.read(part.name, out)
        return
    stored = torch.empty_like(out)
    store.read(part.name, stored)
    out.copy_(stored[_stored_rows(part).to(out.device)])


def with_head(model: Transformer, checkpoint: Checkpoint, head: str) -> Transformer:
    """The same network with another output head; everything else is shared.

    Args:
        model: from build_model, of this checkpoint.
        checkpoint: stays open.
        head: one of HEADS.

    Raises:
        InputError: the head cannot be what is asked for.
    """
    parameter = make_plan(checkpoint, model.config, dtype=model.dtype, head=head)["head.weight"]
    source = _Source(checkpoint, {"head.weight": parameter}, model.device, model.dtype)
    other = copy.copy(model)
    other._modules = dict(model._modules)
    _install(other, "head.weight", source.load(parameter), is_plain=parameter.is_plain, dtype=model.dtype)
    return other


def _like(piece: PackedWeight, rows: int, empty: _Empty) -> PackedWeight:
    """Room for ``rows`` rows in the form of a piece of them."""
    new: dict[str, Any] = {}
    for name in _TENSORS:
        tensor = getattr(piece, name)
        if tensor is not None:
            new[name] = empty(
                tensor.shape if name == "order" else (rows, *tensor.shape[1:]), dtype=tensor.dtype
            )
    return replace(piece, shape=(rows, piece.shape[1]), **new)


def _put(piece: PackedWeight, whole: PackedWeight, at: int) -> None:
    """Copies a piece of rows to its place."""
    for name in _TENSORS:
        tensor = getattr(piece, name)
        if tensor is not None:
            place = getattr(whole, name)
            (place if name == "order" else place[at : at + len(tensor)]).copy_(tensor)


def _copied(weight: PackedWeight, empty: _Empty) -> PackedWeight:
    out = _like(weight, weight.shape[0], empty)
    _put(weight, out, 0)
    return out


def _expand(pieces: Iterator[PackedWeight], out: Tensor) -> None:
    """Fills ``out`` with the numbers that pieces of rows stand for."""
    at = 0
    for piece in pieces:
        out[at : at + piece.shape[0]].copy_(piece.dequantise(out.dtype))
        at += piece.shape[0]


def _stored_rows(part: Part) -> Tensor:
    """For each row where it is stored: llama.cpp keeps pairs of a rotation side by side, here they lie half a head apart."""
    return torch.arange(part.shape[0]).view(part.permuted_heads, -1, 2).transpose(1, 2).flatten()


def _check_surplus_biases(checkpoint: Checkpoint, plan: Mapping[str, Parameter]) -> None:
    for name in surplus_biases(checkpoint, plan):
        values = torch.empty(checkpoint.store.tensors[name].shape)
        checkpoint.store.read(name, values)
        if bool((values != 0).any()):
            raise CheckpointError(
                f"{checkpoint.path}: tensor {name!r} is not zero, but a {checkpoint.family.name} model of this configuration has no such bias; is config.json of another model?"
            )


def _install(
    model: Transformer, name: str, parts: tuple[Stored, ...], *, is_plain: bool, dtype: torch.dtype
) -> None:
    """Puts a parameter into the network, in place of the layer that holds it where it is packed."""
    owner, _, attribute = name.rpartition(".")
    if is_plain:
        assert isinstance(parts[0], Tensor)
        setattr(model.get_submodule(owner), attribute, nn.Parameter(parts[0], requires_grad=False))
        return
    parent, _, place = owner.rpartition(".")
    layer = QuantEmbedding(parts[0], dtype) if owner == "embed" else QuantLinear(parts)
    setattr(model.get_submodule(parent), place, layer)


def _tie(model: Transformer) -> None:
    if isinstance(model.embed, QuantEmbedding):
        model.head = QuantLinear((model.embed.table,))
    else:
        assert isinstance(model.head, Linear)
        model.head.weight = model.embed.weight
