"""The tables that an adapter puts in the place of embedding and output head: stored whole, by rows, or as LoRA.

One rounding, to the type that is asked for. Knows nothing of where the model's own tables are.

Shapes: V vocabulary, D model width, r rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from qwenkit.config.families import Family
from qwenkit.core.errors import ConfigError, UnsupportedModelError
from qwenkit.weights.adapter_base import CONFIG_FILE
from qwenkit.weights.adapter_file import AdapterReader
from qwenkit.weights.adapter_modules import ends_with, table_modules

_CHUNK_ROWS = 4096  # converted at a time


@dataclass(frozen=True, slots=True)
class BaseTable:
    """A table (V, D) of the model itself, wherever it is."""

    shape: tuple[int, int]
    rows: Callable[[int, int, torch.dtype], Tensor]
    """(first, end, dtype) -> the rows from ``first`` to ``end`` as numbers."""


@dataclass(frozen=True, slots=True)
class TableChange:
    """What an adapter does to one table."""

    reader: AdapterReader
    module: str
    token_ids: tuple[int, ...] | None
    """Rows that are replaced; None: none by themselves."""
    has_lora: bool
    is_head: bool

    @property
    def is_there(self) -> bool:
        """Whether the table changes at all."""
        stored = any(name in self.reader for name in self._stored_names())
        saved = self.reader.config.saves(self.module)
        return stored or saved or self.has_lora or self.token_ids is not None

    def table(self, base: BaseTable, dtype: torch.dtype) -> Tensor | None:
        """The (V, D) table that replaces ``base``, or None when the adapter leaves it alone.

        Raises:
            CheckpointError: a tensor is missing, of another shape, or not finite.
            ConfigError: token ids that the model does not have.
        """
        reader, config, shape, module = self.reader, self.reader.config, base.shape, self.module
        table = None
        for stored in self._stored_names():
            if table is None and stored in reader:
                _check_vocabulary(reader, stored, shape)
                table = reader.read(stored, shape, dtype=dtype)
            reader.skip(stored)
        reader.skip(f"{module}.original_module.weight")
        if table is None and config.saves(module):
            table = reader.read(f"{module}.weight", shape)  # raises: it is not there
        if self.has_lora:
            table = reader.finite(self._with_lora(base, table, dtype), module)
        if self.token_ids is not None:
            _check_token_ids(module, self.token_ids, shape[0], has_lora=self.has_lora)
            size = (len(self.token_ids), shape[1])
            new = reader.read(f"{module}.trainable_tokens_delta", size, dtype=dtype)
            table = base.rows(0, shape[0], dtype).detach().clone() if table is None else table
            table[torch.tensor(self.token_ids, device=table.device)] = new
        return table

    def _stored_names(self) -> tuple[str, ...]:
        return tuple(f"{self.module}.{name}" for name in ("weight", "modules_to_save", "base_layer.weight"))

    def _with_lora(self, base: BaseTable, table: Tensor | None, dtype: torch.dtype) -> Tensor:
        reader, module, (rows, columns) = self.reader, self.module, base.shape
        rank = reader.config.rank_of(module)
        if self.is_head:
            left = reader.read(f"{module}.lora_B", (rows, rank))  # (V, r)
            right = reader.read(f"{module}.lora_A", (rank, columns))  # (r, D)
        else:
            left = reader.read(f"{module}.lora_embedding_A", (rank, rows)).T  # (V, r)
            right = reader.read(f"{module}.lora_embedding_B", (columns, rank)).T  # (r, D)
        if table is not None:
            saved = table
            base = BaseTable(base.shape, lambda first, end, kind: saved[first:end].to(kind))
        return _updated(base, left, right * reader.config.scale_of(module), dtype)


@dataclass(frozen=True, slots=True)
class TableChanges:
    """What an adapter does to both tables of a model."""

    embed: TableChange
    head: TableChange
    head_follows: bool
    """Rows of tied tables are stored once, for both."""

    def tables(
        self, embed: BaseTable, head: BaseTable, dtype: torch.dtype, *, tied: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """What replaces embedding and head; None: nothing does. One table in memory where both are equal.

        Args:
            embed: the model's own.
            head: the model's own.
            dtype: of the results.
            tied: the model has one table for both.
        """
        reader = self.embed.reader
        new_embed, new_head = self.embed.table(embed, dtype), self.head.table(head, dtype)
        # Stored without being named in modules_to_save: written from the model itself, whose head is the same table.
        is_own = f"{self.embed.module}.weight" in reader and not reader.config.saves(self.embed.module)
        if new_head is None and (self.head_follows or (tied and is_own)):
            new_head = new_embed
        if new_embed is not None and new_head is not None and torch.equal(new_embed, new_head):
            new_head = new_embed
        return new_embed, new_head


def table_changes(reader: AdapterReader, family: Family, *, tied: bool) -> TableChanges:
    """What an adapter's configuration and tensors ask of embedding and head."""
    config, tokens, names = reader.config, reader.config.token_rows, table_modules(family)
    rows = [
        next((ids for key, ids in tokens.items() if ends_with(name, key) or (not key and not number)), None)
        for number, name in enumerate(names)
    ]
    head_follows = tied and rows[0] is not None and rows[1] in (None, rows[0])
    if head_follows:
        rows[1] = None  # PEFT stores the rows of tied tables once
    has_lora = [config.targets(names[0]), config.targets(names[1], is_head=True)]
    if tied and has_lora[0] and f"{names[1]}.lora_A" in reader:
        has_lora[1] = True  # PEFT was told to keep the tables tied
    embed, head = (
        TableChange(reader, name, rows[i], has_lora[i], is_head=bool(i)) for i, name in enumerate(names)
    )
    return TableChanges(embed, head, head_follows)


def _check_vocabulary(reader: AdapterReader, name: str, shape: tuple[int, int]) -> None:
    stored = reader.file.tensors[reader.names[name]].shape
    if len(stored) == 2 and stored[1] == shape[1] and stored[0] != shape[0]:
        raise UnsupportedModelError(
            f"{reader.file.path}: {name!r} has {stored[0]} rows, the model's vocabulary {shape[0]}; an adapter that "
            "changes the size of the vocabulary cannot be used here; merge it into the model with PEFT's merge_and_unload"
        )


def _check_token_ids(module: str, token_ids: tuple[int, ...], vocab_size: int, *, has_lora: bool) -> None:
    if has_lora:
        raise UnsupportedModelError(
            f"{CONFIG_FILE}: both trainable_token_indices and target_modules name {module!r}; only one of them can be "
            "used here; merge the adapter into the model with PEFT's merge_and_unload"
        )
    if len(set(token_ids)) < len(token_ids) or max(token_ids, default=0) >= vocab_size:
        raise ConfigError(
            f"{CONFIG_FILE}: trainable_token_indices holds {max(token_ids)} or an id twice; ids below {vocab_size} are "
            "allowed, each once"
        )


def _updated(base: BaseTable, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """base + left right, a few rows at a time, so that no second table in float32 is needed."""
    out = left.new_empty(len(left), right.shape[1], dtype=dtype)
    for at in range(0, len(left), _CHUNK_ROWS):
        end = min(at + _CHUNK_ROWS, len(left))
        out[at:end] = base.rows(at, end, torch.float32) + left[at:end] @ right
    return out
