"""The tensors of an adapter folder under one spelling, each checked when it is read: shape, type, finite numbers.

Knows nothing of networks.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.config.hf import read_json
from qwenkit.config.lora import LoraConfig, from_peft
from qwenkit.core.errors import CheckpointError, ConfigError
from qwenkit.weights.adapter_base import CONFIG_FILE
from qwenkit.weights.files import BinFile, SafetensorsFile

_FLOATS = ("F64", "F32", "F16", "BF16")
_CHUNK_ROWS = 4096  # of a table, converted at a time
# What PEFT, its older versions and training frameworks put around the same names.
_SPELLINGS = (
    (r"^base_model\.model\.", ""),
    (r"\.(lora_[AB])(?:\.[^.]+)?\.weight$", r".\1"),
    (r"\.(lora_embedding_[AB])(?:\.[^.]+)?$", r".\1"),
    (r"\.(?:token_adapter\.)?(trainable_tokens_delta)(?:\.[^.]+)?$", r".\1"),
    (r"\.modules_to_save(?:\.[^.]+)?\.weight$", r".modules_to_save"),
    (r"\.token_adapter\.base_layer\.weight$", r".base_layer.weight"),
)


def read_adapter_config(folder: Path) -> LoraConfig:
    """The configuration of an adapter folder.

    Raises:
        ConfigError: it is missing, malformed or of something that cannot be served.
    """
    if not (folder / CONFIG_FILE).is_file():
        what = (
            "is a whole model, not an adapter" if (folder / "config.json").is_file() else "holds no adapter"
        )
        raise ConfigError(
            f"{folder} {what}: it has no {CONFIG_FILE}; give a folder that PEFT saved an adapter to"
        )
    return from_peft(read_json(folder / CONFIG_FILE, what="adapter configuration"))


def open_weights(folder: Path) -> SafetensorsFile | BinFile:
    """The file with the adapter's tensors.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    for name, opener in (("adapter_model.safetensors", SafetensorsFile), ("adapter_model.bin", BinFile)):
        if (folder / name).is_file():
            return opener(folder / name)
    raise CheckpointError(
        f"{folder} has no adapter_model.safetensors and no adapter_model.bin; fetch or save the adapter again"
    )


class AdapterReader:
    """The stored tensors under one spelling, with a note of which have been read.

    Args:
        file: from open_weights; stays open.
        folder: the adapter's.
        config: what its configuration says.
        dtype: of the numbers that are kept: tables and finished updates.
        device: where they go.
    """

    def __init__(
        self,
        file: SafetensorsFile | BinFile,
        folder: Path,
        config: LoraConfig,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.file, self.folder, self.config, self.dtype, self.device = file, folder, config, dtype, device
        self.names: dict[str, str] = {}
        self._unread = set(file.tensors)
        for stored in file.tensors:
            plain = stored
            for pattern, replacement in _SPELLINGS:
                plain = re.sub(pattern, replacement, plain)
            if plain in self.names:
                raise CheckpointError(
                    f"{file.path} holds {stored!r} and {self.names[plain]!r}, which mean the same; keep one"
                )
            self.names[plain] = stored

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def read(self, name: str, shape: tuple[int, ...], *, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor of that shape, finite and on the model's device."""
        if name not in self.names:
            raise CheckpointError(
                f"{self.file.path} lacks {name!r}, which {CONFIG_FILE} asks for; fetch or save the adapter again"
            )
        stored = self.names[name]
        info = self.file.tensors[stored]
        if info.shape != shape:
            base = f" (trained on {self.config.base_model!r:.200})" if self.config.base_model else ""
            raise CheckpointError(
                f"{self.file.path}: tensor {stored!r} has shape {list(info.shape)}, this model with rank and modules "
                f"of {CONFIG_FILE} asks for {list(shape)}; the adapter{base} is of another model or damaged"
            )
        if info.dtype not in _FLOATS:
            raise CheckpointError(
                f"{self.file.path}: tensor {stored!r} has type {info.dtype}; adapters may have {', '.join(_FLOATS)}"
            )
        out = torch.empty(shape, dtype=dtype, device=self.device)
        self.file.read(stored, out)
        self._unread.discard(stored)
        return self.finite(out, name)

    def skip(self, name: str) -> None:
        """Counts the tensor, if it is there, as read."""
        self._unread.discard(self.names.get(name, ""))

    def finite(self, tensor: Tensor, name: str) -> Tensor:
        """The tensor itself, once it is known to hold finite numbers only."""
        pieces = (tensor[at : at + _CHUNK_ROWS] for at in range(0, len(tensor), _CHUNK_ROWS))
        if not all(bool(torch.isfinite(piece).all()) for piece in pieces):
            raise CheckpointError(
                f"{self.file.path}: {name!r} holds NaN or infinity in {str(tensor.dtype).removeprefix('torch.')}; "
                "the training failed, or the numbers need a wider dtype"
            )
        return tensor

    def refuse_unread(self) -> None:
        """Raises when a tensor was not asked for."""
        if self._unread:
            raise CheckpointError(
                f"{self.file.path} holds {len(self._unread)} tensors, first {min(self._unread)!r}, that "
                f"target_modules and modules_to_save of {CONFIG_FILE} do not name; it is of another adapter"
            )
