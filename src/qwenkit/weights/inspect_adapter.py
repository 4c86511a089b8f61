"""Describes an adapter: what it changes, by how much, and whether its base is there and fits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qwenkit.config.lora import LoraConfig
from qwenkit.core.errors import QwenkitError
from qwenkit.tokenizer.copy import has_tokenizer
from qwenkit.weights.adapter_base import fetch_base, is_adapter
from qwenkit.weights.adapter_file import AdapterReader, open_weights, read_adapter_config
from qwenkit.weights.adapter_modules import check_names, linears_of, read_update
from qwenkit.weights.checkpoint import open_checkpoint
from qwenkit.weights.inspect import ModelReport, inspect_model
from qwenkit.weights.sources import fetch


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport:
    """What an adapter folder says."""

    path: Path
    base: str | None
    """What it was trained on, by its own account."""
    rank: int
    alpha: float
    scale: float
    """Of modules that no pattern names."""
    target_modules: tuple[str, ...]
    """Names, or one regular expression."""
    modules_to_save: tuple[str, ...]
    num_token_rows: int
    num_params: int
    file_bytes: int
    tensors: dict[str, int]
    """Stored type to bytes."""
    has_tokenizer: bool
    """It brings one of its own."""
    problem: str | None
    """Why it does not run: no base, or one that it does not fit."""
    model: ModelReport | None
    """The base; None where it cannot be had."""

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        names = (field.name for field in dataclasses.fields(self))
        out: dict[str, Any] = {name: getattr(self, name) for name in names}
        model = None if self.model is None else self.model.to_dict()
        return out | {"path": str(self.path), "model": model}


def find_adapter(model: str) -> Path | None:
    """The folder of an adapter, fetched if needed; None: it is a model.

    Raises:
        SourceError: it cannot be found or fetched.
    """
    path = fetch(model)
    return path if is_adapter(path) else None


def inspect_adapter(folder: Path) -> AdapterReport:
    """Reads an adapter folder and the headers of its base, which is fetched if needed.

    Raises:
        QwenkitError: the adapter itself cannot be read, or is of a kind that is not supported.
    """
    config = read_adapter_config(folder)
    file = open_weights(folder)
    tensors: dict[str, int] = {}
    try:
        for info in file.tensors.values():
            tensors[info.dtype] = tensors.get(info.dtype, 0) + info.nbytes
        shapes = [torch.Size(info.shape).numel() for info in file.tensors.values()]
        reader = AdapterReader(file, folder, config, torch.float32, torch.device("cpu"))
        model, problem = _base(folder, reader)
    finally:
        file.close()
    return AdapterReport(
        path=folder,
        base=config.base_model,
        rank=config.rank,
        alpha=config.alpha,
        scale=config.default_scale,
        target_modules=_targets(config),
        modules_to_save=config.modules_to_save,
        num_token_rows=sum(len(ids) for ids in config.token_rows.values()),
        num_params=sum(shapes),
        file_bytes=file.path.stat().st_size,
        tensors=tensors,
        has_tokenizer=has_tokenizer(folder),
        problem=problem,
        model=model,
    )


def check_adapter_fits(folder: Path, base: Path) -> None:
    """Makes sure that an adapter belongs to a model, from headers and the adapter's own tensors.

    Raises:
        QwenkitError: it is of another one, or cannot be read.
    """
    config = read_adapter_config(folder)
    file = open_weights(folder)
    try:
        _check_fit(base, AdapterReader(file, folder, config, torch.float32, torch.device("cpu")))
    finally:
        file.close()


def _targets(config: LoraConfig) -> tuple[str, ...]:
    names = config.target_modules
    return (names,) if isinstance(names, str) else tuple(sorted(names))


def _base(folder: Path, reader: AdapterReader) -> tuple[ModelReport | None, str | None]:
    """The base, and why the adapter does not run with it."""
    model = None
    try:
        path = fetch_base(folder)[1]
        model = inspect_model(str(path))
        _check_fit(path, reader)
    except QwenkitError as error:
        return model, str(error)
    return model, model.problem


def _check_fit(path: Path, reader: AdapterReader) -> None:
    """Updates of linears are read, which takes little; tables are not."""
    checkpoint = open_checkpoint(path)
    checkpoint.store.close()
    linears = list(linears_of(checkpoint.family, checkpoint.config))
    check_names(reader, checkpoint.family, checkpoint.config, linears)
    for linear in linears:
        for module, rows in zip(linear.modules, linear.rows, strict=True):
            read_update(reader, module, rows, linear.columns)
