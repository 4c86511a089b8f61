"""Builds the network from a checkpoint: every weight is read straight into its place, packed ones stay packed.

What comes from where is decided before by weights/plan.py. The peak of memory is little above the model itself.
"""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import CheckpointError, InputError
from qwenkit.kernels.cpu import release_freed_memory, usable_cores, use_large_pages
from qwenkit.kernels.packed import PackedWeight, stack_rows
from qwenkit.kernels.panels import ROWS, PanelWeight
from qwenkit.layers.linear import Linear
from qwenkit.layers.quant_linear import QuantEmbedding, QuantLinear, Stored
from qwenkit.model.transformer import Transformer
from qwenkit.weights.checkpoint import Checkpoint
from qwenkit.weights.files import TensorStore
from qwenkit.weights.gguf import GgufFile
from qwenkit.weights.packed_cache import packed_cache
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
_WORKERS = 8
_FOLDER_WORKERS = 4  # each needs memory for the layer it rearranges
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
    panels: bool = False,
    head: str = "auto",
    cached: bool = False,
) -> Transformer:
    """The network with the checkpoint's weights.

    Args:
        checkpoint: from open_checkpoint; stays open.
        device: where the weights go.
        dtype: of activations, and of weights that are not packed.
        config: overrides the checkpoint's configuration (windows, context); sizes must be the same.
        on_progress: called with (bytes done, bytes in all) of the network in memory.
        packed: False turns packed weights into numbers of ``dtype``.
        panels: rearranges packed weights for the CPU kernels, whose products then round activations to 8 bits.
        head: one of HEADS; int8 rounds an output head that is not packed to 8 bits.
        cached: keeps what is in panels in the user's cache folder, and takes it from there.

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
    check_surplus_biases(checkpoint, plan)
    # An embedding alone is only looked up, row by row.
    looked_up = () if model.config.tie_embeddings else ("embed.weight",)
    in_panels = frozenset(plan).difference(looked_up) if panels else frozenset[str]()
    cache = packed_cache(checkpoint, plan, in_panels, dtype) if cached and device.type == "cpu" else None
    found = cache.read(lambda size: _block(size, device), on_progress) if cache is not None else None
    if found is None or found.keys() != plan.keys():
        source = _Source(checkpoint, plan, device, dtype)
        found = _load_all(source, plan, in_panels, on_progress)
        if cache is not None:
            cache.write(found)
    for name in plan:
        _install(model, name, found[name], is_plain=plan[name].is_plain, dtype=dtype)
    if model.config.tie_embeddings:
        _tie(model)
    if checkpoint.quant and sum(p.nbytes(dtype) for p in plan.values()) > _LARGE:
        release_freed_memory()
    return model.eval()


def _load_all(
    source: _Source,
    plan: Mapping[str, Parameter],
    in_panels: frozenset[str],
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, tuple[Stored, ...]]:
    """Every parameter, large ones first so that no thread is left with one at the end."""
    sizes = {name: parameter.nbytes(source.dtype) for name, parameter in plan.items()}
    total, done = sum(sizes.values()), 0
    most = _FOLDER_WORKERS if source.reads_whole_matrices else _WORKERS
    threads, found = torch.get_num_threads(), {}
    # Each worker computes alone: teams of threads inside them would wait for one another.
    pool = ThreadPoolExecutor(min(usable_cores(), most), initializer=torch.set_num_threads, initargs=(1,))
    try:
        ordered = sorted(plan, key=lambda name: -sizes[name])
        jobs = [pool.submit(source.load, plan[name], panels=name in in_panels) for name in ordered]
        for name, job in zip(ordered, jobs, strict=True):
            found[name] = job.result()
            done += sizes[name]
            if on_progress:
                on_progress(done, total)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # what the workers set would hold for every thread started later
    return found


class _Room:
    """One block of memory for all weights: no gaps between them, and large pages where the system has them."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._block = _block(size, device)
        self._at, self._lock = 0, threading.Lock()

    def empty(self, shape: Sequence[int], *, dtype: torch.dtype) -> Tensor:
        """A tensor in the block, or beside it once the block is full."""
        size = math.prod(shape) * dtype.itemsize
        with self._lock:
            start = self._at
            if start + size > len(self._block):
                return torch.empty(*shape, dtype=dtype, device=self._block.device)
            self._at = _aligned(start + size)
        return self._block[start : start + size].view(dtype).view(*shape)


def _block(size: int, device: torch.device) -> Tensor:
    """Bytes in large pages where the system has them."""
    block = torch.empty(size, dtype=torch.uint8, device=device)
    if device.type == "cpu":
        use_large_pages(block.data_ptr(), size)
    return block


def _aligned(size: int) -> int:
    return -(-size // _ALIGN) * _ALIGN


class _Source:
    """Reads parameters of one checkpoint; may be used by several threads."""

    def __init__(
        self, checkpoint: Checkpoint, plan: Mapping[str, Parameter], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._store, self._quant, self.dtype = checkpoint.store, checkpoint.quant, dtype
        self.reads_whole_matrices = checkpoint.quant is not None and not isinstance(self._store, GgufFile)
        # A packed matrix consists of up to four tensors, each on its own cache line.
        gaps = 4 * _ALIGN * sum(len(p.parts) for p in plan.values())
        self._room = _Room(sum(p.nbytes(dtype) for p in plan.values()) + gaps, device)
        parts = (part for parameter in plan.values() for part in parameter.parts)
        gptq = ((p.module, p.form) for p in parts if p.form is not None and p.form.layout == "gptq")
        self._version = gptq_version(checkpoint.path, self._store, gptq, self._quant)

    def load(self, parameter: Parameter, *, panels: bool = False) -> tuple[Stored, ...]:
        """The parameter's parts, packed ones in panels where that is asked for and goes; a plain one is one tensor."""
        if parameter.is_plain:
            out, at = self._room.empty(parameter.shape, dtype=self.dtype), 0
            for part in parameter.parts:
                self._fill(part, out[at : at + part.shape[0]])
                at += part.shape[0]
            return (out,)
        first = parameter.parts[0]
        if len(parameter.parts) == 1 and first.form is not None and not panels:
            return (self._packed(first, first.form, self._room.empty),)
        if panels and (streamed := self._streamed(parameter.parts)) is not None:
            return (streamed,)
        found: list[Stored] = []
        for part in parameter.parts:
            form = part.form
            found.append(self._numbers(part) if form is None else self._packed(part, form, torch.empty))
        packed = [part for part in found if isinstance(part, PackedWeight)]
        if len(packed) == len(found):
            whole = (_joined(packed, self._room.empty) if panels else None) or stack_rows(packed)
            found = found if whole is None else [whole]
        return tuple(self._kept(part, panels=panels) for part in found)

    def _streamed(self, parts: Sequence[Part]) -> PanelWeight | None:
        """Parts of one form in panels, where they are read in pieces of rows: each is rearranged while in the cache."""
        form = parts[0].form
        if form is None or form.has_zeros or form.is_sorted or any(p.form != form for p in parts):
            return None
        in_pieces = form.layout == ROUNDED or isinstance(self._store, GgufFile)
        if not in_pieces or any(part.shape[0] % ROWS for part in parts):
            return None
        pieces = (piece for part in parts for piece in self._read(part, form))
        return _in_panels(pieces, sum(part.shape[0] for part in parts), self._room.empty)

    def _kept(self, part: Stored, *, panels: bool) -> Stored:
        """A part in the memory that is kept."""
        if not isinstance(part, PackedWeight):
            return part  # read into its place
        in_panels = PanelWeight.of(part, self._room.empty) if panels else None
        return in_panels or _copied(part, self._room.empty)

    def _numbers(self, part: Part) -> Tensor:
        """A part that is not packed, beside others that are, or in a type of its own."""
        out = self._room.empty(part.shape, dtype=part.kept or self.dtype)
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


def _joined(parts: Sequence[PackedWeight], empty: _Empty) -> PanelWeight | None:
    """The parts below one another in panels, or None where their forms do not allow it."""
    form = stack_rows([part.rows(0, 0) for part in parts])
    if form is None or any(part.shape[0] % ROWS for part in parts):
        return None
    return _in_panels(parts, sum(part.shape[0] for part in parts), empty, form)


def _in_panels(
    pieces: Iterable[PackedWeight], rows: int, empty: _Empty, form: PackedWeight | None = None
) -> PanelWeight | None:
    """Pieces of ``rows`` rows in all, each in whole panels and the form of the first unless one is given."""
    whole, at = None, 0
    for piece in pieces:
        whole = whole or PanelWeight.room(form or piece, rows, empty)
        if whole is None:
            return None
        whole.put(piece, at)
        at += piece.shape[0]
    return whole


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


def check_surplus_biases(checkpoint: Checkpoint, plan: Mapping[str, Parameter]) -> None:
    """Refuses biases of packed matrices that the network has no place for, unless they are zeros.

    Raises:
        CheckpointError: one is not.
    """
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
