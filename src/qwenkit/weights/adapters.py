"""Loads a LoRA adapter that PEFT saved: its updates in the shape of our fused linears, its tables whole.

Every tensor that the configuration asks for must be there with the right shape, and every tensor that is there must
be asked for. Nothing in the folder is executed.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch

from qwenkit.config.families import Family
from qwenkit.layers.lora import Adapter, LoraWeights
from qwenkit.layers.quant_linear import Stored, rows_of
from qwenkit.model.transformer import Transformer
from qwenkit.weights.adapter_file import AdapterReader, open_weights, read_adapter_config
from qwenkit.weights.adapter_modules import (
    AdaptedLinear,
    check_names,
    linears_of,
    read_update,
    refuse_without_effect,
)
from qwenkit.weights.adapter_tables import BaseTable, table_changes


def load_adapter(path: str | Path, name: str, *, family: Family, model: Transformer) -> Adapter:
    """Reads an adapter for ``model``, in the model's dtype and on its device.

    Args:
        path: the adapter's folder.
        name: what requests call it.
        family: of the model, for the names of its modules.
        model: whose weights the adapter was trained on.

    Raises:
        ConfigError: the configuration is missing, malformed or asks for something that cannot be served.
        CheckpointError: the weights are missing, damaged or of another model.
    """
    folder = Path(path).expanduser()
    config = read_adapter_config(folder)
    file = open_weights(folder)
    try:
        reader = AdapterReader(file, folder, config, model.dtype, model.device)
        linears = list(linears_of(family, model.config))
        check_names(reader, family, model.config, linears)
        layers: tuple[dict[str, LoraWeights], ...] = tuple({} for _ in range(model.config.num_layers))
        for linear in linears:
            weights = _fused(reader, linear)
            if weights is not None:
                layers[linear.layer][linear.part] = weights
        tied = model.config.tie_embeddings
        changes = table_changes(reader, family, tied=tied)
        own = _base(model.embed.table), _base(model.head.parts[0])
        embed, head = changes.tables(*own, model.dtype, tied=tied)
    finally:
        file.close()
    changed = embed is not None or head is not None or any(layers)
    refuse_without_effect(reader, family, changes_something=changed)
    return Adapter(name=name, layers=layers, embed=embed, head=head)


def _base(table: Stored) -> BaseTable:
    return BaseTable((table.shape[0], table.shape[1]), partial(rows_of, table))


def _fused(reader: AdapterReader, linear: AdaptedLinear) -> LoraWeights | None:
    """The updates of the modules that make up one linear, as one: b is block-diagonal."""
    parts = []
    for module, start, rows in zip(linear.modules, _starts(linear.rows), linear.rows, strict=True):
        update = read_update(reader, module, rows, linear.columns)
        if update is not None:
            parts.append((start, update.a, update.b * update.scale))
    if not parts:
        return None
    a = torch.cat([part for _, part, _ in parts])  # (r, in)
    fused = a.new_zeros(sum(linear.rows), len(a))  # (out, r)
    column = 0
    for start, _, b in parts:
        fused[start : start + len(b), column : column + b.shape[1]] = b
        column += b.shape[1]
    name = linear.modules[0]
    return LoraWeights(
        a=reader.finite(a.to(reader.dtype), name), b=reader.finite(fused.to(reader.dtype), name)
    )


def _starts(sizes: tuple[int, ...]) -> list[int]:
    return [sum(sizes[:i]) for i in range(len(sizes))]
