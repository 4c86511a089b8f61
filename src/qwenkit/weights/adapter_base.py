"""Which model an adapter folder belongs to, by its own account. Reads settings only; loads no torch."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from qwenkit.config.hf import read_json
from qwenkit.core.errors import ConfigError, SourceError
from qwenkit.weights.cache import Progress
from qwenkit.weights.sources import fetch

CONFIG_FILE = "adapter_config.json"
_WHOLE_MODELS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)


@dataclass(frozen=True, slots=True)
class Located:
    """A model on this machine, and the adapter it is to be used with."""

    model: Path
    """Folder or .gguf file."""
    adapter: Path | None = None
    base: str | None = None
    """What the adapter calls the model; None without an adapter."""


def is_adapter(path: Path) -> bool:
    """Whether the folder holds an adapter rather than a model."""
    return (path / CONFIG_FILE).is_file() and not any((path / name).is_file() for name in _WHOLE_MODELS)


def locate(
    model: str | os.PathLike[str], *, on_progress: Progress | None = None, force: bool = False
) -> Located:
    """Finds a model, or an adapter and the model it belongs to; downloads what is missing.

    Args:
        model: as for ``fetch``; a folder or hub id may hold an adapter.
        on_progress: as for ``fetch``.
        force: download again what is in the cache.

    Raises:
        ConfigError: the adapter does not say which model it belongs to.
        SourceError: something cannot be found or fetched.
    """
    path = fetch(model, on_progress=on_progress, force=force)
    if not is_adapter(path):
        return Located(path)
    base, found = fetch_base(path, on_progress=on_progress, force=force)
    return Located(found, path, base)


def fetch_base(
    adapter: Path,
    *,
    on_progress: Progress | None = None,
    force: bool = False,
    advice: str = f"correct base_model_name_or_path in {CONFIG_FILE}",
) -> tuple[str, Path]:
    """The model that an adapter folder was trained on: its name there, and where it is here.

    Args:
        adapter: the folder.
        on_progress: as for ``fetch``.
        force: as for ``fetch``.
        advice: what to do where the model is elsewhere.

    Raises:
        ConfigError: the adapter does not say.
        SourceError: the model cannot be found or fetched.
    """
    name = read_json(adapter / CONFIG_FILE, what="adapter configuration").get("base_model_name_or_path")
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{adapter / CONFIG_FILE} does not say which model it belongs to; {advice}")
    try:
        path = fetch(name, on_progress=on_progress, force=force)
    except SourceError as error:
        raise SourceError(
            f"the adapter {adapter} belongs to the model {name!r:.200}, which cannot be had: {error}; if it is elsewhere, {advice}"
        ) from error
    if is_adapter(path):
        raise ConfigError(
            f"the adapter {adapter} was trained on {name!r:.200}, which is an adapter itself; merge that one first"
        )
    return name, path
