"""Merges a LoRA adapter into the weights of its base: W + scale * b a in float32, rounded once to the stored type.

Tensor by tensor: in memory are one tensor of the base, its update, and nothing else of the model. Needs neither
transformers nor PEFT. Knows no command line.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.core.errors import InputError, NumericsError, SourceError, did_you_mean
from qwenkit.quantize.dequantize import DTYPES
from qwenkit.train.merged_folder import work_folder, write_card, write_settings
from qwenkit.weights.adapter_base import fetch_base
from qwenkit.weights.adapter_file import AdapterReader, open_weights, read_adapter_config
from qwenkit.weights.adapter_modules import check_names, linears_of, read_update, refuse_without_effect
from qwenkit.weights.adapter_tables import BaseTable, TableChange, table_changes
from qwenkit.weights.cache import format_size, free_space
from qwenkit.weights.checkpoint import Checkpoint, open_checkpoint
from qwenkit.weights.files import DTYPES as STORED_DTYPES
from qwenkit.weights.numbers import NumberReader, StoredPart
from qwenkit.weights.sources import fetch
from qwenkit.weights.write import Entry, checked_target, write_weights

SHARD_BYTES = 2048 * 10**6
"""Most bytes of a weight file, as in the releases of first-generation Qwen."""

_TABLES = ("embed.weight", "head.weight")
_ROWS = 4096  # of a matrix, merged at a time
_SLACK = 64 * 10**6  # of disk, for tokenizer and settings


@dataclass(frozen=True, slots=True, kw_only=True)
class MergeResult:
    """A merged model."""

    folder: Path
    base: str
    """As it was asked for, or as the adapter names it."""
    adapter: Path
    dtype: str
    """Of most weights."""
    num_merged: int
    """Matrices that got an update."""
    tables: tuple[str, ...]
    """Embedding and head, where the adapter changed them."""
    is_dequantised: bool
    """The base was quantised."""
    nbytes: int
    """Of all weights."""
    seconds: float
    notes: tuple[str, ...]
    """What the user should know."""


OnProgress = Callable[[int, int], None]
"""Called with (bytes written, bytes in all)."""


def merge_adapter(
    adapter: str | Path,
    out: Path,
    *,
    model: str | Path | None = None,
    dequantize: bool = False,
    dtype: str | None = None,
    shard_bytes: int = SHARD_BYTES,
    on_progress: OnProgress | None = None,
    on_note: Callable[[str], None] | None = None,
) -> MergeResult:
    """Writes the base of an adapter with the adapter merged into it, as a complete folder.

    Args:
        adapter: folder or hub id, as PEFT saves adapters.
        out: must not exist yet, or be empty.
        model: the base; None: as the adapter says.
        dequantize: merge into a quantised base, whose rounded weights are written as plain numbers.
        dtype: float32, bfloat16 or float16; None: as the base has each tensor, of a quantised base bfloat16.
        shard_bytes: most bytes per weight file.
        on_progress: told after every tensor.
        on_note: told, before weights are written, what the user should know.

    Raises:
        InputError: settings or folder are not usable, or the base is quantised and ``dequantize`` not given.
        ConfigError: the adapter is of a kind that is not supported, or names no module of the base.
        CheckpointError: the adapter is damaged or of another base.
        NumericsError: NaN or infinity, with the tensor's name.
        SourceError: the base cannot be had, or the disk is full; nothing stays behind.
    """
    started = time.perf_counter()
    out = checked_target(out)
    if shard_bytes < 1:
        raise InputError(f"a shard of {shard_bytes} bytes is not possible; use a number from 1 up")
    folder = fetch(os.fspath(adapter))
    config = read_adapter_config(folder)
    if model is None:
        base, path = fetch_base(folder, advice="name it with --model")
    else:
        base, path = os.fspath(model), fetch(os.fspath(model))
    with ExitStack() as stack:
        checkpoint = open_checkpoint(path)
        stack.callback(checkpoint.store.close)
        kind = _target_dtype(checkpoint, dtype, dequantize=dequantize)
        weights = open_weights(folder)
        stack.callback(weights.close)
        table_dtype = kind or torch.float32
        reader = AdapterReader(weights, folder, config, table_dtype, torch.device("cpu"))
        merge = _Merge(checkpoint, reader, kind)
        entries = list(merge.entries())
        total = sum(entry.nbytes for entry in entries)
        _check_disk(out, total)
        is_named = model is None or base == config.base_model
        notes = [*_costs(checkpoint, base, total, kind, is_named=is_named)]
        target = stack.enter_context(work_folder(out))
        note = write_settings(target, checkpoint, folder, dtype=kind, tied=merge.is_tied)
        notes += [] if note is None else [note]
        if on_note is not None:
            for text in notes:
                on_note(text)
        main = _main_dtype(entries)
        write_weights(target, _counted(entries, total, on_progress), shard_bytes)
        facts = {"computed in": f"float32, then rounded once to {main}"}
        if checkpoint.quant is not None:
            facts["weights of the base"] = f"{checkpoint.quant}, turned back into plain numbers"
        write_card(target, out.name, base=base, adapter=folder, config=config, facts=facts)
    return MergeResult(
        folder=out,
        base=base,
        adapter=folder,
        dtype=main,
        num_merged=merge.num_merged,
        tables=merge.changed_tables,
        is_dequantised=checkpoint.quant is not None,
        nbytes=total,
        seconds=time.perf_counter() - started,
        notes=tuple(notes),
    )


def _target_dtype(checkpoint: Checkpoint, asked: str | None, *, dequantize: bool) -> torch.dtype | None:
    """The type of all weights; None: as the base has them."""
    if asked is not None and asked not in DTYPES:
        raise InputError(f"dtype {asked!r} is unknown; use {', '.join(DTYPES)}{did_you_mean(asked, DTYPES)}")
    if checkpoint.quant is None and dequantize:
        raise InputError(f"{checkpoint.path} is not quantised; leave --dequantize out")
    if checkpoint.quant is not None and not dequantize:
        size = format_size(checkpoint.config.num_params * 2)
        raise InputError(
            f"{checkpoint.path} is quantised ({checkpoint.quant}), and an adapter cannot be merged into rounded weights: keep it "
            f"apart, or add --dequantize to write a model of {size} in full precision"
        )
    if asked is not None:
        return DTYPES[asked]
    if checkpoint.quant is not None:
        return torch.bfloat16
    if checkpoint.path.is_dir():
        return None
    counts: dict[str, int] = {}  # norms are float32 in every GGUF file
    for info in checkpoint.store.tensors.values():
        counts[info.dtype] = counts.get(info.dtype, 0) + info.nbytes
    return STORED_DTYPES[max(counts, key=lambda name: counts[name])]


def _costs(
    checkpoint: Checkpoint, base: str, total: int, kind: torch.dtype | None, *, is_named: bool
) -> Iterator[str]:
    """What merging into a quantised base costs; ``is_named``: the adapter was trained on it."""
    if checkpoint.quant is not None:
        before = sum(info.nbytes for info in checkpoint.store.tensors.values())
        whose = "the rounded weights that the adapter was trained on" if is_named else "its rounded weights"
        yield (
            f"{base} is quantised ({checkpoint.quant}): the merged model takes {format_size(total)} in "
            f"{str(kind).removeprefix('torch.')} instead of {format_size(before)}, and holds {whose}; what rounding lost "
            "does not come back, and quantising again rounds once more"
        )


def _check_disk(out: Path, total: int) -> None:
    free = free_space(out.parent)
    if free is not None and free < total + _SLACK:
        raise SourceError(
            f"the merged model takes {format_size(total + _SLACK)} of disk at {out.parent}, and {format_size(free)} are free; "
            "make room there, or give another folder"
        )


def _main_dtype(entries: list[Entry]) -> str:
    counts: dict[torch.dtype, int] = {}
    for entry in entries:
        counts[entry.dtype] = counts.get(entry.dtype, 0) + entry.nbytes
    return str(max(counts, key=lambda dtype: counts[dtype])).removeprefix("torch.")


def _counted(entries: list[Entry], total: int, on_progress: OnProgress | None) -> Iterator[Entry]:
    """The same entries, which tell when they have been read."""
    done = 0

    def read(entry: Entry) -> Tensor:
        nonlocal done
        tensor = entry.read()
        done += entry.nbytes
        if on_progress is not None:
            on_progress(done, total)
        return tensor

    for entry in entries:
        yield Entry(entry.name, entry.shape, entry.dtype, partial(read, entry))


class _Merge:
    """The tensors of the merged model, each made when it is read.

    The whole adapter is checked here, before anything is written.

    Args:
        checkpoint: the base.
        reader: the adapter.
        dtype: of all results; None: as the base has each.

    Raises:
        CheckpointError: base or adapter are damaged, or do not belong together.
        ConfigError: the adapter names no module of the base.
    """

    def __init__(self, checkpoint: Checkpoint, reader: AdapterReader, dtype: torch.dtype | None) -> None:
        self._checkpoint, self._reader, self._dtype = checkpoint, reader, dtype
        self._numbers = NumberReader(checkpoint)
        self._own_tables = {p.parameter: p for p in self._numbers.parts() if p.parameter in _TABLES}
        family, config = checkpoint.family, checkpoint.config
        linears = list(linears_of(family, config))
        check_names(reader, family, config, linears)
        self._updated = {
            f"{module}.weight"
            for linear in linears
            for module, rows in zip(linear.modules, linear.rows, strict=True)
            if read_update(reader, module, rows, linear.columns) is not None
        }
        self._was_tied = config.tie_embeddings
        self._changes = table_changes(reader, family, tied=self._was_tied)
        self._head_name = family.tensors["head.weight"][0]
        self._new_tables = self._tied_tables() if self._was_tied else (None, None)
        if not self._was_tied:
            for change in (self._changes.embed, self._changes.head):
                self._table(change)  # checked now, made again when it is written
        changes = (self._changes.embed, self._changes.head)
        self.changed_tables = tuple(change.module for change in changes if change.is_there)
        """Embedding and head, where the adapter changes them."""
        refuse_without_effect(reader, family, changes_something=bool(self._updated or self.changed_tables))

    @property
    def num_merged(self) -> int:
        """Matrices that get an update."""
        return len(self._updated)

    @property
    def is_tied(self) -> bool:
        """Whether the merged model has one table for embedding and head."""
        embed, head = self._new_tables
        return self._was_tied and embed is head

    def entries(self) -> Iterator[Entry]:
        """Every tensor of the merged model, in the order of the network."""
        for part in self._numbers.parts():
            dtype = self._dtype_of(part)
            yield Entry(part.name, part.shape, dtype, partial(self._read, part, dtype))
        if self._was_tied and not self.is_tied:
            table = self._own_tables["embed.weight"]
            dtype = self._dtype_of(table)
            head = self._new_tables[1]
            own = Entry(self._head_name, table.shape, dtype, partial(self._plain, table, dtype))
            yield own if head is None else Entry.of(self._head_name, head)

    def _dtype_of(self, part: StoredPart) -> torch.dtype:
        stored = self._numbers.dtype(part)
        if self._dtype is None and stored is None:
            raise InputError(f"{self._checkpoint.path}: {part.name!r} is packed; choose a type with --dtype")
        dtype = self._dtype or stored
        assert dtype is not None
        return dtype

    def _read(self, part: StoredPart, dtype: torch.dtype) -> Tensor:
        changes = {"embed.weight": self._changes.embed, "head.weight": self._changes.head}
        if part.name in self._updated:
            return self._merged(part, dtype)
        if self._was_tied and part.parameter == "embed.weight" and self._new_tables[0] is not None:
            return self._new_tables[0]
        if not self._was_tied and part.parameter in changes:
            table = self._table(changes[part.parameter])
            if table is not None:
                return table
        return self._plain(part, dtype)

    def _plain(self, part: StoredPart, dtype: torch.dtype) -> Tensor:
        return self._finite(part, self._numbers.read(part, dtype))

    def _merged(self, part: StoredPart, dtype: torch.dtype) -> Tensor:
        update = read_update(self._reader, part.name.removesuffix(".weight"), part.shape[0], part.shape[1])
        assert update is not None
        wide = torch.promote_types(dtype, torch.float32)  # float64 stays
        whole = self._numbers.read(part, dtype if self._numbers.dtype(part) == dtype else wide)  # (rows, in)
        out = whole if whole.dtype == dtype else torch.empty(part.shape, dtype=dtype)
        for at in range(0, len(whole), _ROWS):
            rows = slice(at, min(at + _ROWS, len(whole)))
            delta = (update.b[rows] @ update.a).mul_(update.scale)  # (n, in)
            out[rows] = delta.to(wide).add_(whole[rows])
        return self._finite(part, out)

    def _table(self, change: TableChange) -> Tensor | None:
        """What replaces one of two tables; None: nothing."""
        part = self._own_tables["head.weight" if change.is_head else "embed.weight"]
        return change.table(self._base_table(part), self._dtype_of(part))

    def _tied_tables(self) -> tuple[Tensor | None, Tensor | None]:
        """What replaces embedding and head of a tied model, which are held in memory: whether both stay equal shows only then."""
        part = self._own_tables["embed.weight"]
        base = self._base_table(part)
        return self._changes.tables(base, base, self._dtype_of(part), tied=True)

    def _base_table(self, part: StoredPart) -> BaseTable:
        return BaseTable((part.shape[0], part.shape[1]), partial(self._numbers.rows, part))

    def _finite(self, part: StoredPart, tensor: Tensor) -> Tensor:
        pieces = (tensor[at : at + _ROWS] for at in range(0, len(tensor), _ROWS))
        if all(bool(torch.isfinite(piece).all()) for piece in pieces):
            return tensor
        path = self._checkpoint.path
        if not bool(torch.isfinite(self._numbers.read(part, torch.float32)).all()):
            raise NumericsError(f"{path}: tensor {part.name!r} holds NaN or infinity; fetch the model again")
        name = str(tensor.dtype).removeprefix("torch.")
        raise NumericsError(
            f"the merged {part.name!r} holds numbers beyond {torch.finfo(tensor.dtype).max:g}, which {name} cannot hold; use --dtype bfloat16"
        )
