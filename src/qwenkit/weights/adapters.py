"""Loads a LoRA adapter that PEFT saved: its updates in the shape of our fused linears, its tables whole.

Every tensor that the configuration asks for must be there with the right shape, and every tensor that is there must
be asked for. Nothing in the folder is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qwenkit.config.families import Family
from qwenkit.config.hf import read_json
from qwenkit.config.lora import LoraConfig, from_peft
from qwenkit.config.model import ModelConfig
from qwenkit.core.errors import CheckpointError, ConfigError, UnsupportedModelError
from qwenkit.layers.lora import Adapter, LoraWeights
from qwenkit.layers.quant_linear import Stored, rows_of
from qwenkit.model.transformer import Transformer
from qwenkit.weights.files import BinFile, SafetensorsFile

CONFIG_FILE = "adapter_config.json"
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


def is_adapter(path: Path) -> bool:
    """Whether the folder holds an adapter rather than a model."""
    return (path / CONFIG_FILE).is_file()


def read_adapter_config(folder: Path) -> LoraConfig:
    """The configuration of an adapter folder.

    Raises:
        ConfigError: it is missing, malformed or of something that cannot be served.
    """
    if not is_adapter(folder):
        what = (
            "is a whole model, not an adapter" if (folder / "config.json").is_file() else "holds no adapter"
        )
        raise ConfigError(
            f"{folder} {what}: it has no {CONFIG_FILE}; give a folder that PEFT saved an adapter to"
        )
    return from_peft(read_json(folder / CONFIG_FILE, what="adapter configuration"))


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
    file = _open_weights(folder)
    try:
        reader = _Reader(file, folder, config, model.dtype, model.device)
        linears = list(_linears(family, model.config))
        _check_names(reader, family, model.config, linears)
        layers: tuple[dict[str, LoraWeights], ...] = tuple({} for _ in range(model.config.num_layers))
        for linear in linears:
            weights = _fused(reader, linear)
            if weights is not None:
                layers[linear.layer][linear.part] = weights
        embed, head = _tables(reader, family, model)
    finally:
        file.close()
    reader.refuse_unread()
    if embed is None and head is None and not any(layers):
        raise ConfigError(
            f"{folder}: target_modules={config.target_modules!r:.200} name no module of a {family.name} model"
        )
    return Adapter(name=name, layers=layers, embed=embed, head=head)


def _open_weights(folder: Path) -> SafetensorsFile | BinFile:
    for name, opener in (("adapter_model.safetensors", SafetensorsFile), ("adapter_model.bin", BinFile)):
        if (folder / name).is_file():
            return opener(folder / name)
    raise CheckpointError(
        f"{folder} has no adapter_model.safetensors and no adapter_model.bin; fetch or save the adapter again"
    )


class _Reader:
    """The stored tensors under one spelling, with a note of which have been read."""

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


@dataclass(frozen=True, slots=True)
class _Linear:
    """One linear of the network, and the modules of the checkpoint that are stacked into it."""

    layer: int
    part: str
    modules: tuple[str, ...]
    rows: tuple[int, ...]
    columns: int


def _linears(family: Family, config: ModelConfig) -> Iterator[_Linear]:
    q, kv, width, ffn = config.q_size, config.kv_size, config.hidden_size, config.ffn_size
    sizes = {
        "attn.qkv": (q + 2 * kv, width),
        "attn.out": (width, q),
        "ffn.gate_up": (2 * ffn, width),
        "ffn.down": (width, ffn),
    }
    for layer in range(config.num_layers):
        for part, (rows, columns) in sizes.items():
            sources = family.tensors[f"layers.{{i}}.{part}.weight"]
            modules = tuple(s.replace("{i}", str(layer)).removesuffix(".weight") for s in sources)
            split = {1: (rows,), 2: (ffn, ffn), 3: (q, kv, kv)}[len(modules)]
            yield _Linear(layer, part.rpartition(".")[2], modules, split, columns)


def _check_names(reader: _Reader, family: Family, config: ModelConfig, linears: list[_Linear]) -> None:
    """Names what cannot be served better than "unexpected tensor" would."""
    tables = [family.tensors[t][0].removesuffix(".weight") for t in ("embed.weight", "head.weight")]
    for name in reader.config.modules_to_save:
        if not any(_ends(table, name) for table in tables):
            raise UnsupportedModelError(
                f"{reader.folder}: modules_to_save names {name!r}; only {' and '.join(tables)} of a {family.name} model "
                "can be replaced by an adapter; merge it into the model"
            )
    for name in reader.config.token_rows:
        if name and not any(_ends(table, name) for table in tables):
            raise ConfigError(
                f"{reader.folder}: trainable_token_indices names {name!r}; a {family.name} model has {' and '.join(tables)}"
            )
    modules = {module for linear in linears for module in linear.modules} | set(tables)
    lora = [n for n in reader.names if ".lora_" in n]
    foreign = [n for n in lora if n.rpartition(".")[0] not in modules and not n.endswith(".bias")]
    if foreign:
        raise CheckpointError(
            f"{reader.file.path} holds {reader.names[foreign[0]]!r}, for a module that this {family.name} model of "
            f"{config.num_layers} layers does not have; the adapter was trained on {reader.config.base_model or 'another model'!r:.200}"
        )


def _fused(reader: _Reader, linear: _Linear) -> LoraWeights | None:
    """The updates of the modules that make up one linear, as one: b is block-diagonal."""
    config, parts = reader.config, []
    for module, start, rows in zip(linear.modules, _starts(linear.rows), linear.rows, strict=True):
        if config.targets(module):
            rank = config.rank_of(module)
            a = reader.read(f"{module}.lora_A", (rank, linear.columns))  # (r, in)
            b = reader.read(f"{module}.lora_B", (rows, rank)) * config.scale_of(module)  # (rows, r)
            parts.append((start, a, b))
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


def _tables(reader: _Reader, family: Family, model: Transformer) -> tuple[Tensor | None, Tensor | None]:
    """What replaces embedding and head."""
    config, tokens = reader.config, reader.config.token_rows
    names = [family.tensors[t][0].removesuffix(".weight") for t in ("embed.weight", "head.weight")]
    rows = [
        next((ids for key, ids in tokens.items() if _ends(name, key) or (not key and not number)), None)
        for number, name in enumerate(names)
    ]
    tied = model.config.tie_embeddings
    head_follows = tied and rows[0] is not None and rows[1] in (None, rows[0])
    if head_follows:
        rows[1] = None  # PEFT stores the rows of tied tables once
    has_lora = [config.targets(names[0]), config.targets(names[1], is_head=True)]
    if tied and has_lora[0] and f"{names[1]}.lora_A" in reader:
        has_lora[1] = True  # PEFT was told to keep the tables tied
    embed = _table(reader, names[0], model.embed.table, rows[0], has_lora=has_lora[0], is_head=False)
    head = _table(reader, names[1], model.head.parts[0], rows[1], has_lora=has_lora[1], is_head=True)
    # Stored without being named in modules_to_save: written from the model itself, whose head is the same table.
    is_own = f"{names[0]}.weight" in reader and not config.saves(names[0])
    if head is None and (head_follows or (tied and is_own)):
        head = embed
    if embed is not None and head is not None and torch.equal(embed, head):
        head = embed  # one table in memory
    return embed, head


def _ends(module: str, name: str) -> bool:
    return module == name or (bool(name) and module.endswith("." + name))


def _table(
    reader: _Reader,
    module: str,
    base: Stored,
    token_ids: tuple[int, ...] | None,
    *,
    has_lora: bool,
    is_head: bool,
) -> Tensor | None:
    """The (V, D) table that replaces ``base``, or None when the adapter leaves it alone."""
    shape = (base.shape[0], base.shape[1])
    config = reader.config
    table = None
    for stored in (f"{module}.weight", f"{module}.modules_to_save", f"{module}.base_layer.weight"):
        if table is None and stored in reader:
            _check_vocabulary(reader, stored, shape)
            table = reader.read(stored, shape, dtype=reader.dtype)
        reader.skip(stored)
    reader.skip(f"{module}.original_module.weight")
    if table is None and config.saves(module):
        table = reader.read(f"{module}.weight", shape)  # raises: it is not there
    if has_lora:
        rank = config.rank_of(module)
        if is_head:
            left = reader.read(f"{module}.lora_B", (shape[0], rank))  # (V, r)
            right = reader.read(f"{module}.lora_A", (rank, shape[1]))  # (r, D)
        else:
            left = reader.read(f"{module}.lora_embedding_A", (rank, shape[0])).T  # (V, r)
            right = reader.read(f"{module}.lora_embedding_B", (shape[1], rank)).T  # (r, D)
        updated = _updated(
            base if table is None else table, left, right * config.scale_of(module), reader.dtype
        )
        table = reader.finite(updated, module)
    if token_ids is not None:
        _check_token_ids(module, token_ids, shape[0], has_lora=has_lora)
        new = reader.read(f"{module}.trainable_tokens_delta", (len(token_ids), shape[1]), dtype=reader.dtype)
        table = rows_of(base, 0, shape[0], reader.dtype).detach().clone() if table is None else table
        table[torch.tensor(token_ids, device=table.device)] = new
    return table


def _check_vocabulary(reader: _Reader, name: str, shape: tuple[int, int]) -> None:
    stored = reader.file.tensors[reader.names[name]].shape
    if len(stored) == 2 and stored[1] == shape[1] and stored[0] != shape[0]:
        raise UnsupportedModelError(
            f"{reader.file.path}: {name!r} has {stored[0]} rows, the model's vocabulary {shape[0]}; an adapter that "
            "changes the size of the vocabulary cannot be served, merge it into the model"
        )


def _check_token_ids(module: str, token_ids: tuple[int, ...], vocab_size: int, *, has_lora: bool) -> None:
    if has_lora:
        raise UnsupportedModelError(
            f"{CONFIG_FILE}: both trainable_token_indices and target_modules name {module!r}; only one of them can be "
            "served, merge the adapter into the model"
        )
    if len(set(token_ids)) < len(token_ids) or max(token_ids, default=0) >= vocab_size:
        raise ConfigError(
            f"{CONFIG_FILE}: trainable_token_indices holds {max(token_ids)} or an id twice; ids below {vocab_size} are "
            "allowed, each once"
        )


def _updated(base: Stored, left: Tensor, right: Tensor, dtype: torch.dtype) -> Tensor:
    """base + left right, a few rows at a time, so that no second table in float32 is needed."""
    out = left.new_empty(len(left), right.shape[1], dtype=dtype)
    for at in range(0, len(left), _CHUNK_ROWS):
        end = min(at + _CHUNK_ROWS, len(left))
        out[at:end] = rows_of(base, at, end, torch.float32) + left[at:end] @ right
    return out
